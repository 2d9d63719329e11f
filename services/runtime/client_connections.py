"""The clients of an HTTP server: how many there may be at once, and how long each may idle.

- Past `connections_max` a new connection closes the one that has been idle for longest. Idle is
  one without a request being answered: between requests, silent, or with a request half sent.
  An upload that comes along idles from its last large piece. When none is idle there is no room.
- A connection may be idle for `idle_s_max`, which also bounds how slowly a head may arrive, and
  a client may leave its answer unread for as long.
- Answers that clients have asked for and do not read may take `unread_bytes_max` together: past
  that the connection that holds most of them is cut.
- A connection may ask for a closer watch on a request while it arrives: it is told when that has
  gone on for `receive_s_max`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from services.runtime.clock import Clock
from services.runtime.metrics import Metrics

# Longer than the minute that client pools keep a connection, so that they are first to let go.
idle_s_max = 75.0
# From the first byte of a request to its last: a megabyte over a poor mobile line.
receive_s_max = 30.0
# Two hundred clients on poor lines that get the largest values. One that does not read is held to
# one answer, which may have some megabytes.
unread_bytes_max = 256 << 20


class Receiving(Protocol):
    """A connection on which a request arrives."""

    def too_slow(self) -> None:
        """Called once, when the request has taken too long."""
        ...


class Heads(dict[int, bytes]):
    """Status line and Date of answers, by status; emptied whenever the date changes."""

    date_line = b""

    def __missing__(self, status: int) -> bytes:
        self[status] = head = STATUS_LINE[status] + self.date_line
        return head


class Connections(ServerState):
    """uvicorn's server state, and which connections are idle, oldest first."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        # As of the last tick, for those who cannot afford to look.
        self.now_s = clock.monotonic_s()
        self.connections_max = 1
        # Set whenever a connection is gone.
        self.lost = asyncio.Event()
        # An insertion-ordered dict is the queue: whoever becomes idle joins at the end. Fast lanes
        # do so by themselves, with `now_s`.
        self.idle_since: dict[HttpToolsProtocol, float] = {}
        # Those whose clients do not read what they asked for, in the same way.
        self._stalled: dict[HttpToolsProtocol, float] = {}
        # What they had not read when they stalled, for little is written from then on.
        self._unread: dict[HttpToolsProtocol, int] = {}
        self.unread_bytes = 0
        self.unread_bytes_max = unread_bytes_max
        # Those in the middle of a request, likewise.
        self._receiving: dict[Receiving, float] = {}
        self.heads = Heads()
        self.opened = 0
        self.shed = 0
        self.refused = 0
        self.expired = 0
        self.late = 0
        self.unread = 0
        self.malformed = 0

    def add(self, connection: HttpToolsProtocol) -> bool:
        """Take a new connection, at the cost of the idlest. False when there is no room."""
        self.opened += 1
        if len(self.connections) > self.connections_max:
            if not self.idle_since:
                self.refused += 1
                return False
            self.shed += 1
            self._drop(next(iter(self.idle_since)))
        self.idle(connection)
        return True

    def idle(self, connection: HttpToolsProtocol) -> None:
        self.idle_since.pop(connection, None)
        self.idle_since[connection] = self.clock.monotonic_s()

    def busy(self, connection: HttpToolsProtocol) -> None:
        self.idle_since.pop(connection, None)

    def stalled(self, connection: HttpToolsProtocol) -> None:
        self._stalled.setdefault(connection, self.clock.monotonic_s())
        self._count_unread(connection)
        while self.unread_bytes > self.unread_bytes_max:
            self.unread += 1
            self._drop(max(self._unread, key=self._unread.__getitem__))

    def flowing(self, connection: HttpToolsProtocol) -> None:
        self._stalled.pop(connection, None)
        self.unread_bytes -= self._unread.pop(connection, 0)

    def _count_unread(self, connection: HttpToolsProtocol) -> None:
        size = connection.transport.get_write_buffer_size()
        self.unread_bytes += size - self._unread.get(connection, 0)
        self._unread[connection] = size

    def receiving(self, connection: Receiving) -> None:
        """Watch the time from now on, unless it is watched already."""
        self._receiving.setdefault(connection, self.clock.monotonic_s())

    def received(self, connection: Receiving) -> None:
        self._receiving.pop(connection, None)

    @property
    def date_line(self) -> bytes:
        return self.heads.date_line

    def tell_date(self, date: bytes) -> None:
        self.default_headers = [(b"date", date)]
        self.heads.date_line = b"Date: " + date + b"\r\n"
        self.heads.clear()

    @property
    def idle_count(self) -> int:
        return len(self.idle_since)

    @property
    def stalled_count(self) -> int:
        return len(self._stalled)

    def expire(self) -> None:
        """Drop what has been idle or stalled for too long, and tell who receives for too long."""
        self.now_s = now_s = self.clock.monotonic_s()
        while self._receiving:
            late, since_s = next(iter(self._receiving.items()))
            if since_s > now_s - receive_s_max:
                break
            del self._receiving[late]
            self.late += 1
            late.too_slow()
        oldest_s = now_s - idle_s_max
        for waiting in (self.idle_since, self._stalled):
            # Both are in order of time: the first that is young enough ends the search.
            while waiting:
                connection, since_s = next(iter(waiting.items()))
                if since_s > oldest_s:
                    break
                self.expired += 1
                self._drop(connection)
        # They may have read some of it.
        for connection in self._unread:
            self._count_unread(connection)

    def _drop(self, connection: HttpToolsProtocol) -> None:
        self.idle_since.pop(connection, None)
        self.flowing(connection)
        # Not close(), which would wait for a client that does not read.
        connection.transport.abort()

    def add_to(self, metrics: Metrics) -> None:
        figures: dict[str, tuple[str, Callable[[], int]]] = {
            "http_connections": ("Client connections", lambda: len(self.connections)),
            "http_connections_idle": ("Those without a request", lambda: self.idle_count),
            "http_connections_stalled": ("Those not reading", lambda: self.stalled_count),
            "http_answers_unread_bytes": (
                "Answers that clients do not read",
                lambda: self.unread_bytes,
            ),
            "http_connections_max": ("Bound on them", lambda: self.connections_max),
        }
        for name, (text, read) in figures.items():
            metrics.add(name, "gauge", text, read)
        ends: dict[str, Callable[[], int]] = {
            "shed": lambda: self.shed,
            "refused": lambda: self.refused,
            "expired": lambda: self.expired,
            "late": lambda: self.late,
            "unread": lambda: self.unread,
        }
        metrics.add("http_connections_opened", "counter", "Accepted", lambda: self.opened)
        metrics.add(
            "http_connections_closed_by_us",
            "counter",
            "Closed for room, refused for lack of it, idle for too long, sending too slowly, or "
            "holding the most of answers that are not read",
            lambda: {name: read() for name, read in ends.items()},
            labels=("why",),
        )
        metrics.add(
            "http_malformed", "counter", "Requests that are not HTTP", lambda: self.malformed
        )
