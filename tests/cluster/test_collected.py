"""A fifth of all keys is deleted while nodes are killed, paused and brought back: nothing is left
of them anywhere, and everything of the others.

REPAIR_KEYS=100000 in the environment runs the full figure (`make repairs`).

How much memory is left is compared with a second cluster that was never told of those keys: it was
written the same other keys, at the same times, under the same faults. Two figures of each node
have to be those of its counterpart there, but for 5 %:

    what the table says that it takes, as soon as all is collected
    what the process takes, once both have begun anew from a snapshot

A process that has held keys does not become smaller when it frees them: they lay among those that
stay, and only what is empty from end to end goes back to the system. What it takes before it begins
anew is therefore printed, and not held against anything.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.core.operations import Item
from services.core.record import value
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.cluster.gateway_turmoil.platform import mebibyte, resident_mib
from tests.cluster.replica_view import are_equal, listed, records, shown, until_equal
from tests.cluster.steadfast_writer import Writer, content, delete, put, writer
from tests.integration.database import SharedServer, fresh_database
from tests.integration.node_process import NodeProcess, secret
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
)
from tests.plain_http import plain_client

keys = int(os.environ.get("REPAIR_KEYS", "10000"))
fifth = keys // 5
gone = [b"gone-%06d" % number for number in range(fifth)]
live = [b"live-%06d" % number for number in range(keys - fifth)]
# Of those that stay, some are written once more meanwhile, and others deleted and written anew.
rewritten, returned = live[:fifth], live[fifth : fifth + fifth // 10]
newest = {**dict.fromkeys(live, 1), **dict.fromkeys((*rewritten, *returned), 2)}
# Each node is killed and paused once. It takes 2 s of silence until a link is given up; there are
# writes before a fault, meanwhile, and after it.
fault_s, writing_s = 2.2, 3.0
equal_s_max = 60.0
# At its usual pace a replicator collects every slot there is in 41 s.
collected_s_max = 120.0
# Figures of a node cost it a millisecond or two.
look_s = 0.5
memory_share_max = 1.05


@dataclass(slots=True, frozen=True)
class Size:
    """How much a node holds, by its own account and by that of the system."""

    keys: int
    tombstones: int
    promises: int
    table_bytes: int
    resident_mib: float

    @classmethod
    async def of(cls, node: NodeProcess) -> Size:
        shown = await node.metrics()
        return cls(
            shown["key_count"],
            shown["tombstone_count"],
            shown["promises"],
            shown["table_memory_bytes"],
            resident_mib(node),
        )


@asynccontextmanager
async def formed_cluster(path: Path, address: DatabaseAddress) -> AsyncIterator[ClusterProcesses]:
    """Three nodes and two replicators, all well."""
    path.mkdir()  # noqa: ASYNC240  It takes no time.
    async with cluster_processes(path, address, replicators=2) as cluster:
        await cluster.serve()
        await cluster.formed()
        await until_well(cluster)
        yield cluster


async def until_well(cluster: ClusterProcesses) -> None:
    for replicator in cluster.replicators:
        await until_metrics(replicator, nodes_live=3)
    for node in cluster.nodes:
        await until_metrics(node, catching_up=0)


async def write(client: Writer, names: Sequence[bytes]) -> None:
    await client.settle([put(name, 1) for name in names])


async def sizes_of(cluster: ClusterProcesses) -> list[Size]:
    return [await Size.of(node) for node in cluster.nodes]


# -- what is done to the cluster


def kill(node: NodeProcess) -> Awaitable[None]:
    return node.kill()


async def pause(node: NodeProcess) -> None:
    node.process.send_signal(signal.SIGSTOP)


def serve(node: NodeProcess) -> Awaitable[None]:
    return node.serve()


async def go_on(node: NodeProcess) -> None:
    node.process.send_signal(signal.SIGCONT)


Doing = Callable[[NodeProcess], Awaitable[None]]


def faults(cluster: ClusterProcesses) -> list[tuple[NodeProcess, Doing, Doing]]:
    one, two, three = cluster.nodes
    return [
        (one, kill, serve),
        (two, pause, go_on),
        (three, kill, serve),
        (one, pause, go_on),
        (two, kill, serve),
        (three, pause, go_on),
    ]


async def live_through_faults(
    cluster: ClusterProcesses, client: Writer, doomed: Sequence[bytes]
) -> None:
    """Under each of the faults a part of what is to be written, and of these keys deleted."""
    put_back: Sequence[bytes] = ()
    all_faults = faults(cluster)
    for number, (node, begin, end) in enumerate(all_faults):
        part = slice(number, None, len(all_faults))
        items: list[Item] = [
            *(delete(name) for name in (*doomed[part], *returned[part])),
            *(put(name, 2) for name in (*rewritten[part], *put_back)),
        ]
        put_back = returned[part]
        async with asyncio.TaskGroup() as group:
            group.create_task(client.spread(items, seconds=writing_s))
            await asyncio.sleep((writing_s - fault_s) / 2)
            await begin(node)
            await asyncio.sleep(fault_s)
            await end(node)
    await client.settle([put(name, 2) for name in put_back])


async def order(cluster: ClusterProcesses) -> None:
    """Have everything compared now, as `ydht cluster repair` does, and collected what is deleted,
    which else would be when two regular passes had met it."""
    auth = SignedAuth(Signer(secret, SystemClock()))
    async with plain_client(auth=auth, timeout=10) as client:
        for replicator in cluster.replicators:
            answer = await client.post(replicator.url + "/repair", json={"slots": None})
            assert answer.status_code == 202


async def until_collected(cluster: ClusterProcesses) -> None:
    async def held(node: NodeProcess) -> int:
        found = await node.metrics()
        number: int = found["tombstones_held"] + found["promises_ended"]
        return number

    left: list[int] = []
    try:
        async with asyncio.timeout(collected_s_max):
            while any(left := [await held(node) for node in cluster.nodes]):  # noqa: ASYNC110  Nothing tells.
                await asyncio.sleep(look_s)
    except TimeoutError:
        raise AssertionError(f"after {collected_s_max:g} s nodes still hold {left}") from None


# -- what has come of it


async def check_keys(node: NodeProcess) -> None:
    lost, found = [], []
    async for name, record in records(node, live):
        if not record or value(record) != content(name, newest[name]):
            lost.append((name, record))
    assert not lost, f"{node.node_id} has not what was acknowledged of {len(lost)} keys: {lost[:3]}"
    async for name, record in records(node, gone):
        if record:
            found.append((name, record))
    assert not found, f"{node.node_id} has {len(found)} keys that were deleted: {found[:3]}"
    assert await listed(node) == live, f"{node.node_id} lists other keys than there are"
    again = await shown(node, gone)
    assert not again, f"{node.node_id} shows {len(again)} keys that were deleted: {again[:3]}"


async def restart(cluster: ClusterProcesses) -> None:
    """Have each node begin anew with a snapshot of what it holds, and nothing else."""
    for node in cluster.nodes:
        written = (await node.metrics())["snapshots"]
        assert (await node.signed("/snapshot", method="POST")).status_code == 202
        await until_metrics(node, snapshots=written + 1)
        assert await node.terminate() == 0
        await node.serve()
    await until_well(cluster)


def in_mib(name: str, sizes: Sequence[Size]) -> str:
    tables = "/".join(f"{size.table_bytes / mebibyte:.1f}" for size in sizes)
    residents = "/".join(f"{size.resident_mib:.1f}" for size in sizes)
    return f"  {name:<32} tables {tables} MiB, processes {residents} MiB\n"


@pytest.mark.timeout(240 + keys // 250)
async def test_what_is_deleted_under_faults_is_collected_everywhere_and_nothing_else_is(
    tmp_path: Path,
    database_address: DatabaseAddress,
    postgres_server: SharedServer,
    migrated_template: str,
) -> None:
    loop = asyncio.get_running_loop()
    async with (
        fresh_database(postgres_server, migrated_template) as address,
        formed_cluster(tmp_path / "plain", address) as plain,
        writer(plain.replicators) as client,
    ):
        await write(client, live)
        await live_through_faults(plain, client, ())
        await until_equal(plain.nodes, seconds=equal_s_max)
        expected = await sizes_of(plain)
        await restart(plain)
        expected_anew = await sizes_of(plain)
    async with (
        formed_cluster(tmp_path / "tried", database_address) as cluster,
        writer(cluster.replicators) as client,
    ):
        await write(client, live)
        await write(client, gone)
        before = await sizes_of(cluster)
        await live_through_faults(cluster, client, gone)
        back_s = loop.time()
        equal_s = await until_equal(cluster.nodes, seconds=equal_s_max)
        await until_well(cluster)
        ordered_s = loop.time()
        await order(cluster)
        await until_collected(cluster)
        collected_s = loop.time()
        sizes = await sizes_of(cluster)
        assert await are_equal(cluster.nodes)
        for node in cluster.nodes:
            await check_keys(node)
        await restart(cluster)
        sizes_anew = await sizes_of(cluster)
        assert await are_equal(cluster.nodes)
    sys.stdout.write(
        f"\n{keys:,} keys, {len(gone):,} deleted under faults; {client.repeated} writes had to be "
        f"asked for again\nequal {equal_s - back_s:.1f} s after the last fault, all collected "
        f"{collected_s - ordered_s:.1f} s after that was ordered\n"
        + in_mib("with all keys", before)
        + in_mib("when they are collected", sizes)
        + in_mib("where they never were", expected)
        + in_mib("when they are collected, anew", sizes_anew)
        + in_mib("where they never were, anew", expected_anew)
    )
    for found, wanted in zip((*sizes, *sizes_anew), (*expected, *expected_anew), strict=True):
        assert (found.keys, found.tombstones) == (wanted.keys, 0) == (len(live), 0)
        assert found.promises <= wanted.promises
        assert found.table_bytes <= memory_share_max * wanted.table_bytes
    for found, wanted in zip(sizes_anew, expected_anew, strict=True):
        assert found.resident_mib <= memory_share_max * wanted.resident_mib
