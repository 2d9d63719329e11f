"""What operators do to accounts, without their passwords: for who holds the database's own.

Each is written to the audit log with the operator's name. Accounts are named by email address.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.core.errors import FixRequest
from services.core.plans import account_plans, free
from services.runtime.request_body import invalid_members
from services.usermanager import audit
from services.usermanager.account_store import Account, AccountStore, NewAccount, Taken
from services.usermanager.accounts import already_taken, wrong_members
from services.usermanager.audit import Note
from services.usermanager.names import parse_email, parse_username
from services.usermanager.passwords import Passwords, password_problem


class Administration:
    """Raises FixRequest for what is wrong in the words of the API: `invalid_body` that names
    members, `already_exists`, `not_found`."""

    def __init__(self, store: AccountStore, passwords: Passwords, operator: str) -> None:
        self._store = store
        self._passwords = passwords
        self._actor = audit.operator(operator)

    async def create(
        self,
        email: str,
        username: str,
        password: str,
        *,
        plan: str = free.name,
        is_operator: bool = False,
    ) -> Account:
        wrong = wrong_members(email, username, password)
        if plan not in account_plans:
            wrong.append(("plan", _no_plan))
        if wrong:
            raise invalid_members(wrong)
        new = NewAccount(
            parse_email(email),
            parse_username(username),
            await self._passwords.hash(password),
            plan,
            is_operator,
        )
        details = {"plan": plan, "is_operator": is_operator}
        try:
            return await self._store.add(new, Note("account_created", self._actor, None, details))
        except Taken as taken:
            raise already_taken(taken) from taken

    async def page(self, after_id: int, limit: int) -> Sequence[Account]:
        """Accounts in the order of their ids; the first page is after 0."""
        return await self._store.page(after_id, limit)

    async def find(self, email: str) -> Account:
        try:
            found = await self._store.by_email(parse_email(email).folded)
        except ValueError as error:
            raise invalid_members([("email", str(error))]) from error
        if found is None:
            raise _nobody(email)
        return found

    async def set_plan(self, email: str, plan: str) -> Account:
        """Gateways hear of it within a second."""
        if plan not in account_plans:
            raise invalid_members([("plan", _no_plan)])
        account = await self.find(email)
        note = Note("plan_changed", self._actor, None, {"from": account.plan, "to": plan})
        return _found(await self._store.change(account.id, note, plan=plan), email)

    async def set_active(self, email: str, *, is_active: bool) -> Account:
        """A disabled account keeps everything, and can do nothing: its sessions end, its API
        keys are refused, and so is logging in, which tells who has the password why."""
        account = await self.find(email)
        note = Note("account_enabled" if is_active else "account_disabled", self._actor)
        return _found(await self._store.change(account.id, note, is_active=is_active), email)

    async def set_operator(self, email: str, *, is_operator: bool) -> Account:
        account = await self.find(email)
        note = Note("operator_set", self._actor, None, {"is_operator": is_operator})
        return _found(await self._store.change(account.id, note, is_operator=is_operator), email)

    async def reset_password(self, email: str, password: str) -> Account:
        """All sessions of the account end; its API keys stay good."""
        if problem := password_problem(password):
            raise invalid_members([("password", problem)])
        account = await self.find(email)
        password_hash = await self._passwords.hash(password)
        note = Note("password_reset", self._actor)
        if not await self._store.set_password(account, password_hash, note, None):
            raise FixRequest(
                "not_found", f"The account {email} was closed or given another password meanwhile"
            )
        return account


_no_plan = f"is not one of {', '.join(account_plans)}"


def _found(account: Account | None, email: str) -> Account:
    if account is None:
        raise _nobody(email)
    return account


def _nobody(email: str) -> FixRequest:
    return FixRequest("not_found", f"No account has the email address {email}")
