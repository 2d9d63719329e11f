"""The fast lane is a whole HTTP/1.1 server: framing, versions, targets, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import pytest

from services.runtime.listener import head_bytes_max
from tests.integration.lane_world import Answer, World, get, opened, put, request


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as world:
        yield world


def code_of(answer: Answer) -> str:
    assert answer.field(b"content-type") == b"application/problem+json"
    document = json.loads(answer.body)
    assert document["status"] == answer.status
    assert document["request_id"].encode() == answer.field(b"x-request-id")
    code: str = document["code"]
    return code


async def test_a_value_is_stored_and_read_on_one_connection(world: World) -> None:
    client = await world.connect()
    assert (await client.ask(put("a", b"value"))).status == 200
    answer = await client.ask(get("a"))
    assert (answer.status, answer.body) == (200, b"value")
    assert not answer.closes
    assert answer.field(b"content-type") == b"text/plain"
    date = answer.field(b"date")
    assert date is not None
    assert parsedate_to_datetime(date.decode()).tzinfo is not None


async def test_head_tells_the_length_of_a_body_that_it_leaves_out(world: World) -> None:
    client = await world.connect()
    await client.ask(put("a", b"value"))
    answer = await client.ask(request("HEAD", "/v1/kv/a"))
    assert (answer.status, answer.field(b"content-length")) == (200, b"5")
    # Had a body come, this answer would begin with it.
    assert (await client.ask(get("a"))).body == b"value"


async def test_204_has_neither_body_nor_length(world: World) -> None:
    client = await world.connect()
    answer = await client.ask(request("DELETE", "/v1/kv/a"))
    assert answer.status == 204
    assert answer.field(b"content-length") is None
    assert (await client.ask(get("a"))).status == 404


async def test_a_body_of_every_size_comes_back(world: World) -> None:
    client = await world.connect()
    for size in (1, 1023, 1024, 1025, 65_535, 65_536, 70_000, 100_000):
        body = bytes([size % 251]) * size
        assert (await client.ask(put("a", body))).status == 200
        assert (await client.ask(get("a"))).body == body


async def test_a_chunked_body_is_put_together_and_its_trailers_are_dropped(world: World) -> None:
    client = await world.connect()
    head = request("POST", "/v1/kv/echo", "Transfer-Encoding: chunked", "Trailer: X-API-Key")
    chunks = b"2;name=value\r\nab\r\n1\r\nc\r\n0\r\nX-API-Key: mine\r\n\r\n"
    answer = await client.ask(head + chunks)
    assert b"b'abc'" in answer.body
    assert b"x-api-key" not in answer.body
    # Nor does a trailer slip into the next request.
    assert b"x-api-key" not in (await client.ask(request("POST", "/v1/kv/echo"))).body


async def test_a_client_that_asks_first_is_told_to_go_on_once_its_turn_has_come(
    world: World,
) -> None:
    client = await world.connect()
    body = b"the body"
    head = put("a", body, "Expect: 100-Continue")[: -len(body)]
    client.send(get("later") + head)
    assert await client.is_silent()
    world.lane.release()
    assert (await client.answer()).body == b"at last"
    assert (await client.answer()).status == 100
    client.send(body)
    assert (await client.answer()).body == b"stored"
    assert world.lane.values[b"a"] == body


async def test_nobody_is_told_to_go_on_for_a_body_that_is_there_or_not_wanted(
    world: World,
) -> None:
    client = await world.connect()
    assert (await client.ask(put("a", b"whole", "Expect: 100-continue"))).body == b"stored"
    assert (await client.ask(get("a", "Expect: 100-continue"))).body == b"whole"
    old = put("a", b"body", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert (await client.ask(old)).body == b"stored"
    client = await world.connect()
    client.send(request("PUT", "/v1/kv/a", "Content-Length: 100001", "Expect: 100-continue"))
    answer = await client.answer()
    assert (answer.status, code_of(answer)) == (413, "value_too_large")


async def test_an_application_too_tells_its_client_to_go_on(world: World) -> None:
    client = await world.connect()
    client.send(request("POST", "/app/echo", "Content-Length: 4", "Expect: 100-continue"))
    assert (await client.answer()).status == 100
    client.send(b"body")
    assert b"b'body'" in (await client.answer()).body


@pytest.mark.parametrize("path", ["/v1/kv/a", "/app/a"])
@pytest.mark.parametrize(
    "lines",
    [
        ["Transfer-Encoding: chunked", "Content-Length: 3"],
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Content-Length: 3", "Content-Length: 3"],
        ["Content-Length: 3", "Content-Length: 4"],
        ["Content-Length: 3, 3"],
        ["Content-Length: +3"],
        ["Content-Length: -3"],
        ["Content-Length: 0x3"],
        ["Content-Length: three"],
        ["Content-Length:"],
        ["Content-Length: 99999999999999999999999999"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, gzip"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked;a=b"],
        ["Transfer-Encoding:"],
        ["Host: y"],
        ["Host: x"],
        ["Expect: a miracle"],
        ["A: b", " folded"],
        ["A : b"],
        ["A\t: b"],
        [" A: b"],
        ["A b"],
        [": b"],
        ["A: \x00"],
        ["A: \x7f"],
        ["A: b\rC: d"],
        ["A: b\nC: d"],
    ],
    ids=repr,
)
async def test_what_contradicts_itself_or_is_malformed_is_refused(
    world: World, lines: list[str], path: str
) -> None:
    client = await world.connect()
    client.send(request("PUT", path, *lines) + b"abc")
    answer = await client.answer()
    assert (answer.status, code_of(answer), answer.closes) == (400, "invalid_header", True)
    client.end_sending()
    assert await client.rest() == b""
    assert not world.lane.begun
    assert world.connections.malformed == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v1/kv/a\r\n\r\n",
        b"GET /v1/kv/a HTTP/0.9\r\nHost: x\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET /v1/kv/a HTTP/2.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET /v1/kv/a HTTP/1.1\nHost: x\n\n",
        b"GET /v1/kv/a HTTP/1.1\r\n\r\n",
        b"GET /v1/kv/a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/kv/\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"get /v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET ftp://x/v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http:///v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://me:secret@x/v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\nHost: x/y\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\nHost: x:eighty\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=repr,
)
async def test_what_is_no_request_of_this_version_is_refused(world: World, raw: bytes) -> None:
    client = await world.connect()
    client.send(raw)
    answer = await client.answer()
    assert (answer.status, code_of(answer), answer.closes) == (400, "invalid_header", True)
    assert answer.field(b"date") is not None
    client.end_sending()
    assert await client.rest() == b""


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("http://x/v1/kv/a?q=1", b"/v1/kv/a", b"q=1"),
        ("HTTPS://other:8080/v1/kv/a", b"/v1/kv/a", b""),
        ("http://[::1]:80/v1/kv/a?", b"/v1/kv/a", b""),
        ("/v1/kv/a%2Fb%20c//d?x=%41&y", b"/v1/kv/a%2Fb%20c//d", b"x=%41&y"),
        ("/v1/kv/a?b?c", b"/v1/kv/a", b"b?c"),
        ("/v1/kv/", b"/v1/kv/", b""),
        ("/app/a%2Fb?q=%20", b"/app/a%2Fb", b"q=%20"),
        ("http://x/app/a?q", b"/app/a", b"q"),
    ],
)
async def test_a_target_is_taken_as_its_path_and_query(
    world: World, target: str, path: bytes, query: bytes
) -> None:
    client = await world.connect()
    for _ in range(4):
        lines = (await client.ask(request("POST", target))).body.decode().split("\n")
        assert lines[:4] == [repr(b"POST"), repr(path), repr(query), repr(b"")]


@pytest.mark.parametrize(
    "target",
    ["/v1/kv/a#b", "/v1/kv/a?ttl=1h#b", "/v1/kv/#", "/app/a#b", "http://x/v1/kv/a#b"],
)
async def test_a_fragment_is_refused_and_no_other_key_is_meant(world: World, target: str) -> None:
    for method, body in (("PUT", b"value"), ("GET", b""), ("DELETE", b"")):
        client = await world.connect()
        # Once one of its kind has gone by, the parser is asked no more about what is alike.
        for _ in range(3):
            await client.ask(request(method, "/v1/kv/other", body=body))
        answer = await client.ask(request(method, target, body=body))
        assert (answer.status, code_of(answer)) == (400, "invalid_header")
        assert "written %23" in json.loads(answer.body)["detail"]
    assert b"/v1/kv/a" not in world.lane.begun
    assert b"a" not in world.lane.values


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            request("PUT", "/v1/kv/a", "Content-Length: 3", "Transfer-Encoding: chunked"),
            "Transfer-Encoding can't be present with Content-Length",
        ),
        (
            request("PUT", "/v1/kv/a", "Content-Length: 3", "Content-Length: 3"),
            "Duplicate Content-Length",
        ),
        (b"GET /v1/kv/\xc3\xa9 HTTP/1.1\r\n\r\n", "Invalid char in url path; percent-encode"),
        (b"GET /v1/kv/a b HTTP/1.1\r\n\r\n", "percent-encode the target, a blank as %20"),
        (b"get /v1/kv/a HTTP/1.1\r\n\r\n", "Invalid method encountered; methods are in capitals"),
        (b"secret /v1/kv/a HTTP/1.1\r\n\r\n", "Invalid method encountered"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "TLS is not spoken here"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 is not spoken here"),
        (b"GET / HTTP/1.1\r\nsecret: \x00\r\n\r\n", "Invalid header value char"),
    ],
    ids=repr,
)
async def test_what_is_malformed_is_told_what_is_wrong_with_it(
    world: World, raw: bytes, told: str
) -> None:
    client = await world.connect()
    detail = json.loads((await client.ask(raw)).body)["detail"]
    assert detail.startswith("This is not an HTTP/1.1 request: ")
    assert told in detail
    assert "secret" not in detail


async def test_fields_arrive_in_lower_case_in_order_and_without_blanks(world: World) -> None:
    sent = request("POST", "/v1/kv/a", "X-B:  two words \t", "x-a:\t1", "X-B: \xe9", "X-Empty:")
    client = await world.connect()
    for _ in range(4):
        lines = (await client.ask(sent)).body.decode().split("\n")[4:]
        assert lines == [
            "b'host': b'x'",
            "b'x-b': b'two words'",
            "b'x-a': b'1'",
            "b'x-b': b'\\xe9'",
            "b'x-empty': b''",
        ]


async def test_an_old_client_may_ask_to_keep_its_connection(world: World) -> None:
    old = b"GET /v1/kv/a HTTP/1.0\r\n"
    client = await world.connect()
    for _ in range(4):
        answer = await client.ask(old + b"Connection: keep-alive\r\n\r\n")
        assert (answer.status, answer.field(b"connection")) == (404, b"keep-alive")
    assert (await client.ask(old + b"\r\n")).closes
    assert await client.rest() == b""


async def test_a_connection_is_closed_when_its_client_says_so(world: World) -> None:
    client = await world.connect()
    for _ in range(3):
        assert not (await client.ask(get("a"))).closes
    answer = await client.ask(get("a", "Connection: Close"))
    assert (answer.status, answer.closes) == (404, True)
    assert await client.rest() == b""


@pytest.mark.parametrize("path", ["/v1/kv/a", "/app/a"])
@pytest.mark.parametrize(
    "offer",
    [
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
        ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
    ],
)
async def test_an_offer_to_upgrade_is_declined_by_answering(
    world: World, path: str, offer: list[str]
) -> None:
    hidden = get("hidden")
    framed = {
        "none": request("POST", path, *offer),
        "zero": request("POST", path, *offer, "Content-Length: 00"),
        "length": request("POST", path, *offer, body=hidden),
        "chunked": request("POST", path, *offer, "Transfer-Encoding: chunked")
        + b"%x\r\n%b\r\n0\r\nX: trailer\r\n\r\n" % (len(hidden), hidden),
    }
    for name, sent in framed.items():
        for cut in (len(sent), sent.index(b"\r\n\r\n") + 4, sent.index(b"\r\n\r\n") + 14):
            client = await world.connect()
            for _ in range(2):
                client.send(sent[:cut])
                await client.is_silent() if cut < len(sent) else None
                client.send(sent[cut:] + get("behind") + sent)
                lines = (await client.answer()).body.decode().split("\n")
                assert lines[3] == repr(hidden if name in ("length", "chunked") else b"")
                assert (await client.answer()).status == 404
                assert (await client.answer()).status == 200
    assert b"/v1/kv/hidden" not in world.lane.begun


async def test_a_head_of_the_largest_size_is_taken_and_a_larger_one_is_not(world: World) -> None:
    for path in ("/v1/kv/a", "/app/a"):
        shell = len(request("GET", path, "X: "))
        room = head_bytes_max - shell
        for size, taken in ((room, True), (room + 1, False)):
            sent = request("GET", path, "X: " + "x" * size)
            for step in (len(sent), 1000):
                client = await world.connect()
                for start in range(0, len(sent), step):
                    client.send(sent[start : start + step])
                answer = await client.answer()
                assert (answer.status != 431) is taken, (path, size, step)
                if not taken:
                    assert code_of(answer) == "headers_too_large"
                    assert answer.closes


async def test_a_long_head_behind_another_request_in_one_read_is_not_taken(world: World) -> None:
    for path in ("/v1/kv/a", "/app/a"):
        client = await world.connect()
        client.send(get("a") + request("GET", path, "X: " + "x" * 40_000))
        assert (await client.answer()).status == 404
        assert (await client.answer()).status == 431


async def test_a_head_without_end_is_refused(world: World) -> None:
    for endless in (b"GET /v1/kv/" + b"a" * 20_000, get("a")[:-2] + b"A: b\r\n" * 4000):
        client = await world.connect()
        client.send(endless)
        assert code_of(await client.answer()) == "headers_too_large"
    client = await world.connect()
    client.send(b"\r\n" * 20_000)
    assert (await client.answer()).status == 431


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Host: b\r\n" + "A: b\r\n" * 4000, 431),
        ("Host: b\r\nHost: c\r\n", 400),
        ("Host: b\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400),
        ("Host: b\r\nno colon\r\n", 400),
    ],
)
@pytest.mark.parametrize("path", ["/v1/kv/a", "/app/a"])
@pytest.mark.parametrize("fast", [True, False])
async def test_a_head_that_is_refused_to_head_gets_no_body(
    path: str, lines: str, status: int, *, fast: bool
) -> None:
    async with opened(fast=fast) as world:
        # Only the fast lane refuses behind an answer; the other one closes the connection there.
        for before in (b"", get("a")) if fast else (b"",):
            for method, to_head in (("HEAD", True), ("GET", False)):
                client = await world.connect()
                client.send(before + f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode())
                if before:
                    await client.answer()
                answer = await client.answer(to_head=to_head)
                assert (answer.status, answer.closes) == (status, True)
                assert int(answer.field(b"content-length") or b"") > 0
                assert bool(answer.body) is not to_head
                assert await client.rest() == b""


async def test_trailers_and_chunk_extensions_are_bounded(world: World) -> None:
    head = request("POST", "/v1/kv/a", "Transfer-Encoding: chunked")
    for more in (b"1;" + b"e" * 20_000, b"0\r\n" + b"T: t\r\n" * 4000):
        client = await world.connect()
        client.send(head)
        for start in range(0, len(more), 1000):
            client.send(more[start : start + 1000])
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (431, "headers_too_large")


async def test_a_bug_of_the_lane_is_answered_and_the_connection_goes_on(world: World) -> None:
    client = await world.connect()
    for path in ("bug", "wrong", "rash"):
        for _ in range(3):
            answer = await client.ask(get(path, "X-Request-ID: find-me"))
            assert (answer.status, code_of(answer)) == (500, "internal")
            assert answer.field(b"x-request-id") == b"find-me"
        assert code_of(await client.ask(get(path))) == "internal"
    # What the lane replies once it has recovered is dropped.
    world.lane.release()
    assert (await client.ask(get("a"))).status == 404
    assert world.counters.by_status["500"] == 12
    assert world.counters.in_flight == 0


async def test_a_second_answer_is_a_bug(world: World) -> None:
    client = await world.connect()
    client.send(get("later"))
    await client.is_silent()
    (exchange,) = world.lane.later
    world.lane.release()
    assert (await client.answer()).body == b"at last"
    with pytest.raises(RuntimeError, match="answered"):
        exchange.reply(200, b"", b"again")
    assert await client.is_silent()


async def test_both_sides_count_into_the_same_figures(world: World) -> None:
    client = await world.connect()
    await client.ask(put("a", b"1"))
    for _ in range(3):
        await client.ask(get("a"))
    await client.ask(get("b"))
    await client.ask(request("GET", "/app/a"))
    await client.ask(request("GET", "/nowhere"))
    assert world.counters.by_status == {"200": 5, "404": 2}
    assert world.counters.latency_ms.count == 7
    assert world.counters.in_flight == 0


async def test_the_same_fields_come_as_the_same_object_however_they_arrive(world: World) -> None:
    client = await world.connect()
    for _ in range(3):
        await client.ask(get("a", "X-API-Key: k"))
        await client.ask(put("a", b"12345", "X-API-Key: k"))
    sent = get("other?q=1", "X-API-Key: k")
    client.send(sent[:30])
    await client.is_silent()
    await client.ask(sent[30:])
    gets, puts = world.lane.headers_seen[0], world.lane.headers_seen[1]
    assert list(world.lane.headers_seen) == [gets, puts, gets, puts, gets, puts, gets]
    assert gets is not puts
    await client.ask(get("a", "X-API-Key: K"))
    assert world.lane.headers_seen[-1] is not gets
    # Nor is anything shared between connections.
    await world.ask(get("a", "X-API-Key: K"))
    assert world.lane.headers_seen[-1] is not world.lane.headers_seen[-2]
    assert world.lane.asked == len(world.lane.begun)
