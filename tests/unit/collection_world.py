"""Replicators that collect a slot of real nodes, in one process; and ways to see what is left."""

from __future__ import annotations

from functools import cache
from itertools import count

from services.core.cluster import ClusterMap
from services.core.messages import EPOCH
from services.core.record import visible
from services.core.ring import slot_of
from services.replicator.collection import CollectionRates, Collector, usual_rates
from services.replicator.collection_end import Collected, End
from tests.unit.replicator_world import Coordinator, Node, World, prefix

# Nodes, links and disks need a few milliseconds for a whole attempt.
attempt_s = 1.0


@cache
def keys_of_one_slot() -> tuple[bytes, ...]:
    """Twelve storage keys that share a slot, in order. Looking for them takes a tenth of a
    second."""
    found: list[bytes] = []
    for number in count():
        key = prefix + b"key-%d" % number
        if not found or slot_of(key) == slot_of(found[0]):
            found.append(key)
        if len(found) == 12:
            break
    return tuple(sorted(found))


keys = keys_of_one_slot()
slot = slot_of(keys[0])


class CollectingWorld(World):
    """Three nodes that know their map, and replicators each of which has a collector."""

    def __init__(self, *, replicators: int = 1) -> None:
        super().__init__(replicators=replicators)
        self.tell_map(self.map)
        self.collectors = [collector_of(coordinator) for coordinator in self.replicators]
        self.collector = self.collectors[0]

    def tell_map(self, map_: ClusterMap, *names: str) -> None:
        """Have these nodes, or all, know this map."""
        for name in names or tuple(self.nodes):
            link = self.replicators[-1].fleet.nodes[name].link
            assert not link.request(EPOCH, map_.encode(), lambda kind, body: None, 1.0)
        self.pass_time()

    def collect(self, by: int = 0) -> Collected:
        """One attempt, to its end."""
        ended: list[Collected] = []
        self.collectors[by].collect(slot, ended.append)
        self.pass_until(lambda: bool(ended))
        self.pass_time(0.01)
        return ended[0]

    def collected(self, by: int = 0) -> Collected:
        """One attempt that completes."""
        collected = self.collect(by)
        assert collected.end is End.COMPLETED, collected
        return collected

    def promised(self, key: bytes) -> list[bool]:
        """Which owners hold a promise."""
        return [node.replica.promises.holds(slot, key) for node in self.owners(key)]

    def is_gone(self, key: bytes) -> bool:
        """Whether no replica knows anything of the key."""
        return self.held(key) == [None] * 3 and not any(self.promised(key))

    def values(self, key: bytes) -> list[bytes | None]:
        """What each owner shows to eventual reads."""
        now_ms = self.replicator.clock.wall_ms()
        return [
            record if record is not None and visible(record, now_ms) else None
            for record in self.held(key)
        ]

    def others(self) -> list[Node]:
        """The owners of the slot but the first."""
        return self.owners(keys[0])[1:]


def collector_of(coordinator: Coordinator, rates: CollectionRates = usual_rates) -> Collector:
    return Collector(
        coordinator.fleet,
        coordinator.stamps,
        coordinator.strong,
        coordinator.epochs,
        coordinator.clock,
        coordinator.draw,
        rates,
    )
