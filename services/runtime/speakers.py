"""Who speaks for which slots when many keys are walked through: their first live owners.

Each slot is spoken for by one node, so that nothing is seen twice, and by the one whose copy
eventual reads see. A bitmap has the bit `1 << (slot & 7)` of the byte `slot >> 3` for each slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain

from services.core.cluster import ClusterMap
from services.core.placement import Placement
from services.core.ring import slot_count
from services.runtime.fleet import Fleet, FleetNode

unlisted: AbstractSet[str] = frozenset()
_bitmap_bytes = slot_count // 8


class UnspokenError(Exception):
    """Some slots have no live owner; the text says which nodes they wait for."""


class Speakers:
    """Who speaks hardly ever changes. For a new map it takes 1 ms to work it out among 3 nodes, 5
    among 50 and 11 among 256; after that, a share of it as large as that of the nodes that cannot
    be asked, whenever these are others."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._map: ClusterMap | None = None
        # By node, the slots that it is the first owner of: next to each other, and as a bitmap.
        self._first_of: dict[str, tuple[list[range], bytes]] = {}
        # Who speaks while the order of owners is this one, and nobody is passed over.
        self._order = -1
        self._usual: Mapping[FleetNode, bytes] = {}
        self._owned: Counter[str] = Counter()

    def assign(self, without: AbstractSet[str] = unlisted) -> Mapping[FleetNode, bytes]:
        """The nodes that speak, each with the bitmap of its slots. Those in `without` are passed
        over. UnspokenError if that leaves a slot to nobody."""
        self._follow()
        if without:
            return self._assign(without)
        if self._order != self._fleet.order:
            self._usual = self._assign(unlisted)
            self._order = self._fleet.order
        return self._usual

    def owned(self, nodes: Iterable[FleetNode]) -> int:
        """How many slots these nodes have, each counted for every one of them that has it."""
        self._follow()
        if not self._owned and self._map is not None:
            self._owned = _owned(self._map)
        return sum(self._owned[node.node_id] for node in nodes)

    def _follow(self) -> None:
        if self._map is self._fleet.map:
            return
        self._map = self._fleet.map
        self._order, self._owned = -1, Counter()
        self._first_of = _first_of(self._map) if self._map is not None else {}

    def _assign(self, without: AbstractSet[str]) -> Mapping[FleetNode, bytes]:
        spoken: dict[FleetNode, bytes] = {}
        orphaned: list[range] = []
        for node_id, (runs, bitmap) in self._first_of.items():
            node = self._fleet.nodes[node_id]
            if node.rank or node_id in without:
                orphaned += runs
            else:
                spoken[node] = bitmap
        others: dict[FleetNode, bytearray] = {}
        for run in orphaned:
            node = self._speaker(run.start, without)
            bits = others.get(node)
            if bits is None:
                bits = others[node] = bytearray(spoken.get(node) or _bitmap_bytes)
            _set(bits, run)
        spoken.update((node, bytes(bits)) for node, bits in others.items())
        return spoken

    def _speaker(self, slot: int, without: AbstractSet[str]) -> FleetNode:
        readers = self._fleet.route(slot).readers
        for node in readers:
            if node.live and node.node_id not in without:
                return node
        names = ", ".join(sorted(node.node_id for node in readers))
        raise UnspokenError(f"of {names}, which have slot {slot}, none can be asked")


def _first_of(cluster_map: ClusterMap) -> dict[str, tuple[list[range], bytes]]:
    """By node, the slots that it is the first owner of. Those of a range have the same owners."""
    runs: dict[str, list[range]] = {}
    start, placements = 0, cluster_map.placements
    present = placements[0]
    for slot, placement in enumerate(placements):
        # Slots with the same owners share their placement.
        if placement is not present:
            runs.setdefault(present.owners[0], []).append(range(start, slot))
            start, present = slot, placement
    runs.setdefault(present.owners[0], []).append(range(start, slot_count))
    found: dict[str, tuple[list[range], bytes]] = {}
    for node_id, of_node in runs.items():
        bits = bytearray(_bitmap_bytes)
        for run in of_node:
            _set(bits, run)
        found[node_id] = of_node, bytes(bits)
    return found


def _set(bits: bytearray, slots: range) -> None:
    rest: Iterable[int] = slots
    lower, upper = -(-slots.start // 8), slots.stop // 8
    if lower < upper:
        # Whole bytes at once, which is most of what there is where nodes are few.
        bits[lower:upper] = b"\xff" * (upper - lower)
        rest = chain(range(slots.start, lower * 8), range(upper * 8, slots.stop))
    for slot in rest:
        bits[slot >> 3] |= 1 << (slot & 7)


def _owned(cluster_map: ClusterMap) -> Counter[str]:
    """By node, how many slots it has."""
    slots: dict[int, int] = Counter(map(id, cluster_map.placements))
    by_id: dict[int, Placement] = {id(placement): placement for placement in cluster_map.placements}
    owned: Counter[str] = Counter()
    for identity, count in slots.items():
        # While the map is joint, the new ones may not have everything yet.
        for node_id in by_id[identity].old_owners:
            owned[node_id] += count
    return owned
