"""The rules of one replica: what is refused, what waits, and for what."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import messages as m
from services.core.errors import PeerError
from services.core.key import namespace_prefix, storage_key_bytes_max
from services.core.namespaces import Edition, no_edition
from services.core.paxos import Promise
from services.core.record import head_bytes, is_tombstone, value_body, value_bytes_max
from services.core.ring import slot_of
from services.core.wire import OK, OVERLOADED
from services.dhtnode import frame
from services.dhtnode.cache_list import caches_in_a_piece
from services.dhtnode.listing import Query
from services.dhtnode.replica import epochs_ahead_max
from services.dhtnode.table import Table
from services.runtime.clock import FakeClock
from services.runtime.log.log import undurable_bytes_max
from tests.unit.replica_world import (
    World,
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


def test_a_refusal_for_something_newer_waits_until_that_is_durable(world: World) -> None:
    world.ask("write", m.encode_write(0, key_of(1), value(5)))
    older = [(key_of(1), value(4))]
    refused = [
        world.ask("write", m.encode_write(0, *older[0])),
        world.ask("write_many", m.encode_write_many(0, older)),
    ]
    assert [world.answer(request_id) for request_id in refused] == [None, None]
    world.settle()
    assert world.answer(refused[0]) == (m.NEWER, version(5))
    many = m.encode_statuses([(m.NEWER, version(5))])
    assert world.answer(refused[1]) == (OK, many)


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


def used_up(world: World) -> int:
    """Fill the log of a disk that has no room for another segment; how many values it took."""
    world.disk.fail("allocate", errno.ENOSPC, "*log-*", times=None)
    world.log.rotate()
    filler = bytes(50_000)
    for number in range(100):
        kind, why = world.write(key_of(number), value(number, filler))
        if kind == m.STORAGE_FULL:
            assert b"not for deletes either (No space left on device)" in why
            return number
        assert kind == OK
    raise AssertionError("the log is never full")


def test_a_delete_is_logged_or_refused_at_once_when_the_log_has_no_room(world: World) -> None:
    stored = used_up(world)
    assert stored > 10
    deleted = [
        number
        for number in range(stored)
        if world.write(key_of(number), value(number, bytes(3_000), ahead_ms=1)) == (OK, b"")
    ]
    kept = [number for number in range(stored) if number not in deleted]
    assert kept
    # Nothing is left hanging, and nothing that was refused is seen.
    assert world.log.idle
    frames = len(world.frames)
    for number in kept:
        assert world.at_once("get", key_of(number)) == (OK, value(number, bytes(50_000)))
    assert len(world.frames) == frames
    world.disk.heal()
    world.settle(10.0)
    for number in kept:
        assert world.write(key_of(number), value(number + 1, ahead_ms=3)) == (OK, b"")


def test_without_room_no_epoch_is_adopted_and_no_cache_declared() -> None:
    world = World()
    world.write(key_of(1), value(1), epoch=1)
    world.disk.fail("allocate", errno.ENOSPC, "*log-*", times=None)
    world.log.rotate()
    while world.log.has_room(40):
        room = world.log.has_room(1_100)
        world.write(key_of(2), value(world.asked, bytes(1_000 if room else 1)), epoch=1)
    frames = list(world.frames)
    assert world.at_once("write", m.encode_write(2, key_of(1), value(9)))[0] == m.STORAGE_FULL
    many = m.encode_write_many(2, [(key_of(1), value(9))])
    assert world.at_once("write_many", many)[0] == m.STORAGE_FULL
    with pytest.raises(PeerError, match="the log has no room"):
        declare(world, 1, {cached: 3})
    assert (world.replica.epoch, world.replica.caches) == (1, {})
    assert world.replica.cache_list.edition == no_edition
    assert world.frames == frames
    assert world.at_once("get", key_of(1)) == (OK, value(1))
    assert world.log.idle


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
    with pytest.raises(PeerError, match=f"{m.items_max + 1} items"):
        world.ask("write_many", m.encode_write_many(0, [(key, record)] * (m.items_max + 1)))
    with pytest.raises(PeerError, match=f"{m.items_max + 1} items"):
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


@pytest.mark.parametrize(("key", "record"), [(b"bad", value(1)), (key_of(1), b"bad"), (b"", b"")])
def test_what_makes_no_sense_brings_no_epoch_along(world: World, key: bytes, record: bytes) -> None:
    assert world.at_once("write", m.encode_write(7, key, record))[0] == m.MALFORMED
    assert (world.replica.epoch, world.frames) == (0, [])
    assert world.replica.counters.malformed == 1


def test_many_items_bring_their_epoch_along_with_the_first_that_makes_sense(world: World) -> None:
    senseless, sound = (b"short", value(1)), (key_of(1), value(1))
    for items in ([], [senseless], [senseless] * 3):
        kind, answer = world.told("write_many", m.encode_write_many(7, items))
        assert (kind, [status for status, _ in m.decode_statuses(answer)]) == (
            OK,
            [m.MALFORMED] * len(items),
        )
        assert (world.replica.epoch, world.frames) == (0, [])
    kind, answer = world.told("write_many", m.encode_write_many(7, [senseless, sound, senseless]))
    assert [status for status, _ in m.decode_statuses(answer)] == [m.MALFORMED, OK, m.MALFORMED]
    assert world.replica.epoch == 7
    older = m.encode_write_many(6, [senseless, sound])
    assert world.told("write_many", older) == (m.WRONG_EPOCH, m.u64.pack(7))


def test_an_epoch_that_cannot_be_is_malformed_and_not_adopted(world: World) -> None:
    world.write(key_of(1), value(1), epoch=3)
    for epoch in (3 + epochs_ahead_max, (1 << 64) - 1):
        for handler, body in (
            ("write", m.encode_write(epoch, key_of(1), value(2))),
            ("write_many", m.encode_write_many(epoch, [(key_of(1), value(2))])),
        ):
            with pytest.raises(
                PeerError, match=f"epoch {epoch} is {epochs_ahead_max} or more ahead"
            ):
                world.ask(handler, body)
    assert world.replica.epoch == 3
    assert world.get(key_of(1)) == (OK, value(1))
    assert world.write(key_of(1), value(2), epoch=2 + epochs_ahead_max) == (OK, b"")


@pytest.mark.parametrize("bit", range(20, 64))
def test_an_epoch_with_a_high_bit_flipped_is_not_adopted(world: World, bit: int) -> None:
    world.replica.adopt_epoch(3)
    with pytest.raises(PeerError, match="ahead of ours, 3"):
        world.ask("write", m.encode_write(3 | 1 << bit, key_of(1), value(1)))
    assert world.replica.epoch == 3


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
    declare(world, 1, {cached: 10, other: 5})
    declare(world, 2, {cached: 10, other: 5})
    declare(world, 3, {cached: 3})
    assert [body for kind, body in world.frames if kind == frame.CACHE] == [
        m.u64.pack(10) + cached,
        m.u64.pack(5) + other,
        m.u64.pack(3) + cached,
        m.u64.pack(0) + other,
    ]
    again = replayed(world.frames)
    assert again.caches == world.replica.caches == {cached: 3}
    assert again.cache_list.edition == world.replica.cache_list.edition == Edition(3, 1)


def test_an_older_list_of_caches_changes_nothing(world: World) -> None:
    declare(world, 5, {cached: 10})
    frames = len(world.frames)
    for number in (5, 4, 0):
        declare(world, number, {})
    assert world.replica.caches == {cached: 10}
    assert len(world.frames) == frames
    # A later epoch has other shares of the same list.
    for _ in world.replica.cache_list.take(Edition(5, 3), {cached: 8}):
        pass
    assert world.replica.caches == {cached: 8}


def test_a_later_epoch_does_not_make_an_older_list_of_caches_the_newer_one(world: World) -> None:
    declare(world, 6, {cached: 3})
    declare(world, 7, {})
    for number in range(10):
        world.write(key_of(number, cached), value(number))
    # A replicator knows the new map, and not yet that the namespace has become a store.
    for _ in world.replica.cache_list.take(Edition(6, 2), {cached: 3}):
        pass
    while not world.table.tend_slice(1_000):
        pass
    assert world.table.namespace(cached).keys == 10
    assert replayed(world.frames).cache_list.edition == Edition(7, 1)


@given(st.lists(st.integers(0, 1), max_size=12))
def test_of_lists_of_caches_that_come_at_the_same_time_the_newest_holds(turns: list[int]) -> None:
    world = World()
    spaces = [namespace_prefix(7, b"%d" % number) for number in range(4 * caches_in_a_piece)]
    older = world.replica.cache_list.take(Edition(1, 1), dict.fromkeys(spaces, 5))
    newer = world.replica.cache_list.take(Edition(2, 1), dict.fromkeys(spaces[1:], 7))
    for which in turns:
        next((older, newer)[which], None)
    for steps in (older, newer):
        for _ in steps:
            pass
    assert world.replica.caches == dict.fromkeys(spaces[1:], 7)
    assert world.replica.cache_list.edition == Edition(2, 1)
    again = replayed(world.frames)
    assert (again.caches, again.cache_list.edition) == (
        world.replica.caches,
        world.replica.cache_list.edition,
    )


def test_a_list_of_caches_that_was_not_logged_to_its_end_is_taken_once_more(world: World) -> None:
    spaces = [namespace_prefix(7, b"%d" % number) for number in range(2 * caches_in_a_piece + 1)]
    steps = world.replica.cache_list.take(Edition(1, 1), dict.fromkeys(spaces, 5))
    next(steps)
    again = replayed(world.frames)
    assert len(again.caches) == caches_in_a_piece
    assert again.cache_list.edition == no_edition
    del steps
    declare(world, 1, dict.fromkeys(spaces, 5))
    assert replayed(world.frames).caches == dict.fromkeys(spaces, 5)


def test_no_cache_is_forgotten_while_a_snapshot_is_written(world: World) -> None:
    other = namespace_prefix(8, b"other")
    declare(world, 1, {cached: 5})
    snapshot = world.replica.frames()
    next(snapshot)
    declare(world, 2, {other: 5})
    assert world.replica.caches == {cached: 5, other: 5}
    assert world.replica.cache_list.edition == Edition(1, 1)
    for _ in snapshot:
        pass
    declare(world, 2, {other: 5})
    assert world.replica.caches == {other: 5}
    assert world.replica.cache_list.edition == Edition(2, 1)


def test_what_a_strong_operation_has_deleted_does_not_come_back_through_a_cache(
    world: World,
) -> None:
    replica, table = world.replica, world.table
    gone = [key_of(number, cached) for number in range(4)]
    for number, key in enumerate(gone):
        accepted = Promise(version(1), version(1), version(1), value(1))
        replica.promises.put(slot_of(key), key, accepted)
        world.write(key, tombstone(2 + number))
    declare(world, 1, {cached: 3})
    while not table.tend_slice(1_000):
        pass
    for number in range(100, 120):
        world.write(key_of(number, cached), value(number))
    assert [table.peek(slot_of(key), key) for key in gone] == [
        tombstone(2 + number) for number in range(4)
    ]
    # They count for nothing, and the cache has its keys beside them.
    present = [n for n in range(100, 120) if world.get(key_of(n, cached)) != (OK, b"")]
    assert present == [117, 118, 119]
    assert wrong_leaves(table) == []
    declare(world, 2, {})
    while not table.tend_slice(1_000):
        pass
    counts = table.namespace(cached)
    assert (counts.keys, counts.tombstones) == (0, 4)
    assert wrong_leaves(table) == []
    table.remove(slot_of(gone[0]), gone[0])
    assert wrong_leaves(table) == []


def test_a_cache_evicts_and_a_forgotten_one_is_an_empty_store(world: World) -> None:
    declare(world, 1, {cached: 3})
    for number in range(10):
        world.write(key_of(number, cached), value(number))
        world.write(key_of(number), value(number))
    present = [n for n in range(10) if world.get(key_of(n, cached)) != (OK, b"")]
    assert present == [7, 8, 9]
    declare(world, 2, {})
    while not world.table.tend_slice(1_000):
        pass
    for number in range(10, 20):
        world.write(key_of(number, cached), value(number))
    assert world.table.namespace(cached).keys == 10
    assert wrong_leaves(world.table) == []


def settle(table: Table) -> None:
    while not table.tend_slice(1_000):
        pass


def test_a_deleted_cache_is_gone_at_once_and_the_next_of_its_name_begins_empty(
    world: World,
) -> None:
    table, keys = world.table, [key_of(number, cached) for number in range(5)]
    declare(world, 1, {cached: 5})
    for number, key in enumerate(keys):
        world.write(key, value(number))
    table.index_slice(cached, table.index_mark(cached), 1_000)
    before_bytes = table.memory_bytes
    declare(world, 2, {})
    # Nothing was tended to meanwhile.
    assert (table.namespace(cached).keys, table.namespace(cached).bytes) == (0, 0)
    assert table.memory_bytes == before_bytes
    assert table.page(cached, Query(), 0).entries == []
    assert table.scan(cached, Query(), 0, tombstones=True).found == []
    assert world.get(keys[0]) == (OK, b"")
    declare(world, 3, {cached: 5})
    # Also what is older than what was there: nothing of that counts any more.
    world.write(keys[1], value(0))
    assert world.get(keys[1]) == (OK, value(0))
    assert [world.get(key) for key in keys[2:4]] == [(OK, b"")] * 2
    again = replayed([*world.replica.frames()])
    for one in (table, again.table):
        settle(one)
        assert one.namespace(cached).keys == 1
        assert records_of(one) == {keys[1]: value(0)}
        assert wrong_leaves(one) == []


def test_caches_that_come_and_go_faster_than_they_are_given_up_do_no_harm(world: World) -> None:
    for round_ in range(10):
        declare(world, 2 * round_ + 1, {cached: 5})
        for number in range(8):
            world.write(key_of(4 * round_ + number, cached), value(100 * round_ + number))
        assert world.table.namespace(cached).keys == 5
        declare(world, 2 * round_ + 2, {})
        assert world.table.namespace(cached).keys == 0
    world.write(key_of(3, cached), value(5_000))
    settle(world.table)
    assert world.table.namespace(cached).keys == 1
    assert wrong_leaves(world.table) == []
    assert records_of(world.table) == {key_of(3, cached): value(5_000)}


def test_a_cache_holds_no_more_values_of_keys_that_were_strong_once(world: World) -> None:
    replica, table = world.replica, world.table
    keys = [key_of(number, cached) for number in range(50)]
    for number, key in enumerate(keys):
        accepted = Promise(version(1), version(1), version(1), value(1))
        replica.promises.put(slot_of(key), key, accepted)
        world.write(key, tombstone(2 + number))
    declare(world, 1, {cached: 3})
    settle(world.table)
    for turn in (100, 200):
        for number, key in enumerate(keys):
            world.write(key, value(turn + number))
        present = [key for key in keys if not is_tombstone(world.get(key)[1])]
        assert present == keys[-3:]
        assert table.namespace(cached).keys == 3
    # What was given up has left its version, which no older promise can surface behind.
    assert table.peek(slot_of(keys[0]), keys[0]) == tombstone(200)
    declare(world, 2, {})
    assert table.namespace(cached).keys == 0
    # A snapshot of what is not given up yet has what must stay, too.
    for table in (replayed([*replica.frames()]).table, world.table):
        settle(table)
        assert (table.namespace(cached).keys, table.namespace(cached).tombstones) == (0, 50)
        assert wrong_leaves(table) == []
        assert {table.peek(slot_of(key), key) for key in keys} == {
            tombstone(200 + number) for number in range(50)
        }


def test_the_version_of_an_expired_key_of_a_cache_outlasts_what_is_accepted(world: World) -> None:
    replica, table, key = world.replica, world.table, key_of(1, cached)
    promise = Promise(version(1), version(1), version(1), value(1))
    replica.promises.put(slot_of(key), key, promise)
    declare(world, 1, {cached: 3})
    world.write(key, version(9) + value_body(b"value", FakeClock.epoch_ms + 10))
    while not table.trim_slice(FakeClock.epoch_ms + 10, 1 << 20):
        pass
    declare(world, 2, {})
    settle(world.table)
    record = table.peek(slot_of(key), key)
    assert record is not None
    assert record[:12] == version(9)
    assert table.namespace(cached).keys == 0
    assert wrong_leaves(table) == []
