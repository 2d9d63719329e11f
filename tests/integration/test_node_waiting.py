"""A look at a node's own copy waits for the disk: for the key's own change, and not for ever."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core import messages as m
from services.core.errors import RetryLater
from services.core.wire import OK
from services.dhtnode import node as node_module
from services.dhtnode.node import Node
from services.dhtnode.settings import NodeSettings
from services.runtime.clock import FakeClock, SystemClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.loops import Loops
from services.runtime.service import Service
from tests.free_ports import free_port
from tests.integration.node_process import Stamps, prefix, secret
from tests.waiting import wait_until


class RunningNode:
    """A whole node on a disk in memory that can be held up."""

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


@pytest.fixture
async def running() -> AsyncIterator[RunningNode]:
    running = RunningNode()
    running.node.open()
    ticking = asyncio.create_task(running.run_disk())
    async with Loops(running.service.fail, SystemClock()) as loops:
        await running.node.start(loops)
        yield running
        running.disk.thaw()
        await running.node.close()
    ticking.cancel()


async def refused(waiting: asyncio.Task[None]) -> RetryLater:
    with pytest.raises(RetryLater) as caught:
        async with asyncio.timeout(5):
            await waiting
    return caught.value


async def test_a_look_waits_for_the_keys_own_change_and_for_no_other(running: RunningNode) -> None:
    first = running.put(b"first")
    await running.node.until_durable(first)
    assert running.answers == [OK]
    running.disk.freeze()
    second = running.put(b"second")
    async with asyncio.timeout(1):
        await running.node.until_durable(first)
    waiting = [asyncio.create_task(running.node.until_durable(key)) for key in (second, None)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    running.disk.thaw()
    await asyncio.gather(*waiting)
    assert running.answers == [OK, OK]


async def test_a_look_behind_a_disk_that_stands_still_is_refused_after_a_while(
    running: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "durable_wait_s_max", 0.05)
    running.disk.freeze()
    key = running.put(b"key")
    for waits_for in (key, None):
        error = await refused(asyncio.create_task(running.node.until_durable(waits_for)))
        assert error.code == "overloaded"
        assert "its disk is slow, or full" in error.detail
    running.disk.thaw()
    await wait_until(lambda: running.answers == [OK], "the write is durable")
    await running.node.until_durable(key)


async def test_a_look_is_refused_when_the_disk_fails_and_from_then_on(
    running: RunningNode,
) -> None:
    running.disk.freeze()
    key = running.put(b"key")
    waiting = asyncio.create_task(running.node.until_durable(key))
    await asyncio.sleep(0.02)
    running.disk.fail("sync", errno.EIO, "*/log-*")
    running.disk.thaw()
    for task in (waiting, asyncio.create_task(running.node.until_durable(key))):
        assert (await refused(task)).code == "shutting_down"
    assert running.answers == []
    assert "the disk failed" in str(running.service.failure)


async def test_a_look_is_refused_when_the_node_closes(running: RunningNode) -> None:
    running.disk.freeze()
    key = running.put(b"key")
    waiting = asyncio.create_task(running.node.until_durable(key))
    await asyncio.sleep(0.02)
    closing = asyncio.create_task(running.node.close())
    assert (await refused(waiting)).code == "shutting_down"
    running.disk.thaw()
    await closing
    assert running.answers == [OK]
