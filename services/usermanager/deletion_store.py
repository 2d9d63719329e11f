"""Which closed accounts have data to be deleted, and who is at it: the table closed_accounts.

A worker takes an account on for a while and says, as it goes on, that it still is at it. Whoever
does not is believed dead, and another takes the account on. `begun_at` tells the two apart: all
that a worker says counts only as long as nobody has begun after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.runtime.postgres import Database
from services.usermanager.audit import Audit, Note

# Of a reason, for people.
trouble_chars_max: Final = 500
# As long as the audit log tells of the account.
kept_days: Final = 365
tidied_at_once: Final = 10_000

# The clock, and not now(): several of these may be in one moment's queue for the row.
_TAKE: Final = """
    UPDATE closed_accounts
    SET begun_at = clock_timestamp(), due_at = clock_timestamp() + $1 * interval '1 second'
    WHERE user_id = (
        SELECT user_id FROM closed_accounts
        WHERE done_at IS NULL AND due_at <= clock_timestamp()
        ORDER BY due_at LIMIT 1
        FOR UPDATE SKIP LOCKED
    )
    RETURNING user_id, begun_at, attempts,
        extract(epoch FROM clock_timestamp() - closed_at)::float8 AS closed_s
"""
_GO_ON: Final = """
    UPDATE closed_accounts
    SET due_at = clock_timestamp() + $3 * interval '1 second', keys_deleted = keys_deleted + $4
    WHERE user_id = $1 AND begun_at = $2 AND done_at IS NULL
"""
_COME_BACK: Final = """
    UPDATE closed_accounts
    SET due_at = closed_at + $3 * interval '1 second', attempts = 0, trouble = NULL
    WHERE user_id = $1 AND begun_at = $2 AND done_at IS NULL
"""
_PUT_OFF: Final = """
    UPDATE closed_accounts
    SET due_at = clock_timestamp() + $3 * interval '1 second', attempts = attempts + 1,
        trouble = $4
    WHERE user_id = $1 AND begun_at = $2 AND done_at IS NULL
"""
_FINISH: Final = """
    UPDATE closed_accounts SET done_at = clock_timestamp(), attempts = 0, trouble = NULL
    WHERE user_id = $1 AND begun_at = $2 AND done_at IS NULL
    RETURNING keys_deleted
"""
_BACKLOG: Final = """
    SELECT count(*) AS waiting, count(trouble) AS in_trouble,
        coalesce(extract(epoch FROM clock_timestamp() - min(closed_at)), 0)::float8 AS oldest_s
    FROM closed_accounts WHERE done_at IS NULL
"""
_TIDY: Final = """
    DELETE FROM closed_accounts WHERE user_id IN (
        SELECT user_id FROM closed_accounts
        WHERE done_at < now() - $1 * interval '1 day' ORDER BY done_at LIMIT $2
        FOR UPDATE SKIP LOCKED
    )
"""


@dataclass(slots=True, frozen=True)
class ClosedAccount:
    """One that this worker has taken on."""

    user_id: int
    begun_at: datetime
    # How often in a row it came to nothing before.
    attempts: int
    # For how long it had been closed then.
    closed_s: float


@dataclass(slots=True, frozen=True)
class Backlog:
    """What there is to do, of all workers."""

    waiting: int = 0
    in_trouble: int = 0
    oldest_s: float = 0.0


class LostError(Exception):
    """Another worker has taken the account on meanwhile, or is done with it."""


class DeletionStore:
    """Every call may raise RetryLater, and all but `backlog` UnknownOutcome; to repeat one is
    harmless, but for what it counts."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._database = database
        self._audit = audit

    async def take(self, lease_s: float) -> ClosedAccount | None:
        """Take on the account that is due for longest, if there is any."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_TAKE, lease_s)
        return None if row is None else ClosedAccount(**row)

    async def go_on(self, account: ClosedAccount, lease_s: float, deleted: int) -> None:
        """Be at it for that long from now, having deleted so many more keys."""
        await self._say(_GO_ON, account, lease_s, deleted)

    async def come_back(self, account: ClosedAccount, closed_s: float) -> None:
        """It is as far as it can be until it has been closed for so long."""
        await self._say(_COME_BACK, account, closed_s)

    async def put_off(self, account: ClosedAccount, seconds: float, trouble: str) -> None:
        """It came to nothing; let somebody try again after so long."""
        # PostgreSQL has no room for this one character.
        text = trouble.replace("\0", " ")[:trouble_chars_max]
        await self._say(_PUT_OFF, account, seconds, text)

    async def finish(self, account: ClosedAccount) -> int:
        """Nothing is left of it; how many keys were deleted in all."""
        async with self._database.transaction() as connection:
            deleted = await connection.fetchval(_FINISH, account.user_id, account.begun_at)
            if deleted is None:
                raise LostError
            note = Note("data_deleted", "user manager", details={"keys": deleted})
            await self._audit.write(connection, account.user_id, note)
        return int(deleted)

    async def backlog(self) -> Backlog:
        async with self._database.connection() as connection:
            return Backlog(**await connection.fetchrow(_BACKLOG))

    async def tidy(self) -> None:
        """Forget some of those that were done with long ago."""
        async with self._database.transaction() as connection:
            await connection.execute(_TIDY, kept_days, tidied_at_once)

    async def _say(self, statement: str, account: ClosedAccount, *arguments: Any) -> None:
        async with self._database.transaction() as connection:
            done = await connection.execute(
                statement, account.user_id, account.begun_at, *arguments
            )
        if done == "UPDATE 0":
            raise LostError
