"""The gateway's JSON routes in this process, over a cluster of real processes.

async with gateway_desk(cluster, path) as desk:
    ada = desk.client(tenant=7)
    await ada.get("/v1/kv", params={"prefix": "a"})
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware

from services.core.key_checks import Scope, scopes_all
from services.core.operations import batch_bytes_max
from services.core.plans import Limits
from services.gateway.cluster import Cluster, Doors
from services.gateway.cors import Cors, CorsAnswers, Preflights
from services.gateway.json_api import JsonApi, Surroundings
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import SystemClock
from services.runtime.console_requests import ConsoleRequests
from services.runtime.database_url import DatabaseAddress
from services.runtime.disk import SystemDisk
from services.runtime.http import application
from services.runtime.key_access import KeyAccess
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness
from services.runtime.signing import Verifier
from tests.integration.database import SharedServer, fresh_database
from tests.integration.node_process import secret
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
)
from tests.known_keys import Counted, KnownKeys, plenty
from tests.waiting import wait_until

nobody_there = "http://127.0.0.1:9"


class GatewayDesk:
    def __init__(self, cluster: Cluster, keygen_url: str) -> None:
        clock = SystemClock()
        self.cluster = cluster
        self.keys = KnownKeys(clock)
        self.counted = Counted()
        verifier = Verifier(secret, clock)
        cors = Cors(["https://app.example"])
        console = ConsoleRequests(verifier, self.keys)
        self.api = JsonApi(cluster, Surroundings(secret, keygen_url, None), clock)
        self.app: Starlette = application(
            "gateway",
            self.api.routes(
                KeyAccess(self.keys, console, self.counted, clock), verifier, ClientAddresses()
            ),
            metrics=Metrics(),
            readiness=Readiness(),
            middleware=[Middleware(Preflights, cors=cors)],
            body_bytes_max=batch_bytes_max,
        )
        self.app.add_middleware(CorsAnswers, cors=cors)

    def client(
        self,
        tenant: int,
        scopes: Collection[Scope] = scopes_all,
        *,
        prefix: bytes = b"",
        limits: Limits = plenty,
        namespace: str = "default",
    ) -> httpx.AsyncClient:
        """Of a new API key of this tenant."""
        key = self.keys.add(tenant, scopes, prefix=prefix, limits=limits)
        return self.stranger(**{"X-API-Key": key, "X-Namespace": namespace})

    def stranger(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(
            transport=transport, base_url="http://gateway", headers=headers, timeout=30
        )


@asynccontextmanager
async def gateway_desk(
    cluster: ClusterProcesses, path: Path, keygen_url: str = nobody_there
) -> AsyncIterator[GatewayDesk]:
    """Once every node can be asked."""
    urls = tuple(replicator.url for replicator in cluster.replicators)
    seen = Cluster(Doors("gateway-1", secret, urls), SystemDisk(), path / "gateway", SystemClock())
    async with AsyncExitStack() as stack:
        seen.open()
        stack.push_async_callback(seen.close, 0.5)
        following = asyncio.create_task(seen.follow())
        stack.callback(following.cancel)
        desk = GatewayDesk(seen, keygen_url)
        stack.push_async_callback(desk.api.close)
        await wait_until(
            lambda: (
                len(seen.fleet.nodes) == len(cluster.nodes)
                and all(not node.rank for node in seen.fleet.nodes.values())
            ),
            "the gateway can ask every node",
        )
        yield desk


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    found: dict[str, Any] = answer.json()
    assert found["status"] == answer.status_code
    return answer.status_code, found["code"]


@asynccontextmanager
async def running_cluster(path: Path, address: DatabaseAddress) -> AsyncIterator[ClusterProcesses]:
    """Three nodes and a replicator that take everything."""
    async with cluster_processes(path, address) as cluster:
        await cluster.serve()
        await cluster.formed()
        for node in cluster.nodes:
            await until_metrics(node, catching_up=0)
        await until_metrics(cluster.replicator, nodes_live=3)
        yield cluster


@asynccontextmanager
async def whole_desk(
    path: Path, server: SharedServer, template: str, keygen_url: str = nobody_there
) -> AsyncIterator[GatewayDesk]:
    """A desk on a cluster of its own, for the tests of a whole file."""
    async with (
        fresh_database(server, template) as address,
        running_cluster(path, address) as cluster,
        gateway_desk(cluster, path, keygen_url) as desk,
    ):
        yield desk
