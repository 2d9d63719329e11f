"""A platform with two replicators and one gateway, for tests that take parts of it away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

from services.runtime.database_url import DatabaseAddress
from tests.cluster.gateway_platform import GatewayProcess, Platform, served
from tests.integration.lane_world import Client
from tests.integration.node_process import NodeProcess
from tests.integration.replicator_process import cluster_processes, until_told
from tests.integration.usermanager_process import usermanager_process

mebibyte = 1 << 20


@asynccontextmanager
async def turmoil_platform(path: Path, address: DatabaseAddress) -> AsyncIterator[Platform]:
    """A platform in which nothing is amiss."""
    async with AsyncExitStack() as stack:
        entering = cluster_processes(path, address, replicators=2)
        cluster = await stack.enter_async_context(entering)
        usermanager = await stack.enter_async_context(usermanager_process(path / "data", address))
        await asyncio.gather(*(one.serve() for one in (*cluster.replicators, *cluster.nodes)))
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False))
        platform = Platform(path, address, cluster, usermanager, http)
        platform.gateways["fast"] = platform.gateway()
        await stack.enter_async_context(served(platform.fast))
        await cluster.formed()
        await platform.until_whole()
        yield platform


@asynccontextmanager
async def connected(gateway: GatewayProcess, count: int) -> AsyncIterator[list[Client]]:
    """So many connections, closed in the end."""
    async with AsyncExitStack() as stack:
        clients = [await gateway.connect() for _ in range(count)]
        for client in clients:
            stack.push_async_callback(client.close)
            # First: who has not read everything is not waited for.
            stack.callback(client.writer.transport.abort)
        yield clients


@asynccontextmanager
async def paused(*processes: NodeProcess) -> AsyncIterator[None]:
    """Neither running nor gone: connections stay, and nothing is said."""
    for process in processes:
        process.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.process.send_signal(signal.SIGCONT)


async def until_degraded(gateway: GatewayProcess, *parts: str) -> dict[str, str]:
    """Wait until these parts are amiss, and all the gateway is there for goes on; the reasons."""

    async def look() -> dict[str, str] | None:
        answer = await gateway.get("/ready")
        document = answer.json()
        if (answer.status_code, document["status"]) != (200, "degraded"):
            return None
        reasons: dict[str, str] = document["reasons"]
        return reasons if set(reasons) == set(parts) else None

    return await until_told(look, f"{gateway.node_id} is degraded by {parts}")


def resident_mib(process: NodeProcess) -> float:
    found: float = psutil.Process(process.process.pid).memory_info().rss / mebibyte
    return found


def descriptors(process: NodeProcess) -> int:
    found: int = psutil.Process(process.process.pid).num_fds()
    return found


def bugs(process: NodeProcess) -> list[str]:
    """Lines in which it says that it has met one."""
    marks = ("bug", "Traceback", "a request failed", "exception was never retrieved")
    return [line for line in process.said.splitlines() if any(mark in line for mark in marks)]
