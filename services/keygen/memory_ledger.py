"""Quotas in memory, for tests: what quota_store.py keeps in PostgreSQL, shared by keygens."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Final

from services.core.errors import RetryLater, UnknownOutcome
from services.core.id_requests import KeyUse, days_told, keys_told_max
from services.keygen.quota_store import Block, TenantUse, Unspent, block_share

_first_day: Final = date(2026, 1, 1)


class MemoryLedger:
    def __init__(self) -> None:
        self.day = _first_day
        self.left_s = 3_600.0
        self.away = False
        # So many blocks are set aside whose commits are not answered.
        self.lose_replies = 0
        # Blocks that were asked for, and those of them that were set aside or refused.
        self.asked = self.taken = 0
        # Cleared by a test that lets whoever sets a block aside wait.
        self.open = asyncio.Event()
        self.open.set()
        self._used: Counter[tuple[int, int, date]] = Counter()

    def next_day(self) -> None:
        self.day += timedelta(days=1)

    async def take(self, tenant: int, key_id: int, limit: int, needed: int, /) -> Block:
        self.asked += 1
        await self.open.wait()
        self._check()
        self.taken += 1
        name = (tenant, key_id, self.day)
        left = limit - self._used[name]
        count = 0 if left < needed else max(needed, left // block_share)
        self._used[name] += count
        if self.lose_replies:
            self.lose_replies -= 1
            raise UnknownOutcome("PostgreSQL was lost while it committed")
        return Block(self.day, count, self._used[name], self.left_s)

    async def used(self, tenant: int, key_id: int, /) -> tuple[int, float]:
        self._check()
        return self._used[tenant, key_id, self.day], self.left_s

    async def of_tenant(self, tenant: int, /) -> TenantUse:
        self._check()
        own = {name[1:]: used for name, used in self._used.items() if name[0] == tenant and used}
        keys = [KeyUse(key_id, used) for (key_id, day), used in own.items() if day == self.day]
        days = [self.day - timedelta(days=ago) for ago in reversed(range(days_told))]
        sums = [sum(used for (_, of), used in own.items() if of == day) for day in days]
        return TenantUse(
            sorted(keys, key=lambda key: (-key.used, key.key_id))[:keys_told_max], sums
        )

    async def give_back(self, unspent: Sequence[Unspent], /) -> None:
        self._check()
        _check_once([(one.tenant, one.key_id, one.day) for one in unspent])
        for one in unspent:
            self._used[one.tenant, one.key_id, one.day] -= one.count

    async def count(self, spent: Sequence[tuple[int, int, int]], /) -> None:
        self._check()
        _check_once([(tenant, key_id) for tenant, key_id, _ in spent])
        for tenant, key_id, count in spent:
            if count < 0:
                raise ValueError(f"less than nothing was spent by key {key_id}")
            self._used[tenant, key_id, self.day] += count

    async def forget(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.away:
            raise RetryLater("database_unavailable", "PostgreSQL is away")


def _check_once(names: Sequence[object]) -> None:
    """As one statement changes a row once."""
    if len(set(names)) < len(names):
        raise ValueError("an API key is named twice")
