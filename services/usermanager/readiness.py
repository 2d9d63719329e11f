"""When a user manager can do what it is there for: while PostgreSQL answers, with our tables."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg

from services.core.errors import RetryLater
from services.runtime import telemetry
from services.runtime.postgres import Database
from services.runtime.probes import Condition, Readiness, ready, unready

# The revision of the schema that this code needs. A newer one only adds to it.
revision_needed: Final = "0010"
# How soon it shows that PostgreSQL went or came back; one short statement each time.
look_s: Final = 1.0

_REVISION: Final = "SELECT version_num FROM alembic_version"

log = telemetry.logger("services.usermanager")


class DatabaseWatch:
    """Looks at the database by and by, so that /ready can answer from memory.

    Until it has seen our tables, requests and loops that need them wait for that. From then on
    each finds out by itself whether the database is there, and is served as soon as it is; until
    somebody takes the tables away.
    """

    def __init__(self, database: Database, place: str) -> None:
        """`place` is where the database is, for the log; clients are not told."""
        self._database = database
        self._place = place
        self._found = asyncio.Event()
        self.trouble: str | None = "it has not been asked yet"

    def add_to(self, readiness: Readiness) -> None:
        readiness.add("database", self._check)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            trouble = await self._look()
            if trouble != self.trouble:
                # Said once each time it changes, not once a second.
                if trouble is None:
                    log.info("database is there", place=self._place)
                else:
                    log.warning("database is missing", trouble=trouble, place=self._place)
            self.trouble = trouble
            await asyncio.sleep(look_s)

    async def require(self) -> None:
        """Return if our tables were there when they were last looked for; else RetryLater."""
        if self._found.is_set():
            return
        if await schema_trouble(self._database) is not None:
            raise RetryLater("database_unavailable", "The database is not set up yet")
        self._found.set()

    def once_found(self, run: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """The same loop, which begins when our tables are there."""

        async def wait_and_run() -> None:
            await self._found.wait()
            await run()

        return wait_and_run

    async def _look(self) -> str | None:
        try:
            trouble = await schema_trouble(self._database)
        except RetryLater as error:
            return error.detail
        if trouble is None:
            self._found.set()
        else:
            # They were taken away: to be waited for again, rather than missed by each.
            self._found.clear()
        return trouble

    def _check(self) -> Condition:
        if self.trouble is None:
            return ready
        return unready(f"accounts and API keys are in PostgreSQL, and {self.trouble}")


async def schema_trouble(database: Database) -> str | None:
    """What the schema of the database lacks, if anything; RetryLater if it cannot be asked."""
    try:
        async with database.connection() as connection:
            revision = await connection.fetchval(_REVISION)
    except asyncpg.UndefinedTableError:
        revision = None
    # Revisions are numbered with four digits each, and so in the order of their texts.
    if revision is not None and revision >= revision_needed:
        return None
    return (
        f"its schema is at {revision or 'nothing'} and {revision_needed} is needed: "
        "run `ydht migrate`"
    )
