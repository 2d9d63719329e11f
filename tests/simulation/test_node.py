"""What a replica told anybody stays true, however its disk, its links and its process fare."""

from __future__ import annotations

from tests.simulation.node import node
from tests.simulation.scenario import run_seeds


def test_150_seeds_of_a_node_lose_nothing_invent_nothing_and_take_nothing_back() -> None:
    totals = run_seeds("node", node, range(150))
    # Each kind of trouble has been met often, so the check has seen something.
    assert totals["acknowledged"] > 5_000
    assert totals["shown"] > 20_000
    for trouble in (
        "power cuts",
        "kills",
        "failed disks",
        "frozen disks",
        "full disks",
        "interrupted recoveries",
        "snapshots",
        "storms",
        "unknown",
    ):
        assert totals[trouble] > 50, trouble


def test_a_seed_repeats_itself() -> None:
    assert node(11).trace == node(11).trace
    assert node(11).trace != node(12).trace
