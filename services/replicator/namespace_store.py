"""Where declarations of namespaces are kept: PostgreSQL puts them in order.

A version counts the changes, so that who follows asks for one number as long as there are none.
Every call may raise `RetryLater`; one that writes also UnknownOutcome, and may then be repeated.
"""

from __future__ import annotations

from typing import Final, Protocol

from services.core.key import namespace_prefix
from services.replicator.declarations import Counted, Declarations, Declared, decide
from services.replicator.map_store import telling_what_is_wrong
from services.runtime.postgres import Connection, Database

_VERSION: Final = "SELECT version FROM namespace_version"
# Held until the end of the transaction, so that versions grow in the order of commits.
_LOCK: Final = "SELECT version FROM namespace_version FOR UPDATE"
_SET_VERSION: Final = "UPDATE namespace_version SET version = $1"
# One statement and so one state: the version comes along, also when nothing is declared.
_ALL: Final = """
    SELECT version, tenant, name, max_items
    FROM namespace_version LEFT JOIN namespaces ON true
"""
_ONE: Final = "SELECT coalesce(max_items, 0) FROM namespaces WHERE tenant = $1 AND name = $2"
_COUNT: Final = """
    SELECT count(*) FILTER (WHERE tenant = $1) AS of_tenant,
        count(max_items) FILTER (WHERE tenant = $1) AS caches_of_tenant,
        count(*) AS in_all, count(max_items) AS caches
    FROM namespaces
"""
_PUT: Final = """
    INSERT INTO namespaces (tenant, name, max_items) VALUES ($1, $2, nullif($3::bigint, 0))
    ON CONFLICT (tenant, name) DO UPDATE SET max_items = excluded.max_items
"""
_REMOVE: Final = "DELETE FROM namespaces WHERE tenant = $1 AND name = $2 RETURNING 1"

# Making a list of so many takes a millisecond of the loop.
rows_at_once: Final = 500


class NamespaceStore(Protocol):
    async def newest(self, known: Declarations) -> Declarations:
        """What is declared; `known` itself if nothing has changed since.

        A database that was restored from a backup is behind those who follow it. It is brought
        before them by a version that nobody has seen, and what it holds counts.
        """
        ...

    async def declare(self, prefix: bytes, max_items: int, plan_caches_max: int) -> int | None:
        """Declare a namespace, as `declarations.decide` has it; 0 for a store. The version that
        this made, or None if it was declared so already. `FixRequest` if it cannot be."""
        ...

    async def forget(self, prefix: bytes) -> int | None:
        """Remove the declaration. The version that this made, or None if there was none."""
        ...


class PostgresNamespaceStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self, known: Declarations) -> Declarations:
        with telling_what_is_wrong():
            async with self._database.connection() as connection:
                version = await connection.fetchval(_VERSION)
            if version == known.version:
                return known
            async with self._database.transaction() as connection:
                if version < known.version and await connection.fetchval(_LOCK) < known.version:
                    await connection.execute(_SET_VERSION, known.version + 1)
                return await _all(connection)

    async def declare(self, prefix: bytes, max_items: int, plan_caches_max: int) -> int | None:
        tenant, name = _named(prefix)
        with telling_what_is_wrong():
            async with self._database.transaction() as connection:
                version = int(await connection.fetchval(_LOCK)) + 1
                known = await connection.fetchval(_ONE, tenant, name)
                counted = Counted(*await connection.fetchrow(_COUNT, tenant))
                if not decide(known, max_items, counted, plan_caches_max):
                    return None
                await connection.execute(_PUT, tenant, name, max_items)
                await connection.execute(_SET_VERSION, version)
        return version

    async def forget(self, prefix: bytes) -> int | None:
        with telling_what_is_wrong():
            async with self._database.transaction() as connection:
                version = int(await connection.fetchval(_LOCK)) + 1
                if await connection.fetchval(_REMOVE, *_named(prefix)) is None:
                    return None
                await connection.execute(_SET_VERSION, version)
        return version


async def _all(connection: Connection) -> Declarations:
    version = 0
    declared: list[Declared] = []
    async for row in connection.cursor(_ALL, prefetch=rows_at_once):
        version, tenant, name, max_items = row
        if tenant is not None:
            declared.append((namespace_prefix(int(tenant), name.encode()), max_items or 0))
    return Declarations.of(version, declared)


def _named(prefix: bytes) -> tuple[int, str]:
    return int.from_bytes(prefix[:8], "big"), prefix[9:].decode()
