"""How many slots of a cluster can be served is known without asking each of them each time."""

from __future__ import annotations

from itertools import combinations

import pytest

from services.core.cluster import ClusterMap, Member
from services.core.placement import Placement
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fleet import Fleet
from tests.unit.test_replicator_membership import Away


class Reachable(Away):
    """A link that is up when it is told so."""

    def silent_s(self) -> float:
        return 0.0


def members(*numbers: int) -> tuple[Member, ...]:
    return tuple(Member(f"node-{n}", f"{n:032x}", "127.0.0.1", 8000 + n, 9000 + n) for n in numbers)


class Majority:
    """Whether a majority is there, and how often that was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, placement: Placement, live: int) -> bool:
        self.asked += 1
        return placement.is_quorum(live)


def reach(fleet: Fleet, *names: str) -> None:
    for node_id, node in fleet.nodes.items():
        assert isinstance(node.link, Reachable)
        node.link.connected = node_id in names
        fleet.noticed(node)


@pytest.mark.parametrize(
    "cluster",
    [
        ClusterMap(1, 3, members(1, 2, 3)),
        ClusterMap(1, 3, members(1, 2, 3, 4, 5)),
        ClusterMap(2, 3, members(2, 3, 4, 5), members(1, 2, 3)),
        ClusterMap(1, 1, members(1, 2)),
    ],
)
def test_the_slots_counted_are_those_that_are_found_one_by_one(cluster: ClusterMap) -> None:
    fleet = Fleet(Reachable, FakeClock(Timeline()))
    fleet.adopt(cluster)
    serves = Majority()
    for count in range(len(fleet.nodes) + 1):
        for names in combinations(sorted(fleet.nodes), count):
            reach(fleet, *names)
            lacking = sum(
                not placement.is_quorum(placement.mask(names)) for placement in cluster.placements
            )
            assert fleet.slots_without(serves) == lacking, names


def test_they_are_counted_again_only_after_something_has_changed() -> None:
    fleet = Fleet(Reachable, FakeClock(Timeline()))
    serves = Majority()
    assert fleet.slots_without(serves) == 0, "without a map"
    fleet.adopt(ClusterMap(1, 3, members(1, 2, 3)))
    reach(fleet, "node-1")
    assert {fleet.slots_without(serves) for _ in range(100)} == {16_384}
    assert serves.asked <= 6, "once for each placement, of which three nodes have six"
    reach(fleet, "node-1", "node-2")
    assert fleet.slots_without(serves) == 0
    asked = serves.asked
    reach(fleet, "node-1", "node-2", "node-3")
    assert fleet.slots_without(serves) == 0
    assert serves.asked == asked, "with everybody there is nothing to count"
