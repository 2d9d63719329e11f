"""Two processes on copies of one directory: the second takes no place while the first has it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from services.core.operations import CHANGED
from services.runtime.database_url import DatabaseAddress
from tests.free_ports import free_port
from tests.integration.node_process import NodeProcess
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
    until_told,
)
from tests.integration.test_replicator_formation import put, until_states
from tests.waiting import wait_until

# How soon a node that moved is followed.
moved_s_max: Final = 2.0


async def readiness(node: NodeProcess) -> dict[str, Any]:
    found: dict[str, Any] = (await node.get("/ready")).json()
    return found


async def until_ready(node: NodeProcess) -> None:
    async def look() -> bool | None:
        return (await readiness(node))["status"] == "ready" or None

    await until_told(look, f"{node.node_id} is ready")


def copied(cluster: ClusterProcesses, original: NodeProcess) -> NodeProcess:
    """A node on a copy of this one's directory, made while it runs."""
    copy = NodeProcess(
        cluster.path / "copied",
        original.node_id,
        REPLICATOR_URLS=original.environment["REPLICATOR_URLS"],
    )
    shutil.copytree(original.directory, copy.directory)
    return copy


async def live_cluster(cluster: ClusterProcesses) -> None:
    await cluster.serve()
    await cluster.formed()
    for node in cluster.nodes:
        await until_metrics(node, catching_up=0)
        await until_ready(node)
    await until_states(cluster, "live", "live", "live")


async def test_a_process_on_a_copy_takes_no_place_until_the_original_is_gone(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address, replicators=2) as cluster:
        await live_cluster(cluster)
        original = cluster.nodes[0]
        copy = copied(cluster, original)
        try:
            await copy.serve()
            await wait_until(lambda: "not registered yet" in copy.said, "the copy waits")
            told = await readiness(copy)
            assert told["status"] == "degraded"
            link_port = original.port + 1000
            assert f"is live at 127.0.0.1 port {link_port}" in told["reasons"]["cluster"]
            assert "stop the other one" in told["reasons"]["cluster"]
            await asyncio.sleep(1.0)
            assert (await cluster.replicator.cluster())["epoch"] == 1
            await until_states(cluster, "live", "live", "live")
            assert (await readiness(original))["status"] == "ready"
            assert await put(cluster, b"value") == CHANGED
            await original.kill()
            await cluster.replicator.until("that the copy was taken", epoch=3)
            await until_ready(copy)
            # And the other way round.
            await original.serve()
            await wait_until(lambda: "not registered yet" in original.said, "the original waits")
            told = await readiness(original)
            assert f"is live at 127.0.0.1 port {copy.port + 1000}" in told["reasons"]["cluster"]
        finally:
            await copy.clear()
        await cluster.replicator.until("that the original is back", epoch=5)
        await until_ready(original)


@pytest.mark.parametrize("end", ["kill", "terminate"])
async def test_a_node_that_restarts_at_another_port_is_followed_soon(
    tmp_path: Path, database_address: DatabaseAddress, end: str
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await live_cluster(cluster)
        mover = cluster.nodes[2]
        await (mover.kill() if end == "kill" else mover.terminate())
        mover.port = free_port()
        mover.environment["DHTNODE_PORT"] = str(mover.port)
        await mover.serve()
        async with asyncio.timeout(moved_s_max):
            await cluster.replicator.until("where the node is", epoch=3)
        await until_states(cluster, "live", "live", "live")
        await until_ready(mover)


async def test_a_node_that_only_names_its_address_otherwise_is_followed(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await live_cluster(cluster)
        renamed = cluster.nodes[0]
        await renamed.terminate()
        renamed.environment["ADVERTISE_HOST"] = "localhost"
        await renamed.serve()
        await cluster.replicator.until("how the node names itself", epoch=3)
        await until_ready(renamed)
