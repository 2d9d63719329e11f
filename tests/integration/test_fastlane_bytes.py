"""However the bytes of requests are cut, and whichever way leads to the lane, the answers are the
same ones."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

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

# Of these each way to the lane has its own.
own = frozenset({b"date", b"x-request-id", b"connection", b"content-type"})
_request_id = re.compile(rb'"request_id": ?"[0-9a-f]{32}"')


def shown(answer: Answer) -> tuple[int, list[tuple[bytes, bytes]], bytes, bytes | None]:
    """What of an answer must be the same."""
    fields = sorted(field for field in answer.fields if field[0] not in own)
    body = _request_id.sub(b'"request_id"', answer.body)
    return answer.status, fields, body, answer.field(b"content-type")


async def answers_to(world: World, requests: list[bytes], pieces: list[bytes]) -> list[Answer]:
    """To those requests, sent in those pieces, each of which is read by itself."""
    client = await world.connect()
    async with asyncio.TaskGroup() as group:
        answers = group.create_task(_all_answers(client, requests))
        for piece in pieces:
            client.send(piece)
            # What has been written can be read in the next turn of the loop.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    await client.close()
    return answers.result()


async def _all_answers(client: Client, requests: list[bytes]) -> list[Answer]:
    return [await client.answer(to_head=data.startswith(b"HEAD ")) for data in requests]


chunked = "Transfer-Encoding: chunked"
conversation = [
    put("a", b"a value"),
    get("a"),
    get("a"),
    request("HEAD", "/v1/kv/a"),
    request("POST", "/v1/kv/e?q", chunked) + b"3;x=y\r\nabc\r\n0\r\nT: t\r\n\r\n",
    request("POST", "/app/e?q", chunked) + b"3\r\nabc\r\n0\r\nT: t\r\n\r\n",
    request("GET", "/app/e"),
    put("a", b"another"),
    b"\r\n" + get("a"),
    request("DELETE", "/v1/kv/a"),
    request("GET", "http://x/v1/kv/a"),
    request("POST", "/v1/kv/e", "Connection: Upgrade", "Upgrade: h2c", body=get("hidden")),
    request("POST", "/v1/kv/e", "X: y  ", "x: z"),
]


async def test_the_same_bytes_cut_at_every_place_get_the_same_answers() -> None:
    whole = b"".join(conversation)
    async with opened() as world:
        expected = [shown(one) for one in await answers_to(world, conversation, [whole])]
        assert [one[0] for one in expected] == [200] * 10 + [404, 200, 200]
        for cut in range(1, len(whole)):
            pieces = [whole[:cut], whole[cut:]]
            world.lane.values.clear()
            found = await answers_to(world, conversation, pieces)
            assert [shown(one) for one in found] == expected, pieces


async def test_bytes_one_by_one_get_the_same_answers() -> None:
    whole = b"".join(conversation)
    async with opened() as world:
        expected = [shown(one) for one in await answers_to(world, conversation, [whole])]
        for step in (1, 2, 3, 7):
            world.lane.values.clear()
            pieces = [whole[start : start + step] for start in range(0, len(whole), step)]
            found = await answers_to(world, conversation, pieces)
            assert [shown(one) for one in found] == expected


@dataclass(frozen=True, slots=True)
class Plan:
    requests: list[bytes]
    pieces: list[bytes]


keys = st.sampled_from(["a", "b", "a%20b", "later?ms=1", "x/y?q=1"])
bodies = st.sampled_from([b"", b"1", b"x" * 100, get("hidden"), b"\r\n\r\n", b"y" * 3000])
extra = st.lists(
    st.sampled_from(["X-A: 1", "X-A: 2", "X-B:  padded ", "Accept: */*", "Connection: keep-alive"]),
    max_size=3,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]))
    where = draw(st.sampled_from(["/v1/kv/", "/v1/kv/", "/v1/kv/", "http://x:1/v1/kv/", "/app/"]))
    path = where + draw(keys)
    lines = draw(extra)
    body = draw(bodies)
    if body and draw(st.booleans()):
        size = draw(st.integers(1, len(body)))
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks[:200])
        return request(method, path, *lines, chunked) + framed + b"0\r\n\r\n"
    return request(method, path, *lines, body=body)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    drawn = draw(st.lists(requests(), min_size=1, max_size=8))
    repeated = [one for one in drawn for _ in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        return Plan(repeated, repeated)
    whole = b"".join(repeated)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(whole) - 1)), max_size=6)))
    ends = zip([0, *cuts], [*cuts, len(whole)], strict=True)
    return Plan(repeated, [whole[start:end] for start, end in ends])


@given(plans())
def test_both_ways_to_the_lane_give_the_same_answers(plan: Plan) -> None:
    async def compare() -> None:
        async with opened() as fast, opened(fast=False) as slow:
            found = await answers_to(fast, plan.requests, plan.pieces)
            expected = await answers_to(slow, plan.requests, plan.pieces)
            assert list(map(shown, found)) == list(map(shown, expected))
            assert fast.lane.begun == slow.lane.begun
            assert fast.lane.values == slow.lane.values
            assert fast.counters.by_status == slow.counters.by_status

    uvloop.run(compare())


@pytest.mark.parametrize("fast", [True, False])
async def test_either_way_cuts_bodies_off_and_drops_who_leaves(fast: bool) -> None:
    async with opened(fast=fast) as world:
        client = await world.connect()
        answer = await client.ask(put("a", b"x" * 100_001))
        assert (answer.status, answer.closes) == (413, True)
        client = await world.connect()
        client.send(get("later"))
        await eventually(lambda: bool(world.lane.later))
        client.reset()
        await eventually(lambda: world.lane.later[0].gone)
        world.lane.release()
        await eventually(lambda: world.counters.by_status["499"] == 1)
        assert world.counters.in_flight == 0
