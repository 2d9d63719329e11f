"""What API keys are good for: every operation that the gateway describes, with every kind of key.

The operations are those of openapi.json, so that one that is added without a case here fails by its
name.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

import httpx
import pytest

from tests.cluster.gateway.answers import problem, put, raw, told
from tests.cluster.gateway_platform import (
    Caller,
    GatewayProcess,
    Platform,
    Tenant,
    lane_names,
    new_name,
)
from tests.integration.lane_world import request
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="package")


@dataclass(slots=True, frozen=True)
class Case:
    """How an operation is asked for, and what it needs."""

    scope: str
    method: str
    target: str
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    # Of somebody who may: keygen does not run here.
    status: int = 200

    async def ask(self, caller: Caller) -> httpx.Response:
        said = caller.saying(**self.headers)
        if self.document is not None:
            return await said.ask(self.method, self.target, json=self.document)
        return await said.ask(self.method, self.target, b"v" if self.method == "PUT" else None)


putting: Final = {"op": "put", "key": "batched", "value": "v"}
cases: Final[dict[str, list[Case]]] = {
    "GET /v1/kv/{key}": [
        Case("read", "GET", "/v1/kv/there"),
        Case("read", "GET", "/v1/kv/there", headers={"X-Consistency": "strong"}),
    ],
    "HEAD /v1/kv/{key}": [Case("read", "HEAD", "/v1/kv/there")],
    "PUT /v1/kv/{key}": [
        Case("write", "PUT", "/v1/kv/new"),
        Case("write", "PUT", "/v1/kv/new", headers={"X-Consistency": "strong"}),
        Case("write", "PUT", "/v1/kv/there", headers={"If-Match": "*"}),
        Case("write", "PUT", "/v1/kv/new?ttl=1h"),
        Case("write", "PUT", "/v1/kv/newer", headers={"If-None-Match": "*"}),
    ],
    "DELETE /v1/kv/{key}": [
        Case("write", "DELETE", "/v1/kv/there"),
        Case("write", "DELETE", "/v1/kv/there", headers={"X-Consistency": "strong"}),
        Case("write", "DELETE", "/v1/kv/there", headers={"If-Match": "*"}, status=412),
    ],
    "PATCH /v1/kv/{key}": [Case("write", "PATCH", "/v1/kv/kept?ttl=1h")],
    "POST /v1/kv/{key}/incr": [Case("write", "POST", "/v1/kv/n/incr")],
    "GET /v1/kv": [Case("read", "GET", "/v1/kv"), Case("read", "GET", "/v1/kv?prefix=t")],
    "DELETE /v1/kv": [
        Case("admin", "DELETE", "/v1/kv?prefix=k&dry_run=true"),
        Case("admin", "DELETE", "/v1/kv?prefix=k"),
    ],
    "POST /v1/batch": [
        Case("write", "POST", "/v1/batch", {"operations": []}),
        Case("write", "POST", "/v1/batch", {"operations": [putting]}),
        Case("write", "POST", "/v1/batch", {"operations": [{"op": "delete", "key": "there"}]}),
    ],
    "GET /v1/namespaces": [Case("admin", "GET", "/v1/namespaces")],
    "GET /v1/namespaces/{name}": [Case("admin", "GET", "/v1/namespaces/{namespace}")],
    "PUT /v1/namespaces/{name}": [
        Case("admin", "PUT", "/v1/namespaces/{namespace}", {"kind": "store"})
    ],
    "DELETE /v1/namespaces/{name}": [Case("admin", "DELETE", "/v1/namespaces/{namespace}")],
    "POST /v1/ids": [Case("write", "POST", "/v1/ids", status=503)],
}
every_scope: Final = ("read", "write", "admin")
every_kind: Final = [kind for size in (1, 2, 3) for kind in combinations(every_scope, size)]


async def state_of(robot: Caller) -> Any:
    """All that a namespace has, by majorities."""
    keys = told(await robot.get("/v1/kv"))["keys"]
    strong = robot.saying(X_Consistency="strong")
    return [
        (key["key"], (await strong.get(f"/v1/kv/{key['key']}")).headers["ETag"]) for key in keys
    ]


async def until_listed(robot: Caller, *keys: str) -> None:
    """Wait until listings, which are eventual, know of these."""

    async def look() -> bool | None:
        page = told(await robot.get("/v1/kv"))
        return [key["key"] for key in page["keys"]] == sorted(keys) or None

    await until_told(look, f"{keys} are listed")


async def filled(robot: Caller) -> None:
    strong = robot.saying(X_Consistency="strong")
    for key, value in (("there", b"secret"), ("kept", b"secret"), ("n", b"1")):
        await put(strong, f"/v1/kv/{key}", value)
    await until_listed(robot, "there", "kept", "n")


async def test_every_operation_has_its_cases(robot: Caller) -> None:
    document = told(await robot.get("/openapi.json"))
    described = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
        if path.startswith("/v1/")
    }
    assert described == set(cases)


@pytest.mark.parametrize("kind", every_kind, ids="+".join)
async def test_a_key_does_what_its_scopes_say_and_nothing_else(
    ada: Tenant, robot: Caller, kind: tuple[str, ...]
) -> None:
    await filled(robot)
    namespace = robot.headers["X-Namespace"]
    caller = (await ada.caller(*kind)).at(robot.gateway).saying(X_Namespace=namespace)
    before = await state_of(robot)
    every = [
        Case(case.scope, case.method, case.target.replace("{namespace}", namespace),
             case.document, case.headers, case.status)
        for each in cases.values()
        for case in each
    ]  # fmt: skip
    for case in every:
        if case.scope not in kind:
            answer = await case.ask(caller)
            assert answer.status_code == 403, case
            assert b"secret" not in answer.content
            if case.method != "HEAD":
                assert problem(answer) == (403, "insufficient_scope"), case
    assert await state_of(robot) == before, "what is refused changes nothing"
    for case in every:
        if case.scope in kind:
            assert (await case.ask(caller)).status_code == case.status, case


async def test_who_may_only_write_reads_nothing_in_a_batch(ada: Tenant, robot: Caller) -> None:
    await filled(robot)
    writer = (await ada.caller("write", "admin")).at(robot.gateway)
    said = writer.saying(X_Namespace=robot.headers["X-Namespace"])
    getting = {"op": "get", "key": "there"}
    for caller in (said, said.saying(X_Consistency="strong")):
        answer = await caller.post("/v1/batch", {"operations": [getting, putting, getting]})
        assert b"secret" not in answer.content
        results = told(answer)["results"]
        assert [result["status"] for result in results] == [403, 200, 403]
        assert results[0]["code"] == "insufficient_scope"
    strong = robot.saying(X_Consistency="strong")
    assert raw(await strong.get("/v1/kv/batched")) == b"v"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST"])
async def test_headers_make_no_write_of_a_read(ada: Tenant, robot: Caller, method: str) -> None:
    await filled(robot)
    before = await state_of(robot)
    reader = (await ada.caller("read")).at(robot.gateway).saying(
        X_Namespace=robot.headers["X-Namespace"]
    )  # fmt: skip
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        said = reader.saying(**{name: method})
        for verb in ("GET", "HEAD", "POST"):
            for target in ("/v1/kv/there", "/v1/kv/there/incr", f"/v1/kv?_method={method}"):
                answer = await said.ask(verb, target)
                assert answer.status_code in (200, 400, 403, 404, 405), (verb, target)
    for scope in ("read,write,admin", "write"):
        said = reader.saying(X_Ydht_Scope=scope, X_Ydht_Tenant=str(ada.id), X_Scopes=scope)
        assert (await said.delete("/v1/kv/there")).status_code == 403
        assert (await said.delete("/v1/kv?prefix=t")).status_code == 403
    assert await state_of(robot) == before


# -- keys that are limited to a prefix


async def test_a_limited_key_stays_inside_its_prefix_on_every_route(
    ada: Tenant, robot: Caller
) -> None:
    await filled(robot)
    strong = robot.saying(X_Consistency="strong")
    await put(strong, "/v1/kv/mine/a", b"mine")
    await until_listed(robot, "there", "kept", "n", "mine/a")
    before = await state_of(robot)
    namespace = robot.headers["X-Namespace"]
    limited = (await ada.caller(prefix="mine/")).at(robot.gateway).saying(X_Namespace=namespace)

    outside = ["there", "mine", "Mine/a", "%4Dine/a", "/mine/a", "%2Fmine/a", "./mine/a",
               "there%2Fmine/a", "mine%5Ca", "mine%00/a", "min%65", "%20mine/a", "mIne/",
               "m%C4%B1ne/a", "x/../mine/a"]  # fmt: skip
    # Written by hand, for dots to arrive as they are.
    client = await robot.gateway.connect()
    for key in outside:
        for method, suffix in (
            ("GET", ""), ("HEAD", ""), ("PUT", ""), ("DELETE", ""), ("PATCH", "?ttl=1h"),
            ("POST", "/incr"),
        ):  # fmt: skip
            sent = await client.ask(request(method, f"/v1/kv/{key}{suffix}", *limited.lines))
            assert sent.status == 403, (method, key)
            assert method == "HEAD" or b'"code":"key_not_allowed"' in sent.body, (method, key)
    await client.close()
    for query in ("", "?prefix=", "?prefix=m", "?prefix=mine", "?prefix=there", "?delimiter=/",
                  "?prefix=Mine/", "?prefix=%2Fmine/"):  # fmt: skip
        assert problem(await limited.get(f"/v1/kv{query}")) == (403, "key_not_allowed"), query
        if "prefix=" in query and not query.endswith("="):
            for more in ("", "&dry_run=true"):
                answer = await limited.delete(f"/v1/kv{query}{more}")
                assert problem(answer) == (403, "key_not_allowed"), query
    for method in ("GET", "PUT", "DELETE"):
        document = {"kind": "store"} if method == "PUT" else None
        answer = await limited.ask(method, f"/v1/namespaces/{namespace}", json=document)
        assert problem(answer) == (403, "key_not_allowed")
    assert problem(await limited.get("/v1/namespaces")) == (403, "key_not_allowed")
    for caller in (limited, limited.saying(X_Consistency="strong")):
        for key in ("there", "mine", "Mine/a", "/mine/a", ""):
            operations = [
                {"op": "put", "key": key, "value": "v"},
                {"op": "get", "key": key},
                {"op": "delete", "key": key},
            ]
            results = told(await caller.post("/v1/batch", {"operations": operations}))["results"]
            codes = {(result["status"], result["code"]) for result in results}
            assert codes == {(403, "key_not_allowed") if key else (400, "invalid_key")}
    assert await state_of(robot) == before


async def test_a_limited_key_does_everything_inside_its_prefix(ada: Tenant, robot: Caller) -> None:
    await filled(robot)
    limited = (await ada.caller(prefix="mine/")).at(robot.gateway)
    said = limited.saying(X_Namespace=robot.headers["X-Namespace"], X_Consistency="strong")
    inside = limited.saying(X_Namespace=robot.headers["X-Namespace"])
    for target in ("/v1/kv/mine/a", "/v1/kv/mine%2Fb", "/v1/kv/%6D%69%6E%65/"):
        await put(said, target, b"1")
        assert raw(await said.get(target)) == b"1"
        told(await said.ask("PATCH", f"{target}?ttl=1h"))
        assert told(await said.post(f"{target}/incr"))["value"] == 2
    await until_listed(robot, "there", "kept", "n", "mine/", "mine/a", "mine/b")
    listed = told(await inside.get("/v1/kv?prefix=mine/"))["keys"]
    assert [key["key"] for key in listed] == ["mine/", "mine/a", "mine/b"]
    page = told(await inside.get("/v1/kv?prefix=mine/&limit=1"))
    following = await inside.get(f"/v1/kv?prefix=mine/&limit=2&cursor={page['cursor']}")
    assert [key["key"] for key in told(following)["keys"]] == ["mine/a", "mine/b"]
    operations = [{"op": "get", "key": "mine/a"}, {"op": "delete", "key": "mine/b"}]
    results = told(await said.post("/v1/batch", {"operations": operations}))["results"]
    assert [result["status"] for result in results] == [200, 200]
    deleted = told(await inside.delete("/v1/kv?prefix=mine/"))
    assert deleted["matched"] == deleted["deleted"] == 2
    strong = robot.saying(X_Consistency="strong")
    assert raw(await strong.get("/v1/kv/there")) == b"secret"


# -- keys that are revoked


@pytest.mark.parametrize("target", ["/v1/kv/a", "/v1/kv?limit=1"])
async def test_a_revoked_key_stops_within_a_second_everywhere(
    platform: Platform, ada: Tenant, target: str
) -> None:
    """Asked all the time, on connections that have brought it many times."""
    made = await ada.make_key()
    other = await ada.caller()
    name = new_name("revoked")
    revoked_at_s = float("inf")

    async def ask_until_refused(gateway: GatewayProcess) -> tuple[float, int]:
        caller = platform.caller(made.key, X_Namespace=name).at(gateway)
        asked = 0
        while True:
            answer = await caller.get(target)
            if answer.status_code == 401:
                assert problem(answer) == (401, "invalid_api_key")
                return time.monotonic() - revoked_at_s, asked
            assert answer.status_code in (200, 404), answer.text
            asked += 1
            assert time.monotonic() - revoked_at_s < 10, "it goes on"

    gateways = [platform.gateways[lane] for lane in lane_names]
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask_until_refused(one)) for one in gateways for _ in range(2)]
        await asyncio.sleep(0.3)
        await made.revoke()
        revoked_at_s = time.monotonic()
    for after_s, asked in (task.result() for task in asking):
        assert asked > 5
        assert after_s < 1.0, f"it was taken for {after_s:.3f} s"
    for gateway in gateways:
        caller = platform.caller(made.key, X_Namespace=name).at(gateway)
        assert problem(await caller.put("/v1/kv/a", b"v")) == (401, "invalid_api_key")
        assert problem(await caller.post("/v1/batch", {"operations": []}))[1] == "invalid_api_key"
        assert (await other.at(gateway).get("/v1/kv/a")).status_code == 404


async def test_a_rotated_key_goes_on_for_its_overlap_and_not_without_one(
    platform: Platform, ada: Tenant, gateway: GatewayProcess
) -> None:
    for overlap, status in (("1h", 404), ("0s", 401)):
        made = await ada.make_key()
        old = platform.caller(made.key).at(gateway)
        assert (await old.get("/v1/kv/absent")).status_code == 404
        answer = await ada.person.post(f"/apikeys/{made.id}/rotate", {"overlap": overlap})
        assert answer.status_code == 201, answer.text
        rotated_at_s = time.monotonic()
        new = platform.caller(answer.json()["key"]).at(gateway)
        assert (await new.get("/v1/kv/absent")).status_code == 404
        while (found := (await old.get("/v1/kv/absent")).status_code) != status:
            assert time.monotonic() - rotated_at_s < 1.0, overlap
        assert found == status


async def test_what_is_left_of_an_account_is_left_of_its_keys(
    platform: Platform, gateway: GatewayProcess
) -> None:
    """Whoever closes an account has closed it everywhere."""
    tenant = await platform.tenant()
    caller = (await tenant.caller()).at(gateway)
    await put(caller, "/v1/kv/a")
    answer = await tenant.person.delete("/me", {"password": tenant.person.password})
    assert answer.status_code == 204, answer.text
    closed_at_s = time.monotonic()
    while (answer := await caller.get("/v1/kv/a")).status_code != 401:
        assert time.monotonic() - closed_at_s < 1.0
    assert problem(answer) == (401, "invalid_api_key")
