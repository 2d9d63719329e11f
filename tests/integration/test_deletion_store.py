"""Who deletes the data of which closed account: one at a time, and none that is late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database
from services.usermanager.audit import Audit
from services.usermanager.deletion_store import (
    ClosedAccount,
    DeletionStore,
    LostError,
    trouble_chars_max,
)


@pytest.fixture
async def store(database_address: DatabaseAddress) -> AsyncIterator[DeletionStore]:
    async with Database(database_address) as database:
        yield DeletionStore(database, Audit(database))


@pytest.fixture
async def connection(database_address: DatabaseAddress) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**database_address.asyncpg())
    yield connection
    await connection.close()


async def taken(store: DeletionStore, lease_s: float = 60.0) -> ClosedAccount:
    account = await store.take(lease_s)
    assert account is not None
    return account


async def test_an_account_is_taken_on_by_one_until_its_lease_ends(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO closed_accounts (user_id) VALUES (1), (2), (3)")
    found = await asyncio.gather(*(store.take(60.0) for _ in range(8)))
    assert sorted(account.user_id for account in found if account is not None) == [1, 2, 3]
    account = next(account for account in found if account is not None)
    await store.go_on(account, -1.0, 5)
    again = await taken(store)
    assert again.user_id == account.user_id
    assert again.begun_at > account.begun_at


async def test_who_has_lost_an_account_has_no_say_in_it_any_more(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO closed_accounts (user_id) VALUES (1)")
    late = await taken(store, lease_s=-1.0)
    owner = await taken(store)
    for say in (
        store.go_on(late, 60.0, 100),
        store.come_back(late, 0.0),
        store.put_off(late, 0.0, "trouble"),
        store.finish(late),
    ):
        with pytest.raises(LostError):
            await say
    await store.go_on(owner, 60.0, 3)
    assert await store.finish(owner) == 3
    with pytest.raises(LostError):
        await store.finish(owner)
    assert await store.take(60.0) is None
    assert await connection.fetchval("SELECT count(*) FROM audit_log") == 1


async def test_any_text_of_a_trouble_can_be_kept(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO closed_accounts (user_id) VALUES (1)")
    await store.put_off(await taken(store), 0.0, "nul \0 and " + "ü" * 10_000)
    backlog = await store.backlog()
    assert (backlog.waiting, backlog.in_trouble) == (1, 1)
    kept = await connection.fetchval("SELECT trouble FROM closed_accounts")
    assert kept.startswith("nul   and ü")
    assert len(kept) == trouble_chars_max
    assert (await taken(store)).attempts == 1


async def test_accounts_done_with_long_ago_are_forgotten_and_no_others(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO closed_accounts (user_id, closed_at, done_at) VALUES"
        " (1, now() - interval '400 days', now() - interval '366 days'),"
        " (2, now() - interval '400 days', now() - interval '364 days'),"
        " (3, now() - interval '400 days', NULL)"
    )
    await store.tidy()
    left = await connection.fetch("SELECT user_id FROM closed_accounts ORDER BY user_id")
    assert [row["user_id"] for row in left] == [2, 3]


async def test_several_may_forget_at_once_and_nobody_waits(
    store: DeletionStore, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO closed_accounts (user_id, done_at)"
        " SELECT n, now() - interval '366 days' FROM generate_series(1, 3) AS n"
    )
    async with connection.transaction():
        await connection.execute("SELECT FROM closed_accounts WHERE user_id = 2 FOR UPDATE")
        async with asyncio.timeout(5):
            await store.tidy()
        left = await connection.fetch("SELECT user_id FROM closed_accounts")
        assert [row["user_id"] for row in left] == [2]
