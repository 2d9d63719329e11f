"""Who meets over a link in the contracts: a server of a few habits, a client, and its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from services.core.wire import OK, Role, first_request_kind
from services.runtime.link import Station
from services.runtime.link_limits import LinkLimits
from services.runtime.peer import Handlers, Peer
from tests.contract.link_worlds import identity

ECHO = first_request_kind
HOLD = first_request_kind + 1  # answered only when the test says so
BREAK = first_request_kind + 2
ANSWER_AND_BREAK = first_request_kind + 4
ANSWER_TWICE = first_request_kind + 5
NOTE = first_request_kind + 3
REFUSE = 150  # an answer of a service's own


@dataclass
class Server:
    """A service under test: echoes, holds, breaks, and remembers what it saw."""

    held: list[tuple[Peer, int, bytes]] = field(default_factory=list)
    notes: list[tuple[int, bytes]] = field(default_factory=list)
    up: list[Peer] = field(default_factory=list)
    down: list[Peer] = field(default_factory=list)

    def station(self, **limits: float) -> Station:
        handlers: Handlers = {
            ECHO: lambda peer, request_id, body: peer.reply(request_id, OK, body),
            HOLD: lambda peer, request_id, body: self.held.append((peer, request_id, body)),
            BREAK: self.broken,
            ANSWER_AND_BREAK: self.answered_and_broken,
            ANSWER_TWICE: self.answered_twice,
            NOTE: lambda peer, request_id, body: self.notes.append((request_id, body)),
        }
        return Station(
            identity(Role.NODE, "server"),
            handlers,
            LinkLimits(**limits),  # type: ignore[arg-type]
            on_up=self.up.append,
            on_down=self.down.append,
        )

    def broken(self, peer: Peer, request_id: int, body: bytes) -> None:
        raise RuntimeError("a bug in a handler")

    def answered_and_broken(self, peer: Peer, request_id: int, body: bytes) -> None:
        peer.reply(request_id, OK, body)
        raise RuntimeError("a bug behind the answer")

    def answered_twice(self, peer: Peer, request_id: int, body: bytes) -> None:
        peer.reply(request_id, OK, body)
        peer.reply(request_id, OK, b"once more")

    def answer_all(self) -> None:
        held, self.held = self.held, []
        for peer, request_id, body in held:
            peer.reply(request_id, OK, body)


@dataclass
class Answers:
    got: list[tuple[int, bytes]] = field(default_factory=list)

    def __call__(self, kind: int, body: bytes) -> None:
        self.got.append((kind, body))

    @property
    def kinds(self) -> list[int]:
        return [kind for kind, _ in self.got]

    def are(self, count: int) -> Callable[[], bool]:
        return lambda: len(self.got) == count


def client(
    handlers: Handlers | None = None, met: list[Peer] | None = None, **limits: float
) -> Station:
    seen = [] if met is None else met
    return Station(
        identity(Role.REPLICATOR, "client"),
        handlers or {},
        LinkLimits(**limits),  # type: ignore[arg-type]
        on_up=seen.append,
    )
