"""Sessions: logging in, staying logged in, and logging out.

A login begins a session and gives two tokens: an access token, which is shown with each request
and lives for an hour, and a refresh token, which is shown once, for the next pair.

A refresh token that is used a second time has been in two hands, and nobody can tell which of
them is the thief's: the session ends, and with it all tokens it ever gave. So of two refreshes
with one token at once at most one succeeds, and what it got is worth nothing by the time the
other is answered. A client therefore refreshes one at a time. One that never heard the answer to
a refresh may send it again: if the first did not happen, the second does; if it did, the session
ends, and the client has to log in again.

A browser cannot do one at a time: two pages that are opened at once both come with the token that
the cookie has. For `pages_grace` they get the same next token, which is made of the one before. So
a thief who has a browser's cookies, and always renews them within that time of the browser, is not
found by this; one who comes any later is. Of a page within that time that comes from another
network or another browser than the login did the audit log tells (`refresh_token_shared`): who goes
about with a laptop does so too.

A login is refused in the same words, for the same price and in the same time, whether there is
no such account or the password is wrong. Only who has the right password of a disabled account is
told that it is disabled, and that costs the same.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services.core.errors import FixRequest
from services.runtime.client_address import network_of, site_of
from services.runtime.endpoints import Access, Call, Caller, Client, Endpoint
from services.runtime.metrics import Metrics
from services.runtime.postgres import Connection, Database
from services.usermanager import audit
from services.usermanager import session_store as store
from services.usermanager.account_store import Account, AccountStore
from services.usermanager.accounts import user
from services.usermanager.audit import Audit, Note
from services.usermanager.known_networks import KnownNetworks
from services.usermanager.messages_sessions import (
    LoggedIn,
    Login,
    Refresh,
    SessionList,
    SessionPage,
    SessionPath,
    SessionShown,
    page_max,
)
from services.usermanager.names import fold, parse_email
from services.usermanager.passwords import Passwords
from services.usermanager.row_ids import page_below
from services.usermanager.throttle import (
    Throttle,
    from_address,
    login_from_address,
    login_from_site,
    login_of_account,
    login_of_account_from_known,
    login_of_account_from_site,
    refresh_of_account,
    try_from_address,
    try_of_account_from_site,
)
from services.usermanager.tokens import Tokens

# Who does not come back within a month logs in again.
idle: Final = timedelta(days=30)
# And so does everybody twice a year: a stolen session does not last for ever.
longest: Final = timedelta(days=180)
# More devices than anybody has; a program that logs in without ever logging out ends its own.
sessions_max: Final = page_max
tidied_at_once: Final = 10_000
# How long a page that was asked for with the cookies of before may take to get here. Less than an
# access token lives for, so that the next token is not used yet.
pages_grace: Final = timedelta(seconds=30)

_token_bytes: Final = 32
_token_form: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_tag: Final = "Sessions"


@dataclass(slots=True)
class SessionCounters:
    """Since the start, for `/metrics`."""

    logins: int = 0
    logins_refused: int = 0
    refreshes: int = 0
    refresh_tokens_reused: int = 0


class Sessions:
    def __init__(
        self,
        database: Database,
        accounts: AccountStore,
        passwords: Passwords,
        tokens: Tokens,
        throttle: Throttle,
        networks: KnownNetworks,
        log: Audit,
    ) -> None:
        self.counters = SessionCounters()
        self._database = database
        self._accounts = accounts
        self._passwords = passwords
        self._tokens = tokens
        self._throttle = throttle
        self._networks = networks
        self._audit = log

    def add_to(self, metrics: Metrics) -> None:
        metrics.add_counters("sessions", "of sessions", self.counters)

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                "/login",
                "logIn",
                "Begin a session with email address and password",
                self.log_in,
                Access.OPEN,
                body_type=Login,
                answer_type=LoggedIn,
                errors=("invalid_credentials", "rate_limited"),
                tag=_tag,
            ),
            Endpoint(
                "POST",
                "/refresh",
                "refresh",
                "Exchange a refresh token, which is good once, for a new pair of tokens",
                self.refresh,
                Access.OPEN,
                body_type=Refresh,
                answer_type=LoggedIn,
                errors=("unauthorized", "rate_limited"),
                tag=_tag,
            ),
            Endpoint(
                "POST", "/logout", "logOut", "End this session", self.log_out, status=204, tag=_tag
            ),
            Endpoint(
                "GET",
                "/sessions",
                "listSessions",
                "Where the account is logged in, newest first",
                self.list,
                query_type=SessionPage,
                answer_type=SessionList,
                errors=("invalid_cursor",),
                tag=_tag,
            ),
            Endpoint(
                "DELETE",
                "/sessions/{session_id}",
                "endSession",
                "Log out elsewhere",
                self.end,
                path_type=SessionPath,
                status=204,
                tag=_tag,
            ),
        ]

    async def authenticate(self, token: str) -> Caller:
        """Who asks, by an access token whose session has not ended; else `unauthorized`."""
        caller = self._tokens.check(token)
        async with self._database.connection() as connection:
            if not await store.is_live(connection, caller.session_id, caller.user_id):
                raise FixRequest("unauthorized", "The session has ended: log in again")
        return caller

    async def log_in(self, call: Call[None, None, Login]) -> LoggedIn:
        async with self._passwords.networks.of(network_of(call.client.address)):
            account = await self._proved(call.body, call.client)
            rehashed = None
            if self._passwords.needs_rehash(account.password_hash):
                rehashed = await self._passwords.hash(call.body.password)
        async with self._database.transaction() as connection:
            if not await store.hold_account(
                connection, account.id, account.password_changed_at, rehashed
            ):
                raise _refused_login()
            session_id = await store.begin(connection, account.id, call.client, idle, sessions_max)
            refresh_token = await self._add_token(connection, session_id)
            note = Note(
                "logged_in", audit.user(account.id), call.client, {"session_id": session_id}
            )
            await self._audit.write(connection, account.id, note)
            # Last, for two logins from one place wait for each other here.
            folded = parse_email(account.email).folded
            await self._networks.remember(connection, folded, call.client.address)
        self.counters.logins += 1
        return self._logged_in(account, session_id, refresh_token)

    async def refresh(self, call: Call[None, None, Refresh]) -> LoggedIn:
        return await self._refresh(call.body.refresh_token, call.client, None)

    async def refresh_in_browser(self, token: str, client: Client) -> LoggedIn:
        """As `refresh`, for several pages at once."""
        return await self._refresh(token, client, self._tokens.next_refresh_token(token))

    async def _refresh(self, token: str, client: Client, following: str | None) -> LoggedIn:
        if not _token_form.fullmatch(token):
            raise _refused_refresh()
        token_hash = _hash(token)
        # All that can fail for want of PostgreSQL and is not the rotation comes before it: who is
        # told to try again must still have a token to do so.
        async with self._database.connection() as connection:
            user_id = await store.owner(connection, token_hash)
        account = None if user_id is None else await self._accounts.by_id(user_id)
        if account is None:
            raise _refused_refresh()
        await self._throttle.take(refresh_of_account, str(account.id))
        rotated = await self._rotate(token_hash, client, following)
        if rotated is None:
            raise _refused_refresh()
        self.counters.refreshes += 1
        return self._logged_in(account, *rotated)

    async def log_out(self, call: Call[None, None, None]) -> None:
        """A session that somebody else has just ended has ended."""
        await self._end(call.caller, call.caller.session_id, "logged_out", call.client)

    async def list(self, call: Call[None, SessionPage, None]) -> SessionList:
        limit = call.query.limit
        async with self._database.connection() as connection:
            found = await store.page(
                connection,
                call.caller.user_id,
                page_below(call.query.cursor, "GET /sessions"),
                limit + 1,
            )
        shown = [_shown(session, call.caller) for session in found[:limit]]
        cursor = str(shown[-1].id) if len(found) > limit else None
        return SessionList(shown, len(shown), cursor)

    async def end(self, call: Call[SessionPath, None, None]) -> None:
        session_id = call.path.session_id
        if not await self._end(call.caller, session_id, "session_ended", call.client):
            raise FixRequest("not_found", f"You have no session {session_id}")

    async def tidy(self) -> None:
        """Remove a batch of sessions that have expired, with their tokens."""
        async with self._database.transaction() as connection:
            await store.remove_expired(connection, tidied_at_once)

    async def _proved(self, body: Login, client: Client) -> Account:
        """The account that this is the password of. Whatever is refused has asked the same of
        PostgreSQL and of the processor."""
        try:
            folded = parse_email(body.email).folded
            subject = folded
        except ValueError:
            # Nobody has it. It is looked up, and it is throttled, as if somebody could.
            folded, subject = "", fold(body.email)
        is_known = await self._networks.has(folded, client.address)
        # Whose place it is in the queue, so that strangers elsewhere do not stand in it.
        whose = (subject, network_of(client.address) if is_known else "")
        async with self._throttled(subject, client.address, is_known=is_known):
            account = await self._accounts.by_email(folded)
            kept = None if account is None else account.password_hash
            async with self._passwords.accounts.of(whose):
                is_right = await self._passwords.verify(body.password, kept)
            if account is not None and account.is_active and is_right:
                return account
            self.counters.logins_refused += 1
            async with self._database.transaction() as connection:
                note = Note("login_refused", audit.nobody, client)
                await self._audit.write(connection, None if account is None else account.id, note)
            raise _disabled() if is_right else _refused_login()

    def _throttled(
        self, subject: str, address: str, *, is_known: bool
    ) -> AbstractAsyncContextManager[None]:
        """What a login costs, of an account that there may or may not be."""
        if is_known:
            there = f"{subject}\0{network_of(address)}"
            of_account = [(login_of_account_from_known, there)]
        else:
            there = f"{subject}\0{site_of(address)}"
            of_account = [(login_of_account_from_site, there), (login_of_account, subject)]
        return self._throttle.failures(
            *from_address(address, login_from_address, login_from_site),
            *of_account,
            tries=((try_from_address, network_of(address)), (try_of_account_from_site, there)),
        )

    async def _rotate(
        self, token_hash: bytes, client: Client, following: str | None
    ) -> tuple[int, str] | None:
        """The session and its next refresh token; None if the one given is not, or no longer,
        good. That a session has been ended for it is committed."""
        async with self._database.transaction() as connection:
            session = await store.hold(connection, token_hash)
            if session is None or not session.is_live:
                return None
            if await store.spend(connection, token_hash):
                await store.extend(connection, session.id, idle, longest)
                return session.id, await self._add_token(connection, session.id, following)
            if following is not None and await store.follows(
                connection, token_hash, _hash(following), pages_grace
            ):
                if not _is_of_login(session, client):
                    of_session = {"session_id": session.id}
                    note = Note("refresh_token_shared", audit.nobody, client, of_session)
                    await self._audit.write(connection, session.user_id, note)
                return session.id, following
            await store.end(connection, session.id, session.user_id)
            note = Note("refresh_token_reused", audit.nobody, client, {"session_id": session.id})
            await self._audit.write(connection, session.user_id, note)
        self.counters.refresh_tokens_reused += 1
        return None

    async def _end(self, caller: Caller, session_id: int, action: str, client: Client) -> bool:
        async with self._database.transaction() as connection:
            if not await store.end(connection, session_id, caller.user_id):
                return False
            note = Note(action, audit.user(caller.user_id), client, {"session_id": session_id})
            await self._audit.write(connection, caller.user_id, note)
        return True

    async def _add_token(
        self, connection: Connection, session_id: int, given: str | None = None
    ) -> str:
        token = given or secrets.token_urlsafe(_token_bytes)
        await store.add_token(connection, _hash(token), session_id)
        return token

    def _logged_in(self, account: Account, session_id: int, refresh_token: str) -> LoggedIn:
        return LoggedIn(
            access_token=self._tokens.issue(account.id, session_id),
            refresh_token=refresh_token,
            expires_in=self._tokens.expires_in_s,
            user=user(account),
        )


def _hash(token: str) -> bytes:
    """A token is 256 random bits, so a plain hash is as good as any slow one."""
    return hashlib.sha256(token.encode()).digest()


def _is_of_login(session: store.HeldSession, client: Client) -> bool:
    """Whether it looks like the browser that has logged in, where that was."""
    is_there = network_of(session.address) == network_of(client.address)
    return is_there and session.user_agent == client.user_agent


def _shown(session: store.StoredSession, caller: Caller) -> SessionShown:
    return SessionShown(
        id=session.id,
        created_at=session.created_at,
        last_used_at=session.last_used_at,
        expires_at=session.expires_at,
        address=session.address,
        user_agent=session.user_agent,
        current=session.id == caller.session_id,
    )


def _refused_login() -> FixRequest:
    return FixRequest("invalid_credentials", "No account has this email address and password")


def _disabled() -> FixRequest:
    return FixRequest(
        "invalid_credentials",
        "The password is right, and the account is disabled: who runs this service can enable it",
    )


def _refused_refresh() -> FixRequest:
    return FixRequest(
        "unauthorized", "The refresh token is not good, or not any more: log in again"
    )
