"""The contract of a store of declared namespaces, in PostgreSQL and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio

from services.core.errors import FatalError, FixRequest, RetryLater, UnknownOutcome
from services.core.key import namespace_bytes_max, namespace_prefix, tenant_max
from services.core.namespaces import caches_max, max_items_max
from services.replicator import declarations
from services.replicator.declarations import (
    Declarations,
    nothing_declared,
    tenant_declarations_max,
)
from services.replicator.memory_namespace_store import MemoryNamespaceStore, NamespaceRows
from services.replicator.namespace_store import (
    NamespaceStore,
    PostgresNamespaceStore,
    rows_at_once,
)
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database
from tests.integration.test_postgres_pool import Proxy

# A plan that stands in nobody's way here.
many = tenant_declarations_max


class Stores(Protocol):
    """One place where declarations are kept, and the replicators that use it."""

    async def replicator(self) -> NamespaceStore:
        """A store of one more replicator, with connections of its own."""
        ...

    def go_away(self) -> None: ...

    def come_back(self) -> None: ...

    def lose_a_reply(self) -> None:
        """Have the next commit happen without anybody hearing of it."""
        ...

    async def restore(self, version: int, declared: dict[bytes, int]) -> None:
        """Put back what an operator has a backup of."""
        ...


class MemoryStores:
    def __init__(self) -> None:
        self.rows = NamespaceRows()

    async def replicator(self) -> NamespaceStore:
        return MemoryNamespaceStore(self.rows)

    def go_away(self) -> None:
        self.rows.away = True

    def come_back(self) -> None:
        self.rows.away = False

    def lose_a_reply(self) -> None:
        self.rows.replies_to_lose = 1

    async def restore(self, version: int, declared: dict[bytes, int]) -> None:
        self.rows.version, self.rows.declared = version, dict(declared)


class PostgresStores:
    def __init__(self, address: DatabaseAddress, proxy: Proxy, stack: AsyncExitStack) -> None:
        self.address = address
        self._proxy = proxy
        self._stack = stack

    async def database(self) -> Database:
        database = Database(self.address, connections_max=4)
        return await self._stack.enter_async_context(database)

    async def replicator(self) -> NamespaceStore:
        return PostgresNamespaceStore(await self.database())

    def go_away(self) -> None:
        self._proxy.cut_before = lambda _: True
        self._proxy.cut()

    def come_back(self) -> None:
        self._proxy.cut_before = lambda _: False

    def lose_a_reply(self) -> None:
        def once(chunk: bytes) -> bool:
            if b"COMMIT" not in chunk:
                return False
            self._proxy.cut_after = lambda _: False
            return True

        self._proxy.cut_after = once

    async def restore(self, version: int, declared: dict[bytes, int]) -> None:
        database = await self.database()
        rows = [
            (int.from_bytes(prefix[:8], "big"), prefix[9:].decode(), items or None)
            for prefix, items in declared.items()
        ]
        async with database.transaction() as connection:
            await connection.execute("DELETE FROM namespaces")
            await connection.execute("UPDATE namespace_version SET version = $1", version)
            await connection.executemany(
                "INSERT INTO namespaces (tenant, name, max_items) VALUES ($1, $2, $3)", rows
            )


@pytest_asyncio.fixture(params=["memory", "postgres"])
async def stores(
    request: pytest.FixtureRequest, database_address: DatabaseAddress, tmp_path: Path
) -> AsyncIterator[Stores]:
    if request.param == "memory":
        yield MemoryStores()
        return
    proxy = Proxy(database_address)
    host = await proxy.start(tmp_path)
    async with AsyncExitStack() as stack:
        yield PostgresStores(replace(database_address, host=host), proxy, stack)
    await proxy.stop()


def space(name: bytes, tenant: int = 7) -> bytes:
    return namespace_prefix(tenant, name)


async def known(store: NamespaceStore) -> dict[bytes, int]:
    return dict((await store.newest(nothing_declared)).max_items)


async def refused(
    store: NamespaceStore, prefix: bytes, max_items: int, code: str, *, plan_caches_max: int = many
) -> None:
    before = await store.newest(nothing_declared)
    with pytest.raises((FixRequest, RetryLater)) as refusal:
        await store.declare(prefix, max_items, plan_caches_max)
    assert refusal.value.code == code
    assert await store.newest(before) is before


async def test_what_is_declared_is_told_with_a_version_that_grows(stores: Stores) -> None:
    store = await stores.replicator()
    assert await store.newest(nothing_declared) is nothing_declared
    assert await store.declare(space(b"cache"), 1_000, many) == 1
    assert await store.declare(space(b"store"), 0, many) == 2
    assert await store.declare(space(b"cache", 8), 5, many) == 3
    declared = {space(b"cache"): 1_000, space(b"store"): 0, space(b"cache", 8): 5}
    newest = await store.newest(nothing_declared)
    assert newest == Declarations.of(3, declared.items())
    assert newest.caches == {space(b"cache"): 1_000, space(b"cache", 8): 5}
    assert await store.newest(newest) is newest
    other = await stores.replicator()
    assert await other.newest(nothing_declared) == newest


async def test_declaring_again_what_it_is_changes_nothing(stores: Stores) -> None:
    store = await stores.replicator()
    for max_items, version in ((1_000, 1), (0, 2)):
        name = space(b"%d" % max_items)
        assert await store.declare(name, max_items, many) == version
        assert await store.declare(name, max_items, many) is None
    assert (await store.newest(nothing_declared)).version == 2


async def test_a_cache_may_become_larger_and_smaller_and_never_a_store(stores: Stores) -> None:
    store = await stores.replicator()
    await store.declare(space(b"cache"), 1_000, many)
    assert await store.declare(space(b"cache"), max_items_max, many) == 2
    assert await store.declare(space(b"cache"), 1, many) == 3
    await refused(store, space(b"cache"), 0, "already_exists")
    await store.declare(space(b"store"), 0, many)
    await refused(store, space(b"store"), 10, "already_exists")
    assert await known(store) == {space(b"cache"): 1, space(b"store"): 0}


async def test_what_is_forgotten_may_be_declared_as_anything(stores: Stores) -> None:
    store = await stores.replicator()
    assert await store.forget(space(b"cache")) is None
    await store.declare(space(b"cache"), 10, many)
    assert await store.forget(space(b"cache", 8)) is None
    assert await store.forget(space(b"cache")) == 2
    assert await known(store) == {}
    assert await store.declare(space(b"cache"), 0, many) == 3
    assert await known(store) == {space(b"cache"): 0}


async def test_a_tenant_has_its_share_of_declarations_and_others_have_theirs(
    stores: Stores,
) -> None:
    store = await stores.replicator()
    for number in range(tenant_declarations_max):
        await store.declare(space(b"%d" % number), number % 2, many)
    await refused(store, space(b"more"), 0, "limit_reached")
    await refused(store, space(b"more"), 5, "limit_reached")
    # What there is may be changed, and others may declare theirs.
    assert await store.declare(space(b"1"), 9, many) is not None
    assert await store.declare(space(b"more", 8), 5, many) is not None
    await store.forget(space(b"0"))
    assert await store.declare(space(b"more"), 5, many) is not None


async def test_a_plan_has_so_many_caches_and_stores_do_not_count(stores: Stores) -> None:
    store = await stores.replicator()
    for number in range(5):
        await store.declare(space(b"store %d" % number), 0, 0)
    for number in range(3):
        await refused(store, space(b"cache"), 5, "limit_reached", plan_caches_max=number)
        assert await store.declare(space(b"%d" % number), 5, number + 1) is not None
    await refused(store, space(b"more"), 5, "limit_reached", plan_caches_max=3)
    # Others have theirs; who has a smaller plan now keeps what there is, and may change it.
    assert await store.declare(space(b"more", 8), 5, 3) is not None
    assert await store.declare(space(b"1"), 9, 2) is not None
    assert await store.declare(space(b"1"), 9, 2) is None
    await store.forget(space(b"0"))
    await refused(store, space(b"more"), 5, "limit_reached", plan_caches_max=2)
    assert await store.declare(space(b"more"), 5, 3) is not None


async def test_the_platform_has_an_end_too(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await stores.replicator()
    full = {space(b"%d" % (number % 50), number // 50): 1 + number for number in range(caches_max)}
    await stores.restore(5, full)
    assert await known(store) == full
    await refused(store, space(b"more", 1_000), 5, "storage_full")
    assert await store.declare(space(b"more", 1_000), 0, many) == 6
    monkeypatch.setattr(declarations, "declarations_max", caches_max + 1)
    await refused(store, space(b"yet more", 1_001), 0, "storage_full")


@pytest.mark.parametrize("count", [0, 1, rows_at_once - 1, rows_at_once, rows_at_once + 1, 1_700])
async def test_a_list_of_any_length_is_told_whole(stores: Stores, count: int) -> None:
    declared = {space(b"n", tenant): tenant % 3 for tenant in range(count)}
    await stores.restore(9, declared)
    store = await stores.replicator()
    assert await store.newest(nothing_declared) == Declarations.of(9, declared.items())


async def test_names_and_tenants_come_back_as_they_are(stores: Stores) -> None:
    store = await stores.replicator()
    names = [b"n" * namespace_bytes_max, "ñé 😀 'quoted\" \\".encode(), b"%s", b"UPPER", b"upper"]
    for tenant in (0, 1, (1 << 63) - 1, 1 << 63, tenant_max):
        for name in names:
            await store.declare(space(name, tenant), max_items_max, many)
    assert len(await known(store)) == 25
    assert (await known(store)).keys() == {
        space(name, tenant)
        for name in names
        for tenant in (0, 1, (1 << 63) - 1, 1 << 63, tenant_max)
    }
    assert await store.forget(space(b"UPPER", tenant_max)) == 26
    assert space(b"upper", tenant_max) in await known(store)


async def test_a_database_that_was_restored_counts_and_is_told_as_news(stores: Stores) -> None:
    store, other = await stores.replicator(), await stores.replicator()
    for number in range(5):
        await store.declare(space(b"%d" % number), 5, many)
    first = await store.newest(nothing_declared)
    await stores.restore(2, {space(b"0"): 5, space(b"1"): 5})
    second = await store.newest(first)
    assert second.version == 6
    assert second.max_items == {space(b"0"): 5, space(b"1"): 5}
    # Whoever had what was lost, sees it as news, too, and what follows is newer yet.
    assert await other.newest(first) == second
    assert await other.declare(space(b"2"), 8, many) == 7


async def test_of_many_at_once_each_has_a_version_of_its_own(stores: Stores) -> None:
    some = [await stores.replicator() for _ in range(3)]
    made = await asyncio.gather(
        *(some[number % 3].declare(space(b"%d" % number), 5, many) for number in range(12)),
        *(some[number % 3].declare(space(b"same"), 5, many) for number in range(3)),
    )
    versions = [version for version in made if version is not None]
    assert sorted(versions) == list(range(1, 14))
    assert len(await known(some[0])) == 13


async def test_a_database_that_is_away_is_said_to_be_and_nothing_is_done(stores: Stores) -> None:
    store = await stores.replicator()
    await store.declare(space(b"cache"), 5, many)
    stores.go_away()
    for ask in (
        lambda: store.newest(nothing_declared),
        lambda: store.declare(space(b"other"), 5, many),
        lambda: store.forget(space(b"cache")),
    ):
        with pytest.raises(RetryLater) as trouble:
            await ask()
        assert trouble.value.code == "database_unavailable"
    stores.come_back()
    assert await known(store) == {space(b"cache"): 5}


async def test_a_commit_nobody_heard_of_may_be_repeated(stores: Stores) -> None:
    store = await stores.replicator()
    stores.lose_a_reply()
    with pytest.raises(UnknownOutcome):
        await store.declare(space(b"cache"), 5, many)
    assert await store.declare(space(b"cache"), 5, many) is None
    stores.lose_a_reply()
    with pytest.raises(UnknownOutcome):
        await store.forget(space(b"cache"))
    assert await store.forget(space(b"cache")) is None
    assert (await store.newest(nothing_declared)).version == 2


async def test_a_schema_that_is_older_is_said_to_be(
    database_address: DatabaseAddress,
) -> None:
    async with Database(database_address, connections_max=2) as database:
        async with database.transaction() as connection:
            await connection.execute("DROP TABLE namespace_version")
        with pytest.raises(FatalError, match="run `ydht migrate`"):
            await PostgresNamespaceStore(database).newest(nothing_declared)
