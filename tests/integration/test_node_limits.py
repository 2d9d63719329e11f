"""A real node at its limits: a device that fails, a disk that is full, memory that is used up."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.core import messages as m
from services.core.cluster import ClusterMap, Member
from services.core.record import is_tombstone
from services.core.wire import DOWN, LOST, OK, OVERLOADED
from tests.integration.node_process import (
    NodeClient,
    NodeProcess,
    node_client,
    node_process,
    prefix,
)
from tests.integration.small_disk import (
    run_where_mounting_is_allowed,
    small_disk,
    succeeds,
    use_up,
)
from tests.waiting import wait_until

# Every kind of sync that a node makes: what is synced, and how many such syncs go well before.
sites = {
    "the directory above all nodes": (r"/data$", 0),
    "the directory of nodes": (r"/nodes$", 0),
    "the file that names the store": (r"/store\.tmp$", 0),
    "the name of that file": (r"/node-1$", 0),
    "the first segment": (r"/log-0000000001\.tmp$", 0),
    "the name of the first segment": (r"/node-1$", 1),
    "the first commit": (r"/log-\d+$", 0),
    "a later commit": (r"/log-\d+$", 4),
    "the second segment": (r"/log-0000000002\.tmp$", 0),
    "the name of the second segment": (r"/node-1$", 2),
    "the cluster map": (r"/map\.tmp$", 0),
    "the name of the cluster map": (r"/node-1$", 3),
    "a snapshot": (r"/snapshot-\d+\.tmp$", 0),
    "the name of a snapshot or of a segment behind it": (r"/node-1$", 4),
    "the last of these names": (r"/node-1$", 5),
}
at_restart = {
    "the directory at a restart": (r"/nodes$", 0),
    "the names found at a restart": (r"/node-1$", 0),
    "the last segment at a restart": (r"/log-\d+$", 0),
    "a commit after a restart": (r"/log-\d+$", 1),
}


def failing(node: NodeProcess, pattern: str, after: int) -> None:
    """Have the next processes of this node run on a device that fails so."""
    node.command = ("-m", "tests.integration.failing_disk")
    node.environment["SYNC_FAILS"] = pattern
    node.environment["SYNC_FAILS_AFTER"] = str(after)
    node.environment["SYNC_LOG"] = str(node.data_dir.with_name("synced"))


def sound(node: NodeProcess) -> None:
    node.command = ("-m", "services.dhtnode")


def cluster_map(node: NodeProcess) -> bytes:
    member = Member(node.node_id, "ab" * 16, "127.0.0.1", node.port, node.port + 1000)
    return ClusterMap(1, 1, (member,)).encode()


async def run_scenario(node: NodeProcess, *, puts: int = 400) -> dict[bytes, bytes]:
    """Use a node in all ways that make it sync, until it ends; what it acknowledged."""
    acknowledged: dict[bytes, bytes] = {}
    await node.start()
    await wait_until(
        lambda: node.process.returncode is not None or " serving " in node.said, "it serves or ends"
    )
    if node.process.returncode is not None:
        return acknowledged
    async with node_client(node) as client:
        epoch = 0
        for number in range(puts):
            key, record = prefix + b"key-%d" % (number % 50), client.stamps.value(b"%d" % number)
            kind, body = await client.write(key, record, epoch)
            if kind == m.WRONG_EPOCH:
                epoch = int.from_bytes(body, "big")
                kind, _ = await client.write(key, record, epoch)
            if kind != OK:
                assert kind in (LOST, DOWN, OVERLOADED), f"answer kind {kind}"
                break
            acknowledged[key] = record
            if number == 10:
                await wait_until(lambda: _quiet(node), "the second segment is there, or it ended")
                await client.ask(m.EPOCH, cluster_map(node))
                await wait_until(
                    lambda: (node.directory / "map").exists() or _over(node), "the map is kept"
                )
            if number == 20:
                with contextlib.suppress(OSError):
                    await node.signed("/snapshot", method="POST")
                await wait_until(
                    lambda: "snapshot written" in node.said or _over(node), "a snapshot is there"
                )
    return acknowledged


def _over(node: NodeProcess) -> bool:
    return node.process.returncode is not None


def _quiet(node: NodeProcess) -> bool:
    return (node.directory / "log-0000000002").exists() or _over(node)


async def check_end(node: NodeProcess, acknowledged: dict[bytes, bytes]) -> None:
    """It ended with one clear line, and what it acknowledged is there on a sound device."""
    assert await node.ended() == 1
    lines = [line for line in node.said.splitlines() if line.startswith("ydht dhtnode: ")]
    assert len(lines) == 1, node.said
    assert "Input/output error" in lines[0]
    assert str(node.data_dir) in lines[0]
    node.check_no_traceback()
    sound(node)
    await node.serve()
    async with node_client(node) as client:
        for key, record in acknowledged.items():
            kind, found = await client.ask(m.GET, key)
            assert kind == OK
            # The write that failed may be there, the acknowledged one may not be missing.
            assert found >= record


@asynccontextmanager
async def fresh(tmp_path: Path) -> AsyncIterator[NodeProcess]:
    node = NodeProcess(tmp_path / "data")
    try:
        yield node
    finally:
        await node.clear()


@pytest.mark.parametrize("site", sites)
async def test_a_failed_sync_ends_the_process_and_nothing_is_acknowledged_after_it(
    tmp_path: Path, site: str
) -> None:
    async with fresh(tmp_path) as node:
        failing(node, *sites[site])
        await check_end(node, await run_scenario(node))


@pytest.mark.parametrize("site", at_restart)
async def test_a_failed_sync_at_a_restart_ends_the_process_too(tmp_path: Path, site: str) -> None:
    async with fresh(tmp_path) as node:
        acknowledged = await run_scenario(node, puts=30)
        await node.kill()
        failing(node, *at_restart[site])
        acknowledged |= await run_scenario(node)
        await check_end(node, acknowledged)


async def test_no_sync_is_made_that_is_not_failed_above(tmp_path: Path) -> None:
    async with fresh(tmp_path) as node:
        failing(node, "nothing is called so", 0)
        for _ in range(2):
            await run_scenario(node, puts=60)
            assert await node.terminate() == 0
        synced = set(node.data_dir.with_name("synced").read_text().split())
    patterns = [pattern for pattern, _ in (sites | at_restart).values()]
    missed = [
        path
        for path in synced
        if path.startswith(str(node.data_dir))
        and not any(re.search(pattern, path) for pattern in patterns)
    ]
    # The third segment is made as the second.
    missed = [path for path in missed if not re.search(r"/log-\d+\.tmp$", path)]
    assert not missed
    assert len(synced) > 8


# A full disk.


async def fill(client: NodeClient, size: int, start: int = 0) -> dict[bytes, bytes]:
    """Put values, eight at a time, until each of the eight is refused; what was acknowledged."""
    acknowledged: dict[bytes, bytes] = {}

    async def put_until_refused(first: int) -> None:
        for number in range(first, first + 100_000, 8):
            key = prefix + b"large-%d" % number
            record = client.stamps.value(number.to_bytes(4, "big") * (size // 4))
            kind, reason = await client.write(key, record)
            if kind == m.STORAGE_FULL:
                assert reason
                return
            assert kind == OK, f"answer kind {kind}"
            acknowledged[key] = record

    async with asyncio.TaskGroup() as group:
        for worker in range(8):
            group.create_task(put_until_refused(start + worker))
    return acknowledged


async def check_all(client: NodeClient, acknowledged: dict[bytes, bytes]) -> None:
    for key, record in acknowledged.items():
        assert await client.ask(m.GET, key) == (OK, record)


async def until_welcome(client: NodeClient) -> None:
    async with asyncio.timeout(20):
        while (await client.put(b"welcome", b"x"))[0] != OK:  # noqa: ASYNC110  Nothing tells.
            await asyncio.sleep(0.05)


async def test_a_full_disk_refuses_puts_alone_and_takes_them_again_when_there_is_space(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    disk = tmp_path / "disk"
    async with small_disk(disk, 100) as mounted:
        if mounted:
            await _fill_free_and_restart(disk)
    if not mounted:
        test = f"{__file__}::{request.node.name}"
        await run_where_mounting_is_allowed("-m", "pytest", "-q", test)


async def _fill_free_and_restart(disk: Path) -> None:
    # What the process says lies beside this, on a disk with room.
    data_dir = disk.with_name("data")
    data_dir.symlink_to(disk)
    async with node_process(data_dir) as node:
        async with node_client(node) as client:
            acknowledged = await fill(client, 256 << 10)
            assert len(acknowledged) > 200
            await _check_full(node, client, acknowledged)
            await node.kill()
        for _ in range(2):
            use_up(disk / "junk")
            await node.serve()
            async with node_client(node) as client:
                await _check_entirely_full(node, client, acknowledged)
            assert await node.terminate() == 0
        (disk / "junk").unlink()
        await node.serve()
        async with node_client(node) as client:
            await check_all(client, acknowledged)
            assert (await client.put(b"more", b"x" * 1000))[0] == m.STORAGE_FULL
            assert await succeeds("mount", "-o", "remount,size=200m", str(disk))
            await until_welcome(client)
            acknowledged |= await fill(client, 256 << 10, start=100_000)
            assert await node.terminate() == 0
        await node.serve()
        async with node_client(node) as client:
            await check_all(client, acknowledged)


async def _check_entirely_full(
    node: NodeProcess, client: NodeClient, acknowledged: dict[bytes, bytes]
) -> None:
    """Without room for a single frame a node says so at once to whoever writes, and reads go on."""
    alive = [key for key, record in acknowledged.items() if not is_tombstone(record)]
    async with asyncio.timeout(5):
        assert (await client.put(b"more", b"x"))[0] == m.STORAGE_FULL
        kind, why = await client.write(alive[0], client.stamps.tombstone())
        assert kind == m.STORAGE_FULL
        assert b"not for deletes either (No space left on device)" in why
        kind, why = await client.write(alive[0], client.stamps.tombstone(), epoch=9)
        assert kind == m.STORAGE_FULL
        assert await client.ask(m.EPOCH, cluster_map(node)) == (OK, bytes(8))
    await check_all(client, acknowledged)
    name = alive[0].removeprefix(prefix).decode()
    assert (await node.signed(f"/store/{name}")).status_code == 200
    assert (await node.signed("/store?limit=1")).json()["count"] == 1


async def _check_full(
    node: NodeProcess, client: NodeClient, acknowledged: dict[bytes, bytes]
) -> None:
    """Puts are refused, reads and deletes go on, and the node says so."""
    kind, reason = await client.put(b"more", b"x" * 1000)
    assert kind == m.STORAGE_FULL
    assert b"disk" in reason
    await check_all(client, acknowledged)
    for key in list(acknowledged)[:100]:
        acknowledged[key] = client.stamps.tombstone()
        assert await client.write(key, acknowledged[key]) == (OK, b"")
        assert is_tombstone((await client.ask(m.GET, key))[1])
    ready = await node.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded"
    assert "puts are refused: disk" in ready.json()["reasons"]["storage"]
    assert (await node.metrics())["puts_refused"] == 1


async def test_used_up_memory_refuses_puts_until_deletes_have_freed_some(tmp_path: Path) -> None:
    async with node_process(tmp_path / "data", MEMORY_MAX="64MiB") as node:
        async with node_client(node) as client:
            acknowledged = await fill(client, 512 << 10)
            used = (await node.metrics())["table_memory_bytes"]
            # What was under way when the limit was met came on top: eight values at most.
            assert 64 << 20 < used < (64 << 20) + 10 * (512 << 10)
            kind, reason = await client.put(b"more", b"x")
            assert kind == m.STORAGE_FULL
            assert b"MEMORY_MAX is 64 MiB" in reason
            await check_all(client, acknowledged)
            for key in list(acknowledged)[:20]:
                acknowledged[key] = client.stamps.tombstone()
                assert await client.write(key, acknowledged[key]) == (OK, b"")
            await until_welcome(client)
            await node.kill()
        await node.serve()
        async with node_client(node) as client:
            await check_all(client, acknowledged)
