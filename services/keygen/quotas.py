"""How many keys an API key may have on a day, counted in blocks.

    hot      account.left > 0 and boot_s < account.until_s: account.left -= 1
    rare     await quotas.take(account, count)

A block is set aside in PostgreSQL and spent here, so a request costs no statement; what of it was
not spent for a while is given back. With the date the row is another one: nobody resets anything.
A count that fits only partly is refused whole. Where the plan has no limit keys are only counted.

Fail closed: with the block spent and PostgreSQL away nothing is given out under a limit. Those who
wait for one block share its failure, and for a second nobody asks for another.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from datetime import date
from typing import Final, NamedTuple, Protocol

from services.core.errors import RetryLater, UnknownOutcome
from services.core.hlc import rfc3339
from services.core.id_requests import KeyUse
from services.keygen.quota_store import Block, TenantUse, Unspent
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics

# Of API keys in use, 500 bytes each.
accounts_max: Final = 50_000
# What has no limit has so much left. Compiled code counts up to here without making objects.
unlimited: Final = 1 << 60
# What is used up is not looked up for every request; others may still give something back.
exhausted_known_s: Final = 0.25
# While PostgreSQL is away: nobody waits for it who comes after one that has waited in vain.
failure_known_s: Final = 1.0
# Blocks that nobody has spent from for so long are given back.
block_idle_s: Final = 5.0
forget_every_s: Final = 3_600.0
_accounts_looked_at_max: Final = 100


class QuotaLedger(Protocol):
    """PostgreSQL (quota_store.py), or what stands for it."""

    async def take(self, tenant: int, key_id: int, limit: int, needed: int, /) -> Block: ...
    async def used(self, tenant: int, key_id: int, /) -> tuple[int, float]: ...

    async def of_tenant(self, tenant: int, /) -> TenantUse: ...

    # Of these each API key (and day) may be named once.
    async def give_back(self, unspent: Sequence[Unspent], /) -> None: ...
    async def count(self, spent: Sequence[tuple[int, int, int]], /) -> None: ...

    async def forget(self) -> None: ...


class Account:
    """One API key. `left` may be spent until `until_s`, by the clock that goes on while the machine
    is suspended, as the day does."""

    __slots__ = (
        "_limit",
        "block_turn",
        "day",
        "key_id",
        "left",
        "left_at_last_look",
        "refused_until_s",
        "resets_s",
        "retry_at_s",
        "tenant",
        "until_s",
    )

    def __init__(self, tenant: int, key_id: int, limit: int | None) -> None:
        self.tenant = tenant
        self.key_id = key_id
        self._limit = limit
        self.left = 0 if limit is not None else unlimited
        self.until_s = -math.inf if limit is not None else math.inf
        self.day: date | None = None
        self.left_at_last_look = -1
        # Until when there was found to be nothing left, and when the day is over.
        self.refused_until_s = -math.inf
        self.resets_s = -math.inf
        # When another block may be asked for, if the last one could not be set aside.
        self.retry_at_s = -math.inf
        # One block at a time.
        self.block_turn = asyncio.Lock()

    @property
    def limit(self) -> int | None:
        return self._limit

    @property
    def spent_unlimited(self) -> int:
        """Not counted in PostgreSQL yet. Less than nothing, once more of it was refunded than has
        been given out since it was counted."""
        is_open = self.until_s > -math.inf
        return unlimited - self.left if self._limit is None and is_open else 0

    def close(self) -> None:
        """Nothing is spent from it any more, by whoever still has it."""
        self.left = 0
        self.until_s = -math.inf


class Quota(NamedTuple):
    used: int
    limit: int | None
    resets_at: str


class Quotas:
    def __init__(self, ledger: QuotaLedger, clock: Clock, accounts_max: int = accounts_max) -> None:
        self._ledger = ledger
        self._clock = clock
        self._accounts_max = accounts_max
        self._accounts: OrderedDict[tuple[int, int], Account] = OrderedDict()
        # What is to be given back, and what is to be counted, once PostgreSQL can be told.
        self._to_give_back: Counter[tuple[int, int, date]] = Counter()
        self._to_count: Counter[tuple[int, int]] = Counter()
        self._flushed_s = self._forgot_s = -math.inf
        self.blocks = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("quota_accounts", "gauge", "API keys whose quotas are known", self.__len__)
        metrics.add("quota_blocks", "counter", "Blocks set aside", lambda: self.blocks)
        metrics.add("quota_refused", "counter", "Requests past a quota", lambda: self.refused)

    def account(self, tenant: int, key_id: int, limit: int | None) -> Account:
        """The account of this API key, which has this limit from now on."""
        name = (tenant, key_id)
        account = self._accounts.get(name)
        if account is not None and account.limit != limit:
            self._drop(name)
            account = None
        if account is None:
            if len(self._accounts) >= self._accounts_max:
                self._make_room()
            account = self._accounts[name] = Account(tenant, key_id, limit)
        return account

    async def take(self, account: Account, count: int) -> None:
        """Spend so much. RetryLater `quota_exhausted` if it does not fit the day."""
        if self._spend(account, count):
            return
        async with account.block_turn:
            # Whoever had the turn before may have left enough. And while a block is set aside,
            # others spend what was left, or the day ends: that is no reason to refuse.
            while not self._spend(account, count):
                await self._add_block(account, count)

    async def _add_block(self, account: Account, count: int) -> None:
        limit = account.limit
        if limit is None:
            # Dropped meanwhile, which is no fault of the client's.
            raise RetryLater("overloaded", "Too many API keys are in use at once")
        now_s = self._clock.boot_s()
        left = account.left if now_s < account.until_s else 0
        if now_s < account.refused_until_s and not left:
            raise self._exhausted(account, count, limit, limit)
        block = await self._set_aside(account, limit, max(count - left, 1))
        # As of before it was asked for: by the end of the day it is spent or over.
        self._book(account, block, now_s)
        if not block.count:
            raise self._exhausted(account, count, limit, block.used - account.left)

    async def _set_aside(self, account: Account, limit: int, needed: int) -> Block:
        if self._clock.boot_s() < account.retry_at_s:
            raise RetryLater("database_unavailable", "No keys can be set aside of this day now")
        try:
            return await self._ledger.take(account.tenant, account.key_id, limit, needed)
        except (RetryLater, UnknownOutcome) as error:
            account.retry_at_s = self._clock.boot_s() + failure_known_s
            if isinstance(error, RetryLater):
                raise
            # Of the client's request nothing was done. The block may be set aside for nobody.
            raise RetryLater("database_unavailable", error.detail) from error

    def refund(self, account: Account, count: int, day: date | None) -> None:
        """What was taken and not given out; `day` is that of the account when it was taken, for on
        another one it is worth nothing."""
        if account.day == day:
            account.left += count

    async def quota(self, account: Account) -> Quota:
        used, left_s = await self._ledger.used(account.tenant, account.key_id)
        if account.limit is None:
            used += account.spent_unlimited
        elif self._clock.boot_s() < account.until_s:
            used -= account.left
        # The end of the day, whatever fractions of a second it takes to ask.
        resets_ms = round((self._clock.wall_ms() / 1000 + left_s) / 60) * 60_000
        return Quota(max(used, 0), account.limit, rfc3339(resets_ms))

    async def of_tenant(self, tenant: int) -> TenantUse:
        """What all API keys of a tenant have used. What other keygens have set aside is in it, for
        the seconds that they keep it."""
        told = await self._ledger.of_tenant(tenant)
        now_s = self._clock.boot_s()
        keys = [self._really_used(tenant, key, now_s) for key in told.keys]
        differs = sum(key.used for key in keys) - sum(key.used for key in told.keys)
        *before, today = told.days
        return TenantUse(keys, [*before, max(today + differs, 0)])

    def _really_used(self, tenant: int, key: KeyUse, now_s: float) -> KeyUse:
        account = self._accounts.get((tenant, key.key_id))
        if account is None:
            return key
        if account.limit is None:
            return KeyUse(key.key_id, max(key.used + account.spent_unlimited, 0))
        unspent = account.left if now_s < account.until_s else 0
        return KeyUse(key.key_id, max(key.used - unspent, 0))

    async def flush(self, *, everything: bool = False) -> None:
        """Give back blocks that nobody spends from, and count what has no limit."""
        now_s = self._clock.boot_s()
        if now_s - self._flushed_s >= block_idle_s or everything:
            self._flushed_s = now_s
            for account in self._accounts.values():
                self._collect(account, now_s, everything=everything)
        # What may have been noted already is not told again: too little is given out rather than
        # too much.
        if self._to_give_back:
            unspent, self._to_give_back = self._to_give_back, Counter()
            try:
                await self._ledger.give_back(
                    [Unspent(*name, count) for name, count in unspent.items()]
                )
            except RetryLater:
                self._to_give_back.update(unspent)
                raise
        if self._to_count:
            spent, self._to_count = self._to_count, Counter()
            try:
                await self._ledger.count([(*name, count) for name, count in spent.items()])
            except RetryLater:
                self._to_count.update(spent)
                raise
        if now_s - self._forgot_s >= forget_every_s:
            await self._ledger.forget()
            self._forgot_s = now_s

    def _spend(self, account: Account, count: int) -> bool:
        if account.left < count or self._clock.boot_s() >= account.until_s:
            return False
        account.left -= count
        return True

    def _book(self, account: Account, block: Block, now_s: float) -> None:
        if block.count:
            self.blocks += 1
            # What was left of another day is worth nothing on this one.
            account.left = block.count + (account.left if account.day == block.day else 0)
            account.day = block.day
            account.until_s = now_s + block.left_s
        elif account.day != block.day:
            account.left = 0
        account.resets_s = now_s + block.left_s
        if not block.count and account.limit is not None and block.used >= account.limit:
            account.refused_until_s = now_s + min(exhausted_known_s, block.left_s)

    def _exhausted(self, account: Account, count: int, limit: int, used: int) -> RetryLater:
        self.refused += 1
        wait_s = max(1, math.ceil(account.resets_s - self._clock.boot_s()))
        if count > limit:
            # To wait for the next day would be in vain.
            detail = f"{count} at once fit no day: each has {limit} keys. Ask for fewer at once"
        else:
            detail = (
                f"{used} of the {limit} keys of this day are used or set aside, and {count} more "
                "do not fit; nothing was given out. The next day begins at midnight UTC"
            )
        return RetryLater("quota_exhausted", detail, retry_after_s=wait_s)

    def _collect(self, account: Account, now_s: float, *, everything: bool) -> None:
        is_idle = account.left_at_last_look == account.left
        account.left_at_last_look = account.left
        if account.limit is None:
            # What is refunded after it was counted is taken off what comes next: it is never told
            # as a number below zero, which PostgreSQL would refuse with all others.
            if account.spent_unlimited > 0:
                self._to_count[account.tenant, account.key_id] += account.spent_unlimited
                account.left = unlimited
        elif account.left and (is_idle or everything) and not account.block_turn.locked():
            if account.day is not None and now_s < account.until_s:
                self._to_give_back[account.tenant, account.key_id, account.day] += account.left
            account.left = 0

    def _drop(self, name: tuple[int, int]) -> None:
        account = self._accounts.pop(name)
        self._collect(account, self._clock.boot_s(), everything=True)
        account.close()

    def _make_room(self) -> None:
        """Drop an account that was not used since somebody last looked; any, if all of those looked
        at were."""
        usable = None
        for _ in range(min(_accounts_looked_at_max, len(self._accounts))):
            name, account = next(iter(self._accounts.items()))
            if not account.block_turn.locked():
                usable = name
                if account.left_at_last_look == account.left:
                    break
            account.left_at_last_look = account.left
            self._accounts.move_to_end(name)
        if usable is None:
            raise RetryLater("overloaded", "Too many API keys are in use at once")
        self._drop(usable)
