"""One connection of a client of HTTP/1.1, as bare as it can be: it must not cost what it measures.

Requests are bytes made by the caller, one under way at a time. Answers must have a Content-Length,
but for those to HEAD and those without a body by their status. Nothing is tried again.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final, NamedTuple, cast

_head_end: Final = b"\r\n\r\n"
_length: Final = re.compile(rb"\r\nContent-Length: *(\d+)\r\n", re.IGNORECASE)
_bodiless: Final = frozenset((204, 304))
# Where the status stands in "HTTP/1.1 200 OK".
_status: Final = slice(9, 12)
# The largest batch is answered within 16 MiB.
answer_bytes_max: Final = 17 * 1024 * 1024


class ConnectionEndedError(Exception):
    """The server ended the connection, or sent what is no answer: what became of the request that
    was under way is not known."""


class Answer(NamedTuple):
    status: int
    # From the status line to the empty line.
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header, if there is one; names are compared without case."""
        found = re.search(rb"\r\n%s: *([^\r]*)\r\n" % name.encode(), self.head, re.IGNORECASE)
        return found[1].decode("latin-1") if found else None


def request(method: str, path: str, port: int, headers: str = "", body: bytes = b"") -> bytes:
    """The bytes of a request. `headers` are whole lines, each with its line end."""
    length = f"Content-Length: {len(body)}\r\n" if body or method in ("PUT", "POST") else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{headers}{length}\r\n"
    return head.encode() + body


class HttpConnection(asyncio.Protocol):
    """Ask by `ask`. Ended by `close` or by the server; `open` tells."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._arrived = b""
        self._answered: asyncio.Future[Answer] | None = None
        self._is_head = False

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, content: bytes) -> Answer:
        """The answer to this request. ConnectionEndedError if there will be none."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionEndedError("the connection is closed")
        self._answered = asyncio.get_running_loop().create_future()
        self._is_head = content.startswith(b"HEAD ")
        self._transport.write(content)
        return await self._answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._arrived = arrived = self._arrived + data if self._arrived else data
        end = arrived.find(_head_end)
        if end < 0:
            return
        body_begin = end + len(_head_end)
        head = arrived[:body_begin]
        try:
            status = int(head[_status])
        except ValueError:
            self._end(f"this is no answer: {head[:200]!r}")
            return
        body_bytes = 0
        if not self._is_head and status not in _bodiless:
            length = _length.search(head)
            if length is None or int(length[1]) > answer_bytes_max:
                self._end(f"an answer without a usable length: {head[:500]!r}")
                return
            body_bytes = int(length[1])
        if len(arrived) < body_begin + body_bytes:
            return
        if len(arrived) > body_begin + body_bytes or self._answered is None:
            self._end(f"more came than was asked for: {arrived[:500]!r}")
            return
        self._arrived = b""
        answered, self._answered = self._answered, None
        if not answered.done():
            answered.set_result(Answer(status, head, arrived[body_begin:]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the server ended the connection: {exc or 'orderly'}")

    def _end(self, why: str) -> None:
        self.close()
        answered, self._answered = self._answered, None
        if answered is not None and not answered.done():
            answered.set_exception(ConnectionEndedError(why))


async def connect(port: int) -> HttpConnection:
    """A connection to this port of this machine. OSError if there is nobody."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(HttpConnection, "127.0.0.1", port)
    return connection
