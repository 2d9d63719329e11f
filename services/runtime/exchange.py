"""One request and its answer, free of any transport, and what answers them: a `Lane`.

A service whose requests are too many for a task and an ASGI scope each writes them as a lane:
callbacks that are given an `Exchange` and answer it, at once or later, from whatever callback
has the answer. Two things make exchanges of what arrives on connections:

- runtime/fastlane.py, inside the HTTP parser's callbacks
- runtime/lane_route.py, a route of an ASGI application

A lane cannot tell them apart, nor does it know of connections, framing or the order of
pipelined requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from time import monotonic_ns
from typing import Protocol

from services.core.errors import ClientError
from services.runtime.body_room import BodyRoom
from services.runtime.client_address import unknown_address


class Headers:
    """The header fields of a request.

    A connection that sends the same fields again gets the same object again. So `memo` is where
    a lane leaves what it made of them; it lives as long as the object.
    """

    __slots__ = ("fields", "memo")

    def __init__(self, fields: list[tuple[bytes, bytes]]) -> None:
        # Names are in lower case and values without the blanks around them, in the order they
        # came; what was sent twice stands here twice. Never changed.
        self.fields = fields
        self.memo: object | None = None

    def get(self, name: bytes) -> bytes | None:
        """The first value of that name, which is in lower case."""
        for field, value in self.fields:
            if field == name:
                return value
        return None

    def all(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field == name]


class Exchange(ABC):
    """A whole request, to be answered once, also if the client has gone: it counts as one that is
    under way until then.

    `path` is in origin form, still percent-encoded and without the query, whatever form the
    target had. `body` is empty as long as the request is not whole: where the lane is asked for
    the words of a refusal. `began_ns` is when the lane was handed it, by time.monotonic_ns(), and
    `took_ns` how long it took from there to the reply, once there is one.
    """

    __slots__ = ("address", "began_ns", "body", "headers", "method", "path", "query", "took_ns")

    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: Headers,
        body: bytes = b"",
        address: str = unknown_address,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        # Of the connection's other end, be that a client or a proxy.
        self.address = address
        self.began_ns = monotonic_ns()
        self.took_ns = 0

    @abstractmethod
    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        """Answer. `lines` are whole header lines, each b"Name: value\\r\\n".

        Date, Content-Length and Connection are added, and nothing else. The body does not leave
        where there is none by definition: to HEAD, where its length is still told, and with 204
        and 304. If the client has gone the answer is dropped without harm. A second call raises
        RuntimeError.
        """

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether nobody will get the answer any more, so that work for it may be left undone."""


class Lane(Protocol):
    """Answers exchanges. Everything is called from the event loop, and must not block.

    An exception out of any of these is a bug: it is logged and answered 500 `internal`, and what
    the lane replies to that exchange afterwards is dropped.
    """

    @property
    def body_bytes_max(self) -> int:
        """The largest body that is taken."""
        ...

    @property
    def room(self) -> BodyRoom:
        """Where large bodies have their room from, from when they arrive until the answer."""
        ...

    def takes(self, method: bytes, path: bytes, headers: Headers) -> bool:
        """Whether requests with this head are the lane's. Asked once for each."""
        ...

    def begin(self, exchange: Exchange) -> None:
        """Answer the request, now or later, by `exchange.reply`."""
        ...

    def refusal(self, exchange: Exchange) -> ClientError | None:
        """Why its body is not worth waiting for; None if it is. Asked once of a request whose body
        is not here with its head, before more of it is read and before a client that waits for it
        is told to go on."""
        ...

    def whose(self, exchange: Exchange) -> Hashable:
        """What the room of a large body is shared by, as far as its head tells; asked once."""
        ...

    def refuse(self, exchange: Exchange, error: ClientError) -> None:
        """Reply that, now, in place of what it asks for."""
        ...

    def too_large(self, exchange: Exchange) -> None:
        """Reply 413, now: the body is larger than `body_bytes_max`."""
        ...

    def timed_out(self, exchange: Exchange) -> None:
        """Reply 408, now: the body was not whole in time."""
        ...


def split_lines(lines: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Name and value of each line that was handed to `reply`."""
    for line in lines.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b":")
            yield name, value.strip(b" \t")
