"""Floors and sessions of one node: what is refused when, and what is durable when it is told."""

from __future__ import annotations

import pytest

from services.core import ballots
from services.core import messages as m
from services.core import sessions as s
from services.core.comparison import decode_digests, encode_digests_asked
from services.core.hlc import version_zero
from services.core.key import namespace_prefix
from services.core.ring import slot_of
from services.core.wire import OK, OVERLOADED
from services.dhtnode import frame, sessions
from services.dhtnode.acceptor import Acceptor
from services.runtime.clock import FakeClock
from tests.unit.hand_peer import HandPeer
from tests.unit.replica_world import cached, declare, replayed, tombstone, value, version
from tests.unit.session_world import (
    Node,
    epoch,
    joint_map,
    keys_in,
    passing,
    replicator_peer,
)
from tests.unit.test_membership import cluster_map

slot = 77
keys = keys_in(slot, 4)
key = keys[0]
elsewhere = keys_in(78, 1)[0]
session, later = version(50), version(60)


@pytest.fixture
def node() -> Node:
    return Node()


def ended(node: Node) -> int:
    kind, body = node.told(m.DIGESTS, encode_digests_asked(slot, 1))
    assert kind == OK
    (digest,) = decode_digests(body)
    return digest.ended


# Freezing.


def test_a_slot_that_is_frozen_takes_nothing_at_or_below_its_floor(node: Node) -> None:
    assert node.freeze(slot, session) == (OK, b"")
    assert node.replica.floors == {slot: session}
    assert node.write(key, value(49)) == (m.BELOW_FLOOR, session)
    assert node.write(key, value(50)) == (m.BELOW_FLOOR, session)
    assert node.prepare(key, 50) == (ballots.NACK, session)
    assert node.accept(key, 50, value(1)) == (ballots.NACK, session)
    node.learn(key, 50, value(1))
    assert node.cell(key) is None
    assert node.write(key, value(51)) == (OK, b"")
    assert node.write(elsewhere, value(1)) == (OK, b"")


def test_a_floor_is_durable_before_it_is_told_to_anybody(node: Node) -> None:
    freeze = s.encode_freeze(epoch, slot, session)
    first, again = node.ask(s.FREEZE, freeze), node.ask(s.FREEZE, freeze)
    refused = node.ask(m.WRITE, m.encode_write(epoch, key, value(1)))
    many = node.ask(m.WRITE_MANY, m.encode_write_many(epoch, [(key, value(1))]))
    node.finish()
    assert node.world.asker.answers == {}
    node.world.settle()
    sequence = node.world.log.durable_sequence
    told = node.world.asker.answers
    assert (told[first], told[again]) == ((OK, b""), (OK, b""))
    assert told[refused] == (m.BELOW_FLOOR, session)
    assert told[many] == (OK, m.encode_statuses([(m.BELOW_FLOOR, session)]))
    assert all(at == sequence for at in node.world.asker.durable_at.values())
    assert [kind for kind, _ in node.world.frames].count(frame.FLOOR) == 1


def test_only_a_later_session_takes_the_place_of_one(node: Node) -> None:
    node.freeze(slot, session)
    assert node.freeze(slot, version(49)) == (ballots.NACK, session)
    assert node.freeze(slot, session) == (OK, b"")
    assert node.freeze(slot, later) == (OK, b"")
    assert node.freeze(slot, session) == (ballots.NACK, later)
    assert node.compare(slot, later) == []
    assert node.told(s.COMPARE, s.encode_compare(epoch, slot, session, b""))[0] == s.NO_SESSION


def test_a_session_that_has_ended_is_never_opened_again(node: Node) -> None:
    node.freeze(slot, session)
    node.purge(slot, session)
    assert node.replica.sessions == {}
    assert node.freeze(slot, session) == (ballots.NACK, session)


def test_nothing_is_frozen_while_joint_or_without_a_map_of_the_epoch() -> None:
    joint = Node(epoch=0)
    joint.membership.adopt(joint_map(4))
    assert joint.freeze(slot, session) == (ballots.NACK, version_zero)
    mapless = Node()
    mapless.replica.adopt_epoch(epoch + 2)
    assert mapless.freeze(slot, session) == (ballots.NACK, version_zero)
    # The map that it misses comes.
    mapless.membership.adopt(cluster_map(epoch + 2))
    assert mapless.freeze(slot, session) == (OK, b"")
    assert Node(epoch=0).freeze(slot, session) == (ballots.NACK, version_zero)
    assert joint.replica.floors == {}


def test_a_freeze_of_a_later_epoch_is_refused_until_the_map_has_come(node: Node) -> None:
    body = s.encode_freeze(epoch + 2, slot, session)
    assert node.told(s.FREEZE, body) == (ballots.NACK, version_zero)
    assert node.replica.epoch == epoch + 2
    node.membership.adopt(cluster_map(epoch + 2))
    assert node.told(s.FREEZE, body) == (OK, b"")
    assert node.told(s.FREEZE, s.encode_freeze(epoch, slot, later)) == (
        m.WRONG_EPOCH,
        m.u64.pack(epoch + 2),
    )


def test_a_session_from_the_future_is_refused(node: Node) -> None:
    assert node.freeze(slot, version(1, ahead_ms=3_000))[0] == m.AHEAD
    assert node.replica.floors == {}
    assert node.freeze(slot, version(1, ahead_ms=499)) == (OK, b"")


@pytest.mark.parametrize("way", ["adopt_epoch", "message", "map"])
def test_another_epoch_ends_all_sessions_and_leaves_their_floors(node: Node, way: str) -> None:
    node.freeze(slot, session)
    node.freeze(slot + 1, later)
    if way == "adopt_epoch":
        node.replica.adopt_epoch(epoch + 1)
    elif way == "message":
        node.told(m.WRITE, m.encode_write(epoch + 1, key, value(70)))
    else:
        node.membership.adopt(cluster_map(epoch + 2))
    assert node.replica.sessions == {}
    own = node.replica.epoch
    assert node.told(s.COMPARE, s.encode_compare(own, slot, session, b"")) == (s.NO_SESSION, b"")
    repair = s.encode_repair(own, slot, session, [(key, value(1))])
    assert node.told(s.REPAIR, repair) == (s.NO_SESSION, b"")
    assert node.told(s.COMPARE, s.encode_compare(epoch, slot, session, b""))[0] == m.WRONG_EPOCH
    assert node.replica.floors == {slot: session, slot + 1: later}
    assert node.cell(key) in (None, value(70))
    # A purge needs no session, and no epoch.
    assert node.purge(slot, session, (key, version_zero)) == (OK, b"")


# Comparing.


def test_what_is_compared_are_all_keys_that_have_a_cell_or_a_promise(node: Node) -> None:
    node.write(keys[0], value(1))
    node.choose(keys[1], 2, tombstone(2))
    node.prepare(keys[1], 3)
    node.prepare(keys[2], 4)
    node.write(keys[3], passing(5))
    node.write(elsewhere, value(1))
    node.freeze(slot, session)
    node.write(keys[0], value(55))
    zero = version_zero
    assert node.compare(slot, session) == [
        (keys[0], s.lives, version(55), zero, zero),
        (keys[1], s.ended, version(2), version(3), version(2)),
        (keys[2], s.no_cell, zero, version(4), zero),
        (keys[3], s.ended, version(5), zero, zero),
    ]
    assert node.compare(slot, session, keys[1])[0].key == keys[2]
    assert node.compare(slot, session, keys[3]) == []


def test_whether_a_value_has_expired_is_told_by_the_session_and_not_by_the_clock(
    node: Node,
) -> None:
    node.write(key, passing(1, FakeClock.epoch_ms + 100))
    node.freeze(slot, version(50, ahead_ms=99))
    assert [entry.cell for entry in node.compare(slot, version(50, ahead_ms=99))] == [s.lives]
    node.world.settle(5.0)
    assert [entry.cell for entry in node.compare(slot, version(50, ahead_ms=99))] == [s.lives]
    node.purge(slot, version(50, ahead_ms=99), (key, version_zero))
    assert node.cell(key) is not None
    node.freeze(slot, version(50, ahead_ms=100))
    assert [entry.cell for entry in node.compare(slot, version(50, ahead_ms=100))] == [s.ended]
    node.purge(slot, version(50, ahead_ms=100), (key, version_zero))
    assert node.cell(key) is None


def test_nothing_is_compared_before_it_is_durable(node: Node) -> None:
    node.freeze(slot, session)
    node.ask(m.WRITE, m.encode_write(epoch, key, value(55)))
    sequence = node.world.log.next_sequence - 1
    compare = node.ask(s.COMPARE, s.encode_compare(epoch, slot, session, b""))
    node.finish()
    assert node.answer(compare) is None
    node.world.settle()
    assert node.world.asker.durable_at[compare] >= sequence


def test_keys_of_caches_have_no_part_in_sessions(node: Node) -> None:
    number = 0
    while slot_of(cached + b"%d" % number) != slot:
        number += 1
    own = cached + b"%d" % number
    node.choose(own, 2, tombstone(2))
    assert (node.stale(slot), ended(node)) == ([own], 2)
    declare(node.world, 1, {cached: 5})
    while not node.table.tend_slice(1_000):
        pass
    assert (node.stale(slot), ended(node)) == ([], 0)
    node.freeze(slot, session)
    assert node.compare(slot, session) == []
    assert node.repair(slot, session, (own, value(9))) == (OK, b"")
    assert node.purge(slot, session, (own, version(2))) == (OK, b"")
    assert (node.cell(own), node.held(own).ballot) == (tombstone(2), version(2))
    declare(node.world, 2, {})
    while not node.table.tend_slice(1_000):
        pass
    assert node.stale(slot) == [own]
    node.freeze(slot, later)
    assert node.purge(slot, later, (own, version(2))) == (OK, b"")
    assert (node.cell(own), node.replica.promises.count, ended(node)) == (None, 0, 0)


# Which keys are to be asked about.


def test_stale_are_keys_with_a_promise_that_ended_here_or_there(node: Node) -> None:
    found = keys_in(slot, 9)
    node.choose(found[0], 1, tombstone(1))
    node.accept(found[1], 1, b"")
    node.choose(found[2], 1, value(1))
    node.write(found[2], tombstone(2))
    node.choose(found[3], 1, passing(1, FakeClock.epoch_ms + 10))
    node.write(found[4], tombstone(1))
    node.prepare(found[5], 1)
    node.choose(found[6], 1, value(1))
    node.accept(found[7], 2, tombstone(1))
    node.write(found[7], value(3))
    node.prepare(found[8], 1)
    node.write(found[8], tombstone(1))
    told = [found[0], found[1], found[2], found[7], found[8]]
    assert node.stale(slot) == told
    assert node.stale(slot, FakeClock.epoch_ms + 10) == sorted([*told, found[3]])
    assert node.stale(slot, after=found[1]) == told[2:]
    assert node.told(s.STALE, s.encode_stale(epoch - 1, slot, 1, b""))[0] == m.WRONG_EPOCH


# Repairing.


def test_a_session_repairs_what_nobody_else_may_write(node: Node) -> None:
    node.write(keys[1], value(9))
    node.write(keys[2], value(3))
    node.freeze(slot, session)
    items = [(keys[0], tombstone(4)), (keys[1], value(8)), (keys[2], value(50))]
    assert node.repair(slot, session, *items) == (OK, b"")
    assert [node.cell(each) for each in keys] == [tombstone(4), value(9), value(50), None]
    assert node.replica.counters.repaired == 2
    again = replayed(node.world.frames)
    assert [again.table.peek(slot, each) for each in keys] == [node.cell(each) for each in keys]


def test_what_was_there_already_is_durable_before_a_repair_is_answered(node: Node) -> None:
    node.freeze(slot, session)
    body = s.encode_repair(epoch, slot, session, [(key, value(4))])
    first = node.ask(s.REPAIR, body)
    again = node.ask(s.REPAIR, body)
    node.finish()
    assert (node.answer(first), node.answer(again)) == (None, None)
    node.world.settle()
    assert node.answer(first) == node.answer(again) == (OK, b"")


@pytest.mark.parametrize(
    "items",
    [
        [(key, value(51))],
        [(key, value(1)), (keys[1], value(51))],
        [(elsewhere, value(1))],
        [(b"no key", value(1))],
        [(key, b"no record")],
        [(key, b"")],
    ],
)
def test_a_repair_that_no_collector_sends_changes_nothing(
    node: Node, items: list[tuple[bytes, bytes]]
) -> None:
    node.freeze(slot, session)
    assert node.repair(slot, session, *items)[0] == m.MALFORMED
    assert node.table.total.keys == 0


def test_a_repair_without_its_session_is_refused_before_after_and_in_between(node: Node) -> None:
    items = [(each, value(1)) for each in keys_in(slot, 20)]
    assert node.repair(slot, session, *items) == (s.NO_SESSION, b"")
    node.freeze(slot, session)
    body = s.encode_repair(epoch, slot, session, items)
    request_id = node.ask(s.REPAIR, body)
    node.turn()
    node.turn()
    stored = node.table.total.keys
    assert 0 < stored < len(items)
    node.purge(slot, session)
    assert node.answer(request_id) == (s.NO_SESSION, b"")
    assert stored <= node.table.total.keys < len(items)
    assert node.told(s.REPAIR, body) == (s.NO_SESSION, b"")
    assert node.replica.counters.no_session == 3


def test_a_repair_of_one_session_is_none_of_the_next(node: Node) -> None:
    node.freeze(slot, session)
    late = node.ask(s.REPAIR, s.encode_repair(epoch, slot, session, [(key, value(1))]))
    node.ask(s.FREEZE, s.encode_freeze(epoch, slot, later))
    node.finish()
    node.world.settle()
    assert node.answer(late) == (s.NO_SESSION, b"")
    assert node.cell(key) is None


def test_a_full_node_is_repaired_with_tombstones_alone(node: Node) -> None:
    node.freeze(slot, session)
    node.replica.full = "full"
    assert node.repair(slot, session, (key, value(1))) == (m.STORAGE_FULL, b"full")
    assert node.repair(slot, session, (key, tombstone(1))) == (OK, b"")


# Purging.


def test_what_a_purge_drops_and_what_it_leaves(node: Node) -> None:
    found = keys_in(slot, 9)
    node.choose(found[0], 2, tombstone(2))
    node.choose(found[1], 2, tombstone(2))
    node.prepare(found[1], 55)
    node.choose(found[2], 2, tombstone(2))
    node.write(found[3], value(1))
    node.prepare(found[3], 3)
    node.write(found[4], tombstone(1))
    node.freeze(slot, session)
    node.write(found[5], tombstone(55))
    node.choose(found[6], 56, tombstone(56))
    node.prepare(found[1], 57)
    zero = version_zero
    told = [(found[0], version(2)), (found[1], version(2)), (found[2], version(1))]
    told += [(each, zero) for each in found[3:6]] + [(found[6], version(56))]
    told += [(found[7], version(2)), (found[8], zero)]
    assert node.purge(slot, session, *told) == (OK, b"")
    zero_promise = (zero, zero)
    assert [(node.cell(each), node.held(each)[:2]) for each in found] == [
        (None, zero_promise),
        # Somebody is at it: what was accepted stays, and nothing of it is learned.
        (None, (version(57), version(2))),
        # It was not accepted at the ballot that all have accepted it at.
        (None, (version(2), version(2))),
        (value(1), zero_promise),
        (None, zero_promise),
        (tombstone(55), zero_promise),
        (tombstone(56), (version(56), version(56))),
        (None, zero_promise),
        (None, zero_promise),
    ]
    counters = node.replica.counters
    assert (counters.purged_cells, counters.purged_promises) == (4, 2)
    assert node.purge(slot, session, *told) == (OK, b"")
    assert (counters.purged_cells, counters.purged_promises) == (4, 2)


def test_a_purge_is_refused_by_whoever_was_not_frozen_for_it(node: Node) -> None:
    node.write(key, tombstone(1))
    assert node.purge(slot, session, (key, version_zero)) == (ballots.NACK, version_zero)
    node.freeze(slot, version(49))
    assert node.purge(slot, session, (key, version_zero)) == (ballots.NACK, version(49))
    assert node.cell(key) == tombstone(1)
    # That of an earlier session does no harm to the one that is open.
    node.freeze(slot, session)
    assert node.purge(slot, version(49), (key, version_zero)) == (OK, b"")
    assert node.cell(key) is None
    assert node.replica.sessions == {slot: session}


def test_what_a_purge_took_is_not_shown_as_gone_before_that_is_durable(node: Node) -> None:
    node.choose(key, 2, tombstone(2))
    node.freeze(slot, session)
    purge = s.encode_purge(slot, session, [(key, version(2))])
    first, again = node.ask(s.PURGE, purge), node.ask(s.PURGE, purge)
    node.finish()
    sequence = node.world.log.next_sequence - 1
    asked = [
        node.ask(m.GET, key),
        node.ask(ballots.READ, ballots.encode_read(epoch, key)),
        node.ask(m.DIGESTS, encode_digests_asked(slot, 1)),
        first,
        again,
    ]
    node.finish()
    assert all(node.answer(request_id) is None for request_id in asked)
    node.world.settle()
    assert all(node.world.asker.durable_at[request_id] >= sequence for request_id in asked)
    assert node.answer(asked[0]) == (OK, b"")


def test_a_write_that_is_under_way_in_the_batch_of_a_purge_stays(node: Node) -> None:
    node.write(key, tombstone(2))
    node.freeze(slot, session)
    write = node.ask(m.WRITE, m.encode_write(epoch, key, value(55)))
    node.ask(s.PURGE, s.encode_purge(slot, session, [(key, version_zero)]))
    node.finish()
    node.world.settle()
    assert node.answer(write) == (OK, b"")
    assert node.cell(key) == value(55)
    assert replayed(node.world.frames).table.peek(slot, key) == value(55)


def test_a_write_behind_a_purge_in_one_batch_stays_as_well(node: Node) -> None:
    node.write(key, tombstone(2))
    node.freeze(slot, session)
    node.ask(s.PURGE, s.encode_purge(slot, session, [(key, version_zero)]))
    node.finish()
    node.ask(m.WRITE, m.encode_write(epoch, key, value(55)))
    node.world.settle()
    assert replayed(node.world.frames).table.peek(slot, key) == node.cell(key) == value(55)


def test_a_purge_of_many_keys_lets_others_have_their_turn(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "purged_in_a_piece", 3)
    many = keys_in(slot, 24)
    for each in many:
        node.table.put(slot, each, tombstone(1))
    node.freeze(slot, session)
    body = s.encode_purge(slot, session, [(each, version_zero) for each in many])
    request_id = node.ask(s.PURGE, body)
    node.turn()
    node.turn()
    assert 0 < ended_of(node) < len(many)
    assert node.replica.sessions == {}
    node.finish()
    node.world.settle()
    assert (node.answer(request_id), ended_of(node)) == ((OK, b""), 0)
    assert [kind for kind, _ in node.world.frames].count(frame.PURGED) == 8


def ended_of(node: Node) -> int:
    return node.table.ended(slot)


@pytest.mark.parametrize("bad", [elsewhere, b"no key"])
def test_a_purge_of_another_slots_keys_changes_nothing(node: Node, bad: bytes) -> None:
    node.write(key, tombstone(1))
    node.freeze(slot, session)
    assert node.purge(slot, session, (key, version_zero), (bad, version_zero))[0] == m.MALFORMED
    assert node.cell(key) == tombstone(1)
    assert node.replica.sessions == {slot: session}


def test_memory_and_digests_are_those_of_a_node_that_never_had_the_keys(node: Node) -> None:
    found = keys_in(slot, 40)
    before = node.replica.memory_bytes
    empty = node.table.leaves(slot)
    for each in found[:20]:
        node.choose(each, 2, tombstone(2))
    for each in found[20:30]:
        node.accept(each, 2, b"")
    for each in found[30:]:
        node.write(each, passing(2, FakeClock.epoch_ms - 1))
    node.replica.trim_slice(FakeClock.epoch_ms, 1 << 20)
    # The deleted ones with their promises, nothing accepted, and the expired.
    assert ended(node) == 20 + 20 + 10 + 10
    node.freeze(slot, session)
    told = [
        (each, version(2) if number < 30 else version_zero) for number, each in enumerate(found)
    ]
    node.purge(slot, session, *told)
    while not node.table.tend_slice(10_000):
        pass
    assert (ended(node), node.table.leaves(slot)) == (0, empty)
    assert node.replica.promises.count == 0
    assert node.replica.memory_bytes - before <= 4_000
    assert node.table.keys(slot) == []


# Slots that wait for their data, a full disk, a slow one.


def test_a_slot_that_is_not_ready_is_purged_and_nothing_else(node: Node) -> None:
    node.write(key, tombstone(1))
    node.freeze(slot, session)
    node.replica.not_ready = frozenset({slot})
    assert node.freeze(slot, later) == (m.NOT_READY, b"")
    assert node.told(s.STALE, s.encode_stale(epoch, slot, 1, b"")) == (m.NOT_READY, b"")
    assert node.told(s.COMPARE, s.encode_compare(epoch, slot, session, b""))[0] == m.NOT_READY
    assert node.repair(slot, session, (key, value(2))) == (m.NOT_READY, b"")
    assert node.purge(slot, session, (key, version_zero)) == (OK, b"")
    assert node.cell(key) is None


def test_an_overloaded_log_takes_no_floor_no_repair_and_no_purge(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.write(key, tombstone(1))
    node.freeze(slot, session)
    monkeypatch.setattr(node.world.log, "undurable_bytes", 1 << 30)
    asked = [
        node.ask(s.FREEZE, s.encode_freeze(epoch, slot, later)),
        node.ask(s.REPAIR, s.encode_repair(epoch, slot, session, [(keys[1], value(1))])),
        node.ask(s.PURGE, s.encode_purge(slot, session, [(key, version_zero)])),
    ]
    node.finish()
    assert [node.answer(request_id) for request_id in asked] == [(OVERLOADED, b"")] * 3
    assert node.replica.floors == {slot: session}
    assert (node.cell(key), node.cell(keys[1])) == (tombstone(1), None)


def test_a_purge_that_is_refused_goes_on_when_it_comes_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "purged_in_a_piece", 3)
    many = keys_in(slot, 24)
    for each in many:
        node.table.put(slot, each, tombstone(1))
    node.freeze(slot, session)
    body = s.encode_purge(slot, session, [(each, version_zero) for each in many])
    request_id = node.ask(s.PURGE, body)
    node.turn()
    node.turn()
    with monkeypatch.context() as patched:
        patched.setattr(node.world.log, "undurable_bytes", 1 << 30)
        node.finish()
    assert node.answer(request_id) == (OVERLOADED, b"")
    assert 0 < ended_of(node) < len(many)
    node.world.settle()
    assert node.told(s.PURGE, body) == (OK, b"")
    assert ended_of(node) == 0


# Restarts.


def test_after_a_power_cut_there_is_a_floor_only_if_it_was_told_and_never_a_session(
    node: Node,
) -> None:
    node.choose(key, 2, tombstone(2))
    before = len(node.world.frames)
    node.freeze(slot, session)
    frozen = len(node.world.frames)
    node.purge(slot, session, (key, version(2)))
    for length, floors, cell in (
        (before, {}, tombstone(2)),
        (frozen, {slot: session}, tombstone(2)),
        (len(node.world.frames), {slot: session}, None),
    ):
        again = replayed(node.world.frames[:length])
        for _ in Acceptor(again, node.world.clock).settle():
            pass
        assert (again.floors, again.sessions) == (floors, {})
        assert again.table.peek(slot, key) == cell
        assert again.promises.count == (0 if cell is None else 1)


def test_after_a_restart_a_late_repair_is_refused_and_a_late_purge_is_not(node: Node) -> None:
    node.write(key, tombstone(2))
    node.freeze(slot, session)
    restarted = Node(epoch=0)
    for kind, body in node.world.frames:
        restarted.replica.replay(kind, body)
    restarted.membership.adopt(cluster_map(epoch))
    assert restarted.repair(slot, session, (key, value(9))) == (s.NO_SESSION, b"")
    assert restarted.freeze(slot, session) == (ballots.NACK, session)
    assert restarted.write(key, value(9)) == (m.BELOW_FLOOR, session)
    assert restarted.purge(slot, session, (key, version_zero)) == (OK, b"")
    assert restarted.cell(key) is None


# Who else collects.


def test_a_node_tells_which_replicators_have_asked_where_they_are_connected(node: Node) -> None:
    """One that has asked nobody cannot look after slots, such as for want of a stamper."""
    ours, theirs = replicator_peer("replicator-2"), replicator_peer("replicator-1")
    without_stamper, stranger = replicator_peer("replicator-3"), replicator_peer("replicator-4")
    for peer in (ours, theirs, without_stamper):
        node.membership.came(peer)

    def told(peer: HandPeer) -> list[str]:
        peer.replies.clear()
        node.handlers[s.REPLICATORS](peer, 1, b"")
        kind, body = peer.replies[1]
        assert kind == OK
        return s.decode_replicators(body)

    assert told(ours) == ["replicator-2"]
    assert told(theirs) == ["replicator-1", "replicator-2"]
    assert told(stranger) == ["replicator-1", "replicator-2"]
    again = replicator_peer("replicator-1")
    node.membership.came(again)
    node.membership.went(theirs)
    assert told(ours) == ["replicator-2"], "it has not asked on its new connection"
    assert told(again) == ["replicator-1", "replicator-2"]
    assert node.told(s.REPLICATORS, b"\0")[0] == m.MALFORMED


def test_namespaces_that_are_no_caches_are_collected_beside_those_that_are(node: Node) -> None:
    declare(node.world, 1, {namespace_prefix(7, b"another"): 5})
    node.choose(key, 2, tombstone(2))
    assert (node.stale(slot), ended(node)) == ([key], 2)
