"""Whose pages may read what is answered."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import pytest
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.cors import (
    Cors,
    CorsAnswers,
    Preflights,
    asked_headers_bytes_max,
    origins_max,
)
from services.runtime.http import application
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness

here, there = "https://app.example", "https://other.example"
preflight = {"Origin": here, "Access-Control-Request-Method": "PUT"}


async def fine(_: Request) -> Response:
    return Response("fine", headers={"ETag": '"1"'})


async def broken(_: Request) -> Response:
    raise ZeroDivisionError


def client(origins: Sequence[str] | None) -> httpx.AsyncClient:
    cors = Cors(origins)
    app = application(
        "example",
        [Route("/fine", fine), Route("/broken", broken)],
        metrics=Metrics(),
        readiness=Readiness(),
        middleware=[Middleware(Preflights, cors=cors)],
    )
    app.add_middleware(CorsAnswers, cors=cors)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


@pytest.mark.parametrize("path", ["/fine", "/nowhere", "/broken"])
async def test_whatever_is_answered_says_who_may_read_it(path: str) -> None:
    async with client([here]) as browser:
        answer = await browser.get(path, headers={"Origin": here})
        assert answer.headers["Access-Control-Allow-Origin"] == here
        assert "RateLimit" in answer.headers["Access-Control-Expose-Headers"]
        assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers
        other = await browser.get(path, headers={"Origin": there})
        assert "Access-Control-Allow-Origin" not in other.headers
        assert other.headers["Vary"] == "Origin"
        plain = await browser.get(path)
        assert "Access-Control-Allow-Origin" not in plain.headers


async def test_a_preflight_is_answered_for_every_path_and_counted_as_a_request() -> None:
    async with client([here]) as browser:
        for path in ("/fine", "/nowhere", "/health"):
            answer = await browser.options(path, headers=preflight)
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers["Access-Control-Allow-Origin"] == here
            assert "PUT" in answer.headers["Access-Control-Allow-Methods"].split(", ")
            assert "X-Request-ID" in answer.headers
        other = await browser.options("/fine", headers={**preflight, "Origin": there})
        assert other.status_code == 204
        assert "Access-Control-Allow-Methods" not in other.headers
        figures = (await browser.get("/metrics")).json()
    assert figures["http_requests.204"] == 4


async def test_what_is_no_preflight_is_a_request_like_any_other() -> None:
    async with client([here]) as browser:
        assert (await browser.options("/fine", headers={"Origin": here})).status_code == 405
        assert (await browser.options("/fine")).status_code == 405


async def test_the_headers_that_are_asked_for_are_allowed_within_bounds() -> None:
    async with client([here]) as browser:
        asked = {**preflight, "Access-Control-Request-Headers": "x-api-key, x-metadata-a"}
        answer = await browser.options("/fine", headers=asked)
        assert answer.headers["Access-Control-Allow-Headers"] == "x-api-key, x-metadata-a"
        asked["Access-Control-Request-Headers"] = "x" * (asked_headers_bytes_max + 1)
        answer = await browser.options("/fine", headers=asked)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")


async def test_a_star_allows_every_origin_alike() -> None:
    async with client(["*"]) as browser:
        for origin in (here, there, "null"):
            answer = await browser.get("/fine", headers={"Origin": origin})
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Vary" not in answer.headers


@pytest.mark.parametrize("origins", [None, []])
async def test_without_origins_there_is_no_cors(origins: Sequence[str] | None) -> None:
    async with client(origins) as browser:
        answer = await browser.get("/fine", headers={"Origin": here})
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "Vary" not in answer.headers
        assert (await browser.options("/fine", headers=preflight)).status_code == 405


def test_lines_are_kept_for_a_bounded_number_of_origins() -> None:
    cors = Cors([here])
    for number in range(3 * origins_max):
        cors.lines(b"https://%d.example" % number)
    assert len(cors._lines) <= origins_max
    assert cors.lines(here.encode()) is cors.lines(here.encode())
