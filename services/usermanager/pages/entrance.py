"""Coming and going: sign-up, log-in and log-out by forms.

The rules, the words of refusals and the throttles are those of `Accounts` and `Sessions`.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.responses import Response

from services.core.errors import ClientError, FixRequest, RetryLater, UnknownOutcome
from services.runtime.endpoints import Access, Endpoint, Raw
from services.usermanager.accounts import Accounts
from services.usermanager.messages_accounts import Signup
from services.usermanager.messages_sessions import LoggedIn, Login
from services.usermanager.pages.browser_session import SignedIn
from services.usermanager.pages.local_path import local_path
from services.usermanager.pages.page import Audience, Page, Visit, errors_of
from services.usermanager.sessions import Sessions

home: Final = "/console"
welcome: Final = "/console/welcome"


# They stand beside endpoints of the JSON API, whose document says that they are there.
described: Final = tuple(
    Endpoint(
        "GET",
        path,
        name,
        summary,
        None,
        Access.OPEN,
        answer_type=Raw("A page", ("text/html",)),
        tag="Pages",
    )
    for path, name, summary in (
        ("/signup", "showSignUp", "The form to open an account by"),
        ("/login", "showLogIn", "The form to begin a session by"),
    )
)


class NextQuery(msgspec.Struct, frozen=True):
    next: str | None = None


class Entrance:
    def __init__(self, accounts: Accounts, sessions: Sessions) -> None:
        self._accounts = accounts
        self._sessions = sessions

    def pages(self) -> list[Page]:
        anybody = Audience.ANYBODY
        return [
            Page("GET", "/signup", self.show_signup, anybody),
            Page("POST", "/signup", self.sign_up, anybody, beside_api=True),
            Page("GET", "/console/session", self.tell),
            Page("GET", "/login", self.show_login, anybody),
            Page("POST", "/login", self.log_in, anybody, beside_api=True),
            Page(
                "POST",
                "/logout",
                self.log_out,
                anybody,
                beside_api=True,
                while_away=self.forget,
            ),
        ]

    async def show_signup(self, visit: Visit) -> Response:
        if visit.signed_in is not None:
            return visit.redirect(home)
        return self._signup(visit)

    async def sign_up(self, visit: Visit) -> Response:
        try:
            body = await visit.form(Signup)
            await self._accounts.sign_up(visit.call(body))
        except FixRequest as error:
            return self._signup(visit, error.status, await visit.fields(), errors_of(error))
        except RetryLater as error:
            return self._signup(visit, error.status, await visit.fields(), waiting=error)
        try:
            tokens = await self._sessions.log_in(visit.call(Login(body.email, body.password)))
        except ClientError:
            # It was opened all the same.
            visit.say("Your account is there. Log in to go on", "note")
            return visit.redirect("/login")
        await self._begin(visit, tokens)
        return visit.redirect(welcome)

    async def show_login(self, visit: Visit) -> Response:
        goal = self._goal(visit)
        return visit.redirect(goal) if visit.signed_in is not None else self._login(visit, goal)

    async def log_in(self, visit: Visit) -> Response:
        fields = await visit.fields()
        goal = local_path(fields.get("next"), home)
        try:
            tokens = await self._sessions.log_in(visit.call(await visit.form(Login)))
        except FixRequest as error:
            return self._login(visit, goal, error.status, fields, errors_of(error))
        except RetryLater as error:
            return self._login(visit, goal, error.status, fields, waiting=error)
        await self._begin(visit, tokens)
        return visit.redirect(goal)

    async def tell(self, visit: Visit) -> Response:
        """For a page that was there before this session: whose it is, and a token for its forms."""
        told = {"account": visit.user.id, "token": visit.csrf()}
        return Response(msgspec.json.encode(told), media_type="application/json")

    async def log_out(self, visit: Visit) -> Response:
        if visit.signed_in is not None:
            await self._sessions.log_out(visit.call())
        visit.ends = True
        visit.say("You are logged out", "note")
        return visit.redirect("/")

    async def forget(self, visit: Visit) -> Response:
        """Who leaves a computer does not wait for the database."""
        visit.ends = True
        visit.say(
            "This browser has forgotten your session. It could not be ended just now: log in later "
            "and end it on the page of your account",
            "note",
        )
        return visit.redirect("/")

    async def _begin(self, visit: Visit, tokens: LoggedIn) -> None:
        if visit.signed_in is not None:
            await self._end_former(visit)
        caller = await self._sessions.authenticate(tokens.access_token)
        visit.begins = SignedIn(caller, tokens.user, tokens)

    async def _end_former(self, visit: Visit) -> None:
        """The browser forgets the session that it had."""
        try:
            await self._sessions.log_out(visit.call())
        except (RetryLater, UnknownOutcome):
            # The new one is there, and the former ends by itself.
            return

    def _goal(self, visit: Visit) -> str:
        try:
            return local_path(visit.query(NextQuery).next, home)
        except FixRequest:
            # A link that was cut is no reason to keep anybody out.
            return home

    def _signup(
        self,
        visit: Visit,
        status: int = 200,
        fields: dict[str, str] | None = None,
        errors: dict[str, str] | None = None,
        waiting: RetryLater | None = None,
    ) -> Response:
        response = visit.render(
            "signup.html", status, fields=fields or {}, errors=errors or {}, waiting=waiting
        )
        return _told_to_wait(response, waiting)

    def _login(
        self,
        visit: Visit,
        goal: str,
        status: int = 200,
        fields: dict[str, str] | None = None,
        errors: dict[str, str] | None = None,
        waiting: RetryLater | None = None,
    ) -> Response:
        response = visit.render(
            "login.html",
            status,
            goal=goal,
            fields=fields or {},
            errors=errors or {},
            waiting=waiting,
        )
        return _told_to_wait(response, waiting)


def _told_to_wait(response: Response, waiting: RetryLater | None) -> Response:
    if waiting is not None:
        response.headers["Retry-After"] = str(waiting.retry_after_s)
    return response
