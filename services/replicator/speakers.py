"""Who speaks for which slots when many keys are walked through: their first live owners.

Each slot is spoken for by one node, so that nothing is seen twice, and by the one whose copy
eventual reads see. A bitmap has the bit `1 << (slot & 7)` of the byte `slot >> 3` for each slot.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from services.core.cluster import ClusterMap, Placement
from services.core.ring import slot_count
from services.replicator.fleet import Fleet, FleetNode

unlisted: AbstractSet[str] = frozenset()


class UnspokenError(Exception):
    """Some slots have no live owner; the text says which nodes they wait for."""


class Speakers:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # By placement, a slot that has it and all of them as one number; of the map they are of.
        self._slots: list[tuple[int, int]] = []
        self._map: ClusterMap | None = None

    def assign(self, without: AbstractSet[str] = unlisted) -> dict[FleetNode, bytes]:
        """The nodes that speak, each with the bitmap of its slots. Those in `without` are passed
        over. UnspokenError if that leaves a slot to nobody."""
        if self._map is not self._fleet.map:
            self._map = self._fleet.map
            self._slots = _slots_by_placement(self._map) if self._map is not None else []
        spoken: dict[FleetNode, int] = {}
        for slot, slots in self._slots:
            owners = self._fleet.route(slot).owners
            for _, node in owners:
                if node.live and node.node_id not in without:
                    spoken[node] = spoken.get(node, 0) | slots
                    break
            else:
                names = ", ".join(sorted(node.node_id for _, node in owners))
                raise UnspokenError(f"of {names}, which have slot {slot}, none can be asked")
        return {node: slots.to_bytes(slot_count // 8, "little") for node, slots in spoken.items()}


def _slots_by_placement(cluster_map: ClusterMap) -> list[tuple[int, int]]:
    """For each placement a slot of it, and the bitmap of all its slots as a number."""
    bitmaps: dict[int, bytearray] = {}
    first: dict[int, int] = {}
    placements: tuple[Placement, ...] = cluster_map.placements
    for slot, placement in enumerate(placements):
        # Slots with the same owners share one.
        bitmap = bitmaps.get(id(placement))
        if bitmap is None:
            bitmap = bitmaps[id(placement)] = bytearray(slot_count // 8)
            first[id(placement)] = slot
        bitmap[slot >> 3] |= 1 << (slot & 7)
    return [(first[of], int.from_bytes(bitmap, "little")) for of, bitmap in bitmaps.items()]
