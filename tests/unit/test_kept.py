"""What is kept for some seconds: found once, for each name, and not for ever."""

from __future__ import annotations

import asyncio

import pytest

from services.core.errors import RetryLater
from services.runtime.clock import FakeClock, Timeline
from services.usermanager.kept import Kept


class Shelf:
    def __init__(self, names_max: int = 10) -> None:
        self.timeline = Timeline()
        self.kept: Kept[str, str] = Kept(FakeClock(self.timeline), 10.0, names_max)
        self.asked: list[str] = []
        self.trouble: RetryLater | None = None

    async def of(self, name: str) -> str:
        async def find() -> str:
            self.asked.append(name)
            await asyncio.sleep(0)
            if self.trouble is not None:
                raise self.trouble
            return f"{name} {len(self.asked)}"

        return await self.kept.of(name, find)


async def test_many_who_ask_at_once_have_it_found_once() -> None:
    shelf = Shelf()
    assert set(await asyncio.gather(*(shelf.of("ada") for _ in range(50)))) == {"ada 1"}
    assert await shelf.of("bob") == "bob 2"
    assert shelf.asked == ["ada", "bob"]


async def test_it_is_found_anew_after_its_seconds() -> None:
    shelf = Shelf()
    await shelf.of("ada")
    shelf.timeline.advance(10)
    assert await shelf.of("ada") == "ada 1"
    shelf.timeline.advance(0.1)
    assert await shelf.of("ada") == "ada 2"


async def test_what_could_not_be_found_is_asked_again_at_once() -> None:
    shelf = Shelf()
    shelf.trouble = RetryLater("overloaded", "Not now")
    with pytest.raises(RetryLater):
        await shelf.of("ada")
    shelf.trouble = None
    assert await shelf.of("ada") == "ada 2"


async def test_names_make_room_for_others() -> None:
    shelf = Shelf(names_max=3)
    for number in range(100):
        await shelf.of(f"name {number}")
        await shelf.of("ada")
    assert len(shelf.kept) == 3
    assert shelf.asked.count("ada") == 1
