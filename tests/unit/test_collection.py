"""Slots that wait to be collected, one after the other, by one replicator or two, some of which
die of it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from msgspec import structs

from services.core.ballots import ACCEPT, LEARN
from services.core.change import Delete, Put
from services.core.messages import STORAGE_FULL
from services.core.operations import CHANGED, UNKNOWN
from services.core.record import value, value_body
from services.core.ring import slot_count, slot_of
from services.core.sessions import FREEZE, PURGE, STALE
from services.core.wire import OK, OVERLOADED
from services.replicator.collection import CollectionRates, attempts_max, slots_at_once
from services.replicator.collection_end import Collected, End
from tests.unit.collection_world import CollectingWorld, collector_of, keys, slot
from tests.unit.replicator_world import key_of

key = keys[0]


@pytest.fixture
def world() -> CollectingWorld:
    world = CollectingWorld()
    world.collector.start()
    return world


def delete(world: CollectingWorld, *of: bytes) -> None:
    asked = [world.delete(each) for each in of]
    world.pass_time(0.02)
    assert {one.kind for one in asked} == {CHANGED}


def begun_elsewhere(world: CollectingWorld, count: int) -> list[int]:
    """Delete keys of so many slots."""
    many = [key_of(number) for number in range(count)]
    delete(world, *many)
    return sorted({slot_of(one) for one in many})


# What waits.


def test_what_is_requested_is_collected(world: CollectingWorld) -> None:
    delete(world, key)
    world.collector.request(slot)
    assert world.collector.is_busy_with(slot)
    world.pass_time()
    assert world.is_gone(key)
    counters = world.collector.counters
    assert (counters.attempts, counters.completed, counters.tombstones) == (1, 1, 1)
    assert not world.collector.is_busy_with(slot)


def test_many_slots_are_collected_and_only_some_at_once(world: CollectingWorld) -> None:
    slots = begun_elsewhere(world, 100)
    for one in slots:
        world.collector.request(one)
    most = 0
    while world.collector.waiting or world.collector.under_way:
        most = max(most, world.collector.under_way)
        assert world.timeline.step()
    assert most == slots_at_once
    assert world.collector.counters.completed == len(slots)
    assert world.collector.counters.tombstones == 100
    assert all(world.held(key_of(number)) == [None] * 3 for number in range(100))


def test_slots_are_collected_at_a_pace_and_what_they_cost_besides_slows_it(
    world: CollectingWorld,
) -> None:
    world.collector.stop()
    paced = collector_of(world.replicator, CollectionRates(50, 1 << 20))
    paced.start()
    world.plant(world.owners(key)[0], key, world.version() + value_body(bytes(1 << 20)))
    for one in range(200):
        paced.request(one)
    world.pass_time(2.0)
    assert 50 * 2 <= paced.counters.completed <= 50 * 2 + 2 * slots_at_once
    world.pass_time(2.5)
    assert paced.counters.completed == 200
    for one in (slot, *range(40)):
        paced.request(one)
    world.pass_time(1.5)
    assert paced.counters.repaired_bytes > 2 << 20
    assert paced.counters.completed < 200 + 1 + 2 * slots_at_once
    world.pass_time(2.0)
    assert paced.counters.completed == 241


def test_a_slot_of_which_no_attempt_takes_anything_is_not_attempted_for_ever(
    world: CollectingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("services.core.sessions", "services.dhtnode.sessions"):
        monkeypatch.setattr(f"{module}.stale_max", 2)
    monkeypatch.setattr("services.replicator.collection_attempt.stale_max", 2)
    for of in keys:
        world.change(of, Delete())
    world.pass_time()
    for node in world.nodes.values():
        node.answer(ACCEPT, STORAGE_FULL)
    world.collector.request(slot)
    world.pass_time(30.0)
    counters = world.collector.counters
    assert (counters.attempts, counters.promises) == (1, 0)


def test_a_slot_that_waits_or_is_under_way_is_not_queued_again(world: CollectingWorld) -> None:
    for _ in range(3):
        for one in range(40):
            world.collector.request(one)
    assert world.collector.under_way + world.collector.waiting == 40
    world.pass_time(1.0)
    assert world.collector.counters.attempts == 40


def test_nothing_is_begun_before_the_start(world: CollectingWorld) -> None:
    other = collector_of(world.replicator)
    other.request(slot)
    assert (other.waiting, other.under_way) == (1, 0)
    other.start()
    world.pass_time()
    assert other.counters.completed == 1


def test_a_slot_with_more_than_one_attempt_takes_is_attempted_until_all_is_gone(
    world: CollectingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.core.collecting.over_max", 5)
    delete(world, *keys)
    world.collector.request(slot)
    world.pass_time(1.0)
    assert world.collector.counters.completed == 3
    assert all(world.is_gone(of) for of in keys)


# What is tried again.


def test_an_attempt_that_failed_is_followed_by_another(world: CollectingWorld) -> None:
    delete(world, key)
    busy = world.others()[0]
    busy.answer(FREEZE, OVERLOADED)
    world.collector.request(slot)
    world.pass_time(0.1)
    assert world.collector.counters.ended[End.REFUSED] == 1
    assert world.collector.is_busy_with(slot)
    busy.obey()
    world.pass_time(2.0)
    assert world.collector.counters.ended == {End.REFUSED: 1, End.COMPLETED: 1}
    assert world.is_gone(key)


def test_attempts_become_rarer_and_come_to_an_end_until_it_is_requested_again(
    world: CollectingWorld,
) -> None:
    delete(world, key)
    busy = world.others()[0]
    busy.answer(FREEZE, OVERLOADED)
    world.collector.request(slot)
    world.pass_time(60.0)
    counters = world.collector.counters
    assert (counters.attempts, counters.given_up) == (attempts_max, 1)
    assert not world.collector.is_busy_with(slot)
    assert world.collector.failing == 1
    assert world.collector.trouble is not None
    assert world.collector.trouble.startswith(f"slot {slot}: {busy.node_id}")
    busy.obey()
    world.collector.request(slot)
    world.pass_time(0.1)
    assert world.is_gone(key)
    assert world.collector.failing == 0


def test_a_slot_that_nobody_comes_back_to_is_not_called_failing_for_ever(
    world: CollectingWorld,
) -> None:
    world.others()[0].answer(FREEZE, OVERLOADED)
    world.collector.request(slot)
    world.pass_time(1_800.0)
    world.collector.request(slot + 1 if slot + 1 < slot_count else 0)
    world.pass_time(1_790.0)
    assert world.collector.failing == 2
    world.pass_time(60.0)
    assert world.collector.failing == 1


def test_a_request_does_not_wait_for_the_pause_of_a_failed_attempt(world: CollectingWorld) -> None:
    delete(world, key)
    busy = world.others()[0]
    busy.answer(FREEZE, OVERLOADED)
    world.collector.request(slot)
    world.pass_time(0.02)
    assert (world.collector.waiting, world.collector.under_way) == (1, 0)
    busy.obey()
    world.collector.request(slot)
    world.pass_time(0.05)
    assert world.is_gone(key)
    world.pass_time(10.0)
    assert world.collector.counters.attempts == 2, "and the pause is void"


def test_a_request_begins_to_count_attempts_anew(world: CollectingWorld) -> None:
    world.others()[0].answer(FREEZE, OVERLOADED)
    world.collector.request(slot)
    world.pass_until(lambda: world.collector.counters.attempts == 4)
    world.pass_time(0.02)
    world.collector.request(slot)
    world.pass_time(60.0)
    assert world.collector.counters.attempts == 4 + attempts_max


def test_slots_are_blocked_while_an_owner_is_away_and_go_on_when_it_is_back(
    world: CollectingWorld,
) -> None:
    slots = begun_elsewhere(world, 40)
    node = world.nodes["node-2"]
    node.crash()
    world.pass_time(1.0)
    for one in slots:
        world.collector.request(one)
    world.pass_time(30.0)
    assert world.collector.blocked == len(slots)
    counters = world.collector.counters
    assert counters.attempts == len(slots), "it is not tried over and over"
    assert world.messages(STALE) == 0
    node.begin()
    world.pass_time(0.3)
    world.tell_map(world.map)
    world.pass_time(5.0)
    assert world.collector.blocked == 0
    assert counters.ended[End.COMPLETED] == len(slots)


def test_slots_of_a_node_that_catches_up_wait_for_that_unless_somebody_cannot(
    world: CollectingWorld,
) -> None:
    delete(world, key)
    node = world.others()[0]
    node.crash()
    world.pass_time(1.0)
    world.collector.request(slot)
    world.pass_time(1.0)
    node.begin()
    world.replicator.fleet.catching_up(node.node_id, catching_up=True)
    world.pass_time(2.0)
    world.tell_map(world.map)
    world.pass_time(5.0)
    assert world.collector.blocked == 1
    world.collector.request(slot)
    world.pass_time()
    assert world.is_gone(key)
    assert world.collector.blocked == 0


def test_slots_wait_for_the_end_of_a_change_of_members(world: CollectingWorld) -> None:
    delete(world, key)
    members = world.map.members
    # All owners are there all the time: one of them is to move to another zone.
    joint = world.map.begin_change((*members[:2], structs.replace(members[2], zone="elsewhere")))
    world.replicator.fleet.adopt(joint)
    world.collector.request(slot)
    world.pass_time(5.0)
    counters = world.collector.counters
    assert counters.ended == {End.JOINT: 1}, "it is not tried over and over"
    assert world.collector.blocked == 0, "nobody is gone"
    stable = joint.finish_change()
    world.replicator.fleet.adopt(stable)
    world.pass_time(1.0)
    world.tell_map(stable)
    world.pass_time(10.0)
    assert world.is_gone(key)


def test_every_slot_may_be_parked_and_is_looked_at_by_and_by(world: CollectingWorld) -> None:
    world.nodes["node-1"].crash()
    world.pass_time(1.0)
    for one in range(slot_count):
        world.collector.request(one)
    world.pass_time(1.0)
    assert world.collector.blocked == slot_count
    assert world.collector.counters.attempts == slot_count
    world.collector.stop()
    assert (world.collector.blocked, world.collector.waiting) == (0, 0)


def test_nothing_happens_after_the_end(world: CollectingWorld) -> None:
    delete(world, key)
    busy = world.others()[0]
    busy.answer(FREEZE, OVERLOADED)
    world.collector.request(slot)
    world.pass_time(0.02)
    world.collector.request(slot + 1)
    world.collector.stop()
    busy.obey()
    world.pass_time(30.0)
    assert world.messages(PURGE) == 0
    assert (world.collector.waiting, world.collector.under_way) == (0, 0)
    assert world.collector.counters.ended[End.STOPPED] == 1


# Two replicators, and those that die.


def written(world: CollectingWorld) -> None:
    """Keys of every kind: deleted in one way or another, on all replicas or not, and alive."""
    for number, of in enumerate(keys):
        asked = (
            world.change(of, Put(b"value %d" % number))
            if number % 2
            else world.put(of, b"value %d" % number)
        )
        world.pass_time(0.02)
        assert asked.kind == CHANGED
    missing = world.others()[1]
    delete(world, keys[0])
    asked = world.change(keys[1], Delete())
    missing.ignore(ACCEPT, LEARN)
    world.change(keys[3], Delete())
    world.pass_time(0.05)
    missing.obey()
    assert asked.kind == CHANGED


ended_keys = {keys[0], keys[1], keys[3]}


def check(world: CollectingWorld) -> None:
    """What was deleted is nowhere, and what was not is everywhere."""
    for number, of in enumerate(keys):
        if of in ended_keys:
            assert world.is_gone(of), (number, world.held(of), world.promised(of))
        else:
            held = [value(record) if record else b"" for record in world.held(of)]
            assert held == [b"value %d" % number] * 3
    leaves = {bytes(node.replica.table.leaves(slot)) for node in world.nodes.values()}
    assert len(leaves) == 1, "and the replicas show the same"


@pytest.mark.parametrize("head_start", range(0, 60, 6))
def test_two_replicators_at_one_slot_get_out_of_each_others_way(head_start: int) -> None:
    world = CollectingWorld(replicators=2)
    written(world)
    for collector in world.collectors:
        collector.start()
    world.collectors[0].request(slot)
    for _ in range(head_start):
        world.timeline.step()
    world.collectors[1].request(slot)
    world.pass_time(20.0)
    check(world)
    for collector in world.collectors:
        assert collector.counters.completed == 1, collector.counters


def test_a_replicator_may_die_at_any_step_and_another_one_brings_it_to_its_end() -> None:
    purged = Counter[bool]()
    step = 0
    while True:
        world = CollectingWorld(replicators=2)
        written(world)
        attempt: list[Collected] = []
        world.collectors[0].collect(slot, attempt.append)
        for _ in range(step):
            assert world.timeline.step()
        if attempt:
            break
        dying = world.replicators[0]
        world.network.crash(dying.name)
        dying.clock.stop()
        world.pass_time(0.2)
        purged[world.messages(PURGE) > 0] += 1
        for number, of in enumerate(keys):
            shown = {value(record) for record in world.values(of) if record is not None}
            assert shown <= {b"value %d" % number}
        assert world.collect(by=1).end is End.COMPLETED
        check(world)
        step += 3
    assert purged[True] > 2
    assert purged[False] > 10


@pytest.mark.parametrize("seed", range(6))
def test_in_bad_weather_what_was_deleted_stays_deleted_and_the_rest_stays(seed: int) -> None:
    """Messages of earlier sessions, and of the other replicator's, come late and more than once."""
    draw = random.Random(seed)
    world = CollectingWorld(replicators=2)
    written(world)
    for collector in world.collectors:
        collector.start()
    weather = world.weather
    weather.loss, weather.duplicate, weather.reorder = 0.03, 0.2, 0.3
    for _ in range(40):
        draw.choice(world.collectors).request(slot)
        world.pass_time(draw.uniform(0.0, 0.3))
        for number, of in enumerate(keys):
            shown = {value(record) for record in world.values(of) if record is not None}
            if of == keys[0]:
                assert not shown, "it was deleted on all replicas before"
            else:
                assert shown <= {b"value %d" % number}
    weather.loss = weather.duplicate = weather.reorder = 0.0
    world.pass_time(20.0)
    world.collector.request(slot)
    world.pass_time(20.0)
    check(world)


@pytest.mark.parametrize("by", [0, 1])
def test_clients_write_and_read_on_while_their_slot_is_collected_over_and_over(by: int) -> None:
    """By the replicator that they write through they do not notice it at all. By another one, a
    change may meet the freeze, and then nobody can know its outcome."""
    world = CollectingWorld(replicators=2)
    collector = world.collectors[by]
    collector.start()
    told = Counter[int]()
    expected: dict[bytes, set[bytes]] = {of: {b""} for of in keys[:3]}
    for number in range(120):
        collector.request(slot)
        for _ in range(number % 40):
            world.timeline.step()
        of, content = keys[number % 3], b"" if number % 4 in (1, 2) else b"%d" % number
        if number % 2:
            asked = world.change(of, Put(content) if content else Delete())
        else:
            asked = world.put(of, content) if content else world.delete(of)
        world.pass_time(0.1)
        told[asked.kind] += 1
        expected[of] = {content} | (expected[of] if asked.kind == UNKNOWN else set())
    assert told[CHANGED] + by * told[UNKNOWN] == 120
    assert told[CHANGED] > 90
    world.pass_time(1.0)
    for of, contents in expected.items():
        fetched = world.fetch(of)
        world.pass_time(0.2)
        assert fetched.kind == OK
        assert (value(fetched.body) if fetched.body else b"") in contents
    assert collector.counters.completed > 100
