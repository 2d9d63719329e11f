"""The same request over and over on one connection, which a fast lane takes by a way of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.runtime.client_connections import idle_s_max
from tests.integration.lane_world import World, eventually, get, opened, put, request


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as world:
        yield world


async def test_each_is_a_request_of_its_own(world: World) -> None:
    client = await world.connect()
    asked = 0
    for number in range(4):
        body = b"value %d" % number
        assert (await client.ask(put("a", body))).body == b"stored"
        for _ in range(4):
            assert (await client.ask(get("a"))).body == body
            # By the same header lines, and to another target.
            assert (await client.ask(get("a?b"))).body == body
            assert (await client.ask(get("b"))).status == 404
            assert (await client.ask(request("DELETE", "/v1/kv/b"))).status == 204
            asked += 4
        asked += 1
    assert world.lane.asked == len(world.lane.begun) == asked
    assert world.counters.latency_ms.count == asked


async def test_the_same_one_behind_another_in_one_read_is_answered_too(world: World) -> None:
    client = await world.connect()
    for _ in range(4):
        assert (await client.ask(get("a"))).status == 404
    client.send(get("a") * 5 + put("a", b"1") + get("a"))
    statuses = [(await client.answer()).status for _ in range(7)]
    assert statuses == [404] * 5 + [200, 200]
    assert (await client.ask(get("a"))).body == b"1"


async def test_what_is_not_answered_at_once_is_under_way_until_it_is(world: World) -> None:
    client = await world.connect()
    for _ in range(5):
        client.send(get("later"))
        await eventually(lambda: bool(world.lane.later))
        assert (world.counters.in_flight, world.connections.idle_count) == (1, 0)
        world.lane.release()
        assert (await client.answer()).body == b"at last"
        assert (world.counters.in_flight, world.connections.idle_count) == (0, 1)
        await client.ask(get("a"))
        await client.ask(get("a"))


async def test_a_bug_each_time_is_answered_each_time(world: World) -> None:
    client = await world.connect()
    for _ in range(4):
        assert (await client.ask(get("bug"))).status == 500
        assert (await client.ask(get("rash"))).status == 500
    assert (await client.ask(get("a"))).status == 404
    assert world.counters.in_flight == 0


async def test_the_application_has_its_turn_in_between(world: World) -> None:
    client = await world.connect()
    for _ in range(4):
        assert (await client.ask(request("GET", "/app/a"))).status == 200
        assert (await client.ask(get("a"))).status == 404
        assert (await client.ask(get("a"))).status == 404
    assert world.connections.idle_count == 1


async def test_who_asks_again_and_again_is_not_idle(world: World) -> None:
    client, silent = await world.connect(), await world.connect()
    await silent.ask(get("a"))
    for _ in range(3):
        world.pass_seconds(idle_s_max - 5)
        for _ in range(3):
            assert (await client.ask(get("a"))).status == 404
    assert await silent.closed()
    assert world.connections.expired == 1
    world.pass_seconds(idle_s_max + 1)
    assert await client.closed()


async def test_who_has_asked_last_is_the_last_to_give_way(world: World) -> None:
    clients = [await world.connect() for _ in range(3)]
    for client in clients:
        await client.ask(get("a"))
        await client.ask(get("a"))
    world.pass_seconds(1)
    await clients[0].ask(get("a"))
    world.connections.connections_max = 3
    newest = await world.connect()
    assert (await newest.ask(get("a"))).status == 404
    assert await clients[1].closed()
    assert (await clients[0].ask(get("a"))).status == 404
