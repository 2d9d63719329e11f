"""Reading the figures of a node costs the loop little, however much the node holds."""

from __future__ import annotations

import asyncio
import gc
import random
from pathlib import Path

import pytest

from services.dhtnode.figures import add_figures
from services.dhtnode.node import Node
from services.dhtnode.settings import NodeSettings
from services.runtime.clock import FakeClock, SystemClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.loops import Loops
from services.runtime.service import Service
from tests.free_ports import free_port
from tests.integration.node_process import secret


async def test_frozen_objects_are_counted_at_the_start_and_not_when_somebody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeline = Timeline()
    settings = NodeSettings(
        port=free_port(),
        cluster_secret=secret,
        data_dir=Path("/data"),
        segment_bytes=16 << 20,
        disk_reserve_bytes=0,
        replicator_urls=(),
    )
    service = Service("dhtnode", SystemClock())
    node = Node(settings, service, FakeDisk(random.Random(1), FakeClock(timeline)))
    add_figures(service.metrics, node)
    node.open()

    async def run_disk() -> None:
        while True:
            timeline.advance(0.01)
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(run_disk())
    async with Loops(service.fail, SystemClock()) as loops:
        await node.start(loops)

        def count() -> int:
            raise AssertionError("the interpreter walks through all of them, for milliseconds")

        monkeypatch.setattr(gc, "get_freeze_count", count)
        assert int(str(service.metrics.as_json()["frozen_objects"])) > 1_000
        assert b"ydht_frozen_objects" in service.metrics.as_prometheus()
        await node.close()
    ticking.cancel()
