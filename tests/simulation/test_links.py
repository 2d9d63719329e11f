"""Each request ends once and truly, in whatever weather."""

from __future__ import annotations

from tests.simulation.links import links
from tests.simulation.scenario import run_seeds


def test_every_request_ends_once_and_truly_in_300_seeds_of_bad_weather() -> None:
    totals = run_seeds("links", links, range(300))
    assert totals["faults"] >= 4 * 300 // 2
    # The weather is bad, and yet most requests have a definite end: the check sees something.
    assert totals["answered"] > totals["requests"] // 4
    assert totals["lost"] > 0
    assert totals["timed out"] > 0


def test_a_seed_repeats_itself() -> None:
    assert links(11).trace == links(11).trace
    assert links(11).trace != links(12).trace
