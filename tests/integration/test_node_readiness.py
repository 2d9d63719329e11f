"""A node that nobody can use says so on /ready, and why; the replicator's log says who it was."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.runtime.settings import link_port_offset
from tests.integration.node_process import NodeProcess
from tests.integration.replicator_process import ReplicatorProcess, until_told
from tests.waiting import wait_until

nowhere = "postgresql://nobody@127.0.0.1:9/unused"


async def test_a_node_with_another_secret_is_degraded_and_named_where_it_is_refused(
    tmp_path: Path,
) -> None:
    other = "quite another secret, of 32 bytes and more"
    replicator = ReplicatorProcess(tmp_path / "data", nowhere)
    node = NodeProcess(
        tmp_path / "data", "node-7", REPLICATOR_URLS=replicator.url, CLUSTER_SECRET=other
    )
    try:
        await replicator.serve()
        await node.serve()

        async def reason() -> str | None:
            answer = await node.get("/ready")
            assert answer.status_code == 200
            assert answer.json()["status"] == "degraded"
            told: str = answer.json()["reasons"]["cluster"]
            return told if "CLUSTER_SECRET" in told else None

        told = await until_told(reason, "the node tells why it is not used")
        assert told.startswith("no replicator has taken this node yet; 127.0.0.1 port ")
        assert "CLUSTER_SECRET differs between the two ends" in told
        line = await wait_until(lambda: refusal_in(replicator), "the replicator names the node")
        assert "peer='node node-7'" in line
        assert "host=127.0.0.1" in line
        _, stranger = await asyncio.open_connection("127.0.0.1", replicator.port + link_port_offset)
        stranger.write(b"GET / HTTP/1.1\r\n\r\n")
        line = await wait_until(lambda: refusal_in(replicator, "bytes"), "it names the stranger")
        assert "host=127.0.0.1" in line
        assert "peer=" not in line
        stranger.close()
    finally:
        await node.clear()
        await replicator.clear()


def refusal_in(replicator: ReplicatorProcess, part: str = "CLUSTER_SECRET") -> str | None:
    lines = [line for line in replicator.said.splitlines() if "link refused" in line]
    return next((line for line in lines if part in line), None)


async def test_a_node_of_a_cluster_that_is_forming_says_how_many_are_missing_or_who_is_away(
    tmp_path: Path,
) -> None:
    replicator = ReplicatorProcess(tmp_path / "data", nowhere)
    node = NodeProcess(tmp_path / "data", REPLICATOR_URLS=replicator.url)
    try:
        await replicator.serve()
        await node.serve()

        async def reason() -> str | None:
            told: str = (await node.get("/ready")).json()["reasons"]["cluster"]
            return told if "PostgreSQL" in told else None

        told = await until_told(reason, "the node tells why it is not used")
        assert told.startswith("no replicator has taken this node: replicator-1: PostgreSQL has")
    finally:
        await node.clear()
        await replicator.clear()
