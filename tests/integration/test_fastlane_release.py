"""What a connection held is free again when it is lost, without the help of the cycle collector.

The collector comes by seldom (runtime/service.py). Thousands of clients a second, each with a
connection of its own, would leave as many behind until then, with all that they have sent.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.integration.lane_world import World, eventually, get, opened, put, request

put_head = b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\n"
half_sent = {
    "nothing": b"",
    "half a head": b"GET /v1/kv/a HTTP/1.1\r\nHost:",
    "half a body": put_head + b"Content-Length: 90000\r\n\r\n" + b"b" * 80000,
    "half a chunk": put_head + b"Transfer-Encoding: chunked\r\n\r\nff\r\na",
    "half a body for the application": b"POST /app/a HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: 90000\r\n\r\n" + b"b" * 80000,
}
answered = {
    "of the lane": get("a"),
    "of the lane, with a body": put("a", b"b" * 50000),
    "of the application": request("POST", "/app/a", body=b"b"),
    "of nobody": get("a").replace(b"/v1/kv/a", b"/nowhere"),
    "no HTTP": b"nonsense\r\n\r\n",
    "no host": b"GET /v1/kv/a HTTP/1.1\r\n\r\n",
    "two answers, then no HTTP": get("a") + request("POST", "/app/a", body=b"b") + b"\x00",
    "too large": put("a", b"b" * 200_000),
    "an upgrade": put("a", b"ab", "Connection: Upgrade", "Upgrade: h2c"),
    "a bug": get("bug"),
}


@pytest.fixture(params=[True, False], ids=["fast", "application"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with opened(fast=request.param) as world:
        yield world


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("sent", answered.values(), ids=answered)
async def test_what_was_answered_leaves_nothing_behind(world: World, sent: bytes) -> None:
    client = await world.connect()
    client.send(sent)
    await client.answer()
    await _nothing_is_left(world, client.end_sending)


@pytest.mark.parametrize("sent", half_sent.values(), ids=half_sent)
@pytest.mark.parametrize("way", ["ended", "reset"])
async def test_what_was_never_whole_leaves_nothing_behind(
    world: World, sent: bytes, way: str
) -> None:
    client = await world.connect()
    client.send(sent)
    await eventually(lambda: bool(world.connections.connections))
    assert await client.is_silent()
    await _nothing_is_left(world, client.reset if way == "reset" else client.end_sending)


async def test_who_leaves_before_the_answer_leaves_nothing_behind(world: World) -> None:
    client = await world.connect()
    client.send(get("later"))
    await eventually(lambda: bool(world.lane.later))
    [connection] = map(weakref.ref, world.connections.connections)
    client.reset()
    await eventually(lambda: not world.connections.connections)
    world.lane.release()
    await eventually(lambda: connection() is None)


async def _nothing_is_left(world: World, leave: Callable[[], None]) -> None:
    left = [weakref.ref(connection) for connection in world.connections.connections]
    assert left
    leave()
    await eventually(lambda: not world.connections.connections)
    await eventually(lambda: not any(connection() for connection in left))
