"""IDs as keygen gives them, refuses them, or does not answer at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from services.core.errors import ClientError, FixRequest, RetryLater
from services.core.id_requests import Ids, IdsQuery
from services.gateway.ids import IdSource
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import SystemClock
from services.runtime.console_requests import ConsoleRequests
from services.runtime.endpoints import Access, Call, Endpoint, routes
from services.runtime.http import application
from services.runtime.key_access import KeyAccess
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness
from services.runtime.signing import Verifier
from tests.known_keys import Counted, KnownKeys

secret = "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe"


class Claims(msgspec.Struct, rename={"tenant": "X-Ydht-Tenant", "key_id": "X-Ydht-Key-Id"}):
    tenant: int
    key_id: int


class Keygen:
    """As much of one as answers; what it says can be changed."""

    def __init__(self) -> None:
        self.asked: list[tuple[Claims, IdsQuery]] = []
        self.instead: Any = None

    async def make(self, call: Call[None, IdsQuery, None]) -> Any:
        self.asked.append((call.headers, call.query))
        if isinstance(self.instead, Exception):
            raise self.instead
        if self.instead is not None:
            return self.instead
        return Ids(["x" * call.query.size] * call.query.count)

    def app(self) -> Starlette:
        endpoint = Endpoint(
            "POST",
            "/ids",
            "makeIds",
            "Make IDs",
            self.make,
            Access.INTERNAL,
            query_type=IdsQuery,
            header_type=Claims,
            answer_type=Ids,
        )
        verifier = Verifier(secret, SystemClock())
        return application(
            "keygen",
            routes([endpoint], verifier=verifier, addresses=ClientAddresses()),
            metrics=Metrics(),
            readiness=Readiness(),
        )


class World:
    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        clock = SystemClock()
        self.keys = KnownKeys(clock)
        self.ids = IdSource("http://keygen", secret, clock, transport=transport)
        verifier = Verifier(secret, clock)
        access = KeyAccess(self.keys, ConsoleRequests(verifier, self.keys), Counted(), clock)
        app = application(
            "gateway",
            routes(
                self.ids.endpoints(), verifier=verifier, addresses=ClientAddresses(), keys=access
            ),
            metrics=Metrics(),
            readiness=Readiness(),
        )
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://gateway",
            headers={"X-API-Key": self.keys.add(12)},
        )


@asynccontextmanager
async def world(transport: httpx.AsyncBaseTransport) -> AsyncIterator[World]:
    world = World(transport)
    async with world.client:
        yield world
    await world.ids.close()


@pytest.fixture
def keygen() -> Keygen:
    return Keygen()


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def over(keygen: Keygen) -> httpx.ASGITransport:
    return httpx.ASGITransport(keygen.app(), raise_app_exceptions=False)


async def test_ids_are_asked_for_in_the_tenants_name(keygen: Keygen) -> None:
    async with world(over(keygen)) as here:
        one = await here.client.post("/v1/ids")
        assert (one.status_code, one.json()) == (200, {"ids": ["x" * 7]})
        many = await here.client.post("/v1/ids?count=10000&size=16")
        assert many.json() == {"ids": ["x" * 16] * 10_000}
    assert [(claims.tenant, claims.key_id) for claims, _ in keygen.asked] == [(12, 1)] * 2


@pytest.mark.parametrize(
    ("instead", "expected"),
    [
        (RetryLater("quota_exhausted", "Tomorrow", retry_after_s=777), (429, "quota_exhausted")),
        (RetryLater("overloaded", "Busy", retry_after_s=777), (503, "overloaded")),
        (
            RetryLater("database_unavailable", "Away", retry_after_s=777),
            (503, "database_unavailable"),
        ),
        (FixRequest("limit_reached", "Ask for longer ones"), (409, "limit_reached")),
        (FixRequest("unauthorized", "Who?"), (503, "keygen_unavailable")),
        (ZeroDivisionError(), (503, "keygen_unavailable")),
        (["not", "ids"], (503, "keygen_unavailable")),
        ({"ids": ["x"] * 2}, (503, "keygen_unavailable")),
        ({"ids": [1, 2, 3]}, (503, "keygen_unavailable")),
    ],
)
async def test_what_keygen_refuses_is_passed_on_if_it_is_for_clients(
    keygen: Keygen,
    instead: object,
    expected: tuple[int, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    keygen.instead = instead
    async with world(over(keygen)) as here:
        answer = await here.client.post("/v1/ids?count=3")
        assert problem(answer) == expected
        if isinstance(instead, RetryLater) and expected[1] == instead.code:
            assert answer.headers["Retry-After"] == "777"
        if isinstance(instead, ClientError) and expected[1] == instead.code:
            assert answer.json()["detail"] == instead.detail
        is_ours = expected[1] == "keygen_unavailable" and not isinstance(instead, list | dict)
        assert ("keygen refuses the gateway" in caplog.text) == is_ours
        assert "RateLimit" in answer.headers
    assert len(keygen.asked) == 1, "asked once, whatever it says"


class Failing(httpx.AsyncBaseTransport):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused by 10.0.0.7"),
        httpx.ReadTimeout("too late"),
        httpx.RemoteProtocolError("garbage"),
    ],
)
async def test_a_keygen_that_is_away_is_no_fault_of_the_client(error: Exception) -> None:
    async with world(Failing(error)) as here:
        answer = await here.client.post("/v1/ids")
        assert problem(answer) == (503, "keygen_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert "10.0.0.7" not in answer.text
        assert "keygen cannot be reached" in answer.json()["detail"]
