"""A real node in a process of its own, and a client of its links whose calls can be awaited."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from services.core import messages as m
from services.core.key import namespace_prefix
from services.core.record import tombstone_body, value_body
from services.core.wire import Role
from services.runtime.clock import SystemClock
from services.runtime.link import Link, Station
from services.runtime.opening import Identity
from services.runtime.peer import SENT
from services.runtime.settings import link_port_offset
from services.runtime.signing import SignedAuth, Signer
from tests.free_ports import free_port
from tests.plain_http import plain_client
from tests.waiting import wait_until

secret = "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe"
node_command = ("-m", "services.dhtnode")
prefix = namespace_prefix(7, b"default")
# As much as tells what has failed, and not so much that a failure of a test is not read.
shown_chars = 4_000
Answer = tuple[int, bytes]


class Stamps:
    """Versions that only grow, in the order in which they are made."""

    def __init__(self, stamper: int = 1) -> None:
        self._hlc = SystemClock().wall_ms() << 16
        self._stamper = stamper.to_bytes(4, "big")

    def next(self) -> bytes:
        self._hlc += 1
        return self._hlc.to_bytes(8, "big") + self._stamper

    def value(self, content: bytes, expires_at_ms: int = 0) -> bytes:
        return self.next() + value_body(content, expires_at_ms)

    def tombstone(self) -> bytes:
        return self.next() + tombstone_body


class NodeProcess:
    """A node on a directory: started, killed and started again, each time as a new process."""

    def __init__(self, data_dir: Path, node_id: str = "node-1", **environment: str) -> None:
        self.data_dir = data_dir
        self.node_id = node_id
        self.port = free_port()
        self.starts = 0
        self.command: Sequence[str] = node_command
        self.environment = {
            "DATA_DIR": str(data_dir),
            "NODE_ID": node_id,
            "DHTNODE_PORT": str(self.port),
            "CLUSTER_SECRET": secret,
            "REPLICATOR_URLS": "http://127.0.0.1:9",
            "DISK_RESERVE": "1MiB",
            "LOG_SEGMENT": "16MiB",
            **environment,
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def directory(self) -> Path:
        return self.data_dir / "nodes" / self.node_id

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "the node has not been started"
        return self._process

    @property
    def output(self) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}-{self.node_id}-{self.starts}.out")

    @property
    def said(self) -> str:
        """All that this process has written, on both channels."""
        return self.output.read_text()

    def check_no_traceback(self) -> None:
        """Nothing has failed in it that it did not expect; the first such thing is shown."""
        before, mark, after = self.said.partition("Traceback")
        assert not mark, f"{before[-shown_chars:]}{mark}{after[:shown_chars]}"

    async def start(self) -> None:
        """Begin a process; it may still be recovering when this returns."""
        self.starts += 1
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self.output.open("w") as file:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**kept, **self.environment},
                cwd=Path(__file__).parents[2],
            )

    async def serve(self) -> None:
        """Begin a process, and wait until its links are open."""
        await self.start()

        def serving() -> bool:
            over = self.process.returncode is not None
            assert not over, f"the node has ended:\n{self.said}"
            return " serving " in self.said

        await wait_until(serving, f"node {self.node_id} serves")

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """Stop in order; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def clear(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with plain_client(timeout=10) as client:
            return await client.get(self.url + path, headers=headers)

    async def signed(
        self,
        target: str,
        *,
        tenant: object = 7,
        method: str = "GET",
        headers: Mapping[str, str | bytes] | None = None,
    ) -> httpx.Response:
        """A request by a holder of the secret; `target` is sent as it stands."""
        auth = SignedAuth(Signer(secret, SystemClock()))
        sent = {} if tenant is None else {b"X-Ydht-Tenant": str(tenant).encode()}
        for name, value in (headers or {}).items():
            sent[name.encode()] = value.encode() if isinstance(value, str) else value
        async with plain_client(auth=auth, timeout=10) as client:
            return await client.request(method, self.url + target, headers=sent)

    async def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self.get("/metrics")).content)
        return found


@asynccontextmanager
async def node_process(
    data_dir: Path, node_id: str = "node-1", **environment: str
) -> AsyncIterator[NodeProcess]:
    """A node that serves; whatever process it has in the end is killed."""
    node = NodeProcess(data_dir, node_id, **environment)
    try:
        await node.serve()
        yield node
    finally:
        await node.clear()


class NodeClient:
    """A link to a node. Every call returns the answer's kind and body."""

    def __init__(self, link: Link, stamps: Stamps) -> None:
        self.link = link
        self.stamps = stamps

    async def ask(self, kind: int, body: bytes = b"", timeout_s: float = 10.0) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def on_answer(kind: int, body: bytes) -> None:
            if not answer.done():
                answer.set_result((kind, body))

        refusal = self.link.request(kind, body, on_answer, timeout_s)
        return (refusal, b"") if refusal != SENT else await answer

    async def write(self, key: bytes, record: bytes, epoch: int = 0) -> Answer:
        return await self.ask(m.WRITE, m.encode_write(epoch, key, record))

    async def put(self, name: bytes, content: bytes) -> Answer:
        return await self.write(prefix + name, self.stamps.value(content))

    async def read(self, name: bytes) -> Answer:
        return await self.ask(m.GET, prefix + name)

    async def write_many(self, items: Sequence[tuple[bytes, bytes]], epoch: int = 0) -> Answer:
        return await self.ask(m.WRITE_MANY, m.encode_write_many(epoch, items))


@asynccontextmanager
async def node_client(
    node: NodeProcess, name: str = "replicator-1", role: Role = Role.REPLICATOR
) -> AsyncIterator[NodeClient]:
    """A link that is up, unless the node has ended: then every call is answered DOWN."""
    link = Link(Station(Identity(role, name, secret)), "127.0.0.1", node.port + link_port_offset)
    link.start()
    try:
        await wait_until(
            lambda: link.connected or node.process.returncode is not None,
            f"a link to {node.node_id} is up",
        )
        yield NodeClient(link, Stamps())
    finally:
        await link.close()


async def in_flight(count: int, calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Make all calls, so many at a time."""
    waiting = iter(calls)

    async def worker() -> None:
        for call in waiting:
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(worker())
