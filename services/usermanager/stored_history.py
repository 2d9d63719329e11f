"""How much accounts have had stored, hour by hour, for the sparklines of the overview.

    usage reported ──an account has changed something──► due ──now and then──► measured ──► a row

Only who changes something is measured, and whoever looks at the figures anyway; so an hour without
a row is like the one before it, but for values that expired. However many accounts there are, a
user manager measures at most so many in a period; those that it does not come to have their turn
in the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from services.core.errors import ClientError
from services.core.usage_report import UsageReport, count_max
from services.runtime import telemetry
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database

hours_shown: Final = 24
kept_days: Final = 2
forgotten_max: Final = 10_000
# Each measurement asks every node of the cluster: one in two seconds is nothing to them.
period_s: Final = 300.0
measured_per_period_max: Final = 150
# So many that cannot be measured, and nobody can for the moment.
failures_max: Final = 3
# Accounts that wait; 10 MB. Of more, some hours have no row.
due_max: Final = 100_000
changing: Final = frozenset(("put", "delete", "patch", "incr", "batch", "delete_prefix"))

_RECORD: Final = """
    INSERT INTO stored_history (user_id, hour, keys, bytes)
    VALUES ($1, date_trunc('hour', now(), 'UTC'), least($2, $4::bigint), least($3, $4::bigint))
    ON CONFLICT (user_id, hour) DO UPDATE SET keys = excluded.keys, bytes = excluded.bytes
"""
# With the last row before, which is how it was when the period began.
_HOURS: Final = """
    SELECT hour, keys, bytes, date_trunc('hour', now(), 'UTC') AS this_hour FROM stored_history
    WHERE user_id = $1 ORDER BY hour DESC LIMIT $2
"""
_FORGET: Final = """
    DELETE FROM stored_history WHERE (user_id, hour) IN (
        SELECT user_id, hour FROM stored_history
        WHERE hour < now() - make_interval(days => $1) ORDER BY hour LIMIT $2
    )
"""

log = telemetry.logger("services.usermanager")


class Amount(NamedTuple):
    keys: int
    bytes: int


class Sample(NamedTuple):
    hour: datetime
    amount: Amount


# None: nobody can tell now.
Measure = Callable[[int], Awaitable[Amount | None]]


class StoredHistory:
    def __init__(self, database: Database, measure: Measure) -> None:
        self._database = database
        self._measure = measure
        # A dict for its order: who waits for the longest is first.
        self._due: dict[int, None] = {}
        self.measured = 0
        self.dropped = 0

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("stored_due", "gauge", "Accounts to be measured", lambda: len(self._due))
        metrics.add("stored_measured", "counter", "Accounts measured", lambda: self.measured)
        metrics.add(
            "stored_dropped",
            "counter",
            "Accounts there was no room to measure",
            lambda: self.dropped,
        )

    def note(self, report: UsageReport) -> None:
        """Somebody has changed something."""
        for rollup in report.rollups:
            if rollup.operation not in changing or rollup.status >= 400:
                continue
            if len(self._due) >= due_max and rollup.user_id not in self._due:
                self.dropped += 1
            else:
                self._due[rollup.user_id] = None

    async def run(self) -> None:
        """Measure now and then, until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.measure_due()
            except ClientError as error:
                log.warning("what is stored was not noted", accounts=len(self._due), why=str(error))

    async def measure_due(self) -> None:
        """Those that are due, as many as a period takes; one that cannot be measured has its turn
        again behind the others."""
        failures = 0
        for user_id in list(self._due)[:measured_per_period_max]:
            # Before, so that what is changed meanwhile makes it due again.
            del self._due[user_id]
            amount = await self._measure(user_id)
            if amount is None:
                self._due[user_id] = None
                failures += 1
                if failures == failures_max:
                    return
            else:
                await self.record(user_id, amount)
                self.measured += 1

    async def record(self, user_id: int, amount: Amount) -> None:
        """So much is stored now. RetryLater if it cannot be noted."""
        async with self._database.transaction() as connection:
            await connection.execute(_RECORD, user_id, amount.keys, amount.bytes, count_max)

    async def hours(self, user_id: int) -> list[Amount]:
        """Of each of the last hours, this one as the last; none from before anything was known."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_HOURS, user_id, hours_shown + 1)
        if not rows:
            return []
        samples = [Sample(row["hour"], Amount(row["keys"], row["bytes"])) for row in reversed(rows)]
        return filled(samples, rows[0]["this_hour"])

    async def tidy(self) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(_FORGET, kept_days, forgotten_max)


def filled(samples: Sequence[Sample], this_hour: datetime) -> list[Amount]:
    """Where there is no sample it is as before; samples are in the order of time."""
    begin = max(samples[0].hour, this_hour - timedelta(hours=hours_shown - 1))
    amounts: list[Amount] = []
    last, following = samples[0].amount, 0
    hour = begin
    while hour <= this_hour:
        while following < len(samples) and samples[following].hour <= hour:
            last = samples[following].amount
            following += 1
        amounts.append(last)
        hour += timedelta(hours=1)
    return amounts
