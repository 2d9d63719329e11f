"""Accounts: how one is opened, looked at and closed by its owner, and its password changed.

Sign-up tells when an email address or user name is taken, for a person could not do without. So
it tells who has an account, one address at a time: it is throttled by the address of who asks.
"""

from __future__ import annotations

from typing import Final

from services.core.errors import FixRequest
from services.runtime.client_address import network_of
from services.runtime.endpoints import Access, Call, Caller, Endpoint
from services.runtime.request_body import invalid_members
from services.usermanager import audit
from services.usermanager.account_store import Account, AccountStore, NewAccount, Taken
from services.usermanager.audit import Note
from services.usermanager.messages_accounts import Closing, PasswordChange, Signup, User
from services.usermanager.names import parse_email, parse_username, problem_of
from services.usermanager.passwords import Passwords, password_problem
from services.usermanager.throttle import (
    Throttle,
    from_address,
    password_of_account,
    signup_from_address,
    signup_from_site,
)

_tag: Final = "Accounts"


class Accounts:
    def __init__(self, store: AccountStore, passwords: Passwords, throttle: Throttle) -> None:
        self._store = store
        self._passwords = passwords
        self._throttle = throttle

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                "/signup",
                "signUp",
                "Open an account",
                self.sign_up,
                Access.OPEN,
                body_type=Signup,
                status=201,
                answer_type=User,
                errors=("already_exists", "rate_limited"),
                tag=_tag,
            ),
            Endpoint(
                "GET",
                "/me",
                "getMe",
                "The account of who asks",
                self.me,
                answer_type=User,
                tag=_tag,
            ),
            Endpoint(
                "DELETE",
                "/me",
                "closeAccount",
                "Close the account: sessions end, API keys are revoked, stored data is deleted",
                self.close,
                body_type=Closing,
                status=204,
                errors=("invalid_credentials", "rate_limited"),
                tag=_tag,
            ),
            Endpoint(
                "POST",
                "/me/password",
                "changePassword",
                "Change the password, and end all other sessions",
                self.change_password,
                body_type=PasswordChange,
                status=204,
                errors=("invalid_credentials", "rate_limited"),
                tag=_tag,
            ),
        ]

    async def sign_up(self, call: Call[None, None, Signup]) -> User:
        body = call.body
        if wrong := wrong_members(body.email, body.username, body.password):
            raise invalid_members(wrong)
        address = call.client.address
        async with self._passwords.networks.of(network_of(address)):
            await self._throttle.take_all(
                *from_address(address, signup_from_address, signup_from_site)
            )
            password_hash = await self._passwords.hash(body.password)
        new = NewAccount(parse_email(body.email), parse_username(body.username), password_hash)
        try:
            account = await self._store.add(new, Note("signed_up", audit.nobody, call.client))
        except Taken as taken:
            raise already_taken(taken) from taken
        return user(account)

    async def me(self, call: Call[None, None, None]) -> User:
        return user(await self._own(call.caller))

    async def change_password(self, call: Call[None, None, PasswordChange]) -> None:
        """API keys stay good: they are revoked one by one by who fears for them."""
        caller, body = call.caller, call.body
        if problem := password_problem(body.new_password):
            raise invalid_members([("new_password", problem)])
        async with self._passwords.networks.of(network_of(call.client.address)):
            account = await self._proved(caller, body.current_password)
            async with self._passwords.accounts.of(account.id):
                password_hash = await self._passwords.hash(body.new_password)
        note = Note("password_changed", audit.user(caller.user_id), call.client)
        if not await self._store.set_password(account, password_hash, note, caller.session_id):
            raise wrong_password()

    async def close(self, call: Call[None, None, Closing]) -> None:
        async with self._passwords.networks.of(network_of(call.client.address)):
            account = await self._proved(call.caller, call.body.password)
        note = Note("account_closed", audit.user(account.id), call.client)
        if not await self._store.close(account, note):
            raise wrong_password()

    async def _own(self, caller: Caller) -> Account:
        account = await self._store.by_id(caller.user_id)
        if account is None:
            raise FixRequest("unauthorized", "The account has been closed")
        return account

    async def _proved(self, caller: Caller, password: str) -> Account:
        """The caller's account, once more proved to be his: the token may have been stolen."""
        async with self._throttle.failures((password_of_account, str(caller.user_id))):
            account = await self._own(caller)
            async with self._passwords.accounts.of(account.id):
                is_right = await self._passwords.verify(password, account.password_hash)
            if not is_right:
                raise wrong_password()
        return account


def wrong_members(email: str, username: str, password: str) -> list[tuple[str, str]]:
    """Every member that keeps an account from being opened, with what is wrong about it."""
    problems = {
        "email": problem_of(parse_email, email),
        "username": problem_of(parse_username, username),
        "password": password_problem(password),
    }
    return [(member, problem) for member, problem in problems.items() if problem is not None]


def user(account: Account) -> User:
    """The account as its owner is shown it."""
    return User(
        id=account.id,
        email=account.email,
        username=account.username,
        is_active=account.is_active,
        created_at=account.created_at,
        plan=account.plan,
        is_operator=account.is_operator,
    )


def already_taken(taken: Taken) -> FixRequest:
    errors = [{"member": member, "detail": "is taken"} for member in taken.members]
    return FixRequest(
        "already_exists",
        f"Another account has this {' and this '.join(taken.members)}",
        members={"member": taken.members[0], "errors": errors},
    )


def wrong_password() -> FixRequest:
    return FixRequest("invalid_credentials", "The password is not the one of this account")
