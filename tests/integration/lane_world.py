"""A listener of the fast lane in this process, and clients that write exactly what they are told.

Its clock stands still until a test moves it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from services.runtime.clock import FakeClock, Timeline
from services.runtime.edge import RequestCounters
from services.runtime.fastlane import FastLane
from services.runtime.listener import Listener, ServiceProtocol
from tests.integration.example_lane import ExampleLane, application, lane_routes

patience_s = 10.0
bodyless = (204, 304)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes

    def field(self, name: bytes) -> bytes | None:
        """The one field of that name; None if there is none."""
        found = [value for field, value in self.fields if field == name]
        assert len(found) < 2, f"{name!r} twice in {self.fields}"
        return found[0] if found else None

    @property
    def closes(self) -> bool:
        return (self.field(b"connection") or b"").lower() == b"close"


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, to_head: bool = False) -> Answer:
        async with asyncio.timeout(patience_s):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head[:-4].split(b"\r\n")
            fields = [
                (name.lower(), value.strip())
                for name, _, value in (line.partition(b":") for line in lines)
            ]
            answer = Answer(int(status_line.split()[1]), fields, b"")
            assert status_line.startswith(b"HTTP/1.1 "), status_line
            if to_head or answer.status in bodyless or answer.status < 200:
                return answer
            length = answer.field(b"content-length")
            assert length is not None, head
            return Answer(answer.status, fields, await self.reader.readexactly(int(length)))

    async def ask(self, data: bytes) -> Answer:
        self.send(data)
        return await self.answer(to_head=data.startswith(b"HEAD "))

    async def closed(self) -> bool:
        """Wait for the other side to close; True when it sent nothing more before."""
        async with asyncio.timeout(patience_s):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True

    async def rest(self) -> bytes:
        """Whatever comes until the other side closes; a reset would be an error."""
        async with asyncio.timeout(patience_s):
            return await self.reader.read()

    async def is_silent(self) -> bool:
        """Whether nothing comes for a while; what does come is lost."""
        try:
            async with asyncio.timeout(0.05):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    def reset(self) -> None:
        """Leave without a good-bye."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def end_sending(self) -> None:
        self.writer.write_eof()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class World:
    def __init__(self, *, fast: bool = True, access_log: bool = False) -> None:
        self.timeline = Timeline()
        self.lane = ExampleLane()
        self.counters = RequestCounters()
        app = application(self.counters, lane_routes(self.lane), access_log=access_log)
        self.listener = Listener(
            app, "127.0.0.1", 0, FakeClock(self.timeline), FastLane if fast else ServiceProtocol
        )
        self.connections = self.listener.connections
        self.connections.connections_max = 5000
        self.state = {"lane": self.lane, "counters": self.counters, "access_log": access_log}
        self.port = 0
        self.clients: list[Client] = []

    async def connect(self, **options: int) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    async def connect_slowly_reading(self) -> Client:
        """A client whose side of the kernel holds as little as possible."""
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.setblocking(False)  # noqa: FBT003  The standard library has no other name for it.
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", self.port))
        client = Client(*await asyncio.open_connection(sock=narrow, limit=4096))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> Answer:
        """Ask on a connection of its own."""
        return await (await self.connect()).ask(data)

    def pass_seconds(self, seconds: float) -> None:
        self.timeline.advance(seconds)
        self.connections.expire()

    @property
    def served(self) -> set[FastLane]:
        return {one for one in self.connections.connections if isinstance(one, FastLane)}


@asynccontextmanager
async def opened(*, fast: bool = True, access_log: bool = False) -> AsyncIterator[World]:
    world = World(fast=fast, access_log=access_log)
    await world.listener.bind("PORT")
    world.port = await world.listener.listen(dict(world.state), "PORT")
    try:
        yield world
    finally:
        world.listener.stop_listening()
        await world.listener.abandon()
        for client in world.clients:
            await client.close()


async def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never held")


def request(method: str, path: str, *lines: str, body: bytes = b"") -> bytes:
    """A plain request, with a Host and the length of its body."""
    length = [f"Content-Length: {len(body)}"] if body else []
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, *length, "", ""])
    return head.encode("latin-1") + body


def get(key: str, *lines: str) -> bytes:
    return request("GET", f"/v1/kv/{key}", *lines)


def put(key: str, body: bytes, *lines: str) -> bytes:
    return request("PUT", f"/v1/kv/{key}", *lines, body=body)
