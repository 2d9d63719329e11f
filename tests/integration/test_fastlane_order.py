"""Requests of one connection of the fast lane: answered in order, whoever answers them; clients
that leave, stop reading or end their side; and the end of the service."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest
import structlog

from services.runtime import telemetry
from services.runtime.client_connections import idle_s_max
from tests.integration.example_lane import body_bytes_max
from tests.integration.lane_process import lane_process
from tests.integration.lane_world import (
    Client,
    World,
    eventually,
    get,
    opened,
    put,
    request,
)
from tests.integration.replicator_process import until_told


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as world:
        yield world


def app(path: str, *lines: str, body: bytes = b"") -> bytes:
    return request("POST", f"/app/{path}", *lines, body=body)


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    client = await world.connect()
    count = 3000
    client.send(b"".join(request("POST", f"/v1/kv/{number}") for number in range(count)))
    for number in range(count):
        path = (await client.answer()).body.decode().split("\n")[1]
        assert path == repr(b"/v1/kv/%d" % number)


async def test_answers_made_while_one_read_is_handled_leave_together(world: World) -> None:
    client = await world.connect()
    await client.ask(get("a"))
    (connection,) = world.served
    writes: list[bytes] = []
    connection.transport = cast(asyncio.Transport, WriteSpy(connection.transport, writes))
    client.send(get("a") * 50)
    for _ in range(50):
        assert (await client.answer()).status == 404
    assert len(writes) == 1


class WriteSpy:
    """A transport that notes what is written."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


async def test_the_lane_and_the_application_take_turns_on_one_connection(world: World) -> None:
    client = await world.connect()
    slow = request("GET", "/app/slow?s=0")
    client.send(get("later") + slow + get("later") + app("a", body=b"body"))
    assert await client.is_silent()
    world.lane.release(b"first")
    assert (await client.answer()).body == b"first"
    assert (await client.answer()).body == b'{"slept":true}'
    await eventually(lambda: bool(world.lane.later))
    world.lane.release(b"third")
    assert (await client.answer()).body == b"third"
    assert b"b'body'" in (await client.answer()).body


@pytest.mark.parametrize("pattern", ["fafaf", "aaff", "ffaa", "afffa", "faaaf", "lalal", "alfla"])
async def test_any_mixture_is_answered_in_order(world: World, pattern: str) -> None:
    kinds = {
        "f": lambda number: put(f"{number}", b"v" * number),
        "a": lambda number: app(f"{number}", body=b"v" * number),
        "l": lambda number: request("POST", f"/v1/kv/later?ms={number}", body=b"v" * number),
    }
    sent = [kinds[kind](number) for number, kind in enumerate(pattern)]
    for joined in (sent, [b"".join(sent)]):
        client = await world.connect()
        for piece in joined:
            client.send(piece)
        for number, kind in enumerate(pattern):
            body = (await client.answer()).body
            if kind == "a":
                assert repr(b"/app/%d" % number).encode() in body
                assert body.split(b"\n")[3] == repr(b"v" * number).encode()
            else:
                assert body == (b"stored" if kind == "f" else b"at last")


async def test_what_is_pipelined_is_neither_begun_nor_read_before_its_turn(world: World) -> None:
    client = await world.connect()
    client.send(get("later") + get("second"))
    await eventually(lambda: bool(world.lane.later))
    await asyncio.sleep(0.02)
    (connection,) = world.served
    flood = put("flood", b"x" * body_bytes_max) * 200
    client.send(flood)
    await asyncio.sleep(0.1)
    assert list(world.lane.begun) == [b"/v1/kv/later"]
    assert connection.flow.read_paused
    transport = client.writer.transport
    assert transport.get_write_buffer_size() > len(flood) // 2, "the rest waits at the client's"
    world.lane.release()
    assert (await client.answer()).body == b"at last"
    assert (await client.answer()).status == 404
    for _ in range(200):
        assert (await client.answer()).body == b"stored"


async def test_garbage_behind_requests_is_refused_after_their_answers(world: World) -> None:
    for garbage in (b"\x00garbage\r\n\r\n", b"GET /v1/kv/a HTTP/1.1\r\n\r\n"):
        client = await world.connect()
        client.send(get("later") + app("a") + get("b") + garbage + get("c"))
        await eventually(lambda: bool(world.lane.later))
        world.lane.release()
        assert [(await client.answer()).status for _ in range(4)] == [200, 200, 404, 400]
        client.end_sending()
        assert await client.rest() == b""
    assert b"/v1/kv/c" not in world.lane.begun


async def test_a_body_that_turns_malformed_is_refused_in_turn(world: World) -> None:
    for path in ("/v1/kv/a", "/app/a"):
        chunked = request("POST", path, "Transfer-Encoding: chunked") + b"1\r\na\r\n"
        for before in (b"", get("later"), request("GET", "/app/slow?s=0.1")):
            client = await world.connect()
            client.send(before + chunked)
            await client.is_silent()
            client.send(b"no size\r\n" + get("a"))
            await asyncio.sleep(0.01)
            world.lane.release()
            if before:
                assert (await client.answer()).status == 200
            assert (await client.answer()).status == 400
            client.end_sending()
            assert await client.rest() == b""


async def test_a_client_that_has_gone_does_no_harm(world: World) -> None:
    for behind in (b"", get("second"), app("a"), get("half")[:20]):
        client = await world.connect()
        client.send(get("later") + behind)
        await eventually(lambda: bool(world.lane.later))
        (exchange,) = world.lane.later
        assert not exchange.gone
        client.reset()
        if behind and b"half" not in behind:
            # Nothing is read behind what waits, so that it is not known yet.
            (connection,) = world.served
            connection.transport.abort()
        await eventually(lambda: not world.connections.connections)
        assert exchange.gone
        world.lane.release()
    assert list(world.lane.begun) == [b"/v1/kv/later"] * 4
    assert world.counters.by_status == {"499": 4}
    assert world.counters.in_flight == 0
    assert not world.connections.idle_count
    assert (await world.ask(get("a"))).status == 404


async def test_a_client_that_ends_its_side_still_gets_its_answers(world: World) -> None:
    for sent, answers in (
        (get("later"), [200]),
        (get("later") + get("a") + app("b"), [200, 404, 200]),
        (request("GET", "/app/slow?s=0.05") + app("b", body=b"x"), [200, 200]),
        (request("GET", "/app/slow?s=0.05"), [200]),
        (get("later") + get("a") + put("a", b"whole")[:-1], [200, 404]),
        (get("later") + app("a", body=b"whole")[:-1], [200]),
    ):
        client = await world.connect()
        client.send(sent)
        client.end_sending()
        await asyncio.sleep(0.05)
        world.lane.release()
        assert [(await client.answer()).status for _ in answers] == answers
        assert await client.rest() == b""
    client = await world.connect()
    client.send(put("a", b"whole")[:-1])
    client.end_sending()
    assert await client.rest() == b""


async def test_a_client_that_does_not_read_is_not_read_from_and_dropped_at_last(
    world: World,
) -> None:
    world.lane.values[b"big"] = b"x" * body_bytes_max
    client = await world.connect_slowly_reading()
    count = 2000
    client.send(get("big") * count)
    await eventually(lambda: world.connections.stalled_count == 1)
    await asyncio.sleep(0.05)
    (connection,) = world.served
    begun = len(world.lane.begun)
    assert begun < count / 2
    assert connection.flow.read_paused
    assert connection.transport.get_write_buffer_size() < 1 << 20
    await asyncio.sleep(0.05)
    assert len(world.lane.begun) == begun
    world.pass_seconds(idle_s_max + 1)
    await eventually(lambda: not world.connections.connections)
    assert world.connections.expired == 1


async def test_a_client_that_reads_late_gets_every_answer(world: World) -> None:
    world.lane.values[b"big"] = b"x" * body_bytes_max
    client = await world.connect_slowly_reading()
    count = 100
    client.send((get("big") + app("a")) * count)
    await eventually(lambda: world.connections.stalled_count == 1)
    for _ in range(count):
        assert len((await client.answer()).body) == body_bytes_max
        assert (await client.answer()).status == 200
    assert not world.connections.stalled_count
    assert world.connections.idle_count == 1


async def test_an_application_that_answers_while_it_reads_goes_on_after_a_stall(
    world: World,
) -> None:
    client = await world.connect_slowly_reading()
    client.send(request("POST", "/app/stream", "Content-Length: 3") + b"a")
    await eventually(lambda: world.connections.stalled_count == 1)
    client.send(b"b")
    await asyncio.sleep(0.05)
    received = 0
    async with asyncio.timeout(10):
        while received < 16_000_000:
            received += len(await client.reader.read(1 << 16))
        client.send(b"c")
        while received < 24_000_000:
            received += len(await client.reader.read(1 << 16))


async def test_nothing_follows_the_answer_to_a_request_that_closes(world: World) -> None:
    for last in (get("a", "Connection: close"), app("a", "Connection: close")):
        client = await world.connect()
        client.send(get("later") + last + get("never"))
        await eventually(lambda: bool(world.lane.later))
        world.lane.release()
        assert not (await client.answer()).closes
        assert (await client.answer()).closes
        client.end_sending()
        assert await client.rest() == b""
    assert b"/v1/kv/never" not in world.lane.begun


async def test_a_drain_answers_everything_that_has_arrived(world: World) -> None:
    pending = [await world.connect() for _ in range(64)]
    for client in pending:
        client.send(get("later"))
    queue, apps, idle, halfway, uploading = [await world.connect() for _ in range(5)]
    queue.send(get("later") + app("a") + get("b") + put("arrived", b"later"))
    apps.send(request("GET", "/app/slow?s=0.2") + get("b"))
    await idle.ask(get("a"))
    halfway.send(get("a")[:20])
    upload = put("upload", b"body")
    uploading.send(upload[:-1])
    await eventually(lambda: len(world.lane.later) == 65)
    await asyncio.sleep(0.05)
    draining = asyncio.create_task(world.listener.drain())
    assert await idle.rest() == b""
    assert await halfway.rest() == b""
    world.lane.release()
    for client in pending:
        answer = await client.answer()
        assert (answer.body, answer.closes) == (b"at last", True)
        assert await client.rest() == b""
    closes = [(await queue.answer()).closes for _ in range(4)]
    assert closes == [False, False, False, True]
    assert await queue.rest() == b""
    assert world.lane.values[b"arrived"] == b"later"
    assert [(await apps.answer()).closes for _ in range(2)] == [False, True]
    uploading.send(upload[-1:])
    assert (await uploading.answer()).closes
    await draining


async def test_bytes_behind_the_last_answer_do_not_reset_it(world: World) -> None:
    """Unread input makes the kernel reset a connection that is closed, ahead of the answer."""
    for _ in range(20):
        client = await world.connect()
        world.lane.begun.clear()
        client.send(get("later") + app("a") + put("a", b"x" * body_bytes_max) * 5)
        await eventually(lambda: bool(world.lane.later))
        for connection in world.served:
            connection.shutdown()
        world.lane.release()
        answers = [await client.answer()]
        while not answers[-1].closes:
            answers.append(await client.answer())
        assert [answer.status for answer in answers] == [200] * len(answers)
        assert await client.rest() == b""
        # What has no answer was not begun, so that the client may send it again elsewhere.
        assert len(world.lane.begun) == len(answers) - (1 if len(answers) > 1 else 0)


async def test_sigterm_with_64_requests_in_flight(tmp_path: Path) -> None:
    async with lane_process(tmp_path) as (child, port):
        clients = [Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(64)]
        for client in clients:
            client.send(get("later"))

        async def in_flight() -> bool | None:
            found = (await asking.get(f"http://127.0.0.1:{port}/metrics")).json()
            return found["postponed"] == len(clients) or None

        async with httpx.AsyncClient() as asking:
            await until_told(in_flight, "all of them are in flight")
        child.send_signal(signal.SIGTERM)
        for client in clients:
            answer = await client.answer()
            assert (answer.body, answer.closes) == (b"at last", True)
            assert await client.rest() == b""
            await client.close()
        assert await child.wait() == 0


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    telemetry.configure("shop", "json", stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


async def test_the_access_log_has_lines_of_one_form(log: io.StringIO) -> None:
    async with opened(access_log=True) as world:
        client = await world.connect()
        for path in ("/v1/kv/a%20b?token=abc", "/app/a%20b?token=abc"):
            await client.ask(request("GET", path, "X-Request-ID: r-1"))
        await client.ask(get("bug", "X-Request-ID: r-2"))
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    fast, slow, bug, failed = lines
    assert fast.keys() == slow.keys()
    assert (fast["path"], fast["status"], fast["method"]) == ("/v1/kv/a b", 404, "GET")
    assert fast["client"] == slow["client"] == "127.0.0.1"
    assert fast["request_id"] == slow["request_id"] == "r-1"
    assert (bug["event"], bug["request_id"], failed["status"]) == ("bug", "r-2", 500)
    assert "buggy lane" in bug["exception"]
    assert "abc" not in log.getvalue()


async def test_without_being_asked_for_nothing_is_logged(world: World, log: io.StringIO) -> None:
    await world.ask(get("a"))
    assert log.getvalue() == ""
