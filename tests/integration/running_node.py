"""A whole node in this process, on a disk in memory that can be held up."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from services.core import messages as m
from services.dhtnode.node import Node
from services.dhtnode.settings import NodeSettings
from services.runtime.clock import FakeClock, SystemClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.service import Service
from tests.free_ports import free_port
from tests.integration.node_process import Stamps, prefix, secret


class RunningNode:
    """Is opened and started by whoever has it, while `run_disk` runs."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.disk = FakeDisk(random.Random(1), FakeClock(self.timeline))
        settings = NodeSettings(
            port=free_port(),
            cluster_secret=secret,
            data_dir=Path("/data"),
            segment_bytes=16 << 20,
            disk_reserve_bytes=0,
            replicator_urls=(),
        )
        self.service = Service("dhtnode", SystemClock())
        self.node = Node(settings, self.service, self.disk)
        self.answers: list[int] = []
        self.stamps = Stamps()

    async def run_disk(self) -> None:
        while True:
            self.timeline.advance(0.01)
            await asyncio.sleep(0.001)

    def put(self, name: bytes) -> bytes:
        key = prefix + name
        write = m.encode_write(0, key, self.stamps.value(b"x"))
        self.node.replica.write(self, 0, write)  # type: ignore[arg-type]
        return key

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        self.answers.append(kind)
