"""A TCP proxy between two processes, through which a test does to them what a network may do.

    async with TcpProxy("127.0.0.1", port) as proxy:   # connect to 127.0.0.1, proxy.port
        proxy.to_server.drop()                         # bytes vanish, neither end is told
        proxy.vanish()                                 # both ways: a half-open connection
        proxy.heal()                                   # for connections made from now on
        proxy.reset()                                  # RST to both ends of every connection

A connection that lost bytes stays mute that way after `heal`, for a stream with a hole in it is
nothing that a network delivers. New connections are refused while `refuse` is in force, and are
taken but stay mute while bytes vanish.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType
from typing import Self

chunk_bytes_max = 1 << 16


class Direction:
    """How the bytes of one direction fare, on all connections."""

    def __init__(self) -> None:
        self.dropping = False
        self.delay_s = 0.0
        self.bytes_per_s_max: float | None = None
        self.bytes_passed = 0
        self._open = asyncio.Event()
        self._open.set()

    def drop(self) -> None:
        """Everything sent from now on vanishes, silently. The sender notices nothing."""
        self.dropping = True

    def stall(self) -> None:
        """Take nothing more: the sender's buffers fill up. Nothing is lost."""
        self._open.clear()

    def resume(self) -> None:
        """Undo `drop`, for connections made from now on, and `stall`, for all."""
        self.dropping = False
        self._open.set()

    async def opened(self) -> None:
        await self._open.wait()


class TcpProxy:
    """Listens on a port of its own, from `async with` on, and carries each connection onward."""

    def __init__(self, host: str, port: int, *, at: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        """Before this target; `at` is where the proxy listens, a port of 0 being any free one."""
        self.to_server = Direction()
        self.to_client = Direction()
        self.refuse = False
        self.connects = 0
        self.port = 0
        self._target = (host, port)
        self._at = at
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._met, *self._at)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._handlers)

    def vanish(self) -> None:
        """Both directions drop: the peers are half-open to each other."""
        self.to_server.drop()
        self.to_client.drop()

    def heal(self) -> None:
        self.refuse = False
        for direction in (self.to_server, self.to_client):
            direction.resume()
            direction.delay_s = 0.0
            direction.bytes_per_s_max = None

    def reset(self) -> None:
        """Break every connection with a RST to both ends."""
        for task, writers in list(self._connections.items()):
            for writer in writers:
                _send_reset(writer)
            task.cancel()

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry in a task of its own: asyncio's server reports a cancelled handler as an error."""
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        self.connects += 1
        writers = [writer]
        task = asyncio.create_task(self._carry(reader, writers))
        self._connections[task] = writers
        try:
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
        finally:
            for one in writers:
                one.transport.abort()
            del self._connections[task]
            self._handlers.discard(handler)

    async def _carry(
        self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]
    ) -> None:
        try:
            if self.refuse:
                raise ConnectionRefusedError
            to_reader, to_writer = await asyncio.open_connection(*self._target)
            writers.append(to_writer)
            async with asyncio.TaskGroup() as pipes:
                pipes.create_task(_pipe(reader, to_writer, self.to_server))
                pipes.create_task(_pipe(to_reader, writers[0], self.to_client))
        except* OSError:
            # The target is down, or one end broke: the other shall see the same.
            for one in writers:
                _send_reset(one)


async def _pipe(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
) -> None:
    torn = False
    while data := await reader.read(chunk_bytes_max):
        await direction.opened()
        torn = torn or direction.dropping
        if torn:
            continue
        if direction.delay_s:
            await asyncio.sleep(direction.delay_s)
        if direction.bytes_per_s_max:
            await asyncio.sleep(len(data) / direction.bytes_per_s_max)
        writer.write(data)
        await writer.drain()
        direction.bytes_passed += len(data)
    # An end that closed says so to the other, unless nothing gets through.
    if not (torn or direction.dropping) and writer.can_write_eof():
        writer.write_eof()


def _send_reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
