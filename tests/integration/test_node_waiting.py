"""A look at a node's own copy waits for the disk, for the key's own change and not for ever; and
for its turn among all else that takes long."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.requests import Request

from services.core.errors import RetryLater
from services.core.ring import slot_of
from services.core.wire import OK
from services.dhtnode import node as node_module
from services.dhtnode.routes import Store
from services.dhtnode.turns import waiting_max
from services.runtime.clock import SystemClock
from services.runtime.loops import Loops
from tests.integration.node_process import prefix
from tests.integration.running_node import RunningNode
from tests.waiting import wait_until


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


def listing(limit: int) -> Request:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/store",
        "headers": [(b"x-ydht-tenant", b"7")],
        "query_string": b"limit=%d" % limit,
    }
    return Request(scope)


async def test_a_look_at_all_keys_is_made_in_the_one_queue_of_what_takes_long(
    running: RunningNode,
) -> None:
    node, store = running.node, Store(running.node)
    for number in range(1_500):
        key = prefix + b"key-%04d" % number
        node.table.put(slot_of(key), key, running.stamps.value(b"x"))
    made: list[int] = []

    def steps(number: int) -> Iterator[None]:
        for _ in range(3):
            made.append(number)
            yield

    waiting = [asyncio.create_task(node.in_turns(steps(n))) for n in range(waiting_max)]
    await asyncio.sleep(0)
    with pytest.raises(RetryLater, match="overloaded"):
        await store.list(listing(100))
    assert made == [], "one was made outside of the queue"
    await asyncio.gather(*waiting)
    assert len(made) == 3 * waiting_max
    pages = [
        json.loads(bytes((await store.list(listing(limit))).body)) for limit in (1, 300, 1_000)
    ]
    for limit, page in zip((1, 300, 1_000), pages, strict=True):
        shown = [key["key"] for key in page["keys"]]
        assert shown == [f"key-{number:04d}" for number in range(limit)]
        assert (page["count"], bytes.fromhex(page["cursor"])) == (limit, b"key-%04d" % limit)
