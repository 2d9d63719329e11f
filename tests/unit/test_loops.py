"""Loops: restarted when they fail, ended with their owner, and never silently gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from services.core.errors import FatalError
from services.runtime.clock import FakeClock, Timeline
from services.runtime.loops import Loops, pause_s_max, well_after_s


class Supervision:
    """Loops on a clock that a test moves."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.fatal: list[FatalError] = []
        self.loops = Loops(self.fatal.append, FakeClock(self.timeline), random.Random(7))

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(1000):
            if holds():
                return
            self.timeline.step()
            await asyncio.sleep(0)
        raise AssertionError("it never held")


async def test_a_failing_loop_is_restarted_ever_more_slowly() -> None:
    supervision = Supervision()
    began_s: list[float] = []

    async def fail() -> None:
        began_s.append(supervision.timeline.now_s)
        raise ValueError("again")

    async with supervision.loops as loops:
        loops.start("failing", fail)
        await supervision.until(lambda: len(began_s) == 20)
        assert loops.running == 1
    pauses_s = [later - earlier for earlier, later in pairwise(began_s)]
    assert pauses_s[0] <= 0.1
    assert all(0.05 <= pause <= pause_s_max for pause in pauses_s)
    assert all(pause >= pause_s_max / 2 for pause in pauses_s[10:])
    assert loops.restarts["failing"] == 20
    assert (loops.running, supervision.fatal) == (0, [])


async def test_a_loop_that_was_well_for_long_begins_with_a_short_pause_again() -> None:
    supervision = Supervision()
    began_s: list[float] = []
    lasting_s = 0.0

    async def fail() -> None:
        began_s.append(supervision.timeline.now_s)
        supervision.timeline.now_s += lasting_s
        raise ValueError("again")

    async with supervision.loops as loops:
        loops.start("failing", fail)
        await supervision.until(lambda: len(began_s) == 12)
        lasting_s = well_after_s
        await supervision.until(lambda: len(began_s) == 14)
    assert began_s[13] - began_s[12] - lasting_s <= 0.1


async def test_a_fatal_error_of_a_loop_is_handed_on_and_the_others_go_on() -> None:
    supervision = Supervision()
    error = FatalError("no disk")

    async def end() -> None:
        raise error

    async def go_on() -> None:
        await asyncio.Event().wait()

    async with supervision.loops as loops:
        loops.start("ending", end)
        loops.start("going on", go_on)
        await supervision.until(lambda: bool(supervision.fatal))
        assert loops.running == 1
        with pytest.raises(ValueError, match="there already"):
            loops.start("ending", end)
    assert supervision.fatal == [error]
    assert loops.restarts.total() == 0


async def test_a_fatal_error_in_a_task_group_of_a_loop_is_as_fatal() -> None:
    supervision = Supervision()
    error = FatalError("no disk")

    async def end() -> None:
        raise error

    async def stumble() -> None:
        raise ValueError("a bug")

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(stumble())

            async def inner() -> None:
                async with asyncio.TaskGroup() as nested:
                    nested.create_task(end())

            group.create_task(inner())

    async with supervision.loops as loops:
        loops.start("ending", run)
        await supervision.until(lambda: bool(supervision.fatal))
        assert loops.running == 0
    assert supervision.fatal == [error]
    assert loops.restarts.total() == 0


async def test_leaving_waits_for_what_loops_do_when_cancelled() -> None:
    supervision = Supervision()
    tidied: list[str] = []

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            tidied.append("up")

    async with supervision.loops as loops:
        loops.start("tidy", tidy)
        await asyncio.sleep(0)
    assert tidied == ["up"]


async def test_a_cancellation_of_what_a_loop_waits_for_is_a_failure_and_not_its_end() -> None:
    supervision = Supervision()
    began = 0

    async def wait_for_what_others_cancel() -> None:
        nonlocal began
        began += 1
        waited_for = asyncio.get_running_loop().create_future()
        waited_for.cancel()
        await waited_for

    async with supervision.loops as loops:
        loops.start("waiting", wait_for_what_others_cancel)
        await supervision.until(lambda: began == 3)
        assert loops.running == 1
    assert loops.restarts["waiting"] >= 2
    assert loops.running == 0


async def test_a_loop_that_fails_while_it_is_ended_is_not_begun_again() -> None:
    supervision = Supervision()
    began = 0

    async def spoil_the_end() -> None:
        nonlocal began
        began += 1
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("not tidied up")

    async with asyncio.timeout(10), supervision.loops as loops:
        loops.start("spoiling", spoil_the_end)
        await asyncio.sleep(0)
    assert began == 1
    assert loops.restarts.total() == 0
