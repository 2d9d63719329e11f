"""Many accounts at once, put straight into the database: each with a session and an API key.

For tests that use up accounts faster than people could sign up, whose passwords cost what they
are meant to cost. All have the same password.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from dataclasses import dataclass
from typing import Final

import asyncpg

from services.core.api_key import displayed, lookup_hash, lookup_subkey, new_key
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.usermanager.passwords import Passwords
from services.usermanager.tokens import Tokens
from tests.integration.usermanager_process import good_password, jwt_secret, key_pepper

_ACCOUNTS: Final = """
    INSERT INTO users (email, email_folded, username, username_folded, password_hash)
    SELECT name || '@example.com', name || '@example.com', name, name, $2
    FROM unnest($1::text[]) AS name
    RETURNING id, email
"""
_SESSIONS: Final = """
    INSERT INTO sessions (user_id, expires_at, address, user_agent)
    SELECT unnest($1::bigint[]), now() + interval '1 day', '127.0.0.1', 'a test'
    RETURNING id, user_id
"""
_REFRESH_TOKENS: Final = """
    INSERT INTO refresh_tokens (token_hash, session_id)
    SELECT * FROM unnest($1::bytea[], $2::bigint[])
"""
_API_KEYS: Final = """
    INSERT INTO api_keys (user_id, key_hash, key_prefix, name, scopes)
    SELECT user_id, key_hash, key_prefix, 'made for a test', '{read,write}'
    FROM unnest($1::bigint[], $2::bytea[], $3::text[]) AS key (user_id, key_hash, key_prefix)
    RETURNING id, user_id
"""


@dataclass(slots=True, frozen=True)
class Member:
    """One account, and all that its owner would know."""

    user_id: int
    email: str
    session_id: int
    access_token: str
    refresh_token: str
    key_id: int
    api_key: str
    password: str = good_password


async def crowd(address: DatabaseAddress, size: int) -> list[Member]:
    passwords = Passwords()
    password_hash = await passwords.hash(good_password)
    passwords.close()
    run = secrets.token_hex(4)
    names = [f"member-{run}-{number}" for number in range(size)]
    refresh = [secrets.token_urlsafe(32) for _ in range(size)]
    refresh_hashes = [hashlib.sha256(token.encode()).digest() for token in refresh]
    draw = random.SystemRandom()
    keys = [new_key(draw.randrange) for _ in range(size)]
    pepper = lookup_subkey(key_pepper)
    hashes = [lookup_hash(pepper, key) for key in keys]
    connection = await asyncpg.connect(**address.asyncpg())
    try:
        accounts = await connection.fetch(_ACCOUNTS, names, password_hash)
        ids = [row["id"] for row in accounts]
        emails = {row["id"]: row["email"] for row in accounts}
        sessions = await _by_user(connection, _SESSIONS, ids)
        session_ids = [sessions[user_id] for user_id in ids]
        await connection.execute(_REFRESH_TOKENS, refresh_hashes, session_ids)
        key_ids = await _by_user(connection, _API_KEYS, ids, hashes, list(map(displayed, keys)))
    finally:
        await connection.close()
    tokens = Tokens(jwt_secret, 3_600_000, SystemClock())
    return [
        Member(
            user_id,
            emails[user_id],
            sessions[user_id],
            tokens.issue(user_id, sessions[user_id]),
            refresh_token,
            key_ids[user_id],
            key,
        )
        for user_id, refresh_token, key in zip(ids, refresh, keys, strict=True)
    ]


async def _by_user(connection: asyncpg.Connection, sql: str, *arguments: object) -> dict[int, int]:
    return {row["user_id"]: row["id"] for row in await connection.fetch(sql, *arguments)}
