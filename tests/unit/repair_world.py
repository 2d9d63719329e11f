"""Replicators that compare the replicas of real nodes, in one process; and who is told of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from services.core.key import namespace_prefix
from services.core.record import tombstone_body, value_body
from services.core.ring import slot_count, slot_of
from services.replicator.anti_entropy import AntiEntropy, Rates
from services.replicator.repair_counters import RepairCounters
from services.replicator.slot_shares import Shares
from tests.unit.replicator_world import Coordinator, Node, World, key_of

# A version that is this much older is of a write that nobody waits for any more.
old_ms = 60_000
prefix = namespace_prefix(7, b"default")


@dataclass
class MemoryOwed:
    """What nodes miss, by their marks; and what was said to be mended."""

    marks: dict[str, int] = field(default_factory=dict)
    undrained: set[str] = field(default_factory=set)
    told: list[tuple[str, int]] = field(default_factory=list)

    def mark(self, node_id: str) -> int:
        return self.marks.get(node_id, 0)

    def mended(self, node_id: str, mark: int) -> None:
        self.told.append((node_id, mark))
        if self.marks[node_id] == mark:
            self.marks[node_id] = 0

    def drained(self, node_id: str) -> bool:
        return node_id not in self.undrained


@dataclass
class Requested:
    """The slots that somebody wants collected, in order."""

    slots: list[int] = field(default_factory=list)

    def request(self, slot: int) -> None:
        self.slots.append(slot)


class Repairer:
    """One replicator's anti-entropy."""

    def __init__(self, coordinator: Coordinator, rates: Rates) -> None:
        self.coordinator = coordinator
        self.owed = MemoryOwed()
        self.requested = Requested()
        self.counters = RepairCounters()
        fleet, clock = coordinator.fleet, coordinator.clock
        self.shares = Shares(coordinator.name, fleet, clock)
        self.anti_entropy = AntiEntropy(
            fleet,
            coordinator.stamps,
            self.owed,
            coordinator.epochs,
            self.shares,
            self.requested,
            clock,
            rates,
            self.counters,
        )
        self.shares.start()
        self.anti_entropy.start()


class RepairWorld(World):
    def __init__(
        self,
        nodes: int = 3,
        *,
        replicas: int = 3,
        replicators: int = 1,
        pass_s: float = 600.0,
        records_per_s: int = 100_000,
        bytes_per_s: int = 1 << 30,
    ) -> None:
        super().__init__(nodes, replicas=replicas, replicators=replicators)
        rates = Rates(pass_s, records_per_s, bytes_per_s)
        self.repairers = [Repairer(coordinator, rates) for coordinator in self.replicators]
        self.pass_time(0.1)

    @property
    def repairer(self) -> Repairer:
        return self.repairers[0]

    @property
    def counters(self) -> RepairCounters:
        return self.repairer.counters

    def repair(self, slots: Iterable[int] | None = None, within_s: float = 60.0) -> None:
        """Order it, and wait until it is done."""
        anti_entropy = self.repairer.anti_entropy
        anti_entropy.compare(slots)
        until_s = self.timeline.now_s + within_s
        while anti_entropy.ordered:
            assert self.timeline.now_s < until_s, "it does not come to an end"
            self.timeline.step()
        self.check()

    def sow(
        self, numbers: Iterable[int], *only: str, ahead_ms: int = -old_ms, value: bytes = b"value"
    ) -> dict[bytes, bytes]:
        """Have some nodes, or all, hold a record of each key that nobody else has."""
        names = only or tuple(self.nodes)
        records = {key_of(number): self.version(ahead_ms) + value_body(value) for number in numbers}
        self.sow_records(records, *names)
        return records

    def sow_records(self, records: dict[bytes, bytes], *names: str) -> None:
        for key, record in records.items():
            for name in names:
                if name in self.placement(key).owners:
                    self.plant(self.nodes[name], key, record)

    def bury(self, numbers: Iterable[int], *only: str) -> dict[bytes, bytes]:
        """The same with tombstones."""
        records = {key_of(number): self.version(-old_ms) + tombstone_body for number in numbers}
        self.sow_records(records, *(only or tuple(self.nodes)))
        return records

    def summaries(self, node: Node) -> list[bytes]:
        return [node.replica.table.leaves(slot) for slot in range(slot_count)]

    def assert_equal(self) -> None:
        """All owners of each slot have the same in it."""
        for slot in range(slot_count):
            owners = self.map.placements[slot].owners
            leaves = {self.nodes[name].replica.table.leaves(slot) for name in owners}
            assert len(leaves) == 1, f"the replicas of slot {slot} differ"


@cache
def _keys_of_one_slot() -> tuple[bytes, ...]:
    """A hundred of them, out of so many that each slot has about as many."""
    slot = slot_of(prefix + b"in-slot-0")
    keys = (prefix + b"in-slot-%d" % number for number in itertools.count())
    return tuple(itertools.islice((key for key in keys if slot_of(key) == slot), 100))


def keys_of_one_slot(count: int) -> list[bytes]:
    """Keys, in order, that share a slot."""
    assert count <= len(_keys_of_one_slot())
    return sorted(_keys_of_one_slot()[:count])
