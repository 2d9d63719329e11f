"""Node processes that were started alike, on one directory, as the replicas of a container are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.integration.node_process import NodeProcess, node_client


@asynccontextmanager
async def started_alike(nodes_dir: Path, count: int) -> AsyncIterator[list[NodeProcess]]:
    """So many nodes, all starting at the same moment. They are told no id, only the directory."""
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(1, count + 1):
            called = f"container-{number}"
            node = NodeProcess(nodes_dir, called, NODE_ID="", NODES_DIR=str(nodes_dir))
            stack.push_async_callback(node.clear)
            nodes.append(node)
        await asyncio.gather(*(node.serve() for node in nodes))
        yield nodes


async def id_of(node: NodeProcess) -> str:
    health = await node.get("/health")
    return str(health.json()["node_id"])


def directories_in(nodes_dir: Path) -> dict[str, str]:
    """By name, who each of them says it is."""
    return {path.name: (path / "store").read_text() for path in nodes_dir.iterdir()}


async def test_nodes_that_start_at_once_become_different_ones(tmp_path: Path) -> None:
    async with started_alike(tmp_path, 3) as nodes:
        ids = [await id_of(node) for node in nodes]
        directories = directories_in(tmp_path)
    assert sorted(ids) == ["node-1", "node-2", "node-3"]
    assert sorted(directories) == ["1", "2", "3"]
    assert len(set(directories.values())) == 3


async def test_the_place_of_one_that_was_killed_is_taken_up_with_what_it_holds(
    tmp_path: Path,
) -> None:
    async with started_alike(tmp_path, 2) as (one, other):
        lost = await id_of(one)
        async with node_client(one) as client:
            await client.put(b"greeting", b"hello")
            held = await client.read(b"greeting")
        await one.kill()
        async with started_alike(tmp_path, 1) as (successor,):
            assert await id_of(successor) == lost
            assert await id_of(other) != lost
            async with node_client(successor) as client:
                assert await client.read(b"greeting") == held
    assert b"hello" in held[1]
