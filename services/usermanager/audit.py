"""The audit log: who did what to which account, written in the transaction that did it.

So there is no change without its entry and no entry without its change. What is refused, such as
a failed login, has an entry of its own. Entries hold no secret: neither passwords nor keys nor
tokens, nor what somebody typed as an email address that nobody has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from services.runtime import telemetry
from services.runtime.endpoints import Client
from services.runtime.postgres import Connection, Database

# A year, for what somebody notices late.
kept_days: Final = 365
# Who comes and goes, or tries to, can be written down any number of times, by anybody: a month.
comings_kept_days: Final = 30
# Small enough that no batch holds anybody up, large enough to keep pace with any traffic.
tidied_at_once: Final = 10_000

_ADD: Final = """
    INSERT INTO audit_log (user_id, actor, action, address, request_id, details)
    VALUES ($1, $2, $3, $4, $5, $6::text::jsonb)
"""
_REMOVE_OLD: Final = """
    DELETE FROM audit_log WHERE id IN (
        SELECT id FROM audit_log WHERE at < now() - $1 * interval '1 day' ORDER BY at LIMIT $2
        FOR UPDATE SKIP LOCKED
    )
"""
# The actions of the index audit_log_comings, letter by letter: other entries are not looked at.
_REMOVE_OLD_COMINGS: Final = """
    DELETE FROM audit_log WHERE id IN (
        SELECT id FROM audit_log
        WHERE action IN ('logged_in', 'login_refused', 'logged_out')
            AND at < now() - $1 * interval '1 day'
        ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED
    )
"""


# Before anybody has proved to be somebody.
nobody: Final = "nobody"


def user(user_id: int) -> str:
    """As an actor, somebody who acts for an account."""
    return f"user {user_id}"


def operator(name: str) -> str:
    """As an actor, somebody who has the database's own password."""
    return f"operator {name}"


@dataclass(slots=True, frozen=True)
class Note:
    """What is to be written about a change, by whoever makes it: all but the account's id."""

    # What has happened, as in key_created.
    action: str
    actor: str
    client: Client | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Audit:
    """Writes entries, and forgets old ones."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, connection: Connection, user_id: int | None, note: Note) -> None:
        """Write an entry; it is there once the connection's transaction has committed."""
        request_id = telemetry.request_id.get()
        await connection.execute(
            _ADD,
            user_id,
            note.actor,
            note.action,
            None if note.client is None else note.client.address,
            None if request_id == telemetry.no_request_id else request_id,
            msgspec.json.encode(note.details).decode(),
        )

    async def tidy(self) -> None:
        """Remove a batch of entries of each kind that are too old."""
        for statement, days in ((_REMOVE_OLD, kept_days), (_REMOVE_OLD_COMINGS, comings_kept_days)):
            async with self._database.transaction() as connection:
                await connection.execute(statement, days, tidied_at_once)
