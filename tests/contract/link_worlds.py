"""Two worlds with links in them, real and in memory, that one suite of tests is run in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from services.core.wire import Role
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeLink, FakeNetwork
from services.runtime.link import Link, LinkServer, Station
from services.runtime.opening import Admit, Identity, anyone
from services.runtime.peer import OwnedLink
from tests.waiting import wait_until

# Longer than any wait a contract names; a condition that is not met by then never will be.
patience_s = 10.0


def identity(role: Role, name: str) -> Identity:
    return Identity(role, name, "the secret of this test's cluster", lambda: 7, bytes(range(16)))


class World(Protocol):
    """Where a server can be started and killed, and a client connected to it."""

    async def serve(self, station: Station, admit: Admit = anyone) -> None: ...

    async def kill_server(self) -> None:
        """The server's process dies, without a word to anyone."""
        ...

    async def connect(self, station: Station) -> OwnedLink:
        """A link to the server, started; it may be up only later."""
        ...

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let time pass until the condition holds."""
        ...

    async def settle(self) -> None:
        """Let everything that is under way arrive."""
        ...

    def soon(self, callback: Callable[[], None]) -> None:
        """Have this done in the next turn of whatever runs the links."""
        ...

    async def close(self) -> None: ...


class RealWorld:
    """Sockets on loopback."""

    def __init__(self) -> None:
        self._server: LinkServer | None = None
        self._port = 0
        self._links: list[Link] = []

    async def serve(self, station: Station, admit: Admit = anyone) -> None:
        self._server = LinkServer(station, "127.0.0.1", self._port, admit=admit)
        await self._server.start()
        self._port = self._server.port

    async def kill_server(self) -> None:
        assert self._server is not None
        for connection in list(self._server.connections):
            connection.abort("killed")
        await self._server.close()

    async def connect(self, station: Station) -> OwnedLink:
        link = Link(station, "127.0.0.1", self._port, jitter=random.Random(1))
        link.start()
        self._links.append(link)
        return link

    async def until(self, condition: Callable[[], bool]) -> None:
        await wait_until(condition, "the condition holds", seconds=patience_s)

    async def settle(self) -> None:
        await asyncio.sleep(0.1)

    def soon(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    async def close(self) -> None:
        for link in self._links:
            await link.close()
        if self._server is not None:
            await self._server.close()


class FakeWorld:
    """The network in memory, in fair weather."""

    def __init__(self) -> None:
        self._timeline = Timeline()
        self._network = FakeNetwork(random.Random(1))
        self._server: tuple[str, FakeClock] | None = None
        self._server_name = "server"
        self._links: list[FakeLink] = []

    async def serve(self, station: Station, admit: Admit = anyone) -> None:
        clock = FakeClock(self._timeline)
        self._network.attach(station, clock, admit)
        self._server = (station.identity.id, clock)

    async def kill_server(self) -> None:
        assert self._server is not None
        name, clock = self._server
        self._network.crash(name)
        clock.stop()

    async def connect(self, station: Station) -> OwnedLink:
        self._network.attach(station, FakeClock(self._timeline))
        link = FakeLink(self._network, station.identity.id, self._server_name)
        link.start()
        self._links.append(link)
        return link

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline_s = self._timeline.now_s + patience_s
        while not condition():
            assert self._timeline.now_s < deadline_s, "the condition was never met"
            # What a test left to tasks goes on in step with the time.
            await asyncio.sleep(0)
            self._timeline.advance(0.002)

    async def settle(self) -> None:
        self._timeline.advance(0.1)

    def soon(self, callback: Callable[[], None]) -> None:
        self._timeline.schedule(0.0, callback)

    async def close(self) -> None:
        for link in self._links:
            await link.close()
