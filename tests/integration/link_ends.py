"""Real links for tests: a service that echoes and holds, a server around it, a client to it."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from structlog.typing import EventDict

from services.core.wire import OK, Role, first_request_kind
from services.runtime.link import Link, LinkServer, Station
from services.runtime.link_limits import LinkLimits
from services.runtime.link_tls import TlsFiles
from services.runtime.opening import Admit, anyone
from services.runtime.peer import Handlers, Peer
from tests.integration.raw_peer import identity, secret
from tests.waiting import wait_until

ECHO = first_request_kind
HOLD = first_request_kind + 1  # answered only when the test says so
LARGE = first_request_kind + 2  # answered with as many bytes as the request says

# Small enough that a test sees a peer be lost, large enough for a machine that is busy.
quick = {"ping_s": 0.1, "silence_s": 0.6}


@dataclass
class Service:
    """What stands behind a link in these tests, and what it saw."""

    name: str
    key: str = secret
    tls: TlsFiles | None = None
    held: list[tuple[Peer, int, bytes]] = field(default_factory=list)
    up: list[Peer] = field(default_factory=list)
    down: list[Peer] = field(default_factory=list)

    def station(self, **limits: float) -> Station:
        handlers: Handlers = {
            ECHO: lambda peer, request_id, body: peer.reply(request_id, OK, body),
            HOLD: lambda peer, request_id, body: self.held.append((peer, request_id, body)),
            LARGE: lambda peer, request_id, body: peer.reply(request_id, OK, bytes(int(body))),
        }
        return Station(
            identity(self.name, Role.NODE, self.key),
            handlers,
            LinkLimits(**limits),  # type: ignore[arg-type]
            tls=self.tls,
            on_up=self.up.append,
            on_down=self.down.append,
        )

    def answer_all(self) -> None:
        held, self.held = self.held, []
        for peer, request_id, body in held:
            peer.reply(request_id, OK, body)


@dataclass
class Answers:
    """Counts the answers by kind."""

    by_kind: dict[int, int] = field(default_factory=dict)

    def __call__(self, kind: int, body: bytes) -> None:
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1

    @property
    def count(self) -> int:
        return sum(self.by_kind.values())

    def are(self, count: int) -> Callable[[], bool]:
        return lambda: self.count == count


class Lines(logging.Handler):
    """Keeps the events that are logged, as they are before they become text."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[EventDict] = []

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, dict):
            self.events.append(record.msg)


@contextmanager
def log_lines() -> Iterator[list[EventDict]]:
    """What our own code logs meanwhile, kept here alone: whoever clears it has the memory back."""
    lines, ours = Lines(), logging.getLogger("services")
    level, propagate = ours.level, ours.propagate
    ours.addHandler(lines)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        yield lines.events
    finally:
        ours.removeHandler(lines)
        ours.setLevel(level)
        ours.propagate = propagate


@asynccontextmanager
async def served(station: Station, *, admit: Admit = anyone) -> AsyncIterator[LinkServer]:
    server = LinkServer(station, "127.0.0.1", 0, admit=admit)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def linked(station: Station, port: int, *, admit: Admit = anyone) -> AsyncIterator[Link]:
    """A link that has been started; it may be up only later, or never."""
    link = Link(station, "127.0.0.1", port, admit=admit, jitter=random.Random(1))
    link.start()
    try:
        yield link
    finally:
        await link.close()


async def up(link: Link) -> None:
    await wait_until(lambda: link.connected, "the link is up")


async def refusal(link: Link, part: str) -> None:
    """Wait until the link says why it is down, in words that hold `part`."""
    await wait_until(
        lambda: link.last_error is not None and part in link.last_error,
        f"the link is down because of: {part} (not {link.last_error})",
    )


async def still_serves(port: int) -> None:
    """A peer that keeps to the rules is served as ever."""
    async with linked(Service("honest").station(), port) as link:
        await up(link)
        answers = Answers()
        link.request(ECHO, b"x", answers, 2.0)
        await wait_until(answers.are(1), "the honest peer is answered")
        assert answers.by_kind == {OK: 1}
