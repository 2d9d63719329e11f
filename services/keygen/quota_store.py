"""What API keys have used of their days, in PostgreSQL. The day is the database's, in UTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from services.core.id_requests import KeyUse, days_told, keys_told_max
from services.runtime.postgres import Database

_TODAY: Final = "(now() AT TIME ZONE 'UTC')::date"
# Until midnight in UTC.
_LEFT: Final = f"extract(epoch FROM ({_TODAY} + 1)::timestamp - (now() AT TIME ZONE 'UTC'))::float8"
_BEGIN: Final = f"""
    INSERT INTO key_quotas (tenant, key_id, day, used) VALUES ($1, $2, {_TODAY}, 0)
    ON CONFLICT DO NOTHING
"""  # noqa: S608  A constant of this module.
_LOCK: Final = f"""
    SELECT used, day, {_LEFT} AS left_s FROM key_quotas
    WHERE tenant = $1 AND key_id = $2 AND day = {_TODAY} FOR UPDATE
"""  # noqa: S608  A constant of this module.
_ADD: Final = """
    UPDATE key_quotas SET used = used + $4 WHERE tenant = $1 AND key_id = $2 AND day = $3
"""
_USED: Final = f"""
    SELECT coalesce((SELECT used FROM key_quotas
        WHERE tenant = $1 AND key_id = $2 AND day = {_TODAY}), 0) AS used, {_LEFT} AS left_s
"""  # noqa: S608  A constant of this module.
_GIVE_BACK: Final = """
    UPDATE key_quotas AS quota SET used = quota.used - back.count
    FROM unnest($1::numeric[], $2::bigint[], $3::date[], $4::bigint[])
        AS back (tenant, key_id, day, count)
    WHERE (quota.tenant, quota.key_id, quota.day) = (back.tenant, back.key_id, back.day)
"""
_COUNT: Final = f"""
    INSERT INTO key_quotas (tenant, key_id, day, used)
    SELECT tenant, key_id, {_TODAY}, count
    FROM unnest($1::numeric[], $2::bigint[], $3::bigint[]) AS spent (tenant, key_id, count)
    ON CONFLICT (tenant, key_id, day) DO UPDATE SET used = key_quotas.used + excluded.used
"""  # noqa: S608  A constant of this module.
_KEYS: Final = f"""
    SELECT key_id, used FROM key_quotas WHERE tenant = $1 AND day = {_TODAY} AND used > 0
    ORDER BY used DESC, key_id LIMIT $2
"""  # noqa: S608  A constant of this module.
_DAYS: Final = f"""
    SELECT coalesce(sum(used), 0)::bigint AS used
    FROM generate_series(0, $2::integer - 1) AS ago
    LEFT JOIN key_quotas ON tenant = $1 AND day = {_TODAY} - ago
    GROUP BY ago ORDER BY ago DESC
"""  # noqa: S608  A constant of this module.
_FORGET: Final = f"DELETE FROM key_quotas WHERE day < {_TODAY} - $1::integer"  # noqa: S608  Likewise.

# A block is at most this share of what is left of the day: large while there is much, and single
# keys in the end, so that what several keygens have set aside is never much of it.
block_share: Final = 32
# Those that are told of.
kept_days: Final = days_told


@dataclass(slots=True, frozen=True)
class Block:
    """Set aside for one keygen; `count` is 0 if what is needed is more than what is left."""

    day: date
    count: int
    used: int
    # Of the day.
    left_s: float


@dataclass(slots=True, frozen=True)
class TenantUse:
    """Of API keys on this day, the most first; and of all of them on the last days, this one as the
    last. What is set aside is in it."""

    keys: Sequence[KeyUse]
    days: Sequence[int]


@dataclass(slots=True, frozen=True)
class Unspent:
    tenant: int
    key_id: int
    day: date
    count: int


class QuotaStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, tenant: int, key_id: int, limit: int, needed: int) -> Block:
        async with self._database.transaction() as connection:
            await connection.execute(_BEGIN, tenant, key_id)
            row: Any = await connection.fetchrow(_LOCK, tenant, key_id)
            used, left = row["used"], limit - row["used"]
            count = 0 if left < needed else max(needed, left // block_share)
            if count:
                await connection.execute(_ADD, tenant, key_id, row["day"], count)
        return Block(row["day"], count, used + count, row["left_s"])

    async def used(self, tenant: int, key_id: int) -> tuple[int, float]:
        """Of this day, with what is set aside; and how many seconds the day has left."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_USED, tenant, key_id)
        return row["used"], row["left_s"]

    async def of_tenant(self, tenant: int) -> TenantUse:
        async with self._database.connection() as connection:
            keys = await connection.fetch(_KEYS, tenant, keys_told_max)
            days = await connection.fetch(_DAYS, tenant, days_told)
        return TenantUse(
            [KeyUse(row["key_id"], row["used"]) for row in keys], [row["used"] for row in days]
        )

    async def give_back(self, unspent: Sequence[Unspent]) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                _GIVE_BACK,
                [one.tenant for one in unspent],
                [one.key_id for one in unspent],
                [one.day for one in unspent],
                [one.count for one in unspent],
            )

    async def count(self, spent: Sequence[tuple[int, int, int]]) -> None:
        """Add what was given out under API keys that have no limit: tenant, key, count."""
        async with self._database.transaction() as connection:
            await connection.execute(
                _COUNT,
                [tenant for tenant, _, _ in spent],
                [key_id for _, key_id, _ in spent],
                [count for _, _, count in spent],
            )

    async def forget(self) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(_FORGET, kept_days)
