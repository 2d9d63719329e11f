"""Both lanes answer alike: the same requests are sent to each, and the answers compared bytewise.

What may differ is masked: the date, ids that a gateway makes up, times, and versions, of which it
matters which are the same. And so is the replica that a read was answered by. Names of headers are
compared without their case and in no order, which HTTP gives no meaning to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

import pytest

from tests.cluster.gateway_platform import (
    GatewayProcess,
    LaneName,
    Platform,
    Tenant,
    new_name,
    page_origin,
)
from tests.integration.lane_world import Answer, request

pytestmark = pytest.mark.asyncio(loop_scope="package")

version = re.compile(rb"\b[0-9a-f]{24}\b")
time_of_day = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
masked = (b"date", b"last-modified", b"x-node-id")
strong = "X-Consistency: strong"
octets = "Content-Type: application/octet-stream"
Step = tuple[str, str, Sequence[str], bytes]


def step(method: str, path: str, *lines: str, body: bytes = b"") -> Step:
    return method, path, lines, body


def told(answers: Sequence[Answer]) -> list[tuple[int, list[tuple[bytes, bytes]], bytes]]:
    """The answers with what may differ masked."""
    versions: dict[bytes, bytes] = {}

    def name_of(match: re.Match[bytes]) -> bytes:
        return versions.setdefault(match[0], b"version %02d of these      " % len(versions))

    def plain(data: bytes) -> bytes:
        return version.sub(name_of, time_of_day.sub(b"a time", data))

    return [
        (
            answer.status,
            sorted(
                (name, b"masked" if name in masked else plain(value))
                for name, value in answer.fields
            ),
            plain(answer.body),
        )
        for answer in answers
    ]


async def play(
    gateway: GatewayProcess, steps: Sequence[Step], lines: Sequence[str]
) -> list[Answer]:
    """Ask all this on one connection, which a refusal may end."""
    client = await gateway.connect()
    answers = []
    for number, (method, path, own, body) in enumerate(steps):
        sent = request(method, path, *lines, f"X-Request-ID: step-{number}", *own, body=body)
        answers.append(await client.ask(sent))
        if answers[-1].closes:
            await client.close()
            client = await gateway.connect()
    await client.close()
    return answers


def steps_of(key: str, consistency: str) -> list[Step]:
    """Whatever can be done to a key, from its first value to its last."""
    path = f"/v1/kv/{key}"
    mode = f"X-Consistency: {consistency}"
    metadata = ("Content-Type: text/plain", "X-Metadata-B: 2", "X-Metadata-A: 1")
    return [
        step("GET", path, mode),
        step("PUT", path, mode, *metadata, body=b"value"),
        step("GET", path, strong),
        step("HEAD", path, strong),
        step("GET", path, strong, "If-None-Match: *"),
        step("GET", path, strong, 'If-None-Match: "0123456789abcdef01234567"'),
        step("HEAD", path, strong, "If-None-Match: *"),
        step("PUT", path, mode, "If-None-Match: *", body=b"other"),
        step("PUT", path, mode, 'If-Match: "0123456789abcdef01234567"', body=b"other"),
        step("PUT", path, mode, "If-Match: *", body=b"other"),
        step("PATCH", f"{path}?ttl=1h", mode),
        step("GET", path, strong),
        step("PATCH", f"{path}?ttl=0", mode),
        step("POST", f"{path}/incr", mode),
        step("PUT", f"{path}?ttl=1d", mode, body=b"41"),
        step("POST", f"{path}/incr?by=1", mode),
        step("GET", path, strong),
        step("DELETE", path, mode, 'If-Match: "0123456789abcdef01234567"'),
        step("DELETE", path, mode),
        step("DELETE", path, mode),
        step("GET", path, strong),
        step("HEAD", path, strong),
        step("PATCH", f"{path}?ttl=1h"),
        step("DELETE", path, "If-Match: *"),
    ]


refusals = [
    step("GET", "/v1/kv/"),
    step("GET", "/v1/kv/%"),
    step("GET", "/v1/kv/%ff"),
    step("GET", "/v1/kv/" + "a" * 1025),
    step("GET", "/v1/kv/a?x=1"),
    step("GET", "/v1/kv/a", "X-Consistency: both"),
    step("GET", "/v1/kv/a", "X-Namespace: \xff"),
    step("GET", "/v1/kv/a", "If-Match: *"),
    step("PUT", "/v1/kv/a?ttl=-1", body=b"v"),
    step("PUT", "/v1/kv/a?ttl=1h&ttl=1h", body=b"v"),
    step("PUT", "/v1/kv/a", "X-Metadata-A: " + "v" * 1024, body=b"v"),
    step("PUT", "/v1/kv/a", "X-Metadata-A: 1", "X-Metadata-A: 2", body=b"v"),
    step("PUT", "/v1/kv/a", "If-None-Match: none", body=b"v"),
    step("DELETE", "/v1/kv/a", body=b"body"),
    step("POST", "/v1/kv/a", body=b"body"),
    step("TRACE", "/v1/kv/a"),
    step("POST", "/v1/kv/a/incr?by=x"),
    step("POST", "/v1/kv//incr"),
    step("GET", "/v1/nothing"),
    step("GET", "/v1/kv/a", "Authorization: Bearer other"),
]
elsewhere = [
    step("GET", "/v1/kv?prefix=no-such"),
    step("GET", "/v1/kv?limit=0"),
    step("GET", "/v1/kv", "X-Consistency: strong"),
    step("GET", "/v1/kv?cursor=none"),
    step("DELETE", "/v1/kv"),
    step("DELETE", "/v1/kv?prefix=no-such&dry_run=true"),
    step("POST", "/v1/batch", "Content-Type: application/json", body=b'{"operations":[]}'),
    step("POST", "/v1/batch", "Content-Type: application/json", body=b"{"),
    step("POST", "/v1/batch", octets, body=b"{}"),
    step("GET", "/v1/namespaces/no-such"),
    step("POST", "/v1/ids"),
]


async def compared(platform: Platform, steps: Sequence[Step], lines: Sequence[str]) -> list[Answer]:
    """The fast lane's answers, once the other one's are the same."""
    by_lane: dict[LaneName, list[Answer]] = {}
    for lane, gateway in platform.gateways.items():
        by_lane[lane] = await play(gateway, steps, lines)
    both = zip(steps, told(by_lane["fast"]), told(by_lane["application"]), strict=True)
    for asked, fast, application in both:
        assert fast == application, asked
    return by_lane["fast"]


@pytest.mark.parametrize("consistency", ["eventual", "strong"])
@pytest.mark.parametrize("key", ["a", "a/b", "caf%C3%A9", "%00%0D%0A", "incr"])
async def test_what_is_done_to_a_key_is_answered_alike(
    platform: Platform, ada: Tenant, consistency: str, key: str
) -> None:
    # With one key and one namespace: where a key is depends on both.
    lines = [*(await ada.caller()).lines, f"X-Namespace: {new_name('lanes')}"]
    answers = await compared(platform, steps_of(key, consistency), lines)
    assert [answer.status for answer in answers] == [
        404, 200, 200, 200, 304, 200, 304, 412, 412, 200, 200, 200, 200, 409, 200, 200, 200, 412,
        200, 200, 404, 404, 404, 412,
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [refusals, elsewhere], ids=["keys", "elsewhere"])
async def test_what_is_refused_is_refused_alike(
    platform: Platform, ada: Tenant, steps: list[Step]
) -> None:
    lines = [*(await ada.caller()).lines, f"X-Namespace: {new_name('lanes')}"]
    answers = await compared(platform, steps, lines)
    assert all(answer.status >= 400 for answer in answers) or steps is elsewhere


async def test_nobody_and_pages_of_others_are_answered_alike(
    platform: Platform, ada: Tenant
) -> None:
    caller = await ada.caller("read", prefix="mine/")
    asked = [
        step(method, path)
        for method, path in product(("GET", "HEAD", "PUT"), ("/v1/kv/a", "/v1/kv/mine/a"))
    ]
    for lines in (
        [],
        ["X-API-Key: ydht_nonsense"],
        ["Authorization: Basic YWRhOmFkYQ=="],
        caller.lines,
        [*caller.lines, f"Origin: {page_origin}"],
        [*caller.lines, "Origin: https://evil.example"],
        [f"Origin: {page_origin}"],
        ["X-Ydht-Signature: v1"],
    ):
        for answer in await compared(platform, asked, lines):
            assert answer.status in (401, 403, 404)


async def test_a_made_up_request_id_stands_in_header_and_problem_on_both_lanes(
    platform: Platform,
) -> None:
    for gateway in platform.gateways.values():
        client = await gateway.connect()
        answer = await client.ask(request("GET", "/v1/kv/a"))
        made = answer.field(b"x-request-id")
        assert made is not None
        assert b'"request_id":"%s"' % made in answer.body
        await client.close()


# -- many requests on one connection


def mixed(lines: Sequence[str]) -> list[bytes]:
    """Those of the fast lane between those of the application, each to be told by its answer."""
    return [
        request("PUT", "/v1/kv/a", *lines, strong, body=b"first"),
        request("GET", "/v1/kv?prefix=a", *lines),
        request("GET", "/v1/kv/a", *lines, strong),
        request("GET", "/v1/nothing", *lines),
        request("POST", "/v1/kv/n/incr", *lines),
        request("GET", "/health", *lines),
        request("POST", "/v1/kv/n/incr", *lines),
        request("HEAD", "/v1/kv/a", *lines, strong),
        request("POST", "/v1/kv/n/incr", *lines),
    ]


@pytest.mark.parametrize("pieces", [1, 2, 7, 1_000])
async def test_pipelined_requests_of_both_kinds_are_answered_in_their_order(
    ada: Tenant, gateway: GatewayProcess, pieces: int
) -> None:
    lines = [*(await ada.caller()).lines, f"X-Namespace: {new_name('pipeline')}"]
    asked = mixed(lines)
    client = await gateway.connect()
    sent = b"".join(asked)
    size = -(-len(sent) // pieces)
    for start in range(0, len(sent), size):
        client.send(sent[start : start + size])
        await client.writer.drain()
    answers = [await client.answer(to_head=one.startswith(b"HEAD")) for one in asked]
    await client.close()
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200, 200, 200, 200, 200]
    put, listed, got, missing, one, health, two, headed, three = answers
    assert b'"success":true' in put.body
    assert b'"count":' in listed.body
    assert got.body == b"first"
    assert b'"code":"not_found"' in missing.body
    assert b'"service":"gateway"' in health.body
    assert headed.field(b"content-length") == b"5"
    values = [re.search(rb'"value":(\d)', answer.body) for answer in (one, two, three)]
    assert [match and match[1] for match in values] == [b"1", b"2", b"3"]


async def test_three_answers_come_in_the_order_of_their_requests(
    ada: Tenant, platform: Platform
) -> None:
    """Fast, application, fast, in one write on one connection, many times."""
    lines = [*(await ada.caller()).lines, f"X-Namespace: {new_name('three')}"]
    client = await platform.fast.connect()
    for number in range(50):
        client.send(
            request("PUT", f"/v1/kv/{number}", *lines, strong, body=b"%d" % number)
            + request("GET", f"/v1/none/{number}", *lines)
            + request("GET", f"/v1/kv/{number}", *lines, strong)
        )
    for number in range(50):
        first, second, third = [await client.answer() for _ in range(3)]
        assert (first.status, second.status, third.status) == (200, 404, 200)
        assert b'"key":"%d"' % number in first.body
        assert b"/v1/none/%d" % number in second.body
        assert third.body == b"%d" % number
    await client.close()
