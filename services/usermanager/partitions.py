"""The days of usage: a partition for each, made ahead and dropped by age.

Days are those of UTC, and which day it is PostgreSQL says: user managers whose clocks are wrong
neither lack a day nor drop one that is to be kept. Several of them may do this at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import date, timedelta
from typing import Final

import asyncpg

from services.core.errors import RetryLater
from services.runtime import telemetry
from services.runtime.metrics import Metrics
from services.runtime.postgres import Connection, Database
from services.runtime.probes import Condition, degraded, ready

# A quarter of a year, however its months fall.
days_kept: Final = 92
# Room for a weekend on which nobody reads that partitions cannot be made.
days_ahead: Final = 3
# What gateways still held when the day ended, on the first day of an installation too.
days_behind: Final = 1
# Any number that nothing else in this database takes.
lock_key: Final = 0x79646876
# While somebody waits to make days, reports wait behind; readers do not.
making_lock_ms: Final = 1_000
# While somebody waits to drop a day, everybody waits behind. A day too many harms nobody, so it
# is tried again at the next opportunity instead.
dropping_lock_ms: Final = 100

TODAY: Final = "SELECT (now() AT TIME ZONE 'UTC')::date"
DAYS: Final = """
    SELECT to_date(right(relname, 8), 'YYYYMMDD') AS day
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'usage_rollups'::regclass AND relname ~ '^usage_[0-9]{8}$'
"""
_LOCK: Final = "SELECT pg_advisory_xact_lock($1)"
_WAIT_FOR_TABLES: Final = "SET LOCAL lock_timeout = {ms}"
# Reports find out which days there are, and then rely on it.
_KEEP_REPORTS_OUT: Final = "LOCK TABLE usage_rollups IN SHARE ROW EXCLUSIVE MODE"
# In two steps, because PARTITION OF would lock out readers as well. The rows of a minute are added
# to every few seconds by each gateway: with room beside them their index need not be touched, which
# took 16 us a row in PostgreSQL instead of 28 (`make bench`).
_MAKE: Final = """
    CREATE TABLE IF NOT EXISTS usage_{day:%Y%m%d} (LIKE usage_rollups INCLUDING ALL)
        WITH (fillfactor = 70);
    ALTER TABLE usage_rollups ATTACH PARTITION usage_{day:%Y%m%d}
        FOR VALUES FROM ('{day} 00:00:00+00') TO ('{next_day} 00:00:00+00')
"""
_DROP: Final = "DROP TABLE IF EXISTS usage_{day:%Y%m%d}"


def days_wanted(today: date) -> list[date]:
    """The days that reports of today may be about; there have to be partitions of these."""
    return [today + timedelta(days=n) for n in range(-days_behind, days_ahead + 1)]


def oldest_kept(today: date) -> date:
    return today - timedelta(days=days_kept)


class Partitions:
    """Keeps the days of usage at hand."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._log = telemetry.logger("usermanager.partitions")
        # Reports that miss a day miss it together, and one of them at a time has it made.
        self._making = asyncio.Lock()
        # As they were seen last, and which of those wanted were not among them.
        self.days: frozenset[date] = frozenset()
        self.missing: frozenset[date] = frozenset()

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("usage_days", "gauge", "Days that usage is kept of", lambda: len(self.days))

    def condition(self) -> Condition:
        if not self.missing:
            return ready
        days = ", ".join(map(str, sorted(self.missing)))
        return degraded(f"usage of {days} waits with the gateways: its table cannot be made")

    async def make_for(self, days: Collection[date]) -> None:
        """Make days that reports miss, besides those of the present, whoever had made them."""
        async with self._making:
            await self.make(await self.today(), days)

    async def tidy(self) -> None:
        """Make what is missing and drop what is too old; when all is well, one look."""
        today = await self.today()
        await self.make(today)
        await self.drop(today)

    async def today(self) -> date:
        async with self._database.connection() as connection:
            today: date = await connection.fetchval(TODAY)
        return today

    async def make(self, today: date, others: Collection[date] = ()) -> None:
        """Make the days that are wanted; RetryLater if the table was busy for too long."""
        wanted = {*days_wanted(today), *others}
        await self._look(wanted)
        if self.missing:
            try:
                async with self._database.transaction() as connection:
                    await self._make(connection, wanted)
            except asyncpg.LockNotAvailableError:
                raise RetryLater(
                    "database_unavailable",
                    f"The table of usage was busy for {making_lock_ms} ms; no day could be added",
                ) from None
            await self._look(wanted)

    async def drop(self, today: date) -> None:
        """Drop the days that are too old, one by one, until one of them is in use."""
        await self._look()
        old = sorted(day for day in self.days if day < oldest_kept(today))
        for day in old:
            try:
                async with self._database.transaction() as connection:
                    await connection.execute(_LOCK, lock_key)
                    await connection.execute(_WAIT_FOR_TABLES.format(ms=dropping_lock_ms))
                    await connection.execute(_DROP.format(day=day))
            except asyncpg.LockNotAvailableError:
                self._log.info("a day of usage is in use, and is dropped later", day=str(day))
                break
            self._log.info("usage dropped by age", day=str(day), days_kept=days_kept)
        if old:
            await self._look()

    async def _make(self, connection: Connection, wanted: Collection[date]) -> None:
        await connection.execute(_LOCK, lock_key)
        await connection.execute(_WAIT_FOR_TABLES.format(ms=making_lock_ms))
        await connection.execute(_KEEP_REPORTS_OUT)
        # Another user manager may have been here since we looked.
        missing = set(wanted) - await _days(connection)
        for day in sorted(missing):
            await connection.execute(_MAKE.format(day=day, next_day=day + timedelta(days=1)))

    async def _look(self, wanted: Collection[date] | None = None) -> None:
        async with self._database.connection() as connection:
            self.days = frozenset(await _days(connection))
        if wanted is not None:
            self.missing = frozenset(wanted) - self.days


async def _days(connection: Connection) -> set[date]:
    return {row[0] for row in await connection.fetch(DAYS)}
