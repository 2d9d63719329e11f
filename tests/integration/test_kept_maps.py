"""A digit that rots in the map that a service has kept costs nothing: the map is told again."""

from __future__ import annotations

import re
from pathlib import Path

from services.core.operations import CHANGED
from services.runtime.database_url import DatabaseAddress
from tests.integration.node_process import NodeProcess
from tests.integration.replicator_process import cluster_processes, until_told
from tests.integration.test_replicator_formation import put, until_states
from tests.waiting import wait_until


def change_a_digit(file: Path) -> None:
    content = file.read_bytes()
    ports = list(re.finditer(rb'_port":(\d)', content))
    at = ports[-1].start(1)
    file.write_bytes(content[:at] + b"%d" % (int(content[at : at + 1]) ^ 1) + content[at + 1 :])


async def test_a_changed_map_is_put_aside_and_the_right_one_taken(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with cluster_processes(tmp_path, database_address) as cluster:
        await cluster.serve()
        await cluster.formed()
        rotten: list[NodeProcess] = [cluster.nodes[0], cluster.replicator]
        for process in rotten:
            directory = process.directory
            await wait_until((directory / "map").exists, f"{process.node_id} keeps the map")
            await process.terminate()
            right = (directory / "map").read_bytes()
            change_a_digit(directory / "map")
            await process.serve()
            assert "a kept file is put aside" in process.said
            assert (directory / "map.damaged").exists()
            await wait_until((directory / "map").exists, "the right one is kept")
            assert (directory / "map").read_bytes() == right
        await until_states(cluster, "live", "live", "live")

        async def all_well() -> bool | None:
            return await cluster.replicator.readiness() == (200, {}) or None

        await until_told(all_well, "the replicator has no objection")
        assert await put(cluster, b"value") == CHANGED
