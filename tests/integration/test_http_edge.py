"""The layers around every route: hostile input is answered cleanly, and a bug tells nothing."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from services.core.errors import FixRequest, RetryLater, UnknownOutcome
from services.runtime import telemetry
from services.runtime.clock import SystemClock
from services.runtime.http import application
from services.runtime.listener import raw_answer
from services.runtime.metrics import Metrics
from services.runtime.probes import Condition, Readiness, degraded, ready, unready
from services.runtime.request_body import (
    BodyLimit,
    decode_json,
    decode_struct,
    read_json,
    wrong_members_max,
)
from services.runtime.signing import (
    RequireSignature,
    SignedAuth,
    Signer,
    Verifier,
    signature_header,
)

secret = "Vb8rJ2mQx0LkTz5WnYc7PdSg1HfUe4Ao"
body_bytes_max = 4096


class Order(msgspec.Struct, forbid_unknown_fields=True):
    thing: str
    count: int = 1
    notes: list[str] = []


class Shop:
    """A small application with one route for each thing that may go wrong."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.readiness = Readiness()
        self.state = ready
        self.readiness.add("till", lambda: self.state)
        self.verifier = Verifier(secret, SystemClock())
        self.app: Starlette = application(
            "shop",
            [
                Route("/order", self.order, methods=["POST"]),
                Route("/ignore", self.ignore, methods=["POST"]),
                Route("/bug", self.bug),
                Route("/late-bug", self.late_bug),
                Route("/busy", self.busy),
                Route("/unknown", self.unknown),
                Route(
                    "/small", self.order, methods=["POST"], middleware=[Middleware(BodyLimit, 50)]
                ),
                Route(
                    "/internal",
                    self.order,
                    methods=["POST"],
                    middleware=[Middleware(RequireSignature, verifier=self.verifier)],
                ),
            ],
            metrics=self.metrics,
            readiness=self.readiness,
            health=lambda: {"queue_size": 0},
            body_bytes_max=body_bytes_max,
            body_s_max=0.2,
            access_log=True,
        )

    async def order(self, request: Request) -> Response:
        order = await read_json(request, Order)
        return Response(msgspec.json.encode(order), media_type="application/json")

    async def ignore(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def bug(self, _: Request) -> Response:
        raise KeyError("the-innermost-secret")

    async def late_bug(self, _: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"begun"
            raise KeyError("the-innermost-secret")

        return StreamingResponse(parts())

    async def busy(self, _: Request) -> Response:
        raise RetryLater("overloaded", "7 of 7 are waiting", retry_after_s=3)

    async def unknown(self, _: Request) -> Response:
        raise UnknownOutcome("The reply was lost", operation_id="op-1")


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(shop.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        yield client


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What was logged, as JSON lines."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    telemetry.configure("shop", "json", stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The answer's document, after a look that it is a whole problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    document: dict[str, Any] = response.json()
    assert document["code"] == code
    assert document["status"] == status
    assert document["type"] == f"/docs/errors#{code}"
    assert document["title"] == document["error"]
    assert document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    return document


def test_what_is_said_to_a_connection_that_is_closed_is_kept_by_nobody() -> None:
    head, _, body = raw_answer(RetryLater("overloaded", "All are busy")).partition(b"\r\n\r\n")
    assert b"\r\nCache-Control: no-store\r\n" in head
    assert msgspec.json.decode(body)["code"] == "overloaded"


async def test_an_unknown_path_and_a_wrong_method_are_problems(client: httpx.AsyncClient) -> None:
    document = problem(await client.get("/nothing/here"), 404, "not_found")
    assert "/nothing/here" in document["detail"]
    response = await client.delete("/order")
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    problem(await client.get("/health/"), 404, "not_found")
    long = problem(await client.get("/" + "x" * 5000), 404, "not_found")
    assert len(long["detail"]) < 300


async def test_our_own_errors_keep_headers_and_members(client: httpx.AsyncClient) -> None:
    response = await client.get("/busy")
    assert problem(response, 503, "overloaded")["detail"] == "7 of 7 are waiting"
    assert response.headers["retry-after"] == "3"
    document = problem(await client.get("/unknown"), 504, "unknown_outcome")
    assert document["operation_id"] == "op-1"


async def test_a_bug_is_logged_with_its_request_id_and_tells_the_client_nothing(
    client: httpx.AsyncClient, log: io.StringIO
) -> None:
    response = await client.get("/bug", headers={"X-Request-ID": "find-me"})
    document = problem(response, 500, "internal")
    assert document["request_id"] == "find-me"
    assert "innermost" not in response.text
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (bug,) = [line for line in lines if line["event"] == "bug"]
    assert bug["request_id"] == "find-me"
    assert "the-innermost-secret" in bug["exception"]
    assert "Traceback" in bug["exception"]


async def test_a_bug_in_the_middle_of_an_answer_is_logged_and_never_completes_it(
    shop: Shop, log: io.StringIO
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/late-bug",
        "raw_path": b"/late-bug",
        "query_string": b"",
        "headers": [],
    }
    await shop.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"]
    assert "the-innermost-secret" in log.getvalue()


async def test_the_access_log_has_one_line_for_a_request(
    client: httpx.AsyncClient, log: io.StringIO
) -> None:
    await client.get("/health?token=abc", headers={"X-Request-ID": "r-1"})
    (line,) = map(json.loads, log.getvalue().splitlines())
    assert (line["event"], line["status"], line["path"]) == ("request", 200, "/health")
    assert line["request_id"] == "r-1"
    assert "abc" not in log.getvalue()


@pytest.mark.parametrize("given_id", ["a", "x" * 128, "550e8400-e29b-41d4-a716-446655440000", "~!"])
async def test_a_fitting_request_id_is_echoed(client: httpx.AsyncClient, given_id: str) -> None:
    response = await client.get("/health", headers={"X-Request-ID": given_id})
    assert response.headers["x-request-id"] == given_id


@pytest.mark.parametrize("given_id", ["", "x" * 129, "a b", "caf\xe9", "tab\there"])
async def test_any_other_request_id_is_replaced(client: httpx.AsyncClient, given_id: str) -> None:
    headers = [(b"x-request-id", given_id.encode("latin-1"))]
    response = await client.get("/health", headers=headers)
    assert response.headers["x-request-id"] != given_id
    assert len(response.headers["x-request-id"]) == 32


async def test_every_request_without_an_id_gets_its_own(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/health")).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


async def chunks(total_bytes: int) -> AsyncIterator[bytes]:
    for _ in range(total_bytes // 1024):
        yield b" " * 1024
    yield b" " * (total_bytes % 1024)


json_headers = {"Content-Type": "application/json"}


async def test_a_body_over_the_limit_is_refused_by_its_announced_length(
    client: httpx.AsyncClient,
) -> None:
    for path in ("/order", "/ignore", "/nothing"):
        content = b" " * (body_bytes_max + 1)
        response = await client.post(path, content=content, headers=json_headers)
        assert str(body_bytes_max) in problem(response, 413, "body_too_large")["detail"]
        assert response.headers["connection"] == "close"


async def test_a_body_over_the_limit_is_refused_while_it_arrives(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post("/order", content=chunks(body_bytes_max + 1), headers=json_headers)
    problem(response, 413, "body_too_large")
    lie = {**json_headers, "Content-Length": "10"}
    response = await client.post("/order", content=chunks(body_bytes_max + 1), headers=lie)
    problem(response, 413, "body_too_large")


async def test_a_body_of_exactly_the_limit_is_taken(client: httpx.AsyncClient) -> None:
    document = b'{"thing": "' + b"x" * (body_bytes_max - 13) + b'"}'
    assert len(document) == body_bytes_max
    response = await client.post("/order", content=document, headers=json_headers)
    assert response.status_code == 200


async def test_a_route_may_take_less_than_the_application(client: httpx.AsyncClient) -> None:
    response = await client.post("/small", content=b" " * 51, headers=json_headers)
    assert "50 bytes" in problem(response, 413, "body_too_large")["detail"]
    response = await client.post("/small", content=chunks(51), headers=json_headers)
    assert "50 bytes" in problem(response, 413, "body_too_large")["detail"]


async def test_a_route_that_takes_less_says_so_of_whatever_is_announced(
    client: httpx.AsyncClient,
) -> None:
    # A route with its own limit says so; a wrong method is not of that route.
    content = b" " * (body_bytes_max + 1)
    response = await client.post("/small", content=content, headers=json_headers)
    assert "50 bytes" in problem(response, 413, "body_too_large")["detail"]
    assert response.headers["connection"] == "close"
    response = await client.put("/small", content=content, headers=json_headers)
    assert str(body_bytes_max) in problem(response, 413, "body_too_large")["detail"]


async def test_a_body_that_trickles_is_given_up(client: httpx.AsyncClient) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" "
            await asyncio.sleep(0.02)

    response = await client.post("/order", content=trickle(), headers=json_headers)
    assert "0.2 s" in problem(response, 408, "request_timeout")["detail"]


async def test_an_unread_body_without_announced_end_closes_the_connection(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post("/ignore", content=chunks(100))
    assert response.headers["connection"] == "close"
    response = await client.post("/ignore", content=b"announced")
    assert "connection" not in response.headers


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/jsonx",
        "json",
        "application/json\x00",
    ],
)
async def test_what_does_not_call_itself_json_is_unsupported(
    client: httpx.AsyncClient, content_type: str
) -> None:
    headers = [(b"content-type", content_type.encode())]
    response = await client.post("/order", content=b'{"thing": "x"}', headers=headers)
    problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/merge-patch+json",
        'application/json;charset="utf-8"',
    ],
)
async def test_what_calls_itself_json_is_read(client: httpx.AsyncClient, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = await client.post("/order", content=b'{"thing": "x"}', headers=headers)
    assert response.json() == {"thing": "x", "count": 1, "notes": []}


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        (b"", "invalid_json", "empty"),
        (b"{", "invalid_json", "ends too soon"),
        (b'{"thing": "x"} x', "invalid_json", "trailing"),
        (b'{"thing": NaN}', "invalid_json", "invalid character"),
        (b'{"thing": "\xff"}', "invalid_json", "UTF-8"),
        (b"\xff\xfe{\x00}\x00", "invalid_json", "malformed"),
        (b'{"thing": "\\ud800 and more"}', "invalid_json", "half a character"),
        (b'{"thing": "\\ud83d"}', "invalid_json", "half a character"),
        (b'{"thing": "\\udc00\\ud800"}', "invalid_json", "half a character"),
        (b'{"notes": ' + b"[" * 2000, "invalid_body", "notes"),
        (b"[]", "invalid_body", "an object"),
        (b"null", "invalid_body", "an object"),
        (b'{"thing": 1}', "invalid_body", "thing: must be text, and is a whole number"),
        (b'{"thing": "x", "count": 1e400}', "invalid_body", "count"),
        (b'{"thing": "x", "count": 1.5}', "invalid_body", "count"),
        (b'{"thing": "x", "notes": ["a", 2]}', "invalid_body", "notes[1]"),
        (b'{"count": 1}', "invalid_body", "thing"),
        (b'{"thing": "x", "price": 1}', "invalid_body", "price"),
    ],
)
async def test_a_malformed_body_is_the_clients_fault_and_says_where(
    client: httpx.AsyncClient, body: bytes, code: str, word: str
) -> None:
    response = await client.post("/order", content=body, headers=json_headers)
    assert word in problem(response, 400, code)["detail"]


async def test_the_last_of_doubled_members_counts(client: httpx.AsyncClient) -> None:
    body = b'{"thing": "a", "thing": "b"}'
    response = await client.post("/order", content=body, headers=json_headers)
    assert response.json()["thing"] == "b"


def test_a_number_of_very_many_digits_is_refused() -> None:
    with pytest.raises(FixRequest, match="count: "):
        decode_json(b'{"thing": "x", "count": ' + b"9" * 1_000_000 + b"}", Order)


def test_of_a_large_body_what_is_wrong_first_is_told_and_nothing_else() -> None:
    members = b",".join(b'"x%d":1' % number for number in range(20_000))
    small = members[: members.index(b',"x100"')]
    with pytest.raises(FixRequest) as found:
        decode_struct(b'{"count":"x",' + small + b"}", Order)
    assert [one["member"] for one in found.value.members["errors"]][:2] == ["thing", "count"]
    assert len(found.value.members["errors"]) == wrong_members_max
    with pytest.raises(FixRequest) as found:
        decode_struct(b'{"count":"x",' + members + b"}", Order)
    assert found.value.members["member"] == "count"
    assert "errors" not in found.value.members


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (rb"\ud800", "half a character"),
        (rb"\ud800\u0041", "half a character"),
        (rb"\udc00", "half a character"),
        (rb"\ud83d\ude00\q", "invalid escape"),
        (b"", "invalid escape"),
    ],
)
def test_half_a_character_of_a_large_body_is_found_where_decoding_fails(
    end: bytes, word: str
) -> None:
    filled = b'{"thing": "' + rb"\ud83d\ude00" * 20_000 + (end or rb"\q" + b"x" * 500)
    with pytest.raises(FixRequest, match=word):
        decode_json(filled + b'"}', Order)


def test_a_large_body_that_ends_too_soon_is_told_as_that() -> None:
    for left_out in range(1, 13):
        with pytest.raises(FixRequest, match=r"ends too soon|half a character"):
            decode_json((b'{"thing": "' + rb"\ud83d\ude00" * 20_000)[:-left_out], Order)
    with pytest.raises(FixRequest, match="ends too soon"):
        decode_json(b'{"thing": "' + rb"\u0041" * 20_000, Order)


def test_nesting_without_end_is_refused_for_any_type() -> None:
    for of in (object, dict[str, object], list[object]):
        for opening in (b"[", b'{"a":'):
            with pytest.raises(FixRequest):
                decode_json(opening * 500_000, of)


@settings(max_examples=300)
@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_no_bytes_make_the_decoder_fail_otherwise_than_by_refusing(body: bytes) -> None:
    try:
        decoded = decode_json(body, Order)
    except FixRequest as refusal:
        assert refusal.status == 400  # noqa: PT017  Success and refusal are both fine.
    else:
        assert isinstance(decoded, Order)


async def test_health_and_metrics_are_json_by_default(client: httpx.AsyncClient) -> None:
    health = await client.get("/health")
    assert health.json() == {"status": "healthy", "service": "shop", "queue_size": 0}
    assert health.headers["cache-control"] == "no-store"
    await client.get("/bug")
    flat = (await client.get("/metrics")).json()
    assert flat["http_requests.200"] == 1
    assert flat["http_requests.500"] == 1
    assert flat["http_requests_in_flight"] == 1
    text = await client.get("/metrics", headers={"Accept": "text/plain"})
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'ydht_http_requests_total{status="500"} 1.0' in text.text
    assert text.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("state", "status", "body"),
    [
        (ready, 200, {"status": "ready", "reasons": {}}),
        (
            degraded("no change"),
            200,
            {"status": "degraded", "reasons": {"till": "no change"}},
        ),
        (unready("jammed"), 503, {"status": "unready", "reasons": {"till": "jammed"}}),
    ],
)
async def test_ready_names_its_reasons(
    shop: Shop, client: httpx.AsyncClient, state: Condition, status: int, body: dict[str, Any]
) -> None:
    shop.state = state
    response = await client.get("/ready")
    assert response.status_code == status
    assert response.json() == {"service": "shop", **body}
    assert ("retry-after" in response.headers) is (status == 503)


async def test_the_worst_of_several_conditions_counts(
    shop: Shop, client: httpx.AsyncClient
) -> None:
    shop.readiness.add("door", lambda: unready("locked"))
    shop.state = degraded("no change")
    response = await client.get("/ready")
    assert response.status_code == 503
    assert response.json()["reasons"] == {"till": "no change", "door": "locked"}


async def test_an_internal_route_takes_signed_requests_only(
    shop: Shop, client: httpx.AsyncClient
) -> None:
    order = {"thing": "x"}
    refused = await client.post("/internal?trace=1", json=order)
    assert "header is missing" in problem(refused, 401, "unauthorized")["detail"]
    auth = SignedAuth(Signer(secret, SystemClock()))
    accepted = await client.post("/internal?trace=%2F1", json=order, auth=auth)
    assert accepted.json()["thing"] == "x"
    again = await client.post(
        "/internal?trace=%2F1", content=accepted.request.content, headers=accepted.request.headers
    )
    assert "replay" in problem(again, 401, "unauthorized")["detail"]
    altered = await client.post(
        "/internal?trace=%2F2", content=accepted.request.content, headers=accepted.request.headers
    )
    assert "does not match" in problem(altered, 401, "unauthorized")["detail"]
    assert shop.verifier.accepted == 1


async def test_an_internal_route_does_not_hold_more_than_its_limit(
    client: httpx.AsyncClient,
) -> None:
    headers = {signature_header: f"v1;{SystemClock().wall_ms()};{'n' * 22};{'0' * 64}"}
    content = chunks(body_bytes_max + 1)
    response = await client.post("/internal", content=content, headers=headers)
    problem(response, 413, "body_too_large")
