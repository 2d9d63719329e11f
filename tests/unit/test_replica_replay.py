"""What a replica brings back from log and snapshot, and that it is what a model says."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import messages as m
from services.core.errors import PeerError
from services.core.key import namespace_prefix, storage_key
from services.core.namespaces import Edition, encode_edition
from services.core.record import Record
from services.core.ring import slot_count, slot_of
from services.core.wire import OK
from services.dhtnode import frame
from tests.unit.replica_world import (
    World,
    assert_equal,
    cached,
    declare,
    key_of,
    records_of,
    replayed,
    tombstone,
    value,
    version,
    wrong_leaves,
)


@pytest.fixture
def world() -> World:
    return World()


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
            (frame.EDITION, encode_edition(Edition(4, 3))),
            (frame.EDITION, encode_edition(Edition(3, 9))),
            (frame.CLOCK, version(6)),
        ]
    )
    assert replica.table.peek(slot, key_of(1)) == value(1)
    assert replica.floors == {slot: version(4)}
    assert replica.epoch == 9
    assert replica.caches == {cached: 5}
    assert replica.cache_list.edition == Edition(4, 3)
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
        (frame.EDITION, b"\0"),
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
        # Of a namespace with keys no cache is made. And it is never full: evictions are not logged,
        # so that two replicas would rightly differ.
        if cached in world.replica.caches or not world.table.namespace(cached).records:
            version_told = world.replica.cache_list.edition.version + 1
            declare(world, version_told, {cached: 100 + number})
    elif what == "forget":
        declare(world, world.replica.cache_list.edition.version + 1, {})
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
