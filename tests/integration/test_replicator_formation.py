"""Real nodes and replicators on a real PostgreSQL: how they become a cluster, and stay one."""

from __future__ import annotations

from pathlib import Path

from services.runtime.database_url import DatabaseAddress
from tests.integration.replicator_process import cluster_processes, until_metrics


async def test_three_nodes_and_a_replicator_become_a_cluster(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.replicator.serve()
        status, reasons = await cluster.replicator.readiness()
        assert status == 503
        assert "3 of its 3 nodes have not registered" in reasons["cluster_map"]
        for missing, node in ((2, cluster.nodes[0]), (1, cluster.nodes[1])):
            await node.serve()
            await cluster.replicator.until("who is missing", state="forming", missing=missing)
        await cluster.nodes[2].serve()
        await cluster.formed()
        document = await cluster.replicator.until("that all is well", slots_without_quorum=0)
        assert document["state"] == "stable"
        assert document["replication_factor"] == 3
        for node in cluster.nodes:
            shown = document["nodes"][node.node_id]
            assert (shown["host"], shown["http_port"]) == ("127.0.0.1", node.port)
            assert shown["slots"] == 16384
            await until_metrics(node, catching_up=0)
        assert await cluster.replicator.readiness() == (200, {})
