"""Upkeep of a user manager: everything gets its turn, whatever the others run into."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.core.errors import FatalError, RetryLater, UnknownOutcome
from services.runtime.clock import SystemClock
from services.runtime.loops import Loops
from services.usermanager.upkeep import Upkeep
from tests.waiting import wait_until


def fail(error: FatalError) -> None:
    raise AssertionError(f"nothing here ends a process: {error}")


def at_once(run: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    return run


async def test_what_cannot_be_tidied_now_is_tried_again_next_time() -> None:
    tried: list[str] = []

    async def away() -> None:
        tried.append("away")
        raise RetryLater("database_unavailable", "It is away")

    async def lost() -> None:
        tried.append("lost")
        raise UnknownOutcome("It was lost")

    async with Loops(fail, SystemClock()) as loops:
        Upkeep({"first": away, "second": lost}).start(loops, at_once)
        await wait_until(lambda: len(tried) == 2, "both have had their turn")
        # They wait for the next period, and neither end nor go on at once.
        await asyncio.sleep(0.05)
        assert (loops.running, len(tried)) == (2, 2)
        assert not loops.restarts


async def test_a_bug_in_tidying_is_not_hidden_and_starves_nobody() -> None:
    tidied: list[str] = []

    async def bug() -> None:
        raise KeyError("no such column")

    async def hang() -> None:
        await asyncio.Event().wait()

    async def tidy() -> None:
        tidied.append("last")

    async with Loops(fail, SystemClock()) as loops:
        Upkeep({"first": bug, "second": hang, "last": tidy}).start(loops, at_once)
        await wait_until(lambda: loops.restarts["upkeep of first"] > 0, "the bug is counted")
        await wait_until(lambda: bool(tidied), "the last has had its turn")
        assert list(loops.restarts) == ["upkeep of first"]


async def test_what_there_is_to_tidy_waits_until_it_may_begin() -> None:
    tidied: list[str] = []
    begin = asyncio.Event()

    async def tidy() -> None:
        tidied.append("only")

    def once_begun(run: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def wait_and_run() -> None:
            await begin.wait()
            await run()

        return wait_and_run

    async with Loops(fail, SystemClock()) as loops:
        Upkeep({"only": tidy}).start(loops, once_begun)
        await asyncio.sleep(0.05)
        assert tidied == []
        begin.set()
        await wait_until(lambda: bool(tidied), "it has had its turn")
