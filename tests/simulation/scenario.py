"""What a simulated scenario is, and how seeds of it are run, reported and repeated."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from tests.sources import run_sources

# Enough that handing them over costs nothing, few enough that a failure is told soon.
seeds_in_a_piece = 20
collect_at = (100_000, 10, 10)


@dataclass(slots=True)
class Outcome:
    """What one seed did. `counts` add up over seeds; `trace` is equal when a seed is repeated."""

    counts: dict[str, int] = field(default_factory=dict)
    trace: int = 0

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by


Scenario = Callable[[int], Outcome]
"""Runs one seed. Raises AssertionError when something that must hold did not."""

Setting = Callable[[], AbstractContextManager[object]]
"""What seeds are run within."""


class SeedFailedError(Exception):
    """A seed broke a rule; the text says how to see it again."""

    def __init__(self, name: str, seed: int, what: str) -> None:
        super().__init__(f"{name}: seed {seed}: {what}\nrepeat it with: make sim SEED={seed}")
        self.seed = seed


@dataclass(slots=True, frozen=True)
class _Failure:
    seed: int
    what: str


def run_seeds(
    name: str,
    scenario: Scenario,
    seeds: range,
    *,
    jobs: int = 1,
    within: Setting = nullcontext,
    sources: bool = False,
) -> Mapping[str, int]:
    """Run each seed and sum up what they did, in so many processes. The first that fails, in
    order of seeds, is told. What is handed to other processes must be functions of modules; with
    `sources` these run nothing compiled, as this process must not either."""
    totals: dict[str, int] = {}
    for counts, failure in _run_pieces(scenario, seeds, jobs, within, sources):
        if failure is not None:
            raise SeedFailedError(name, failure.seed, failure.what)
        for key, number in counts.items():
            totals[key] = totals.get(key, 0) + number
    return totals


_Sum = tuple[dict[str, int], _Failure | None]


def _run_pieces(
    scenario: Scenario, seeds: range, jobs: int, within: Setting, sources: bool
) -> Iterator[_Sum]:
    pieces = [
        seeds[start : start + seeds_in_a_piece] for start in range(0, len(seeds), seeds_in_a_piece)
    ]
    run = partial(_run_piece, scenario, within)
    if jobs == 1:
        yield from map(run, pieces)
        return
    # Children that begin anew: what this process has started may not survive a fork.
    context = multiprocessing.get_context("spawn")
    begin = partial(_begin_worker, sources)
    with ProcessPoolExecutor(jobs, context, initializer=begin) as pool:
        try:
            yield from pool.map(run, pieces)
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker(sources: bool) -> None:
    if sources:
        run_sources()
    # Ctrl-C is for the process that has started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A seed makes tens of thousands of objects and keeps none: looking for garbage less often
    # saves a quarter of the time, and costs a hundred mebibytes.
    gc.set_threshold(*collect_at)


def _run_piece(scenario: Scenario, within: Setting, seeds: range) -> _Sum:
    totals: dict[str, int] = {}
    with within():
        for seed in seeds:
            try:
                outcome = scenario(seed)
            except AssertionError as error:
                return totals, _Failure(seed, str(error))
            for key, number in outcome.counts.items():
                totals[key] = totals.get(key, 0) + number
    return totals, None
