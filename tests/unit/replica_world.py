"""A replica with a real log on a disk in memory, and a peer that keeps its answers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from services.core import messages as m
from services.core.digest import differing
from services.core.key import namespace_prefix
from services.core.namespaces import Edition
from services.core.record import tombstone_body, value_body
from services.core.ring import slot_of
from services.core.wire import Hello, Role
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.replica import Replica
from services.dhtnode.table import Table
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.log.log import Batch, Log

digest_key = bytes(range(32))
prefix = namespace_prefix(7, b"default")
cached = namespace_prefix(7, b"cached")
spaces = (prefix, cached, namespace_prefix(8, b"x"))
Answer = tuple[int, bytes]


def key_of(number: int, of: bytes = prefix) -> bytes:
    return of + b"key-%d" % number


# Looking at all 16384 slots takes 50 ms; these are all that have keys in these tests.
used_slots = sorted({slot_of(key_of(number, of)) for number in range(50) for of in spaces})


def version(counter: int, ahead_ms: int = 0) -> bytes:
    return (
        (FakeClock.epoch_ms + ahead_ms).to_bytes(6, "big")
        + counter.to_bytes(2, "big")
        + bytes((0, 0, 0, 9))
    )


def value(counter: int, content: bytes = b"", *, ahead_ms: int = 0) -> bytes:
    return version(counter, ahead_ms) + value_body(content or b"value-%d" % counter)


def tombstone(counter: int) -> bytes:
    return version(counter) + tombstone_body


@dataclass(eq=False)
class Asker:
    """A peer that keeps its answers, and how much was durable when each came."""

    log: Log
    answers: dict[int, Answer] = field(default_factory=dict)
    durable_at: dict[int, int] = field(default_factory=dict)
    hello: Hello = field(default=Hello(Role.REPLICATOR, "replicator-1", 0, bytes(32)))
    connected: bool = True

    def silent_s(self) -> float:
        return 0.0

    def request(self, *_: object) -> int:
        raise AssertionError("a replica asks nobody")

    def notify(self, kind: int, body: bytes) -> bool:
        raise AssertionError("a replica tells nobody")

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        assert request_id not in self.answers, f"request {request_id} is answered twice"
        self.answers[request_id] = (kind, body)
        self.durable_at[request_id] = self.log.durable_sequence


class World:
    """A replica with a real log on a disk in memory. Nothing becomes durable before `settle`."""

    def __init__(self, *, segment_bytes: int = 1 << 20, commit_bytes_max: int = 64 << 10) -> None:
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        self.disk = FakeDisk(random.Random(1), FakeClock(self.timeline))
        self.table = Table(digest_key)
        self.replica = Replica(self.table, self.clock)
        directory = NodeDirectory.open(self.disk, Path("/data/nodes/n"), "n", bytes(range(16)))
        self.directory = directory
        self.log = Log(
            directory,
            self.clock,
            lambda callback: self.clock.call_later(0.0, callback),
            next_sequence=1,
            next_index=1,
            segments=[],
            on_durable=self._durable,
            on_failure=self._failed,
            segment_bytes=segment_bytes,
            commit_bytes_max=commit_bytes_max,
        )
        self.frames: list[tuple[int, bytes]] = []
        self._watch_appends()
        self.replica.serve(self.log)
        self.asker = Asker(self.log)
        self.asked = 0
        self.log.start()
        self.settle()

    def _watch_appends(self) -> None:
        append = self.log.append

        def watched(kind: int, body: bytes) -> Batch:
            self.frames.append((kind, body))
            return append(kind, body)

        self.log.append = watched  # type: ignore[method-assign]

    def settle(self, seconds: float = 0.1) -> None:
        self.timeline.advance(seconds)

    def ask(self, handler: str, body: bytes) -> int:
        self.asked += 1
        steps = getattr(self.replica, handler)(self.asker, self.asked, body)
        for _ in steps or ():
            pass
        return self.asked

    def answer(self, request_id: int) -> Answer | None:
        return self.asker.answers.get(request_id)

    def told(self, handler: str, body: bytes) -> Answer:
        """What is answered in the end."""
        request_id = self.ask(handler, body)
        self.settle()
        return self.asker.answers[request_id]

    def at_once(self, handler: str, body: bytes) -> Answer:
        return self.asker.answers[self.ask(handler, body)]

    def write(self, key: bytes, record: bytes, epoch: int = 0) -> Answer:
        return self.told("write", m.encode_write(epoch, key, record))

    def get(self, key: bytes) -> Answer:
        return self.told("get", key)

    def _durable(self, batch: Batch) -> None:
        self.replica.durable(batch)

    def _failed(self, error: OSError) -> None:
        raise AssertionError(f"the disk failed: {error}")


def declare(world: World, version_told: int, caches: dict[bytes, int]) -> None:
    """Tell it a whole list of caches."""
    for _ in world.replica.cache_list.take(Edition(version_told, 1), caches):
        pass


def replayed(frames: list[tuple[int, bytes]]) -> Replica:
    replica = Replica(Table(digest_key), FakeClock(Timeline()))
    for kind, body in frames:
        replica.replay(kind, body)
    return replica


def wrong_leaves(table: Table) -> list[int]:
    """Slots whose digests are not those of their records."""
    while not table.tend_slice(10_000):
        pass
    ended = [table.ended(slot) for slot in used_slots]
    wrong = [slot for slot in used_slots if table.rebuild_digest(slot)]
    assert [table.ended(slot) for slot in used_slots] == ended
    return wrong


def records_of(table: Table, but: bytes = b"\xff") -> dict[bytes, bytes | None]:
    return {
        key: table.peek(slot, key)
        for slot in used_slots
        for key in table.keys(slot)
        if not key.startswith(but)
    }


def assert_equal(one: Replica, other: Replica) -> None:
    """The same records, counts, digests, floors, epochs and caches."""
    assert records_of(one.table, cached) == records_of(other.table, cached)
    assert (one.floors, one.caches, one.epoch) == (other.floors, other.caches, other.epoch)
    assert one.cache_list.edition == other.cache_list.edition
    for space in (prefix, namespace_prefix(8, b"x")):
        ones, others = one.table.namespace(space), other.table.namespace(space)
        assert (ones.keys, ones.bytes, ones.tombstones) == (
            others.keys,
            others.bytes,
            others.tombstones,
        )
    for slot in used_slots:
        assert not differing(one.table.leaves(slot), other.table.leaves(slot)), slot
    assert wrong_leaves(one.table) == []
    assert wrong_leaves(other.table) == []
