"""API keys of a user manager in memory, and credentials on them, with a clock that tests move.

    async with key_world() as world:
        key = world.make(tenant=7)
        credential = await world.credentials.find(key, "192.0.2.1")

It answers as a user manager does: by hash, with the number of the last event, and with pages of
events. `away` makes it fail, `hold` lets requests wait until `go_on`. Events are heard by
`await world.hear()`, one poll that waits for nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from services.core.api_key import lookup_hash, lookup_subkey, new_key
from services.core.errors import FixRequest, RetryLater
from services.core.key_checks import (
    KeyEvent,
    KeyEventPage,
    KeyEventsQuery,
    ValidateKey,
    ValidKey,
)
from services.core.plans import plan_named
from services.runtime.allowance import Allowances
from services.runtime.clock import FakeClock, Timeline
from services.runtime.credential import Credential
from services.runtime.credentials import Credentials
from services.runtime.key_news import KeyNews

pepper = lookup_subkey("k9XvTq2mWz7bRf4nHs8cYd3gLp6jUe5a")
here = "192.0.2.1"
_seeds = itertools.count(11)


@dataclass(slots=True)
class HeldKey:
    tenant: int
    key_id: int
    plan: str
    members: dict[str, Any]
    revoked: bool = False


class MemoryKeys:
    """The keys and events of one database."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._rng = random.Random(next(_seeds))
        self._keys: dict[str, HeldKey] = {}
        self._events: list[KeyEvent] = []
        self._first_kept = 1
        self._numbers = 0
        self.last = 0
        self.away = False
        self.asked = 0
        self._open = asyncio.Event()
        self._open.set()
        # Asked for, and held back after they were looked up.
        self.held = 0

    def make(self, tenant: int = 7, *, plan: str = "free", **members: Any) -> bytes:
        key = new_key(self._rng.randrange)
        self._numbers += 1
        name = lookup_hash(pepper, key).hex()
        self._keys[name] = HeldKey(tenant, self._numbers, plan, members)
        return key.encode()

    def of(self, key: bytes) -> HeldKey:
        return self._keys[lookup_hash(pepper, key.decode()).hex()]

    def revoke(self, key: bytes) -> None:
        held = self.of(key)
        held.revoked = True
        self.tell(held.tenant, held.key_id)

    def change_plan(self, tenant: int, plan: str) -> None:
        for held in self._keys.values():
            if held.tenant == tenant:
                held.plan = plan
        self.tell(tenant, None)

    def tell(self, tenant: int, key_id: int | None) -> None:
        self.last += 1
        self._events.append(KeyEvent(self.last, tenant, key_id))

    def forget_events(self) -> None:
        """As upkeep does with those that are a day old."""
        self._first_kept = self.last + 1
        self._events.clear()

    def restore(self, last: int) -> None:
        """From a backup, in which fewer events had been told."""
        self.last = last
        self._events = [event for event in self._events if event.id <= last]

    def hold(self) -> None:
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    async def validate_key(self, asked: ValidateKey) -> ValidKey:
        self.asked += 1
        answer = self._look_up(asked.key_hash or "")
        self.held += 1
        await self._open.wait()
        self.held -= 1
        await asyncio.sleep(0)
        if isinstance(answer, ValidKey):
            return answer
        raise answer

    async def key_events(self, asked: KeyEventsQuery) -> KeyEventPage:
        await asyncio.sleep(0)
        if self.away:
            raise RetryLater("auth_unavailable", "it is away")
        if asked.after is None:
            return KeyEventPage([], self.last, reset=False)
        if asked.after > self.last or asked.after + 1 < self._first_kept:
            return KeyEventPage([], self.last, reset=True)
        events = [event for event in self._events if event.id > asked.after]
        return KeyEventPage(events, self.last, reset=False)

    def _look_up(self, name: str) -> ValidKey | FixRequest | RetryLater:
        if self.away:
            return RetryLater("auth_unavailable", "it is away")
        held = self._keys.get(name)
        if held is None or held.revoked:
            return FixRequest("invalid_api_key", "none")
        held_to = held.members.get("held_to")
        limits = plan_named(held.plan).limits(held_to)
        answer = ValidKey(
            user_id=held.tenant,
            key_id=held.key_id,
            scopes=["read", "write"],
            prefix=None,
            expires_at=None,
            plan=held.plan,
            requests_per_minute=limits.requests_per_minute,
            burst=limits.burst,
            event_id=self.last,
        )
        return msgspec.structs.replace(answer, **held.members)


class KeyWorld:
    def __init__(self, **options: Any) -> None:
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        self.keys = MemoryKeys(self.clock)
        self.allowances = Allowances()
        self.credentials = Credentials(self.keys, pepper, self.allowances, self.clock, **options)

    @property
    def news(self) -> KeyNews:
        return self.credentials.news

    def now_s(self) -> float:
        return self.clock.monotonic_s()

    def after(self, seconds: float) -> None:
        self.timeline.advance(seconds)

    def in_s(self, seconds: float) -> datetime:
        now = datetime.fromtimestamp(self.clock.wall_ms() / 1000, UTC)
        return now + timedelta(seconds=seconds)

    async def find(self, key: bytes, address: str = here) -> Credential:
        return await self.credentials.find(key, address)

    def cached(self, key: bytes) -> Credential | None:
        return self.credentials.cached(key, self.now_s())

    async def refusal(self, key: bytes, address: str = here) -> str:
        """The code that the key is refused with."""
        try:
            found = await self.find(key, address)
        except (FixRequest, RetryLater) as error:
            return error.code
        raise AssertionError(f"the key was not refused: {found.key_id}")

    async def hear(self) -> None:
        """One poll that ends at once, or fails."""
        await self.news.poll()

    async def settle(self) -> None:
        """Until what goes on in the background has ended."""
        for _ in range(20):
            await asyncio.sleep(0)


@asynccontextmanager
async def key_world(**options: Any) -> AsyncIterator[KeyWorld]:
    world = KeyWorld(**options)
    async with world.credentials:
        await world.hear()
        yield world
