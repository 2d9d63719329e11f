"""Nothing acknowledged is lost and nothing is invented, however the disk lies."""

from __future__ import annotations

from tests.simulation.lying_disk import lying_disk
from tests.simulation.scenario import run_seeds


def test_300_seeds_of_a_lying_disk_lose_nothing_and_invent_nothing() -> None:
    totals = run_seeds("lying_disk", lying_disk, range(300))
    # Each kind of trouble has been met often, so the check has seen something.
    assert totals["acknowledged"] > 50_000
    for trouble in (
        "power cuts",
        "kills",
        "failed disks",
        "interrupted recoveries",
        "snapshots",
        "snapshots without space",
        "torn writes cut",
        "orderly stops",
    ):
        assert totals[trouble] > 50, trouble


def test_a_seed_repeats_itself() -> None:
    assert lying_disk(11).trace == lying_disk(11).trace
    assert lying_disk(11).trace != lying_disk(12).trace
