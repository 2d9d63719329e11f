"""What is refused of requests about one key, by both lanes: each with its status and its code.

A refusal changes nothing, and neither does it end the connection.
"""

from __future__ import annotations

import itertools
import json
import random
import time

import pytest

from services.core.api_key import new_key
from services.core.operations import batch_bytes_max
from services.core.record import value_bytes_max
from tests.cluster.gateway.answers import found, problem, put, raw, told
from tests.cluster.gateway_platform import Caller, GatewayProcess, Platform, Tenant, new_name
from tests.integration.lane_world import request
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="package")

everything = [
    ("GET", "/v1/kv/a"),
    ("HEAD", "/v1/kv/a"),
    ("PUT", "/v1/kv/a"),
    ("DELETE", "/v1/kv/a"),
    ("PATCH", "/v1/kv/a?ttl=1h"),
    ("POST", "/v1/kv/a/incr"),
]
reads = everything[:2]
writes = everything[2:]


def unknown_key(number: int = 0) -> str:
    """A key that might be one, and is nobody's."""
    return new_key(random.Random(f"nobody's {number}").randrange)


async def refused(caller: Caller, method: str, target: str, body: bytes | None = None) -> str:
    """The code of a refusal, once it is what its status says. To HEAD there is only a status."""
    answer = await caller.ask(method, target, body)
    if method == "HEAD":
        assert answer.content == b""
        answer = await caller.ask("GET", target, body)
    return problem(answer)[1]


# -- who asks


@pytest.mark.parametrize(("method", "target"), everything)
async def test_without_an_api_key_there_is_nothing(
    platform: Platform, gateway: GatewayProcess, method: str, target: str
) -> None:
    nobody = platform.caller(None).at(gateway)
    answer = await nobody.ask(method, target)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="ydht"'
    assert "RateLimit" not in answer.headers
    assert await refused(nobody, method, target) == "missing_api_key"


async def test_who_has_no_good_key_is_told_so_before_a_body_is_sent(
    platform: Platform, gateway: GatewayProcess
) -> None:
    refused_before = unknown_key(8)
    assert await refused(platform.caller(refused_before).at(gateway), *everything[0])
    for lines in ([], ["X-API-Key: ydht_nonsense"], [f"X-API-Key: {refused_before}"]):
        for expects in ([], ["Expect: 100-continue"]):
            client = await gateway.connect()
            client.send(request("PUT", "/v1/kv/a", "Content-Length: 1048576", *lines, *expects))
            answer = await client.answer()
            assert (answer.status, answer.closes) == (401, True), lines
            await client.close()


@pytest.mark.parametrize(("method", "target"), everything)
async def test_only_of_a_put_a_value_is_too_large(
    platform: Platform, ada: Tenant, gateway: GatewayProcess, method: str, target: str
) -> None:
    key = (await ada.make_key()).key
    for size in (value_bytes_max + 1, batch_bytes_max + 1):
        client = await gateway.connect()
        client.send(request(method, target, f"X-API-Key: {key}", f"Content-Length: {size}"))
        answer = await client.answer(to_head=method == "HEAD")
        assert (answer.status, answer.closes) == (413, True)
        if method != "HEAD":
            document = json.loads(answer.body)
            expected = "value_too_large" if method == "PUT" else "body_too_large"
            assert document["code"] == expected
            assert f"larger than {value_bytes_max} bytes" in document["detail"]
            assert ("nothing was changed" in document["detail"]) == (method != "GET")
        await client.close()


async def test_a_part_of_a_value_is_not_put(ada: Tenant, gateway: GatewayProcess) -> None:
    robot = (await ada.caller()).at(gateway)
    path = f"/v1/kv/{new_name()}"
    await put(robot, path, b"whole value")
    part = robot.saying(Content_Range="bytes 0-3/11")
    answer = await part.put(path, b"part")
    assert problem(answer) == (400, "invalid_header")
    assert answer.json()["detail"] == (
        "Content-Range: a PUT replaces the whole value; leave it out"
    )
    assert raw(await robot.saying(X_Consistency="strong").get(path)) == b"whole value"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-API-Key", "ydht_"),
        ("X-API-Key", "ydht_" + "a" * 49),
        ("X-API-Key", "\xff" * 54),
        ("Authorization", "Bearer nonsense"),
        ("Authorization", "Basic YWRhOmFkYQ=="),
        ("Authorization", "Bearer"),
        ("Authorization", ""),
    ],
)
async def test_what_is_no_api_key_is_refused(
    platform: Platform, gateway: GatewayProcess, header: str, value: str
) -> None:
    nobody = platform.caller(None, **{header: value}).at(gateway)
    answer = await nobody.get("/v1/kv/a")
    assert problem(answer) == (401, "invalid_api_key")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="ydht"'


async def test_an_empty_api_key_is_none(platform: Platform, gateway: GatewayProcess) -> None:
    nobody = platform.caller(None, X_API_Key="").at(gateway)
    assert problem(await nobody.get("/v1/kv/a")) == (401, "missing_api_key")


async def test_a_key_that_is_nobodys_is_refused_and_who_tries_many_has_to_wait(
    platform: Platform, gateway: GatewayProcess
) -> None:
    guesser = platform.caller(None, X_Forwarded_For=f"203.0.113.{gateway.port % 250}").at(gateway)
    began_s, tried = time.monotonic(), 0
    # Keys that nobody has tried: one that was refused a moment ago is no new guess.
    keys = (unknown_key(gateway.port + number) for number in itertools.count())
    answer = await guesser.saying(X_API_Key=next(keys)).get("/v1/kv/a")
    while problem(answer) == (401, "invalid_api_key"):
        tried += 1
        answer = await guesser.saying(X_API_Key=next(keys)).get("/v1/kv/a")
    assert problem(answer) == (429, "rate_limited")
    # Thirty at once, and one more every two seconds.
    assert 30 <= tried <= 30 + (time.monotonic() - began_s) / 2
    other = platform.caller(next(keys), X_Forwarded_For="198.51.100.1").at(gateway)
    assert await refused(other, "GET", "/v1/kv/a") == "invalid_api_key"


async def test_an_api_key_may_come_as_a_bearer_token(robot: Caller) -> None:
    await put(robot, "/v1/kv/a")
    key = robot.headers["X-API-Key"]
    for scheme in ("Bearer", "bearer", "BEARER"):
        bearer = robot.without("X-API-Key").saying(Authorization=f"{scheme} {key}")
        assert raw(await bearer.get("/v1/kv/a")) == b"v"
        # Both, if they are the same.
        assert raw(await bearer.saying(X_API_Key=key).get("/v1/kv/a")) == b"v"
    two = robot.saying(Authorization=f"Bearer {unknown_key()}")
    assert await refused(two, "GET", "/v1/kv/a") == "invalid_header"


async def test_an_api_key_ends_when_it_expires(
    platform: Platform, ada: Tenant, gateway: GatewayProcess
) -> None:
    made = await ada.make_key()
    await made.end_in(-1)
    caller = platform.caller(made.key).at(gateway)
    assert await refused(caller, "GET", "/v1/kv/a") == "invalid_api_key"

    made = await ada.make_key()
    await made.end_in(1.5)
    caller = platform.caller(made.key).at(gateway)
    name = new_name("key")
    await put(caller, f"/v1/kv/{name}")

    async def over() -> bool | None:
        answer = await caller.get(f"/v1/kv/{name}")
        assert answer.status_code in (200, 401), answer.text
        return answer.status_code == 401 or None

    await until_told(over, "the key has expired in the middle of being used")
    assert await refused(caller, "PUT", f"/v1/kv/{name}") == "invalid_api_key"


@pytest.mark.parametrize(("method", "target"), everything)
async def test_what_an_api_key_may_not_do_is_refused(
    platform: Platform, ada: Tenant, gateway: GatewayProcess, method: str, target: str
) -> None:
    lacking = [scope for scope in ("read", "write", "admin") if scope != _scope(method)]
    caller = (await ada.caller(*lacking)).at(gateway)
    answer = await caller.ask(method, target)
    assert answer.status_code == 403
    assert "RateLimit" in answer.headers
    assert await refused(caller, method, target) == "insufficient_scope"


def _scope(method: str) -> str:
    return "read" if method in ("GET", "HEAD") else "write"


# -- which key


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/kv/%", "invalid_key"),
        ("/v1/kv/a%2", "invalid_key"),
        ("/v1/kv/a%zz", "invalid_key"),
        ("/v1/kv/%ff", "invalid_key"),
        ("/v1/kv/%c3%28", "invalid_key"),
        ("/v1/kv/%ed%a0%80", "invalid_key"),
        ("/v1/kv/%c0%af", "invalid_key"),
        ("/v1/kv/" + "a" * 1025, "key_too_long"),
        ("/v1/kv/" + "%61" * 1025, "key_too_long"),
        ("/v1/kv/" + "%c3%a9" * 513, "key_too_long"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "POST"])
async def test_what_no_key_can_be_is_refused(
    robot: Caller, method: str, path: str, code: str
) -> None:
    suffix = {"PATCH": "?ttl=1h", "POST": "/incr"}.get(method, "")
    client = await robot.gateway.connect()
    try:
        for _ in range(2):
            answer = await client.ask(request(method, path + suffix, *robot.lines))
            assert answer.status == (414 if code == "key_too_long" else 400)
            assert b'"code":"%s"' % code.encode() in answer.body
            assert not answer.closes
    finally:
        await client.close()


async def test_an_empty_key_is_refused(robot: Caller) -> None:
    client = await robot.gateway.connect()
    try:
        for method, path in (("GET", "/v1/kv/"), ("PUT", "/v1/kv/"), ("POST", "/v1/kv//incr")):
            answer = await client.ask(request(method, path, *robot.lines))
            if path == "/v1/kv//incr":
                # The key is a slash, or what is before it: never nothing.
                assert answer.status == 400, answer.body
            assert (answer.status, b'"code":"invalid_key"' in answer.body) == (400, True)
    finally:
        await client.close()


async def test_a_key_may_be_outside_of_what_an_api_key_is_limited_to(
    ada: Tenant, gateway: GatewayProcess
) -> None:
    caller = (await ada.caller(prefix="mine/")).at(gateway)
    for method, target in everything:
        assert await refused(caller, method, target) == "key_not_allowed"
    assert told(await caller.put("/v1/kv/mine/a", b"v"))["key"] == "mine/a"


# -- which method


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "TRACE", "PROPFIND", "LOCK"])
async def test_a_key_has_some_methods_and_the_answer_names_them(robot: Caller, method: str) -> None:
    answer = await robot.ask(method, "/v1/kv/a")
    assert problem(answer) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "DELETE, GET, HEAD, PATCH, PUT"


async def test_what_is_incremented_can_be_posted_to_and_all_else(robot: Caller) -> None:
    answer = await robot.ask("TRACE", "/v1/kv/a/incr")
    assert problem(answer) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "DELETE, GET, HEAD, PATCH, POST, PUT"


@pytest.mark.parametrize("target", ["/", "/v1", "/v1/", "/v1/nothing", "/v2/kv/a", "/v1/kvs/a"])
async def test_elsewhere_there_is_nothing(robot: Caller, target: str) -> None:
    assert problem(await robot.get(target)) == (404, "not_found")


# -- which options


@pytest.mark.parametrize("consistency", ["", "STRONG", "Eventual", "both", "strong, eventual"])
@pytest.mark.parametrize(("method", "target"), everything)
async def test_consistency_is_strong_or_eventual(
    robot: Caller, method: str, target: str, consistency: str
) -> None:
    said = robot.saying(X_Consistency=consistency)
    assert await refused(said, method, target) == "invalid_consistency"


async def test_what_is_said_twice_may_not_differ(robot: Caller) -> None:
    client = await robot.gateway.connect()
    try:
        for lines, status in (
            (("X-Consistency: strong", "X-Consistency: strong"), 404),
            (("X-Consistency: strong", "X-Consistency: eventual"), 400),
            (("Content-Type: a/b", "Content-Type: c/d"), 400),
            (("X-Namespace: one",), 400),
            (("X-API-Key: ydht_other",), 400),
        ):
            answer = await client.ask(request("GET", "/v1/kv/a", *robot.lines, *lines))
            assert answer.status == status, lines
            assert (b'"code":"invalid_header"' in answer.body) == (status == 400)
    finally:
        await client.close()


@pytest.mark.parametrize("ttl", ["0", "0s", "-1", "-5s", "+5s", "", "soon", "1x", "h", "1h-2m",
                                 "3654d", "1e9", "99999999999999999999", "1" * 65, "nan", "1 h",
                                 "0.0", "%31%78", "%ff", "1h%00"])  # fmt: skip
@pytest.mark.parametrize("consistency", ["eventual", "strong"])
async def test_what_is_no_time_to_live_is_never_ignored(
    robot: Caller, consistency: str, ttl: str
) -> None:
    said = robot.saying(X_Consistency=consistency)
    code = "invalid_query" if ttl == "%ff" else "invalid_ttl"
    assert await refused(said, "PUT", f"/v1/kv/a?ttl={ttl}", b"v") == code
    strong = robot.saying(X_Consistency="strong")
    assert await refused(strong, "GET", "/v1/kv/a") == "key_not_found"


@pytest.mark.parametrize("query", ["", "?ttl=", "?ttl=-1s", "?ttl=3661d", "?ttl=x"])
async def test_a_new_expiry_has_to_be_one(robot: Caller, query: str) -> None:
    etag = await put(robot, "/v1/kv/a")
    assert await refused(robot, "PATCH", f"/v1/kv/a{query}") == "invalid_ttl"
    await found(robot.saying(X_Consistency="strong"), "/v1/kv/a", etag)


@pytest.mark.parametrize(("method", "target"), [
    ("GET", "/v1/kv/a?ttl=1h"),
    ("HEAD", "/v1/kv/a?x"),
    ("PUT", "/v1/kv/a?TTL=1h"),
    ("PUT", "/v1/kv/a?ttl=1h&ttl=1h"),
    ("PUT", "/v1/kv/a?ttl=1h&by=1"),
    ("PUT", "/v1/kv/a?a=1&b=2&c=3"),
    ("DELETE", "/v1/kv/a?prefix=a"),
    ("PATCH", "/v1/kv/a?ttl=1h&by=1"),
    ("POST", "/v1/kv/a/incr?ttl=1h"),
    ("POST", "/v1/kv/a/incr?by="),
    ("POST", "/v1/kv/a/incr?by=one"),
    ("POST", "/v1/kv/a/incr?by=1.0"),
    ("POST", "/v1/kv/a/incr?by=9223372036854775808"),
    ("POST", "/v1/kv/a/incr?by=-9223372036854775809"),
    ("POST", "/v1/kv/a/incr?by=" + "9" * 5000),
    ("POST", "/v1/kv/a/incr?by=1&by=1"),
])  # fmt: skip
async def test_a_query_that_is_not_understood_is_never_ignored(
    robot: Caller, method: str, target: str
) -> None:
    assert await refused(robot, method, target) == "invalid_query"
    strong = robot.saying(X_Consistency="strong")
    assert await refused(strong, "GET", "/v1/kv/a") == "key_not_found"


@pytest.mark.parametrize(("method", "target"), [
    ("PUT", "/v1/kv/a?ttl=%zz"),
    ("GET", "/v1/kv/a?%"),
    ("GET", "/v1/kv?prefix=%zz"),
    ("DELETE", "/v1/kv?prefix=a%2"),
])  # fmt: skip
async def test_half_of_an_escape_in_a_query_is_refused(
    robot: Caller, method: str, target: str
) -> None:
    client = await robot.gateway.connect()
    answer = await client.ask(request(method, target, *robot.lines))
    assert (answer.status, b'"code":"invalid_query"' in answer.body) == (400, True)
    await client.close()


@pytest.mark.parametrize(("method", "target"), everything)
async def test_namespaces_have_names_that_headers_can_carry(
    robot: Caller, method: str, target: str
) -> None:
    for name in ("x" * 256, "", "\xff", "caf\xe9", "a\tb", "\xc0\x80", "\xed\xa0\x80"):
        said = robot.saying(X_Namespace=name)
        assert await refused(said, method, target) == "invalid_namespace", name


@pytest.mark.parametrize("tags", ["", "abc", '"', "*, *", '"a" "b"', "W/", "'a'", '"a",', '"\x7f"',
                                  "0" * 23, "0" * 25])  # fmt: skip
@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
async def test_a_condition_that_is_not_understood_is_never_ignored(
    robot: Caller, header: str, tags: str
) -> None:
    method = "PUT" if header == "If-Match" else "GET"
    assert await refused(robot.saying(**{header: tags}), method, "/v1/kv/a") == "invalid_header"


@pytest.mark.parametrize(("method", "target", "headers"), [
    ("GET", "/v1/kv/a", {"If-Match": "*"}),
    ("PUT", "/v1/kv/a", {"If-None-Match": '"000000000000000000000001"'}),
    ("PUT", "/v1/kv/a", {"If-None-Match": "*", "If-Match": "*"}),
    ("DELETE", "/v1/kv/a", {"If-None-Match": "*"}),
    ("PATCH", "/v1/kv/a?ttl=1h", {"If-None-Match": "*"}),
    ("POST", "/v1/kv/a/incr", {"If-None-Match": "*"}),
    ("PUT", "/v1/kv/a", {"If-Match": ", ".join(['"000000000000000000000001"'] * 65)}),
    ("PUT", "/v1/kv/a", {"Content-Type": "a" * 256}),
    ("PUT", "/v1/kv/a", {"X-Metadata-" + "a" * 256: "b"}),
    ("PUT", "/v1/kv/a", {"X-Metadata-": "b"}),
    ("PATCH", "/v1/kv/a?ttl=1h", {"X-Metadata-A": "b"}),
    ("POST", "/v1/kv/a/incr", {"X-Metadata-A": "b"}),
    ("PUT", "/v1/kv/a", {"If-Unmodified-Since": "Sat, 21 Nov 2026 00:00:00 GMT"}),
    ("PATCH", "/v1/kv/a?ttl=1h", {"If-Modified-Since": "Sat, 21 Nov 2026 00:00:00 GMT"}),
    ("DELETE", "/v1/kv/a", {"If-Unmodified-Since": "Sat, 21 Nov 2026 00:00:00 GMT"}),
])  # fmt: skip
async def test_headers_that_make_no_sense_are_never_ignored(
    robot: Caller, method: str, target: str, headers: dict[str, str]
) -> None:
    assert await refused(robot.saying(**headers), method, target) == "invalid_header"
    strong = robot.saying(X_Consistency="strong")
    assert await refused(strong, "GET", "/v1/kv/a") == "key_not_found"


async def test_a_value_is_put_as_it_is_or_refused(robot: Caller) -> None:
    packed = robot.saying(Content_Encoding="gzip")
    assert await refused(packed, "PUT", "/v1/kv/a", b"v") == "unsupported_media_type"
    assert await refused(robot, "GET", "/v1/kv/a") == "key_not_found"
    await put(robot.saying(Content_Encoding="identity"), "/v1/kv/a", b"v")
    # Of a read it means nothing.
    assert raw(await packed.get("/v1/kv/a")) == b"v"


async def test_a_fragment_is_a_part_of_the_key_that_was_not_encoded(robot: Caller) -> None:
    await put(robot, "/v1/kv/a", b"1")
    for method, target in (("PUT", "/v1/kv/a#b"), ("DELETE", "/v1/kv/a#b"), ("GET", "/v1/kv/a#b")):
        client = await robot.gateway.connect()
        answer = await client.ask(request(method, target, *robot.lines))
        assert (answer.status, b"written %23" in answer.body) == (400, True)
        await client.close()
    assert raw(await robot.get("/v1/kv/a")) == b"1"


@pytest.mark.parametrize(("method", "target"), writes[1:])
async def test_a_body_that_nobody_reads_is_refused(robot: Caller, method: str, target: str) -> None:
    etag = await put(robot, "/v1/kv/a", b"1")
    assert await refused(robot, method, target, b"body") == "invalid_body"
    await found(robot.saying(X_Consistency="strong"), "/v1/kv/a", etag)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_read_is_answered_as_if_it_had_no_body(robot: Caller, method: str) -> None:
    etag = await put(robot, "/v1/kv/a")
    await found(robot, "/v1/kv/a", etag)
    assert (await robot.ask(method, "/v1/kv/a", b"body")).status_code == 200
    assert (await robot.ask(method, "/v1/kv/a")).status_code == 200
