"""Real nodes that differ become equal, where hints overflowed, or were lost, or nobody knows."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.operations import CHANGED, DELETE, PUT, encode_put
from services.core.wire import Role
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.cluster.replica_view import are_equal
from tests.integration.node_process import node_client, prefix, secret
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
    until_told,
)
from tests.plain_http import plain_client

# More than the least that HINT_BYTES_MAX can be set to.
count = 3_000
value_bytes = 600
at_once = 200


def key(number: int) -> bytes:
    return prefix + b"key-%d" % number


@pytest.fixture
async def cluster(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[ClusterProcesses]:
    """Three nodes and one replicator, which keeps few hints."""
    async with cluster_processes(tmp_path, database_address) as cluster:
        cluster.replicator.environment["HINT_BYTES_MAX"] = "1MiB"
        cluster.replicator.environment["REPAIR_PASS_S"] = "604800"
        await cluster.serve()
        await cluster.formed()
        await well(cluster)
        yield cluster


async def well(cluster: ClusterProcesses) -> None:
    await until_metrics(cluster.replicator, nodes_live=3)
    for node in cluster.nodes:
        await until_metrics(node, catching_up=0)


async def put(cluster: ClusterProcesses, numbers: range, content: bytes) -> None:
    """All are acknowledged."""
    async with node_client(cluster.replicator, "gateway-1", Role.GATEWAY) as client:
        for first in range(0, len(numbers), at_once):
            answers = await asyncio.gather(
                *(
                    client.ask(PUT, encode_put(key(number), content * value_bytes))
                    for number in numbers[first : first + at_once]
                )
            )
            assert {kind for kind, _ in answers} == {CHANGED}


async def delete(cluster: ClusterProcesses, numbers: range) -> None:
    async with node_client(cluster.replicator, "gateway-1", Role.GATEWAY) as client:
        answers = await asyncio.gather(*(client.ask(DELETE, key(number)) for number in numbers))
    assert {kind for kind, _ in answers} == {CHANGED}


async def test_a_node_that_missed_more_than_hints_hold_is_equal_before_it_has_caught_up(
    cluster: ClusterProcesses,
) -> None:
    await put(cluster, range(count), b"a")
    away = cluster.nodes[2]
    await away.kill()
    await until_metrics(cluster.replicator, nodes_live=2)
    await put(cluster, range(500, count), b"b")
    await delete(cluster, range(100))
    found = await cluster.replicator.metrics()
    assert found["hints_dropped.bytes"] > 0
    shown = (await cluster.replicator.cluster())["nodes"]["node-3"]
    assert shown["overflowed"] is True
    await away.serve()
    await until_metrics(away, catching_up=0)
    found = await cluster.replicator.metrics()
    assert found["repair_records_sent"] > 0
    assert await are_equal(cluster.nodes), "it was told that it has caught up, and lacks something"
    shown = (await cluster.replicator.cluster())["nodes"]["node-3"]
    assert (shown["overflowed"], shown["state"]) == (False, "live")
    assert cluster.replicator.said.count("replicas were compared") == 1


async def test_a_replicator_that_lost_its_directory_has_all_replicas_compared(
    cluster: ClusterProcesses,
) -> None:
    away = cluster.nodes[0]
    await away.kill()
    await until_metrics(cluster.replicator, nodes_live=2)
    await put(cluster, range(200), b"a")
    await cluster.replicator.kill()
    shutil.rmtree(cluster.replicator.directory)
    await asyncio.gather(cluster.replicator.serve(), away.serve())
    await well(cluster)
    assert await are_equal(cluster.nodes)
    assert (await cluster.replicator.metrics())["repair_records_sent"] >= 200
    assert not any((await cluster.replicator.cluster())["repair"]["owing"].values())


async def test_a_regular_pass_finds_what_nobody_knows_of(cluster: ClusterProcesses) -> None:
    cluster.replicator.environment["REPAIR_PASS_S"] = "5"
    await cluster.replicator.terminate()
    await cluster.replicator.serve()
    await well(cluster)
    await put(cluster, range(300), b"a")
    away = cluster.nodes[1]
    await away.kill()
    await until_metrics(cluster.replicator, nodes_live=2)
    await put(cluster, range(150), b"b")
    await cluster.replicator.kill()
    shutil.rmtree(cluster.replicator.directory / "hints")
    await asyncio.gather(cluster.replicator.serve(), away.serve())
    await well(cluster)

    async def equal() -> bool | None:
        return await are_equal(cluster.nodes) or None

    await until_told(equal, "a pass has found it")


async def order(cluster: ClusterProcesses) -> None:
    """Have everything compared, and wait for the end of that."""
    auth = SignedAuth(Signer(secret, SystemClock()))
    async with plain_client(auth=auth, timeout=10) as client:
        answer = await client.post(cluster.replicator.url + "/repair", json={"slots": None})
    assert answer.status_code == 202

    async def done() -> bool | None:
        told = (await cluster.replicator.get("/repair")).json()
        return told["state"] == "done" or None

    await until_told(done, "all is compared")


async def test_deleted_keys_wait_for_the_node_that_is_away_and_are_gone_after_it(
    cluster: ClusterProcesses,
) -> None:
    await put(cluster, range(300), b"a")
    await delete(cluster, range(200))
    away = cluster.nodes[2]
    await away.kill()
    await until_metrics(cluster.replicator, nodes_live=2)
    await order(cluster)
    found = await cluster.replicator.metrics()
    assert found["tombstones_held"] == 200

    async def blocked() -> bool | None:
        return (await cluster.replicator.metrics())["collection_blocked"] > 150 or None

    await until_told(blocked, "it is known how many slots wait")
    assert (await cluster.replicator.metrics())["collection_tombstones"] == 0
    await away.serve()
    await well(cluster)

    async def collected() -> bool | None:
        return (await cluster.replicator.metrics())["collection_tombstones"] == 200 or None

    await until_told(collected, "all that was deleted is gone")
    await order(cluster)
    found = await cluster.replicator.metrics()
    assert (found["tombstones_held"], found["collection_blocked"]) == (0, 0)
    assert await are_equal(cluster.nodes)
    assert {(await node.metrics())["key_count"] for node in cluster.nodes} == {100}
