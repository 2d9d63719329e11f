"""The seam of links: what those who ask and answer over one see of it, real or in memory.

Rules that callers rely on:

- `request` either returns 0 and calls `on_answer` exactly once, later; or returns DOWN or
  OVERLOADED, has sent nothing, and calls nothing.
- When a connection is lost, those who wait are told so in the order in which they asked, some in
  each turn of the loop, and the link is down until all of them know.
- A handler answers every request exactly once, then or later, with `reply`. It does not block.
- An answer of LOST, TIMEOUT or FAILED means unknown: the request may or may not have been done.
- A body that no frame holds is a ValueError, from `request` and `notify` alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from services.core.wire import Hello, frame_bytes_max, header_bytes

OnAnswer = Callable[[int, bytes], None]
"""Called once with the kind and the body of the answer."""

body_bytes_max: Final = frame_bytes_max - header_bytes
SENT: Final = 0
# Request id 0 asks for no answer.
no_answer: Final = 0


class Caller(Protocol):
    """Whoever can be asked over a link."""

    @property
    def connected(self) -> bool:
        """Whether a request sent now would leave at once."""
        ...

    def silent_s(self) -> float:
        """Seconds since anything was heard from the other end."""
        ...

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        """Ask. 0 when sent, else DOWN or OVERLOADED and nothing was sent."""
        ...

    def notify(self, kind: int, body: bytes) -> bool:
        """Send a message that gets no answer. False when nothing was sent: down, or overloaded."""
        ...


class OwnedLink(Caller, Protocol):
    """A link to one address as its owner has it: kept up from `start` to `close`."""

    @property
    def last_error(self) -> str | None:
        """Why it is down, or was last; None while it is up or has not been tried."""
        ...

    @property
    def peer(self) -> Hello | None:
        """Who is at the other end, while there is a connection."""
        ...

    @property
    def pending(self) -> int:
        """How many requests have been sent and not answered yet."""
        ...

    def start(self) -> None:
        """Connect, and connect again whenever that is needed. RuntimeError if called twice."""
        ...

    async def close(self, drain_s: float = 0.0) -> None:
        """Ask nothing more, finish what is under way within `drain_s`, and stay closed."""
        ...


class Peer(Caller, Protocol):
    """The other end of a connection, as a handler of its requests sees it."""

    @property
    def hello(self) -> Hello:
        """How it introduced itself, proved with the cluster's secret."""
        ...

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        """Answer one of its requests. Without effect when it has gone meanwhile.

        A second answer to the same request is a bug, counted and never sent.
        """
        ...


Handler = Callable[[Peer, int, bytes], None]
"""Called with the peer, the request id to answer (0: none is wanted) and the body."""

Handlers = Mapping[int, Handler]
