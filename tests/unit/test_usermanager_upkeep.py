"""Upkeep of a user manager: everything gets its turn, whatever the others run into."""

from __future__ import annotations

import asyncio

import pytest

from services.core.errors import RetryLater, UnknownOutcome
from services.usermanager.upkeep import Upkeep
from tests.waiting import wait_until


async def test_what_cannot_be_tidied_now_does_not_hold_up_the_rest() -> None:
    tidied: list[str] = []

    async def away() -> None:
        raise RetryLater("database_unavailable", "It is away")

    async def lost() -> None:
        raise UnknownOutcome("It was lost")

    async def tidy() -> None:
        tidied.append("last")

    task = asyncio.create_task(Upkeep({"first": away, "second": lost, "last": tidy}).run())
    await wait_until(lambda: tidied, "the last has had its turn")
    # It waits for the next period, and neither ends nor goes on at once.
    await asyncio.sleep(0.05)
    assert not task.done()
    assert tidied == ["last"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_bug_in_tidying_is_not_hidden() -> None:
    async def bug() -> None:
        raise KeyError("no such column")

    with pytest.raises(KeyError):
        await Upkeep({"first": bug}).run()
