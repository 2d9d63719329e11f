"""A page as a value, and one visit to it: what its handler is given, and answers with.

    Page("GET", "/console/keys", self.show)                        who has logged in
    Page("GET", "/", self.show, Audience.ANYBODY)
    Page("GET", "/console/cluster", self.show, Audience.OPERATORS)

A handler takes a Visit and returns a Response, best by one of the visit's own methods, or raises a
ClientError, which becomes a page too. It asks nouns of the user manager, as the JSON API does.

Whatever changes something is no GET: of every other method the form's token has been checked, and
where the browser says it comes from, before a handler is called (csrf.py).
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from services.core.errors import FixRequest, RetryLater
from services.runtime.endpoints import Call, Caller, Client, body_bytes_default
from services.runtime.problem import path_chars_max
from services.runtime.request_body import decode_struct, read_body
from services.runtime.text_members import TextMembers, refusal
from services.usermanager.messages_accounts import User
from services.usermanager.pages.browser_session import SignedIn
from services.usermanager.pages.cookies import Flash
from services.usermanager.pages.render import Templates

T = TypeVar("T")

# Forms of ours have a dozen.
form_fields_max: Final = 100
form_type: Final = "application/x-www-form-urlencoded"


class Audience(enum.Enum):
    ANYBODY = "anybody, also while accounts cannot be asked for"
    SIGNED_IN = "who has logged in"
    OPERATORS = "operators of the platform; for others there is nothing"


Handler = Callable[["Visit"], Awaitable[Response]]


@dataclass(slots=True, frozen=True)
class Page:
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Handler
    audience: Audience = Audience.SIGNED_IN
    body_bytes_max: int = body_bytes_default
    # Whether the JSON API has an endpoint of this method and path: the page takes only forms then.
    beside_api: bool = False
    # What is done in place of the handler, by who has a session that cannot be looked up just now:
    # only that a page of ours asks for it has been checked. None: it is refused until then.
    while_away: Handler | None = None


@dataclass(slots=True)
class Visit:
    """One request for a page."""

    request: Request
    client: Client
    templates: Templates
    # Writes a token for a form of this visit; the first that is written sets a cookie, if need be.
    csrf: Callable[[], str]
    signed_in: SignedIn | None = None
    # Why nobody can tell just now who asks, though the page is for anybody.
    away: RetryLater | None = None
    # What the page before left to be said.
    flash: Flash | None = None
    # What the next page is to say.
    left: Flash | None = None
    # Tokens of a session that begins with the answer; and whether the one there is ends with it.
    begins: SignedIn | None = None
    ends: bool = False
    flash_was_shown: bool = False
    # What tells this browser from others from now on.
    new_visitor: str | None = None
    _fields: dict[str, str] | None = field(default=None)

    @property
    def user(self) -> User:
        """Whose page it is, where only those come who have logged in."""
        return self._known.user

    @property
    def caller(self) -> Caller:
        return self._known.caller

    @property
    def tenant(self) -> int:
        """In whose name data is asked for (gateway_calls.py)."""
        return self._known.user.id

    @property
    def _known(self) -> SignedIn:
        if self.signed_in is None:
            raise RuntimeError("this page asks nobody who they are")
        return self.signed_in

    @property
    def is_htmx(self) -> bool:
        """Whether a part of a page is asked for, by a script of htmx's."""
        return self.request.headers.get("hx-request") == "true"

    def path_as(self, of: type[T]) -> T:
        """The parameters in the page's path as a msgspec Struct; FixRequest `not_found` for what
        nothing can be called by."""
        found, wrong = TextMembers(of).of_path(self.request.path_params)
        if wrong:
            raise FixRequest("not_found", f"Nothing is at {self.request.url.path[:path_chars_max]}")
        return found  # type: ignore[no-any-return]

    def query(self, of: type[T]) -> T:
        """The query as a msgspec Struct; FixRequest `invalid_query` names what is wrong."""
        found, wrong = TextMembers(of).of_query(self.request.scope["query_string"])
        if wrong:
            raise refusal(wrong)
        return found  # type: ignore[no-any-return]

    async def fields(self) -> dict[str, str]:
        """A form as it was sent; of a field that is there twice, the last."""
        if self._fields is None:
            self._fields = parse_form(await read_body(self.request))
        return self._fields

    async def form(self, of: type[T], **more: object) -> T:
        """Those fields of a form that are members of a Struct, checked as the JSON API checks them:
        FixRequest `invalid_body`, whose `errors` name each that is wrong (`errors_of`).

        `more` are members that a form has no text for, such as numbers and lists; they stand before
        its fields of the same name.
        """
        names = {name.name for name in msgspec.structs.fields(of)}  # type: ignore[arg-type]
        texts = {name: text for name, text in (await self.fields()).items() if name in names}
        return decode_struct(msgspec.json.encode(texts | more), of)

    def call(self, body: Any = None, *, path: Any = None, query: Any = None) -> Call[Any, Any, Any]:
        """What a noun of the JSON API is called with."""
        who = None if self.signed_in is None else self.signed_in.caller
        return Call(path, query, body, self.client, signed_in=who)

    def render(self, template: str, status: int = 200, /, **context: object) -> Response:
        """A whole page, or a part of one; the layout shows a flash that was left."""
        content = self.templates.render(template, self, context)
        return Response(content, status, media_type="text/html")

    def redirect(self, path: str) -> Response:
        """Go on to another page, by GET; `path` is one of ours."""
        if self.is_htmx:
            return Response(headers={"HX-Redirect": path})
        return Response(status_code=303, headers={"Location": path})

    def say(self, text: str, kind: Literal["good", "bad", "note"] = "good") -> None:
        """Have the next page that is shown say so, once."""
        self.left = Flash(text, kind)

    def take_flash(self) -> Flash | None:
        """For the layout: what is to be said now; it is not said again."""
        said, self.left = self.left or self.flash, None
        self.flash_was_shown = self.flash is not None
        return said


def parse_form(body: bytes) -> dict[str, str]:
    """The fields of a form; FixRequest `invalid_body` if it is none."""
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=form_fields_max,
        )
    except ValueError:
        raise FixRequest("invalid_body", "This is not a form as browsers send it") from None
    return dict(pairs)


def errors_of(error: FixRequest) -> dict[str, str]:
    """What is wrong with each field, for a form to show beside it; under "" what is wrong with
    none of them in particular."""
    listed = error.members.get("errors")
    if not listed:
        member = str(error.members.get("member", ""))
        return {member: error.detail.removeprefix(f"{member}: ")}
    return {one["member"]: one["detail"] for one in listed}
