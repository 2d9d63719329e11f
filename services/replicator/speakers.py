"""Who speaks for which slots when many keys are walked through: their first live owners.

Each slot is spoken for by one node, so that nothing is seen twice, and by the one whose copy
eventual reads see. A bitmap has the bit `1 << (slot & 7)` of the byte `slot >> 3` for each slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from services.core.cluster import ClusterMap, Placement
from services.core.ring import slot_count
from services.replicator.fleet import Fleet, FleetNode

unlisted: AbstractSet[str] = frozenset()


class UnspokenError(Exception):
    """Some slots have no live owner; the text says which nodes they wait for."""


class Speakers:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Slots next to each other that have the same placement, of the map that they are of.
        self._runs: list[_Run] = []
        self._owned: Counter[str] = Counter()
        self._map: ClusterMap | None = None

    def assign(self, without: AbstractSet[str] = unlisted) -> dict[FleetNode, bytes]:
        """The nodes that speak, each with the bitmap of its slots. Those in `without` are passed
        over. UnspokenError if that leaves a slot to nobody."""
        fleet = self._fleet
        self._follow()
        # A digit for each slot, the last slot first, of one binary number.
        spoken: dict[FleetNode, bytearray] = {}
        for start, end, placement in self._runs:
            node = fleet.nodes[placement.owners[0]]
            if node.rank or node.node_id in without:
                # Not the usual case, which spares tens of milliseconds where there are many nodes.
                node = self._speaker(start, without)
            digits = spoken.get(node)
            if digits is None:
                digits = spoken[node] = bytearray(b"0") * slot_count
            digits[slot_count - end : slot_count - start] = b"1" * (end - start)
        size = slot_count // 8
        return {node: int(digits, 2).to_bytes(size, "little") for node, digits in spoken.items()}

    def owned(self, nodes: Iterable[FleetNode]) -> int:
        """How many slots these nodes have, each counted for every one of them that has it."""
        self._follow()
        return sum(self._owned[node.node_id] for node in nodes)

    def _follow(self) -> None:
        if self._map is self._fleet.map:
            return
        self._map = self._fleet.map
        self._runs = _runs(self._map) if self._map is not None else []
        self._owned = Counter()
        for start, end, placement in self._runs:
            # While the map is joint, the new ones may not have everything yet.
            for node_id in placement.old_owners:
                self._owned[node_id] += end - start

    def _speaker(self, slot: int, without: AbstractSet[str]) -> FleetNode:
        owners = self._fleet.route(slot).owners
        for _, node in owners:
            if node.live and node.node_id not in without:
                return node
        names = ", ".join(sorted(node.node_id for _, node in owners))
        raise UnspokenError(f"of {names}, which have slot {slot}, none can be asked")


class _Run(NamedTuple):
    """The slots from `start` up to `end`, which is not among them."""

    start: int
    end: int
    placement: Placement


def _runs(cluster_map: ClusterMap) -> list[_Run]:
    placements = cluster_map.placements
    runs: list[_Run] = []
    start, present = 0, placements[0]
    for slot, placement in enumerate(placements):
        # Slots with the same owners share their placement.
        if placement is not present:
            runs.append(_Run(start, slot, present))
            start, present = slot, placement
    runs.append(_Run(start, slot_count, present))
    return runs
