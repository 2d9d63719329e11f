"""Sessions in PostgreSQL: the statements, and rows as values. Rules stand in `sessions`.

All times are the database's own, so that every user manager agrees on what has expired. Rows are
locked in the order that account_store.py gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, cast

from services.runtime.endpoints import Client
from services.runtime.postgres import Connection

# Still the account, with the password that was checked. Held so that neither can change before
# the session is there to be ended by it.
_HOLD_ACCOUNT: Final = """
    SELECT FROM users WHERE id = $1 AND password_changed_at = $2 AND is_active FOR SHARE
"""
_REHASH: Final = """
    UPDATE users SET password_hash = $3
    WHERE id = $1 AND password_changed_at = $2 AND is_active
"""
_BEGIN: Final = """
    INSERT INTO sessions (user_id, expires_at, address, user_agent)
    VALUES ($1, now() + $2::interval, $3, $4)
    RETURNING id
"""
# The ones used last are kept. What somebody else is just working with can go next time.
_END_SURPLUS: Final = """
    DELETE FROM sessions WHERE id IN (
        SELECT id FROM sessions WHERE user_id = $1 ORDER BY last_used_at DESC, id DESC
        OFFSET $2 FOR UPDATE SKIP LOCKED
    )
"""
_ADD_REFRESH: Final = "INSERT INTO refresh_tokens (token_hash, session_id) VALUES ($1, $2)"
_OWNER: Final = """
    SELECT session.user_id FROM refresh_tokens AS token
    JOIN sessions AS session ON session.id = token.session_id
    WHERE token.token_hash = $1
"""
# First the session, then the token: whoever ends a session deletes it before its tokens.
_HOLD_SESSION: Final = """
    SELECT id, user_id, expires_at > now() AS is_live, address, user_agent FROM sessions
    WHERE id = (SELECT session_id FROM refresh_tokens WHERE token_hash = $1)
    FOR UPDATE
"""
# A statement of its own, which sees what was committed while the one above waited.
_SPEND: Final = """
    UPDATE refresh_tokens SET used_at = now() WHERE token_hash = $1 AND used_at IS NULL
"""
# A token that was used just now, and the one that followed, which nobody has used.
_FOLLOWS: Final = """
    SELECT EXISTS (
        SELECT FROM refresh_tokens AS spent JOIN refresh_tokens AS next USING (session_id)
        WHERE spent.token_hash = $1 AND spent.used_at > now() - $3::interval
            AND next.token_hash = $2 AND next.used_at IS NULL
    )
"""
# Of a token that is presented after this long nothing is known but that it is not good.
_FORGET_SPENT: Final = """
    DELETE FROM refresh_tokens WHERE session_id = $1 AND used_at < now() - $2::interval
"""
_EXTEND: Final = """
    UPDATE sessions SET last_used_at = now(),
        expires_at = least(now() + $2::interval, created_at + $3::interval)
    WHERE id = $1
"""
_IS_LIVE: Final = """
    SELECT EXISTS (
        SELECT FROM sessions AS session JOIN users AS owner ON owner.id = session.user_id
        WHERE session.id = $1 AND session.user_id = $2 AND session.expires_at > now()
            AND owner.is_active
    )
"""
_PAGE: Final = """
    SELECT id, created_at, last_used_at, expires_at, address, user_agent FROM sessions
    WHERE user_id = $1 AND id < $2 AND expires_at > now() ORDER BY id DESC LIMIT $3
"""
_END: Final = "DELETE FROM sessions WHERE id = $1 AND user_id = $2"
_REMOVE_EXPIRED: Final = """
    DELETE FROM sessions WHERE id IN (
        SELECT id FROM sessions WHERE expires_at <= now() ORDER BY expires_at LIMIT $1
        FOR UPDATE SKIP LOCKED
    )
"""


@dataclass(slots=True, frozen=True)
class HeldSession:
    id: int
    user_id: int
    is_live: bool
    # Of who has logged in.
    address: str
    user_agent: str


@dataclass(slots=True, frozen=True)
class StoredSession:
    id: int
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str
    user_agent: str


async def hold_account(
    connection: Connection, account_id: int, password_changed_at: datetime, rehashed: str | None
) -> bool:
    """Keep the account as it is until the transaction ends, with a new hash of its password if
    there is one; False if it has been closed or disabled, or its password changed."""
    if rehashed is None:
        held = await connection.fetch(_HOLD_ACCOUNT, account_id, password_changed_at)
        return bool(held)
    done = await connection.execute(_REHASH, account_id, password_changed_at, rehashed)
    return bool(done != "UPDATE 0")


async def begin(
    connection: Connection, user_id: int, client: Client, lifetime: timedelta, sessions_max: int
) -> int:
    """The id of a new session. Of the account's others so many are kept."""
    session_id = await connection.fetchval(
        _BEGIN, user_id, lifetime, client.address, client.user_agent
    )
    await connection.execute(_END_SURPLUS, user_id, sessions_max)
    return int(session_id)


async def add_token(connection: Connection, token_hash: bytes, session_id: int) -> None:
    await connection.execute(_ADD_REFRESH, token_hash, session_id)


async def owner(connection: Connection, token_hash: bytes) -> int | None:
    """Whose refresh token it is, used or not; None if it is nobody's."""
    return cast("int | None", await connection.fetchval(_OWNER, token_hash))


async def hold(connection: Connection, token_hash: bytes) -> HeldSession | None:
    """The session of a refresh token as it is until the transaction ends."""
    row: Any = await connection.fetchrow(_HOLD_SESSION, token_hash)
    return None if row is None else HeldSession(**row)


async def spend(connection: Connection, token_hash: bytes) -> bool:
    """Use the refresh token of a session that is held; False if it has been used before."""
    return bool(await connection.execute(_SPEND, token_hash) != "UPDATE 0")


async def follows(
    connection: Connection, token_hash: bytes, next_hash: bytes, within: timedelta
) -> bool:
    """Whether a token was used so lately, for this next one, and that is still good."""
    return bool(await connection.fetchval(_FOLLOWS, token_hash, next_hash, within))


async def extend(
    connection: Connection, session_id: int, idle: timedelta, longest: timedelta
) -> None:
    """Have a session that is held go on, but not beyond the longest that any lasts. Tokens that
    were used longer ago than it may be idle are forgotten."""
    await connection.execute(_EXTEND, session_id, idle, longest)
    await connection.execute(_FORGET_SPENT, session_id, idle)


async def is_live(connection: Connection, session_id: int, user_id: int) -> bool:
    return bool(await connection.fetchval(_IS_LIVE, session_id, user_id))


async def page(
    connection: Connection, user_id: int, below_id: int, limit: int
) -> Sequence[StoredSession]:
    """Newest first."""
    return [StoredSession(**row) for row in await connection.fetch(_PAGE, user_id, below_id, limit)]


async def end(connection: Connection, session_id: int, user_id: int) -> bool:
    """End a session with its tokens; False if the user has no such one."""
    return bool(await connection.execute(_END, session_id, user_id) != "DELETE 0")


async def remove_expired(connection: Connection, limit: int) -> None:
    await connection.execute(_REMOVE_EXPIRED, limit)
