"""Closed accounts, what they had stored in a real cluster, and workers that delete it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg

from services.core.key import namespace_prefix, tenant_prefix
from services.core.messages import COUNT
from services.core.namespaces import Count
from services.core.operations import BATCH, CHANGED, PUT, decode_batch, encode_batch, encode_put
from services.core.packed_bodies import decode_body
from services.core.wire import OK, Role
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.link import Station
from services.runtime.metrics import Metrics
from services.runtime.opening import Identity
from services.runtime.postgres import Database
from services.runtime.replicators import Replicators, links_to_replicators, only_replicators
from services.usermanager.audit import Audit
from services.usermanager.deletion import Deletion, Pace
from services.usermanager.deletion_store import DeletionStore
from services.usermanager.tenant_data import TenantData
from tests.integration.node_process import NodeClient, NodeProcess, node_client, secret
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
    until_told,
)

# As the default, but that nobody has to wait for gateways to forget what they know.
brisk = Pace(last_pass_s=0.0, lease_s=5.0, look_s=0.05, pause_s_min=0.05, pause_s_max=0.2)
Row = Mapping[str, Any]


class Desk:
    """A database in which accounts are closed, a cluster in which they had stored something, and
    workers that delete it, each with connections and links of its own."""

    def __init__(self, address: DatabaseAddress, cluster: ClusterProcesses) -> None:
        self.address = address
        self.cluster = cluster
        self.connection: asyncpg.Connection

    async def close(self, *tenants: int) -> None:
        """As closing an account does it."""
        for tenant in tenants:
            await self.connection.execute(
                "INSERT INTO closed_accounts (user_id) VALUES ($1)", tenant
            )

    async def row(self, tenant: int) -> Row:
        row: Row = await self.connection.fetchrow(
            "SELECT *, due_at - closed_at AS due_after FROM closed_accounts WHERE user_id = $1",
            tenant,
        )
        return row

    async def until_row(self, tenant: int, what: str, **expected: object) -> Row:
        async def look() -> Row | None:
            row = await self.row(tenant)
            return row if all(row[name] == value for name, value in expected.items()) else None

        return await until_told(look, what)

    async def until_done(self, *tenants: int) -> list[Row]:
        async def look() -> list[Row] | None:
            rows = [await self.row(tenant) for tenant in tenants]
            return rows if all(row["done_at"] is not None for row in rows) else None

        return await until_told(look, f"the data of {tenants} is deleted")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[NodeClient]:
        async with node_client(self.cluster.replicator, "gateway-1", Role.GATEWAY) as client:
            yield client

    async def fill(self, tenant: int, sizes: Mapping[bytes, int]) -> int:
        """So many keys in each namespace; how many in all."""
        keys = [
            namespace_prefix(tenant, name) + b"key-%05d" % number
            for name, size in sizes.items()
            for number in range(size)
        ]
        async with self.client() as client:
            for start in range(0, len(keys), 1_000):
                await put_all(client, keys[start : start + 1_000])
        return len(keys)

    async def left(self, tenant: int, node: NodeProcess | None = None) -> Count:
        async with node_client(node or self.cluster.nodes[0], "tool", Role.TOOL) as client:
            kind, body = await client.ask(COUNT, tenant_prefix(tenant))
        assert kind == OK
        return decode_body(body, Count)

    @asynccontextmanager
    async def worker(self, pace: Pace = brisk) -> AsyncIterator[Worker]:
        async with AsyncExitStack() as stack:
            yield await Worker.start(self, pace, stack)


class Worker:
    """What a user manager has for this. `die` ends it in the middle of whatever it does."""

    def __init__(self, desk: Desk, pace: Pace) -> None:
        station = Station(Identity(Role.USERMANAGER, "usermanager-1", secret))
        urls = [replicator.url for replicator in desk.cluster.replicators]
        links = links_to_replicators(urls, station, admit=only_replicators)
        draw = random.Random(1)
        self.database = Database(desk.address)
        self.replicators = Replicators(links, draw)
        self.store = DeletionStore(self.database, Audit(self.database))
        self.deletion = Deletion(
            self.store, TenantData(self.replicators), SystemClock(), draw, pace
        )
        self.metrics = Metrics()
        self.deletion.add_to(self.metrics)
        self._task: asyncio.Task[None]

    @classmethod
    async def start(cls, desk: Desk, pace: Pace, stack: AsyncExitStack) -> Worker:
        worker = cls(desk, pace)
        await stack.enter_async_context(worker.database)
        worker.replicators.start()
        stack.push_async_callback(worker.replicators.close)
        worker._task = asyncio.create_task(worker.deletion.run())
        stack.push_async_callback(worker.die)
        return worker

    @property
    def running(self) -> bool:
        return not self._task.done()

    async def die(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


async def put_all(client: NodeClient, keys: Iterable[bytes]) -> None:
    puts = [(PUT, encode_put(key, b"value")) for key in keys]
    kind, body = await client.ask(BATCH, encode_batch(puts))
    assert kind == OK
    assert {kind for kind, _ in decode_batch(body)} == {CHANGED}


@asynccontextmanager
async def running(path: Path, address: DatabaseAddress, *, nodes: int) -> AsyncIterator[Desk]:
    async with cluster_processes(path, address, nodes=nodes) as cluster:
        await cluster.serve()
        await cluster.formed()
        for node in cluster.nodes:
            await until_metrics(node, catching_up=0)
        await until_metrics(cluster.replicator, nodes_live=nodes)
        desk = Desk(address, cluster)
        desk.connection = await asyncpg.connect(**address.asyncpg())
        try:
            yield desk
        finally:
            await desk.connection.close()
