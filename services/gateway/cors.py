"""Whose web pages may call the API from browsers: CORS, for the origins that CORS_ORIGINS names.

An API key is sent by a page itself, never by the browser, so nothing here allows credentials, and
`*` gives a foreign page nothing that it would not have by other means.

    OPTIONS with Access-Control-Request-Method ──► answered here, for every path alike
    an answer to a request with an Origin      ──► says who may read it, and which headers

Without CORS_ORIGINS there are neither: a browser lets no other site's page read an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.errors import FixRequest
from services.runtime.exchange import split_lines

any_origin: Final = "*"
# Chromium keeps an answer for two hours at most, Firefox for a day.
preflight_s: Final = 7_200
# A page of ours sends a handful; browsers list them in one line.
asked_headers_bytes_max: Final = 4_096
# Origins seen at a time, each with its lines; more begin anew.
origins_max: Final = 1_024

_methods: Final = b"GET, HEAD, PUT, POST, PATCH, DELETE"
# Those of answers; X-Metadata-* are named by tenants, who are asked for by `*` alone.
_exposed: Final = (
    b"ETag, Last-Modified, X-Expires-At, X-Node-ID, X-Request-ID, RateLimit, RateLimit-Policy, "
    b"Retry-After, Allow, WWW-Authenticate, *"
)
_vary: Final = b"Vary: Origin\r\n"


class Cors:
    """Tells the header lines for an origin."""

    def __init__(self, origins: Sequence[str] | None) -> None:
        allowed = frozenset(origins or ())
        self._any = any_origin in allowed
        self._allowed = frozenset(origin.encode("ascii") for origin in allowed)
        self._lines: dict[bytes, bytes] = {}

    @property
    def enabled(self) -> bool:
        return bool(self._allowed)

    def allows(self, origin: bytes) -> bool:
        return self._any or origin in self._allowed

    def lines(self, origin: bytes) -> bytes:
        """The lines of an answer to a request with this origin; none where CORS is off."""
        if not self.enabled:
            return b""
        lines = self._lines.get(origin)
        if lines is None:
            if len(self._lines) >= origins_max:
                self._lines.clear()
            lines = self._lines[origin] = self._make(origin)
        return lines

    def preflight(self, origin: bytes, asked_headers: bytes) -> bytes:
        """The lines of the answer, 204, to what a browser asks ahead of a request. An origin that
        is not allowed gets none that would let it go on."""
        lines = self._make(origin)
        if not self.allows(origin):
            return lines
        lines += b"Access-Control-Allow-Methods: %s\r\n" % _methods
        lines += b"Access-Control-Max-Age: %d\r\n" % preflight_s
        if asked_headers:
            # Whatever is asked for: what a header may say is checked where it is read.
            lines += b"Access-Control-Allow-Headers: %s\r\n" % asked_headers
            lines += b"Vary: Access-Control-Request-Headers\r\n"
        return lines

    def _make(self, origin: bytes) -> bytes:
        if self._any:
            allowed = b"Access-Control-Allow-Origin: *\r\n"
        elif origin in self._allowed:
            allowed = _vary + b"Access-Control-Allow-Origin: %s\r\n" % origin
        else:
            return _vary
        return allowed + b"Access-Control-Expose-Headers: %s\r\n" % _exposed


class CorsAnswers:
    """The outermost layer of the application: adds the lines to whatever is answered."""

    def __init__(self, app: ASGIApp, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = _header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None or not self._cors.enabled:
            await self._app(scope, receive, send)
            return
        lines = [(name.lower(), value) for name, value in split_lines(self._cors.lines(origin))]

        async def send_with_lines(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                # A preflight has its own; so has what a lane answered.
                if not any((name.lower(), value) in lines for name, value in headers):
                    message = {**message, "headers": headers + lines}
            await send(message)

        await self._app(scope, receive, send_with_lines)


class Preflights:
    """Answers preflights, for every path; the innermost layer before the routes, so that they have
    a request id and are counted as any request."""

    def __init__(self, app: ASGIApp, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = asked = None
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and self._cors.enabled:
            origin = _header(scope, b"origin")
            asked = _header(scope, b"access-control-request-method")
        if origin is None or asked is None:
            await self._app(scope, receive, send)
            return
        headers = _header(scope, b"access-control-request-headers") or b""
        if len(headers) > asked_headers_bytes_max:
            raise FixRequest(
                "invalid_header",
                f"Access-Control-Request-Headers has {len(headers)} bytes; at most "
                f"{asked_headers_bytes_max} are taken",
            )
        lines = split_lines(self._cors.preflight(origin, headers))
        await send(
            {
                "type": "http.response.start",
                "status": 204,
                "headers": [(name.lower(), value) for name, value in lines],
            }
        )
        await send({"type": "http.response.body", "body": b""})


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
