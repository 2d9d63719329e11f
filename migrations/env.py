"""How alembic reaches the database: by asyncpg, at the address the caller gave, one at a time.

Run by `services.runtime.migrations.migrate`, or by alembic's own command, which makes new
revisions: `alembic -c migrations/alembic.ini revision -m "Add …"`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from services.core.errors import FatalError
from services.runtime.database_url import DatabaseAddress
from services.runtime.migrations import address_from

# Any number will do, as long as nothing else in this database takes the same one: "ydht" in hex.
lock_key = 0x79646874
# Another process that migrates is usually another replica of ours that was started just before.
lock_s_max = 120.0
lock_poll_s = 0.1


@asynccontextmanager
async def alone(connection: AsyncConnection) -> AsyncIterator[None]:
    """Hold the lock of those who migrate this database.

    Asked for again and again rather than waited for: a waiting statement holds a snapshot, and
    the lock's holder may be building an index concurrently, which waits for all snapshots.
    """
    deadline_s = asyncio.get_running_loop().time() + lock_s_max
    take = text("SELECT pg_try_advisory_lock(:key)")
    while not await connection.scalar(take, {"key": lock_key}):
        await connection.rollback()
        if asyncio.get_running_loop().time() > deadline_s:
            raise FatalError(
                f"another process has been migrating this database for {lock_s_max:.0f} s:"
                " wait for it, or end it"
            )
        await asyncio.sleep(lock_poll_s)
    # The lock belongs to the session, so it outlives this transaction and every revision's.
    await connection.commit()
    try:
        yield
    finally:
        if not connection.closed and not connection.invalidated:
            await connection.rollback()
            await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": lock_key})
            await connection.commit()


def run(connection: Connection) -> None:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def run_online(address: DatabaseAddress) -> None:
    url, arguments = address.sqlalchemy()
    engine = create_async_engine(url, connect_args=arguments, poolclass=NullPool)
    async with engine.connect() as connection, alone(connection):
        await connection.run_sync(run)


def run_offline() -> None:
    """Print the SQL instead, for those who apply it by hand: `upgrade --sql`."""
    context.configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    asyncio.run(run_online(context.config.attributes.get("address") or address_from(os.environ)))
