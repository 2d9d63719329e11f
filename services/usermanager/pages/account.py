"""The account page: who one is, password, sessions, and closing the account."""

from __future__ import annotations

from starlette.responses import Response

from services.usermanager.accounts import Accounts
from services.usermanager.messages_sessions import SessionPage, page_max
from services.usermanager.pages.page import Page, Visit
from services.usermanager.sessions import Sessions


class AccountPages:
    def __init__(self, accounts: Accounts, sessions: Sessions) -> None:
        self._accounts = accounts
        self._sessions = sessions

    def pages(self) -> list[Page]:
        return [Page("GET", "/console/account", self.show)]

    async def show(self, visit: Visit) -> Response:
        found = await self._sessions.list(visit.call(query=SessionPage(limit=page_max)))
        return visit.render("account.html", sessions=found.sessions)
