"""A replicator that is closed before it coordinates gives back what it has begun to use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from services.core.hlc import pack_version
from services.core.record import value_body
from services.replicator.directory import ReplicatorDirectory
from services.replicator.memory_map_store import MemoryMapStore, Rows
from services.replicator.memory_namespace_store import MemoryNamespaceStore, NamespaceRows
from services.replicator.replicator import Replicator
from services.replicator.settings import ReplicatorSettings
from services.runtime.clock import SystemClock
from services.runtime.disk import SystemDisk
from services.runtime.loops import Loops
from services.runtime.service import Service
from services.runtime.settings import load
from tests.integration.node_process import NodeProcess, secret
from tests.unit.replicator_world import key_of
from tests.waiting import wait_until

# Recovery takes a turn of the event loop or more for each.
nodes: Final = 20
hints_each: Final = 20


class ToldDisk(SystemDisk):
    """Tells when the hints of an earlier run are first looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.hints_wanted = asyncio.Event()

    def names(self, path: Path) -> list[str]:
        if path.name == "hints":
            self.hints_wanted.set()
        return super().names(path)


def replicator_on(data_dir: Path, disk: SystemDisk) -> Replicator:
    environment = {
        "DATA_DIR": str(data_dir),
        "CLUSTER_SECRET": secret,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1/unused",
        "REPLICATOR_PORT": str(NodeProcess(data_dir, "unused").port),
    }
    service = Service("replicator", SystemClock())
    settings = load(ReplicatorSettings, environment)
    namespaces = MemoryNamespaceStore(NamespaceRows())
    return Replicator(settings, service, disk, MemoryMapStore(Rows(), 3, 3), namespaces)


async def live(replicator: Replicator, until: Callable[[], Awaitable[object]]) -> None:
    try:
        replicator.open()
        async with Loops(replicator.service.fail, replicator.service.clock) as loops:
            await replicator.start(loops)
            await until()
    finally:
        await replicator.close()
    assert replicator.service.failure is None


def found_ceiling_ms(data_dir: Path) -> int:
    path = data_dir / "replicators" / "replicator-1"
    directory = ReplicatorDirectory.open(SystemDisk(), path, "replicator-1")
    try:
        assert directory.found is not None
        return directory.found.ceiling_ms
    finally:
        directory.close()


async def test_closed_while_it_recovers_hints_it_seals_its_clock(tmp_path: Path) -> None:
    first = replicator_on(tmp_path, SystemDisk())

    async def keep() -> None:
        await wait_until(lambda: first.coordinator, "it coordinates")
        assert first.coordinator is not None
        record = pack_version(first.coordinator.stamps.time_ms << 16, 1) + value_body(b"missed")
        for node in range(nodes):
            for number in range(hints_each):
                first.coordinator.hints.keep(f"node-{node}", key_of(number), record)

    await live(first, keep)

    disk = ToldDisk()
    second = replicator_on(tmp_path, disk)
    await live(second, disk.hints_wanted.wait)
    assert second.coordinator is None
    # Unsealed, a ceiling of this life lies a second ahead, or one of it is still being stored.
    assert found_ceiling_ms(tmp_path) <= SystemClock().wall_ms()
