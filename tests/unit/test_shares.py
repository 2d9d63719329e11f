"""Shares: how many at once, who waits for whom, and that nothing is kept of who has left."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from services.core.errors import RetryLater
from services.runtime.shares import ShareLimit, Shares
from tests.waiting import wait_until

limit = ShareLimit(2, 3, 30, "rate_limited", "requests of this account")


class Crowd:
    """Blocks under shares, which last until they are let go."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.inside: list[str] = []
        self.peak = 0
        self.go = asyncio.Event()

    def enter(self, whose: str, name: str = "") -> asyncio.Task[None]:
        return asyncio.create_task(self._enter(whose, name))

    async def _enter(self, whose: str, name: str) -> None:
        async with self.shares.of(whose):
            self.inside.append(whose + name)
            await self.go.wait()
            self.inside.remove(whose + name)


async def test_no_more_than_the_share_is_inside_and_the_rest_follows_in_its_order() -> None:
    shares, order, inside, peak = Shares(limit), [], 0, 0

    async def enter(number: int) -> None:
        nonlocal inside, peak
        async with shares.of("ada"):
            order.append(number)
            inside += 1
            peak = max(peak, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(enter(number) for number in range(5)))
    assert (peak, order) == (2, [0, 1, 2, 3, 4])
    assert len(shares) == 0


async def test_who_asks_for_more_than_may_wait_is_refused_and_nobody_else_is() -> None:
    crowd = Crowd(Shares(limit))
    tasks = [crowd.enter("eve") for _ in range(5)]
    await wait_until(lambda: len(crowd.inside) == 2, "two are inside")
    with pytest.raises(RetryLater, match="5 requests of this account") as refused:
        await crowd.enter("eve")
    assert refused.value.code == "rate_limited"
    tasks.append(crowd.enter("ada"))
    await wait_until(lambda: "ada" in crowd.inside, "another is not held up")
    crowd.go.set()
    await asyncio.gather(*tasks)
    assert (crowd.shares.refused, len(crowd.shares)) == (1, 0)


async def test_waiting_ends_when_its_time_is_over_and_leaves_the_room_to_others() -> None:
    crowd = Crowd(Shares(ShareLimit(1, 3, 0.05, "overloaded", "changes")))
    first = crowd.enter("ada")
    await wait_until(lambda: crowd.inside, "one is inside")
    with pytest.raises(RetryLater, match=r"longer than 0\.05 s"):
        await crowd.enter("ada")
    crowd.go.set()
    await first
    await crowd.enter("ada")
    assert len(crowd.shares) == 0


async def test_who_leaves_while_waiting_or_inside_makes_room() -> None:
    crowd = Crowd(Shares(limit))
    tasks = [crowd.enter("ada", str(number)) for number in range(5)]
    await wait_until(lambda: len(crowd.inside) == 2, "two are inside")
    for number in (3, 0):
        tasks[number].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[number]
    await wait_until(lambda: "ada2" in crowd.inside, "the next is let in")
    assert "ada4" not in crowd.inside
    crowd.go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(crowd.shares) == 0


async def test_a_block_that_fails_gives_its_place_back() -> None:
    shares = Shares(limit)
    for _ in range(10):
        with pytest.raises(KeyError):
            async with shares.of("ada"):
                raise KeyError
    assert (len(shares), shares.refused) == (0, 0)
