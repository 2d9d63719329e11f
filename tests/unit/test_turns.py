"""Long requests take turns: however many there are, whatever goes wrong with one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from services.core.errors import RetryLater
from services.dhtnode.turns import (
    Turns,
    side_by_side_max,
    turn_s,
    waiting_bytes_max,
    waiting_max,
)
from services.runtime.clock import FakeClock, Timeline

step_s = 0.000_4
steps_a_turn = 3


class WorkClock(FakeClock):
    """Time passes by steps of work alone."""

    worked_s = 0.0

    def monotonic_s(self) -> float:
        return self.worked_s


class Asker:
    """Keeps what it hears of a work; that is one thing."""

    def __init__(self) -> None:
        self.heard: str | Exception | None = None
        self.waiting = True

    def hear(self, what: str | Exception) -> None:
        assert self.heard is None, "an asker hears of its work twice"
        self.heard = what

    def dropped(self) -> None:
        self.hear("dropped")

    def failed(self, error: Exception) -> None:
        self.hear(error)


class Desk:
    """Turns, and works that note each step they make."""

    def __init__(self) -> None:
        self.clock = WorkClock(Timeline())
        self.due: list[Callable[[], None]] = []
        self.turns = Turns(self.clock, self.due.append)
        self.made: list[int] = []
        self.askers: dict[int, Asker] = {}

    def ask(
        self,
        number: int,
        steps: int,
        error: Exception | None = None,
        *,
        first: bool = False,
        changes: bool = False,
        size_bytes: int = 0,
    ) -> bool:
        asker = self.askers[number] = Asker()
        return self.turns.add(
            asker,
            self.work(number, steps, asker, error),
            size_bytes=size_bytes,
            first=first,
            changes=changes,
        )

    def work(
        self, number: int, steps: int, asker: Asker, error: Exception | None = None
    ) -> Iterator[None]:
        for _ in range(steps):
            self.made.append(number)
            self.clock.worked_s += step_s
            yield
        if error is not None:
            raise error
        asker.hear("done")

    @property
    def done(self) -> set[int]:
        return {number for number, asker in self.askers.items() if asker.heard == "done"}

    def turn(self) -> list[int]:
        """Let the loop turn once; the steps that were made."""
        (callback,), self.due[:] = self.due, []
        before = len(self.made)
        callback()
        return self.made[before:]

    def finish(self) -> None:
        while self.due:
            self.turn()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_turn_is_as_short_with_many_waiting_as_with_one(desk: Desk) -> None:
    for number in range(1, 21):
        desk.ask(number, 10)
    assert desk.made == [], "nothing is done while the request is read"
    assert len(desk.due) == 1
    turns = 0
    while desk.due:
        began_s = desk.clock.worked_s
        assert len(desk.turn()) <= steps_a_turn
        assert desk.clock.worked_s - began_s < turn_s + step_s
        turns += 1
    assert turns >= 20 * 10 // steps_a_turn
    assert desk.done == set(range(1, 21))


def test_short_works_share_a_turn(desk: Desk) -> None:
    for number in range(1, 4):
        desk.ask(number, 1)
    assert desk.turn() == [1, 2, 3]
    desk.finish()
    assert desk.done == {1, 2, 3}


def test_a_short_work_does_not_wait_for_all_of_a_long_one(desk: Desk) -> None:
    desk.ask(1, 1_000)
    desk.ask(2, 1)
    desk.turn()
    desk.turn()
    assert desk.done == {2}


def test_a_few_are_side_by_side_and_the_others_wait_unbegun_in_their_order(desk: Desk) -> None:
    for number in range(1, 101):
        desk.ask(number, 10)
    begun: list[int] = []
    while desk.due:
        begun += [number for number in dict.fromkeys(desk.turn()) if number not in begun]
        assert len(set(begun) - desk.done) <= side_by_side_max < 10
    assert begun == list(range(1, 101))


@pytest.mark.parametrize("steps", [0, 1, 10])
def test_an_error_is_heard_wherever_it_comes_and_the_others_go_on(desk: Desk, steps: int) -> None:
    error = ZeroDivisionError("a bug")
    desk.ask(1, steps, error)
    desk.ask(2, 10)
    desk.ask(3, 10, first=True)
    desk.finish()
    assert desk.askers[1].heard is error
    assert desk.done == {2, 3}


def test_an_answer_that_cannot_be_given_does_not_stop_the_others(desk: Desk) -> None:
    class Broken(Asker):
        def failed(self, error: Exception) -> None:
            raise RuntimeError("a bug of the link")

    broken = Broken()
    work = desk.work(1, 1, broken, ZeroDivisionError())
    desk.turns.add(broken, work, size_bytes=waiting_bytes_max)
    assert not desk.ask(2, 1, size_bytes=1)
    with pytest.raises(RuntimeError, match="a bug of the link"):
        desk.turn()
    assert desk.ask(3, 1, size_bytes=waiting_bytes_max), "the broken one takes room for ever"
    desk.finish()
    assert desk.done == {3}


# The two lanes.


def test_what_is_first_does_not_wait_for_hundreds_of_others(desk: Desk) -> None:
    for number in range(1, 501):
        desk.ask(number, 10)
    desk.turn()
    desk.ask(501, 1, first=True)
    desk.turn()
    assert desk.done == {501}


def test_in_every_turn_the_others_have_a_step_however_much_is_first(desk: Desk) -> None:
    for number in range(1, 101):
        desk.ask(number, 10, first=True)
    desk.ask(101, 20)
    for _ in range(20):
        began_s = desk.clock.worked_s
        made = desk.turn()
        assert made.count(101) == 1
        assert len(made) > 1
        assert desk.clock.worked_s - began_s < turn_s + 2 * step_s
    desk.turn()
    assert 101 in desk.done


# Bounds.


@pytest.mark.parametrize("first", [False, True])
def test_past_so_many_waiting_the_next_are_refused_until_some_are_done(
    desk: Desk, first: bool
) -> None:
    for number in range(1, waiting_max + 1):
        assert desk.ask(number, 1, first=first)
    assert not desk.ask(0, 1, first=first)
    assert desk.ask(waiting_max + 1, 1, first=not first), "each lane is bounded by itself"
    desk.turn()
    assert desk.ask(waiting_max + 2, 1, first=first)
    desk.finish()
    assert desk.done == set(range(1, waiting_max + 3))


def test_past_so_many_bytes_the_next_are_refused_until_some_are_done(desk: Desk) -> None:
    half = waiting_bytes_max // 2
    assert desk.ask(1, 1, size_bytes=half)
    assert desk.ask(2, 1, size_bytes=half)
    assert not desk.ask(3, 1, size_bytes=1)
    assert desk.ask(4, 1, size_bytes=waiting_bytes_max, first=True)
    desk.finish()
    assert desk.ask(5, 1, size_bytes=waiting_bytes_max)
    desk.finish()
    assert desk.done == {1, 2, 4, 5}


# Who does not wait any more.


def test_an_asker_that_has_gone_costs_no_work(desk: Desk) -> None:
    for number in range(1, 100):
        desk.ask(number, 50)
    desk.ask(100, 1)
    desk.turn()
    begun = len(desk.made)
    for number in range(1, 100):
        desk.askers[number].waiting = False
    desk.turn()
    assert desk.made[begun:] == [100]
    desk.finish()
    assert {desk.askers[number].heard for number in range(1, 100)} == {"dropped"}


def test_a_change_that_has_begun_goes_on_without_its_asker_and_one_that_has_not_does_not(
    desk: Desk,
) -> None:
    for number in (1, 2):
        desk.ask(number, 10, first=True, changes=True)
    desk.turn()
    for asker in desk.askers.values():
        asker.waiting = False
    desk.finish()
    assert desk.made == [1] * 10
    assert (desk.done, desk.askers[2].heard) == ({1}, "dropped")


# Work that is awaited.


async def test_who_awaits_a_work_hears_its_end_its_error_or_that_too_many_wait(desk: Desk) -> None:
    def fails() -> Iterator[None]:
        yield
        raise ZeroDivisionError("a bug")

    given_up = asyncio.create_task(desk.turns.do(desk.work(1, 5, Asker())))
    done = asyncio.create_task(desk.turns.do(desk.work(2, 5, Asker())))
    failed = asyncio.create_task(desk.turns.do(fails()))
    await asyncio.sleep(0)
    for number in range(10, 10 + waiting_max - 3):
        desk.ask(number, 0)
    with pytest.raises(RetryLater, match="overloaded"):
        await desk.turns.do(desk.work(3, 1, Asker()))
    given_up.cancel()
    await asyncio.sleep(0)
    desk.finish()
    await done
    with pytest.raises(ZeroDivisionError):
        await failed
    assert given_up.cancelled()
    assert desk.made == [2] * 5
