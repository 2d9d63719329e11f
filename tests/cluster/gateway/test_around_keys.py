"""What is on every answer about a key, by both lanes: what is left of the rate limit, its id, who
may read it; and what the console asks for in the name of a tenant."""

from __future__ import annotations

import math
import re
import time

import httpx
import pytest

from services.core.plans import developer, free
from tests.cluster.gateway.answers import found, problem, put, raw, told
from tests.cluster.gateway_platform import (
    Caller,
    GatewayProcess,
    Platform,
    Tenant,
    new_name,
    page_origin,
    served,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")

limit_form = re.compile(r'"default";r=(\d+);t=(\d+)')


def left(answer: httpx.Response) -> int:
    """Whole tokens."""
    match = limit_form.fullmatch(answer.headers["RateLimit"])
    assert match is not None, answer.headers
    return int(match[1])


# -- rate limits


async def test_every_answer_to_somebody_tells_what_is_left(
    ada: Tenant, robot: Caller, gateway: GatewayProcess
) -> None:
    reader = (await ada.caller("read", prefix="mine/")).at(gateway)
    await put(robot.saying(X_Consistency="strong"), "/v1/kv/a", b"1")
    for caller, method, target, status in (
        (robot, "GET", "/v1/kv/a", 200),
        (robot, "HEAD", "/v1/kv/a", 200),
        (robot.saying(If_None_Match="*"), "GET", "/v1/kv/a", 304),
        (robot, "PATCH", "/v1/kv/a?ttl=1h", 200),
        (robot, "POST", "/v1/kv/a/incr", 200),
        (robot, "PUT", "/v1/kv/b", 200),
        (robot, "DELETE", "/v1/kv/b", 200),
        (robot, "GET", "/v1/kv/absent", 404),
        (robot, "GET", "/v1/kv/%", 400),
        (robot.saying(X_Consistency="both"), "GET", "/v1/kv/a", 400),
        (robot.saying(If_None_Match="*"), "PUT", "/v1/kv/a", 412),
        (robot, "PUT", "/v1/kv/" + "a" * 1025, 414),
        (robot, "POST", "/v1/kv/a", 405),
        (reader, "PUT", "/v1/kv/mine/a", 403),
        (reader, "GET", "/v1/kv/a", 403),
        (robot, "GET", "/v1/kv", 200),
        (robot, "GET", "/v1/kv?limit=0", 400),
        (robot, "DELETE", "/v1/kv?prefix=nothing", 200),
        (robot, "GET", "/v1/namespaces", 200),
        (robot, "POST", "/v1/batch", 415),
        (robot, "POST", "/v1/ids", 503),
    ):
        answer = await caller.ask(method, target)
        assert answer.status_code == status, (method, target, answer.text)
        policy = f'"default";q={developer.requests_per_minute};w=60'
        assert answer.headers.get("RateLimit-Policy") == policy, (method, target)
        assert 0 < left(answer) <= developer.burst


async def until_limited(
    caller: Caller, per_minute: int, *, full: int, since_s: float | None = None
) -> float:
    """Ask until it is refused, and tell when that was asked.

    Before are answered as many as a full bucket holds, and what comes in meanwhile; of one out of
    which somebody was refused at `since_s`, what has come in since, and has filled up one token.
    """
    admitted, began_s = 0, time.monotonic()
    while True:
        asked_s = time.monotonic()
        answer = await caller.get("/v1/kv/absent")
        if answer.status_code != 404:
            break
        admitted += 1
        earned = (time.monotonic() - (since_s or began_s)) * per_minute / 60
        assert admitted <= (full if since_s is None else 1) + earned
        assert answer.headers["RateLimit-Policy"] == f'"default";q={per_minute};w=60'
    assert admitted >= full
    assert problem(answer) == (429, "rate_limited")
    # One may have come in since it was refused.
    assert left(answer) <= 1
    assert 1 <= int(answer.headers["Retry-After"]) <= math.ceil(60 / per_minute)
    return asked_s


async def test_a_free_tenant_has_its_burst_and_then_has_to_wait(
    platform: Platform, gateway: GatewayProcess
) -> None:
    tenant = await platform.tenant("free")
    caller, other = [(await tenant.caller()).at(gateway) for _ in range(2)]
    first = await caller.get("/v1/kv/absent")
    assert left(first) == free.burst - 1
    per_minute = free.requests_per_minute
    refused_s = await until_limited(caller, per_minute, full=free.burst - 1)
    # Another key of the same tenant takes from the same bucket, of which next to nothing is left.
    await until_limited(other, per_minute, full=0, since_s=refused_s)


async def test_a_key_may_be_held_to_less_than_its_tenant(
    ada: Tenant, robot: Caller, gateway: GatewayProcess
) -> None:
    held = (await ada.caller(rate_limit_per_minute=20)).at(gateway)
    limits = developer.limits(20)
    await until_limited(held, limits.requests_per_minute, full=limits.burst)
    # Whom the tenant's other keys do not wait for.
    assert (await robot.get("/v1/kv/absent")).status_code == 404


# -- request ids


@pytest.mark.parametrize("target", ["/v1/kv/a", "/v1/kv?limit=0", "/v1/nothing"])
async def test_a_request_id_is_echoed_and_made_up_where_there_is_none(
    robot: Caller, target: str
) -> None:
    for given in ("a", "req-1", "x" * 128, "!~,;="):
        answer = await robot.saying(X_Request_ID=given).get(target)
        assert answer.headers["X-Request-ID"] == given
        assert answer.json()["request_id"] == given
    made = set()
    for unfit in (None, None, "", "a b", "x" * 129, "\xff", "\xff"):
        caller = robot if unfit is None else robot.saying(X_Request_ID=unfit)
        answer = await caller.get(target)
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
        assert 16 <= len(answer.headers["X-Request-ID"]) <= 40
        made.add(answer.headers["X-Request-ID"])
    assert len(made) == 7, "each request has its own"


# -- pages of other origins


def about_origins(answer: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in answer.headers.items()
        if name.startswith("access-control") or name == "vary"
    }


@pytest.mark.parametrize("target", ["/v1/kv/a", "/v1/kv/absent", "/v1/kv?limit=1", "/v1/nothing"])
async def test_pages_of_an_allowed_origin_may_read_answers(robot: Caller, target: str) -> None:
    await put(robot, "/v1/kv/a")
    answer = await robot.saying(Origin=page_origin).get(target)
    told_about = about_origins(answer)
    exposed = told_about.pop("access-control-expose-headers").split(", ")
    assert {"ETag", "X-Request-ID", "RateLimit", "Retry-After", "X-Expires-At"} <= set(exposed)
    assert told_about == {"access-control-allow-origin": page_origin, "vary": "Origin"}
    for other in (
        "https://evil.example",
        "null",
        page_origin + ".evil.example",
        "http://app.example",
    ):
        answer = await robot.saying(Origin=other).get(target)
        assert about_origins(answer) == {"vary": "Origin"}
    # Who comes from nowhere is told nothing of it.
    assert about_origins(await robot.get(target)) == {}


async def test_refusals_of_nobody_can_be_read_by_pages_too(
    platform: Platform, gateway: GatewayProcess
) -> None:
    nobody = platform.caller(None, Origin=page_origin).at(gateway)
    for target in ("/v1/kv/a", "/v1/kv"):
        answer = await nobody.get(target)
        assert problem(answer) == (401, "missing_api_key")
        assert answer.headers["Access-Control-Allow-Origin"] == page_origin


@pytest.mark.parametrize("target", ["/v1/kv/a", "/v1/kv/a/incr", "/v1/kv", "/v1/batch"])
async def test_a_browser_may_ask_before_it_asks(
    platform: Platform, gateway: GatewayProcess, target: str
) -> None:
    asked = "x-api-key, x-metadata-colour, if-match"
    browser = platform.caller(
        None,
        Origin=page_origin,
        Access_Control_Request_Method="PUT",
        Access_Control_Request_Headers=asked,
    ).at(gateway)
    answer = await browser.ask("OPTIONS", target)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == page_origin
    assert answer.headers["Access-Control-Allow-Headers"] == asked
    methods = answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert {"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"} == set(methods)
    assert "Access-Control-Allow-Credentials" not in answer.headers
    other = await browser.saying(Origin="https://evil.example").ask("OPTIONS", target)
    assert not [name for name in other.headers if name.startswith("access-control")]


async def test_without_origins_there_is_nothing_for_pages(platform: Platform, ada: Tenant) -> None:
    caller = await ada.caller()
    setting = platform.gateway()
    del setting.environment["CORS_ORIGINS"]
    async with served(setting) as gateway:
        await gateway.until_whole()
        page = caller.at(gateway).saying(Origin=page_origin)
        for target in ("/v1/kv/a", "/v1/kv", "/v1/nothing"):
            assert about_origins(await page.get(target)) == {}
        asking = page.saying(Access_Control_Request_Method="PUT").without("X-API-Key")
        for target in ("/v1/kv/a", "/v1/kv"):
            answer = await asking.ask("OPTIONS", target)
            assert answer.status_code in (401, 405)
            assert about_origins(answer) == {}


# -- the console


async def test_the_console_asks_in_the_name_of_a_tenant(
    platform: Platform, ada: Tenant, robot: Caller
) -> None:
    etag = await put(robot.saying(X_Consistency="strong"), "/v1/kv/a", b"Ada's")
    await found(robot, "/v1/kv/a", etag)
    namespace = robot.headers["X-Namespace"]

    async def ask(method: str, target: str, **headers: str) -> httpx.Response:
        named = {"X_Namespace": namespace, "X_Ydht_Tenant": str(ada.id), **headers}
        return await platform.ask_as_console(robot.gateway, method, target, **named)

    answer = await ask("GET", "/v1/kv/a", X_Ydht_Scope="read")
    assert raw(answer) == b"Ada's"
    assert answer.headers["RateLimit-Policy"] != robot.headers.get("RateLimit-Policy")
    assert problem(await ask("DELETE", "/v1/kv/a", X_Ydht_Scope="read")) == (
        403,
        "insufficient_scope",
    )
    listed = told(await ask("GET", "/v1/kv?prefix=a", X_Ydht_Scope="read"))
    assert [key["key"] for key in listed["keys"]] == ["a"]
    written = {"X_Ydht_Scope": "read,write", "X_Consistency": "strong"}
    assert told(await ask("POST", "/v1/kv/n/incr", **written))["value"] == 1
    assert told(await ask("DELETE", "/v1/kv/a", **written))["success"] is True
    assert told(await ask("PUT", "/v1/kv/line%0Abreak", **written))["key"] == "line\nbreak"
    assert raw(await ask("GET", "/v1/kv/line%0Abreak", **written)) == b""


@pytest.mark.parametrize("target", ["/v1/kv/a", "/v1/kv"])
async def test_a_request_that_only_looks_like_the_consoles_is_refused(
    platform: Platform, ada: Tenant, robot: Caller, target: str
) -> None:
    claims = {"X_Ydht_Tenant": str(ada.id), "X_Ydht_Scope": "read"}
    unsigned = robot.without("X-API-Key").saying(**claims)
    assert problem(await unsigned.get(target)) == (401, "missing_api_key")
    for signature in ("", "v1", "v1;1;AAAAAAAAAAAAAAAAAAAAAA;" + "0" * 64):
        forged = unsigned.saying(X_Ydht_Signature=signature)
        assert problem(await forged.get(target)) == (401, "unauthorized")
        # Neither does a good API key beside it help.
        forged = robot.saying(**claims, X_Ydht_Signature=signature)
        assert problem(await forged.get(target)) == (401, "unauthorized")
    for headers in (
        {"X_Ydht_Tenant": str(ada.id)},
        {"X_Ydht_Scope": "read"},
        {**claims, "X_Ydht_Tenant": "-1"},
        {**claims, "X_Ydht_Tenant": str(1 << 64)},
        {**claims, "X_Ydht_Scope": "everything"},
    ):
        answer = await platform.ask_as_console(robot.gateway, "GET", target, **headers)
        assert problem(answer) == (400, "invalid_header")


async def test_a_signed_request_is_good_once_and_for_what_was_signed(
    platform: Platform, ada: Tenant, robot: Caller
) -> None:
    headers = {"X_Ydht_Tenant": str(ada.id), "X_Ydht_Scope": "read"}
    name = new_name("key")
    answer = await platform.ask_as_console(robot.gateway, "GET", f"/v1/kv/{name}", **headers)
    assert problem(answer) == (404, "key_not_found")
    sent = {name: value for name, value in answer.request.headers.items() if "ydht" in name}
    replayed = robot.without("X-API-Key").saying(**sent)
    assert problem(await replayed.get(f"/v1/kv/{name}")) == (401, "unauthorized")
    fresh = await platform.ask_as_console(robot.gateway, "GET", "/v1/kv", **headers)
    sent = {name: value for name, value in fresh.request.headers.items() if "ydht" in name}
    for altered in ({"x-ydht-tenant": str(ada.id + 1)}, {"x-ydht-scope": "read,write"}):
        caller = robot.without("X-API-Key").saying(**{**sent, **altered})
        assert problem(await caller.get("/v1/kv")) == (401, "unauthorized")
