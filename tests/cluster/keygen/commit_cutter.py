"""A proxy before PostgreSQL that lets commits through and keeps what the server says of them.

    async with CommitCutter(address) as cutter:        # connect to cutter.address
        cutter.share = 0.1                             # of every ten commits one is not answered

The connection ends then, as when a machine goes at that very moment: whoever committed cannot know
whether it has happened, and it has.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from services.runtime.database_url import DatabaseAddress

chunk_bytes = 1 << 16
# As asyncpg sends it.
commit = b"COMMIT;"


class CommitCutter:
    """Listens on a port of its own, from `async with` on."""

    def __init__(self, target: DatabaseAddress, seed: int = 1) -> None:
        self._target = target
        self._draw = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self.address = target
        self.share = 0.0
        self.cut = 0
        self.passed = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._met, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = replace(self._target, host="127.0.0.1", port=port, sslmode="disable")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carrying = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(carrying)
        carrying.add_done_callback(self._carrying.discard)
        await asyncio.wait((carrying,))
        writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = f"{self._target.host}/.s.PGSQL.{self._target.port}"
        with suppress(OSError):
            to_reader, to_writer = await asyncio.open_unix_connection(path)
            try:
                answers = asyncio.create_task(_pipe(to_reader, writer))
                asking = asyncio.create_task(self._ask(reader, to_writer, answers))
                await asyncio.wait((answers, asking), return_when=asyncio.FIRST_COMPLETED)
                for task in (answers, asking):
                    task.cancel()
                await asyncio.gather(answers, asking, return_exceptions=True)
            finally:
                to_writer.transport.abort()

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.Task[None],
    ) -> None:
        """Pass on what the client says, until it has ended or a commit is to be cut."""
        while data := await reader.read(chunk_bytes):
            cutting = False
            if commit in data:
                cutting = self._draw.random() < self.share
                self.cut += cutting
                self.passed += not cutting
            if cutting:
                answers.cancel()
            writer.write(data)
            await writer.drain()
            if cutting:
                # It reaches the server, which does it; nobody hears of that.
                await asyncio.sleep(0.02)
                return


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(chunk_bytes):
        writer.write(data)
        await writer.drain()
