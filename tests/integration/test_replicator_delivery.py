"""What a node misses, a real replicator keeps and brings it; and the figures tell the truth."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core import messages as m
from services.core.operations import (
    BATCH,
    CHANGE,
    CHANGED,
    PUT,
    Action,
    ChangeRequest,
    decode_batch,
    encode_batch,
    encode_change,
    encode_put,
)
from services.core.record import value
from services.core.wire import OK, Role
from services.runtime.database_url import DatabaseAddress
from tests.integration.node_process import NodeProcess, node_client, prefix
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
    until_told,
)

count = 200


def key(number: int) -> bytes:
    return prefix + b"key-%d" % number


@pytest.fixture
async def cluster(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[ClusterProcesses]:
    """Three nodes that have caught up with their replicator."""
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        for node in cluster.nodes:
            await until_metrics(node, catching_up=0)
        await until_metrics(cluster.replicator, nodes_live=3)
        yield cluster


async def put(cluster: ClusterProcesses, content: bytes) -> None:
    """Every key anew; all are acknowledged."""
    async with node_client(cluster.replicator, "gateway-1", Role.GATEWAY) as client:
        answers = await asyncio.gather(
            *(client.ask(PUT, encode_put(key(number), content)) for number in range(count))
        )
    assert [kind for kind, _ in answers] == [CHANGED] * count


async def held(node: NodeProcess) -> set[bytes]:
    """All values that this node has of our keys."""
    async with node_client(node, "tool", Role.TOOL) as client:
        kind, body = await client.ask(m.GET_MANY, m.encode_get_many(list(map(key, range(count)))))
    assert kind == OK
    return {value(record) if record else b"" for record in m.decode_records(body)}


async def until_held(node: NodeProcess, content: bytes) -> None:
    async def look() -> bool | None:
        return await held(node) == {content} or None

    await until_told(look, f"{node.node_id} has {content!r} everywhere")


async def test_the_figures_are_those_of_what_was_done(cluster: ClusterProcesses) -> None:
    await put(cluster, b"first")
    for node in cluster.nodes:
        await until_held(node, b"first")
        assert (await node.metrics())["replica_writes"] == count
    found = await cluster.replicator.metrics()
    assert found["total_replications"] == count
    assert found["successful_replicas"] == 3 * count
    assert found["failed_replicas"] == found["queue_size"] == found["retries_in_progress"] == 0
    assert found["max_replication_lag_ms"] == 0
    assert 0 < found["average_ack_time_ms"] < 2_000
    assert found["ack_seconds_count"] == found["replication_seconds_count"] == count
    health = (await cluster.replicator.get("/health")).json()
    assert health == {"status": "healthy", "service": "replicator", "queue_size": 0}
    text = (await cluster.replicator.get("/metrics", Accept="text/plain")).text
    assert f"ydht_total_replications_total {float(count)}" in text
    assert f'ydht_ack_seconds_bucket{{le="+Inf"}} {float(count)}' in text


async def test_a_node_that_was_away_gets_what_it_missed_and_is_told_so(
    cluster: ClusterProcesses,
) -> None:
    away = cluster.nodes[2]
    await away.kill()
    await until_metrics(cluster.replicator, nodes_live=2)
    await put(cluster, b"while away")
    found = await cluster.replicator.metrics()
    assert found["hints_kept"] == found["failed_replicas"] == count
    assert found["successful_replicas"] == 2 * count
    assert found["max_replication_lag_ms"] > 0
    shown = (await cluster.replicator.cluster())["nodes"]["node-3"]
    assert (shown["state"], shown["hints"]) == ("unreachable", count)
    assert shown["lag_ms"] > 0
    # And the hints outlive the replicator.
    await cluster.replicator.kill()
    await cluster.replicator.serve()
    await away.serve()
    await until_held(away, b"while away")
    await until_metrics(away, catching_up=0)
    await until_metrics(cluster.replicator, hints_delivered=count, max_replication_lag_ms=0)

    async def live() -> bool | None:
        shown = (await cluster.replicator.cluster())["nodes"]["node-3"]
        return (shown["state"], shown["hints"], shown["lag_ms"]) == ("live", 0, 0) or None

    await until_told(live, "node-3 is like the others")


async def test_the_figures_are_true_of_all_kinds_of_traffic_with_a_node_away(
    cluster: ClusterProcesses,
) -> None:
    """Counted here by what was asked for, and there by what became of it."""
    strong = [
        (CHANGE, encode_change(ChangeRequest(Action.PUT, prefix + b"strong-%d" % number, b"x")))
        for number in range(count)
    ]
    counted = [(CHANGE, encode_change(ChangeRequest(Action.INCREMENT, prefix + b"counter", by=1)))]
    eventual = [(PUT, encode_put(key(number), b"x")) for number in range(count)]
    away = cluster.nodes[2]
    asked = 0
    for gone in (False, True):
        if gone:
            await away.kill()
            await until_metrics(cluster.replicator, nodes_live=2)
        async with node_client(cluster.replicator, "gateway-1", Role.GATEWAY) as client:
            singly = [*strong, *counted * 20, *eventual]
            answers = await asyncio.gather(*(client.ask(*request) for request in singly))
            kind, body = await client.ask(BATCH, encode_batch([*eventual, *strong]))
            assert kind == OK
            answers += decode_batch(body)
            assert {kind for kind, _ in answers} == {CHANGED}
            asked += len(answers)
        missed = len(answers) if gone else 0
        await until_metrics(
            cluster.replicator,
            total_replications=asked,
            successful_replicas=3 * asked - missed,
            failed_replicas=missed,
            hints_kept=missed,
            queue_size=0,
        )
    await away.serve()
    await until_metrics(
        cluster.replicator,
        hints_delivered=missed,
        total_replications=asked,
        successful_replicas=3 * asked,
        failed_replicas=missed,
    )


async def test_requests_to_a_node_that_stalls_are_under_way(cluster: ClusterProcesses) -> None:
    stalled = cluster.nodes[2]
    stalled.process.send_signal(signal.SIGSTOP)
    async with node_client(cluster.replicator, "gateway-1", Role.GATEWAY) as client:
        puts = [
            client.ask(
                CHANGE, encode_change(ChangeRequest(Action.PUT, prefix + b"s-%d" % number, b"x"))
            )
            for number in range(10)
        ]
        assert {kind for kind, _ in await asyncio.gather(*puts)} == {CHANGED}
        found = await cluster.replicator.metrics()
        # Each ACCEPT, and some PREPAREs.
        assert 10 <= found["queue_size"] <= 25
        assert found["total_replications"] == 10
        assert found["successful_replicas"] == 20
    stalled.process.send_signal(signal.SIGCONT)
    await until_metrics(cluster.replicator, queue_size=0, successful_replicas=30)


async def test_what_a_stalled_node_did_not_take_outlives_an_orderly_stop_of_the_replicator(
    cluster: ClusterProcesses,
) -> None:
    stalled = cluster.nodes[2]
    stalled.process.send_signal(signal.SIGSTOP)
    await put(cluster, b"while stalled")
    assert await cluster.replicator.terminate() == 0
    assert "not closed within" not in cluster.replicator.said
    stalled.process.send_signal(signal.SIGKILL)
    await stalled.process.wait()
    await stalled.serve()
    assert await held(stalled) == {b""}
    await cluster.replicator.serve()
    await until_held(stalled, b"while stalled")
