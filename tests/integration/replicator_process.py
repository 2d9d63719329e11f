"""Real replicators in processes of their own, and the nodes of a cluster around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from services.runtime.database_url import DatabaseAddress
from tests.integration.node_process import NodeProcess, secret
from tests.waiting import patience_s, poll_s, wait_until

T = TypeVar("T")
replicator_command = ("-m", "services.replicator")


async def until_told(ask: Callable[[], Awaitable[T | None]], what: str) -> T:
    """As `wait_until`, of what has to be asked for. Who does not answer is asked again."""
    last: object = None
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    if (found := await ask()) is not None:
                        return found
                except httpx.TransportError as error:
                    last = error
                await asyncio.sleep(poll_s)
    except TimeoutError:
        raise AssertionError(f"waited {patience_s:g} s in vain until {what} ({last})") from None


async def until_metrics(process: NodeProcess, **expected: object) -> None:
    """Wait until /metrics shows these figures."""

    async def look() -> bool | None:
        found = await process.metrics()
        return all(found.get(name) == value for name, value in expected.items()) or None

    await until_told(look, f"{process.node_id} shows {expected}")


async def until_nothing_is_amiss(process: NodeProcess) -> None:
    """Wait until its /ready is so, and gives no reason to be less than that."""

    async def look() -> bool | None:
        answer = await process.get("/ready")
        return (answer.status_code, answer.json()["reasons"]) == (200, {}) or None

    await until_told(look, f"{process.node_id} has nothing amiss")


class ReplicatorProcess(NodeProcess):
    """A replicator on a directory: started, killed and started again, as a node is."""

    def __init__(
        self,
        data_dir: Path,
        database_url: str,
        replicator_id: str = "replicator-1",
        **environment: str,
    ) -> None:
        super().__init__(data_dir, replicator_id)
        self.command = replicator_command
        self.environment = {
            "DATA_DIR": str(data_dir),
            "REPLICATOR_ID": replicator_id,
            "REPLICATOR_PORT": str(self.port),
            "CLUSTER_SECRET": secret,
            "DATABASE_URL": database_url,
            **environment,
        }

    @property
    def directory(self) -> Path:
        return self.data_dir / "replicators" / self.node_id

    async def serve(self) -> None:
        """Begin a process, and wait until it answers HTTP."""
        await self.start()

        def listening() -> bool:
            over = self.process.returncode is not None
            assert not over, f"the replicator has ended:\n{self.said}"
            return " listening " in self.said

        await wait_until(listening, f"{self.node_id} listens")

    async def cluster(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get("/cluster")).json()
        return found

    async def readiness(self) -> tuple[int, dict[str, str]]:
        """The status of /ready, and its reasons."""
        answer = await self.get("/ready")
        return answer.status_code, answer.json()["reasons"]

    async def until(self, what: str, **expected: object) -> dict[str, Any]:
        """Wait until /cluster has these members."""

        async def look() -> dict[str, Any] | None:
            found = await self.cluster()
            fits = all(found.get(name) == value for name, value in expected.items())
            return found if fits else None

        return await until_told(look, f"{self.node_id} tells {what}: {expected}")


class ClusterProcesses:
    """Some replicators and some nodes, each of them started when a test says so."""

    def __init__(
        self, path: Path, database_url: str, *, nodes: int = 3, replicators: int = 1
    ) -> None:
        self.path = path
        size = {"CLUSTER_SIZE": str(nodes)}
        self.replicators = [
            ReplicatorProcess(path / "data", database_url, f"replicator-{number}", **size)
            for number in range(1, replicators + 1)
        ]
        self.nodes = [self.node(number) for number in range(1, nodes + 1)]

    def node(self, number: int, **environment: str) -> NodeProcess:
        urls = ",".join(replicator.url for replicator in self.replicators)
        return NodeProcess(
            self.path / "data", f"node-{number}", **{"REPLICATOR_URLS": urls, **environment}
        )

    @property
    def replicator(self) -> ReplicatorProcess:
        return self.replicators[0]

    async def serve(self, processes: Iterable[NodeProcess] | None = None) -> None:
        for process in processes or (*self.replicators, *self.nodes):
            await process.serve()

    async def formed(self) -> None:
        """Wait until every replicator and every node has the first map."""
        await self.at_epoch(1)

    async def at_epoch(self, epoch: int) -> None:
        for replicator in self.replicators:
            await replicator.until("which epoch it is in", epoch=epoch)
        for node in self.nodes:
            await until_metrics(node, epoch=epoch)

    async def clear(self) -> None:
        for process in (*self.nodes, *self.replicators):
            await process.clear()


@asynccontextmanager
async def cluster_processes(
    path: Path, address: DatabaseAddress, *, nodes: int = 3, replicators: int = 1
) -> AsyncIterator[ClusterProcesses]:
    """Processes that do not run yet; whatever runs in the end is killed."""
    (path / "data").mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        cluster = ClusterProcesses(path, address.url(), nodes=nodes, replicators=replicators)
        stack.push_async_callback(cluster.clear)
        yield cluster
