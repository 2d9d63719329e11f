"""Eventual writes: who must have one before anybody is told, and what is told when few have it."""

from __future__ import annotations

import msgspec
import pytest

from services.core.cluster import Member
from services.core.hlc import lead_ms_max, version_bytes
from services.core.messages import (
    BELOW_FLOOR,
    MALFORMED,
    NEWER,
    NOT_READY,
    STORAGE_FULL,
    WRITE,
    WRITE_MANY,
    WRONG_EPOCH,
    encode_statuses,
    items_max,
    many_bytes_max,
    u64,
)
from services.core.operations import (
    CHANGED,
    REFUSED,
    UNKNOWN,
    decode_changed,
    decode_refused,
    decode_unknown,
)
from services.core.record import value, value_body
from services.core.wire import FAILED, OK, OVERLOADED
from services.replicator import retries
from services.replicator.eventual import (
    awaited_s,
    begun_in_a_turn,
    ended_in_a_turn,
    operation_s,
    sweep_s,
    writes_unheard_max,
)
from services.replicator.retries import retry_s
from services.runtime.peer import Peer
from tests.integration.link_ends import log_lines
from tests.unit.replicator_world import Asked, Node, World, key_of, prefix

key = key_of(1)
retries_s = sum(retry_s) + 0.1
# A node is known to be silent, and its link to be dead.
noticed_s = 3.0


@pytest.fixture
def world() -> World:
    return World()


def refusal(asked: Asked) -> tuple[str, str]:
    assert asked.kind == REFUSED, asked.answers
    return decode_refused(asked.body)


def slow(node: Node) -> None:
    """Its disk takes no writes for a while, and the node lives."""
    node.disk.freeze()


# Who is waited for.


def test_a_write_reaches_every_replica_under_one_version(world: World) -> None:
    asked = world.put(key, b"hello")
    world.pass_time()
    record = asked.version + value_body(b"hello")
    assert world.held(key) == [record] * 3
    counters = world.replicator.counters
    assert (counters.total_replications, counters.successful_replicas) == (1, 3)
    assert (world.replicator.fleet.pending, counters.failed_replicas) == (0, 0)
    assert sum(counters.acks.buckets) == 1
    assert sum(counters.lags.buckets) == 1


def test_the_answer_names_the_version_and_the_expiry(world: World) -> None:
    asked = Asked()
    expires_at_ms = world.replicator.clock.wall_ms() + 60_000
    world.replicator.writes.write(key, value_body(b"x", expires_at_ms), asked)
    world.pass_time()
    assert decode_changed(asked.body).expires_at_ms == expires_at_ms
    assert decode_changed(asked.body).version == asked.version


def test_a_copy_that_is_not_durable_acknowledges_nothing(world: World) -> None:
    for node in world.owners(key):
        slow(node)
    asked = world.put(key)
    world.pass_time(awaited_s)
    assert not asked.answered
    world.owners(key)[0].disk.thaw()
    world.pass_time(0.05)
    assert asked.kind == CHANGED


def test_it_is_the_first_owner_that_is_waited_for(world: World) -> None:
    first, *_ = world.owners(key)
    slow(first)
    asked = world.put(key)
    world.pass_time(awaited_s - 0.01)
    assert not asked.answered, "others have acknowledged, and the next read asks the first"
    first.disk.thaw()
    world.pass_time(0.02)
    assert asked.kind == CHANGED


def test_others_will_do_once_the_first_takes_too_long(world: World) -> None:
    slow(world.owners(key)[0])
    asked = world.put(key)
    world.pass_time(awaited_s + 2 * sweep_s)
    assert asked.kind == CHANGED


def test_the_others_need_not_have_it_when_the_first_does(world: World) -> None:
    for node in world.owners(key)[1:]:
        slow(node)
    asked = world.put(key)
    world.pass_time(0.05)
    assert asked.kind == CHANGED
    assert sum(world.replicator.counters.lags.buckets) == 0
    assert world.replicator.fleet.pending == 2


def test_when_the_first_dies_over_a_write_the_next_one_counts(world: World) -> None:
    first, *_ = world.owners(key)
    slow(first)
    asked = world.put(key)
    world.pass_time(0.01)
    first.crash()
    world.pass_time(0.05)
    assert asked.kind == CHANGED
    assert [hint[:2] for hint in world.replicator.hints.kept] == [(first.node_id, key)]


def test_a_first_owner_that_is_silent_is_asked_last_and_not_waited_for(world: World) -> None:
    first, second, _ = world.owners(key)
    world.network.block(first.node_id, world.replicator.name)
    world.pass_time(1.2)
    slow(second)
    asked = world.put(key)
    world.pass_time(0.05)
    assert not asked.answered
    second.disk.thaw()
    world.pass_time(0.05)
    assert asked.kind == CHANGED


def test_an_owner_that_catches_up_is_not_the_one_waited_for(world: World) -> None:
    first, *others = world.owners(key)
    world.replicator.fleet.catching_up(first.node_id, catching_up=True)
    for node in others:
        slow(node)
    asked = world.put(key)
    world.pass_time(0.1)
    assert not asked.answered
    others[0].disk.thaw()
    world.pass_time(0.05)
    assert asked.kind == CHANGED


# Stamped again.


def test_a_newer_record_has_the_write_stamped_again_above_it(world: World) -> None:
    newer = world.version(ahead_ms=100) + value_body(b"newer")
    world.plant(world.owners(key)[0], key, newer)
    asked = world.put(key, b"mine")
    world.pass_time()
    assert asked.version > newer[:12]
    assert [value(record or b"") for record in world.held(key)] == [b"mine"] * 3
    assert world.replicator.counters.restamped == 1


def test_a_write_is_stamped_again_once_and_then_counts_as_overtaken(world: World) -> None:
    node, *_ = world.owners(key)
    node.answer(WRITE, NEWER, world.version(ahead_ms=400))
    asked = world.put(key)
    world.pass_time()
    assert asked.kind == CHANGED
    assert node.asked[WRITE] == 2
    assert world.replicator.counters.restamped == 1


def test_a_floor_has_the_write_stamped_again_and_a_second_one_is_a_failure(world: World) -> None:
    for node in world.owners(key):
        node.answer(WRITE, BELOW_FLOOR, world.version(ahead_ms=10))
    asked = world.put(key)
    world.pass_time()
    assert world.replicator.counters.restamped == 1
    assert refusal(asked)[0] == "overloaded"


def test_after_the_answer_nothing_is_stamped_again(world: World) -> None:
    _, second, third = world.owners(key)
    newer = world.version(ahead_ms=100)
    slow(third)
    second.instead[WRITE] = lambda peer, request_id, _: _later(
        world, 0.08, lambda: peer.reply(request_id, NEWER, newer)
    )
    asked = world.put(key)
    world.pass_time(0.05)
    version = asked.version
    world.pass_time(0.1)
    assert world.replicator.counters.restamped == 0
    assert (world.held(key)[0] or b"")[:12] == version
    assert world.replicator.stamps.tick() > newer, "but the clock follows"


def _later(world: World, delay_s: float, callback: object) -> None:
    assert callable(callback)
    world.timeline.schedule(delay_s, callback)


def test_only_acknowledgements_of_the_last_stamp_count(world: World) -> None:
    """The first owner took the first stamp. It must have the second before anybody is told."""
    first, second, third = world.owners(key)
    newer = world.version(ahead_ms=50) + value_body(b"newer")
    world.plant(third, key, newer)
    slow(second)
    asked = world.put(key, b"mine")
    # The first stamp is on its way to all; the first owner is slow from then on.
    world.pass_time(0.000_9)
    slow(first)
    world.pass_time(0.1)
    assert world.replicator.counters.restamped == 1
    assert not asked.answered
    first.disk.thaw()
    world.pass_time(0.1)
    assert asked.version > newer[:12]


def test_a_version_from_too_far_ahead_is_refused_naming_the_clocks(world: World) -> None:
    for node in world.owners(key):
        node.answer(WRITE, NEWER, world.version(ahead_ms=lead_ms_max + 60_000))
    asked = world.put(key)
    world.pass_time()
    code, text = refusal(asked)
    assert code == "clock_skew"
    assert "ahead" in text


def test_a_write_that_yields_leaves_what_is_newer_and_is_made(world: World) -> None:
    newer = world.version(ahead_ms=100) + value_body(b"newer")
    for node in world.owners(key):
        world.plant(node, key, newer)
    asked = Asked()
    world.replicator.writes.write(key, value_body(b"older"), asked, yields=True)
    world.pass_time()
    assert asked.kind == CHANGED
    assert world.held(key) == [newer] * 3
    assert world.replicator.counters.restamped == 0


# Refused, or unknown.


def test_with_no_replica_to_be_reached_a_write_is_refused_at_once(world: World) -> None:
    for node in world.nodes.values():
        node.crash()
    world.pass_time(0.2)
    asked = world.put(key)
    assert refusal(asked)[0] == "no_quorum"
    assert all(node_id in refusal(asked)[1] for node_id in world.nodes)
    assert world.replicator.hints.kept == []


def test_when_nobody_answers_the_outcome_is_unknown_and_has_an_id(world: World) -> None:
    for node in world.nodes.values():
        node.ignore(WRITE)
    asked = world.put(key)
    world.pass_time(operation_s - 0.1)
    assert not asked.answered
    world.pass_time(0.3)
    assert asked.kind == UNKNOWN
    assert decode_unknown(asked.body)[0] > bytes(12)
    assert world.replicator.counters.unknown_outcomes == 1


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (STORAGE_FULL, "storage_full"),
        (OVERLOADED, "overloaded"),
        (NOT_READY, "overloaded"),
        (MALFORMED, "no_quorum"),
    ],
)
def test_when_all_refuse_nothing_was_done_and_the_cause_is_told(
    world: World, kind: int, code: str
) -> None:
    for node in world.nodes.values():
        node.answer(WRITE, kind)
    asked = world.put(key)
    world.pass_time(0.02)
    assert refusal(asked)[0] == code


@pytest.mark.parametrize("answer", [(MALFORMED, b"what?"), (99, b"")])
def test_a_node_that_does_not_understand_is_in_the_log_though_others_make_up_for_it(
    world: World, answer: tuple[int, bytes]
) -> None:
    first = world.owners(key)[0]
    first.answer(WRITE, *answer)
    with log_lines() as lines:
        asked = world.put(key)
        world.pass_time(0.02)
        wrong = [line for line in lines if line["level"] == "error"]
    assert asked.version
    assert {(line["node"], line["kind"]) for line in wrong} == {(first.node_id, answer[0])}


@pytest.mark.parametrize("undecided", [FAILED, None])
def test_one_replica_that_may_have_it_makes_the_outcome_unknown(
    world: World, undecided: int | None
) -> None:
    first, *others = world.owners(key)
    for node in others:
        node.answer(WRITE, STORAGE_FULL)
    if undecided is None:
        slow(first)
    else:
        first.answer(WRITE, undecided)
    asked = world.put(key)
    world.pass_time(0.02)
    if undecided is None:
        first.crash()
        world.pass_time(0.05)
    assert asked.kind == UNKNOWN


def test_a_first_attempt_that_may_have_arrived_is_not_forgotten_by_the_second(
    world: World,
) -> None:
    """One replica may have the first stamp; the second attempt is refused by all for sure."""
    first, second, third = world.owners(key)
    first.answer(WRITE, FAILED)
    second.answer(WRITE, FAILED)
    newer = world.version(ahead_ms=5)
    third.instead[WRITE] = lambda peer, request_id, _: _later(
        world, 0.05, lambda: peer.reply(request_id, NEWER, newer)
    )
    asked = world.put(key)
    world.pass_time(0.03)
    for node in world.nodes.values():
        node.answer(WRITE, STORAGE_FULL)
    world.pass_time(0.1)
    assert world.replicator.counters.restamped == 1
    assert asked.kind == UNKNOWN


def test_a_write_that_cannot_be_stamped_again_is_unknown_if_somebody_has_it(world: World) -> None:
    _, _, third = world.owners(key)
    newer = world.version(ahead_ms=300)
    stamps = world.replicator.stamps
    third.instead[WRITE] = lambda peer, request_id, _: peer.reply(request_id, NEWER, newer)
    asked = world.put(key)
    stamps.seal()
    world.pass_time(0.05)
    assert asked.kind == UNKNOWN
    assert world.held(key)[0] is not None


def test_a_write_that_cannot_be_stamped_is_refused_and_not_sent(world: World) -> None:
    world.replicator.stamps.seal()
    asked = world.put(key)
    assert refusal(asked)[0] == "shutting_down"
    world.pass_time()
    assert world.writes_sent == 0


def test_what_is_heard_after_the_answer_changes_nothing(world: World) -> None:
    for node in world.nodes.values():
        slow(node)
    asked = world.put(key)
    world.pass_time(operation_s + 0.2)
    assert asked.kind == UNKNOWN
    for node in world.nodes.values():
        node.disk.thaw()
    world.pass_time(noticed_s)
    assert len(asked.answers) == 1
    assert world.replicator.fleet.pending == 0


# Epochs.


def test_a_write_of_an_old_epoch_is_sent_again_with_the_next_map(world: World) -> None:
    joint = world.map.begin_change([*world.map.members[:2], _moved(world)])
    newest = joint.finish_change()
    world.replicator.epochs.newest = newest
    node = world.owners(key)[0]
    node.replica.adopt_epoch(newest.epoch)
    world.pass_time(0.05)
    asked = world.put(key)
    world.pass_time(1.0)
    assert asked.kind == CHANGED
    assert world.replicator.epochs.told[0] == newest.epoch
    assert world.replicator.fleet.epoch == newest.epoch
    assert all(record is not None for record in world.held(key))


def _moved(world: World) -> Member:
    """A member at another address."""
    return msgspec.structs.replace(world.map.members[2], http_port=7_777)


def test_while_there_is_no_newer_map_the_write_ends_with_its_time_as_refused(world: World) -> None:
    for node in world.nodes.values():
        node.answer(WRITE, WRONG_EPOCH, u64.pack(3))
        node.answer(WRITE_MANY, WRONG_EPOCH, u64.pack(3))
    asked = world.put(key)
    world.pass_time(operation_s + 0.2)
    code, text = refusal(asked)
    assert code == "overloaded"
    assert "epoch" in text
    # It waits in between, and there is an end to it.
    sent = world.writes_sent
    assert 3 * 5 < sent < 3 * 20, "less and less often"
    world.pass_time(1.0)
    assert world.writes_sent == sent


# Later: retries and hints.


def test_a_replica_that_is_down_gets_a_hint_which_is_durable_before_the_answer(
    world: World,
) -> None:
    down = world.owners(key)[1]
    down.crash()
    world.pass_time(0.1)
    world.replicator.hints.late = True
    asked = world.put(key, b"missed")
    world.pass_time(0.1)
    assert not asked.answered, "the hint is not durable yet"
    world.replicator.hints.keep_late()
    assert asked.kind == CHANGED
    assert world.replicator.hints.kept == [
        (down.node_id, key, asked.version + value_body(b"missed"))
    ]
    assert world.replicator.counters.failed_replicas == 1


def test_a_hint_that_takes_too_long_does_not_hold_a_durable_write_for_ever(world: World) -> None:
    world.owners(key)[1].crash()
    world.pass_time(0.1)
    world.replicator.hints.late = True
    asked = world.put(key)
    world.pass_time(operation_s + 2 * sweep_s)
    assert asked.kind == CHANGED
    world.replicator.hints.keep_late()


def test_with_one_replica_left_a_write_is_made_and_two_hints_are_kept(world: World) -> None:
    first, second, third = world.owners(key)
    first.crash()
    third.crash()
    world.pass_time(0.1)
    asked = world.put(key)
    world.pass_time(0.1)
    assert asked.kind == CHANGED
    assert second.holds(key) is not None
    assert sorted(hint[0] for hint in world.replicator.hints.kept) == sorted(
        (first.node_id, third.node_id)
    )


def test_a_live_replica_that_refuses_is_tried_again_and_takes_it(world: World) -> None:
    third = world.owners(key)[2]
    third.answer(WRITE, OVERLOADED)
    asked = world.put(key)
    world.pass_time(0.02)
    assert asked.kind == CHANGED, "the client does not wait for a retry"
    assert world.replicator.writes.retrying == 1
    assert world.replicator.writes.oldest_s is not None
    third.obey()
    world.pass_time(retry_s[0] + 0.1)
    assert third.holds(key) is not None
    assert world.replicator.writes.retrying == 0
    assert world.replicator.writes.oldest_s is None
    assert world.replicator.hints.kept == []


def test_after_three_retries_the_rest_is_left_to_a_hint(world: World) -> None:
    third = world.owners(key)[2]
    third.answer(WRITE, STORAGE_FULL)
    asked = world.put(key)
    world.pass_time(retries_s)
    assert asked.kind == CHANGED
    assert third.asked[WRITE] == 1 + len(retry_s) == 4
    assert world.replicator.counters.retries == 3
    assert [hint[:2] for hint in world.replicator.hints.kept] == [(third.node_id, key)]
    assert world.replicator.writes.retrying == 0


def test_a_replica_that_dies_between_retries_gets_its_hint_at_once(world: World) -> None:
    third = world.owners(key)[2]
    third.answer(WRITE, OVERLOADED)
    world.put(key)
    world.pass_time(0.02)
    third.crash()
    world.pass_time(retry_s[0])
    assert [hint[0] for hint in world.replicator.hints.kept] == [third.node_id]


def test_a_retry_that_finds_something_newer_is_done(world: World) -> None:
    third = world.owners(key)[2]
    third.answer(WRITE, OVERLOADED)
    world.put(key)
    world.pass_time(0.02)
    third.answer(WRITE, NEWER, world.version(ahead_ms=100))
    world.pass_time(retry_s[0])
    assert world.replicator.writes.retrying == 0
    assert world.replicator.hints.kept == []


def test_past_their_bound_retries_become_hints(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "retrying_max", 10)
    third = world.owners(key)[2]
    for node in world.nodes.values():
        if node is third:
            node.answer(WRITE, OVERLOADED)
    keys = [key_of(number) for number in range(30)]
    asked = [world.put(key) for key in keys]
    world.pass_time(0.03)
    assert all(one.kind == CHANGED for one in asked)
    assert world.replicator.writes.retrying == 10
    assert len(world.replicator.hints.kept) == 20


# Many together.


def test_writes_that_come_together_take_one_message_to_each_node_and_back(world: World) -> None:
    keys = [key_of(number) for number in range(100)]
    asked = world.put_many(keys)
    world.pass_time()
    assert all(one.kind == CHANGED for one in asked)
    assert len({one.version for one in asked}) == 100
    assert [one.version for one in asked] == sorted(one.version for one in asked)
    assert world.messages(WRITE_MANY) == 3
    assert world.messages(WRITE) == 0
    for one, key in zip(asked, keys, strict=True):
        assert world.held(key) == [one.version + value_body(b"value")] * 3
    assert world.replicator.fleet.pending == 0
    assert world.replicator.counters.successful_replicas == 300


def test_writes_of_one_turn_take_one_message_to_each_node_and_are_each_by_themselves(
    world: World,
) -> None:
    keys = [key_of(number) for number in range(50)]
    asked = [world.put_soon(key) for key in keys]
    assert world.replicator.counters.total_replications == 0, "others may come in this turn"
    world.pass_time()
    assert all(one.kind == CHANGED for one in asked)
    assert [one.version for one in asked] == sorted({one.version for one in asked})
    assert (world.messages(WRITE_MANY), world.messages(WRITE)) == (3, 0)
    for one, key in zip(asked, keys, strict=True):
        assert world.held(key) == [one.version + value_body(b"value")] * 3

    world.put_soon(key)
    world.pass_time()
    assert (world.messages(WRITE_MANY), world.messages(WRITE)) == (3, 3), "one alone goes as such"


@pytest.mark.parametrize(("count", "size", "messages"), [(300, 5, 3), (20, 20_000, 4)])
def test_clients_writes_of_one_turn_go_by_as_many_as_a_node_stores_at_once(
    world: World, count: int, size: int, messages: int
) -> None:
    asked = [world.put_soon(key_of(number), b"v" * size) for number in range(count)]
    world.pass_time()
    assert [one.kind for one in asked] == [CHANGED] * count
    assert [one.version for one in asked] == sorted({one.version for one in asked})
    assert world.messages(WRITE_MANY) == 3 * messages


def test_of_two_clients_that_write_one_key_in_one_turn_neither_yields_to_what_was_there(
    world: World,
) -> None:
    newer = world.version(ahead_ms=400) + value_body(b"newer")
    world.plant(world.owners(key)[0], key, newer)
    one, other = world.put_soon(key, b"one"), world.put_soon(key, b"other")
    world.pass_time()
    assert (one.kind, other.kind) == (CHANGED, CHANGED)
    assert min(one.version, other.version) > newer[:version_bytes]
    latest = max((one.version, b"one"), (other.version, b"other"))
    assert world.held(key) == [latest[0] + value_body(latest[1])] * 3


def test_a_write_that_comes_as_nothing_can_be_stamped_any_more_is_refused(world: World) -> None:
    asked = world.put_soon(key)
    world.replicator.stamps.seal()
    world.pass_time()
    assert refusal(asked)[0] == "shutting_down"
    assert world.writes_sent == 0


def test_a_node_that_tells_nothing_of_too_many_writes_gets_no_more_of_them(world: World) -> None:
    node = world.owners(key)[2]
    node.ignore(WRITE_MANY)
    keys = [key_of(number) for number in range(begun_in_a_turn)]
    for _ in range(writes_unheard_max // begun_in_a_turn):
        for one in keys:
            world.put_soon(one)
        world.pass_time(0.001)
    fleet_node = world.replicator.fleet.nodes[node.node_id]
    assert fleet_node.writes_unheard == writes_unheard_max
    sent = node.asked[WRITE_MANY]
    asked = [world.put_soon(key), world.put_soon(key)]
    world.pass_time(0.05)
    assert node.asked[WRITE_MANY] == sent
    assert [one.kind for one in asked] == [CHANGED] * 2
    node.obey()
    world.pass_time(noticed_s + operation_s)
    assert fleet_node.writes_unheard == 0
    assert len(set(world.held(key))) == 1, "it was tried again, or is a hint"


def test_among_many_nodes_each_gets_its_share_alone() -> None:
    world = World(nodes=6)
    keys = [key_of(number) for number in range(200)]
    asked = world.put_many(keys)
    world.pass_time()
    assert all(one.kind == CHANGED for one in asked)
    assert world.messages(WRITE_MANY) == 6
    for key in keys:
        for node in world.nodes.values():
            assert (node.holds(key) is not None) == (node in world.owners(key))


def test_of_writes_that_come_together_so_many_begin_in_a_turn(world: World) -> None:
    counters = world.replicator.counters
    keys = [key_of(number) for number in range(2 * begun_in_a_turn + 1)]
    asked = world.put_many(keys)
    assert counters.total_replications == begun_in_a_turn, "the rest does not hold up the loop"
    world.pass_time(0.2)
    assert all(one.kind == CHANGED for one in asked)
    assert [one.version for one in asked] == sorted(one.version for one in asked)
    assert world.messages(WRITE_MANY, WRITE) == 3 * 3
    assert counters.total_replications == len(keys)


def test_writes_that_are_sent_again_together_are_split_where_a_message_ends(world: World) -> None:
    for node in world.nodes.values():
        node.answer(WRITE_MANY, WRONG_EPOCH, u64.pack(3))
        node.answer(WRITE, WRONG_EPOCH, u64.pack(3))
    asked = world.put_many([key_of(number) for number in range(items_max + 1)])
    world.pass_time(0.003)
    for node in world.nodes.values():
        node.obey()
    sent = world.writes_sent
    world.pass_time(0.2)
    assert all(one.kind == CHANGED for one in asked)
    assert world.writes_sent - sent == 6


@pytest.mark.parametrize("between", [0, begun_in_a_turn])
def test_of_many_on_one_key_the_first_is_not_put_above_the_last(world: World, between: int) -> None:
    """As it would be if it were stamped again where something newer is found. The last one may be
    in the same message, or in one that leaves a turn later."""
    first, last = value_body(b"first"), value_body(b"last")
    others = [(key_of(2 + number), value_body(b"x"), Asked()) for number in range(between)]
    asked = [Asked(), Asked()]
    together = min(2 + between, begun_in_a_turn)
    newer = encode_statuses([(NEWER, world.version()), *[(OK, b"")] * (together - 1)])

    def overtake(node: Node) -> None:
        """The first message finds something newer for its first write, and the next do not."""

        def answer(peer: Peer, request_id: int, body: bytes) -> None:
            node.obey()
            peer.reply(request_id, OK, newer)

        node.instead[WRITE_MANY] = answer

    for node in world.nodes.values():
        overtake(node)
    world.replicator.writes.write_many([(key, first, asked[0]), *others, (key, last, asked[1])])
    world.pass_time(0.2)
    assert [one.kind for one in asked] == [CHANGED] * 2
    assert asked[0].version < asked[1].version
    assert first not in [(record or b"")[version_bytes:] for record in world.held(key)]
    assert world.replicator.counters.restamped == 0


def test_of_many_on_one_key_one_below_a_floor_is_refused_rather_than_put_last(world: World) -> None:
    floor = world.version(ahead_ms=100)
    for node in world.nodes.values():
        node.answer(WRITE_MANY, OK, encode_statuses([(BELOW_FLOOR, floor), (OK, b"")]))
    first, last = world.put_many([key, key])
    world.pass_time(0.1)
    assert refusal(first)[0] == "overloaded"
    assert last.kind == CHANGED


def test_writes_of_large_values_are_split_where_a_message_is_large_enough(world: World) -> None:
    large = bytes(many_bytes_max // 4)
    asked = world.put_many([key_of(number) for number in range(9)], large)
    world.pass_time(0.5)
    assert all(one.kind == CHANGED for one in asked)
    assert world.messages(WRITE_MANY) == 3 * 3


def test_of_many_each_waits_for_its_own_first_owner(world: World) -> None:
    keys = [key_of(number) for number in range(60)]
    node = world.nodes["node-1"]
    slow(node)
    asked = world.put_many(keys)
    world.pass_time(0.1)
    waiting = [key for key, one in zip(keys, asked, strict=True) if not one.answered]
    assert waiting == [key for key in keys if world.owners(key)[0] is node]
    node.disk.thaw()
    world.pass_time(0.1)
    assert all(one.kind == CHANGED for one in asked)


def test_of_many_those_that_are_overtaken_are_stamped_again_together(world: World) -> None:
    keys = [key_of(number) for number in range(50)]
    newer = world.version(ahead_ms=400) + value_body(b"newer")
    overtaken = keys[10:30]
    for key in overtaken:
        world.plant(world.owners(key)[0], key, newer)
    sent = world.messages(WRITE_MANY)
    asked = world.put_many(keys, b"mine")
    world.pass_time()
    assert all(one.kind == CHANGED for one in asked)
    for key in keys:
        assert [value(record or b"") for record in world.held(key)] == [b"mine"] * 3
    assert world.replicator.counters.restamped == len(overtaken)
    assert world.messages(WRITE) == 0
    # One more message to each node for each node that had something newer.
    assert world.messages(WRITE_MANY) - sent <= 3 + 3 * 3


def test_of_many_those_with_an_old_epoch_are_sent_again_together(world: World) -> None:
    for node in world.nodes.values():
        node.answer(WRITE_MANY, WRONG_EPOCH, u64.pack(3))
    asked = world.put_many([key_of(number) for number in range(100)])
    world.pass_time(0.003)
    for node in world.nodes.values():
        node.obey()
    world.pass_time(0.1)
    assert all(one.kind == CHANGED for one in asked)
    assert world.messages(WRITE_MANY) == 6
    assert world.messages(WRITE) == 0


def test_a_node_that_is_down_costs_many_writes_a_hint_each(world: World) -> None:
    keys = [key_of(number) for number in range(20)]
    world.nodes["node-2"].crash()
    world.pass_time(0.1)
    world.replicator.hints.late = True
    asked = world.put_many(keys)
    world.pass_time(0.1)
    assert not any(one.answered for one in asked)
    world.replicator.hints.keep_late()
    assert all(one.kind == CHANGED for one in asked)
    kept = sorted(hint[:2] for hint in world.replicator.hints.kept)
    assert kept == [("node-2", key) for key in keys]


def test_with_all_nodes_down_many_writes_are_refused_at_once(world: World) -> None:
    for node in world.nodes.values():
        node.crash()
    world.pass_time(0.2)
    asked = world.put_many([key_of(number) for number in range(20)])
    assert {refusal(one)[0] for one in asked} == {"no_quorum"}


@pytest.mark.parametrize("answer", [b"", b"\0", encode_statuses([(OK, b"")]), b"\xff" * 40])
def test_statuses_that_make_no_sense_leave_the_outcome_unknown(world: World, answer: bytes) -> None:
    for node in world.nodes.values():
        node.answer(WRITE_MANY, OK, answer)
    asked = world.put_many([key_of(1), key_of(2)])
    world.pass_time(0.05)
    assert [one.kind for one in asked] == [UNKNOWN] * 2


@pytest.mark.parametrize("kind", [NEWER, BELOW_FLOOR, WRONG_EPOCH])
def test_a_detail_that_makes_no_sense_costs_the_others_nothing(world: World, kind: int) -> None:
    for node in world.nodes.values():
        node.answer(WRITE_MANY, OK, encode_statuses([(kind, b"?"), (OK, b"")]))
        node.answer(WRITE, kind, b"?")
    nonsense, other = world.put_many([key_of(1), key_of(2)])
    world.pass_time(operation_s + 0.2)
    assert other.kind == CHANGED
    assert nonsense.kind == REFUSED
    assert world.replicator.fleet.pending == 0


def test_many_that_wait_for_a_slow_disk_of_hints_are_answered_in_time_by_and_by(
    world: World,
) -> None:
    world.replicator.hints.late = True
    world.nodes["node-3"].crash()
    world.pass_time()
    many = 3 * ended_in_a_turn
    asked = [world.put(key_of(number)) for number in range(many)]
    most = before = 0
    while before < many:
        assert world.timeline.step()
        count = sum(one.answered for one in asked)
        most, before = max(most, count - before), count
    assert most == ended_in_a_turn
    assert {one.kind for one in asked} == {CHANGED}
    asked = [world.put(key_of(number)) for number in range(10)]
    world.pass_time(operation_s + 0.1)
    assert all(one.answered for one in asked), "the sweep goes on"
    world.replicator.hints.keep_late()


def test_each_of_many_has_its_own_answer(world: World) -> None:
    statuses = [(OK, b""), (STORAGE_FULL, b"disk"), (FAILED, b""), (OVERLOADED, b"")]
    for node in world.nodes.values():
        node.answer(WRITE_MANY, OK, encode_statuses(statuses))
    asked = world.put_many([key_of(number) for number in range(4)])
    world.pass_time(0.05)
    assert [one.kind for one in asked] == [CHANGED, REFUSED, UNKNOWN, REFUSED]
    assert refusal(asked[1])[0] == "storage_full"


def test_a_write_that_is_asked_for_by_an_answer_is_sent(world: World) -> None:
    """Whoever goes on from an answer does so in the middle of the sending of others."""
    second = Asked()

    def go_on(kind: int, body: bytes) -> None:
        assert kind == CHANGED
        world.replicator.writes.write(key_of(2), value_body(b"next"), second)

    body = value_body(b"first")
    world.replicator.writes.write_many([(key_of(1), body, go_on), (key_of(3), body, Asked())])
    world.pass_time()
    assert second.kind == CHANGED
    assert world.held(prefix + b"key-0002")[0] is not None


def test_nothing_is_left_behind_of_many_writes_in_bad_weather(world: World) -> None:
    weather = world.weather
    weather.loss, weather.duplicate, weather.reorder = 0.1, 0.1, 0.2
    asked: list[Asked] = []
    for number in range(60):
        asked += world.put_many([key_of(number % 7 + of) for of in range(8)], b"%d" % number)
        asked.append(world.put(key_of(number % 5)))
        world.pass_time(0.02)
    weather.loss = weather.duplicate = weather.reorder = 0.0
    world.pass_time(operation_s + retries_s + operation_s)
    assert all(one.answered for one in asked)
    assert world.replicator.fleet.pending == 0
    assert world.replicator.writes.retrying == 0
    assert world.replicator.writes._open == type(world.replicator.writes._open)()
