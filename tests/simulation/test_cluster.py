"""What a cluster told anybody stays true, in any weather and through changes of its members."""

from __future__ import annotations

import pytest

from tests.simulation.cluster import cluster
from tests.simulation.scenario import run_seeds


# A minute of both cores, of which there may be less.
@pytest.mark.timeout(400)
def test_300_seeds_of_a_cluster_are_linearizable_and_lose_nothing() -> None:
    seeds = 300
    totals = run_seeds("cluster", cluster, range(seeds), jobs=2)
    assert totals["operations"] >= 150 * seeds
    assert totals["faults"] >= 4 * seeds
    # Each kind of trouble has been met often, so the check has seen something.
    for trouble in (
        "node: power cut",
        "node: kill",
        "replicator: power cut",
        "replicator: kill",
        "replicator: directory lost",
        "pause",
        "one-way partition",
        "isolation",
        "storm",
        "slow path",
        "frozen disk",
        "broken disk",
        "clock jump",
    ):
        assert totals[f"fault {trouble}"] > seeds / 2, trouble
    assert totals["changes of members"] > seeds / 2
    assert totals["slots moved"] > seeds
    # Values have ended, and were freed in the cells and in what was accepted.
    assert totals["values trimmed"] > seeds
    assert totals["promises of ended values"] > seeds
    # What has ended was collected in the middle of all this, and several have met at it.
    assert totals["collection completed"] > 3 * seeds
    assert totals["tombstones collected"] > 3 * seeds
    assert totals["promises collected"] > 2 * seeds
    assert totals["collection nacked"] + totals["collection no session"] > seeds / 4
    assert totals["collection joint"] > seeds
    # Some was left to comparing replicas, and to sessions.
    assert totals["records repaired"] > seeds / 2
    assert totals["records repaired in collections"] > seeds / 8
    assert totals["keys undecided"] == 0


def test_most_operations_of_simulated_clients_have_definite_outcomes() -> None:
    totals = run_seeds("cluster", cluster, range(40), jobs=2)
    told = ("absent", "found", "mismatch", "not an integer", "wrote")
    strong = sum(totals.get(f"strong {outcome}", 0) for outcome in told)
    unsure = totals["strong unknown"] + totals["strong failed"]
    assert strong > unsure
    assert totals["eventual acknowledged"] > totals["eventual unknown"] + totals["eventual refused"]


def test_a_seed_of_a_cluster_repeats_itself() -> None:
    assert cluster(11).trace == cluster(11).trace
    assert cluster(11).trace != cluster(12).trace
