"""What is kept of the past, in PostgreSQL: ranges that are closed, and returns that are over.

Ranges say for ever whose a key is, so their number must not grow with time alone. Neighbours of one
tenant that are closed become one row, if they were reserved on the same day: when a key was given
out is known to the day then. That is done by whichever keygen comes first, in small transactions,
an hour after the ranges were reserved, and once: what lies before `key_counters.merged` has been
looked at. One of these ranges that is still open then stays a row of its own.

Whoever has looked at a range and comes back for it may find it gone (return_store.py); ranges are
locked before returned keys here too.

Returns that ended with the key given out again are remembered for `reissues_kept_days`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from services.runtime.postgres import Connection, Database

# Looked at in one transaction: some milliseconds.
ranges_at_once: Final = 500
# About so many returned keys are moved in one: each is a row with all its indexes, and whoever
# returns or claims one of them meanwhile waits.
moved_at_once: Final = 5_000
# A range of which more are on the list begins a row.
moved_of_range_max: Final = 1_000
forgotten_at_once: Final = 1_000
# Whoever asks about a key mostly does so soon after, and is told when it was given out exactly.
merged_after_s: Final = 3_600.0
reissues_kept_days: Final = 90
# Any number that nothing else in this database locks: "keys" in ASCII.
_turn: Final = 0x6B657973

_MY_TURN: Final = "SELECT pg_try_advisory_xact_lock($1)"
_NEXT: Final = """
    SELECT id, first, count, tenant, closed_at IS NOT NULL AS is_closed,
        (reserved_at AT TIME ZONE 'UTC')::date AS day,
        reserved_at < now() - make_interval(secs => $3) AS is_old
    FROM key_ranges
    WHERE size = $1 AND first >= (SELECT merged FROM key_counters WHERE size = $1)
    ORDER BY first LIMIT $2
"""
# Range by range, until it is enough: what has been counted tells with how many to begin.
_COUNT_RETURNED: Final = """
    WITH RECURSIVE walk (number, keys, total) AS (
        SELECT 0, 0::bigint, 0::bigint
        UNION ALL
        SELECT number + 1, here.keys, total + here.keys FROM walk, LATERAL (
            SELECT count(*) AS keys FROM (
                SELECT FROM returned_keys WHERE range_id = ($1::bigint[])[number + 1] LIMIT $3
            ) AS found
        ) AS here
        WHERE number < cardinality($1::bigint[]) AND total < $2
    )
    SELECT keys FROM walk WHERE number > 0 ORDER BY number
"""
_HOLD: Final = "SELECT id FROM key_ranges WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE"
_MOVE_RETURNED: Final = """
    WITH held AS (
        SELECT returned.size, returned.index, part.into_id FROM returned_keys AS returned
        JOIN unnest($1::bigint[], $2::bigint[]) AS part (id, into_id) ON returned.range_id = part.id
        ORDER BY returned.size, returned.index FOR UPDATE OF returned
    )
    UPDATE returned_keys AS returned SET range_id = held.into_id
    FROM held WHERE (returned.size, returned.index) = (held.size, held.index)
"""
_MERGE: Final = """
    WITH gone AS (
        SELECT part.into_id, sum(count)::bigint AS count,
            max(coalesce(reserved_until, reserved_at)) AS reserved_until,
            max(closed_at) AS closed_at
        FROM key_ranges
        JOIN unnest($1::bigint[], $2::bigint[]) AS part (id, into_id) USING (id)
        GROUP BY part.into_id
    )
    UPDATE key_ranges SET count = key_ranges.count + gone.count,
        reserved_until = gone.reserved_until,
        closed_at = greatest(key_ranges.closed_at, gone.closed_at)
    FROM gone WHERE key_ranges.id = gone.into_id
"""
_REMOVE: Final = "DELETE FROM key_ranges WHERE id = ANY($1::bigint[])"
_LOOKED_AT: Final = "UPDATE key_counters SET merged = $2 WHERE size = $1 AND merged < $2"
_FORGET: Final = """
    DELETE FROM key_reissues WHERE ctid IN (
        SELECT ctid FROM key_reissues WHERE ended_at < now() - make_interval(days => $1)
        ORDER BY ended_at LIMIT $2
    )
"""
_ROWS: Final = """
    SELECT relname, greatest(reltuples, 0)::bigint AS rows FROM pg_class
    WHERE oid = ANY(ARRAY['key_ranges', 'returned_keys', 'key_reissues']::regclass[])
"""


@dataclass(slots=True)
class Part:
    """A range, and in the end what lies behind it and can be in one row with it."""

    id: int
    first: int
    end: int
    tenant: int
    day: date
    is_closed: bool
    # Keys of it that are on the list of returned ones, or more than can be moved.
    returned: int = 0

    def takes(self, other: Part) -> bool:
        return (
            self.is_closed
            and other.is_closed
            and other.returned <= moved_of_range_max
            and (self.end, self.tenant, self.day) == (other.first, other.tenant, other.day)
        )


class HistoryStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def merge(self, size: int) -> bool:
        """Look at the next ranges of this size; whether there may be more to look at."""
        async with self._database.transaction() as connection:
            if not await connection.fetchval(_MY_TURN, _turn):
                return False
            rows = await connection.fetch(_NEXT, size, ranges_at_once, merged_after_s)
            old = _until_new(rows)
            if not old:
                return False
            counts = await connection.fetch(
                _COUNT_RETURNED, [part.id for part in old], moved_at_once, moved_of_range_max + 1
            )
            # Those of which it has not been counted wait for the next transaction.
            for part, row in zip(old, counts, strict=False):
                part.returned = row["keys"]
            looked_at = old[: len(counts)]
            runs, into = _runs(looked_at)
            if into:
                await _merge(connection, into)
            # The last one may go on with what comes next.
            await connection.execute(_LOOKED_AT, size, runs[-1].first)
        return len(looked_at) < len(old) or len(old) == ranges_at_once

    async def forget(self) -> bool:
        """Whether there may be more to forget."""
        async with self._database.transaction() as connection:
            done = await connection.execute(_FORGET, reissues_kept_days, forgotten_at_once)
        return int(done.split()[-1]) == forgotten_at_once

    async def rows(self) -> dict[str, int]:
        """Of each table that grows, as PostgreSQL has last estimated it."""
        async with self._database.connection() as connection:
            return {row["relname"]: row["rows"] for row in await connection.fetch(_ROWS)}


async def _merge(connection: Connection, into: dict[int, int]) -> None:
    gone, kept = list(into), list(into.values())
    await connection.fetch(_HOLD, sorted({*gone, *kept}))
    await connection.execute(_MOVE_RETURNED, gone, kept)
    await connection.execute(_MERGE, gone, kept)
    await connection.execute(_REMOVE, gone)


def _until_new(rows: Sequence[Any]) -> list[Part]:
    """Those before the first that was reserved too lately."""
    old: list[Part] = []
    for row in rows:
        if not row["is_old"]:
            break
        first = int(row["first"])
        end = first + row["count"]
        tenant = int(row["tenant"])
        old.append(Part(row["id"], first, end, tenant, row["day"], row["is_closed"]))
    return old


def _runs(parts: Sequence[Part]) -> tuple[list[Part], dict[int, int]]:
    """What there is in the end, and into which row each of the others goes."""
    runs: list[Part] = []
    into: dict[int, int] = {}
    for part in parts:
        if runs and runs[-1].takes(part):
            into[part.id] = runs[-1].id
            runs[-1].end = part.end
        else:
            runs.append(part)
    return runs, into
