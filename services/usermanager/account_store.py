"""Where accounts are kept: what each change does, whole or not at all.

A change is one transaction with its entry in the audit log, with the sessions it ends, and with
the event that has gateways look again at the account's API keys. Every call may tell `RetryLater`
(`database_unavailable`); one that changes something also `UnknownOutcome`, if PostgreSQL was lost
while it committed. Rules stand in `accounts` and `administration`.

Rows are locked in one order, wherever more than one is: the account, its sessions, their tokens,
its API keys, and last the counter of events, which everybody shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from services.core import plans
from services.core.errors import RetryLater
from services.runtime.postgres import Connection, Database
from services.usermanager.audit import Audit, Note
from services.usermanager.key_events import KeyEvents
from services.usermanager.names import Name

# Somebody else's account of this name was closed just when we were told that it is taken.
attempts_max: Final = 3

_COLUMNS: Final = """
    id, email, username, password_hash, plan, is_active, is_operator, created_at,
    password_changed_at
"""
_ADD: Final = f"""
    INSERT INTO users
        (email, email_folded, username, username_folded, password_hash, plan, is_operator)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT DO NOTHING
    RETURNING {_COLUMNS}
"""  # noqa: S608  A constant of this module.
_TAKEN: Final = """
    SELECT EXISTS (SELECT FROM users WHERE email_folded = $1) AS email,
        EXISTS (SELECT FROM users WHERE username_folded = $2) AS username
"""
_BY_EMAIL: Final = f"SELECT {_COLUMNS} FROM users WHERE email_folded = $1"  # noqa: S608  Likewise.
_BY_ID: Final = f"SELECT {_COLUMNS} FROM users WHERE id = $1"  # noqa: S608  Likewise.
_PAGE: Final = f"SELECT {_COLUMNS} FROM users WHERE id > $1 ORDER BY id LIMIT $2"  # noqa: S608  Likewise.
# Two changes within a microsecond are still two.
_REPLACE_HASH: Final = """
    UPDATE users SET password_hash = $3, password_changed_at =
        greatest(clock_timestamp(), password_changed_at + interval '1 microsecond')
    WHERE id = $1 AND password_changed_at = $2
"""
_END_SESSIONS: Final = "DELETE FROM sessions WHERE user_id = $1 AND id IS DISTINCT FROM $2"
_CHANGE: Final = f"""
    UPDATE users SET plan = coalesce($2, plan), is_active = coalesce($3, is_active),
        is_operator = coalesce($4, is_operator)
    WHERE id = $1
    RETURNING {_COLUMNS}
"""  # noqa: S608  Likewise.
_HOLD: Final = "SELECT FROM users WHERE id = $1 AND password_changed_at = $2 FOR UPDATE"
# In the order of their ids, as all who lock several.
_HOLD_SESSIONS: Final = "SELECT FROM sessions WHERE user_id = $1 ORDER BY id FOR UPDATE"
_HOLD_KEYS: Final = "SELECT FROM api_keys WHERE user_id = $1 ORDER BY id FOR UPDATE"
_CLOSE: Final = "DELETE FROM users WHERE id = $1"
_QUEUE_DELETION: Final = "INSERT INTO closed_accounts (user_id) VALUES ($1)"


@dataclass(slots=True, frozen=True)
class Account:
    id: int
    email: str
    username: str
    password_hash: str
    plan: str
    is_active: bool
    is_operator: bool
    created_at: datetime
    # Which password it is: no two of an account have the same time. A new hash of the same
    # password is the same password.
    password_changed_at: datetime


@dataclass(slots=True, frozen=True)
class NewAccount:
    email: Name
    username: Name
    password_hash: str
    plan: str = plans.free.name
    is_operator: bool = False


class Taken(Exception):
    """Another account has the name, or both."""

    def __init__(self, members: Sequence[str]) -> None:
        super().__init__(", ".join(members))
        # "email", "username"
        self.members = members


class AccountStore(Protocol):
    async def add(self, new: NewAccount, note: Note) -> Account:
        """Open an account; `Taken` if somebody has its email address or user name."""
        ...

    async def by_email(self, email_folded: str) -> Account | None: ...

    async def by_id(self, account_id: int) -> Account | None: ...

    async def page(self, after_id: int, limit: int) -> Sequence[Account]:
        """Accounts in the order of their ids."""
        ...

    async def set_password(
        self, account: Account, password_hash: str, note: Note, keep_session: int | None
    ) -> bool:
        """Give the account another password, and end all its sessions but one, or all.

        False, with nothing changed, if it is closed or has another password by now than here.
        """
        ...

    async def change(
        self,
        account_id: int,
        note: Note,
        *,
        plan: str | None = None,
        is_active: bool | None = None,
        is_operator: bool | None = None,
    ) -> Account | None:
        """Change what is given, and return the account; None if there is none.

        One that is not active has no sessions. Gateways are told of a plan and of activity.
        """
        ...

    async def close(self, account: Account, note: Note) -> bool:
        """Remove the account with its sessions and API keys, tell gateways, and queue the
        deletion of what it has stored. False as for `set_password`."""
        ...


class PostgresAccountStore:
    def __init__(self, database: Database, audit: Audit, key_events: KeyEvents) -> None:
        self._database = database
        self._audit = audit
        self._key_events = key_events

    async def add(self, new: NewAccount, note: Note) -> Account:
        async with self._database.transaction() as connection:
            account = await _add(connection, new)
            await self._audit.write(connection, account.id, note)
        return account

    async def by_email(self, email_folded: str) -> Account | None:
        async with self._database.connection() as connection:
            return _account(await connection.fetchrow(_BY_EMAIL, email_folded))

    async def by_id(self, account_id: int) -> Account | None:
        async with self._database.connection() as connection:
            return _account(await connection.fetchrow(_BY_ID, account_id))

    async def page(self, after_id: int, limit: int) -> Sequence[Account]:
        async with self._database.connection() as connection:
            return [Account(**row) for row in await connection.fetch(_PAGE, after_id, limit)]

    async def set_password(
        self, account: Account, password_hash: str, note: Note, keep_session: int | None
    ) -> bool:
        async with self._database.transaction() as connection:
            done = await connection.execute(
                _REPLACE_HASH, account.id, account.password_changed_at, password_hash
            )
            if done == "UPDATE 0":
                return False
            await connection.execute(_HOLD_SESSIONS, account.id)
            await connection.execute(_END_SESSIONS, account.id, keep_session)
            await self._audit.write(connection, account.id, note)
        return True

    async def change(
        self,
        account_id: int,
        note: Note,
        *,
        plan: str | None = None,
        is_active: bool | None = None,
        is_operator: bool | None = None,
    ) -> Account | None:
        tells_gateways = plan is not None or is_active is not None
        async with self._key_events.transaction() as connection:
            row = await connection.fetchrow(_CHANGE, account_id, plan, is_active, is_operator)
            account = _account(row)
            if account is None:
                return None
            if not account.is_active:
                await connection.execute(_HOLD_SESSIONS, account_id)
                await connection.execute(_END_SESSIONS, account_id, None)
            await self._audit.write(connection, account_id, note)
            if tells_gateways:
                await self._key_events.add(connection, account_id, None)
        return account

    async def close(self, account: Account, note: Note) -> bool:
        async with self._key_events.transaction() as connection:
            held = await connection.fetch(_HOLD, account.id, account.password_changed_at)
            if not held:
                return False
            await connection.execute(_HOLD_SESSIONS, account.id)
            await connection.execute(_HOLD_KEYS, account.id)
            await connection.execute(_CLOSE, account.id)
            await connection.execute(_QUEUE_DELETION, account.id)
            await self._audit.write(connection, account.id, note)
            await self._key_events.add(connection, account.id, None)
        return True


async def _add(connection: Connection, new: NewAccount) -> Account:
    for _ in range(attempts_max):
        row = await connection.fetchrow(
            _ADD,
            new.email.shown,
            new.email.folded,
            new.username.shown,
            new.username.folded,
            new.password_hash,
            new.plan,
            new.is_operator,
        )
        if row is not None:
            return Account(**row)
        # A statement of its own: it sees what the other has committed meanwhile.
        taken = await connection.fetchrow(_TAKEN, new.email.folded, new.username.folded)
        if members := [member for member, is_taken in taken.items() if is_taken]:
            raise Taken(members)
    raise RetryLater("overloaded", "Others open and close accounts of this name all the time")


def _account(row: Any) -> Account | None:
    return None if row is None else Account(**row)
