"""One attempt to collect a slot of real replicas: what goes, what stays, and what ends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.core import collecting
from services.core.ballots import ACCEPT, LEARN, NACK, PREPARE
from services.core.change import Delete, Put
from services.core.cluster import ClusterMap
from services.core.hlc import lead_ms_max, version_zero
from services.core.messages import (
    GET_MANY,
    NOT_READY,
    STORAGE_FULL,
    WRITE,
    encode_page,
    encode_write,
    u16,
)
from services.core.operations import CHANGED
from services.core.record import tombstone_body, value, value_body
from services.core.sessions import COMPARE, FREEZE, NO_SESSION, PURGE, REPAIR, STALE
from services.core.wire import FAILED, OK, OVERLOADED
from services.dhtnode import frame
from services.replicator import collection_attempt, collection_purge, collection_rounds
from services.replicator.collection_end import Collected, End
from services.replicator.strong import keep
from services.runtime.peer import Peer
from tests.integration.link_ends import log_lines
from tests.unit.collection_world import CollectingWorld, keys, slot
from tests.unit.replicator_world import member_of

key, other, third = keys[:3]


@pytest.fixture
def world() -> CollectingWorld:
    return CollectingWorld()


def put(world: CollectingWorld, of: bytes = key, content: bytes = b"value") -> None:
    asked = world.put(of, content)
    world.pass_time(0.01)
    assert asked.kind == CHANGED


def delete(world: CollectingWorld, of: bytes = key) -> None:
    asked = world.delete(of)
    world.pass_time(0.01)
    assert asked.kind == CHANGED


def changed(world: CollectingWorld, change: Put | Delete, of: bytes = key) -> bytes:
    asked = world.change(of, change)
    world.pass_time(0.02)
    return asked.version


# What goes.


def test_a_deleted_key_is_gone_from_all_replicas_and_a_living_one_stays(
    world: CollectingWorld,
) -> None:
    put(world)
    put(world, other, b"stays")
    delete(world)
    assert world.collected() == Collected(slot, End.COMPLETED, tombstones=1)
    assert world.is_gone(key)
    assert [value(record or b"") for record in world.held(other)] == [b"stays"] * 3
    assert world.messages(REPAIR) == 0
    assert world.messages(PREPARE) == 0, "nothing of it was ever strong"


def test_a_key_deleted_strongly_is_gone_with_its_promises_without_a_repair(
    world: CollectingWorld,
) -> None:
    changed(world, Put(b"value"))
    changed(world, Delete())
    assert world.promised(key) == [True] * 3
    assert world.collected() == Collected(slot, End.COMPLETED, tombstones=1, promises=1)
    assert world.is_gone(key)
    assert world.messages(REPAIR) == 0, "all had learned the tombstone before they froze"
    assert world.messages(COMPARE) == 3, "in one round"


def test_a_strong_value_deleted_eventually_is_gone(world: CollectingWorld) -> None:
    changed(world, Put(b"value"))
    delete(world)
    assert world.collected().promises == 1
    assert world.is_gone(key)


def test_a_strong_tombstone_under_an_eventual_value_goes_and_the_value_stays(
    world: CollectingWorld,
) -> None:
    changed(world, Delete())
    put(world, content=b"later")
    world.collected()
    assert [value(record or b"") for record in world.held(key)] == [b"later"] * 3
    asked = world.fetch(key)
    world.pass_time()
    assert value(asked.body) == b"later"


def test_a_strong_value_stays_with_its_promises(world: CollectingWorld) -> None:
    version = changed(world, Put(b"value"))
    assert world.collected() == Collected(slot, End.COMPLETED)
    assert world.promised(key) == [True] * 3
    assert world.held(key) == [version + value_body(b"value")] * 3


def test_accepted_nothing_and_promises_alone_are_gone(world: CollectingWorld) -> None:
    world.change(key, keep)
    for node in world.nodes.values():
        node.ignore(ACCEPT)
    world.pass_time(0.02)
    world.change(other, keep)
    world.pass_time(3.0)
    for node in world.nodes.values():
        node.obey()
    assert any(world.promised(other))
    world.collected()
    assert world.is_gone(key)
    assert world.is_gone(other)


@pytest.mark.parametrize("strongly", [True, False])
def test_what_has_expired_is_gone_and_what_will_expire_stays(
    world: CollectingWorld, *, strongly: bool
) -> None:
    now_ms = world.replicator.clock.wall_ms()
    for of, after_ms in ((key, 1_000), (other, 9_000)):
        body = value_body(b"value", now_ms + after_ms)
        if strongly:
            changed(world, Put(b"value", now_ms + after_ms), of)
        else:
            asked = world.change(of, keep) and world.put(of)
            world.pass_time(0.01)
            for node in world.owners(of):
                world.plant(node, of, world.version(ahead_ms=1) + body)
            assert asked.answered
    world.pass_time(1.5)
    assert world.collected().tombstones == 1
    assert world.is_gone(key)
    assert None not in world.values(other)
    assert world.promised(other) == [True] * 3


def test_a_deletion_that_one_replica_missed_reaches_it_before_it_is_forgotten(
    world: CollectingWorld,
) -> None:
    put(world)
    away = world.owners(key)[2]
    away.answer(WRITE, FAILED)
    delete(world)
    away.obey()
    assert [record is not None for record in world.values(key)] == [False, False, True]
    collected = world.collected()
    assert (collected.tombstones, collected.repaired) == (1, 1)
    assert 0 < collected.repaired_bytes < 200
    assert world.is_gone(key)
    assert world.messages(COMPARE) == 6, "a round that found it, and one that found nothing"


def test_a_value_below_the_floor_that_only_one_replica_has_is_brought_to_the_others(
    world: CollectingWorld,
) -> None:
    record = world.version() + value_body(b"alone")
    world.plant(world.owners(key)[1], key, record)
    assert world.collected().repaired == 2
    assert world.held(key) == [record] * 3


def test_a_chosen_tombstone_that_no_cell_has_learned_wins_over_the_value_in_them(
    world: CollectingWorld,
) -> None:
    """Once the promises are gone nothing else tells that the value was deleted."""
    changed(world, Put(b"value"))
    for node in world.nodes.values():
        node.ignore(LEARN)
    changed(world, Delete())
    assert None not in world.values(key)
    collected = world.collected()
    assert (collected.tombstones, collected.promises, collected.repaired) == (1, 1, 3)
    assert world.is_gone(key)


def test_a_replica_that_has_accepted_nothing_yet_accepts_before_the_promises_go(
    world: CollectingWorld,
) -> None:
    late = world.owners(key)[2]
    late.ignore(ACCEPT, LEARN)
    changed(world, Put(b"value"))
    changed(world, Delete())
    late.obey()
    assert world.promised(key)[:2] == [True, True]
    world.collected()
    assert world.is_gone(key)


def test_after_a_collection_keys_are_written_and_read_as_if_they_had_never_been(
    world: CollectingWorld,
) -> None:
    changed(world, Put(b"first"))
    changed(world, Delete())
    world.collected()
    asked = world.fetch(key)
    world.pass_time()
    assert (asked.kind, asked.body) == (OK, b"")
    put(world, content=b"second")
    asked = world.fetch(key)
    world.pass_time()
    assert value(asked.body) == b"second"
    changed(world, Delete())
    world.collected()
    assert world.is_gone(key)


def test_a_slot_goes_through_by_pages_and_all_of_it_is_collected(
    world: CollectingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("services.core.sessions", "services.dhtnode.sessions"):
        monkeypatch.setattr(f"{module}.compared_max", 2)
        monkeypatch.setattr(f"{module}.stale_max", 2)
    monkeypatch.setattr(collection_rounds, "keys_in_a_turn", 3)
    for of in keys:
        changed(world, Put(b"value"), of)
    for of in keys[::2]:
        changed(world, Delete(), of)
    missing = world.owners(key)[1]
    missing.answer(WRITE, FAILED)
    for of in keys[1::4]:
        delete(world, of)
    missing.obey()
    collected = world.collected()
    assert (collected.tombstones, collected.promises) == (9, 9)
    for of in keys[::2] + keys[1::4]:
        assert world.is_gone(of)
    for of in keys[3::4]:
        assert None not in world.values(of)
    assert world.messages(STALE) >= 12
    assert world.messages(COMPARE) >= 12


def test_what_one_attempt_does_not_take_is_left_to_the_next(
    world: CollectingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "over_max", 5)
    for of in keys:
        delete(world, of)
    left = []
    for _ in range(3):
        collected = world.collected()
        left.append((collected.tombstones, collected.more))
    assert left == [(5, True), (5, True), (2, False)]
    assert all(world.is_gone(of) for of in keys)


def test_more_stale_keys_than_one_attempt_settles_are_left_to_the_next(
    world: CollectingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("services.core.sessions", "services.dhtnode.sessions"):
        monkeypatch.setattr(f"{module}.stale_max", 2)
    monkeypatch.setattr(collection_attempt, "stale_max", 4)
    for of in keys:
        changed(world, Delete(), of)
    first = world.collected()
    assert first.more
    assert 4 <= first.promises < len(keys)
    for _ in range(3):
        world.collected()
    assert all(world.is_gone(of) for of in keys)


def test_large_records_are_repaired_in_messages_that_nodes_take(world: CollectingWorld) -> None:
    holder = world.owners(key)[0]
    records = {}
    for of in keys[:7]:
        records[of] = world.version() + value_body(bytes(700_000))
        world.plant(holder, of, records[of])
    assert world.collected().repaired == 14
    for of, record in records.items():
        assert world.held(of) == [record] * 3
    assert world.messages(GET_MANY) == 4, "two of them fit an answer"
    assert world.messages(COMPARE) == 6, "and all were brought in one round"


def test_what_changes_between_its_comparison_and_its_repair_is_brought_to_nobody(
    world: CollectingWorld,
) -> None:
    """It is above the session then, and goes its own way."""
    holder = world.owners(key)[0]
    world.plant(holder, key, world.version() + value_body(b"old"))
    handle = holder.station.handlers[GET_MANY]
    later: list[bytes] = []

    def first_a_write(peer: Peer, request_id: int, body: bytes) -> None:
        holder.obey()
        later.append(world.version(ahead_ms=50) + value_body(b"later"))
        holder.replica.write(peer, 0, encode_write(holder.replica.epoch, key, later[0]))
        handle(peer, request_id, body)

    holder.instead[GET_MANY] = first_a_write
    assert world.collected().repaired == 0
    assert world.held(key) == [later[0], None, None]


# What ends an attempt, with nothing lost.


@pytest.mark.parametrize("kind", [STALE, FREEZE, COMPARE, REPAIR])
@pytest.mark.parametrize(
    ("answer", "body", "end"),
    [
        (NACK, version_zero, End.NACKED),
        (NO_SESSION, b"", End.NO_SESSION),
        (NOT_READY, b"", End.REFUSED),
        (OVERLOADED, b"", End.REFUSED),
        (STORAGE_FULL, b"", End.REFUSED),
        (FAILED, b"", End.REFUSED),
        (NACK, b"no version", End.CLOCK),
    ],
)
def test_an_answer_that_is_not_due_ends_it_and_nothing_is_purged(
    world: CollectingWorld, kind: int, answer: int, body: bytes, end: End
) -> None:
    put(world)
    one = world.others()[0]
    one.answer(WRITE, FAILED)
    delete(world)
    one.obey()
    one.answer(kind, answer, body)
    with log_lines() as lines:
        collected = world.collect()
    assert collected.end is end
    assert not [line for line in lines if line["level"] == "error"]
    assert one.node_id in collected.reason
    assert world.messages(PURGE) == 0
    one.obey()
    world.collected()
    assert world.is_gone(key)


@pytest.mark.parametrize("kind", [STALE, FREEZE, COMPARE, REPAIR, GET_MANY])
def test_a_replica_that_does_not_answer_ends_it(world: CollectingWorld, kind: int) -> None:
    record = world.version() + value_body(b"alone")
    holder, one = world.owners(key)[:2]
    world.plant(holder, key, record)
    for node in (holder, one):
        node.ignore(kind)
    assert world.collect().end is End.TIMEOUT
    assert world.messages(PURGE) == 0


@pytest.mark.parametrize("kind", [STALE, COMPARE, GET_MANY])
def test_an_answer_without_sense_ends_it(world: CollectingWorld, kind: int) -> None:
    world.plant(world.owners(key)[0], key, world.version() + value_body(b"alone"))
    for node in world.nodes.values():
        node.answer(kind, OK, b"\7")
    collected = world.collect()
    assert collected.end is End.REFUSED
    assert "made no sense" in collected.reason


def test_pages_of_stale_keys_that_never_lead_on_end_it(world: CollectingWorld) -> None:
    page = encode_page([(key, b"")] * 2, 1)
    world.others()[0].answer(STALE, OK, page)
    collected = world.collect()
    assert collected.end is End.REFUSED
    assert "begins before the one before it ended" in collected.reason
    assert world.messages(STALE) == 4


def test_it_does_not_begin_without_all_owners(world: CollectingWorld) -> None:
    delete(world)
    away = world.others()[1]
    away.crash()
    world.pass_time(1.0)
    collected = world.collect()
    assert collected.end is End.NOT_ALL_UP
    assert away.node_id in collected.reason
    assert world.messages(STALE) == 0


def test_a_key_that_not_all_accept_is_left_out_and_keeps_its_promises(
    world: CollectingWorld,
) -> None:
    changed(world, Delete())
    delete(world, other)
    for node in world.nodes.values():
        node.answer(ACCEPT, STORAGE_FULL)
    assert world.collected().tombstones == 1
    assert world.is_gone(other)
    assert world.promised(key) == [True] * 3
    assert None not in world.held(key)


def test_too_many_keys_that_not_all_accept_end_it(
    world: CollectingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection_attempt, "unsettled_max", 2)
    for of in keys[:4]:
        changed(world, Delete(), of)
    world.others()[0].answer(ACCEPT, STORAGE_FULL)
    assert world.collect().end is End.UNSETTLED
    assert world.messages(FREEZE) == 0


def test_a_replica_that_goes_while_keys_are_settled_ends_it(world: CollectingWorld) -> None:
    for of in keys:
        changed(world, Delete(), of)
    away = world.others()[1]
    attempt: list[Collected] = []
    world.collector.collect(slot, attempt.append)
    world.pass_until(lambda: away.asked[ACCEPT] > 14)
    away.crash()
    world.pass_until(lambda: bool(attempt))
    world.pass_time(0.1)
    assert attempt[0].end is End.NOT_ALL_UP
    assert world.messages(FREEZE) == 0


def test_a_floor_ahead_of_the_clock_is_followed_by_the_next_attempt(
    world: CollectingWorld,
) -> None:
    delete(world)
    node = world.others()[0]
    ahead = world.version(ahead_ms=lead_ms_max - 100)
    node.replica.replay(frame.FLOOR, u16.pack(slot) + ahead)
    assert world.collect().end is End.NACKED
    world.collected()
    assert node.replica.floors[slot] > ahead
    assert world.is_gone(key)


def test_one_replica_that_does_not_accept_keeps_a_key_from_being_settled(
    world: CollectingWorld,
) -> None:
    """A majority is enough for a change, and not for forgetting one."""
    changed(world, Delete())
    world.others()[1].ignore(ACCEPT)
    world.collected()
    assert world.promised(key) == [True] * 3
    assert None not in world.held(key)


def joint_map() -> ClusterMap:
    members = tuple(member_of(number) for number in range(1, 4))
    return ClusterMap(1, 3, members).begin_change((*members[:2], member_of(4)))


def test_it_does_not_begin_while_members_are_being_changed(world: CollectingWorld) -> None:
    world.replicator.fleet.adopt(joint_map())
    assert world.collect().end is End.JOINT
    assert world.messages(STALE) == 0


@pytest.mark.parametrize("kind", [STALE, PREPARE, ACCEPT, FREEZE, COMPARE])
def test_a_replica_in_a_later_epoch_ends_it(world: CollectingWorld, kind: int) -> None:
    """Also if the change has gone by before anybody looks: epochs are compared, not maps."""
    changed(world, Delete())
    joint = joint_map()
    stable = joint.finish_change()
    node = world.others()[0]
    handle: Callable[[Peer, int, bytes], None] = node.station.handlers[kind]

    def first_the_epoch(peer: Peer, request_id: int, body: bytes) -> None:
        node.replica.adopt_epoch(stable.epoch)
        node.instead.clear()
        handle(peer, request_id, body)

    node.instead[kind] = first_the_epoch
    collected = world.collect()
    assert collected.end is End.WRONG_EPOCH
    assert world.replicator.epochs.told.count(stable.epoch) > 0
    assert world.promised(key) == [True] * 3
    assert None not in world.held(key)


def test_a_map_that_changes_under_way_ends_it_at_any_step(world: CollectingWorld) -> None:
    changed(world, Delete())
    stable = ClusterMap(3, 3, world.map.members)
    for kind in (STALE, PREPARE, FREEZE, COMPARE):
        adopted = CollectingWorld()
        changed(adopted, Delete())
        node = adopted.others()[0]
        handle = node.station.handlers[kind]

        def then_the_map(
            peer: Peer,
            request_id: int,
            body: bytes,
            adopted: CollectingWorld = adopted,
            handle: Callable[[Peer, int, bytes], None] = handle,
        ) -> None:
            adopted.replicator.fleet.adopt(stable)
            for each in adopted.nodes.values():
                each.instead.clear()
            handle(peer, request_id, body)

        node.instead[kind] = then_the_map
        assert adopted.collect().end is End.WRONG_EPOCH
        assert adopted.messages(PURGE) == 0
        assert None not in adopted.held(key)


def test_a_node_that_restarts_after_it_froze_has_no_session_and_keeps_its_floor(
    world: CollectingWorld,
) -> None:
    delete(world)
    node = world.others()[0]
    attempt: list[Collected] = []
    world.collector.collect(slot, attempt.append)
    world.pass_until(lambda: node.asked[COMPARE] > 0)
    node.crash()
    node.begin()
    world.pass_until(lambda: bool(attempt))
    assert attempt[0].end in (End.NOT_ALL_UP, End.NO_SESSION)
    assert node.replica.floors[slot] > version_zero
    world.pass_time(1.0)
    world.tell_map(world.map)
    world.collected()
    assert world.is_gone(key)


def test_the_clock_of_a_replicator_that_may_not_stamp_ends_it(world: CollectingWorld) -> None:
    delete(world)
    world.replicator.stamps.seal()
    assert world.collect().end is End.CLOCK
    assert world.messages(FREEZE) == 0


def test_replicas_that_never_become_equal_end_it_after_some_rounds(world: CollectingWorld) -> None:
    world.plant(world.owners(key)[0], key, world.version() + tombstone_body)
    for node in world.nodes.values():
        node.answer(REPAIR, OK)
    assert world.collect().end is End.UNEQUAL
    assert world.messages(PURGE) == 0
    assert world.messages(COMPARE) == 3 * collection_rounds.rounds_max


# The last word.


def test_a_purge_that_a_replica_refuses_is_said_again(world: CollectingWorld) -> None:
    delete(world)
    busy = world.others()[1]
    busy.answer(PURGE, OVERLOADED)
    attempt: list[Collected] = []
    world.collector.collect(slot, attempt.append)
    world.pass_until(lambda: busy.asked[PURGE] == 3)
    busy.obey()
    world.pass_until(lambda: bool(attempt))
    assert attempt[0].end is End.COMPLETED
    assert world.is_gone(key)


def test_a_purge_that_a_replica_never_takes_is_made_good_by_the_next_session(
    world: CollectingWorld,
) -> None:
    delete(world)
    deaf = world.others()[1]
    deaf.answer(PURGE, OVERLOADED)
    collected = world.collect()
    assert collected.end is End.PURGED_IN_PART
    assert deaf.node_id in collected.reason
    assert [record is None for record in world.held(key)] == [True, True, False]
    deaf.obey()
    assert world.collected().repaired == 2, "the tombstone is everywhere again before it goes"
    assert world.is_gone(key)


def test_a_purge_reaches_a_replica_that_was_away_for_a_moment(world: CollectingWorld) -> None:
    delete(world)
    node = world.others()[1]
    node.ignore(PURGE)
    attempt: list[Collected] = []
    world.collector.collect(slot, attempt.append)
    world.pass_until(lambda: node.asked[PURGE] == 1)
    node.obey()
    node.crash()
    world.pass_time(0.3)
    node.begin()
    world.pass_until(lambda: bool(attempt))
    assert attempt[0].end is End.COMPLETED
    assert world.is_gone(key)


def test_a_purge_goes_on_in_another_epoch(world: CollectingWorld) -> None:
    delete(world)
    node = world.others()[1]
    node.answer(PURGE, OVERLOADED)
    attempt: list[Collected] = []
    world.collector.collect(slot, attempt.append)
    world.pass_until(lambda: node.asked[PURGE] == 1)
    node.obey()
    stable = ClusterMap(3, 3, world.map.members)
    world.replicator.fleet.adopt(stable)
    world.tell_map(stable)
    world.pass_until(lambda: bool(attempt))
    assert attempt[0].end is End.COMPLETED
    assert world.is_gone(key)


def test_an_abandoned_attempt_says_so_and_nothing_more(world: CollectingWorld) -> None:
    delete(world)
    attempt: list[Collected] = []
    world.collector.start()
    world.collector.collect(slot, attempt.append)
    world.pass_until(lambda: world.messages(FREEZE) == 3)
    world.collector.stop()
    assert [each.end for each in attempt] == [End.STOPPED]
    world.pass_time(10.0)
    assert world.messages(PURGE) == 0
    assert len(attempt) == 1


def test_an_attempt_that_is_abandoned_while_it_purges_goes_no_further(
    world: CollectingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection_purge, "items_max", 2)
    for of in keys:
        delete(world, of)
    attempt: list[Collected] = []
    world.collector.collect(slot, attempt.append)
    world.pass_until(lambda: world.messages(PURGE) == 3)
    world.collector.stop()
    world.pass_time(10.0)
    assert [each.end for each in attempt] == [End.STOPPED]
    assert world.messages(PURGE) == 3
    world.collected()
    assert all(world.is_gone(of) for of in keys)
