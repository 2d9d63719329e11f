"""`ydht cluster` as an operator types it, on real replicators and nodes."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core import messages as m
from services.core.hlc import pack_version
from services.core.record import value_body
from services.core.ring import slot_count
from services.core.wire import OK, Role
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.free_ports import free_port
from tests.integration.node_process import node_client, prefix, secret
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
    until_told,
)
from tests.integration.shell import Said, Shell
from tests.plain_http import plain_client

unreachable = 75
not_set_up = 78


@pytest.fixture
async def cluster(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[ClusterProcesses]:
    """Three nodes and two replicators, all of them well."""
    async with cluster_processes(tmp_path, database_address, replicators=2) as cluster:
        for replicator in cluster.replicators:
            # Nothing is to be found before it is asked for.
            replicator.environment["REPAIR_PASS_S"] = "604800"
        await cluster.serve()
        await cluster.formed()
        for node in cluster.nodes:
            await until_metrics(node, catching_up=0)
        for replicator in cluster.replicators:
            await until_metrics(replicator, nodes_live=3, repair_slots=slot_count // 2)
        yield cluster


@pytest.fixture
def shell(cluster: ClusterProcesses) -> Shell:
    urls = ",".join(replicator.url for replicator in cluster.replicators)
    return Shell(cluster.path / "data", CLUSTER_SECRET=secret, REPLICATOR_URLS=urls)


async def plant(cluster: ClusterProcesses, count: int, *nodes: int) -> None:
    """Have these nodes hold records that the others lack, and that are not young any more."""
    record = pack_version(SystemClock().wall_ms() - 60_000 << 16, 1) + value_body(b"planted")
    items = [(prefix + b"planted-%d" % place, record) for place in range(count)]
    for number in nodes:
        async with node_client(cluster.nodes[number], "tool", Role.TOOL) as client:
            kind, body = await client.write_many(items, epoch=1)
            assert kind == OK
            assert {status for status, _ in m.decode_statuses(body)} == {OK}


async def test_a_cluster_that_is_well_says_so(shell: Shell, cluster: ClusterProcesses) -> None:
    said = await shell.done("cluster", "status")
    assert said.out.endswith("Everything is well.\n")
    for name in ("node-1", "node-2", "node-3", "replicator-1", "replicator-2", "live"):
        assert name in said.out
    [document] = (await shell.done("cluster", "status", "--json")).json
    assert document["well"] is True
    assert document["reasons"] == []
    assert document["repair"]["slots"] == slot_count
    assert document["nodes"]["node-1"]["state"] == "live"
    assert document["nodes"]["node-1"]["since"].endswith("Z")


async def test_repair_makes_replicas_equal_at_once_and_says_what_differed(
    shell: Shell, cluster: ClusterProcesses
) -> None:
    await plant(cluster, 60, 0, 1)
    await plant(cluster, 80, 2)
    said = await shell.done("cluster", "repair")
    assert said.out.startswith(f"{slot_count:,} of {slot_count:,} slots compared: 80 keys differed")
    metrics = [await node.metrics() for node in cluster.nodes]
    assert {one["key_count"] for one in metrics} == {80}
    [again] = (await shell.done("cluster", "repair", "--json")).json
    assert again["done"] is True
    assert (again["slots"], again["differing_keys"], again["records_sent"]) == (slot_count, 0, 0)


async def test_one_slot_can_be_repaired_alone(shell: Shell, cluster: ClusterProcesses) -> None:
    [result] = (await shell.done("cluster", "repair", "--slot", "5", "--slot", "5", "--json")).json
    assert (result["slots"], result["left"], result["done"]) == (1, 0, True)
    both = (await shell.done("cluster", "repair", "--slot", "5", "--slot", "200", "--json")).json
    assert both[0]["slots"] == 2
    said = await shell.type("cluster", "repair", "--slot", str(slot_count))
    assert said.code == 2
    assert "0<=x<=16383" in said.err


async def test_a_node_that_is_away_is_named_and_what_that_means(
    shell: Shell, cluster: ClusterProcesses
) -> None:
    await cluster.nodes[1].kill()
    for replicator in cluster.replicators:
        await until_metrics(replicator, nodes_live=2)
    said = await shell.type("cluster", "status")
    assert said.code == 1
    assert "Not well:" in said.out
    assert "node-2 cannot be reached since " in said.out
    [document] = (await shell.type("cluster", "status", "--json")).json
    assert document["well"] is False
    assert document["nodes"]["node-2"]["state"] == "unreachable"
    repaired = await shell.type("cluster", "repair", "--slot", "3", "--json")
    assert repaired.code == 1
    [result] = repaired.json
    assert (result["done"], result["left"]) == (False, 1)
    assert "without node-2" in result["reasons"][0]


async def test_a_node_that_has_no_room_is_named(shell: Shell, cluster: ClusterProcesses) -> None:
    node = cluster.nodes[1]
    node.environment["DISK_RESERVE"] = "4096TiB"
    await node.kill()
    await node.serve()

    async def full() -> Said | None:
        said = await shell.type("cluster", "status")
        return said if "node-2 says: puts are refused: " in said.out else None

    said = await until_told(full, "it is full")
    assert said.code == 1
    [document] = (await shell.type("cluster", "status", "--json")).json
    assert document["nodes"]["node-2"]["reasons"]
    assert document["nodes"]["node-1"]["reasons"] == []


async def test_a_node_that_is_paused_is_silent_and_well_again_later(
    shell: Shell, cluster: ClusterProcesses
) -> None:
    cluster.nodes[0].process.send_signal(signal.SIGSTOP)

    async def unwell() -> Said | None:
        said = await shell.type("cluster", "status")
        return said if said.code else None

    said = await until_told(unwell, "the pause is noticed")
    assert "node-1 " in said.out
    cluster.nodes[0].process.send_signal(signal.SIGCONT)

    async def well() -> bool | None:
        return (await shell.type("cluster", "status")).code == 0 or None

    await until_told(well, "it is well again")


async def test_a_repair_is_waited_for_no_longer_than_it_is_told_to(
    shell: Shell, cluster: ClusterProcesses
) -> None:
    cluster.nodes[0].process.send_signal(signal.SIGSTOP)
    said = await shell.type("cluster", "repair", "--timeout", "100ms", "--json")
    cluster.nodes[0].process.send_signal(signal.SIGCONT)
    assert said.code == 1
    [result] = said.json
    assert not result["done"]
    assert result["left"] > 0
    assert "slots still to compare, and goes on" in result["reasons"][0]
    said = await shell.type("cluster", "repair", "--timeout", "soon")
    assert said.code == 2
    assert "'soon' is not a duration" in said.err


async def test_without_one_replicator_the_others_do_all_of_it(
    shell: Shell, cluster: ClusterProcesses
) -> None:
    await cluster.replicators[1].kill()
    await until_metrics(cluster.replicator, repair_slots=slot_count)
    said = await shell.type("cluster", "status")
    assert said.code == 1
    assert f"replicator at {cluster.replicators[1].url}: it cannot be asked" in said.out
    [result] = (await shell.type("cluster", "repair", "--json")).json
    assert (result["slots"], result["left"]) == (slot_count, 0)
    assert len(result["reasons"]) == 1


async def test_where_nothing_runs_one_line_says_so(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    shell = Shell(tmp_path, CLUSTER_SECRET=secret, REPLICATOR_URLS=nobody)
    for words in (("status",), ("repair",), ("status", "--json")):
        assert "no replicator answers" in await shell.refused(unreachable, "cluster", *words)
    shell = Shell(tmp_path, CLUSTER_SECRET=secret)
    assert "nothing runs on" in await shell.refused(unreachable, "cluster", "status")


async def test_the_wrong_directory_is_told_apart_from_one_where_nothing_runs(
    tmp_path: Path,
) -> None:
    shell = Shell(tmp_path / "elsewhere")
    assert "CLUSTER_SECRET" in await shell.refused(not_set_up, "cluster", "status")
    (tmp_path / "up.json").write_text("{broken")
    shell = Shell(tmp_path, CLUSTER_SECRET=secret)
    assert "up.json cannot be read" in await shell.refused(not_set_up, "cluster", "status")


async def test_an_order_that_makes_no_sense_is_refused(cluster: ClusterProcesses) -> None:
    url = cluster.replicator.url + "/repair"
    auth = SignedAuth(Signer(secret, SystemClock()))
    async with plain_client(auth=auth, timeout=10) as client:
        assert (await client.get(url)).json()["state"] == "none"
        orders: list[object] = [{"slots": slots} for slots in ([-1], [slot_count], ["7"], 7)]
        for wrong in (*orders, {"slot": [7]}, {"slots": [0] * (slot_count + 1)}, [], 7):
            answer = await client.post(url, json=wrong)
            assert answer.status_code in (400, 413), (str(wrong)[:80], answer.text)
        assert (await client.get(url)).json()["state"] == "none"
        taken = await client.post(url, json={"slots": []})
        assert (taken.status_code, taken.json()["slots"]) == (202, 0)
        taken = await client.post(url, json={})
        assert (taken.status_code, taken.json()["slots"]) == (202, slot_count // 2)
    async with plain_client(timeout=10) as client:
        assert (await client.post(url, json={})).status_code == 401


async def test_another_secret_is_refused_by_all(cluster: ClusterProcesses) -> None:
    other = Shell(
        cluster.path / "data",
        CLUSTER_SECRET=secret[::-1],
        REPLICATOR_URLS=cluster.replicator.url,
    )
    said = await other.refused(unreachable, "cluster", "repair")
    assert "401" in said
    answer = await cluster.replicator.signed(
        "/repair", method="POST", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
