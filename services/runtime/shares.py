"""Shares of something that all use, such as the connections of a pool.

Whoever asks for much at once waits for what it has asked for before, and not for others, nor they
for it. Waiting is bounded in number and in time, and each refusal is a RetryLater.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from services.core.errors import RetryLater


@dataclass(slots=True, frozen=True)
class ShareLimit:
    """What one may have: so many at once, so many that wait, and each for no longer than this."""

    at_once: int
    waiting_max: int
    wait_s_max: float
    # What who asks for more is refused with, and what it has too much of, as people call it.
    code: str
    what: str


@dataclass(slots=True)
class _Share:
    free: asyncio.Semaphore
    users: int = field(default=0)


class Shares:
    """Each has its own share, and is remembered while it has or wants anything."""

    def __init__(self, limit: ShareLimit) -> None:
        self._limit: Final = limit
        self._shares: dict[Hashable, _Share] = {}
        self.refused = 0

    def __len__(self) -> int:
        return len(self._shares)

    @asynccontextmanager
    async def of(self, whose: Hashable) -> AsyncIterator[None]:
        """Let the block run when the share has room, first come, first served."""
        limit = self._limit
        share = self._shares.get(whose)
        if share is None:
            share = self._shares[whose] = _Share(asyncio.Semaphore(limit.at_once))
        if share.users >= limit.at_once + limit.waiting_max:
            raise self._full(f"{share.users} {limit.what} are under way already")
        share.users += 1
        try:
            await self._enter(share)
            try:
                yield
            finally:
                share.free.release()
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[whose]

    async def _enter(self, share: _Share) -> None:
        limit = self._limit
        try:
            async with asyncio.timeout(limit.wait_s_max):
                await share.free.acquire()
        except TimeoutError:
            detail = f"{limit.at_once} {limit.what} took longer than {limit.wait_s_max:g} s"
            raise self._full(detail) from None

    def _full(self, detail: str) -> RetryLater:
        self.refused += 1
        return RetryLater(self._limit.code, detail)
