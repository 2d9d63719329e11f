"""SQL of usage: reports on their way in, and sums on their way out.

A report is claimed and its rows are added in one transaction, so that it counts as a whole or not
at all. Its rows are locked in the order of the primary key, as those of every report, and before
them the row of its sender alone: no two reports can wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Final, NamedTuple

import asyncpg
import msgspec

from services.core.usage_report import Rollup, count_max, latency_buckets
from services.runtime.postgres import Connection
from services.usermanager.partitions import DAYS, TODAY, days_ahead, days_kept

# How far behind its latest report an earlier one of the same sender may arrive. Those before are
# taken for counted; there are never more holes than this to remember.
reports_remembered: Final = 1_024

# How many requests there were of each bucket of latencies, in columns of their own: PostgreSQL adds
# those up ten times as fast as arrays.
latencies: Final = tuple(f"latency_{bucket}" for bucket in range(latency_buckets))
_LATENCIES: Final = ", ".join(latencies)
_LATENCY_ARRAYS: Final = ", ".join(f"${13 + bucket}::bigint[]" for bucket in range(latency_buckets))
_LATENCY_SUMS: Final = ", ".join(f"least(sum({name}), $10)" for name in latencies)
_LATENCIES_ADDED: Final = ", ".join(
    f"{name} = least(already.{name} + excluded.{name}, $10::bigint)" for name in latencies
)
_LATENCIES_OF_SERIES: Final = ", ".join(
    f"least(sum({name}), $6)::bigint AS {name}" for name in latencies
)

# A number that is in the set is claimed already: then no row comes back. The sender's row stays
# locked until the end of the transaction, and who sends the same meanwhile waits for it.
_CLAIM: Final = """
    INSERT INTO usage_senders AS known (sender, counted)
    VALUES ($1, int8multirange(int8range(NULL, $2::bigint - $3), int8range($2, $2, '[]')))
    ON CONFLICT (sender) DO UPDATE
        SET counted = known.counted + excluded.counted, seen_at = now()
        WHERE NOT known.counted @> $2::bigint
    RETURNING true
"""
_IS_FORGOTTEN: Final = """
    SELECT $2::bigint < upper(counted) - 1 - $3 FROM usage_senders WHERE sender = $1
"""
# The days there are stay as they are from the first look to the end of the transaction: whoever
# makes or drops one waits until nobody writes. Numbers are at most $10 each, so that no sum of
# two overflows; what would be more than $10 stays at it. Of what has no day, only what is not to
# have one can be dropped: the other days come back, for the caller to make.
_ADD: Final = f"""
    WITH days AS MATERIALIZED ({DAYS}), sent AS (
        SELECT *, (minute AT TIME ZONE 'UTC')::date AS day FROM unnest(
            $1::timestamptz[], $2::bigint[], $3::bigint[], $4::text[], $5::smallint[],
            $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], {_LATENCY_ARRAYS}
        ) AS row (
            minute, user_id, key_id, operation, status,
            requests, bytes_in, bytes_out, latency_us, {_LATENCIES}
        )
    ), added AS (
        INSERT INTO usage_rollups AS already (
            minute, user_id, key_id, operation, status,
            requests, bytes_in, bytes_out, latency_us, {_LATENCIES}
        )
        SELECT
            minute, user_id, key_id, operation, status,
            least(sum(requests), $10), least(sum(bytes_in), $10),
            least(sum(bytes_out), $10), least(sum(latency_us), $10), {_LATENCY_SUMS}
        FROM sent WHERE day IN (SELECT day FROM days)
        GROUP BY user_id, minute, key_id, operation, status
        ORDER BY user_id, minute, key_id, operation, status
        ON CONFLICT (user_id, minute, key_id, operation, status) DO UPDATE SET
            requests = least(already.requests + excluded.requests, $10::bigint),
            bytes_in = least(already.bytes_in + excluded.bytes_in, $10::bigint),
            bytes_out = least(already.bytes_out + excluded.bytes_out, $10::bigint),
            latency_us = least(already.latency_us + excluded.latency_us, $10::bigint),
            {_LATENCIES_ADDED}
    )
    SELECT
        count(*) AS dropped,
        array_agg(DISTINCT day) FILTER (WHERE day BETWEEN today - $11::int AND today + $12::int)
            AS missing
    FROM sent, ({TODAY}) AS now (today) WHERE day NOT IN (SELECT day FROM days)
"""  # noqa: S608  Of constants.
# A sender is remembered for longer than the rows of its last report could be counted again.
_FORGET_SENDERS: Final = """
    DELETE FROM usage_senders WHERE sender IN (
        SELECT sender FROM usage_senders
        WHERE seen_at < now() - make_interval(days => $1) ORDER BY seen_at LIMIT $2
        FOR UPDATE SKIP LOCKED
    )
"""
# The limit within bounds the work, whatever a tenant has asked of us in all those minutes; the
# number of rows that were read tells whether it was met.
# A page goes on behind its last row; what is before that row's step need not be read.
_SUMS: Final = """
    SELECT
        date_trunc($5, minute, 'UTC') AS start, key_id, operation, status,
        least(sum(requests), $7)::bigint AS requests,
        least(sum(bytes_in), $7)::bigint AS bytes_in,
        least(sum(bytes_out), $7)::bigint AS bytes_out,
        least(sum(latency_us), $7)::bigint AS latency_us,
        sum(count(*)) OVER () AS rows_read
    FROM (
        SELECT * FROM usage_rollups
        WHERE user_id = $1 AND minute >= greatest($2, $9::timestamptz) AND minute < $3
            AND ($8::bigint IS NULL OR key_id = $8)
        LIMIT $4
    ) AS own
    GROUP BY date_trunc($5, minute, 'UTC'), key_id, operation, status
    HAVING $9 IS NULL
        OR (date_trunc($5, minute, 'UTC'), key_id, operation, status) > ($9, $10, $11, $12)
    ORDER BY start, key_id, operation, status
    LIMIT $6
"""
_TOTALS: Final = """
    SELECT
        operation,
        least(sum(requests), $5)::bigint AS requests,
        least(coalesce(sum(requests) FILTER (WHERE status < 400), 0), $5)::bigint AS successful,
        least(sum(bytes_in) + sum(bytes_out), $5)::bigint AS bytes,
        least(sum(latency_us), $5)::bigint AS latency_us,
        sum(count(*)) OVER () AS rows_read
    FROM (
        SELECT * FROM usage_rollups
        WHERE user_id = $1 AND minute >= $2 AND minute < $3
            AND ($6::bigint IS NULL OR key_id = $6)
        LIMIT $4
    ) AS own
    GROUP BY operation
    ORDER BY operation
"""
# Of each step, of each step and operation, of each step and status, of each step and key. Every row
# that is read counts in all four.
_SERIES: Final = f"""
    SELECT
        grouping(start, operation, status, key_id) AS sum_of, start, operation, status, key_id,
        least(sum(requests), $6)::bigint AS requests,
        least(coalesce(sum(requests) FILTER (WHERE status >= 400), 0), $6)::bigint AS failed,
        least(coalesce(sum(requests) FILTER (WHERE status = 429), 0), $6)::bigint AS limited,
        least(sum(bytes_in), $6)::bigint AS bytes_in,
        least(sum(bytes_out), $6)::bigint AS bytes_out,
        least(sum(latency_us), $6)::bigint AS latency_us,
        {_LATENCIES_OF_SERIES},
        (sum(count(*)) OVER () / 4)::bigint AS rows_read
    FROM (
        SELECT date_trunc($5, minute, 'UTC') AS start, usage_rollups.* FROM usage_rollups
        WHERE user_id = $1 AND minute >= $2 AND minute < $3
            AND ($7::bigint IS NULL OR key_id = $7)
        LIMIT $4
    ) AS own
    GROUP BY GROUPING SETS ((start), (start, operation), (start, status), (start, key_id))
    ORDER BY start, operation, status, key_id
"""  # noqa: S608  Of constants.
# Of the earliest minutes that are kept; a busy tenant has done in those whatever it does.
_SUCCEEDED: Final = """
    SELECT DISTINCT operation FROM (
        SELECT operation FROM usage_rollups WHERE user_id = $1 AND status < 400 LIMIT $2
    ) AS own
"""


async def claim(connection: Connection, sender: str, sequence: int) -> bool:
    """Whether this report is to be counted now; false if it has been."""
    return await connection.fetchval(_CLAIM, sender, sequence, reports_remembered) is not None


async def is_forgotten(connection: Connection, sender: str, sequence: int) -> bool:
    """Whether a report is so far behind that nobody knows whether it was counted."""
    return bool(await connection.fetchval(_IS_FORGOTTEN, sender, sequence, reports_remembered))


class DaysMissingError(Exception):
    """There are rows of days that are to be kept and are not there. Nothing may be committed."""

    def __init__(self, days: Iterable[date]) -> None:
        super().__init__("there is no partition of " + ", ".join(map(str, sorted(days))))
        self.days = frozenset(days)


async def add(connection: Connection, rollups: Sequence[Rollup]) -> int:
    """Add these rows to what there is; returns how many were dropped, because of days that are
    not kept any more, or too far ahead. DaysMissingError if others have no day."""
    if not rollups:
        return 0
    columns = [
        list(column)
        for column in zip(*(msgspec.structs.astuple(row)[:-1] for row in rollups), strict=True)
    ]
    buckets = zip(*(_padded(row.latency_counts) for row in rollups), strict=True)
    found = await connection.fetchrow(
        _ADD, *columns, count_max, days_kept, days_ahead, *map(list, buckets)
    )
    if found["missing"]:
        raise DaysMissingError(found["missing"])
    return int(found["dropped"])


def _padded(counts: Sequence[int]) -> list[int]:
    """With what an older gateway does not tell."""
    return [*counts, *[0] * (latency_buckets - len(counts))]


async def forget_senders(connection: Connection, *, older_than_days: int, rows_max: int) -> None:
    await connection.execute(_FORGET_SENDERS, older_than_days, rows_max)


class Position(NamedTuple):
    """A row of the sums, by what tells it from the others."""

    start: datetime
    key_id: int
    operation: str
    status: int


async def sums(
    connection: Connection,
    user_id: int,
    start: datetime,
    end: datetime,
    *,
    step: str,
    rows_read_max: int,
    rows_max: int,
    key_id: int | None = None,
    after: Position | None = None,
) -> list[asyncpg.Record]:
    """Sums of each step, API key, operation and status, in this order; those after a row."""
    rows: list[asyncpg.Record] = await connection.fetch(
        _SUMS,
        user_id,
        start,
        end,
        rows_read_max,
        step,
        rows_max,
        count_max,
        key_id,
        *(after or (None, 0, "", 0)),
    )
    return rows


async def totals(
    connection: Connection,
    user_id: int,
    start: datetime,
    end: datetime,
    *,
    rows_read_max: int,
    key_id: int | None = None,
) -> list[asyncpg.Record]:
    """Sums of each operation, and how many of its requests were successful."""
    rows: list[asyncpg.Record] = await connection.fetch(
        _TOTALS, user_id, start, end, rows_read_max, count_max, key_id
    )
    return rows


async def series(
    connection: Connection,
    user_id: int,
    start: datetime,
    end: datetime,
    *,
    step: str,
    rows_read_max: int,
    key_id: int | None = None,
) -> list[asyncpg.Record]:
    """Sums for charts (usage_series.py); the rows of each kind in their order."""
    rows: list[asyncpg.Record] = await connection.fetch(
        _SERIES, user_id, start, end, rows_read_max, step, count_max, key_id
    )
    return rows


async def succeeded(connection: Connection, user_id: int, rows_read_max: int) -> set[str]:
    """Operations that were successful, as far as so many rows tell."""
    rows = await connection.fetch(_SUCCEEDED, user_id, rows_read_max)
    return {row["operation"] for row in rows}
