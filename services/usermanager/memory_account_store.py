"""Accounts in memory, for tests: the same contract, without PostgreSQL.

What a real database may do to a store is asked for: being away, and losing the reply to a commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from services.core.errors import RetryLater, UnknownOutcome
from services.usermanager.account_store import Account, NewAccount, Taken
from services.usermanager.audit import Note


@dataclass(slots=True)
class Rows:
    """What PostgreSQL would hold, and how it behaves."""

    accounts: dict[int, Account] = field(default_factory=dict)
    # Folded names of accounts.
    emails: dict[str, int] = field(default_factory=dict)
    usernames: dict[str, int] = field(default_factory=dict)
    # Sessions with the account of each.
    sessions: dict[int, int] = field(default_factory=dict)
    notes: list[tuple[int, Note]] = field(default_factory=list)
    # Accounts that gateways were told of, and those whose data is to be deleted.
    told: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    last_id: int = 0
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    away: bool = False
    # So many of the next commits are done, and nobody is told.
    replies_to_lose: int = 0


class MemoryAccountStore:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, new: NewAccount, note: Note) -> Account:
        rows = self._begin()
        taken = {
            "email": new.email.folded in rows.emails,
            "username": new.username.folded in rows.usernames,
        }
        if any(taken.values()):
            raise Taken([member for member, is_taken in taken.items() if is_taken])
        rows.last_id += 1
        account = Account(
            id=rows.last_id,
            email=new.email.shown,
            username=new.username.shown,
            password_hash=new.password_hash,
            plan=new.plan,
            is_active=True,
            is_operator=new.is_operator,
            created_at=rows.now,
            password_changed_at=rows.now,
        )
        rows.accounts[account.id] = account
        rows.emails[new.email.folded] = rows.usernames[new.username.folded] = account.id
        rows.notes.append((account.id, note))
        self._commit()
        return account

    async def by_email(self, email_folded: str) -> Account | None:
        rows = self._begin()
        return rows.accounts.get(rows.emails.get(email_folded, 0))

    async def by_id(self, account_id: int) -> Account | None:
        return self._begin().accounts.get(account_id)

    async def page(self, after_id: int, limit: int) -> Sequence[Account]:
        accounts = self._begin().accounts
        return [accounts[each] for each in sorted(accounts) if each > after_id][:limit]

    async def set_password(
        self, account: Account, password_hash: str, note: Note, keep_session: int | None
    ) -> bool:
        rows = self._begin()
        if not self._is_still(account):
            return False
        rows.accounts[account.id] = replace(
            rows.accounts[account.id],
            password_hash=password_hash,
            password_changed_at=self._later(),
        )
        self._end_sessions(account.id, keep_session)
        rows.notes.append((account.id, note))
        self._commit()
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
        rows = self._begin()
        if (old := rows.accounts.get(account_id)) is None:
            return None
        account = rows.accounts[account_id] = replace(
            old,
            plan=old.plan if plan is None else plan,
            is_active=old.is_active if is_active is None else is_active,
            is_operator=old.is_operator if is_operator is None else is_operator,
        )
        if not account.is_active:
            self._end_sessions(account_id, None)
        rows.notes.append((account_id, note))
        if plan is not None or is_active is not None:
            rows.told.append(account_id)
        self._commit()
        return account

    async def close(self, account: Account, note: Note) -> bool:
        rows = self._begin()
        if not self._is_still(account):
            return False
        del rows.accounts[account.id]
        for names in (rows.emails, rows.usernames):
            for name in [name for name, owner in names.items() if owner == account.id]:
                del names[name]
        self._end_sessions(account.id, None)
        rows.notes.append((account.id, note))
        rows.told.append(account.id)
        rows.closed.append(account.id)
        self._commit()
        return True

    def _is_still(self, account: Account) -> bool:
        now = self._rows.accounts.get(account.id)
        return now is not None and now.password_changed_at == account.password_changed_at

    def _end_sessions(self, account_id: int, keep: int | None) -> None:
        sessions = self._rows.sessions
        for session in [one for one, owner in sessions.items() if owner == account_id]:
            if session != keep:
                del sessions[session]

    def _later(self) -> datetime:
        self._rows.now += timedelta(microseconds=1)
        return self._rows.now

    def _begin(self) -> Rows:
        if self._rows.away:
            raise RetryLater("database_unavailable", "PostgreSQL cannot be reached")
        return self._rows

    def _commit(self) -> None:
        if self._rows.replies_to_lose:
            self._rows.replies_to_lose -= 1
            raise UnknownOutcome("PostgreSQL was lost while it committed")
