"""What clients send as bodies: bounded in size and time while arriving, then typed.

`BodyLimit` counts what arrives, so its limit holds for chunked bodies and lying lengths too.
`read_json` and `decode_struct` return a value of the type asked for, or raise what to answer; no
input makes them fail otherwise. Of a member that is given twice the last one counts, as RFC 8259
allows.

What is wrong with a large body is told in fewer words: nobody fills it in by hand, and to look
through all of it would keep everybody else waiting.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.errors import FixRequest
from services.runtime.body_room import Held
from services.runtime.plain_words import in_words

T = TypeVar("T")

# Of all routes of an application together, each of which has a limit of its own, mostly a smaller
# one (endpoints.py); an application with larger bodies says so.
largest_body_bytes_default = 1024 * 1024
# A megabyte over a poor mobile line; a body that trickles for longer holds memory for nothing.
body_s_default = 30.0
# A detail quotes names of members, which a client chooses.
detail_chars_max = 300
# Whoever sends more at once that is wrong does not fill in a form.
wrong_members_max = 20
# A larger body is not looked through again for all that is wrong with it: that takes a tenth of a
# second for some megabytes.
explained_bytes_max = 64 * 1024
# As far from where decoding failed half a character is looked for.
_around_bytes = 100

_json_type = re.compile(r"application/(?:[\w.+-]+\+)?json", re.IGNORECASE | re.ASCII)
# One half of the two escapes that a character beyond U+FFFF has in JSON, without the other.
_half_character = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_at_byte = re.compile(r"\(byte (\d+)\)")
_located = re.compile(r"(?P<what>.*) - at `\$(?P<where>.*)`", re.DOTALL)


class BodyLimit:
    """Middleware that refuses bodies that are too large or arrive too slowly.

    Limits nest: an application has the largest that any of its routes takes, a route less. Where
    the route's application says that it `limits_bodies` itself, what is announced is left to it, so
    that a client is told the limit that holds there.
    """

    limits_bodies = True

    def __init__(
        self,
        app: ASGIApp,
        bytes_max: int = largest_body_bytes_default,
        seconds_max: float = body_s_default,
    ) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        too_large = announced.isdigit() and int(announced) > self._bytes_max
        if too_large and not _is_limited_further_in(scope):
            raise body_too_large(self._bytes_max)
        arriving = _ArrivingBody(
            receive,
            send,
            self._bytes_max,
            self._seconds_max,
            endless=too_large or b"transfer-encoding" in headers,
        )
        await self._app(scope, arriving.receive, arriving.send)


class _ArrivingBody:
    """One body on its way in, and the answer that may overtake it."""

    def __init__(
        self, receive: Receive, send: Send, bytes_max: int, seconds_max: float, *, endless: bool
    ) -> None:
        self._receive = receive
        self._send = send
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max
        self._deadline_s: float | None = None
        self._arrived_bytes = 0
        self._whole = False
        self._endless = endless

    async def receive(self) -> Message:
        # After the body the only message is that the client left, whenever that is.
        message = await (self._receive() if self._whole else self._next_part())
        if message["type"] == "http.request":
            self._arrived_bytes += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._arrived_bytes > self._bytes_max:
                raise body_too_large(self._bytes_max)
        return message

    async def _next_part(self) -> Message:
        now_s = asyncio.get_running_loop().time()
        if self._deadline_s is None:
            self._deadline_s = now_s + self._seconds_max
        try:
            async with asyncio.timeout_at(self._deadline_s):
                return await self._receive()
        except TimeoutError:
            raise FixRequest(
                "request_timeout",
                f"The body had not arrived after {self._seconds_max:g} s",
                headers={"Connection": "close"},
            ) from None

    async def send(self, message: Message) -> None:
        # What is left of an announced body is read and dropped so that the connection can be
        # used again; one without an announced end, or with one that is far, could go on forever.
        if message["type"] == "http.response.start" and self._endless and not self._whole:
            headers = list(message.get("headers", ()))
            # A limit around this one has said it, or who answers.
            if not any(name.lower() == b"connection" for name, _ in headers):
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)


def _is_limited_further_in(scope: Scope) -> bool:
    """Whether this limit stands around a route that has one of its own."""
    # Within a route the routes of the application are not looked at again.
    if "endpoint" in scope or "app" not in scope:
        return False
    for route in scope["app"].routes:
        if route.matches(scope)[0] is Match.FULL:
            return getattr(getattr(route, "app", None), "limits_bodies", False)
    return False


def body_too_large(bytes_max: int) -> FixRequest:
    return FixRequest(
        "body_too_large",
        f"The body is larger than {bytes_max} bytes, the most that is taken here",
        headers={"Connection": "close"},
    )


async def read_body(request: Request, held: Held | None = None) -> bytes:
    """All of the body, which takes its room as it arrives."""
    parts, arrived_bytes = [], 0
    async for part in request.stream():
        arrived_bytes += len(part)
        if held is not None:
            held.grow(arrived_bytes)
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, of: type[T]) -> T:
    """The body as a value of the type (a msgspec Struct, a dict, ...).

    Raises FixRequest: `unsupported_media_type`, `invalid_json`, or `invalid_body` with the
    `member` that is at fault.
    """
    check_is_json(request)
    return decode_json(await read_body(request), of)


def check_is_json(request: Request) -> None:
    """FixRequest if its headers say that its body is something else."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if not _json_type.fullmatch(kind.strip()):
        raise FixRequest(
            "unsupported_media_type", "Send JSON, with the header Content-Type: application/json"
        )
    coding = request.headers.get("content-encoding", "identity").strip()
    if coding.lower() not in ("", "identity"):
        raise FixRequest(
            "unsupported_media_type",
            f"Send the body as it is: Content-Encoding: {coding[:40]} is not understood here",
        )
    charset = re.search(r'charset="?([\w-]+)', parameters, re.IGNORECASE | re.ASCII)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        raise FixRequest("unsupported_media_type", "Send JSON in UTF-8")


def decode_struct(body: bytes, of: type[T]) -> T:
    """As decode_json, for a Struct: naming each of its members that is wrong and not only the
    first, unless the body is large."""
    try:
        return decode_json(body, of)
    except FixRequest as error:
        if error.code != "invalid_body" or len(body) > explained_bytes_max:
            raise
        wrong = _wrong_members(body, of)
        if not wrong:
            raise
        raise invalid_members(wrong) from None


def invalid_members(wrong: Iterable[tuple[str, str]], code: str = "invalid_body") -> FixRequest:
    """What to raise for members with what is wrong about each: an error whose document has them
    as `errors`, for a form to show each beside its field."""
    listed = [
        {"member": member[:detail_chars_max], "detail": problem[:detail_chars_max]}
        for member, problem in islice(wrong, wrong_members_max)
    ]
    told = "; ".join(f"{one['member']}: {one['detail']}" for one in listed)
    return FixRequest(
        code,
        told[:detail_chars_max],
        members={"member": listed[0]["member"], "errors": listed},
    )


def decode_json(body: bytes, of: type[T]) -> T:
    """The same as read_json for a body that is at hand."""
    try:
        with _only_wrong_members(body):
            return msgspec.json.decode(body, type=of)
    except msgspec.ValidationError as error:
        raise _invalid_body(str(error)) from None


@contextmanager
def _only_wrong_members(body: bytes) -> Iterator[None]:
    """Let msgspec's ValidationError through, and answer whatever else decoding can raise."""
    try:
        yield
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        raise FixRequest("invalid_json", _why_no_json(body, str(error))) from None
    except UnicodeDecodeError:
        raise FixRequest("invalid_json", "The body is not UTF-8") from None
    except RecursionError:
        raise FixRequest("invalid_json", "The body is nested too deeply") from None


def _why_no_json(body: bytes, message: str) -> str:
    if not body:
        return "The body is empty"
    if half := _half_character.search(body, *_around_fault(body, message)):
        return (
            f"A text has half a character in it: {half[0].decode()} is one of two that belong "
            "together (surrogates)"
        )
    if "truncated" in message:
        return "The JSON ends too soon: a quote or bracket is open"
    return message[:detail_chars_max]


def _around_fault(body: bytes, message: str) -> tuple[int, int]:
    """From where to where in a body its decoding may have failed, as far as the message tells."""
    if len(body) <= explained_bytes_max:
        return 0, len(body)
    at = _at_byte.search(message)
    place = len(body) if at is None else int(at[1])
    return max(0, place - _around_bytes), place + _around_bytes


def _invalid_body(message: str) -> FixRequest:
    where, what = _where(message)
    if not where:
        told = f"The body {what}" if what.startswith("must ") else what
        return FixRequest("invalid_body", told[:detail_chars_max])
    member = where.removeprefix(".")[:detail_chars_max]
    return FixRequest("invalid_body", f"{member}: {what}", members={"member": member})


def _where(message: str, of: Any = None) -> tuple[str, str]:
    """msgspec says "Expected `int`, got `str` - at `$.a.b`": the `.a.b`, if any, and the rest in
    plain words. `of` is the type of the member, if that is known."""
    match = _located.fullmatch(message)
    where, what = ("", message) if match is None else (match["where"], match["what"])
    return where, in_words(what, of, where)


def _wrong_members(body: bytes, of: type[Any]) -> list[tuple[str, str]]:
    """Each member of the Struct taken by itself; none if the body is no object.

    FixRequest if it is not JSON at all, behind the member that was found wrong first.
    """
    try:
        with _only_wrong_members(body):
            given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return []
    fields = {field.encode_name: field for field in msgspec.structs.fields(of)}
    wrong = []
    for name, field in fields.items():
        if name in given:
            try:
                with _only_wrong_members(body):
                    msgspec.json.decode(given[name], type=field.type)
            except msgspec.ValidationError as error:
                where, what = _where(str(error), field.type)
                wrong.append((name + where, what))
        elif field.required:
            wrong.append((name, "is missing"))
    if of.__struct_config__.forbid_unknown_fields:
        wrong += [(name, "is not a member of this body") for name in given if name not in fields]
    return wrong
