"""The account page: who one is, the password, where one is logged in, and closing the account."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from services.core.errors import FixRequest, RetryLater
from services.usermanager.accounts import Accounts
from services.usermanager.messages_accounts import Closing, PasswordChange
from services.usermanager.messages_sessions import SessionPage, SessionPath, page_max
from services.usermanager.pages.page import Page, Visit, errors_of
from services.usermanager.sessions import Sessions

here: Final = "/console/account"


class AccountPages:
    def __init__(self, accounts: Accounts, sessions: Sessions) -> None:
        self._accounts = accounts
        self._sessions = sessions

    def pages(self) -> list[Page]:
        return [
            Page("GET", here, self.show),
            Page("POST", f"{here}/password", self.change_password),
            Page("POST", f"{here}/sessions/{{session_id}}/end", self.end_session),
            Page("POST", f"{here}/close", self.close),
        ]

    async def show(self, visit: Visit) -> Response:
        return await self._shown(visit)

    async def change_password(self, visit: Visit) -> Response:
        try:
            await self._accounts.change_password(visit.call(await visit.form(PasswordChange)))
        except FixRequest as error:
            return await self._shown(visit, "password", error, "current_password")
        except RetryLater as error:
            return await self._shown(visit, "password", error)
        visit.say("Your password was changed, and all other sessions were ended")
        return visit.redirect(here)

    async def end_session(self, visit: Visit) -> Response:
        path = visit.path_as(SessionPath)
        if path.session_id == visit.caller.session_id:
            await self._sessions.log_out(visit.call())
            visit.ends = True
            visit.say("You are logged out", "note")
            return visit.redirect("/")
        try:
            await self._sessions.end(visit.call(path=path))
        except FixRequest:
            # It has ended meanwhile, which is what was asked for.
            visit.say("That session had ended already", "note")
        else:
            visit.say("That session was ended")
        return visit.redirect(here)

    async def close(self, visit: Visit) -> Response:
        try:
            await self._accounts.close(visit.call(await visit.form(Closing)))
        except FixRequest as error:
            return await self._shown(visit, "closing", error, "password")
        except RetryLater as error:
            return await self._shown(visit, "closing", error)
        visit.ends = True
        visit.say("Your account is closed, and what was stored is being deleted", "note")
        return visit.redirect("/")

    async def _shown(
        self,
        visit: Visit,
        form: str = "",
        error: FixRequest | RetryLater | None = None,
        of_credentials: str = "",
    ) -> Response:
        """The page; with what is wrong beside the fields of the form that was sent. That a password
        is not the account's is said beside its field."""
        errors: dict[str, str] = {}
        if isinstance(error, FixRequest):
            is_password = error.code == "invalid_credentials"
            errors = {of_credentials: error.detail} if is_password else errors_of(error)
        found = await self._sessions.list(visit.call(query=SessionPage(limit=page_max)))
        response = visit.render(
            "account.html",
            200 if error is None else error.status,
            sessions=found.sessions,
            errors={form: errors},
            waiting={form: error} if isinstance(error, RetryLater) else {},
        )
        if isinstance(error, RetryLater):
            response.headers["Retry-After"] = str(error.retry_after_s)
        return response
