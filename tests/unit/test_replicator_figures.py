"""What a replicator counts is what was done: each owner of a replication once."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from services.core.ballots import ACCEPT, PREPARE
from services.core.change import Condition, Increment, Put, read
from services.core.messages import WRITE
from services.core.operations import CHANGED, PRECONDITION_FAILED, REFUSED, UNKNOWN
from services.core.record import value_body
from services.core.wire import FAILED, OVERLOADED
from services.replicator.eventual import operation_s
from services.replicator.retries import retry_s
from tests.unit.replicator_world import World, key_of

key = key_of(1)
settled_s = 2 * operation_s + sum(retry_s)


@pytest.fixture
def world() -> World:
    return World()


@dataclass(frozen=True)
class Counted:
    total: int
    successful: int
    failed: int


def counted(world: World) -> Counted:
    counters = world.replicator.counters
    return Counted(
        counters.total_replications, counters.successful_replicas, counters.failed_replicas
    )


def test_with_a_node_down_every_change_fails_on_one_owner_whatever_its_mode(world: World) -> None:
    world.nodes["node-3"].crash()
    world.pass_time()
    asked = []
    for number in range(10):
        asked.append(world.put(key_of(number)))
        asked.append(world.change(key_of(20 + number), Put(b"strong")))
        asked.append(world.change(key_of(40), Increment(1)))
    asked += world.put_many([key_of(60 + number) for number in range(10)])
    world.pass_time(1.0)
    assert {one.kind for one in asked} == {CHANGED}
    assert counted(world) == Counted(40, 80, 40)
    assert len(world.replicator.hints.kept) == 40


def test_a_strong_change_succeeds_on_every_owner_also_on_the_one_that_is_last(world: World) -> None:
    asked = [world.change(key_of(number), Put(b"x")) for number in range(10)]
    world.pass_time(1.0)
    assert {one.kind for one in asked} == {CHANGED}
    assert counted(world) == Counted(10, 30, 0)
    for number in range(10):
        world.fetch(key_of(number))
    world.pass_time()
    assert counted(world) == Counted(10, 30, 0), "reads that need no proposal replicate nothing"


class Timed:
    """One request, and how long its acknowledgement took."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._began_s = world.timeline.now_s
        self.took_s: float | None = None

    def __call__(self, kind: int, body: bytes) -> None:
        assert self.took_s is None, "answered twice"
        assert kind == CHANGED
        self.took_s = self._world.timeline.now_s - self._began_s


def test_every_acknowledgement_is_timed_whatever_the_mode(world: World) -> None:
    counters, asked = world.replicator.counters, list[Timed]()
    for number in range(10):
        asked += Timed(world), Timed(world)
        world.replicator.writes.write(key_of(number), value_body(b"x"), asked[-2])
        world.replicator.strong.change(key_of(20 + number), Put(b"x"), asked[-1])
    world.pass_time(1.0)
    took_s = [one.took_s for one in asked if one.took_s is not None]
    assert len(took_s) == counters.total_replications == counters.acks.count == 20
    assert counters.lags.count == 20
    assert counters.acks.total == pytest.approx(sum(took_s))
    assert counters.lags.total >= counters.acks.total
    for number in range(10):
        world.fetch(key_of(20 + number))
    world.pass_time()
    assert counters.acks.count == counters.lags.count == 20, "reads replicate nothing"


def test_a_change_that_an_owner_has_not_accepted_is_acknowledged_and_not_settled(
    world: World,
) -> None:
    counters = world.replicator.counters
    third = world.owners(key)[2]
    third.answer(ACCEPT, OVERLOADED)
    world.change(key, Put(b"x"))
    world.pass_time()
    assert (counters.acks.count, counters.lags.count) == (1, 0)
    third.obey()
    world.change(key, Put(b"y"))
    world.pass_time()
    assert (counters.acks.count, counters.lags.count) == (2, 1)


def test_a_change_is_settled_when_its_last_owner_has_accepted_it(world: World) -> None:
    counters = world.replicator.counters
    world.owners(key)[2].disk.freeze()
    asked = world.change(key, Put(b"x"))
    world.pass_time(0.5)
    assert asked.kind == CHANGED
    assert (counters.acks.count, counters.lags.count) == (1, 0)
    world.owners(key)[2].disk.thaw()
    world.pass_time()
    assert (counters.acks.count, counters.lags.count) == (1, 1)
    assert counters.acks.total < 0.5 <= counters.lags.total


def test_what_is_refused_or_unknown_is_no_acknowledgement(world: World) -> None:
    for node in world.nodes.values():
        node.answer(PREPARE, OVERLOADED)
    world.change(key, Put(b"x"))
    world.pass_time()
    for node in world.nodes.values():
        node.obey()
        node.answer(ACCEPT, FAILED)
    asked = world.change(key, Put(b"x"))
    world.pass_time(operation_s + 0.3)
    assert asked.kind == UNKNOWN
    counters = world.replicator.counters
    assert counters.acks.count == counters.lags.count == 0


def test_what_a_strong_operation_only_repeats_is_brought_to_every_owner_too(world: World) -> None:
    world.put(key)
    world.pass_time()
    world.fetch(key)
    world.pass_time()
    assert counted(world) == Counted(2, 6, 0), "it was not accepted by anybody before"
    asked = world.change(key, Put(b"x", condition=Condition(present=False)))
    world.pass_time()
    assert asked.kind == PRECONDITION_FAILED
    assert counted(world) == Counted(3, 9, 0)
    world.change(key_of(2), read)
    world.pass_time()
    assert counted(world) == Counted(3, 9, 0), "there is nothing to bring"


def test_an_eventual_write_that_is_refused_has_failed_on_all_owners(world: World) -> None:
    for node in world.nodes.values():
        node.answer(WRITE, OVERLOADED)
    asked = [world.put(key_of(number)) for number in range(5)]
    world.pass_time()
    assert {one.kind for one in asked} == {REFUSED}
    assert counted(world) == Counted(5, 0, 15)
    for node in world.nodes.values():
        node.crash()
    world.pass_time()
    world.put_many([key_of(number) for number in range(5)])
    assert counted(world) == Counted(10, 0, 30)


def test_a_strong_change_that_is_refused_leaves_no_record_and_counts_for_nothing(
    world: World,
) -> None:
    for node in world.nodes.values():
        node.answer(PREPARE, OVERLOADED)
    asked = world.change(key, Put(b"x"))
    world.pass_time()
    assert asked.kind == REFUSED
    assert counted(world) == Counted(0, 0, 0)


def test_an_unknown_outcome_has_failed_where_nobody_said_that_it_succeeded(world: World) -> None:
    first, *others = world.owners(key)
    for node in others:
        node.answer(ACCEPT, FAILED)
        node.answer(WRITE, FAILED)
    first.ignore(WRITE)
    asked = [world.change(key, Put(b"x")), world.put(key)]
    world.pass_time(operation_s + 0.3)
    assert [one.kind for one in asked] == [UNKNOWN, UNKNOWN]
    found = counted(world)
    assert found.total == 2
    assert found.successful + found.failed == 6
    assert found.failed >= 5


def test_a_later_success_counts_beside_the_failure_before_it(world: World) -> None:
    third = world.owners(key)[2]
    third.answer(WRITE, OVERLOADED)
    world.put(key)
    world.pass_time(0.02)
    assert counted(world) == Counted(1, 2, 1)
    third.obey()
    world.pass_time(retry_s[0])
    assert counted(world) == Counted(1, 3, 1)


def test_a_write_that_is_stamped_again_counts_once(world: World) -> None:
    third = world.owners(key)[2]
    world.plant(third, key, world.version(ahead_ms=400) + value_body(b"newer"))
    for node in world.owners(key)[:1]:
        node.disk.freeze()
    asked = world.put(key)
    world.pass_time(0.05)
    for node in world.owners(key)[:1]:
        node.disk.thaw()
    world.pass_time()
    assert asked.kind == CHANGED
    assert world.replicator.counters.restamped == 1
    assert counted(world) == Counted(1, 3, 0)


def test_one_whose_owner_shows_what_is_chosen_but_does_not_accept_it_has_it(world: World) -> None:
    world.put(key)
    world.pass_time()
    world.owners(key)[2].answer(ACCEPT, OVERLOADED)
    for node in world.owners(key)[:1]:
        node.answer(PREPARE, OVERLOADED)
    world.change(key, read)
    world.pass_time()
    assert counted(world) == Counted(2, 6, 0)
    assert world.replicator.counters.lags.count == 2
    assert world.replicator.hints.kept == []


def test_requests_of_every_kind_are_under_way(world: World) -> None:
    fleet = world.replicator.fleet
    assert fleet.pending == 0
    for node in world.nodes.values():
        node.ignore(PREPARE)
    for number in range(10):
        world.change(key_of(number), Put(b"x"))
    assert fleet.pending == 2 * 10
    world.pass_time(operation_s + 0.2)
    assert fleet.pending == 0
    third = world.owners(key)[2]
    third.answer(WRITE, OVERLOADED)
    world.put(key)
    world.pass_time(0.02)
    third.ignore(WRITE)
    world.pass_time(retry_s[0])
    assert (fleet.pending, world.replicator.counters.retries) == (1, 1)


@pytest.mark.parametrize("seed", range(8))
def test_in_bad_weather_each_owner_of_each_record_is_counted(world: World, seed: int) -> None:
    """An owner that succeeds later is counted twice, and no other one is."""
    draw = random.Random(seed)
    weather, counters = world.weather, world.replicator.counters
    weather.loss, weather.reorder = 0.05, 0.2
    third = world.nodes["node-3"]
    asked = []
    for number in range(60):
        third.answer(WRITE, draw.choice((FAILED, OVERLOADED)))
        third.answer(ACCEPT, draw.choice((FAILED, OVERLOADED)))
        if draw.random() < 0.5:
            third.obey()
        chosen = key_of(draw.randrange(30))
        if draw.random() < 0.5:
            asked.append(world.put(chosen, b"%d" % number))
        else:
            asked.append(world.change(chosen, Put(b"%d" % number)))
        world.pass_time(0.02)
    third.answer(WRITE, OVERLOADED)
    weather.loss = 0.0
    world.pass_time(settled_s)
    assert all(one.answered for one in asked)
    assert world.replicator.fleet.pending == 0
    found = counted(world)
    # What is tried again here and succeeds is known by its success alone.
    again = found.successful + found.failed - 3 * found.total
    assert 0 <= again <= counters.retries
    made = sum(one.kind == CHANGED for one in asked)
    assert made <= found.total <= len(asked)
    assert counters.acks.count == made
    assert counters.lags.count <= found.total
    assert found.failed >= len(world.replicator.hints.kept) + again
