"""API keys in PostgreSQL: the statements, and rows as values. Rules stand in `api_keys`.

All times are the database's own, so that every user manager agrees on what has expired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, cast

from services.core.key_checks import Scope
from services.runtime.postgres import Connection

_IS_LIVE: Final = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
_COLUMNS: Final = f"""
    id, key_prefix, name, scopes, prefix, rate_limit_per_minute, created_at, expires_at,
    revoked_at, replaced_by, last_used_at, ({_IS_LIVE}) AS is_active
"""
# Keys of one account are counted and made one transaction after the other. Rows that refer to
# the account can be added meanwhile; it cannot be closed.
_LOCK_ACCOUNT: Final = "SELECT plan FROM users WHERE id = $1 AND is_active FOR NO KEY UPDATE"
_PLAN: Final = "SELECT plan FROM users WHERE id = $1"
_COUNT_LIVE: Final = f"""
    SELECT count(*) FILTER (WHERE replaced_by IS NULL) AS current,
        count(*) FILTER (WHERE replaced_by IS NOT NULL) AS replaced
    FROM api_keys WHERE user_id = $1 AND {_IS_LIVE}
"""  # noqa: S608  A constant of this module.
_INSERT: Final = f"""
    INSERT INTO api_keys
        (user_id, key_hash, key_prefix, name, scopes, prefix, rate_limit_per_minute, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8::interval)
    RETURNING {_COLUMNS}
"""  # noqa: S608  A constant of this module.
_FORGET_DEAD: Final = f"""
    DELETE FROM api_keys WHERE id IN (
        SELECT id FROM api_keys WHERE user_id = $1 AND NOT ({_IS_LIVE}) ORDER BY id DESC OFFSET $2
    )
"""  # noqa: S608  A constant of this module.
_PAGE: Final = f"""
    SELECT {_COLUMNS} FROM api_keys WHERE user_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3
"""  # noqa: S608  A constant of this module.
_HOLD: Final = f"""
    SELECT {_COLUMNS} FROM api_keys WHERE user_id = $1 AND id = $2 FOR NO KEY UPDATE
"""  # noqa: S608  A constant of this module.
_REVOKE: Final = "UPDATE api_keys SET revoked_at = now() WHERE id = $1"
# The least of what is there: without an end so far, the end is that of the overlap.
_REPLACE: Final = """
    UPDATE api_keys SET replaced_by = $2, expires_at = least(expires_at, now() + $3::interval)
    WHERE id = $1
"""
_LOOK_UP: Final = """
    SELECT key.key_hash, key.id, key.user_id, key.scopes, key.prefix, key.rate_limit_per_minute,
        key.expires_at, owner.plan, (SELECT last FROM key_event_ids) AS event_id
    FROM api_keys AS key JOIN users AS owner ON owner.id = key.user_id
    WHERE key.key_hash = ANY($1::bytea[]) AND owner.is_active AND key.revoked_at IS NULL
        AND (key.expires_at IS NULL OR key.expires_at > now())
"""


@dataclass(slots=True, frozen=True)
class NewKey:
    """What is kept of a key; the key itself is not."""

    key_hash: bytes
    key_prefix: str
    name: str
    scopes: Sequence[Scope]
    prefix: bytes | None
    rate_limit_per_minute: int | None
    # None: until it is revoked.
    lifetime: timedelta | None


@dataclass(slots=True, frozen=True)
class StoredKey:
    id: int
    key_prefix: str
    name: str
    scopes: list[Scope]
    prefix: bytes | None
    rate_limit_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: int | None
    last_used_at: datetime | None
    is_active: bool


@dataclass(slots=True, frozen=True)
class LiveKey:
    """A key that is good now, of an account that is, and as of which event that was so."""

    key_hash: bytes
    id: int
    user_id: int
    scopes: list[Scope]
    prefix: bytes | None
    rate_limit_per_minute: int | None
    expires_at: datetime | None
    plan: str
    event_id: int


@dataclass(slots=True, frozen=True)
class LiveCount:
    current: int
    # Those that were rotated, and are good until their overlap ends.
    replaced: int

    @property
    def total(self) -> int:
        return self.current + self.replaced


async def lock_account(connection: Connection, user_id: int) -> str | None:
    """The plan of the account, which nobody else changes keys of until the transaction ends;
    None if it is closed or disabled."""
    return cast("str | None", await connection.fetchval(_LOCK_ACCOUNT, user_id))


async def plan_of(connection: Connection, user_id: int) -> str | None:
    """The plan of the account as it is now; None if it is closed."""
    return cast("str | None", await connection.fetchval(_PLAN, user_id))


async def count_live(connection: Connection, user_id: int) -> LiveCount:
    return LiveCount(**await connection.fetchrow(_COUNT_LIVE, user_id))


async def insert(connection: Connection, user_id: int, new: NewKey) -> StoredKey:
    row = await connection.fetchrow(
        _INSERT,
        user_id,
        new.key_hash,
        new.key_prefix,
        new.name,
        new.scopes,
        new.prefix,
        new.rate_limit_per_minute,
        new.lifetime,
    )
    return StoredKey(**row)


async def forget_dead(connection: Connection, user_id: int, kept: int) -> None:
    """Remove all but the newest keys of the account that are no longer good."""
    await connection.execute(_FORGET_DEAD, user_id, kept)


async def page(
    connection: Connection, user_id: int, below_id: int, limit: int
) -> Sequence[StoredKey]:
    """Newest first."""
    return [StoredKey(**row) for row in await connection.fetch(_PAGE, user_id, below_id, limit)]


async def hold(connection: Connection, user_id: int, key_id: int) -> StoredKey | None:
    """The key as it is until the transaction ends, if there is one and it is this account's."""
    row: Any = await connection.fetchrow(_HOLD, user_id, key_id)
    return None if row is None else StoredKey(**row)


async def revoke(connection: Connection, key_id: int) -> None:
    """Of a key that is held."""
    await connection.execute(_REVOKE, key_id)


async def replace(
    connection: Connection, key_id: int, successor_id: int, overlap: timedelta
) -> None:
    """Let a key that is held end with the overlap, if it does not end before."""
    await connection.execute(_REPLACE, key_id, successor_id, overlap)


async def look_up(connection: Connection, key_hashes: Sequence[bytes]) -> Sequence[LiveKey]:
    """Those of the keys with these hashes that are good; in no order."""
    return [LiveKey(**row) for row in await connection.fetch(_LOOK_UP, key_hashes)]
