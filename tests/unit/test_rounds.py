"""Rounds of questions come to an end, whoever is asked and whatever is wrong with the asker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.core.messages import COUNT, GET
from services.core.wire import DOWN, OK, TIMEOUT
from services.replicator.pace import Pace
from services.replicator.rounds import Answer, Ask, Course, Rounds, answer_s_max
from tests.unit.replicator_world import World, key_of


class Ended:
    def __init__(self) -> None:
        self.results: list[object] = []

    def __call__(self, result: object) -> None:
        self.results.append(result)


def course(
    world: World, rounds: Rounds[object], ended: Ended, rate: int = 1_000_000
) -> Course[object]:
    clock = world.replicator.clock
    made = Course(rounds, Pace(clock, rate, 1 << 30), clock, ended)
    made.start()
    return made


def gets(world: World, *names: str) -> Sequence[Ask]:
    return [Ask(world.replicator.fleet.nodes[name], GET, key_of(1)) for name in names]


@pytest.fixture
def world() -> World:
    return World()


def test_answers_come_in_the_order_of_the_questions_and_the_last_word_is_heard(
    world: World,
) -> None:
    ended = Ended()

    def rounds() -> Rounds[object]:
        nodes = world.replicator.fleet.nodes
        first = yield [Ask(nodes["node-2"], GET, key_of(1)), Ask(nodes["node-1"], COUNT, bytes(8))]
        second = yield gets(world, "node-3")
        return first[0], first[1][0], second

    course(world, rounds(), ended)
    world.pass_time(0.1)
    assert ended.results == [((OK, b""), OK, [(OK, b"")])]


def test_who_cannot_be_asked_is_answered_for_at_once(world: World) -> None:
    world.nodes["node-2"].crash()
    world.pass_time(3.0)
    ended = Ended()

    def rounds() -> Rounds[object]:
        return (yield gets(world, "node-1", "node-2"))

    course(world, rounds(), ended)
    world.pass_time(0.1)
    assert ended.results == [[(OK, b""), (DOWN, b"")]]


def test_who_never_answers_is_given_up(world: World) -> None:
    world.nodes["node-2"].ignore(GET)
    ended = Ended()

    def rounds() -> Rounds[object]:
        return (yield gets(world, "node-1", "node-2"))

    course(world, rounds(), ended)
    world.pass_time(answer_s_max + 1.0)
    assert ended.results == [[(OK, b""), (TIMEOUT, b"")]]


def test_a_round_without_questions_is_a_round(world: World) -> None:
    ended = Ended()

    def rounds() -> Rounds[object]:
        for _ in range(5_000):
            answers: list[Answer] = yield []
            assert answers == []
        return "through"

    course(world, rounds(), ended)
    world.pass_time(0.1)
    assert ended.results == ["through"]


def test_a_bug_in_the_rounds_ends_them_and_is_raised(world: World) -> None:
    ended = Ended()

    def rounds() -> Rounds[object]:
        yield gets(world, "node-1")
        raise ZeroDivisionError

    course(world, rounds(), ended)
    world.timeline.advance(0.1)
    assert ended.results == [None]
    with pytest.raises(AssertionError, match="the log has it"):
        world.check()


def test_the_next_round_waits_for_the_pace(world: World) -> None:
    ended = Ended()

    def rounds() -> Rounds[object]:
        for _ in range(10):
            yield [ask._replace(records=100) for ask in gets(world, "node-1")]
        return "through"

    course(world, rounds(), ended, rate=1_000)
    world.pass_time(0.85)
    assert ended.results == []
    world.pass_time(0.2)
    assert ended.results == ["through"]


def test_once_stopped_nothing_is_asked_and_nobody_hears_of_it(world: World) -> None:
    ended = Ended()

    def rounds() -> Rounds[object]:
        while True:
            yield gets(world, "node-1")

    running = course(world, rounds(), ended)
    world.pass_time(0.1)
    running.stop()
    asked = world.messages(GET)
    assert asked > 1
    world.pass_time(1.0)
    assert world.messages(GET) - asked <= 1
    assert ended.results == []
