"""A whole cluster on one disk without a free byte: what was stored is read and deleted as ever.

Where the test itself may not mount a disk, it runs in a namespace of its own, as this module:
`python -m tests.integration.test_full_disk DIRECTORY DATABASE_URL`.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.core import messages as m
from services.core.hlc import ceiling_ahead_ms
from services.core.operations import (
    CHANGE,
    CHANGED,
    DELETE,
    FETCH,
    PUT,
    REFUSED,
    Action,
    ChangeRequest,
    decode_refused,
    encode_change,
    encode_put,
)
from services.core.record import is_tombstone
from services.core.wire import OK, Role
from services.runtime.database_url import DatabaseAddress
from tests.integration.node_process import NodeClient, node_client, prefix
from tests.integration.replicator_process import ClusterProcesses, until_metrics, until_told
from tests.integration.small_disk import run_where_mounting_is_allowed, small_disk, use_up

# Two segments of 16 MiB for each of three nodes, and some room.
disk_mebibytes: Final = 120
keys: Final = 300
# Through several ceilings of a clock that was given none ahead.
while_s: Final = 1.5 * ceiling_ahead_ms / 1000


async def test_a_cluster_on_a_full_disk_deletes_and_reads_and_its_replicator_starts_again(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    if await scenario(tmp_path, database_address.url()):
        return
    await asyncio.to_thread(shutil.rmtree, tmp_path / "data")
    module = "tests.integration.test_full_disk"
    await run_where_mounting_is_allowed("-m", module, str(tmp_path), database_address.url())


async def scenario(path: Path, database_url: str) -> bool:
    """Whether this process may mount a disk, and all was as it should be there."""
    async with small_disk(path / "data", disk_mebibytes) as mounted:
        if mounted:
            cluster = ClusterProcesses(path, database_url)
            try:
                await on_full_disk(cluster, path / "data")
            finally:
                await cluster.clear()
        return mounted


def key(number: int) -> bytes:
    return prefix + b"key-%d" % number


async def on_full_disk(cluster: ClusterProcesses, disk: Path) -> None:
    await cluster.serve()
    await cluster.formed()
    replicator = cluster.replicator
    await until_metrics(replicator, nodes_live=3)
    async with node_client(replicator, "gateway-1", Role.GATEWAY) as client:
        for number in range(keys):
            kind, _ = await client.ask(PUT, encode_put(key(number), b"stored"))
            assert kind == CHANGED
    await asyncio.to_thread(use_up, disk / "junk")
    assert shutil.disk_usage(disk).free == 0
    for node in cluster.nodes:
        await until_metrics(node, puts_refused=1)
    left = iter(range(keys))
    async with node_client(replicator, "gateway-1", Role.GATEWAY) as client:
        ends_s = asyncio.get_running_loop().time() + while_s
        while asyncio.get_running_loop().time() < ends_s:
            await check(cluster, client, left)
            await asyncio.sleep(0.2)
    for end in (replicator.kill, replicator.terminate):
        await end()
        await replicator.serve()
        assert await until_told(lambda: ready(cluster), "the replicator is ready") == {}
        async with node_client(replicator, "gateway-1", Role.GATEWAY) as client:
            await until_told(lambda: stamping(client, key(next(left))), "the replicator stamps")
            await check(cluster, client, left)
    assert shutil.disk_usage(disk).free == 0


async def ready(cluster: ClusterProcesses) -> dict[str, str] | None:
    status, reasons = await cluster.replicator.readiness()
    return reasons if status == 200 and "quorum" not in reasons else None


async def stamping(client: NodeClient, unwanted: bytes) -> bool | None:
    """After a kill the clock waits until its lead is sane."""
    kind, body = await client.ask(DELETE, unwanted)
    assert kind == CHANGED or decode_refused(body)[0] == "clock_skew"
    return kind == CHANGED or None


async def check(cluster: ClusterProcesses, client: NodeClient, left: Iterator[int]) -> None:
    """Puts are refused for want of space; deletes and reads are done, in both modes."""
    eventual, strong, stays = next(left), next(left), keys - 1
    put = ChangeRequest(Action.PUT, key(stays), b"new")
    for kind, body in ((PUT, encode_put(key(stays), b"new")), (CHANGE, encode_change(put))):
        answer, refusal = await client.ask(kind, body)
        assert (answer, decode_refused(refusal)[0]) == (REFUSED, "storage_full")
    assert (await client.ask(DELETE, key(eventual)))[0] == CHANGED
    delete = ChangeRequest(Action.DELETE, key(strong))
    assert (await client.ask(CHANGE, encode_change(delete)))[0] == CHANGED
    for number in (eventual, strong):
        assert await client.ask(FETCH, key(number)) == (OK, b"")
    kind, record = await client.ask(FETCH, key(stays))
    assert (kind, record[-6:]) == (OK, b"stored")
    async with node_client(cluster.nodes[0], "gateway-1", Role.GATEWAY) as node:
        assert (await node.ask(m.GET, key(stays))) == (OK, record)
        assert is_tombstone((await node.ask(m.GET, key(strong)))[1])


if __name__ == "__main__":
    sys.exit(not asyncio.run(scenario(Path(sys.argv[1]), sys.argv[2])))
