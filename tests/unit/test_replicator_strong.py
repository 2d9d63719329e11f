"""Strong operations through real acceptors: what is chosen, what is told, and when."""

from __future__ import annotations

from functools import partial

import pytest

from services.core.ballots import ACCEPT, LEARN, NACK, PREPARE, READ, decode_accept
from services.core.change import Condition, Delete, Expire, Increment, Put
from services.core.hlc import Version, lead_ms_max, version_bytes, version_ms, version_zero
from services.core.messages import NOT_READY, STORAGE_FULL, WRONG_EPOCH, u64
from services.core.operations import (
    ABSENT,
    CHANGED,
    NOT_AN_INTEGER,
    PRECONDITION_FAILED,
    REFUSED,
    UNKNOWN,
    decode_changed,
    decode_refused,
    decode_unknown,
)
from services.core.paxos import no_operation
from services.core.record import is_tombstone, value, value_body
from services.core.ring import slot_of
from services.core.wire import FAILED, OK, OVERLOADED, TIMEOUT
from services.replicator import key_turns, strong
from services.replicator.key_turns import ended_in_a_turn
from services.replicator.strong import sweep_s
from services.replicator.strong_operation import Chosen, hedge_s, operation_s
from services.replicator.sweeper import Sweeper, age_ms
from services.runtime.fake_connection import told_in_a_turn
from services.runtime.peer import Peer
from tests.unit.replicator_world import Asked, Node, World, key_of

key = key_of(1)


@pytest.fixture
def world() -> World:
    return World()


def refusal(asked: Asked) -> tuple[str, str]:
    assert asked.kind == REFUSED, asked.answers
    return decode_refused(asked.body)


def stored(world: World, content: bytes = b"value") -> Version:
    asked = world.change(key, Put(content))
    world.pass_time()
    return asked.version


def fetched(world: World, by: int = 0) -> bytes:
    """The record that a strong read shows."""
    asked = world.fetch(key, by)
    world.pass_time(0.2)
    assert asked.kind == OK, asked.answers
    return asked.body


def accepted(node: Node) -> Version:
    """The ballot at which a replica has accepted."""
    return node.acceptor.promises.get(slot_of(key), key).ballot


# Reading.


def test_a_key_that_nobody_wrote_is_read_as_nothing_in_one_round_trip(world: World) -> None:
    assert fetched(world) == b""
    assert world.messages(READ) == 2, "a majority is asked, and no more"
    assert world.messages(PREPARE, ACCEPT) == 0
    assert world.replicator.counters.fast_reads == 1


def test_what_was_chosen_is_read_in_one_round_trip_and_writes_nothing(world: World) -> None:
    version = stored(world, b"hello")
    world.replicator.counters.fast_reads = 0
    syncs = sum(node.disk.counters.syncs for node in world.nodes.values())
    assert fetched(world) == version + value_body(b"hello")
    assert world.replicator.counters.fast_reads == 1
    assert sum(node.disk.counters.syncs for node in world.nodes.values()) == syncs


def test_an_eventual_write_is_absorbed_by_the_first_read_and_the_next_is_fast(
    world: World,
) -> None:
    asked = world.put(key, b"eventual")
    world.pass_time()
    record = asked.version + value_body(b"eventual")
    assert fetched(world) == record
    assert world.messages(ACCEPT) == 3
    assert fetched(world) == record
    assert world.messages(ACCEPT) == 3
    assert world.replicator.counters.fast_reads == 1


def test_an_eventual_write_that_one_replica_has_is_seen_if_that_one_is_asked(
    world: World,
) -> None:
    stored(world)
    newer = world.version() + value_body(b"newer")
    world.plant(world.owners(key)[1], key, newer)
    assert fetched(world) == newer
    assert fetched(world) == newer
    world.pass_time()
    assert world.held(key) == [newer] * 3, "and all have learned it"


def test_an_expired_value_is_read_as_nothing_and_written_as_deleted(world: World) -> None:
    expires_at_ms = world.replicator.clock.wall_ms() + 1_000
    world.change(key, Put(b"short-lived", expires_at_ms))
    world.pass_time(0.9)
    assert value(fetched(world)) == b"short-lived"
    assert fetched(world) == b""
    world.pass_time()
    assert [is_tombstone(record or b"") for record in world.held(key)] == [True] * 3
    accepts = world.messages(ACCEPT)
    assert fetched(world) == b""
    assert world.messages(ACCEPT) == accepts, "it has been written once"


@pytest.mark.parametrize("ahead_ms", [0, lead_ms_max - 100])
def test_an_eventual_write_is_later_than_what_was_read_before_it(ahead_ms: int) -> None:
    """Also if another replicator has stamped that, and no cell has learned it yet."""
    world = World(replicators=2)
    world.replicators[1].clock.skew_ms = ahead_ms
    world.pass_time(2.0)
    for node in world.nodes.values():
        node.ignore(LEARN)
    strong_put = world.change(key, Put(b"read"), by=1)
    world.pass_time(0.01)
    assert fetched(world)[:version_bytes] == strong_put.version
    assert world.messages(PREPARE) == 2, "the read was fast"
    eventual_put = world.put(key, b"written after it was read")
    world.pass_time(0.01)
    assert eventual_put.version > strong_put.version
    assert value(fetched(world)) == b"written after it was read"


def test_a_read_of_what_is_too_far_ahead_to_be_followed_is_answered() -> None:
    world = World(replicators=2)
    version = stored(world)
    world.replicator.clock.skew_ms = -lead_ms_max - 1_000
    assert fetched(world)[:version_bytes] == version


def test_a_reader_that_is_slow_costs_a_read_the_time_of_a_hedge(world: World) -> None:
    version = stored(world)
    world.owners(key)[0].ignore(READ)
    asked = world.fetch(key)
    world.pass_time(hedge_s + 2 * sweep_s)
    assert asked.body[:version_bytes] == version
    assert world.owners(key)[2].asked[READ] == 1


def test_a_third_reader_that_disagrees_after_the_answer_does_no_harm(world: World) -> None:
    """It is heard when the read is over; the key's queue must not be left with it."""
    version = stored(world)
    first, _, third = world.owners(key)
    slow: list[tuple[object, int, bytes]] = []
    first.instead[READ] = lambda peer, request_id, body: slow.append((peer, request_id, body))
    third.disk.freeze()
    asked = world.fetch(key)
    world.pass_time(hedge_s + 2 * sweep_s)
    assert asked.body[:version_bytes] == version
    first.obey()
    for peer, request_id, _ in slow:
        # As if it had accepted something else meanwhile.
        peer.reply(request_id, OK, bytes(36) + b"\0\0\0\0")  # type: ignore[attr-defined]
    third.disk.thaw()
    world.pass_time()
    assert world.replicator.strong.under_way == 0
    assert world.change(key, Put(b"next")).answers == []
    world.pass_time()
    assert value(fetched(world)) == b"next"


def test_a_replica_that_is_behind_what_a_read_found_is_told_to_learn(world: World) -> None:
    for node in world.nodes.values():
        node.ignore(LEARN)
    stored(world)
    assert world.held(key) == [None] * 3
    for node in world.nodes.values():
        node.obey()
    fetched(world)
    world.pass_time()
    assert world.replicator.counters.read_repairs == 2
    assert [record is not None for record in world.held(key)].count(True) == 2


# Changing.


def test_a_change_takes_two_round_trips_and_every_cell_learns_it(world: World) -> None:
    version = stored(world, b"hello")
    assert (world.messages(PREPARE), world.messages(ACCEPT)) == (2, 3)
    assert world.held(key) == [version + value_body(b"hello")] * 3
    assert all(node.acceptor.unlearned == 0 for node in world.nodes.values())


def test_a_change_is_durable_on_a_majority_when_it_is_told(world: World) -> None:
    first, second, third = world.owners(key)
    for node in (second, third):
        node.disk.freeze()
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.5)
    assert not asked.answered
    second.disk.thaw()
    world.pass_time(0.2)
    assert asked.kind == CHANGED
    for node in (first, second):
        node.crash()
        node.begin()
        assert accepted(node) == asked.version


def test_each_change_is_stamped_later_than_the_one_before(world: World) -> None:
    versions = [stored(world, b"%d" % number) for number in range(5)]
    assert versions == sorted(set(versions))


def test_conditions_see_what_was_chosen(world: World) -> None:
    absent = Condition(present=False)
    first = world.change(key, Put(b"one", condition=absent))
    world.pass_time()
    second = world.change(key, Put(b"two", condition=absent))
    world.pass_time()
    assert second.answers == [(PRECONDITION_FAILED, first.version)]
    third = world.change(key, Put(b"three", condition=Condition((first.version,))))
    world.pass_time()
    assert third.version > first.version
    fourth = world.change(key, Delete(Condition((first.version,))))
    world.pass_time()
    assert fourth.answers == [(PRECONDITION_FAILED, third.version)]
    assert value(fetched(world)) == b"three"


def test_a_change_of_what_is_not_there_tells_so(world: World) -> None:
    asked = world.change(key, Expire(0))
    world.pass_time()
    assert asked.kind == ABSENT
    world.change(key, Put(b"text"))
    asked = world.change(key, Increment(1))
    world.pass_time()
    assert asked.kind == NOT_AN_INTEGER


def test_increments_of_three_replicators_at_once_count_once_each() -> None:
    world = World(replicators=3)
    asked = [world.change(key, Increment(1), by=number % 3) for number in range(60)]
    world.pass_time(operation_s + 0.1)
    sums = [decode_changed(one.body).value for one in asked if one.kind == CHANGED]
    unknown = sum(one.kind == UNKNOWN for one in asked)
    assert len(sums) + unknown == 60
    assert len(sums) >= 20, "rivals get through all the same"
    assert len(set(sums)) == len(sums), "two were told the same sum"
    total = int(value(fetched(world)))
    assert max(number or 0 for number in sums) <= total
    assert len(sums) <= total <= len(sums) + unknown


def test_a_higher_promise_elsewhere_has_it_begin_again_above_that(world: World) -> None:
    other = world.version(ahead_ms=200)
    for node in world.owners(key)[:2]:
        node.answer(PREPARE, NACK, other)
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.001)
    for node in world.nodes.values():
        node.obey()
    world.pass_time()
    assert asked.version > other
    assert world.replicator.counters.rounds_again >= 1


def test_a_promise_too_far_ahead_is_refused_naming_the_clocks(world: World) -> None:
    other = world.version(ahead_ms=lead_ms_max + 60_000)
    for node in world.owners(key):
        node.answer(PREPARE, NACK, other)
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.02)
    assert refusal(asked)[0] == "clock_skew"


def test_a_write_from_the_future_makes_the_next_change_later_still(world: World) -> None:
    newer = world.version(ahead_ms=400) + value_body(b"newer")
    for node in world.owners(key):
        world.plant(node, key, newer)
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.2)
    assert asked.version > newer[:version_bytes]


# Refused, or unknown.


def test_with_two_of_three_down_an_operation_is_refused_at_once(world: World) -> None:
    first, second, _ = world.owners(key)
    first.crash()
    second.crash()
    world.pass_time(0.2)
    for asked in (world.change(key, Put(b"x")), world.fetch(key)):
        code, text = refusal(asked)
        assert code == "no_quorum"
        assert first.node_id in text
        assert second.node_id in text
    assert world.messages(ACCEPT) == 0
    assert world.replicator.counters.refusals == 2


def test_with_one_of_three_down_operations_go_on_and_hints_bring_what_it_misses(
    world: World,
) -> None:
    down = world.owners(key)[0]
    down.crash()
    world.pass_time(0.2)
    version = stored(world, b"x")
    assert fetched(world)[:version_bytes] == version
    assert (down.node_id, key, version + value_body(b"x")) in world.replicator.hints.kept


@pytest.mark.parametrize(
    ("kind", "code"),
    [(STORAGE_FULL, "storage_full"), (OVERLOADED, "overloaded"), (NOT_READY, "overloaded")],
)
def test_when_a_majority_will_not_promise_nothing_was_done(
    world: World, kind: int, code: str
) -> None:
    for node in world.owners(key)[1:]:
        node.answer(PREPARE, kind)
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.02)
    assert refusal(asked)[0] == code
    assert world.messages(ACCEPT) == 0


def test_when_nobody_promises_in_time_nothing_was_done(world: World) -> None:
    for node in world.nodes.values():
        node.ignore(PREPARE)
    asked = world.change(key, Put(b"x"))
    world.pass_time(operation_s + 2 * sweep_s)
    assert refusal(asked)[0] == "no_quorum"


def test_a_promise_after_the_refusal_leads_to_nothing(world: World) -> None:
    """The operation began a round shortly before its end, and the promises come after it."""
    for node in world.nodes.values():
        node.disk.freeze()
    asked = world.change(key, Put(b"x"))
    world.pass_time(operation_s - 0.05)
    # From now on the answers travel for longer than the operation has.
    world.weather.delay_s_min = world.weather.delay_s_max = 0.1
    for node in world.nodes.values():
        node.disk.thaw()
    world.pass_time(1.0)
    assert refusal(asked)[0] == "no_quorum"
    assert world.messages(ACCEPT) == 0
    assert world.held(key) == [None] * 3


@pytest.mark.parametrize("kind", [FAILED, TIMEOUT, STORAGE_FULL, OVERLOADED])
def test_once_an_accept_has_left_there_is_no_definite_failure(world: World, kind: int) -> None:
    for node in world.nodes.values():
        node.answer(ACCEPT, kind)
    asked = world.change(key, Put(b"x"))
    world.pass_time(operation_s + 2 * sweep_s)
    assert asked.kind == UNKNOWN
    operation, text = decode_unknown(asked.body)
    assert version_ms(operation) > 0
    assert "node-" in text
    assert world.replicator.counters.unknown_outcomes == 1


def test_a_change_whose_accepts_were_answered_by_nobody_is_made_by_the_next_round(
    world: World,
) -> None:
    first, second, third = world.owners(key)
    second.answer(ACCEPT, FAILED)
    third.answer(ACCEPT, FAILED)
    asked = world.change(key, Increment(1))
    world.pass_until(lambda: accepted(first) > bytes(12))
    second.obey()
    third.obey()
    world.pass_time(0.5)
    assert asked.kind == CHANGED
    assert value(fetched(world)) == b"1", "it was made once"


def test_what_is_unknown_is_told_by_the_id_of_its_own_operation(world: World) -> None:
    """Also if the last rounds have only repeated what was there, as of a value that has expired
    meanwhile and cannot be changed any more."""
    ids: set[Version] = set()

    def fail(peer: Peer, request_id: int, body: bytes) -> None:
        ids.add(decode_accept(body)[1])
        peer.reply(request_id, FAILED, b"")

    asked = Asked()
    world.replicator.writes.write(
        key, value_body(b"x", world.replicator.clock.wall_ms() + 1_000), asked
    )
    world.pass_time()
    for node in world.nodes.values():
        node.instead[ACCEPT] = fail
    changed = world.change(key, Put(b"y", condition=Condition(present=True)))
    world.pass_time(0.1)
    (own,) = ids
    world.pass_time(operation_s + 0.2)
    assert ids == {own, no_operation}, "the last rounds were not its own any more"
    assert changed.kind == UNKNOWN
    assert decode_unknown(changed.body)[0] == own


def test_a_change_that_another_one_may_have_replaced_is_unknown() -> None:
    world = World(replicators=2)
    first, second, third = world.owners(key)
    for node in (second, third):
        node.answer(ACCEPT, FAILED)
    asked = world.change(key, Increment(1))
    world.pass_until(lambda: accepted(first) > bytes(12))
    for node in (second, third):
        node.obey()
    first.crash()
    other = world.change(key, Increment(10), by=1)
    world.pass_time(operation_s + 0.2)
    assert other.kind == CHANGED
    assert asked.kind in (UNKNOWN, CHANGED)
    total = int(value(fetched(world, by=1)))
    assert total == (11 if asked.kind == CHANGED else total)
    assert total in (10, 11)


def test_a_replica_that_refuses_the_accept_learns_all_the_same(world: World) -> None:
    third = world.owners(key)[2]
    third.answer(ACCEPT, NACK, world.version(ahead_ms=100))
    version = stored(world, b"x")
    world.pass_time()
    assert third.holds(key) == version + value_body(b"x")


def test_a_replica_that_cannot_accept_gets_a_hint(world: World) -> None:
    third = world.owners(key)[2]
    third.answer(ACCEPT, STORAGE_FULL)
    version = stored(world, b"x")
    assert world.replicator.hints.kept == [(third.node_id, key, version + value_body(b"x"))]


def test_late_failures_of_what_was_chosen_become_hints(world: World) -> None:
    third = world.owners(key)[2]
    third.ignore(ACCEPT)
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.1)
    assert asked.kind == CHANGED
    assert world.replicator.hints.kept == []
    world.pass_time(operation_s + 0.2)
    assert [hint[0] for hint in world.replicator.hints.kept] == [third.node_id]


def test_full_nodes_absorb_what_the_one_that_has_it_shows_to_a_read(world: World) -> None:
    first, *others = world.owners(key)
    record = world.version() + value_body(b"eventual")
    world.plant(first, key, record)
    for node in others:
        node.replica.full = "memory: it is used up"
    assert fetched(world) == record


def test_a_full_node_refuses_what_grows_and_allows_reads_and_deletes(world: World) -> None:
    eventual = world.put(key, b"eventual")
    world.pass_time()
    for node in world.nodes.values():
        node.replica.full = "memory: it is used up"
    assert fetched(world)[:version_bytes] == eventual.version, "what is absorbed takes no room"
    for change in (Put(b"x"), Expire(0)):
        asked = world.change(key, change)
        world.pass_time()
        assert refusal(asked)[0] == "storage_full"
    asked = world.change(key, Delete(), grows=False)
    world.pass_time()
    assert asked.kind == CHANGED


def test_many_that_are_late_at_once_are_told_so_by_and_by(world: World) -> None:
    for node in world.nodes.values():
        node.answer(PREPARE, NACK, version_zero)
    told: list[float] = []
    many = 3 * ended_in_a_turn
    for number in range(many):
        world.replicator.strong.change(
            key_of(number), Put(b"x"), lambda kind, body: told.append(world.timeline.now_s)
        )
    world.pass_until(lambda: bool(told))
    assert len(told) == ended_in_a_turn
    world.pass_time(sweep_s)
    assert len(told) == many
    assert world.replicator.strong.under_way == 0


# Epochs.


def test_another_epoch_discards_the_round_and_begins_again(world: World) -> None:
    node = world.owners(key)[1]
    node.answer(PREPARE, WRONG_EPOCH, u64.pack(3))
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.01)
    node.obey()
    world.pass_time(0.1)
    assert asked.kind == CHANGED
    assert world.replicator.epochs.told == [3]
    assert world.replicator.counters.wrong_epoch == 1


@pytest.mark.parametrize("body", [b"", b"?", bytes(9)])
def test_an_epoch_that_makes_no_sense_is_a_reason_to_begin_again_too(
    world: World, body: bytes
) -> None:
    node = world.owners(key)[1]
    node.answer(PREPARE, WRONG_EPOCH, body)
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.01)
    node.obey()
    world.pass_time(0.1)
    assert asked.kind == CHANGED


def test_while_there_is_no_newer_map_it_is_asked_less_and_less_often(world: World) -> None:
    for node in world.nodes.values():
        node.answer(PREPARE, WRONG_EPOCH, u64.pack(3))
    asked = world.change(key, Put(b"x"))
    world.pass_time(operation_s + 0.2)
    assert refusal(asked)[0] == "no_quorum"
    assert 10 < world.messages(PREPARE) < 100


def test_a_read_in_another_epoch_goes_on_as_well(world: World) -> None:
    version = stored(world)
    node = world.owners(key)[1]
    node.answer(READ, WRONG_EPOCH, u64.pack(3))
    asked = world.fetch(key)
    world.pass_time(0.2)
    assert asked.body[:version_bytes] == version


# One at a time.


def test_operations_on_a_key_are_put_through_in_the_order_in_which_they_came(
    world: World,
) -> None:
    order: list[int] = []

    def put(number: int) -> None:
        def done(kind: int, body: bytes) -> None:
            assert kind == CHANGED
            order.append(number)

        world.replicator.strong.change(key, Put(b"%d" % number), done)

    for number in range(20):
        put(number)
    world.pass_time(1.0)
    assert order == list(range(20))
    assert value(fetched(world)) == b"19"
    assert world.replicator.counters.rounds_again == 0, "nobody stood in anybody's way"


def test_operations_on_other_keys_do_not_wait(world: World) -> None:
    waiting = [world.change(key, Put(b"x")) for _ in range(50)]
    other = world.change(key_of(2), Put(b"y"))
    world.pass_time(0.01)
    assert other.kind == CHANGED
    assert not waiting[-1].answered


def test_the_queue_of_a_key_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_turns, "waiting_for_key_max", 5)
    asked = [world.change(key, Put(b"x")) for _ in range(10)]
    assert [one.answered for one in asked] == [False] * 6 + [True] * 4
    assert {refusal(one)[0] for one in asked[6:]} == {"overloaded"}
    world.pass_time(1.0)
    assert {one.kind for one in asked[:6]} == {CHANGED}


def test_all_operations_together_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strong, "waiting_max", 5)
    asked = [world.fetch(key_of(number)) for number in range(8)]
    assert [one.answered for one in asked] == [False] * 5 + [True] * 3
    assert refusal(asked[-1])[0] == "overloaded"
    world.pass_time()
    assert world.replicator.strong.under_way == 0
    assert fetched(world) == b""


def test_who_waits_too_long_for_a_key_is_refused_and_the_rest_go_on(world: World) -> None:
    for node in world.nodes.values():
        node.ignore(PREPARE)
    asked = [world.change(key, Put(b"x")) for _ in range(5)]
    world.pass_time(operation_s + 2 * sweep_s)
    assert refusal(asked[0])[0] == "no_quorum"
    assert {refusal(one)[0] for one in asked[1:]} == {"overloaded"}
    for node in world.nodes.values():
        node.obey()
    assert not world.change(key, Put(b"later")).answered
    world.pass_time()
    assert value(fetched(world)) == b"later"


def test_a_thousand_that_are_refused_at_once_are_no_problem(world: World) -> None:
    asked = [world.change(key, Put(b"x")) for _ in range(1_000)]
    for node in world.nodes.values():
        node.crash()
    world.pass_time(0.2)
    assert all(one.answered for one in asked)
    assert {one.kind for one in asked} <= {REFUSED, UNKNOWN, CHANGED}
    assert world.replicator.strong.under_way == 0


@pytest.mark.parametrize("keys", [1, 30])
def test_without_a_quorum_those_who_wait_for_keys_are_refused_by_and_by_and_in_order(
    world: World, keys: int
) -> None:
    for node in world.nodes.values():
        node.ignore(PREPARE)
    told: dict[int, list[int]] = {number: [] for number in range(keys)}
    each = 5 * ended_in_a_turn // keys
    again: list[Asked] = []

    def done(number: int, of: int, kind: int, body: bytes) -> None:
        assert kind == REFUSED
        told[number].append(of)
        if of == each // 2:
            # Whoever asks again in the midst of it comes last.
            again.append(world.change(key_of(number), Increment(1)))

    for of in range(each):
        for number in range(keys):
            world.replicator.strong.change(key_of(number), Increment(1), partial(done, number, of))
    for node in world.nodes.values():
        node.crash()
    most = before = 0
    while not (len(again) == keys and all(one.answered for one in again)):
        assert world.timeline.step()
        count = sum(map(len, told.values()))
        most, before = max(most, count - before), count
    # In the turn of a lost link those at the heads and one behind each of them.
    assert most <= max(ended_in_a_turn + keys, 2 * told_in_a_turn)
    assert all(told[number] == list(range(each)) for number in range(keys))
    assert world.replicator.strong.under_way == 0
    for node in world.nodes.values():
        node.begin()
        node.obey()
    world.pass_time(3.0)
    asked = [world.change(key_of(number), Increment(1)) for number in range(keys)]
    world.pass_time()
    assert {one.kind for one in asked} == {CHANGED}


def test_those_who_are_too_late_in_the_queue_of_a_key_are_told_so_by_and_by(world: World) -> None:
    for node in world.nodes.values():
        node.ignore(PREPARE)
    many = 4 * ended_in_a_turn
    asked = [world.change(key, Increment(1)) for _ in range(many)]
    most = before = 0
    while before < many:
        assert world.timeline.step()
        count = sum(one.answered for one in asked)
        most, before = max(most, count - before), count
    assert most <= 2 * ended_in_a_turn, "some by the sweep, some by the one at the head"
    assert world.replicator.strong.under_way == 0


def test_a_queued_operation_is_left_alone_by_the_sweep(world: World) -> None:
    """It has asked nobody yet; long ones ahead of it have hedges of their own."""
    world.owners(key)[0].ignore(PREPARE)
    asked = [world.change(key, Put(b"%d" % number)) for number in range(3)]
    asked.append(world.fetch(key))
    world.pass_time(1.0)
    assert [one.kind for one in asked] == [CHANGED] * 3 + [OK]


# What died in the middle.


def test_what_a_dead_coordinator_left_accepted_is_finished_by_another() -> None:
    world = World(replicators=2)
    for node in world.nodes.values():
        node.ignore(LEARN)
    asked = [world.change(key_of(number), Put(b"x")) for number in range(40)]
    world.pass_time(0.2)
    assert all(one.kind == CHANGED for one in asked)
    world.network.crash(world.replicator.name)
    world.replicator.clock.stop()
    for node in world.nodes.values():
        node.obey()
    assert world.held(key_of(7)) == [None] * 3
    other = world.replicators[1]
    sweeper = Sweeper(other.fleet, other.strong, other.clock, other.draw)
    sweeper.start()
    world.pass_time(age_ms / 1000 + 3)
    for number, one in enumerate(asked):
        assert world.held(key_of(number)) == [one.version + value_body(b"x")] * 3
    assert sweeper.finished == 40
    assert all(node.acceptor.unlearned == 0 for node in world.nodes.values())
    sweeper.stop()


def test_two_replicators_that_finish_the_same_do_no_harm() -> None:
    world = World(replicators=3)
    for node in world.nodes.values():
        node.ignore(LEARN)
    asked = [world.change(key_of(number), Increment(5), by=2) for number in range(30)]
    world.pass_time(0.2)
    for node in world.nodes.values():
        node.obey()
    sweepers = [
        Sweeper(other.fleet, other.strong, other.clock, other.draw)
        for other in world.replicators[:2]
    ]
    for sweeper in sweepers:
        sweeper.start()
    world.pass_time(age_ms / 1000 + 5)
    for number, one in enumerate(asked):
        assert world.held(key_of(number)) == [one.version + value_body(b"5")] * 3
    for sweeper in sweepers:
        sweeper.stop()


def test_without_a_quorum_what_is_left_is_asked_for_again_and_again_but_not_more(
    world: World,
) -> None:
    for node in world.nodes.values():
        node.ignore(LEARN)
    for number in range(40):
        world.change(key_of(number), Put(b"x"))
    world.pass_time(0.2)
    first, second, _ = world.owners(key)
    first.crash()
    second.crash()
    replicator = world.replicator
    sweeper = Sweeper(replicator.fleet, replicator.strong, replicator.clock, replicator.draw)
    sweeper.start()
    world.pass_time(10.0)
    assert sweeper.finished == 0
    assert 40 <= sweeper.unfinished <= 400
    for node in world.nodes.values():
        node.obey()
    first.begin()
    second.begin()
    world.pass_time(15.0)
    assert sweeper.finished >= 40
    assert all(node.acceptor.unlearned == 0 for node in world.nodes.values())
    sweeper.stop()
    world.pass_time(5.0)


def test_nothing_is_left_behind_in_bad_weather() -> None:
    world = World(replicators=2)
    weather = world.weather
    weather.loss, weather.duplicate, weather.reorder = 0.1, 0.1, 0.2
    asked: list[Asked] = []
    for number in range(150):
        asked.append(world.change(key_of(number % 3), Increment(1), by=number % 2))
        asked.append(world.fetch(key_of(number % 3), by=number % 2))
        world.pass_time(0.02)
    weather.loss = weather.duplicate = weather.reorder = 0.0
    world.pass_time(2 * operation_s)
    assert all(one.answered for one in asked)
    made = sum(one.kind == CHANGED for one in asked)
    unknown = sum(one.kind == UNKNOWN for one in asked)
    total = 0
    for number in range(3):
        one = world.fetch(key_of(number))
        world.pass_time(0.5)
        total += int(value(one.body))
    assert made <= total <= made + unknown
    for replicator in world.replicators:
        assert replicator.strong.under_way == 0


# Settled by all.


def settled(world: World, by: int = 0) -> Chosen | None:
    told: list[Chosen | None] = []
    world.replicators[by].strong.settle(key, told.append)
    world.pass_until(lambda: bool(told))
    world.pass_time(0.05)
    assert len(told) == 1
    return told[0]


def test_what_is_settled_is_accepted_by_all_at_the_ballot_that_is_told(world: World) -> None:
    version = stored(world)
    chosen = settled(world)
    assert chosen is not None
    assert chosen.record == version + value_body(b"value")
    assert chosen.epoch == world.map.epoch
    assert [accepted(node) for node in world.owners(key)] == [chosen.ballot] * 3
    assert chosen.ballot > version


def test_nothing_can_be_settled_too(world: World) -> None:
    chosen = settled(world)
    assert chosen is not None
    assert chosen.record == b""
    assert [accepted(node) for node in world.owners(key)] == [chosen.ballot] * 3


def test_settling_absorbs_a_newer_cell_and_ends_an_expired_value(world: World) -> None:
    stored(world)
    newer = world.version() + value_body(b"newer", world.replicator.clock.wall_ms() + 500)
    world.plant(world.owners(key)[0], key, newer)
    for ended in (False, True):
        chosen = settled(world)
        assert chosen is not None
        if ended:
            assert is_tombstone(chosen.record)
            assert chosen.record[:version_bytes] == chosen.ballot
        else:
            assert chosen.record == newer
        world.pass_time(0.5)
        assert world.held(key) == [chosen.record] * 3, "and all have learned it"


def test_nothing_is_settled_while_one_replica_does_not_accept(world: World) -> None:
    stored(world)
    world.owners(key)[2].answer(ACCEPT, STORAGE_FULL)
    assert settled(world) is None
    world.owners(key)[2].ignore(ACCEPT)
    assert settled(world) is None
    world.owners(key)[2].obey()
    assert settled(world) is not None
    assert world.replicator.counters.unknown_outcomes == 0


def test_a_replica_that_has_promised_a_rival_accepts_a_later_ballot(world: World) -> None:
    stored(world)
    late = world.owners(key)[2]
    late.replica.promises.put(
        slot_of(key),
        key,
        late.replica.promises.get(slot_of(key), key)._replace(promised=world.version(200)),
    )
    chosen = settled(world)
    assert chosen is not None
    assert chosen.ballot > world.version()
    assert accepted(late) == chosen.ballot


def test_settling_waits_its_turn_behind_a_change_of_the_key(world: World) -> None:
    asked = world.change(key, Put(b"before"))
    chosen = settled(world)
    assert chosen is not None
    assert chosen.record[:version_bytes] == asked.version


def test_what_is_proposed_in_a_slot_is_known_while_it_lasts(world: World) -> None:
    strong = world.replicator.strong
    assert not strong.is_proposing(slot_of(key))
    world.change(key, Put(b"x"))
    world.fetch(key_of(2))
    assert strong.is_proposing(slot_of(key))
    assert not strong.is_proposing(slot_of(key_of(2))), "a read in one round trip proposes nothing"
    world.pass_time()
    assert not strong.is_proposing(slot_of(key))


def test_nothing_is_said_to_be_proposed_any_more_however_it_ended(world: World) -> None:
    replicator, slot = world.replicator.strong, slot_of(key)
    stored(world)
    for node in world.owners(key):
        node.ignore(ACCEPT)
    ends = [world.change(key, Put(b"%d" % number)) for number in range(3)]
    ends.append(world.fetch(key))
    assert settled(world) is None
    world.pass_time(operation_s + 0.1)
    assert {UNKNOWN, CHANGED} & {asked.kind for asked in ends} == {UNKNOWN}
    assert not replicator.is_proposing(slot)
    for node in world.owners(key)[:2]:
        node.answer(PREPARE, NOT_READY)
    refused = world.change(key, Put(b"refused"))
    assert replicator.is_proposing(slot)
    world.pass_time(operation_s + 0.1)
    assert refused.answered
    assert not replicator.is_proposing(slot)
