"""Three nodes and two replicators as a user starts them, with a TCP proxy before each node.

    client ──► replicator (two) ──► proxy (127.0.0.2) ──► node (three, 127.0.0.1)

A node advertises the address of its proxy, so whatever replicators say to it passes there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from services.core.wire import Role
from services.runtime.link import Link, Station
from services.runtime.opening import Identity
from services.runtime.settings import link_port_offset
from tests.free_ports import free_port
from tests.integration.node_process import NodeClient, Stamps, secret
from tests.integration.tcp_proxy import TcpProxy
from tests.plain_http import plain_client
from tests.waiting import wait_until

proxies_host = "127.0.0.2"
# A cluster that has just been started, on a machine that is busy with other tests.
start_s_max = 60.0


class ServiceProcess:
    """One service in a process of its own, killed, paused and started again."""

    def __init__(
        self, name: str, module: str, port: int, data_dir: Path, **environment: str
    ) -> None:
        self.name = name
        self.port = port
        self.starts = 0
        self._module = module
        self._data_dir = data_dir
        self._environment = {
            "DATA_DIR": str(data_dir),
            "CLUSTER_SECRET": secret,
            "DISK_RESERVE": "1MiB",
            **environment,
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def output(self) -> Path:
        return self._data_dir / f"{self.name}-{self.starts}.out"

    async def start(self) -> None:
        self.starts += 1
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self.output.open("w") as file:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**kept, **self._environment},
                cwd=Path(__file__).parents[2],
            )

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def ready(self) -> bool:
        try:
            async with plain_client(timeout=2) as client:
                return (await client.get(self.url + "/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    async def metrics(self) -> dict[str, Any]:
        async with plain_client(timeout=5) as client:
            found: dict[str, Any] = (await client.get(self.url + "/metrics")).json()
            return found

    async def clear(self) -> None:
        if self.running:
            self.resume()
            await self.kill()


class Cluster:
    def __init__(self, data_dir: Path, database_url: str, *, nodes: int, replicators: int) -> None:
        ports = [free_port() for _ in range(nodes + replicators)]
        urls = ",".join(f"http://127.0.0.1:{port}" for port in ports[nodes:])
        settings: Mapping[str, str] = {
            "CLUSTER_SIZE": str(nodes),
            "REPLICATOR_URLS": urls,
            "LOG_SEGMENT": "16MiB",
        }
        self.nodes = [
            ServiceProcess(
                f"node-{number + 1}",
                "services.dhtnode",
                port,
                data_dir,
                NODE_ID=f"node-{number + 1}",
                DHTNODE_PORT=str(port),
                ADVERTISE_HOST=proxies_host,
                **settings,
            )
            for number, port in enumerate(ports[:nodes])
        ]
        self.replicators = [
            ServiceProcess(
                f"replicator-{number + 1}",
                "services.replicator",
                port,
                data_dir,
                REPLICATOR_ID=f"replicator-{number + 1}",
                REPLICATOR_PORT=str(port),
                DATABASE_URL=database_url,
                **settings,
            )
            for number, port in enumerate(ports[nodes:])
        ]
        self.proxies = [
            TcpProxy("127.0.0.1", port, at=(proxies_host, port))
            for port in (node.port + link_port_offset for node in self.nodes)
        ]
        self._stack = AsyncExitStack()

    @property
    def services(self) -> list[ServiceProcess]:
        return [*self.nodes, *self.replicators]

    async def start(self) -> None:
        for proxy in self.proxies:
            await self._stack.enter_async_context(proxy)
        for service in self.services:
            self._stack.push_async_callback(service.clear)
            await service.start()
        for service in self.services:
            await self.until_ready(service)

    async def until_ready(self, service: ServiceProcess) -> None:
        async with asyncio.timeout(start_s_max):
            while not await service.ready():
                assert service.running, f"{service.name} has ended:\n{service.output.read_text()}"
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def strong_cluster(
    data_dir: Path, database_url: str, *, nodes: int = 3, replicators: int = 2
) -> AsyncIterator[Cluster]:
    cluster = Cluster(data_dir, database_url, nodes=nodes, replicators=replicators)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.close()


@asynccontextmanager
async def gateway_client(replicator: ServiceProcess, name: str) -> AsyncIterator[NodeClient]:
    """A link as a gateway has it, which comes back by itself."""
    station = Station(Identity(Role.GATEWAY, name, secret))
    link = Link(station, "127.0.0.1", replicator.port + link_port_offset)
    link.start()
    try:
        await wait_until(lambda: link.connected, f"a link to {replicator.name} is up")
        yield NodeClient(link, Stamps())
    finally:
        await link.close()
