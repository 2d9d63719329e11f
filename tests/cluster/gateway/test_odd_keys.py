"""Keys that nobody would think of and limits to the byte, by both lanes, written by hand.

A key is everything behind /v1/kv/, percent-decoded to bytes, and nothing that a path might mean
elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.core.record import value_bytes_max
from services.runtime.listener import head_bytes_max
from tests.cluster.gateway_platform import Caller
from tests.integration.lane_world import Answer, Client, request

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest_asyncio.fixture(loop_scope="package")
async def client(robot: Caller) -> AsyncIterator[Client]:
    client = await robot.gateway.connect()
    yield client
    await client.close()


def strongly(robot: Caller, method: str, path: str, *lines: str, body: bytes = b"") -> bytes:
    return request(method, path, *robot.lines, "X-Consistency: strong", *lines, body=body)


def code(answer: Answer) -> str:
    found: str = json.loads(answer.body)["code"]
    return found


odd_paths = [
    ("a/b/c", "a/b/c"),
    ("/", "/"),
    ("//", "//"),
    ("a//b", "a//b"),
    ("a/", "a/"),
    (".", "."),
    ("..", ".."),
    ("../../etc/passwd", "../../etc/passwd"),
    ("a/./b/../c", "a/./b/../c"),
    ("%2e%2e/%2E%2E", "../.."),
    ("a%2Fb", "a/b"),
    ("a%2fb", "a/b"),
    ("%61", "a"),
    ("%25", "%"),
    ("%2525", "%25"),
    ("a+b", "a+b"),
    ("a%20b", "a b"),
    ("%3Fttl=1h", "?ttl=1h"),
    ("%23", "#"),
    ("a;b=c,d", "a;b=c,d"),
    ("a:b@c", "a:b@c"),
    ("%00", "\0"),
    ("%0d%0aX-Injected:%20yes", "\r\nX-Injected: yes"),
    ("%7f", "\x7f"),
    ("caf%C3%A9", "café"),
    ("%F0%9F%98%80", "\N{GRINNING FACE}"),
    ("%EF%BF%BF", "\uffff"),
    ("%ef%bb%bf", "\ufeff"),
    ("e%CC%81", "e\u0301"),
    ('"<>|\\^`{}', '"<>|\\^`{}'),
    ("incr", "incr"),
    ("incr/", "incr/"),
    ("incr/incr", "incr/incr"),
    ("a/incr", "a/incr"),
    ("a/incr/b", "a/incr/b"),
    ("/incr", "/incr"),
]


@pytest.mark.parametrize(("path", "key"), odd_paths)
async def test_a_key_is_the_bytes_that_its_path_stands_for(
    robot: Caller, client: Client, path: str, key: str
) -> None:
    value = key.encode()
    made = await client.ask(strongly(robot, "PUT", f"/v1/kv/{path}", body=value))
    assert made.status == 200, made.body
    document = json.loads(made.body)
    assert document["key"] == key
    again = "".join(f"%{byte:02X}" for byte in value)
    for spelling in (path, again, again.lower()):
        got = await client.ask(strongly(robot, "GET", f"/v1/kv/{spelling}"))
        assert (got.status, got.body) == (200, value)
        assert got.field(b"etag") == f'"{document["etag"]}"'.encode()
        assert got.field(b"x-injected") is None
    gone = await client.ask(strongly(robot, "DELETE", f"/v1/kv/{again}"))
    assert json.loads(gone.body)["key"] == key
    missing = await client.ask(strongly(robot, "GET", f"/v1/kv/{path}"))
    assert code(missing) == "key_not_found"


async def test_keys_that_look_alike_are_different_ones(robot: Caller, client: Client) -> None:
    paths = ["a", "A", "a/", "/a", "./a", "a%20", "%E2%84%AB", "%C3%85", "A%CC%8A", "a%00", "%00a"]
    for path in paths:
        body = path.encode()
        made = await client.ask(strongly(robot, "PUT", f"/v1/kv/{path}", body=body))
        assert made.status == 200
    for path in paths:
        got = await client.ask(strongly(robot, "GET", f"/v1/kv/{path}"))
        assert got.body == path.encode()


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/incr", "a"),
        ("incr/incr", "incr"),
        ("a/incr/incr", "a/incr"),
        ("/incr/incr", "/incr"),
        ("//incr", "/"),
        ("a%2Fb/incr", "a/b"),
        ("a/b/incr", "a/b"),
        ("../incr", ".."),
    ],
)
async def test_only_a_post_is_an_increment_and_of_what_stands_before_it(
    robot: Caller, client: Client, path: str, key: str
) -> None:
    counted = await client.ask(strongly(robot, "POST", f"/v1/kv/{path}?by=7"))
    document = json.loads(counted.body)
    assert (counted.status, document["key"], document["value"]) == (200, key, 7)
    spelled = "".join(f"%{byte:02x}" for byte in key.encode())
    got = await client.ask(strongly(robot, "GET", f"/v1/kv/{spelled}"))
    assert got.body == b"7"
    # The path itself names another key.
    other = await client.ask(strongly(robot, "GET", f"/v1/kv/{path}"))
    assert code(other) == "key_not_found"


@pytest.mark.parametrize("path", ["a%2Fincr", "a/%69ncr", "a/incr/", "incr", "a/INCR", "aincr"])
async def test_what_only_looks_like_an_increment_is_none(
    robot: Caller, client: Client, path: str
) -> None:
    answer = await client.ask(strongly(robot, "POST", f"/v1/kv/{path}"))
    assert (answer.status, code(answer)) == (405, "method_not_allowed")


async def test_a_target_may_be_absolute(robot: Caller, client: Client) -> None:
    made = await client.ask(strongly(robot, "PUT", "http://elsewhere:1/v1/kv/a?ttl=1h", body=b"v"))
    assert json.loads(made.body)["key"] == "a"
    got = await client.ask(strongly(robot, "GET", "/v1/kv/a"))
    assert got.body == b"v"


# -- limits


@pytest.mark.parametrize("unit", ["a", "%61", "%C3%A9"])
async def test_a_key_has_at_most_1024_bytes(robot: Caller, client: Client, unit: str) -> None:
    bytes_each = 2 if unit == "%C3%A9" else 1
    longest = unit * (1024 // bytes_each)
    made = await client.ask(strongly(robot, "PUT", f"/v1/kv/{longest}", body=b"v"))
    assert made.status == 200, made.body
    got = await client.ask(strongly(robot, "GET", f"/v1/kv/{longest}"))
    assert got.body == b"v"
    for method in ("PUT", "GET", "DELETE"):
        refused = await client.ask(strongly(robot, method, f"/v1/kv/{longest}a"))
        assert (refused.status, code(refused)) == (414, "key_too_long")
    counted = await client.ask(strongly(robot, "POST", f"/v1/kv/{longest[:-6]}/incr"))
    assert counted.status == 200


async def test_a_value_has_at_most_a_mebibyte(robot: Caller, client: Client) -> None:
    assert value_bytes_max == 1 << 20
    largest = bytes(range(256)) * 4096
    made = await client.ask(strongly(robot, "PUT", "/v1/kv/a", body=largest))
    assert made.status == 200, made.body
    got = await client.ask(strongly(robot, "GET", "/v1/kv/a"))
    assert got.body == largest
    # Told by its length alone, before any of it was sent.
    announced = strongly(robot, "PUT", "/v1/kv/a", f"Content-Length: {len(largest) + 1}")
    refused = await client.ask(announced)
    assert (refused.status, code(refused)) == (413, "value_too_large")
    assert refused.closes
    # It was somebody's, whose rate limit it counts against.
    assert refused.field(b"ratelimit") is not None


async def test_a_value_is_counted_while_it_arrives(robot: Caller, client: Client) -> None:
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    fits = strongly(robot, "PUT", "/v1/kv/a", "Transfer-Encoding: chunked")
    made = await client.ask(fits + piece * 16 + b"0\r\n\r\n")
    assert made.status == 200, made.body
    client.send(strongly(robot, "PUT", "/v1/kv/a", "Transfer-Encoding: chunked") + piece * 16)
    client.send(b"1\r\ny\r\n")
    refused = await client.answer()
    assert (refused.status, code(refused)) == (413, "value_too_large")
    assert (b"connection", b"close") in refused.fields
    other = await robot.gateway.connect()
    got = await other.ask(strongly(robot, "GET", "/v1/kv/a"))
    await other.close()
    assert got.body == b"x" * (1 << 20)


@pytest.mark.parametrize("count", [1, 16, 64])
async def test_metadata_has_at_most_a_kibibyte(robot: Caller, client: Client, count: int) -> None:
    """Names without X-Metadata- and values together."""
    share = 1024 // count
    full = [f"X-Metadata-{number:02d}: {'v' * (share - 2)}" for number in range(count)]
    made = await client.ask(strongly(robot, "PUT", "/v1/kv/a", *full, body=b"v"))
    assert made.status == 200, made.body
    got = await client.ask(strongly(robot, "GET", "/v1/kv/a"))
    kept = [field for field in got.fields if field[0].startswith(b"x-metadata-")]
    assert sum(len(name) - len("x-metadata-") + len(value) for name, value in kept) == 1024
    refused = await client.ask(
        strongly(robot, "PUT", "/v1/kv/a", *full[:-1], full[-1] + "v", body=b"w")
    )
    assert (refused.status, code(refused)) == (413, "metadata_too_large")
    got = await client.ask(strongly(robot, "GET", "/v1/kv/a"))
    assert got.body == b"v"


async def test_a_head_has_at_most_16_kibibytes(robot: Caller, client: Client) -> None:
    assert head_bytes_max == 16 * 1024
    plain = strongly(robot, "GET", "/v1/kv/a")
    room = head_bytes_max - len(plain) - len("X-Filling: \r\n")
    full = strongly(robot, "GET", "/v1/kv/a", "X-Filling: " + "x" * room)
    assert len(full) == head_bytes_max
    answer = await client.ask(full)
    assert (answer.status, code(answer)) == (404, "key_not_found")
    # The application leaves the method and the version out of what it counts.
    more = 1 if robot.gateway.is_fast else 32
    refused = await client.ask(full.replace(b"X-Filling: ", b"X-Filling: " + b"x" * more))
    assert (refused.status, code(refused)) == (431, "headers_too_large")
    assert refused.closes
    assert await client.closed()


async def test_a_client_that_asks_first_sends_nothing_in_vain(
    robot: Caller, client: Client
) -> None:
    expecting = "Expect: 100-continue"
    client.send(strongly(robot, "PUT", "/v1/kv/a", expecting, "Content-Length: 5"))
    assert (await client.answer()).status == 100
    made = await client.ask(b"value")
    assert made.status == 200
    refused = await client.ask(
        strongly(robot, "PUT", "/v1/kv/a", expecting, "Content-Length: 9999999")
    )
    assert (refused.status, code(refused)) == (413, "value_too_large")


async def test_clients_of_http_1_0_are_served(robot: Caller, client: Client) -> None:
    old = strongly(robot, "PUT", "/v1/kv/a", body=b"v").replace(b"HTTP/1.1", b"HTTP/1.0")
    made = await client.ask(old)
    assert made.status == 200
    assert await client.closed()
