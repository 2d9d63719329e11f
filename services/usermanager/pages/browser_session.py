"""Who has logged in in a browser: the tokens of a session, in cookies that scripts cannot read.

A browser asks for several pages at once, all with the same cookies. When the access token is over,
each of them comes with the same refresh token, and each gets the same next one (Sessions:
`refresh_in_browser`), whatever order the answers arrive in.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from services.core.errors import FixRequest
from services.runtime.endpoints import Call, Caller, Client
from services.usermanager.accounts import Accounts
from services.usermanager.messages_accounts import User
from services.usermanager.messages_sessions import LoggedIn
from services.usermanager.pages.cookies import Cookies
from services.usermanager.sessions import Sessions


@dataclass(slots=True, frozen=True)
class SignedIn:
    """Somebody, as the pages know them. `renewed` are tokens that the answer must bring."""

    caller: Caller
    user: User
    renewed: LoggedIn | None = None


class BrowserSessions:
    def __init__(self, sessions: Sessions, accounts: Accounts, cookies: Cookies) -> None:
        self._sessions = sessions
        self._accounts = accounts
        self._cookies = cookies

    async def find(self, request: Request, client: Client) -> SignedIn | None:
        """Who asks; None if nobody has logged in, or the session has ended. RetryLater if that
        cannot be told now."""
        access = self._cookies.read(request, "access")
        if access is not None:
            try:
                return await self._of(access, None, client)
            except FixRequest:
                # Over, or not one of ours; its refresh token may yet be good.
                access = None
        refresh = self._cookies.read(request, "refresh")
        if refresh is None:
            return None
        try:
            tokens = await self._sessions.refresh_in_browser(refresh, client)
            return await self._of(tokens.access_token, tokens, client)
        except FixRequest:
            return None

    async def _of(self, access: str, renewed: LoggedIn | None, client: Client) -> SignedIn:
        caller = await self._sessions.authenticate(access)
        user = await self._accounts.me(Call(None, None, None, client, signed_in=caller))
        return SignedIn(caller, user, renewed)
