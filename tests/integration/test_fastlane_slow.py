"""Limits of bodies and of time on the fast lane: what is cut off, and what slow senders cost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from services.runtime.client_connections import idle_s_max, receive_s_max
from tests.integration.example_lane import body_bytes_max
from tests.integration.lane_world import Answer, World, eventually, get, opened, put, request


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as world:
        yield world


def code_of(answer: Answer) -> str:
    code: str = json.loads(answer.body)["code"]
    return code


async def test_a_body_announced_too_large_is_refused_before_it_comes(world: World) -> None:
    client = await world.connect()
    client.send(request("PUT", "/v1/kv/a", f"Content-Length: {body_bytes_max + 1}"))
    answer = await client.answer()
    assert (answer.status, code_of(answer), answer.closes) == (413, "value_too_large", True)
    with suppress(ConnectionError):
        client.send(b"x" * body_bytes_max)
        client.end_sending()
    assert await client.rest() == b""
    assert not world.lane.begun


async def test_a_chunked_body_is_cut_off_at_the_limit_and_the_answer_arrives(
    world: World,
) -> None:
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    head = request("PUT", "/v1/kv/a", "Transfer-Encoding: chunked")
    whole = await world.ask(head + chunk * 10 + b"0\r\n\r\n")
    assert whole.body == b"stored"
    for _ in range(20):
        client = await world.connect()
        client.send(head)
        # Sent without looking, as most clients do: what has not been read must not reset it.
        client.send(chunk * 200)
        answer = await client.answer()
        assert (answer.status, code_of(answer), answer.closes) == (413, "value_too_large", True)
    client = await world.connect()
    client.send(head + chunk * 10 + b"1\r\nx\r\n")
    assert (await client.answer()).status == 413


async def test_a_refusal_for_size_waits_for_its_turn(world: World) -> None:
    client = await world.connect()
    client.send(get("later") + put("a", b"x" * (body_bytes_max + 1)) + get("never"))
    assert await client.is_silent()
    world.lane.release()
    assert (await client.answer()).body == b"at last"
    assert (await client.answer()).status == 413
    client.end_sending()
    assert await client.rest() == b""
    assert b"/v1/kv/never" not in world.lane.begun


async def test_a_head_and_a_body_that_take_too_long_are_answered_408(world: World) -> None:
    head, body, unwanted = [await world.connect() for _ in range(3)]
    head.send(get("a")[:20])
    body.send(put("a", b"value")[:-1])
    unwanted.send(request("POST", "/nowhere", "Content-Length: 5") + b"1")
    assert (await unwanted.answer()).status == 404
    await asyncio.sleep(0.05)
    world.pass_seconds(receive_s_max - 1)
    # More bytes do not buy more time.
    head.send(get("a")[20:25])
    body.send(b"")
    await asyncio.sleep(0.05)
    world.pass_seconds(1)
    for client in (head, body):
        answer = await client.answer()
        assert (answer.status, code_of(answer), answer.closes) == (408, "request_timeout", True)
        client.end_sending()
        assert await client.rest() == b""
    assert await unwanted.rest() == b""
    assert world.connections.late == 3
    assert world.connections.expired == 0


async def test_the_time_of_a_request_begins_with_its_first_byte(world: World) -> None:
    client = await world.connect()
    await client.ask(get("a"))
    world.pass_seconds(idle_s_max - 2)
    client.send(get("a")[:20])
    await asyncio.sleep(0.05)
    # The head is whole in time, though its connection was idle for longer.
    world.pass_seconds(1)
    client.send(get("a")[20:] + put("a", b"12")[:-1])
    assert (await client.answer()).status == 404
    world.pass_seconds(receive_s_max - 1)
    client.send(b"2")
    assert (await client.answer()).body == b"stored"


async def test_no_time_runs_for_a_request_that_waits_behind_another(world: World) -> None:
    client = await world.connect()
    client.send(get("later") + put("a", b"12")[:-1])
    await eventually(lambda: bool(world.lane.later))
    world.pass_seconds(10 * receive_s_max)
    world.lane.release()
    assert (await client.answer()).status == 200
    world.pass_seconds(receive_s_max - 1)
    client.send(b"2")
    assert (await client.answer()).body == b"stored"


async def test_an_unused_connection_is_closed_without_a_word(world: World) -> None:
    silent, used, pending = [await world.connect() for _ in range(3)]
    for _ in range(3):
        await used.ask(get("a"))
    pending.send(get("later"))
    await eventually(lambda: bool(world.lane.later))
    world.pass_seconds(idle_s_max - 1)
    assert world.connections.expired == 0
    world.pass_seconds(2)
    assert await silent.closed()
    assert await used.closed()
    world.lane.release()
    assert (await pending.answer()).status == 200


async def test_who_sends_a_request_slowly_gives_way_to_new_clients(world: World) -> None:
    world.connections.connections_max = 3
    slow_head, slow_body, pending = [await world.connect() for _ in range(3)]
    slow_head.send(get("a")[:20])
    slow_body.send(put("a", b"12")[:-1])
    pending.send(get("later"))
    await eventually(lambda: bool(world.lane.later))
    await asyncio.sleep(0.05)
    for _ in range(2):
        assert (await world.ask(get("a"))).status == 404
    assert await slow_head.closed()
    assert await slow_body.closed()
    world.lane.release()
    assert (await pending.answer()).status == 200
    # Whose time has been watched is forgotten with it.
    world.pass_seconds(receive_s_max + 1)
    assert world.connections.late == 0


async def test_a_thousand_slow_senders_cost_little_and_are_all_told(world: World) -> None:
    slow = [await world.connect() for _ in range(1000)]
    sent = [get("a") if number % 2 else put("a", b"x" * 60) for number in range(1000)]
    for position in range(20):
        for client, data in zip(slow, sent, strict=True):
            client.send(data[position : position + 1])
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    client = await world.connect()
    loop = asyncio.get_running_loop()
    timers = len(getattr(loop, "_timers", ()))
    began_s = time.process_time()
    for position in range(20, 30):
        for one, data in zip(slow, sent, strict=True):
            one.send(data[position : position + 1])
        for _ in range(20):
            assert (await client.ask(get("a"))).status == 404
    assert time.process_time() - began_s < 10
    assert len(getattr(loop, "_timers", ())) <= timers + 5
    world.pass_seconds(receive_s_max)
    for one in slow:
        answer = await one.answer()
        assert (answer.status, answer.closes) == (408, True)
    assert world.connections.late == 1000
    assert (await client.ask(get("a"))).status == 404
