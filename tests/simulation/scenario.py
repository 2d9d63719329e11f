"""What a simulated scenario is, and how a seed of it is run, reported and repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """What one seed did. `counts` add up over seeds; `trace` is equal when a seed is repeated."""

    counts: dict[str, int] = field(default_factory=dict)
    trace: int = 0

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by


Scenario = Callable[[int], Outcome]
"""Runs one seed. Raises AssertionError when something that must hold did not."""


class SeedFailedError(Exception):
    """A seed broke a rule; the text says how to see it again."""


def run_seeds(name: str, scenario: Scenario, seeds: range) -> Mapping[str, int]:
    """Run each seed and sum up what they did."""
    totals: dict[str, int] = {}
    for seed in seeds:
        try:
            outcome = scenario(seed)
        except AssertionError as error:
            raise SeedFailedError(
                f"{name}: seed {seed}: {error}\nrepeat it with: make sim SEED={seed}"
            ) from error
        for key, number in outcome.counts.items():
            totals[key] = totals.get(key, 0) + number
    return totals
