"""Keygens that tell what they are done with while others take keys back wait for each other in one
direction alone: a deadlock would end one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from services.keygen.marks import Marks
from services.keygen.range_store import Leavings, RangeStore, Wish
from services.keygen.return_store import Name, ReturnStore
from services.keygen.watch_store import WatchStore
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database
from tests.integration.replicator_process import until_told

ada = 7
instance = 1


@asynccontextmanager
async def watched(address: DatabaseAddress) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**address.asyncpg())
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("dying", [False, True])
async def test_who_closes_ranges_holds_no_returned_key_meanwhile(
    database_address: DatabaseAddress, *, dying: bool
) -> None:
    wish = Wish(ada, 7, 1, 10, 10, 100)
    async with (
        Database(database_address) as database,
        watched(database_address) as other,
        watched(database_address) as watcher,
    ):
        ranges, returns = RangeStore(database, return_rest_s=0.0), ReturnStore(database)
        await ranges.register(instance, "", 60.0, None)
        assert (await WatchStore(database).look(instance, Marks())).is_roll_over
        first = (await ranges.refill(instance, wish)).reserved
        assert first is not None
        await ranges.leave(instance, Leavings(ranges=[first.range_id]))
        await returns.take_back(ada, await returns.look(ada, [Name(7, 0), Name(7, 1)]))
        refill = await ranges.refill(instance, Wish(ada, 7, 1, 10, 10, 100))
        assert refill.claimed is not None
        assert refill.reserved is not None
        # As who takes keys back: ranges, and then what is returned.
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM key_ranges ORDER BY id FOR SHARE")
        if dying:
            await ranges.end_lease(instance)
            closing: asyncio.Task[object] = asyncio.create_task(ranges.bury())
        else:
            done = Leavings(ranges=[refill.reserved.range_id], claims=[refill.claimed.claim_id])
            closing = asyncio.create_task(ranges.leave(instance, done))

        async def waits() -> bool | None:
            sql = "SELECT true FROM pg_locks WHERE NOT granted LIMIT 1"
            return await watcher.fetchval(sql) is not None or None

        await until_told(waits, "the other waits for the ranges")
        await other.execute("SELECT FROM returned_keys ORDER BY size, index FOR UPDATE")
        await transaction.commit()
        await closing
        assert (
            await watcher.fetchval("SELECT count(*) FROM key_ranges WHERE closed_at IS NULL") == 0
        )
        assert await watcher.fetchval("SELECT count(*) FROM returned_keys") == 0
