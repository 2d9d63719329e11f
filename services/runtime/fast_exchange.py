"""An exchange on a connection of the fast lane, and its answer as bytes.

On the hot path, like fastlane.py. What `reply` does is measured by `make bench ARGS=fastlane`.
"""

from __future__ import annotations

from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from services.core.errors import InternalError
from services.runtime import telemetry
from services.runtime.edge import request_id_of
from services.runtime.exchange import Exchange, Headers, split_lines
from services.runtime.problem import problem_lines

close_line: Final = b"Connection: close\r\n"
keep_alive_line: Final = b"Connection: keep-alive\r\n"
# Most answers are short.
_length_lines: Final = tuple(b"Content-Length: %d\r\n\r\n" % length for length in range(1024))

_log = telemetry.logger("services.http")


class Connection(Protocol):
    """What an exchange needs of its connection."""

    address: str

    @property
    def lost(self) -> bool: ...

    def answer(self, exchange: FastExchange, status: int, lines: bytes, body: bytes) -> None: ...


class FastExchange(Exchange):
    __slots__ = ("connection", "counted", "persistence")

    def __init__(
        self, connection: Connection, method: bytes, path: bytes, query: bytes, headers: Headers
    ) -> None:
        # Not by super().__init__(), a call that costs as much as all of these.
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = b""
        self.address = connection.address
        self.began_ns = self.took_ns = 0
        # Whether it is one of those under way: what is answered at once never is.
        self.counted = False
        # The header line that says whether the connection goes on; without one it does.
        self.persistence = b""
        # None once it is answered.
        self.connection: Connection | None = connection

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        connection = self.connection
        if connection is None:
            raise RuntimeError("this exchange has been answered")
        connection.answer(self, status, lines, body)

    @property
    def gone(self) -> bool:
        return self.connection is None or self.connection.lost

    def excuse(self, request_id: str) -> None:
        """Answer 500 in place of the lane, which may still reply, to no effect."""
        connection = self.connection
        if connection is not None:
            lines = problem_lines + b"X-Request-ID: %s\r\n" % request_id.encode("ascii")
            body = msgspec.json.encode(InternalError().problem(request_id))
            connection.answer(self, 500, lines, body)
        self.connection = _excused

    def lament(self) -> str:
        """Log the exception that is being handled as a bug; returns the request's id."""
        request_id = request_id_of(self.headers.fields)
        token = telemetry.request_id.set(request_id)
        _log.exception("bug", method=self.method.decode("ascii"), path=self._readable_path)
        telemetry.request_id.reset(token)
        return request_id

    def log(self, status: int, lines: bytes) -> None:
        """The line of the access log, as the edge of an application writes it."""
        token = telemetry.request_id.set(_request_id_in(lines) or telemetry.no_request_id)
        _log.info(
            "request",
            method=self.method.decode("ascii"),
            path=self._readable_path,
            status=status,
            ms=round(self.took_ns / 1e6, 3),
            client=self.address,
        )
        telemetry.request_id.reset(token)

    @property
    def _readable_path(self) -> str:
        return unquote_to_bytes(self.path).decode("utf-8", "replace")


class _Excused:
    """Takes what a lane replies once its bug has been answered."""

    address = ""
    lost = True

    def answer(self, exchange: FastExchange, status: int, lines: bytes, body: bytes) -> None:
        pass


_excused: Final = _Excused()


def answer_bytes(
    head: bytes, exchange: FastExchange, status: int, lines: bytes, persistence: bytes, body: bytes
) -> bytes:
    """The whole answer; `head` is the status line and what else stands in every answer."""
    if status == 304 or status == 204:
        return b"".join((head, lines, persistence, b"\r\n"))
    size = len(body)
    length = _length_lines[size] if size < 1024 else b"Content-Length: %d\r\n\r\n" % size
    if exchange.method == b"HEAD":
        return b"".join((head, lines, persistence, length))
    return b"".join((head, lines, persistence, length, body))


def _request_id_in(lines: bytes) -> str:
    for name, value in split_lines(lines):
        if name.lower() == b"x-request-id":
            return value.decode("ascii", "replace")
    return ""
