"""Endpoints as values: what reaches a handler, and what is refused before it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct
from starlette.applications import Starlette

from services.core.errors import FixRequest, RetryLater
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import FakeClock, Timeline
from services.runtime.endpoints import (
    Access,
    Call,
    Caller,
    Endpoint,
    body_bytes_default,
    calls_of_caller,
    routes,
    user_agent_chars_max,
)
from services.runtime.http import application
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness
from services.runtime.request_body import invalid_members, wrong_members_max
from services.runtime.signing import SignedAuth, Signer, Verifier
from services.runtime.text_members import TextMembers, query_members_max
from tests.waiting import wait_until

secret = "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe"
clock = FakeClock(Timeline())


class ThingPath(Struct):
    thing_id: int


class Between(Struct):
    start: int = 0
    end: int = 100

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError("end is before start")


class Wanted(Struct):
    limit: Annotated[int, Meta(ge=1, le=10)] = 5
    step: Literal["minute", "hour"] = "hour"
    since: Annotated[datetime, Meta(tz=True)] | None = None
    name: str | None = None


class Order(Struct, forbid_unknown_fields=True, rename={"kind": "class"}):
    email: Annotated[str, Meta(min_length=3, max_length=20)]
    password: Annotated[str, Meta(min_length=8)]
    tags: list[int] = []
    kind: str | None = None


class Large(Struct):
    text: str = ""


class Settings(Struct, forbid_unknown_fields=True):
    overlap: str = "24h"


class Seen(Struct):
    """What a handler was given, for the test to look at."""

    path: Any = None
    query: Any = None
    body: Any = None
    address: str = ""
    agent: str = ""
    user_id: int | None = None


async def show(call: Call[Any, Any, Any]) -> Seen:
    user_id = None if call.signed_in is None else call.signed_in.user_id
    return Seen(
        call.path, call.query, call.body, call.client.address, call.client.user_agent, user_id
    )


async def who(call: Call[None, None, None]) -> Seen:
    return Seen(user_id=call.caller.user_id)


async def nothing(_: Call[Any, Any, Any]) -> None:
    return None


async def authenticate(token: str) -> Caller:
    if token == "away":
        raise RetryLater("database_unavailable", "It is away")
    if token != "good":
        raise FixRequest("unauthorized", "The token is none of ours")
    return Caller(7, 70)


def endpoint(method: str, path: str, **more: Any) -> Endpoint:
    name = f"{method} {path}"
    return Endpoint(
        method,
        path,
        name,
        name,
        **{"handler": show, "access": Access.OPEN, "answer_type": Seen, **more},
    )


endpoints = [
    endpoint("GET", "/things/{thing_id}", path_type=ThingPath),
    endpoint(
        "DELETE",
        "/things/{thing_id}",
        path_type=ThingPath,
        access=Access.BEARER,
        handler=nothing,
        answer_type=None,
        status=204,
    ),
    endpoint("GET", "/things", query_type=Wanted),
    endpoint("GET", "/between", query_type=Between),
    endpoint("POST", "/things", body_type=Order, status=201),
    endpoint("POST", "/settings", body_type=Settings, body_optional=True),
    endpoint("POST", "/large", body_type=Large, body_bytes_max=500_000),
    endpoint("POST", "/bodiless", bodiless=True),
    endpoint("GET", "/me", handler=who, access=Access.BEARER),
    endpoint("GET", "/nobody", handler=who),
    endpoint("POST", "/internal", access=Access.INTERNAL, body_type=Large),
]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        yield client


def app() -> Starlette:
    return application(
        "example",
        routes(
            endpoints,
            authenticate=authenticate,
            verifier=Verifier(secret, clock),
            addresses=ClientAddresses(),
        ),
        metrics=Metrics(),
        readiness=Readiness(),
    )


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def wrong(answer: httpx.Response, code: str = "invalid_body") -> dict[str, str]:
    """Which members an answer says are wrong, and what of each."""
    assert problem(answer) == (400, code)
    found = answer.json()
    assert found["member"] == found["errors"][0]["member"]
    for error in found["errors"]:
        assert f"{error['member']}: {error['detail']}"[:100] in found["detail"]
    return {error["member"]: error["detail"] for error in found["errors"]}


# -- what reaches a handler


async def test_a_handler_is_given_values_of_its_types(client: httpx.AsyncClient) -> None:
    assert (await client.get("/things/12")).json()["path"] == {"thing_id": 12}
    answer = await client.get("/things?limit=7&since=2026-01-02T03:04:05%2B01:00&name=a%20b")
    assert answer.json()["query"] == {
        "limit": 7,
        "step": "hour",
        "since": "2026-01-02T03:04:05+01:00",
        "name": "a b",
    }
    order = {"email": "ada@example.com", "password": "12345678", "class": "x"}
    answer = await client.post("/things", json=order)
    assert (answer.status_code, answer.json()["body"]) == (201, {**order, "tags": []})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"


async def test_text_in_a_query_stays_text(client: httpx.AsyncClient) -> None:
    for text in ("null", "12", "true", ""):
        answer = await client.get("/things", params={"name": text})
        assert answer.json()["query"]["name"] == text


async def test_an_answer_may_be_empty(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/things/1", headers={"Authorization": "Bearer good"})
    assert (answer.status_code, answer.content) == (204, b"")


async def test_head_is_answered_as_get(client: httpx.AsyncClient) -> None:
    assert (await client.head("/things/1")).status_code == 200


async def test_a_client_is_its_address_and_what_it_calls_itself(client: httpx.AsyncClient) -> None:
    agent = "Mozilla \x00\u00e9" + "x" * 1000
    seen = (await client.get("/things", headers={b"User-Agent": agent.encode()})).json()
    assert seen["address"] == "127.0.0.1"
    assert len(seen["agent"]) == user_agent_chars_max
    assert seen["agent"].startswith("Mozilla ?")


async def test_an_optional_body_counts_as_empty_where_it_is_missing(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post("/settings")).json()["body"] == {"overlap": "24h"}
    assert (await client.post("/settings", json={"overlap": "1h"})).json()["body"] == {
        "overlap": "1h"
    }
    assert wrong(await client.post("/settings", json={"overlap": 1})) == {
        "overlap": "must be text, and is a whole number"
    }
    assert problem(await client.post("/things")) == (415, "unsupported_media_type")


# -- what is refused


@pytest.mark.parametrize(
    "name", ["x", "1e2", "1.0", "+1", " 1", "01", "null", "9" * 19, "-", "%C2%B2"]
)
async def test_what_nothing_can_be_called_by_is_not_found(
    client: httpx.AsyncClient, name: str
) -> None:
    assert problem(await client.get(f"/things/{name}")) == (404, "not_found")


async def test_each_wrong_member_of_a_query_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.get(
        "/things?limit=11&step=day&since=2026-01-02T03:04:05&other=1&name=a&name=b"
    )
    assert wrong(answer, "invalid_query") == {
        "other": "is not a parameter of this query",
        "name": "is given more than once",
        "limit": "must be at most 10",
        "step": "cannot be 'day'; it is one of hour, minute",
        "since": "has no time zone: end it with Z, or an offset such as +01:00",
    }


@pytest.mark.parametrize("text", ["1e1", "", "null", "1.0", "+1", "9" * 30, "%D9%A3"])
async def test_a_number_is_a_plain_decimal_one(client: httpx.AsyncClient, text: str) -> None:
    assert wrong(await client.get(f"/things?limit={text}"), "invalid_query") == {
        "limit": "is not a whole number of 64 bits"
    }


@pytest.mark.parametrize("text", ["null", "0", "1700000000", "2026-01-02", "now", ""])
async def test_a_time_is_an_rfc_3339_one(client: httpx.AsyncClient, text: str) -> None:
    assert set(wrong(await client.get(f"/things?since={text}"), "invalid_query")) == {"since"}


async def test_a_query_that_is_wrong_as_a_whole_is_told_so(client: httpx.AsyncClient) -> None:
    for query, told in (
        ("/between?start=5&end=4", {"query": "end is before start"}),
        ("/things?name=%ff", {"name": "is not UTF-8"}),
        ("/things?%ff=1", {"query": "is not UTF-8"}),
    ):
        assert wrong(await client.get(query), "invalid_query") == told
    many = "&".join("a=1" for _ in range(query_members_max + 1))
    assert "more than" in wrong(await client.get(f"/things?{many}"), "invalid_query")["query"]


async def test_a_time_whose_plus_was_lost_is_told_how_to_write_it(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/things?since=2026-11-21T00:00:00+01:00")
    assert wrong(answer, "invalid_query") == {
        "since": "has a space for a +, which is written %2B in a URL: 2026-11-21T00:00:00%2B01:00"
    }


async def test_a_body_that_is_packed_is_told_to_come_as_it_is(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await client.post("/things", content=gzip.compress(b"{}"), headers=headers)
    assert problem(answer) == (415, "unsupported_media_type")
    assert "Content-Encoding: gzip" in answer.json()["detail"]
    headers["Content-Encoding"] = "Identity"
    assert problem(await client.post("/things", content=b"{", headers=headers))[0] == 400


async def test_a_query_where_there_is_none_is_refused(client: httpx.AsyncClient) -> None:
    assert wrong(await client.get("/things/1?limit=3"), "invalid_query") == {
        "limit": "is not a parameter of this query"
    }


@pytest.mark.parametrize("query", [b"limit=%zz", b"limit=3&name=%", b"%4=1", b"name=a%2"])
def test_half_of_an_escape_in_a_query_is_refused(query: bytes) -> None:
    for of in (Wanted, None):
        with pytest.raises(FixRequest, match="not followed by two hexadecimal digits") as refused:
            TextMembers(of).of_query(query)
        assert refused.value.code == "invalid_query"


async def test_a_body_where_there_is_to_be_none_is_refused(client: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b""
        yield b"{}"

    async def no_parts() -> AsyncIterator[bytes]:
        yield b""

    for content in (b"{}", b" ", parts()):
        answer = await client.post("/bodiless", content=content)
        assert problem(answer) == (400, "invalid_body")
        assert answer.json()["detail"] == "POST takes no body here; nothing was changed"
    for none in (None, b"", no_parts()):
        assert (await client.post("/bodiless", content=none)).status_code == 200
    large = await client.post("/bodiless", content=bytes(body_bytes_default + 1))
    assert problem(large) == (413, "body_too_large")


async def test_each_wrong_member_of_a_body_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/things", json={"email": "x", "tags": [1, "a"], "class": 5, "expires": 1}
    )
    assert wrong(answer) == {
        "email": "must have at least 3 characters",
        "password": "is missing",
        "tags[1]": "must be a whole number, and is text",
        "class": "must be text or null, and is a whole number",
        "expires": "is not a member of this body",
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff", "invalid_json"),
        (b'{"tags": ' + b"[" * 60_000, "invalid_json"),
        # The first thing wrong is a member, and it ends the reading; what follows is no JSON.
        (b'{"email": 5, "password": inf}', "invalid_json"),
        (b'{"email": 5, "password": "\xff"}', "invalid_json"),
        (b'{"email": 5, "x": ' + b"[" * 60_000, "invalid_json"),
        (b"[" * 60_000, "invalid_body"),
        (b"[]", "invalid_body"),
        (b"null", "invalid_body"),
    ],
)
async def test_a_body_that_is_no_object_is_refused(
    client: httpx.AsyncClient, body: bytes, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/things", content=body, headers=headers)
    assert problem(answer) == (400, code)
    assert "`" not in answer.json()["detail"], "nor told so in words of Python"


async def test_each_endpoint_has_its_own_limit_on_bodies(client: httpx.AsyncClient) -> None:
    body = {"text": "x" * body_bytes_default}
    assert problem(await client.post("/things", json=body)) == (413, "body_too_large")
    assert (await client.post("/large", json=body)).status_code == 200
    body = {"text": "x" * 500_000}
    assert problem(await client.post("/large", json=body)) == (413, "body_too_large")


async def test_a_wrong_method_is_told_every_right_one(client: httpx.AsyncClient) -> None:
    answer = await client.put("/things/1")
    assert problem(answer) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "DELETE"}


# -- who asks


@pytest.mark.parametrize(
    ("given", "challenge"),
    [
        ([], "Bearer"),
        (["Bearer"], "Bearer"),
        (["Basic Z29vZA=="], "Bearer"),
        (["good"], "Bearer"),
        (["Bearer good good"], "Bearer"),
        (["Bearer good", "Bearer good"], "Bearer"),
        (["Bearer " + "x" * 5000], "Bearer"),
        (["Bearer bad"], 'Bearer error="invalid_token"'),
    ],
)
async def test_without_one_good_token_nobody_gets_through(
    client: httpx.AsyncClient, given: list[str], challenge: str
) -> None:
    answer = await client.get("/me", headers=[("Authorization", value) for value in given])
    assert problem(answer) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == challenge


async def test_who_asks_comes_first(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/things/none?such=1")
    assert problem(answer) == (401, "unauthorized")


async def test_the_caller_is_who_the_token_says(client: httpx.AsyncClient) -> None:
    for scheme in ("Bearer", "bearer", "BEARER "):
        answer = await client.get("/me", headers={"Authorization": f"{scheme} good"})
        assert answer.json()["user_id"] == 7


async def test_a_token_that_cannot_be_checked_is_not_called_bad(client: httpx.AsyncClient) -> None:
    answer = await client.get("/me", headers={"Authorization": "Bearer away"})
    assert problem(answer) == (503, "database_unavailable")
    assert "Retry-After" in answer.headers


async def test_an_open_endpoint_has_no_caller_and_asking_for_one_is_a_bug(
    client: httpx.AsyncClient,
) -> None:
    headers = {"Authorization": "Bearer good"}
    assert (await client.get("/things", headers=headers)).json()["user_id"] is None
    assert problem(await client.get("/nobody", headers=headers)) == (500, "internal")


async def test_an_internal_endpoint_takes_signatures_alone(client: httpx.AsyncClient) -> None:
    auth = SignedAuth(Signer(secret, clock))
    assert (await client.post("/internal", json={}, auth=auth)).json()["body"] == {"text": ""}
    for headers in ({}, {"Authorization": "Bearer good"}):
        answer = await client.post("/internal", json={}, headers=headers)
        assert problem(answer) == (401, "unauthorized")
    forged = SignedAuth(Signer(secret[::-1], clock))
    assert problem(await client.post("/internal", json={}, auth=forged)) == (401, "unauthorized")


async def test_what_comes_before_all_is_asked_before_who_asks() -> None:
    async def not_yet() -> None:
        raise RetryLater("database_unavailable", "Not yet")

    served = routes(
        endpoints,
        before=not_yet,
        authenticate=authenticate,
        verifier=Verifier(secret, clock),
        addresses=ClientAddresses(),
    )
    app = application("example", served, metrics=Metrics(), readiness=Readiness())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://here"
    ) as client:
        for target in ("/me", "/things/1", "/things?limit=none"):
            assert problem(await client.get(target)) == (503, "database_unavailable")
        assert (await client.get("/health")).status_code == 200


# -- how much at once


class Desk:
    """An endpoint whose handlers stay until they are let go."""

    def __init__(self, access: Access, *, waits: bool = False) -> None:
        self.inside: list[int] = []
        self.go = asyncio.Event()
        served = endpoint("GET", "/slow", handler=self.handle, access=access, waits=waits)
        self.app = application(
            "example",
            routes(
                [served],
                authenticate=self.authenticate,
                verifier=Verifier(secret, clock),
                addresses=ClientAddresses(),
            ),
            metrics=Metrics(),
            readiness=Readiness(),
        )

    async def authenticate(self, token: str) -> Caller:
        return Caller(int(token), 1)

    async def handle(self, call: Call[None, None, None]) -> Seen:
        user_id = 0 if call.signed_in is None else call.signed_in.user_id
        self.inside.append(user_id)
        try:
            await self.go.wait()
        finally:
            self.inside.remove(user_id)
        return Seen(user_id=user_id)

    def ask(self, client: httpx.AsyncClient, user_id: int) -> asyncio.Task[httpx.Response]:
        headers = {"Authorization": f"Bearer {user_id}"}
        return asyncio.create_task(client.get("/slow", headers=headers))


async def test_one_caller_has_so_many_requests_under_way_and_holds_up_nobody_else() -> None:
    desk = Desk(Access.BEARER)
    transport = httpx.ASGITransport(desk.app)
    most = calls_of_caller.at_once + calls_of_caller.waiting_max
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        first = [desk.ask(client, 7) for _ in range(most)]
        await wait_until(lambda: len(desk.inside) == calls_of_caller.at_once, "some run")
        refused = await desk.ask(client, 7)
        assert problem(refused) == (429, "rate_limited")
        assert "retry-after" in refused.headers
        other = desk.ask(client, 8)
        await wait_until(lambda: 8 in desk.inside, "another is served")
        assert desk.inside.count(7) == calls_of_caller.at_once
        desk.go.set()
        answers = await asyncio.gather(*first, other)
    assert {answer.status_code for answer in answers} == {200}
    assert desk.inside == []


async def test_a_handler_that_waits_ends_when_its_client_has_left() -> None:
    desk = Desk(Access.OPEN, waits=True)
    left = asyncio.Event()
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if parts:
            return parts.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/slow",
        "raw_path": b"/slow",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
    }
    request = asyncio.create_task(desk.app(scope, receive, send))
    await wait_until(lambda: desk.inside == [0], "it is being handled")
    left.set()
    await request
    assert (desk.inside, sent) == ([], [])


@pytest.mark.parametrize("fails", [False, True])
async def test_who_waits_for_an_answer_gets_it_whatever_it_is(*, fails: bool) -> None:
    async def handle(_: Call[None, None, None]) -> Seen:
        await asyncio.sleep(0)
        if fails:
            raise RetryLater("database_unavailable", "It is away")
        return Seen(address="here")

    served = routes(
        [endpoint("GET", "/wait", handler=handle, waits=True)],
        authenticate=authenticate,
        verifier=Verifier(secret, clock),
        addresses=ClientAddresses(),
    )
    app = application("example", served, metrics=Metrics(), readiness=Readiness())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.get("/wait")
    if fails:
        assert problem(answer) == (503, "database_unavailable")
    else:
        assert answer.json()["address"] == "here"


# -- the list of endpoints, and the helper for members


def test_two_endpoints_of_one_method_and_path_are_refused() -> None:
    twice = [endpoint("GET", "/a"), endpoint("GET", "/a")]
    with pytest.raises(ValueError, match="GET /a is there already"):
        routes(
            twice,
            authenticate=authenticate,
            verifier=Verifier(secret, clock),
            addresses=ClientAddresses(),
        )


def test_wrong_members_are_told_within_bounds() -> None:
    error = invalid_members((f"member-{number}" * 100, "is wrong" * 100) for number in range(1000))
    assert len(error.members["errors"]) == wrong_members_max
    assert len(msgspec.json.encode(error.problem("id"))) < 20_000


# -- hostile input

texts = st.text(max_size=20) | st.sampled_from(["1", "null", "2026-01-01T00:00:00Z", "day", "\0"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(["limit", "step", "since", "name"]) | texts, texts)))
async def test_no_query_makes_it_fail(members: list[tuple[str, str]]) -> None:
    transport = httpx.ASGITransport(app())
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.get("/things", params=httpx.QueryParams(tuple(members)))
    assert answer.status_code in (200, 400)


@given(
    st.dictionaries(st.sampled_from(["email", "password", "tags", "class"]) | texts, json_values)
    | json_values
)
async def test_no_body_makes_it_fail(body: object) -> None:
    transport = httpx.ASGITransport(app())
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        sent = json.dumps(body).encode()
        answer = await client.post(
            "/things", content=sent, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code in (201, 400)
