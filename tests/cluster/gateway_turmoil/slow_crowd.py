"""Clients that send a byte a second each, in a process of their own.

    python -m tests.cluster.gateway_turmoil.slow_crowd PORT COUNT LINE...

Half of them are slow with the head of a request, half with its body; each LINE is a header of
theirs. A line on stdin makes them all come, and the next one has them gone; each time, once that
is so, this writes a line with how many of them the gateway has closed meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from services.runtime.descriptors import raise_descriptor_limit
from tests.integration.lane_world import request

repository = Path(__file__).parents[3]
body_bytes = 1_000
# What those who are slow with their heads have sent at first.
begun_bytes = 20


class SlowClient(asyncio.Protocol):
    def __init__(self, content: bytes, begun: int) -> None:
        self.closed = False
        self._content = content
        self._sent = begun
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is of no class of asyncio.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._content[: self._sent])

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def send_a_byte(self) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(self._content[self._sent : self._sent + 1])
            self._sent += 1

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _itself(client: SlowClient) -> SlowClient:
    return client


class SlowCrowd:
    def __init__(self, port: int, count: int, lines: Sequence[str]) -> None:
        self._port = port
        body = request("PUT", "/v1/kv/slow", *lines, body=bytes(body_bytes))
        head = request("GET", f"/v1/kv/{'slow' * 100}", *lines)
        self._contents = [
            (head, begun_bytes) if number % 2 else (body, len(body) - body_bytes)
            for number in range(count)
        ]
        self._clients: list[SlowClient] = []

    async def come(self) -> None:
        loop = asyncio.get_running_loop()
        for content, begun in self._contents:
            client = SlowClient(content, begun)
            await loop.create_connection(partial(_itself, client), "127.0.0.1", self._port)
            self._clients.append(client)

    async def send(self) -> None:
        """For ever, each of them in its own moment of the second."""
        loop = asyncio.get_running_loop()
        at_s = loop.time()
        while True:
            for client in self._clients:
                client.send_a_byte()
                at_s += 1 / len(self._clients)
                if at_s > loop.time():
                    await asyncio.sleep(at_s - loop.time())

    def leave(self) -> int:
        closed = sum(client.closed for client in self._clients)
        for client in self._clients:
            client.leave()
        self._clients.clear()
        return closed


async def crowd(port: int, count: int, lines: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    slow = SlowCrowd(port, count, lines)
    while await loop.run_in_executor(None, sys.stdin.readline):
        await slow.come()
        sys.stdout.write("0\n")
        sys.stdout.flush()
        sending = asyncio.create_task(slow.send())
        await loop.run_in_executor(None, sys.stdin.readline)
        sending.cancel()
        await asyncio.wait((sending,))
        sys.stdout.write(f"{slow.leave()}\n")
        sys.stdout.flush()


class SlowCrowdProcess:
    """The other end of its stdin and stdout."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        assert await self._next() == 0
        yield
        assert await self._next() == 0, "the gateway has closed some"

    async def _next(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        return int(await self._process.stdout.readline())


@asynccontextmanager
async def slow_crowd(
    port: int, count: int, lines: Sequence[str]
) -> AsyncIterator[SlowCrowdProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.cluster.gateway_turmoil.slow_crowd",
        str(port),
        str(count),
        *lines,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=repository,
    )
    try:
        yield SlowCrowdProcess(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


if __name__ == "__main__":
    raise_descriptor_limit()
    uvloop.run(crowd(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
