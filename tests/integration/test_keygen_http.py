"""A keygen as its clients see it: keys, refusals, quotas, and what describes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from services.core.permute import number_spelled
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.integration.database import SharedServer, fresh_database
from tests.integration.keygen_process import KeygenProcess, keygen_process
from tests.integration.node_process import secret
from tests.integration.usermanager_process import UserManagerProcess, usermanager_process
from tests.plain_http import plain_client

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Desk:
    """A keygen and the user manager that knows its API keys."""

    def __init__(
        self, keygen: KeygenProcess, usermanager: UserManagerProcess, address: DatabaseAddress
    ) -> None:
        self.keygen = keygen
        self._usermanager = usermanager
        self._address = address

    async def api_key(self, plan: str = "developer", *scopes: str) -> str:
        """Of a new account."""
        person = await self._usermanager.person()
        connection = await asyncpg.connect(**self._address.asyncpg())
        await connection.execute("UPDATE users SET plan = $1 WHERE id = $2", plan, person.id)
        await connection.close()
        made = await person.post(
            "/apikeys", {"name": "robot", "scopes": scopes or ("read", "write")}
        )
        assert made.status_code == 201, made.text
        key: str = made.json()["key"]
        return key

    async def get(self, target: str, api_key: str | None = None) -> httpx.Response:
        return await self.keygen.call("GET", target, api_key=api_key)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[Desk]:
    """One for all tests here: each asks as an account of its own."""
    data_dir = tmp_path_factory.mktemp("keygen") / "data"
    async with (
        fresh_database(postgres_server, migrated_template) as address,
        usermanager_process(data_dir, address) as usermanager,
        keygen_process(data_dir, address, USERMANAGER_URL=usermanager.url) as keygen,
    ):
        yield Desk(keygen, usermanager, address)


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    found: dict[str, Any] = answer.json()
    assert found["status"] == answer.status_code
    assert found["request_id"] == answer.headers["X-Request-ID"]
    return answer.status_code, found["code"]


async def test_keys_are_given_out_in_every_way(desk: Desk) -> None:
    key = await desk.api_key()
    plain = await desk.get("/get-key", key)
    assert (plain.status_code, plain.headers["Content-Type"]) == (200, "text/plain")
    assert len(plain.text) == 7
    assert plain.headers["Cache-Control"] == "no-store"
    assert plain.headers["X-Request-ID"]

    one = (await desk.get("/api/key", key)).json()
    sized = (await desk.get("/api/key?size=16", key)).json()
    assert (len(one["key"]), one["size"]) == (8, 8)
    assert (len(sized["key"]), sized["size"]) == (16, 16)
    assert one["id"] == number_spelled(one["key"].encode())
    assert sized["id"] == str(number_spelled(sized["key"].encode())), "beyond 2^53 as text"
    for told in (one, sized):
        assert list(told) == ["id", "key", "size", "creationDate", "takenDate"]
        created, taken = (datetime.fromisoformat(told[of]) for of in ("creationDate", "takenDate"))
        assert created <= taken + timedelta(seconds=1)
        assert abs(taken - datetime.now(UTC)) < timedelta(minutes=1)

    many = (await desk.get("/api/keys/10000?size=9", key)).json()
    assert len({told["key"] for told in many}) == 10_000
    assert {tuple(told) for told in many} == {tuple(one)}
    assert {told["size"] for told in many} == {9}


async def test_an_api_key_is_taken_in_three_headers_and_nothing_else_is(desk: Desk) -> None:
    key = await desk.api_key()
    for headers in ({"X-API-Key": key}, {"API-KEY": key}, {"Authorization": f"Bearer {key}"}):
        for target in ("/get-key", "/api/key", "/api/keys/2", "/quota"):
            answer = await desk.keygen.get(target, **headers)
            assert answer.status_code == 200, (headers, target)
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    for target in ("/get-key", "/api/key", "/api/keys/2", "/quota"):
        assert problem(await desk.get(target, wrong)) == (401, "invalid_api_key")
        two = await desk.keygen.get(target, **{"X-API-Key": key, "API-KEY": wrong})
        assert problem(two) == (400, "invalid_header")
    for target in ("/api/key", "/api/keys/2", "/quota"):
        assert problem(await desk.get(target)) == (401, "missing_api_key")


async def test_only_who_may_write_is_given_keys(desk: Desk) -> None:
    reader = await desk.api_key("developer", "read")
    for target in ("/get-key", "/api/key", "/api/keys/2"):
        assert problem(await desk.get(target, reader)) == (403, "insufficient_scope")
    assert (await desk.get("/quota", reader)).status_code == 200


async def test_without_leave_nobody_is_given_a_key_without_an_api_key(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with keygen_process(
        tmp_path / "data", database_address, KEYGEN_ANONYMOUS="false"
    ) as keygen:
        answer = await keygen.get("/get-key")
        assert problem(answer) == (401, "missing_api_key")
        assert answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    "target",
    [
        "/api/key?size=7",
        "/api/key?size=17",
        "/api/key?size=eight",
        "/api/key?size=8&size=8",
        "/api/key?sise=8",
        "/get-key?size=7",
        "/api/keys/0",
        "/api/keys/10001",
        "/api/keys/-1",
        "/api/keys/many",
        "/api/keys/1e3",
        "/api/keys/2?size=17",
        "/api/keys/99999999999999999999",
    ],
)
async def test_a_size_or_count_out_of_bounds_is_refused_by_name(desk: Desk, target: str) -> None:
    answer = await desk.get(target, await desk.api_key())
    assert problem(answer) == (400, "invalid_query")
    assert answer.json()["member"] in ("size", "sise", "count")


async def test_a_key_is_asked_for_by_get_alone(desk: Desk) -> None:
    key = await desk.api_key()
    for target in ("/get-key", "/api/key", "/api/keys/1", "/quota"):
        for method in ("POST", "PUT", "DELETE"):
            answer = await desk.keygen.call(method, target, api_key=key)
            assert problem(answer) == (405, "method_not_allowed")
            assert "GET" in answer.headers["Allow"]
    for target in ("/get-key", "/api/key", "/api/keys/1"):
        head = await desk.keygen.call("HEAD", target, api_key=key)
        assert head.status_code == 405, "a HEAD would cost a key that nobody sees"
        assert head.headers["Allow"] == "GET"
    assert (await desk.get("/quota", key)).json()["used"] == 0


async def test_a_keygen_that_has_keys_is_one_process(desk: Desk) -> None:
    """One that was forked off with full pools would give every key in them out again."""
    key = await desk.api_key()
    for target in ("/get-key", "/api/keys/10000", "/quota"):
        assert (await desk.get(target, key)).status_code == 200
    assert psutil.Process(desk.keygen.process.pid).children() == []


async def test_a_quota_is_told_and_held_to(desk: Desk) -> None:
    key = await desk.api_key("free")
    quota = (await desk.get("/quota", key)).json()
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert (quota["used"], quota["limit"]) == (0, 1_000)
    assert datetime.fromisoformat(quota["resets_at"]) in (
        midnight,
        midnight + timedelta(days=1),
    )
    assert len((await desk.get("/api/keys/990", key)).json()) == 990
    refused = await desk.get("/api/keys/11", key)
    assert problem(refused) == (429, "quota_exhausted")
    assert 1 <= int(refused.headers["Retry-After"]) <= 86_400
    for _ in range(10):
        assert (await desk.get("/get-key", key)).status_code == 200
    assert problem(await desk.get("/get-key", key)) == (429, "quota_exhausted")
    assert problem(await desk.get("/api/key", key)) == (429, "quota_exhausted")
    assert (await desk.get("/quota", key)).json()["used"] == 1_000


async def test_without_a_limit_the_quota_only_counts(desk: Desk) -> None:
    key = await desk.api_key("developer")
    await desk.get("/api/keys/5000", key)
    await desk.get("/get-key", key)
    quota = (await desk.get("/quota", key)).json()
    assert (quota["used"], quota["limit"]) == (5_001, None)


async def test_the_gateway_is_given_ids_in_the_name_of_a_tenant(desk: Desk) -> None:
    ids = await desk.keygen.ids(tenant=12, count=300, size=16)
    assert len(set(ids)) == 300
    assert {len(one) for one in ids} == {16}
    assert len(await desk.keygen.ids(tenant=13, count=600, quota="1000")) == 600
    refused = await desk.keygen.asked_by_service(
        "/ids?count=401",
        X_Ydht_Tenant="13",
        X_Ydht_Key_Id="1",
        X_Ydht_Ids_Per_Day="1000",
    )
    assert problem(refused) == (429, "quota_exhausted")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X_Ydht_Key_Id": "1"}, "invalid_header"),
        ({"X_Ydht_Tenant": "1"}, "invalid_header"),
        ({"X_Ydht_Tenant": "-1", "X_Ydht_Key_Id": "1"}, "invalid_header"),
        (
            {"X_Ydht_Tenant": "1", "X_Ydht_Key_Id": "1", "X_Ydht_Ids_Per_Day": "many"},
            "invalid_header",
        ),
    ],
)
async def test_a_service_says_in_whose_name_it_asks(
    desk: Desk, headers: dict[str, str], code: str
) -> None:
    answer = await desk.keygen.asked_by_service("/ids", **headers)
    assert problem(answer) == (400, code)


async def test_a_service_is_told_how_much_of_a_tenants_day_is_used(desk: Desk) -> None:
    await desk.keygen.ids(tenant=14, count=300, quota="1000")
    headers = {"X-Ydht-Tenant": "14", "X-Ydht-Key-Id": "1", "X-Ydht-Ids-Per-Day": "1000"}
    auth = SignedAuth(Signer(secret, SystemClock()))
    async with plain_client() as client:
        url = desk.keygen.url + "/ids/quota"
        told = await client.get(url, headers=headers, auth=auth)
        other = await client.get(url, headers={**headers, "X-Ydht-Tenant": "15"}, auth=auth)
        unsigned = await client.get(url, headers=headers)
    assert (told.json()["used"], told.json()["limit"]) == (300, 1_000)
    assert told.json()["resets_at"].endswith("T00:00:00.000Z")
    assert told.json()["keys"] == [{"key_id": 1, "used": 300}]
    assert told.json()["days"] == [0, 0, 0, 0, 0, 0, 300]
    assert other.json()["used"] == 0
    assert other.json()["keys"] == []
    assert problem(unsigned) == (401, "unauthorized")


async def test_keys_are_returned_and_what_is_rejected_is_told(desk: Desk) -> None:
    key, other = await desk.api_key(), await desk.api_key()
    given = [one["key"] for one in (await desk.get("/api/keys/20", key)).json()]
    body = {"keys": [*given[:5], given[0], "nonsense!", "z" * 16]}
    answer = await desk.keygen.call("POST", "/api/ReturnKeys", api_key=key, body=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["returned"] == 5
    reasons = {one["key"]: one["reason"] for one in told["rejected"]}
    assert set(reasons) == {given[0], "nonsense!", "z" * 16}
    assert all(reasons.values())
    answer = await desk.keygen.call(
        "POST", "/api/ReturnKeys", api_key=other, body={"keys": given[5:]}
    )
    assert (answer.json()["returned"], len(answer.json()["rejected"])) == (0, 15)
    reader = await desk.api_key("developer", "read")
    refused = await desk.keygen.call(
        "POST", "/api/ReturnKeys", api_key=reader, body={"keys": given[5:]}
    )
    assert problem(refused) == (403, "insufficient_scope")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"keys": "abcdefg"},
        {"keys": [1]},
        {"keys": ["a" * 65]},
        {"keys": ["abcdefg"] * 10_001},
        {"keys": [], "more": 1},
        ["abcdefg"],
    ],
)
async def test_a_body_that_names_no_keys_is_refused_by_name(desk: Desk, body: object) -> None:
    key = await desk.api_key()
    refused = await desk.keygen.call("POST", "/api/ReturnKeys", api_key=key, body=body)
    assert problem(refused) == (400, "invalid_body")
    none = await desk.keygen.call("POST", "/api/ReturnKeys", api_key=key, body={"keys": []})
    assert none.json() == {"returned": 0, "rejected": []}


async def test_what_is_internal_is_for_services_alone(desk: Desk) -> None:
    key = await desk.api_key()
    for target in ("/ids", "/held"):
        answer = await desk.keygen.call("POST", target, api_key=key, body={})
        assert problem(answer) == (401, "unauthorized")


async def test_everything_is_described_and_measured(desk: Desk) -> None:
    before = await desk.keygen.metrics()
    await desk.get("/get-key", await desk.api_key())
    assert (await desk.get("/health")).json() == {"status": "healthy", "service": "keygen"}
    ready = await desk.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    document = (await desk.get("/openapi.json")).json()
    assert {"/get-key", "/api/key", "/api/keys/{count}", "/api/ReturnKeys", "/quota"} <= set(
        document["paths"]
    )
    told = document["paths"]["/api/ReturnKeys"]["post"]["description"]
    assert "not before it has rested for RETURN_REST (ten minutes" in told
    for page in ("/docs", "/docs/errors"):
        assert "text/html" in (await desk.get(page)).headers["Content-Type"]
    figures = await desk.keygen.metrics()
    for name, grown in (("keys_issued", 1), ("pool_keys", 19), ("pool_refill_ms_count", 1)):
        assert figures[name] - before[name] == grown, name
    assert figures["pool_gaps"] == 0
    assert figures["keyspace_nearly_exhausted.7"] == 0
    text = (await desk.keygen.get("/metrics", Accept="text/plain")).text
    assert "ydht_keys_issued_total " in text
    assert 'ydht_keyspace_used_ratio{size="7"}' in text
