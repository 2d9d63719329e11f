"""Real nodes and replicators on a real PostgreSQL: how they become a cluster, and stay one."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from services.core import messages as m
from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError
from services.core.operations import CHANGED, FETCH, MAP, PUT, REFUSED, decode_refused, encode_put
from services.core.packed_bodies import encode_body
from services.core.wire import OK, Role
from services.runtime.database_url import DatabaseAddress
from services.runtime.link import Link, Station
from services.runtime.opening import Identity
from services.runtime.settings import link_port_offset
from tests.integration.node_process import (
    NodeClient,
    NodeProcess,
    Stamps,
    node_client,
    prefix,
    secret,
)
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
    until_told,
)
from tests.integration.test_postgres_pool import Proxy
from tests.waiting import wait_until

key = prefix + b"key"


@asynccontextmanager
async def as_node(
    process: NodeProcess, node_id: str, store_id: str, role: Role = Role.NODE
) -> AsyncIterator[NodeClient]:
    """A link of somebody who proves to be this node, whatever he then says of himself."""
    identity = Identity(role, node_id, secret, store_id=bytes.fromhex(store_id))
    link = Link(Station(identity), "127.0.0.1", process.port + link_port_offset)
    link.start()
    try:
        await wait_until(lambda: link.connected, f"{node_id} has a link to {process.node_id}")
        yield NodeClient(link, Stamps())
    finally:
        await link.close()


def store_of(node: NodeProcess) -> str:
    found: str = json.loads((node.directory / "store").read_bytes())["store_id"]
    return found


async def put(cluster: ClusterProcesses, content: bytes) -> int:
    async with node_client(cluster.replicator, "gateway-1", Role.GATEWAY) as client:
        kind, _ = await client.ask(PUT, encode_put(key, content))
        return kind


async def fetched(cluster: ClusterProcesses) -> bytes:
    async with node_client(cluster.replicator, "gateway-1", Role.GATEWAY) as client:
        kind, record = await client.ask(FETCH, key)
        assert kind == OK
        return record


async def test_three_nodes_and_a_replicator_become_a_cluster(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        replicator = cluster.replicator
        await replicator.serve()
        status, reasons = await replicator.readiness()
        assert status == 503
        assert "3 of its 3 nodes have not registered" in reasons["cluster_map"]
        for missing, node in ((2, cluster.nodes[0]), (1, cluster.nodes[1])):
            await node.serve()
            await replicator.until("who is missing", state="forming", missing=missing)
            async with node_client(replicator, "gateway-1", Role.GATEWAY) as gateway:
                assert await gateway.ask(MAP) == (OK, b"")
                kind, body = await gateway.ask(PUT, encode_put(key, b"too early"))
                code, text = decode_refused(body)
                assert (kind, code) == (REFUSED, "cluster_forming")
                assert f"{missing} of its 3 nodes have not registered yet" in text
        await cluster.nodes[2].serve()
        await cluster.formed()
        document = await replicator.until("that all is well", slots_without_quorum=0)
        assert (document["state"], document["replication_factor"]) == ("stable", 3)
        for node in cluster.nodes:
            shown = document["nodes"][node.node_id]
            assert (shown["host"], shown["http_port"]) == ("127.0.0.1", node.port)
            assert (shown["slots"], shown["link_error"]) == (16384, None)
            await until_metrics(node, catching_up=0)
        await until_states(cluster, "live", "live", "live")
        assert await replicator.readiness() == (200, {})
        assert await put(cluster, b"value") == CHANGED
        assert (await fetched(cluster)).endswith(b"value")


async def until_states(cluster: ClusterProcesses, *states: str) -> dict[str, Any]:
    """Wait until the nodes, in order, are as expected; what /cluster then says."""

    async def look() -> dict[str, Any] | None:
        document = await cluster.replicator.cluster()
        found = tuple(node["state"] for node in document["nodes"].values())
        return document if found == states else None

    return await until_told(look, f"the nodes are {states}")


async def test_nodes_that_were_there_first_form_a_cluster_over_two_replicators(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address, replicators=2) as cluster:
        await cluster.serve(cluster.nodes)
        for node in cluster.nodes:
            assert (await node.get("/ready")).status_code == 200
        await cluster.serve(cluster.replicators)
        await cluster.formed()
        first, second = [await replicator.cluster() for replicator in cluster.replicators]
        for document in (first, second):
            for shown in document["nodes"].values():
                # Each replicator's own: what it sees, and since when.
                del shown["state"], shown["since"], shown["link_error"]
        assert first["nodes"] == second["nodes"]
        for node in cluster.nodes:
            await until_metrics(node, catching_up=0)
        stampers = {
            (process.directory / "stamper").read_text().split()[3]
            for process in cluster.replicators
        }
        assert len(stampers) == 2


async def test_a_node_that_lost_its_directory_and_a_fourth_node_are_refused(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        wiped, fourth = cluster.nodes[1], cluster.node(4)
        await wiped.terminate()
        shutil.rmtree(wiped.directory)
        await wiped.start()
        assert await wiped.ended() == FatalError.exit_code
        last = wiped.said.splitlines()[-1]
        assert "the cluster refuses this node: node 'node-2' comes with store" in last
        assert "either it has lost its directory" in last
        assert "or another process is that node" in last
        await fourth.start()
        assert await fourth.ended() == FatalError.exit_code
        last = fourth.said.splitlines()[-1]
        assert "node 'node-4' is none of the cluster's" in last
        assert "joining a formed cluster is not available" in last
        await until_states(cluster, "live", "unreachable", "live")
        assert await put(cluster, b"with two") == CHANGED


async def test_everything_comes_back_from_its_directories_without_postgresql(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        assert await put(cluster, b"before") == CHANGED
        replicator = cluster.replicator
        stamper = (replicator.directory / "stamper").read_text().split()[3]
        for process in (replicator, *cluster.nodes):
            assert await process.terminate() == 0
        replicator.environment["DATABASE_URL"] = f"postgresql://ada@/shop?host={tmp_path}"
        await cluster.serve()
        await cluster.formed()
        await until_states(cluster, "live", "live", "live")
        status, reasons = await replicator.readiness()
        assert status == 200
        assert list(reasons) == ["database"]
        assert "PostgreSQL cannot be reached" in reasons["database"]
        assert (replicator.directory / "stamper").read_text().split()[3] == stamper
        assert (await fetched(cluster)).endswith(b"before")
        assert await put(cluster, b"after") == CHANGED
        assert (await fetched(cluster)).endswith(b"after")
        assert "registered " in cluster.nodes[0].said


async def test_a_replicator_whose_directory_is_new_and_whose_name_is_not_says_what_that_means(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        replicator = cluster.replicator
        warning = "this directory is new, and the replicator of this name is not"
        for lost in (False, False, True):
            if lost:
                shutil.rmtree(replicator.directory)
            await replicator.serve()
            await wait_until(lambda: " coordinating " in replicator.said, "it has its stamper")
            assert replicator.said.count(warning) == lost
            assert await replicator.terminate() == 0
        [line] = [line for line in replicator.said.splitlines() if warning in line]
        for part in (str(replicator.directory), "hints", "same REPLICATOR_ID"):
            assert part in line


async def test_a_replicator_that_starts_without_postgresql_waits_for_it_and_says_so(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    proxy = Proxy(database_address)
    proxy.cut_before = lambda _: True
    address = replace(database_address, host=await proxy.start(tmp_path))
    async with cluster_processes(tmp_path, address) as cluster:
        await cluster.serve()
        replicator = cluster.replicator
        status, reasons = await replicator.readiness()
        assert status == 503
        assert reasons["cluster_map"].startswith("database_unavailable: ")
        assert "PostgreSQL has not given this replicator a stamper yet" in reasons["clock"]
        await wait_until(
            lambda: "not registered yet" in cluster.nodes[0].said, "a node says that it waits"
        )
        assert "PostgreSQL has not been asked for the cluster map yet" in cluster.nodes[0].said
        proxy.cut_before = lambda _: False
        await cluster.formed()
        await until_states(cluster, "live", "live", "live")
        # And once more, in the middle of its life.
        proxy.cut_before = lambda _: True
        proxy.cut()

        async def degraded() -> bool | None:
            status, reasons = await replicator.readiness()
            return (status == 200 and "database" in reasons) or None

        await until_told(degraded, "the replicator misses PostgreSQL")
        assert await put(cluster, b"value") == CHANGED
        await cluster.nodes[2].terminate()
        await cluster.nodes[2].serve()
        await until_states(cluster, "live", "live", "live")
        proxy.cut_before = lambda _: False

        async def recovered() -> bool | None:
            return await replicator.readiness() == (200, {}) or None

        await until_told(recovered, "the replicator has PostgreSQL again")
    await proxy.stop()


async def test_slots_without_a_majority_are_named_and_the_others_go_on(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        await until_states(cluster, "live", "live", "live")
        for node in cluster.nodes[:2]:
            await node.kill()
        document = await until_states(cluster, "unreachable", "unreachable", "live")
        assert document["slots_without_quorum"] == 16384
        assert document["nodes"]["node-1"]["link_error"]
        status, reasons = await cluster.replicator.readiness()
        assert status == 200
        assert "16,384 of 16,384 slots have no majority" in reasons["quorum"]
        assert "node-1, node-2 cannot be reached" in reasons["quorum"]
        # One durable copy answers an eventual write.
        assert await put(cluster, b"alone") == CHANGED
        await cluster.serve(cluster.nodes[:2])
        await until_states(cluster, "live", "live", "live")
        assert await cluster.replicator.readiness() == (200, {})


async def test_a_replicator_that_meets_another_database_keeps_its_map_and_makes_no_cluster_there(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        connection = await asyncpg.connect(**database_address.asyncpg())
        await connection.execute("DELETE FROM cluster_maps; DELETE FROM nodes")
        replicator = cluster.replicator

        async def objecting() -> str | None:
            status, reasons = await replicator.readiness()
            assert status == 200
            return reasons.get("cluster_map")

        reason = await until_told(objecting, "the replicator objects to the database")
        assert "cannot follow epoch 1" in reason
        assert "DATABASE_URL names another database" in reason
        stranger = cluster.node(4)
        await stranger.serve()
        await wait_until(lambda: "not registered yet" in stranger.said, "a stranger waits")
        assert "DATABASE_URL names another database" in stranger.said
        assert await connection.fetchval("SELECT count(*) FROM nodes") == 0
        await connection.close()
        assert await put(cluster, b"goes on") == CHANGED
        await stranger.clear()


async def test_settings_that_formed_another_cluster_stop_a_replicator_at_its_start(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        replicator = cluster.replicator
        await replicator.terminate()
        for variable, value, complaint in (
            ("CLUSTER_SIZE", "4", "set CLUSTER_SIZE to 3"),
            ("REPLICATION_FACTOR", "2", "set REPLICATION_FACTOR to 3"),
        ):
            kept = dict(replicator.environment)
            replicator.environment[variable] = value
            await replicator.start()
            assert await replicator.ended() == FatalError.exit_code
            assert complaint in replicator.said.splitlines()[-1]
            replicator.environment = kept
        # Another one on the same data says so, too, and gives way.
        await replicator.serve()
        second = type(replicator)(
            replicator.data_dir, database_address.url(), replicator.node_id, CLUSTER_SIZE="3"
        )
        second.starts = 100
        await second.start()
        assert await second.ended() != 0
        assert f"is in use by process {replicator.process.pid}" in second.said


# Hostile registrations.


async def test_nobody_registers_but_a_node_itself(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.replicator.serve()
        mine = "a" * 32
        own = Member("node-9", mine, "127.0.0.1", 8002, 9002)
        async with as_node(cluster.replicator, "node-9", mine) as client:
            for body in (
                b"",
                b"\xff" * 100,
                b"\x00" * (1 << 20),
                encode_body(msgspec.structs.replace(own, node_id="node-1")),
                encode_body(msgspec.structs.replace(own, store_id="b" * 32)),
                encode_body(own).replace(b"node-9", b"../../"),
                encode_body(own).replace(b"127.0.0.1", b"\xff" * 9),
                encode_body(own) + b"more",
            ):
                kind, text = await client.ask(m.REGISTER, body)
                assert kind == m.MALFORMED, body[:100]
                assert 0 < len(text) <= 1024
        for role in (Role.GATEWAY, Role.REPLICATOR, Role.TOOL):
            async with as_node(cluster.replicator, "node-9", mine, role) as client:
                assert (await client.ask(m.REGISTER, encode_body(own)))[0] == m.MALFORMED
        connection = await asyncpg.connect(**database_address.asyncpg())
        assert await connection.fetchval("SELECT count(*) FROM nodes") == 0
        await connection.close()
        await cluster.serve(cluster.nodes)
        await cluster.formed()


async def test_a_stranger_under_the_name_of_a_node_learns_nothing_and_moves_nobody(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        await until_states(cluster, "live", "live", "live")
        fake = Member("node-1", "f" * 32, "127.0.0.1", 8002, 9002)
        async with as_node(cluster.replicator, "node-1", "f" * 32) as client:
            client.link.notify(m.STATE, m.encode_state(catching_up=True))
            assert await client.ask(m.STATE, b"nonsense") != (OK, b"")
            kind, text = await client.ask(m.REGISTER, encode_body(fake))
            assert kind == m.NOT_WELCOME
            assert b"it has lost its directory" in text
            document = await cluster.replicator.cluster()
            assert document["nodes"]["node-1"]["state"] == "live"
            assert document["epoch"] == 1
        assert cluster.nodes[0].process.returncode is None


@pytest.mark.parametrize("address", ["of another", "free"])
async def test_a_node_that_moves_is_followed_unless_its_new_address_is_taken(
    tmp_path: Path, database_address: DatabaseAddress, address: str
) -> None:
    async with cluster_processes(tmp_path, database_address, replicators=2) as cluster:
        await cluster.serve()
        await cluster.formed()
        mover, other = cluster.nodes[0], cluster.nodes[1]
        store = store_of(mover)
        await mover.terminate()
        port = other.port if address == "of another" else mover.port
        host = "127.0.0.1" if address == "of another" else "127.0.0.2"
        moved = Member("node-1", store, host, port, port + link_port_offset)
        async with as_node(cluster.replicator, "node-1", store) as client:
            kind, body = await client.ask(m.REGISTER, encode_body(moved))
        if address == "of another":
            assert kind == m.TRY_LATER
            assert b"which is the address of node 'node-2'" in body
            return
        assert kind == OK
        assert ClusterMap.decode(m.decode_registered(body).map).epoch == 3
        # The other replicator and the nodes hear of it from PostgreSQL and from replicators.
        cluster.nodes = cluster.nodes[1:]
        await cluster.at_epoch(3)
        for replicator in cluster.replicators:
            document = await replicator.cluster()
            assert document["nodes"]["node-1"]["host"] == "127.0.0.2"
        await mover.serve()
        await cluster.at_epoch(5)
        await mover.clear()
