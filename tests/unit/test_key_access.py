"""What stands between a request by an API key and its handler."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal

import httpx
import pytest
from msgspec import Meta, Struct
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import Message

from services.core.errors import FixRequest
from services.core.plans import Limits
from services.runtime.body_room import BodyRoom
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import FakeClock, Timeline
from services.runtime.console_requests import ConsoleRequests
from services.runtime.endpoints import Access, Call, Encoded, Endpoint, Raw, routes
from services.runtime.http import application
from services.runtime.key_access import KeyAccess
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness
from services.runtime.request_body import BodyLimit
from services.runtime.signing import SignedAuth, Signer, Verifier
from services.runtime.text_members import code
from tests.known_keys import Counted, KnownKeys

secret = "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe"
key_text = "the key"


class Headers(Struct, rename={"namespace": "X-Namespace", "consistency": "X-Consistency"}):
    namespace: Annotated[str, Meta(max_length=5, extra=code("invalid_namespace"))] = "default"
    consistency: Annotated[
        Literal["eventual", "strong"], Meta(extra=code("invalid_consistency"))
    ] = "eventual"


class Query(Struct):
    cursor: Annotated[str, Meta(max_length=5, extra=code("invalid_cursor"))] | None = None
    dry_run: bool = False
    limit: int = 1


class Items(Struct, forbid_unknown_fields=True):
    items: list[int]


class Seen(Struct):
    tenant: int = 0
    headers: Any = None
    query: Any = None


class World:
    def __init__(self) -> None:
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        self.keys = KnownKeys(self.clock)
        self.counted = Counted()
        self.handled = 0
        self.room = BodyRoom(200_000, 100_000)
        verifier = Verifier(secret, self.clock)
        console = ConsoleRequests(verifier, self.keys, ("/many",))
        shared: dict[str, Any] = {"access": Access.API_KEY, "answer_type": Seen}
        endpoints = [
            Endpoint(
                "GET",
                "/read",
                "read",
                "Read",
                self._show,
                scope="read",
                counted_as="list",
                query_type=Query,
                header_type=Headers,
                **shared,
            ),
            Endpoint(
                "POST",
                "/many",
                "many",
                "Many",
                self._show,
                scope="write",
                counted_as="batch",
                cost=lambda body: max(1, math.ceil(len(body.items) / 100)),
                body_type=Items,
                body_bytes_max=100_000,
                **shared,
            ),
            Endpoint(
                "DELETE",
                "/all",
                "all",
                "All",
                self._fail,
                scope="admin",
                counted_as="delete_prefix",
                **shared,
            ),
            Endpoint(
                "POST",
                "/echo",
                "echo",
                "Echo",
                self._echo,
                scope="write",
                counted_as="ids",
                access=Access.API_KEY,
                body_type=Raw("Bytes"),
                answer_type=Raw("Bytes"),
            ),
            Endpoint("GET", "/elsewhere", "elsewhere", "Elsewhere", None, Access.API_KEY),
        ]
        self.app = application(
            "example",
            routes(
                endpoints,
                verifier=verifier,
                addresses=ClientAddresses(),
                keys=KeyAccess(self.keys, console, self.counted, self.clock),
                room=self.room,
            ),
            metrics=Metrics(),
            readiness=Readiness(),
            middleware=[Middleware(BodyLimit, bytes_max=200_000)],
        )
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://here",
        )

    async def _show(self, call: Call[Any, Any, Any]) -> Seen:
        self.handled += 1
        return Seen(call.credential.tenant, call.headers, call.query)

    async def _fail(self, call: Call[Any, Any, Any]) -> Seen:
        if call.credential.tenant == 13:
            raise ZeroDivisionError
        raise FixRequest("invalid_key", "No such thing")

    async def _echo(self, call: Call[None, None, bytes]) -> Encoded:
        return Encoded(call.body, "application/x-echo")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.client:
        yield world


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def left(answer: httpx.Response) -> str:
    """Of every answer to a good key."""
    assert answer.headers["RateLimit-Policy"].startswith('"default";q=')
    return answer.headers["RateLimit"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], (401, "missing_api_key")),
        ([("Authorization", "Bearer nothing")], (401, "invalid_api_key")),
        ([("Authorization", "Basic YTpi")], (401, "invalid_api_key")),
        ([("Authorization", "Bearer")], (401, "invalid_api_key")),
        ([("X-API-Key", "nothing")], (401, "invalid_api_key")),
        ([("X-API-Key", "")], (401, "missing_api_key")),
        ([("X-API-Key", " "), ("Authorization", "Bearer " + key_text)], (200, "")),
        ([("X-API-Key", key_text), ("X-API-Key", "other")], (400, "invalid_header")),
        ([("X-API-Key", key_text), ("Authorization", "Bearer o")], (400, "invalid_header")),
        ([("X-API-Key", key_text)], (200, "")),
        ([("X-API-Key", key_text), ("X-API-Key", key_text)], (200, "")),
        ([("Authorization", "bearer   " + key_text)], (200, "")),
        ([("X-API-Key", key_text), ("Authorization", "Basic YTpi")], (200, "")),
    ],
)
async def test_a_request_names_one_key_that_is_good(
    world: World, given: list[tuple[str, str]], expected: tuple[int, str]
) -> None:
    key = world.keys.add(7)
    headers = [(name, value.replace(key_text, key)) for name, value in given]
    answer = await world.client.get("/read", headers=headers)
    if expected[0] == 200:
        assert answer.status_code == 200
        left(answer)
    else:
        assert problem(answer) == expected
        assert "RateLimit" not in answer.headers
    assert (answer.status_code == 401) == (
        answer.headers.get("WWW-Authenticate", "").startswith("Bearer")
    )


async def test_a_key_that_cannot_be_checked_is_not_called_bad(world: World) -> None:
    world.keys.away = True
    answer = await world.client.get("/read", headers={"X-API-Key": "ydht_new"})
    assert problem(answer) == (503, "auth_unavailable")
    assert "Retry-After" in answer.headers


async def test_each_endpoint_needs_its_scope(world: World) -> None:
    wanted = {"read": ("GET", "/read"), "write": ("POST", "/many"), "admin": ("DELETE", "/all")}
    for has in wanted:
        key = world.keys.add(7, [has])  # type: ignore[list-item]
        for needs, (method, path) in wanted.items():
            answer = await world.client.request(
                method, path, headers={"X-API-Key": key}, json={"items": []}
            )
            refused = problem(answer) == (403, "insufficient_scope") if has != needs else False
            assert refused == (has != needs)
            left(answer)


async def test_a_refusal_for_the_scope_comes_before_what_is_wrong_and_costs_a_token(
    world: World,
) -> None:
    key = world.keys.add(7, ["read"], limits=Limits(60, 2))
    for _ in range(2):
        answer = await world.client.delete("/all?such=1", headers={"X-API-Key": key})
        assert problem(answer) == (403, "insufficient_scope")
    answer = await world.client.delete("/all", headers={"X-API-Key": key})
    assert problem(answer) == (429, "rate_limited")
    assert (answer.headers["Retry-After"], left(answer)) == ("1", '"default";r=0;t=2')


async def test_tokens_are_those_that_arithmetic_gives(world: World) -> None:
    key = world.keys.add(7, limits=Limits(60, 3))

    async def ask() -> int:
        return (await world.client.get("/read", headers={"X-API-Key": key})).status_code

    assert [await ask() for _ in range(4)] == [200, 200, 200, 429]
    world.timeline.advance(0.5)
    assert await ask() == 429
    world.timeline.advance(0.5)
    assert [await ask() for _ in range(2)] == [200, 429]


async def test_what_many_cost_is_known_by_their_number_and_taken_at_once(world: World) -> None:
    key = world.keys.add(7, limits=Limits(60, 10))

    async def ask(count: int, **more: Any) -> httpx.Response:
        return await world.client.post(
            "/many", headers={"X-API-Key": key}, json={"items": [1] * count, **more}
        )

    assert left(await ask(0)) == '"default";r=9;t=1'
    assert left(await ask(100)) == '"default";r=8;t=2'
    assert left(await ask(101)) == '"default";r=6;t=4'
    refused = await ask(1_000)
    assert problem(refused) == (429, "rate_limited")
    assert (left(refused), refused.headers["Retry-After"]) == ('"default";r=6;t=4', "4")
    # What makes no sense costs a token, too.
    assert problem(await ask(1, other=1)) == (400, "invalid_body")
    assert left(await ask(1)) == '"default";r=4;t=6'
    world.timeline.advance(6)
    # Who waits until all are there gets in, however much it is; and owes what was not there.
    assert (await ask(1_500)).status_code == 200
    body = "x" * 90_000
    handled = world.handled
    answer = await world.client.post("/many", headers={"X-API-Key": key}, content=body)
    assert problem(answer) == (429, "rate_limited"), "before the body is looked at"
    assert world.handled == handled


async def test_a_key_that_is_refused_has_no_say_in_the_rest(world: World) -> None:
    answer = await world.client.get("/read?wrong=1", headers={"X-API-Key": "none"})
    assert problem(answer) == (401, "invalid_api_key")
    assert world.counted.requests == []


async def test_every_answer_to_a_good_key_is_counted(world: World) -> None:
    key = world.keys.add(7)
    headers = {"X-API-Key": key}
    ok = await world.client.get("/read", headers=headers)
    bad = await world.client.get("/read?limit=x", headers=headers)
    many = await world.client.post("/many", headers=headers, json={"items": [1]})
    refused = await world.client.delete("/all", headers=headers)
    crashed = await world.client.delete("/all", headers={"X-API-Key": world.keys.add(13)})
    assert problem(crashed) == (500, "internal")
    assert world.counted.requests == [
        ("list", 200, 0, len(ok.content)),
        ("list", 400, 0, len(bad.content)),
        ("batch", 200, len(many.request.content), len(many.content)),
        ("delete_prefix", 400, 0, len(refused.content)),
        ("delete_prefix", 500, 0, 0),
    ]


async def test_headers_and_query_are_read_by_their_types_and_refused_by_their_codes(
    world: World,
) -> None:
    key = world.keys.add(7)

    async def ask(query: str, *headers: tuple[str, bytes]) -> httpx.Response:
        fields = [(b"X-API-Key", key.encode())]
        fields += [(name.encode(), value) for name, value in headers]
        return await world.client.get(f"/read{query}", headers=fields)

    answer = await ask("?dry_run=true&limit=3", ("x-namespace", "й".encode()))
    assert answer.json()["headers"] == {"X-Namespace": "й", "X-Consistency": "eventual"}
    assert answer.json()["query"] == {"cursor": None, "dry_run": True, "limit": 3}
    refused = [
        (("", ("X-Namespace", b"too long")), "invalid_namespace"),
        (("", ("X-Namespace", b"\xff")), "invalid_namespace"),
        (("", ("X-Namespace", b"a"), ("X-Namespace", b"b")), "invalid_header"),
        (("", ("X-Consistency", b"Strong")), "invalid_consistency"),
        (("?cursor=too+long",), "invalid_cursor"),
        (("?cursor=%ff",), "invalid_cursor"),
        (("?dry_run=1",), "invalid_query"),
        (("?dry_run=",), "invalid_query"),
        (("?limit=1&limit=1",), "invalid_query"),
    ]
    for asked, expected in refused:
        answer = await ask(*asked)  # type: ignore[arg-type]
        assert problem(answer) == (400, expected), asked
    twice = await ask("", ("X-Namespace", b"a"), ("X-Namespace", b"a"))
    assert twice.json()["headers"]["X-Namespace"] == "a"
    raw = await ask("?cursor=%C3%A9", ("X-Unknown", b"\xff"))
    assert raw.json()["query"]["cursor"] == "é"


async def test_bytes_go_in_and_out_as_they_are(world: World) -> None:
    key = world.keys.add(7)
    answer = await world.client.post("/echo", headers={"X-API-Key": key}, content=b"\xff\0")
    assert (answer.content, answer.headers["Content-Type"]) == (b"\xff\0", "application/x-echo")


async def test_what_is_only_described_is_not_there(world: World) -> None:
    key = world.keys.add(7)
    answer = await world.client.get("/elsewhere", headers={"X-API-Key": key})
    assert problem(answer) == (404, "not_found")


# -- the console


def signed(world: World, **headers: str) -> dict[str, Any]:
    return {
        "auth": SignedAuth(Signer(secret, world.clock)),
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
    }


async def test_of_the_console_those_requests_are_counted_that_are_to_be(world: World) -> None:
    asked = signed(world, X_Ydht_Tenant="12", X_Ydht_Scope="read, write")
    answer = await world.client.get("/read", **asked)
    assert answer.json()["tenant"] == 12
    left(answer)
    many = await world.client.post("/many", json={"items": [1]}, **asked)
    assert many.json()["tenant"] == 12
    assert problem(await world.client.delete("/all", **asked)) == (403, "insufficient_scope")
    ((operation, status, *_),) = world.counted.requests
    assert (operation, status) == ("batch", 200)


async def test_a_tenants_own_tokens_are_not_the_consoles(world: World) -> None:
    key = world.keys.add(12, limits=Limits(60, 1))
    asked = signed(world, X_Ydht_Tenant="12", X_Ydht_Scope="read")
    for _ in range(3):
        assert (await world.client.get("/read", **asked)).status_code == 200
    assert (await world.client.get("/read", headers={"X-API-Key": key})).status_code == 200
    assert (await world.client.get("/read", headers={"X-API-Key": key})).status_code == 429
    assert (await world.client.get("/read", **asked)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X_Ydht_Tenant": "12"},
        {"X_Ydht_Tenant": "12", "X_Ydht_Scope": ""},
        {"X_Ydht_Tenant": "12", "X_Ydht_Scope": "read,all"},
        {"X_Ydht_Tenant": "12", "X_Ydht_Scope": "read,read"},
        {"X_Ydht_Tenant": "-1", "X_Ydht_Scope": "read"},
        {"X_Ydht_Tenant": "1e3", "X_Ydht_Scope": "read"},
        {"X_Ydht_Tenant": str(1 << 64), "X_Ydht_Scope": "read"},
    ],
)
async def test_what_the_console_claims_makes_sense(world: World, headers: dict[str, str]) -> None:
    answer = await world.client.get("/read", **signed(world, **headers))
    assert problem(answer) == (400, "invalid_header")
    assert world.handled == 0


async def test_a_signature_that_is_none_opens_nothing_even_with_a_good_key(world: World) -> None:
    key = world.keys.add(7)
    claims = {"X-Ydht-Tenant": "12", "X-Ydht-Scope": "admin", "X-API-Key": key}
    forger = SignedAuth(Signer(secret[::-1], world.clock))
    answer = await world.client.get("/read", headers=claims, auth=forger)
    assert problem(answer) == (401, "unauthorized")
    answer = await world.client.get("/read", headers={**claims, "X-Ydht-Signature": "v1;1;a;b"})
    assert problem(answer) == (401, "unauthorized")
    # Without a signature they are headers like any other.
    answer = await world.client.get("/read", headers=claims)
    assert answer.json()["tenant"] == 7


async def test_a_signed_request_is_good_once_and_as_it_was(world: World) -> None:
    request = world.client.build_request(
        "POST",
        "/many",
        json={"items": [1]},
        headers={"X-Ydht-Tenant": "12", "X-Ydht-Scope": "write"},
    )
    signed_once = next(SignedAuth(Signer(secret, world.clock)).auth_flow(request))
    assert (await world.client.send(signed_once)).status_code == 200
    assert problem(await world.client.send(signed_once)) == (401, "unauthorized")
    other = world.client.build_request(
        "POST", "/many", json={"items": [2]}, headers=signed_once.headers
    )
    assert problem(await world.client.send(other)) == (401, "unauthorized")


async def unread(world: World, *headers: tuple[bytes, bytes]) -> int:
    """The status of an answer to a request whose body must not be asked for."""

    async def receive() -> Message:
        raise AssertionError("the body is read")

    statuses = []

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    fields = [(b"content-type", b"application/json"), *headers]
    scope = {"type": "http", "method": "POST", "path": "/many", "raw_path": b"/many"}
    await world.app({**scope, "query_string": b"", "headers": fields}, receive, send)
    return int(statuses[0] or 0)


@pytest.mark.parametrize(
    ("age_ms", "length", "status"),
    [
        (0, (b"content-length", b"65537"), 413),
        (0, (b"transfer-encoding", b"chunked"), 400),
        (60_000, (b"content-length", b"10"), 401),
        (-60_000, (b"content-length", b"10"), 401),
    ],
)
async def test_what_looks_signed_has_nothing_large_or_late_read_for_it(
    world: World, age_ms: int, length: tuple[bytes, bytes], status: int
) -> None:
    forged = f"v1;{world.clock.wall_ms() - age_ms};{'a' * 22};{'0' * 64}".encode()
    assert await unread(world, (b"x-ydht-signature", forged), length) == status


async def test_a_client_that_leaves_is_no_failure_of_its_tenant(world: World) -> None:
    key = world.keys.add(7).encode()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there")

    fields = [(b"content-type", b"application/json"), (b"x-api-key", key)]
    scope = {"type": "http", "method": "POST", "path": "/many", "raw_path": b"/many"}
    with suppress(ClientDisconnect):
        await world.app({**scope, "query_string": b"", "headers": fields}, receive, send)
    assert world.counted.requests == []


async def test_the_application_says_once_that_it_closes(world: World) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"{"

    answer = await world.client.post("/many", content=parts(), headers={"X-API-Key": "none"})
    assert problem(answer) == (401, "invalid_api_key")
    assert answer.headers.get_list("connection") == ["close"]


# -- the room for large bodies


async def test_a_large_body_has_room_while_it_is_there_and_no_more_than_has_arrived(
    world: World,
) -> None:
    seen: list[int] = []

    async def parts() -> AsyncIterator[bytes]:
        for text in (b'{"items": [', b" " * 70_000, b"1]}"):
            seen.append(world.room.taken_bytes)
            yield text
        seen.append(world.room.taken_bytes)

    headers = {"X-API-Key": world.keys.add(7), "Content-Type": "application/json"}
    answer = await world.client.post("/many", content=parts(), headers=headers)
    assert answer.status_code == 200
    assert seen == [0, 0, 70_011, 70_014]
    assert world.room.taken_bytes == 0


async def test_a_large_body_without_room_is_refused_and_gives_back_what_it_had(
    world: World,
) -> None:
    headers = {"X-API-Key": world.keys.add(7)}
    assert world.room.take(100_000, "another")
    answer = await world.client.post("/many", json={"items": [1] * 33_000}, headers=headers)
    assert problem(answer) == (503, "overloaded")
    assert world.room.taken_bytes == 100_000
    small = await world.client.post("/many", json={"items": [1] * 20_000}, headers=headers)
    assert small.status_code == 200


# -- the list of endpoints


def test_an_endpoint_for_api_keys_needs_somebody_who_knows_them(world: World) -> None:
    async def handler(_: Call[Any, Any, Any]) -> None:
        return None

    endpoint = Endpoint("GET", "/a", "a", "A", handler, Access.API_KEY, counted_as="list")
    verifier = Verifier(secret, world.clock)
    with pytest.raises(ValueError, match="cannot be asked by API keys"):
        routes([endpoint], verifier=verifier, addresses=ClientAddresses())
