"""Bodies that are not here with their head: who is refused before they are read, and how much of
them may be held; and answers that nobody reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from services.runtime.body_room import BodyRoom
from tests.integration.lane_world import (
    Answer,
    Client,
    World,
    eventually,
    get,
    opened,
    put,
    request,
)

large = 90_000


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as world:
        yield world


@pytest.fixture(params=[True, False], ids=["fast", "route"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with opened(fast=request.param) as world:
        yield world


def code_of(answer: Answer) -> str:
    code: str = json.loads(answer.body)["code"]
    return code


async def upload(world: World, *lines: str, key: str = "a", sent: int = large - 1) -> Client:
    """A client that has sent so much of a large body."""
    client = await world.connect()
    client.send(request("PUT", f"/v1/kv/{key}", f"Content-Length: {large}", *lines) + b"x" * sent)
    return client


@pytest.mark.parametrize("expects", [[], ["Expect: 100-continue"]])
@pytest.mark.parametrize("framing", ["Content-Length: 50000", "Transfer-Encoding: chunked"])
async def test_who_is_refused_by_the_head_need_not_send_the_body(
    either: World, framing: str, expects: list[str]
) -> None:
    client = await either.connect()
    client.send(request("PUT", "/v1/kv/a?refused", framing, *expects))
    answer = await client.answer()
    assert (answer.status, code_of(answer), answer.closes) == (401, "missing_api_key", True)
    client.end_sending()
    assert await client.rest() == b""
    assert not either.lane.begun
    assert either.lane.asked_early == 1


async def test_who_waits_for_a_good_word_gets_it_where_nothing_is_wrong(either: World) -> None:
    client = await either.connect()
    client.send(request("PUT", "/v1/kv/a", "Content-Length: 3", "Expect: 100-continue"))
    assert (await client.answer()).status == 100
    assert (await client.ask(b"abc")).body == b"stored"
    assert either.lane.asked_early == 1


async def test_a_body_that_is_here_with_its_head_is_not_asked_about(world: World) -> None:
    client = await world.connect()
    for _ in range(3):
        assert (await client.ask(put("a?refused", b"x" * 1000))).status == 200
    assert world.lane.asked_early == 0


async def test_a_refusal_by_the_head_waits_for_its_turn(world: World) -> None:
    client = await world.connect()
    client.send(get("later") + request("PUT", "/v1/kv/a?refused", "Content-Length: 50000"))
    assert await client.is_silent()
    assert world.lane.asked_early == 0
    world.lane.release()
    assert (await client.answer()).body == b"at last"
    assert (await client.answer()).status == 401


async def test_a_bug_in_what_refuses_is_answered_500(world: World) -> None:
    def rash(exchange: object) -> None:
        raise KeyError("a rash lane")

    world.lane.refusal = rash  # type: ignore[method-assign]
    client = await world.connect()
    answer = await client.ask(request("PUT", "/v1/kv/a", "Content-Length: 50000"))
    assert (answer.status, answer.closes) == (500, True)
    await eventually(lambda: world.counters.in_flight == 0)


async def test_large_bodies_have_one_room_and_leave_it_with_their_answers(either: World) -> None:
    room = either.lane.room = BodyRoom(10 * large, 4 * large)
    clients = [await upload(either, f"X-API-Key: {number % 3}") for number in range(9)]
    await eventually(lambda: room.taken_bytes + room.refused * large >= 9 * (large - 1))
    assert room.taken_bytes < 7 * large
    refused = room.refused
    assert refused > 0
    statuses = []
    for client in clients:
        client.send(b"x")
        answer = await client.answer()
        statuses.append(answer.status)
        assert answer.status == 200 or (code_of(answer), answer.closes) == ("overloaded", True)
    assert statuses.count(503) == refused
    assert room.taken_bytes == 0
    assert (await (await upload(either, sent=large)).answer()).status == 200
    await eventually(lambda: room.taken_bytes == 0)


async def test_one_client_leaves_room_for_others(either: World) -> None:
    either.lane.room = BodyRoom(100 * large, 3 * large)
    mine = [await upload(either, "X-API-Key: mine") for _ in range(6)]
    await eventually(lambda: either.lane.room.refused == 3)
    others = await upload(either, "X-API-Key: another's", sent=large)
    assert (await others.answer()).status == 200
    assert len(mine) == 6


async def test_who_leaves_takes_its_body_along(either: World) -> None:
    room = either.lane.room
    clients = [await upload(either) for _ in range(4)]
    await eventually(lambda: room.taken_bytes >= 4 * (large - 1))
    for client in clients:
        client.reset()
    await eventually(lambda: room.taken_bytes == 0)
    # What is under way holds its body until it is answered, also if nobody waits for that.
    client = await upload(either, key="later", sent=large)
    await eventually(lambda: bool(either.lane.later))
    assert room.taken_bytes >= large
    client.reset()
    await eventually(lambda: not either.served or not either.connections.connections)
    either.lane.release()
    await eventually(lambda: room.taken_bytes == 0)


async def test_a_malformed_body_gives_its_room_back_at_once(world: World) -> None:
    client = await world.connect()
    chunk = b"%x\r\n" % large + b"x" * large + b"\r\n"
    client.send(request("PUT", "/v1/kv/a", "Transfer-Encoding: chunked") + chunk)
    await eventually(lambda: world.lane.room.taken_bytes >= large)
    answer = await client.ask(b"no chunk\r\n")
    assert (answer.status, answer.closes) == (400, True)
    assert world.lane.room.taken_bytes == 0


async def test_many_small_chunks_of_a_large_body_seldom_ask_for_room(world: World) -> None:
    asked = 0

    class Counting(BodyRoom):
        def take(self, *args: object) -> bool:
            nonlocal asked
            asked += 1
            return super().take(*args)  # type: ignore[arg-type]

    world.lane.room = Counting()
    client = await world.connect()
    chunks = b"1\r\nx\r\n" * large + b"0\r\n\r\n"
    client.send(request("PUT", "/v1/kv/a", "Transfer-Encoding: chunked") + chunks)
    assert (await client.answer()).status == 200
    assert world.lane.values[b"a"] == b"x" * large
    assert asked == 1


async def test_an_upload_that_comes_along_gives_way_after_those_that_idle(world: World) -> None:
    world.connections.connections_max = 2
    client = await upload(world, sent=10)
    await eventually(lambda: world.lane.asked_early == 1)
    idle = await world.connect()
    await eventually(lambda: world.connections.idle_count == 2)
    client.send(b"x" * (large - 20))
    await eventually(lambda: world.lane.room.taken_bytes > 0)
    assert (await world.ask(get("a"))).status == 404
    assert await idle.closed()
    assert (await client.ask(b"x" * 10)).status == 200


async def test_who_holds_most_of_the_answers_that_nobody_reads_is_cut(world: World) -> None:
    for number in range(3):
        world.lane.values[b"%d" % number] = b"x" * 9_000_000
    world.lane.values[b"most"] = b"x" * 18_000_000
    held = [await unread(world, key) for key in ("0", "most", "1")]
    await eventually(lambda: world.connections.stalled_count == 3)
    before = world.connections.unread_bytes
    assert 18_000_000 < before < 36_000_000
    world.connections.unread_bytes_max = before + 1_000_000
    held.append(await unread(world, "2"))
    await eventually(lambda: world.connections.unread == 1)
    assert world.connections.stalled_count == 3
    assert 9_000_000 < world.connections.unread_bytes < before
    # The others lose nothing.
    for client in (held[0], held[2], held[3]):
        assert len((await client.answer()).body) == 9_000_000
    await eventually(lambda: world.connections.unread_bytes == 0)
    assert await was_cut(held[1])


async def unread(world: World, key: str) -> Client:
    client = await world.connect_slowly_reading()
    client.send(get(key))
    return client


async def was_cut(client: Client) -> bool:
    try:
        await client.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        return True
    return False


async def test_what_has_been_read_is_not_counted_any_more(world: World) -> None:
    world.lane.values[b"a"] = b"x" * 20_000_000
    client = await world.connect_slowly_reading()
    client.send(get("a"))
    await eventually(lambda: world.connections.stalled_count == 1)
    before = world.connections.unread_bytes
    async with asyncio.timeout(10):
        await client.reader.readexactly(10_000_000)
    world.connections.expire()
    assert world.connections.unread_bytes < before - 5_000_000
    client.reset()
    await eventually(lambda: world.connections.unread_bytes == 0)


async def test_one_answer_that_is_more_than_all_may_hold_cuts_its_own_connection(
    world: World,
) -> None:
    world.connections.unread_bytes_max = 1_000_000
    world.lane.values[b"a"] = b"x" * 20_000_000
    client = await unread(world, "a")
    assert await was_cut(client)
    await eventually(lambda: not world.connections.connections)
    assert (world.connections.unread_bytes, world.connections.idle_count) == (0, 0)
    assert (await world.ask(get("b"))).status == 404
