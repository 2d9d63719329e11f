"""The rules of one replica: what is refused, what waits, and what comes back after a restart."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import messages as m
from services.core.digest import differing
from services.core.errors import PeerError
from services.core.key import namespace_prefix, storage_key, storage_key_bytes_max
from services.core.record import Record, head_bytes, tombstone_body, value_body, value_bytes_max
from services.core.ring import slot_count, slot_of
from services.core.wire import OK, OVERLOADED, Hello, Role
from services.dhtnode import frame
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.log import Batch, Log, undurable_bytes_max
from services.dhtnode.replica import Replica
from services.dhtnode.table import Table
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk

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
        getattr(self.replica, handler)(self.asker, self.asked, body)
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


@pytest.fixture
def world() -> World:
    return World()


# Writing and reading.


def test_a_write_is_answered_when_it_is_durable_and_then_read_at_once(world: World) -> None:
    request_id = world.ask("write", m.encode_write(0, key_of(1), value(1)))
    assert world.answer(request_id) is None
    world.settle()
    assert world.answer(request_id) == (OK, b"")
    assert world.at_once("get", key_of(1)) == (OK, value(1))
    assert world.at_once("get", key_of(2)) == (OK, b"")


def test_a_newer_record_refuses_an_older_one_with_its_version(world: World) -> None:
    assert world.write(key_of(1), value(5)) == (OK, b"")
    assert world.write(key_of(1), value(4)) == (m.NEWER, version(5))
    assert world.write(key_of(1), tombstone(4)) == (m.NEWER, version(5))
    assert world.get(key_of(1)) == (OK, value(5))


def test_of_two_records_of_one_version_the_greater_bytes_stay(world: World) -> None:
    assert world.write(key_of(1), value(1, b"bbb")) == (OK, b"")
    assert world.write(key_of(1), value(1, b"aaa")) == (OK, b"")
    assert world.get(key_of(1)) == (OK, value(1, b"bbb"))
    assert world.write(key_of(1), value(1, b"ccc")) == (OK, b"")
    assert world.get(key_of(1)) == (OK, value(1, b"ccc"))


def test_a_duplicate_of_an_undurable_write_waits_for_it_and_of_a_durable_one_does_not(
    world: World,
) -> None:
    body = m.encode_write(0, key_of(1), value(1))
    world.ask("write", body)
    twin = world.ask("write", body)
    assert world.answer(twin) is None
    world.settle()
    assert world.answer(twin) == (OK, b"")
    assert world.at_once("write", body) == (OK, b"")
    assert sum(kind == frame.RECORD for kind, _ in world.frames) == 1


def test_a_read_waits_for_the_batch_with_the_change_it_shows(world: World) -> None:
    world.write(key_of(1), value(1))
    world.ask("write", m.encode_write(0, key_of(1), value(2)))
    waiting = world.ask("get", key_of(1))
    many = world.ask("get_many", m.encode_get_many([key_of(2), key_of(1)]))
    other = world.ask("get", key_of(2))
    assert world.answer(other) == (OK, b"")
    assert world.answer(waiting) is None
    assert world.answer(many) is None
    world.settle()
    assert world.answer(waiting) == (OK, value(2))
    assert world.answer(many) == (OK, m.encode_records([b"", value(2)]))


def test_reads_wait_in_sealed_and_flying_batches_alike() -> None:
    world = World(commit_bytes_max=1_000)
    world.disk.freeze()
    writes = [
        world.ask("write", m.encode_write(0, key_of(n), value(n, bytes(300)))) for n in range(20)
    ]
    world.settle()
    # Several batches are sealed and wait behind the one that is flying.
    reads = [world.ask("get", key_of(n)) for n in range(20)]
    every = world.ask("get_many", m.encode_get_many([key_of(n) for n in range(20)]))
    assert not world.asker.answers
    world.disk.thaw()
    world.settle()
    sequences = [world.asker.durable_at[request_id] for request_id in writes]
    assert sequences == sorted(sequences)
    assert len(set(sequences)) > 3
    for number, read in enumerate(reads):
        assert world.answer(read) == (OK, value(number, bytes(300)))
        assert world.asker.durable_at[read] == sequences[number]
    assert world.asker.durable_at[every] == sequences[-1]


def test_a_key_that_changes_in_two_batches_is_shown_after_the_second() -> None:
    world = World()
    world.ask("write", m.encode_write(0, key_of(1), value(1)))
    world.timeline.advance(0.0)
    assert world.log.flying is not None
    world.ask("write", m.encode_write(0, key_of(1), value(2)))
    read = world.ask("get", key_of(1))
    while world.log.durable_sequence < 1:
        assert world.timeline.step()
    assert world.answer(read) is None
    world.settle()
    assert world.answer(read) == (OK, value(2))


def test_a_tombstone_is_kept_with_its_version(world: World) -> None:
    world.write(key_of(1), value(1))
    assert world.write(key_of(1), tombstone(2)) == (OK, b"")
    assert world.get(key_of(1)) == (OK, tombstone(2))
    assert world.write(key_of(1), value(1)) == (m.NEWER, version(2))
    assert world.table.total.tombstones == 1


def test_many_writes_have_each_its_outcome_in_order(world: World) -> None:
    world.write(key_of(1), value(5))
    world.replica.floors[slot_of(key_of(2))] = version(9)
    items = [
        (key_of(1), value(4)),
        (key_of(3), value(6)),
        (key_of(2), value(9)),
        (b"short", value(1)),
        (key_of(4), value(1)[:-1][: head_bytes - 1]),
        (key_of(5), value(1, ahead_ms=2_000)),
        (key_of(3), value(6)),
        (key_of(3), value(5)),
    ]
    request_id = world.ask("write_many", m.encode_write_many(0, items))
    assert world.answer(request_id) is None
    world.settle()
    answer = world.answer(request_id)
    assert answer is not None
    assert answer[0] == OK
    statuses = m.decode_statuses(answer[1])
    kinds = [m.NEWER, OK, m.BELOW_FLOOR, m.MALFORMED, m.MALFORMED, m.AHEAD, OK, m.NEWER]
    assert [kind for kind, _ in statuses] == kinds
    assert statuses[0][1] == version(5)
    assert statuses[2][1] == version(9)
    assert statuses[7][1] == version(6)


def test_many_writes_that_change_nothing_are_answered_at_once(world: World) -> None:
    world.write(key_of(1), value(5))
    kind, body = world.at_once("write_many", m.encode_write_many(0, [(key_of(1), value(4))]))
    assert (kind, m.decode_statuses(body)) == (OK, [(m.NEWER, version(5))])
    assert world.at_once("write_many", m.encode_write_many(0, [])) == (OK, b"\0\0")


def test_many_writes_wait_for_their_last_batch_also_behind_a_duplicate_in_an_earlier_one(
    world: World,
) -> None:
    world.ask("write", m.encode_write(0, key_of(1), value(1)))
    world.timeline.advance(0.0)
    assert world.log.flying is not None
    items = [(key_of(2), value(2)), (key_of(1), value(1))]
    request_id = world.ask("write_many", m.encode_write_many(0, items))
    while world.log.durable_sequence < 1:
        assert world.timeline.step()
    assert world.answer(request_id) is None
    world.settle()
    assert world.asker.durable_at[request_id] == 2


# What is refused.


def test_a_slot_takes_nothing_at_or_below_its_floor(world: World) -> None:
    key = key_of(1)
    world.replica.replay(frame.FLOOR, m.u16.pack(slot_of(key)) + version(5))
    assert world.write(key, value(4)) == (m.BELOW_FLOOR, version(5))
    assert world.write(key, value(5)) == (m.BELOW_FLOOR, version(5))
    assert world.write(key, tombstone(5)) == (m.BELOW_FLOOR, version(5))
    assert world.write(key, value(6)) == (OK, b"")
    other = next(key_of(n) for n in range(2, 99) if slot_of(key_of(n)) != slot_of(key))
    assert world.write(other, value(1)) == (OK, b"")


def test_a_stamp_from_the_future_is_refused_with_our_time_and_not_logged(world: World) -> None:
    now_ms = world.clock.wall_ms()
    ahead_ms = now_ms - FakeClock.epoch_ms
    late = value(1, ahead_ms=ahead_ms + 501)
    assert world.at_once("write", m.encode_write(0, key_of(1), late)) == (
        m.AHEAD,
        m.u64.pack(now_ms),
    )
    assert world.log.idle
    assert world.get(key_of(1)) == (OK, b"")
    assert world.write(key_of(1), value(1, ahead_ms=ahead_ms + 400)) == (OK, b"")
    # What was accepted carries the limit along.
    assert world.write(key_of(2), value(1, ahead_ms=ahead_ms + 850)) == (OK, b"")


def test_full_storage_refuses_values_and_takes_tombstones(world: World) -> None:
    world.write(key_of(1), value(1))
    world.replica.full = "disk: " + "x" * 300
    kind, reason = world.write(key_of(1), value(2))
    assert (kind, reason) == (m.STORAGE_FULL, b"disk: " + b"x" * 249)
    assert world.write(key_of(1), tombstone(3)) == (OK, b"")
    # A duplicate changes nothing, and needs no room.
    world.replica.full = None
    world.write(key_of(2), value(4))
    world.replica.full = "disk"
    assert world.write(key_of(2), value(4)) == (OK, b"")
    assert world.replica.counters.full == 1


def test_a_disk_that_does_not_keep_up_makes_writes_overloaded_and_reads_go_on() -> None:
    world = World(segment_bytes=64 << 20, commit_bytes_max=8 << 20)
    world.settle(2.0)
    world.write(key_of(0), value(1))
    world.disk.freeze()
    filler = bytes(1 << 20)
    answers = []
    for number in range(1, 40):
        body = m.encode_write(0, key_of(number), value(number, filler))
        answers.append(world.answer(world.ask("write", body)))
        world.timeline.advance(0.0)
    refused = answers.index((OVERLOADED, b""))
    assert set(answers[:refused]) == {None}
    assert set(answers[refused:]) == {(OVERLOADED, b"")}
    assert undurable_bytes_max < world.log.undurable_bytes <= undurable_bytes_max + (2 << 20)
    assert world.at_once("get", key_of(0)) == (OK, value(1))
    world.disk.thaw()
    world.settle(2.0)
    assert world.write(key_of(39), value(39)) == (OK, b"")


BAD_KEYS = [
    b"",
    b"k",
    bytes(8) + b"\0key",
    bytes(8) + b"\3ns",
    bytes(8) + b"\2ns",
    bytes(8) + b"\xffns",
    bytes(8) + b"\1n" + bytes(1025),
    bytes(storage_key_bytes_max + 1),
]
BAD_RECORDS = [
    b"",
    version(1),
    value(1)[: head_bytes - 1],
    version(1) + b"\2" + bytes(10),
    version(1) + b"\xff" + bytes(10),
    tombstone(1) + b"x",
    version(1) + b"\1" + bytes(7) + b"\1\0\0",
    version(1) + bytes(9) + b"\0\5abc",
    version(1) + value_body(bytes(value_bytes_max + 1)),
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_what_is_no_storage_key_is_malformed(world: World, key: bytes) -> None:
    kind, reason = world.at_once("write", m.encode_write(0, key, value(1)))
    assert kind == m.MALFORMED
    assert 0 < len(reason) <= 255
    assert not world.frames


@pytest.mark.parametrize("record", BAD_RECORDS, ids=range(len(BAD_RECORDS)))
def test_what_is_no_record_is_malformed(world: World, record: bytes) -> None:
    kind, reason = world.at_once("write", m.encode_write(0, key_of(1), record))
    assert kind == m.MALFORMED
    assert 0 < len(reason) <= 255
    assert not world.frames
    assert world.table.total.records == 0


def test_a_message_cut_at_any_byte_changes_nothing_it_should_not(world: World) -> None:
    body = m.encode_write(0, key_of(1), value(1, b"content"))
    whole = len(body) - len(b"content")
    for size in range(whole):
        request_id = world.asked + 1
        try:
            world.ask("write", body[:size])
        except PeerError:
            assert size < m.write_head_bytes
        else:
            assert world.asker.answers[request_id][0] == m.MALFORMED
    assert not world.frames
    many = m.encode_write_many(0, [(key_of(1), value(1)), (key_of(2), value(2))])
    for size in range(len(many)):
        with pytest.raises(PeerError):
            world.ask("write_many", many[:size])
    with pytest.raises(PeerError):
        world.ask("write_many", many + b"x")
    assert not world.frames


def test_more_items_than_a_message_may_have_are_refused_whole(world: World) -> None:
    key, record = key_of(1), value(1)
    with pytest.raises(PeerError, match="4097 items"):
        world.ask("write_many", m.encode_write_many(0, [(key, record)] * (m.items_max + 1)))
    with pytest.raises(PeerError, match="4097 items"):
        world.ask("get_many", m.encode_get_many([key] * (m.items_max + 1)))
    assert not world.frames


# Epochs.


def test_an_older_epoch_is_refused_with_ours(world: World) -> None:
    assert world.write(key_of(1), value(1), epoch=5) == (OK, b"")
    assert world.write(key_of(1), value(2), epoch=4) == (m.WRONG_EPOCH, m.u64.pack(5))
    many = m.encode_write_many(4, [(key_of(1), value(2))])
    assert world.told("write_many", many) == (m.WRONG_EPOCH, m.u64.pack(5))
    assert world.get(key_of(1)) == (OK, value(1))


def test_a_newer_epoch_is_durable_before_any_answer_given_in_it(world: World) -> None:
    world.write(key_of(1), value(5), epoch=1)
    refused = [
        world.ask("write", m.encode_write(2, key_of(1), value(4))),
        world.ask("write", m.encode_write(2, b"bad", value(4))),
        world.ask("write", m.encode_write(2, key_of(1), value(5))),
        world.ask("write", m.encode_write(1, key_of(1), value(5))),
        world.ask("write_many", m.encode_write_many(2, [(key_of(1), value(4))])),
    ]
    assert [world.answer(request_id) for request_id in refused] == [None] * 5
    epoch_at = world.log.next_sequence - 1
    assert world.frames[-1] == (frame.EPOCH, m.u64.pack(2))
    world.settle()
    kinds = [world.asker.answers[request_id][0] for request_id in refused]
    assert kinds == [m.NEWER, m.MALFORMED, OK, m.WRONG_EPOCH, OK]
    assert all(world.asker.durable_at[request_id] >= epoch_at for request_id in refused)
    # Once it is durable, a refusal leaves at once again.
    assert world.at_once("write", m.encode_write(2, key_of(1), value(4)))[0] == m.NEWER


def test_a_duplicate_of_a_flying_write_waits_for_the_epoch_it_came_with(world: World) -> None:
    world.ask("write", m.encode_write(1, key_of(1), value(1)))
    world.timeline.advance(0.0)
    assert world.log.flying is not None
    twins = [
        world.ask("write", m.encode_write(2, key_of(1), value(1))),
        world.ask("write_many", m.encode_write_many(2, [(key_of(1), value(1))])),
    ]
    world.settle()
    assert [world.asker.durable_at[request_id] for request_id in twins] == [3, 3]


def test_the_epoch_is_logged_once_and_never_goes_back(world: World) -> None:
    assert world.replica.adopt_epoch(3) is not None
    assert world.replica.adopt_epoch(3) is None
    assert world.replica.adopt_epoch(2) is None
    assert world.frames == [(frame.EPOCH, m.u64.pack(3))]
    world.replica.replay(frame.EPOCH, m.u64.pack(1))
    assert world.replica.epoch == 3


# Caches.


def test_caches_are_declared_changed_and_forgotten_durably(world: World) -> None:
    other = namespace_prefix(8, b"other")
    world.replica.declare_caches({cached: 10, other: 5})
    world.replica.declare_caches({cached: 10, other: 5})
    world.replica.declare_caches({cached: 3})
    assert [body for kind, body in world.frames if kind == frame.CACHE] == [
        m.u64.pack(10) + cached,
        m.u64.pack(5) + other,
        m.u64.pack(3) + cached,
        m.u64.pack(0) + other,
    ]
    again = replayed(world.frames)
    assert again.caches == world.replica.caches == {cached: 3}


def test_a_cache_evicts_and_a_forgotten_one_is_a_store_again(world: World) -> None:
    world.replica.declare_caches({cached: 3})
    for number in range(10):
        world.write(key_of(number, cached), value(number))
        world.write(key_of(number), value(number))
    present = [n for n in range(10) if world.get(key_of(n, cached)) != (OK, b"")]
    assert present == [7, 8, 9]
    world.replica.declare_caches({})
    while not world.table.tend_slice(1_000):
        pass
    for number in range(10, 20):
        world.write(key_of(number, cached), value(number))
    assert world.table.namespace(cached).keys == 13
    assert wrong_leaves(world.table) == []


# What comes back.


def replayed(frames: list[tuple[int, bytes]]) -> Replica:
    replica = Replica(Table(digest_key), FakeClock(Timeline()))
    for kind, body in frames:
        replica.replay(kind, body)
    return replica


def wrong_leaves(table: Table) -> list[int]:
    """Slots whose digests are not those of their records."""
    while not table.tend_slice(10_000):
        pass
    return [slot for slot in used_slots if table.rebuild_digest(slot)]


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


def test_every_kind_of_frame_comes_back(world: World) -> None:
    slot = slot_of(key_of(1))
    replica = replayed(
        [
            (frame.RECORD, m.u16.pack(len(key_of(1))) + key_of(1) + value(1)),
            (frame.FLOOR, m.u16.pack(slot) + version(4)),
            (frame.FLOOR, m.u16.pack(slot) + version(3)),
            (frame.EPOCH, m.u64.pack(9)),
            (frame.EPOCH, m.u64.pack(8)),
            (frame.CACHE, m.u64.pack(5) + cached),
            (frame.CLOCK, version(6)),
        ]
    )
    assert replica.table.peek(slot, key_of(1)) == value(1)
    assert replica.floors == {slot: version(4)}
    assert replica.epoch == 9
    assert replica.caches == {cached: 5}
    told = dict(replica.frames())
    assert told[frame.CLOCK] == version(6)


def test_a_record_is_replayed_only_over_a_lesser_one() -> None:
    def change(record: bytes) -> tuple[int, bytes]:
        return frame.RECORD, m.u16.pack(len(key_of(1))) + key_of(1) + record

    for order in ([value(1), value(2)], [value(2), value(1)], [value(2), value(2)]):
        replica = replayed([change(record) for record in order])
        assert records_of(replica.table) == {key_of(1): value(2)}
        assert wrong_leaves(replica.table) == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (0, b""),
        (8, b"a promise of a later ydht"),
        (31, b""),
        (255, bytes(20)),
        (frame.RECORD, b""),
        (frame.RECORD, b"\0\3abc" + value(1)),
        (frame.RECORD, m.u16.pack(len(key_of(1))) + key_of(1)),
        (frame.FLOOR, m.u16.pack(slot_count) + version(1)),
        (frame.FLOOR, m.u16.pack(1) + version(1)[:-1]),
        (frame.EPOCH, bytes(7)),
        (frame.EPOCH, bytes(9)),
        (frame.CACHE, m.u64.pack(4) + b"no prefix"),
        (frame.CACHE, b"\0"),
        (frame.CLOCK, bytes(11)),
        (frame.SLOT, b"\0"),
        (frame.SLOT, b"\xff\xff\0\0"),
        (frame.LEAVES, b"\0\1" + bytes(511)),
        (frame.LEAVES, m.u16.pack(slot_count) + bytes(512)),
    ],
)
def test_a_frame_that_no_replica_wrote_is_refused(kind: int, body: bytes) -> None:
    with pytest.raises(PeerError):
        replayed([(kind, body)])


def test_after_a_restart_a_stamp_is_judged_by_what_was_accepted_before_it(world: World) -> None:
    """Else a node would refuse what its peers accept."""
    world.write(key_of(1), value(1, ahead_ms=490))
    for source in (world.frames, list(world.replica.frames())):
        again = World()
        for kind, body in source:
            again.replica.replay(kind, body)
        assert again.write(key_of(2), value(2, ahead_ms=980)) == (OK, b"")


def test_a_snapshot_of_nothing_keeps_epoch_caches_and_floors() -> None:
    empty = replayed(
        [
            (frame.EPOCH, m.u64.pack(3)),
            (frame.CACHE, m.u64.pack(2) + cached),
            (frame.FLOOR, m.u16.pack(77) + version(1)),
        ]
    )
    assert_equal(empty, replayed(list(empty.frames())))


Change = tuple[str, int, int]
changes = st.lists(
    st.tuples(
        st.sampled_from(
            ["put", "put", "put", "delete", "cached", "declare", "forget", "epoch", "two"]
        ),
        st.integers(0, 30),
        st.integers(1, 1_000),
    ),
    max_size=40,
)


def change_one(world: World, change: Change) -> None:
    what, number, counter = change
    if what == "put":
        world.ask("write", m.encode_write(world.replica.epoch, key_of(number), value(counter)))
    elif what == "two":
        key = key_of(number, namespace_prefix(8, b"x"))
        world.ask("write", m.encode_write(world.replica.epoch, key, value(counter)))
    elif what == "delete":
        body = m.encode_write(world.replica.epoch, key_of(number), tombstone(counter))
        world.ask("write", body)
    elif what == "cached":
        body = m.encode_write(world.replica.epoch, key_of(number, cached), value(counter))
        world.ask("write", body)
    elif what == "declare":
        # Never full: evictions are not logged, so that two replicas would rightly differ.
        world.replica.declare_caches({cached: 100 + number})
    elif what == "forget":
        world.replica.declare_caches({})
    elif what == "epoch":
        world.replica.adopt_epoch(number)


@given(before=changes, during=changes, after=changes, pace=st.integers(1, 8))
def test_a_snapshot_and_the_log_behind_it_give_an_equal_replica(
    before: list[Change], during: list[Change], after: list[Change], pace: int
) -> None:
    world = World()
    for change in before:
        change_one(world, change)
    first = len(world.frames)
    pending = list(during)
    snapshot = []
    for number, told in enumerate(world.replica.frames()):
        snapshot.append(told)
        if pending and number % pace == 0:
            change_one(world, pending.pop(0))
    for change in pending + after:
        change_one(world, change)
    again = replayed(snapshot + world.frames[first:])
    assert_equal(world.replica, again)
    assert records_of(world.table) == records_of(again.table)
    # The whole log says the same.
    assert_equal(world.replica, replayed(world.frames))


# Against a model that is obviously right.


@dataclass
class Model:
    """What a replica must answer, worked out from the rules one by one."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    epoch: int = 0
    floors: dict[int, bytes] = field(default_factory=dict)
    full: bool = False
    latest_ms: int = 0

    def write(self, epoch: int, key: bytes, record: bytes, now_ms: int) -> int:
        if epoch < self.epoch:
            return m.WRONG_EPOCH
        self.epoch = epoch
        old = self.records.get(key)
        if record[:12] <= self.floors.get(slot_of(key), b""):
            return m.BELOW_FLOOR
        if old is not None and max(old, record) == old:
            return OK if old[:12] == record[:12] else m.NEWER
        stamp_ms = int.from_bytes(record[:6], "big")
        if stamp_ms > max(now_ms, self.latest_ms) + 500:
            return m.AHEAD
        if self.full and record[12] != 1:
            return m.STORAGE_FULL
        self.latest_ms = max(self.latest_ms, stamp_ms)
        self.records[key] = record
        return OK


requests = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.integers(0, 5),
            st.integers(1, 9),
            st.sampled_from([0, 0, 0, 300, 550, 900]),
            st.integers(0, 2),
            st.booleans(),
        ),
        st.tuples(st.just("get"), st.integers(0, 5)),
        st.tuples(st.just("get_many"), st.integers(0, 5)),
        st.tuples(st.just("full"), st.booleans()),
        st.tuples(st.just("floor"), st.integers(0, 5), st.integers(1, 9)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.000_5, 0.002, 0.1])),
    ),
    max_size=60,
)


@given(requests=requests)
def test_whatever_is_asked_the_answers_are_those_of_the_model_and_none_is_early(
    requests: list[tuple[object, ...]],
) -> None:
    world, model = World(), Model()
    # By request: what is due, and the sequence that must be durable before it is told.
    due: dict[int, tuple[int, bytes | None, int]] = {}
    sequence_of: dict[bytes, int] = {}
    epoch_at = 0
    for what, *rest in requests:
        if what == "write":
            number, counter, ahead_ms, epoch, deleted = rest
            record = tombstone(counter) if deleted else value(counter, ahead_ms=ahead_ms)  # type: ignore[arg-type]
            key = key_of(number)  # type: ignore[arg-type]
            before = model.records.get(key)
            if epoch > model.epoch:  # type: ignore[operator]
                epoch_at = world.log.next_sequence
            kind = model.write(epoch, key, record, world.clock.wall_ms())  # type: ignore[arg-type]
            request_id = world.ask("write", m.encode_write(epoch, key, record))  # type: ignore[arg-type]
            if model.records.get(key) != before:
                sequence_of[key] = world.log.next_sequence - 1
            due[request_id] = (
                kind,
                None,
                max(epoch_at, sequence_of.get(key, 0) if kind == OK else 0),
            )
        elif what == "get":
            key = key_of(rest[0])  # type: ignore[arg-type]
            request_id = world.ask("get", key)
            due[request_id] = (OK, model.records.get(key, b""), sequence_of.get(key, 0))
        elif what == "get_many":
            keys = [key_of(number) for number in range(rest[0], 6)]  # type: ignore[call-overload]
            request_id = world.ask("get_many", m.encode_get_many(keys))
            found = m.encode_records([model.records.get(key, b"") for key in keys])
            newest = max((sequence_of.get(key, 0) for key in keys), default=0)
            due[request_id] = (OK, found, newest)
        elif what == "full":
            model.full = bool(rest[0])
            world.replica.full = "full" if rest[0] else None
        elif what == "floor":
            slot, floor = slot_of(key_of(rest[0])), version(rest[1])  # type: ignore[arg-type]
            world.replica.replay(frame.FLOOR, m.u16.pack(slot) + floor)
            model.floors[slot] = max(floor, model.floors.get(slot, b""))
            model.latest_ms = max(model.latest_ms, int.from_bytes(floor[:6], "big"))
        else:
            world.settle(rest[0])  # type: ignore[arg-type]
    world.settle(1.0)
    assert world.asker.answers.keys() == due.keys()
    for request_id, (kind, body, needed) in due.items():
        assert world.asker.answers[request_id][0] == kind
        assert body is None or world.asker.answers[request_id][1] == body
        assert world.asker.durable_at[request_id] >= needed
    assert records_of(world.table) == model.records
    again = replayed(world.frames)
    assert records_of(again.table) == model.records
    assert again.epoch == model.epoch


def test_records_fit_what_record_makes_of_them() -> None:
    """The tests above make records by hand; the platform's own encoder agrees."""
    assert Record(version(1), b"value-1").encode() == value(1)
    assert Record(version(1), tombstone=True).encode() == tombstone(1)
    assert storage_key(7, b"default", b"key-1") == key_of(1)
