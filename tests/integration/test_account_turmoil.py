"""Many at once on one account: whatever they do to each other, nothing ends in a bug."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Final

import httpx
import pytest_asyncio

from services.runtime.database_url import DatabaseAddress
from tests.integration.accounts_world import LoggedIn, World, accounts_world, good_password

# By what people do to each other, some deed may never come to pass in one round.
rounds_max: Final = 20


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[World]:
    async with accounts_world(database_address) as world:
        yield world


async def test_everything_at_once_on_one_account_never_ends_in_a_bug(world: World) -> None:
    """Logins, refreshes, new passwords, endings and closings lock the same rows."""
    found: set[tuple[str, int]] = set()
    every_deed = {"/login", *Restless.deeds}
    for round_ in range(rounds_max):
        await open_account(world)
        people = [Restless(world, random.Random(10 * round_ + number)) for number in range(10)]
        await asyncio.gather(*(person.live(12) for person in people))
        found.update(*(person.seen for person in people))
        world.timeline.advance(1_000)
        assert {status for _, status in found} <= {200, 201, 204, 401, 404, 409, 429}, found
        done = {what for what, status in found if status in (200, 204)}
        if round_ >= 3 and done == every_deed:
            break
    assert done == every_deed


async def open_account(world: World) -> httpx.Response:
    document = {"email": "ada@example.com", "username": "ada", "password": good_password}
    return await world.ask("POST", "/signup", json=document)


class Restless:
    """Somebody who logs in to the one account and does whatever comes to mind, again and again."""

    passwords = (good_password, "another password")
    deeds = ("/refresh", "/refresh", "/me/password", "/logout", "DELETE /me", "DELETE /sessions")

    def __init__(self, world: World, draw: random.Random) -> None:
        self.world = world
        self.draw = draw
        self.address = f"192.0.2.{draw.randrange(256)}"
        self.seen: set[tuple[str, int]] = set()

    async def live(self, turns: int) -> None:
        for _ in range(turns):
            password = self.draw.choice(self.passwords)
            answer = await self.world.try_login("ada@example.com", password, self.address)
            self.seen.add(("/login", answer.status_code))
            if answer.status_code == 200:
                await self._go_on(LoggedIn(self.world, answer.json()))

    async def _go_on(self, session: LoggedIn) -> None:
        """Until the session ends."""
        status = 200
        while status in (200, 404):
            what = self.draw.choice(self.deeds)
            answer = await self._do(what, session)
            status = answer.status_code
            self.seen.add((what, status))
            if what == "/refresh" and status == 200 and self.draw.random() < 0.7:
                session.answer = answer.json()

    async def _do(self, what: str, session: LoggedIn) -> httpx.Response:
        old, new = self.draw.sample(self.passwords, 2)
        if what == "/refresh":
            return await self.world.try_refresh(session.answer["refresh_token"])
        if what == "/me/password":
            body = {"current_password": old, "new_password": new}
            return await session.ask("POST", what, json=body)
        if what == "/logout":
            return await session.ask("POST", what)
        if what == "DELETE /me":
            answer = await session.ask("DELETE", "/me", json={"password": old})
            await open_account(self.world)
            return answer
        # Refused or empty, if the session has been ended meanwhile.
        listed = (await session.ask("GET", "/sessions")).json().get("sessions") or [{"id": 1}]
        return await session.ask("DELETE", f"/sessions/{self.draw.choice(listed)['id']}")
