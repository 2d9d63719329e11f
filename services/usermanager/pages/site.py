"""The pages as routes: who is let in, which forms are taken, and how errors look.

In this order: the method; who asks, by cookies; whether the page is for them; of whatever is no
GET, that a page of ours sent it; then the handler. Errors of any route are HTML for who asks for
HTML, and problem+json for everybody else.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from services.core.errors import ClientError, FixRequest, RetryLater, UnknownOutcome
from services.runtime import telemetry
from services.runtime.client_address import ClientAddresses
from services.runtime.endpoints import Before, Client, calls_of_caller, user_agent_chars_max
from services.runtime.problem import path_chars_max, problem_response
from services.runtime.request_body import BodyLimit
from services.runtime.shares import Shares
from services.usermanager.pages import csrf
from services.usermanager.pages.browser_session import BrowserSessions, SignedIn
from services.usermanager.pages.cookies import Cookies
from services.usermanager.pages.csrf import Csrf
from services.usermanager.pages.local_path import local_path
from services.usermanager.pages.page import Audience, Page, Visit, form_type
from services.usermanager.pages.render import Templates

_visit_key: Final = "ydht.visit"
_visitor_bytes: Final = 24
_safe_methods: Final = frozenset(("GET", "HEAD"))


class Site:
    """What all pages share."""

    def __init__(
        self,
        *,
        templates: Templates,
        sessions: BrowserSessions,
        cookies: Cookies,
        forms: Csrf,
        headers: Mapping[str, str],
        addresses: ClientAddresses,
        before: Before,
    ) -> None:
        self._templates = templates
        self._sessions = sessions
        self._cookies = cookies
        self._forms = forms
        self._headers = headers
        self._addresses = addresses
        self._before = before
        self._shares = Shares(calls_of_caller)

    def routes(self, pages: Iterable[Page]) -> list[BaseRoute]:
        by_path: dict[str, dict[str, Page]] = {}
        for page in pages:
            methods = by_path.setdefault(page.path, {})
            if page.method in methods:
                raise ValueError(f"{page.method} {page.path} is there already")
            methods[page.method] = page
        return [_PageRoute(path, _Pages(self, methods)) for path, methods in by_path.items()]

    def nothing_here(self) -> BaseRoute:
        """To stand behind all others: what people ask for in vain is a page like the others, which
        knows who they are."""
        return _Unfound(_Pages(self, {"GET": Page("GET", "", _nothing, Audience.ANYBODY)}))

    async def answer(self, page: Page, request: Request) -> Response:
        visit = await self._visit(page, request)
        if visit.signed_in is None or page.audience is Audience.ANYBODY:
            response = await self._handled(page, visit)
        else:
            async with self._shares.of(visit.signed_in.user.id):
                response = await self._handled(page, visit)
        return self._sent(visit, response)

    def refuse(self, request: Request, error: ClientError) -> Response:
        """An error of any route, as who asks can read it."""
        if not wants_html(request):
            response = problem_response(error)
            visit = request.scope.get(_visit_key)
            # Tokens that were renewed on the way must not be lost with the error.
            return response if visit is None else self._sent(visit, response)
        visit = request.scope.get(_visit_key) or self._stranger(request)
        told = {"error": error, "request_id": telemetry.request_id.get()}
        if visit.is_htmx:
            response = visit.render("errors/toast.html", error.status, **told)
            response.headers["HX-Retarget"] = "#toasts"
            response.headers["HX-Reswap"] = "beforeend"
        else:
            response = visit.render("errors/page.html", error.status, **told)
        for name, value in error.headers.items():
            response.headers[name] = value
        return self._sent(visit, response)

    async def _visit(self, page: Page, request: Request) -> Visit:
        visit = self._stranger(request)
        request.scope[_visit_key] = visit
        try:
            await self._before()
            visit.signed_in = await self._sessions.find(request, visit.client)
        except RetryLater as error:
            visit.away = error
        except UnknownOutcome:
            # Of a renewal, which can be asked for again with the tokens of before.
            visit.away = RetryLater("database_unavailable", "The database has not answered")
        if visit.away is not None and page.audience is not Audience.ANYBODY:
            raise visit.away
        return visit

    async def _handled(self, page: Page, visit: Visit) -> Response:
        if page.audience is not Audience.ANYBODY and visit.signed_in is None:
            return self._sent_to_login(visit)
        if page.audience is Audience.OPERATORS and not visit.user.is_operator:
            return await _nothing(visit)
        if visit.request.method in _safe_methods:
            return await page.handler(visit)
        self._forms.check_origin(visit.request.headers)
        if visit.away is not None and self._cookies.of_session(visit.request):
            # The form's token is of a session that nobody can tell.
            if page.while_away is None:
                raise visit.away
            return await page.while_away(visit)
        await self._check_form(visit)
        return await page.handler(visit)

    async def _check_form(self, visit: Visit) -> None:
        token = visit.request.headers.get(csrf.header)
        if token is None and is_form(visit.request.scope):
            token = (await visit.fields()).get(csrf.field)
        self._forms.check(token or "", self._whose(visit) or "nobody")

    def _sent_to_login(self, visit: Visit) -> Response:
        request = visit.request
        if not visit.is_htmx and not wants_html(request):
            raise FixRequest("unauthorized", "The session has ended: log in again")
        return visit.redirect(f"/login?next={quote(self._page_of(visit), safe='/')}")

    def _page_of(self, visit: Visit) -> str:
        """The page that somebody is on; of a form, or of a part, as the browser tells."""
        headers = visit.request.headers
        if visit.is_htmx:
            told = headers.get("hx-current-url", "")
        elif visit.request.method not in _safe_methods:
            told = headers.get("referer", "")
        else:
            return _path_and_query(visit.request.url.path, visit.request.url.query)
        try:
            url = urlsplit(told)
        except ValueError:
            return "/console"
        if not self._forms.names_us(f"{url.scheme}://{url.netloc}", headers):
            return "/console"
        return local_path(_path_and_query(url.path, url.query), "/console")

    def _stranger(self, request: Request) -> Visit:
        visit = Visit(
            request,
            self._client(request),
            self._templates,
            csrf=lambda: self._token(visit),
            flash=self._cookies.flash(request),
        )
        return visit

    def _token(self, visit: Visit) -> str:
        whose = self._whose(visit)
        if whose is None:
            visit.new_visitor = secrets.token_urlsafe(_visitor_bytes)
            whose = f"visitor {visit.new_visitor}"
        return self._forms.token(whose)

    def _whose(self, visit: Visit) -> str | None:
        """Whose forms they are, of this visit; None if nobody can be told from others yet."""
        signed_in: SignedIn | None = visit.begins or visit.signed_in
        if signed_in is not None:
            return f"session {signed_in.caller.session_id}"
        visitor = visit.new_visitor or self._cookies.read(visit.request, "visitor")
        return None if visitor is None else f"visitor {visitor}"

    def _sent(self, visit: Visit, response: Response) -> Response:
        for name, value in self._headers.items():
            response.headers[name] = value
        response.headers.setdefault("Cache-Control", "no-store")
        started = visit.begins or visit.signed_in
        if visit.ends:
            self._cookies.log_out(response)
        elif started is not None and started.renewed is not None:
            self._cookies.log_in(response, started.renewed)
        if visit.new_visitor is not None:
            self._cookies.set_visitor(response, visit.new_visitor)
        if visit.left is not None:
            self._cookies.set_flash(response, visit.left)
        elif visit.flash_was_shown:
            self._cookies.forget_flash(response)
        return response

    def _client(self, request: Request) -> Client:
        agent = request.headers.get("user-agent", "")[:user_agent_chars_max]
        shown = "".join(character if character.isprintable() else "?" for character in agent)
        return Client(self._addresses.of(request.scope), shown)


def _path_and_query(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path


async def _nothing(visit: Visit) -> Response:
    raise FixRequest("not_found", f"Nothing is at {visit.request.url.path[:path_chars_max]}")


class _Pages:
    """The pages at one path, by their methods."""

    limits_bodies = True

    def __init__(self, site: Site, pages: Mapping[str, Page]) -> None:
        self._site = site
        self.pages = {**({"HEAD": pages["GET"]} if "GET" in pages else {}), **pages}
        self._apps = {
            method: BodyLimit(_PageApp(site, page), page.body_bytes_max)
            for method, page in self.pages.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._apps[scope["method"]](scope, receive, send)


class _PageApp:
    def __init__(self, site: Site, page: Page) -> None:
        self._site = site
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._site.answer(self._page, Request(scope, receive))
        await response(scope, receive, send)


class _PageRoute(Route):
    def __init__(self, path: str, pages: _Pages) -> None:
        super().__init__(path, pages, methods=[*pages.pages])
        self._pages = pages.pages

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is Match.FULL:
            page = self._pages[scope["method"]]
            # What is no form is for the endpoint of the JSON API behind this.
            if page.beside_api and not is_form(scope):
                return Match.NONE, {}
        return match, child


class _Unfound(Route):
    def __init__(self, pages: _Pages) -> None:
        super().__init__("/{path:path}", pages, methods=["GET"])

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        is_for_people = match is Match.FULL and wants_html(Request(scope))
        return (match, child) if is_for_people else (Match.NONE, {})


def is_form(scope: Scope) -> bool:
    return any(
        name == b"content-type" and value.partition(b";")[0].strip().lower() == form_type.encode()
        for name, value in scope["headers"]
    )


def wants_html(request: Request) -> bool:
    """Whether a person looks at the answer: browsers that show a page ask for HTML by name, and
    so does htmx for a part of one, or says who it is."""
    if request.headers.get("hx-request") == "true":
        return True
    return "text/html" in request.headers.get("accept", "").lower()
