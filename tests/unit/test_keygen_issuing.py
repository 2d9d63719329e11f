"""Giving out keys: both of the day and from the pool, or neither, and soon."""

from __future__ import annotations

import asyncio

import pytest

from services.core.errors import ClientError, RetryLater
from services.keygen import issuing as issuing_module
from services.keygen.issuing import Issuing
from services.keygen.memory_ledger import MemoryLedger
from services.keygen.quotas import Quotas, block_idle_s
from tests.unit.pool_world import PoolWorld, pool_world


class Desk:
    """Pools and quotas of which each may be left without its database."""

    def __init__(self, world: PoolWorld) -> None:
        self.world = world
        self.ledger = MemoryLedger()
        self.quotas = Quotas(self.ledger, world.clock)
        self.issuing = Issuing(world.pools, self.quotas)

    async def issue(self, count: int = 1, *, limit: int | None = 1_000) -> int:
        account = self.quotas.account(7, 1, limit)
        return sum(len(one.keys) for one in await self.issuing.issue(7, account, 7, count))

    async def used(self, *, limit: int | None = 1_000) -> int:
        return (await self.quotas.quota(self.quotas.account(7, 1, limit))).used

    async def flush(self) -> None:
        self.world.timeline.advance(block_idle_s)
        await self.quotas.flush()


async def code_of(asked: asyncio.Task[int]) -> str:
    with pytest.raises(ClientError) as refused:
        await asked
    return refused.value.code


async def test_all_who_ask_a_silent_database_are_answered_by_the_same_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(issuing_module, "issue_s_max", 0.2)
    async with pool_world() as world:
        desk = Desk(world)
        desk.ledger.open.clear()
        asked = [asyncio.create_task(desk.issue()) for _ in range(12)]
        # Of ten times as long: if they waited for each other it would be twelve.
        async with asyncio.timeout(2):
            codes = [await code_of(one) for one in asked]
        assert codes == ["database_unavailable"] * 12
        desk.ledger.open.set()
        assert await desk.issue(900) == 900, "and it costs nothing of the day"


async def test_quota_and_pool_have_one_deadline_and_what_came_too_late_is_refunded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(issuing_module, "issue_s_max", 0.2)
    async with pool_world() as world:
        desk = Desk(world)
        world.ranges.hold()
        assert await code_of(asyncio.create_task(desk.issue(600))) == "database_unavailable"
        world.ranges.go_on()
        assert await desk.issue(1_000) == 1_000


async def test_a_reservation_that_fails_while_it_is_counted_costs_no_count() -> None:
    async with pool_world() as world:
        desk = Desk(world)
        world.ranges.hold()
        asked = asyncio.create_task(desk.issue(30, limit=None))
        await world.settle()
        await desk.flush()
        world.ranges.away = True
        world.ranges.go_on()
        with pytest.raises(RetryLater):
            await asked
        await desk.flush()
        world.ranges.away = False
        world.timeline.advance(1)
        assert await desk.issue(40, limit=None) == 40
        await desk.flush()
        assert await desk.used(limit=None) == 40
