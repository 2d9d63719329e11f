"""Where the cluster map is kept: PostgreSQL puts its epochs in order, and forms the cluster.

Rules stand in `formation`; here is how they are applied by several replicators at once, under
one lock and in one transaction. Every call either tells `RetryLater` (`database_unavailable`),
or `UnknownOutcome` if PostgreSQL was lost while it committed. Both may be repeated: registering
again is no news, and a stamper that nobody heard of is never used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, Protocol

import asyncpg
import msgspec

from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError, PeerError
from services.replicator.formation import Registered, check_settings, decide
from services.runtime.postgres import Connection, Database

# Any number that nothing else in this database takes; migrations hold the one before it.
lock_key: Final = 0x79646875

# Released by the end of the transaction, once its commit is durable.
_LOCK: Final = "SELECT pg_advisory_xact_lock($1)"
_NEWEST: Final = "SELECT epoch, map FROM cluster_maps ORDER BY epoch DESC LIMIT 1"
_ADD_MAP: Final = "INSERT INTO cluster_maps (epoch, map) VALUES ($1, $2)"
_NODES: Final = "SELECT node_id, store_id, host, http_port, link_port, zone FROM nodes"
_PUT_NODE: Final = """
    INSERT INTO nodes (node_id, store_id, host, http_port, link_port, zone)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (node_id) DO UPDATE SET
        store_id = excluded.store_id,
        host = excluded.host,
        http_port = excluded.http_port,
        link_port = excluded.link_port,
        zone = excluded.zone,
        registered_at = now()
"""
_STAMPERS_OF: Final = "SELECT count(*) FROM replicators WHERE replicator_id = $1"
# A row, because a sequence alone is not durable: a number that another session's uncommitted
# call has logged ahead is given out without a write, and given out again after a power cut.
_ALLOT_STAMPER: Final = "INSERT INTO replicators (replicator_id) VALUES ($1) RETURNING stamper"


class MapStore(Protocol):
    async def newest(self) -> ClusterMap | None:
        """The map of the greatest epoch; None while the cluster is forming.

        To place all slots takes long where there are many nodes. A store for services does it
        before it hands out a map, so that nothing is held up when the map is adopted."""
        ...

    async def register(self, member: Member) -> Registered:
        """Take a node that says who it is; the last one that was missing forms the cluster.

        `RegistrationRefused` if it cannot be taken, and `FatalError` if the settings of this
        replicator contradict the nodes that have registered.
        """
        ...

    async def allot_stamper(self, replicator_id: str) -> int:
        """A number, 1 to 2^32 - 1, that nobody was told before and nobody will be again."""
        ...

    async def stampers_of(self, replicator_id: str) -> int:
        """How many stampers were allotted to replicators of this name."""
        ...

    def check(self, newest: ClusterMap) -> None:
        """`FatalError` if this map, the first that the replicator sees, was not formed by its
        settings."""
        ...


class PlacedMap:
    """The newest map that was found, with its slots placed: nearly always it is found again."""

    def __init__(self) -> None:
        self._newest: ClusterMap | None = None

    async def place(self, found: ClusterMap | None) -> ClusterMap | None:
        """This map with its slots placed, a piece of that in each turn of the event loop."""
        if found is None:
            return None
        if found == self._newest:
            return self._newest
        for _ in found.prepare():
            await asyncio.sleep(0)
        # A newer one may have been found, and placed, meanwhile.
        if self._newest is None or found.epoch >= self._newest.epoch:
            self._newest = found
        return found


class PostgresMapStore:
    def __init__(self, database: Database, cluster_size: int, replication_factor: int) -> None:
        self._database = database
        self._cluster_size = cluster_size
        self._replication_factor = replication_factor
        self._found = PlacedMap()

    async def newest(self) -> ClusterMap | None:
        with telling_what_is_wrong():
            async with self._database.connection() as connection:
                found = await _newest(connection)
        return await self._found.place(found)

    async def register(self, member: Member) -> Registered:
        with telling_what_is_wrong():
            async with self._database.transaction() as connection:
                await connection.execute(_LOCK, lock_key)
                decision = decide(
                    await _registrations(connection),
                    await _newest(connection),
                    member,
                    self._cluster_size,
                    self._replication_factor,
                )
                if decision.store_member:
                    await connection.execute(_PUT_NODE, *msgspec.structs.astuple(member))
                if decision.new_map is not None:
                    new_map = decision.new_map
                    await connection.execute(_ADD_MAP, new_map.epoch, new_map.encode())
        answer = decision.answer
        return replace(answer, map=await self._found.place(answer.map))

    async def allot_stamper(self, replicator_id: str) -> int:
        with telling_what_is_wrong():
            async with self._database.transaction() as connection:
                return int(await connection.fetchval(_ALLOT_STAMPER, replicator_id))

    async def stampers_of(self, replicator_id: str) -> int:
        with telling_what_is_wrong():
            async with self._database.connection() as connection:
                return int(await connection.fetchval(_STAMPERS_OF, replicator_id))

    def check(self, newest: ClusterMap) -> None:
        check_settings(newest, self._cluster_size, self._replication_factor)


async def _newest(connection: Connection) -> ClusterMap | None:
    row = await connection.fetchrow(_NEWEST)
    if row is None:
        return None
    try:
        return ClusterMap.decode(row["map"])
    except PeerError as error:
        raise FatalError(
            f"the cluster map of epoch {row['epoch']} in PostgreSQL cannot be read ({error}): it "
            "is from a newer version of ydht, or was changed by hand; restore the table "
            "cluster_maps from a backup"
        ) from error


async def _registrations(connection: Connection) -> dict[str, Member]:
    rows = await connection.fetch(_NODES)
    try:
        return {row["node_id"]: Member(**row) for row in rows}
    except ValueError as error:
        raise FatalError(
            f"the table nodes in PostgreSQL was changed by hand: {error}; delete that row, and "
            "the node will register again"
        ) from error


@contextmanager
def telling_what_is_wrong() -> Iterator[None]:
    """What no retry mends, in words for the person who runs this replicator."""
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise FatalError(
            "the schema of the database is not this version's: run `ydht migrate`"
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise FatalError(
            f"PostgreSQL refuses what a replicator has to do ({error}): run services and "
            "`ydht migrate` as the same database user"
        ) from error
    except asyncpg.SequenceGeneratorLimitExceededError as error:
        raise FatalError(
            "all 4294967295 stampers have been given out: no new replicator can be started; "
            "start those that have kept their directories"
        ) from error
