"""What is not about one key: listings, deletion by prefix, namespaces, batches, IDs, and what the
gateway tells of itself, as the real process answers it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.cluster.gateway.answers import (
    found,
    gone,
    problem,
    put,
    raw,
    seconds_until,
    time_form,
    told,
)
from tests.cluster.gateway_platform import (
    Caller,
    GatewayProcess,
    Platform,
    Tenant,
    new_name,
    page_origin,
    served,
)
from tests.free_ports import free_port
from tests.integration.lane_world import request
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def until_listed(robot: Caller, *keys: str) -> None:
    async def look() -> bool | None:
        page = told(await robot.get("/v1/kv?limit=1000"))
        return [key["key"] for key in page["keys"]] == sorted(keys) or None

    await until_told(look, f"{keys} are listed")


# -- GET /v1/kv


async def test_a_listing_tells_all_of_a_key_but_its_value(robot: Caller) -> None:
    strong = robot.saying(X_Consistency="strong")
    etag = await put(strong, "/v1/kv/a?ttl=1h", b"12345")
    plain = await put(strong, "/v1/kv/b", b"")
    await until_listed(robot, "a", "b")
    page = told(await robot.get("/v1/kv"))
    assert set(page) == {"keys", "prefixes", "count", "cursor"}
    assert (page["prefixes"], page["count"], page["cursor"]) == ([], 2, None)
    first, second = page["keys"]
    for key in (first, second):
        assert time_form.fullmatch(key["created_at"])
        assert key["updated_at"] == key["created_at"]
        assert abs(seconds_until(key["created_at"])) < 60
    expires_at = first["expires_at"]
    assert 3_500 < seconds_until(expires_at) < 3_601
    shared = {"created_at": first["created_at"], "updated_at": first["updated_at"]}
    assert first == {
        "key": "a", "size": 5, "etag": etag, "expires_at": expires_at, "has_ttl": True, **shared,
    }  # fmt: skip
    shared = {"created_at": second["created_at"], "updated_at": second["updated_at"]}
    assert second == {
        "key": "b", "size": 0, "etag": plain, "expires_at": None, "has_ttl": False, **shared,
    }  # fmt: skip


async def test_strong_writes_keep_when_a_key_came_to_be(robot: Caller) -> None:
    strong = robot.saying(X_Consistency="strong")

    async def times(etag: str) -> tuple[str, str]:
        async def look() -> tuple[str, str] | None:
            keys = told(await robot.get("/v1/kv"))["keys"]
            for key in keys:
                if key["etag"] == etag:
                    return key["created_at"], key["updated_at"]
            return None

        return await until_told(look, f"{etag} is listed")

    created, updated = await times(await put(strong, "/v1/kv/n", b"1"))
    assert created == updated
    for change in (
        strong.put("/v1/kv/n", b"2"),
        robot.ask("PATCH", "/v1/kv/n?ttl=1h"),
        robot.post("/v1/kv/n/incr"),
        robot.saying(If_Match="*").put("/v1/kv/n", b"3"),
    ):
        kept, later = await times(told(await change)["etag"])
        assert kept == created
        assert later > updated
        updated = later
    # An eventual put asks nobody what was there, and begins anew.
    created, updated = await times(await put(robot, "/v1/kv/n", b"4"))
    assert created == updated > later


async def test_a_listing_goes_on_where_it_ended_and_groups_what_is_alike(robot: Caller) -> None:
    names = sorted(f"{folder}/{number}" for folder in "abc" for number in range(4))
    for name in names:
        await put(robot, f"/v1/kv/{name}")
    await until_listed(robot, *names)
    seen: list[str] = []
    query = "limit=5"
    while True:
        page = told(await robot.get(f"/v1/kv?{query}"))
        seen += [key["key"] for key in page["keys"]]
        assert page["count"] == len(page["keys"]) <= 5
        if page["cursor"] is None:
            break
        query = f"limit=5&cursor={page['cursor']}"
    assert seen == names
    grouped = told(await robot.get("/v1/kv?delimiter=/"))
    assert (grouped["keys"], grouped["prefixes"]) == ([], ["a/", "b/", "c/"])
    assert grouped["count"] == 3
    within = told(await robot.get("/v1/kv?prefix=b/&delimiter=/"))
    assert [key["key"] for key in within["keys"]] == names[4:8]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("limit=0", 400, "invalid_query"),
        ("limit=1001", 400, "invalid_query"),
        ("limit=x", 400, "invalid_query"),
        ("nothing=1", 400, "invalid_query"),
        ("prefix=a&prefix=b", 400, "invalid_key"),
        ("prefix=%ff", 400, "invalid_key"),
        ("prefix=" + "a" * 1025, 414, "key_too_long"),
        ("cursor=nonsense", 400, "invalid_cursor"),
        ("cursor=%ff", 400, "invalid_cursor"),
        ("cursor=" + "A" * 5000, 400, "invalid_cursor"),
    ],
)
async def test_a_listing_that_cannot_be_is_refused(
    robot: Caller, query: str, status: int, code: str
) -> None:
    assert problem(await robot.get(f"/v1/kv?{query}")) == (status, code)


async def test_listings_are_eventual(robot: Caller) -> None:
    for consistency in ("strong", "both"):
        answer = await robot.saying(X_Consistency=consistency).get("/v1/kv")
        assert problem(answer) == (400, "invalid_consistency")
    assert told(await robot.saying(X_Consistency="eventual").get("/v1/kv"))["count"] == 0
    for name in ("", "x" * 256, "\xff"):
        answer = await robot.saying(X_Namespace=name).get("/v1/kv")
        assert problem(answer) == (400, "invalid_namespace")


# -- DELETE /v1/kv


async def test_deleting_by_prefix_can_be_tried_first(robot: Caller) -> None:
    names = ["a/1", "a/2", "b/1"]
    for name in names:
        await put(robot, f"/v1/kv/{name}")
    await until_listed(robot, *names)
    tried = told(await robot.delete("/v1/kv?prefix=a/&dry_run=true"))
    assert tried == {"matched": 2, "deleted": 0, "cursor": None}
    assert told(await robot.get("/v1/kv"))["count"] == 3
    done = told(await robot.delete("/v1/kv?prefix=a/"))
    assert done == {"matched": 2, "deleted": 2, "cursor": None}
    await until_listed(robot, "b/1")
    await gone(robot.saying(X_Consistency="strong"), "/v1/kv/a/1")
    assert told(await robot.delete("/v1/kv?prefix=none"))["matched"] == 0
    assert problem(await robot.delete("/v1/kv?prefix=")) == (400, "invalid_key")
    assert problem(await robot.delete("/v1/kv"))[0] == 400
    assert problem(await robot.delete("/v1/kv?prefix=a&dry_run=yes")) == (400, "invalid_query")
    assert problem(await robot.delete("/v1/kv?prefix=a&cursor=x")) == (400, "invalid_cursor")


# -- namespaces


async def test_namespaces_spring_up_and_can_be_declared(
    platform: Platform, gateway: GatewayProcess
) -> None:
    owner = (await (await platform.tenant()).caller()).at(gateway)
    assert told(await owner.get("/v1/namespaces")) == {"namespaces": [], "count": 0, "cursor": None}
    assert problem(await owner.get("/v1/namespaces/used")) == (404, "not_found")
    await put(owner.saying(X_Namespace="used"), "/v1/kv/a", b"12345")
    declared = told(await owner.ask("PUT", "/v1/namespaces/store", json={"kind": "store"}))
    assert (declared["name"], declared["kind"]) == ("store", "store")
    cache = {"kind": "cache", "max_items": 10}
    declared = told(await owner.ask("PUT", "/v1/namespaces/a%20cache", json=cache))
    assert (declared["name"], declared["max_items"]) == ("a cache", 10)

    async def all_listed() -> bool | None:
        page = told(await owner.get("/v1/namespaces"))
        return page["count"] == 3 or None

    await until_told(all_listed, "the namespace that was used is listed")
    listed = told(await owner.get("/v1/namespaces"))["namespaces"]
    assert [(one["name"], one["kind"], one["max_items"], one["keys"]) for one in listed] == [
        ("a cache", "cache", 10, 0),
        ("store", "store", None, 0),
        ("used", "store", None, 1),
    ]
    one = told(await owner.get("/v1/namespaces/used"))
    assert one == listed[2]
    emptied = told(await owner.delete("/v1/namespaces/used"))
    assert (emptied["matched"], emptied["deleted"], emptied["cursor"]) == (1, 1, None)
    await gone(owner.saying(X_Namespace="used", X_Consistency="strong"), "/v1/kv/a")
    told(await owner.delete("/v1/namespaces/store"))
    assert problem(await owner.get("/v1/namespaces/store")) == (404, "not_found")


async def test_what_a_cache_cannot_promise_is_refused_there(robot: Caller) -> None:
    name = robot.headers["X-Namespace"]
    declared = await robot.ask(
        "PUT", f"/v1/namespaces/{name}", json={"kind": "cache", "max_items": 100}
    )
    told(declared)
    etag = await put(robot, "/v1/kv/a", b"1")
    assert raw(await found(robot, "/v1/kv/a", etag)) == b"1"
    for headers, method, target in (
        ({"X_Consistency": "strong"}, "GET", "/v1/kv/a"),
        ({"X_Consistency": "strong"}, "PUT", "/v1/kv/a"),
        ({"X_Consistency": "strong"}, "DELETE", "/v1/kv/a"),
        ({"If_Match": "*"}, "PUT", "/v1/kv/a"),
        ({"If_None_Match": "*"}, "PUT", "/v1/kv/b"),
        ({"If_Match": "*"}, "DELETE", "/v1/kv/a"),
        ({}, "PATCH", "/v1/kv/a?ttl=1h"),
        ({}, "POST", "/v1/kv/n/incr"),
    ):
        answer = await robot.saying(**headers).ask(method, target)
        assert problem(answer) == (400, "invalid_consistency"), (headers, method, target)
    batch = {"operations": [{"op": "get", "key": "a"}]}
    answer = await robot.saying(X_Consistency="strong").post("/v1/batch", batch)
    assert problem(answer) == (400, "invalid_consistency")
    assert told(await robot.post("/v1/batch", batch))["results"][0]["value"] == "1"
    # What it was declared as it stays, as long as it is there.
    other = await robot.ask("PUT", f"/v1/namespaces/{name}", json={"kind": "store"})
    assert problem(other) == (409, "already_exists")
    told(await robot.delete("/v1/kv/a"))
    await gone(robot, "/v1/kv/a")


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({}, "invalid_body"),
        ({"kind": "queue"}, "invalid_body"),
        ({"kind": "cache"}, "invalid_body"),
        ({"kind": "cache", "max_items": 0}, "invalid_body"),
        ({"kind": "store", "max_items": 1}, "invalid_body"),
        ({"kind": "store", "colour": "green"}, "invalid_body"),
        ([], "invalid_body"),
    ],
)
async def test_a_declaration_that_cannot_be_is_refused(
    robot: Caller, document: object, code: str
) -> None:
    answer = await robot.ask("PUT", "/v1/namespaces/new", json=document)
    assert problem(answer) == (400, code)
    bad = await robot.ask("PUT", "/v1/namespaces/%01", json={"kind": "store"})
    assert problem(bad) == (400, "invalid_namespace")


# -- batches


async def test_a_batch_tells_of_each_item_by_itself(robot: Caller) -> None:
    for caller in (robot, robot.saying(X_Consistency="strong")):
        answer = await caller.post(
            "/v1/batch",
            {
                "operations": [
                    {"op": "put", "key": "a", "value": "caf\u00e9", "ttl": "1h"},
                    {"op": "put", "key": "b", "value_base64": "AP8="},
                    {"op": "get", "key": "a"},
                    {"op": "get", "key": "b"},
                    {"op": "delete", "key": "b"},
                    {"op": "get", "key": "b"},
                    {"op": "put", "key": "", "value": "v"},
                    {"op": "put", "key": "k" * 1025, "value": "v"},
                    {"op": "put", "key": "c", "value": "v", "ttl": "soon"},
                    {"op": "put", "key": "c"},
                    {"op": "put", "key": "c", "value_base64": "?"},
                ]
            },
        )
        results = told(answer)["results"]
        statuses = [result["status"] for result in results]
        assert statuses == [200, 200, 200, 200, 200, 404, 400, 414, 400, 400, 400]
        codes = [result["code"] for result in results[5:]]
        assert codes == [
            "key_not_found", "invalid_key", "key_too_long", "invalid_ttl", "invalid_body",
            "invalid_body",
        ]  # fmt: skip
        made, _, text, octets, *_ = results
        assert (text["value"], text["etag"]) == ("caf\u00e9", made["etag"])
        assert text["expires_at"] == made["expires_at"] is not None
        assert octets["value_base64"] == "AP8="
        assert "value" not in octets


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"", "application/json", 400, "invalid_json"),
        (b"{", "application/json", 400, "invalid_json"),
        (b"\xff", "application/json", 400, "invalid_json"),
        (b"{}", "application/json", 400, "invalid_body"),
        (b'{"operations": [{"op": "incr", "key": "a"}]}', "application/json", 400, "invalid_body"),
        (b'{"operations": [{"op": "get"}]}', "application/json", 400, "invalid_body"),
        (
            b'{"operations": [{"op": "get", "key": "a", "x": 1}]}',
            "application/json",
            400,
            "invalid_body",
        ),
        (b'{"operations": [' + b"[" * 5000, "application/json", 400, "invalid_json"),
    ],
)
async def test_a_batch_that_cannot_be_is_refused(
    robot: Caller, content: bytes, kind: str, status: int, code: str
) -> None:
    answer = await robot.saying(Content_Type=kind).ask("POST", "/v1/batch", content)
    assert problem(answer) == (status, code)


async def test_a_batch_has_at_most_1000_items_and_16_mebibytes(robot: Caller) -> None:
    item = {"op": "get", "key": "a"}
    full = told(await robot.post("/v1/batch", {"operations": [item] * 1000}))
    assert len(full["results"]) == 1000
    assert problem(await robot.post("/v1/batch", {"operations": [item] * 1001})) == (
        400,
        "invalid_body",
    )
    client = await robot.gateway.connect()
    length = f"Content-Length: {(16 << 20) + 1}"
    lines = (*robot.lines, "Content-Type: application/json", length)
    refused = await client.ask(request("POST", "/v1/batch", *lines))
    assert (refused.status, b'"code":"body_too_large"' in refused.body) == (413, True)
    await client.close()


async def test_what_does_not_fit_an_answer_is_said_of_the_item(robot: Caller) -> None:
    value = b"\xff" * (1 << 20)
    etag = await put(robot, "/v1/kv/large", value)
    await found(robot, "/v1/kv/large", etag, method="HEAD")
    # What is no text is told in base64, four thirds as long.
    operations = [{"op": "get", "key": "large"}] * 14
    answer = await robot.post("/v1/batch", {"operations": operations})
    assert len(answer.content) <= 16 << 20
    statuses = [(one["status"], one.get("code")) for one in told(answer)["results"]]
    fitting = statuses.count((200, None))
    assert fitting == 11
    assert statuses == [(200, None)] * 11 + [(413, "response_too_large")] * 3


# -- IDs


@asynccontextmanager
async def keygen(
    answer: bytes, status: bytes = b"200 OK"
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Stands for keygen: always this answer. Its URL, and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            asked.append(head)
            writer.write(
                b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nRetry-After: 60\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(answer), answer)
            )
            writer.close()
            return

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{port}", asked
    finally:
        server.close()
        await server.wait_closed()


async def test_ids_come_from_keygen_in_the_tenants_name(platform: Platform, ada: Tenant) -> None:
    made = await ada.make_key("write")
    async with (
        keygen(b'{"ids": ["0k3Zq1a", "0k3Zq1b"]}') as (url, asked),
        served(platform.gateway(KEYGEN_URL=url)) as gateway,
    ):
        caller = platform.caller(made.key).at(gateway)
        assert told(await caller.post("/v1/ids?count=2&size=7")) == {"ids": ["0k3Zq1a", "0k3Zq1b"]}
        head = asked[0].lower()
        assert b"x-ydht-tenant: %d\r\n" % ada.id in head
        assert b"x-ydht-key-id: %d\r\n" % made.id in head
        assert b"x-ydht-signature: v1;" in head
        for query in ("count=0", "count=10001", "size=6", "size=17", "count=x", "x=1"):
            assert problem(await caller.post(f"/v1/ids?{query}")) == (400, "invalid_query")
        assert len(asked) == 1


async def test_no_more_ids_than_a_tenant_may_have(platform: Platform, ada: Tenant) -> None:
    caller = await ada.caller()
    refusal = b'{"code": "quota_exhausted", "detail": "1,000 of 1,000 IDs are used"}'
    async with (
        keygen(refusal, b"429 Too Many Requests") as (url, _),
        served(platform.gateway(KEYGEN_URL=url)) as gateway,
    ):
        answer = await caller.at(gateway).post("/v1/ids")
        assert problem(answer) == (429, "quota_exhausted")
        assert answer.headers["Retry-After"] == "60"
        assert answer.json()["detail"] == "1,000 of 1,000 IDs are used"


async def test_without_keygen_there_are_no_ids(robot: Caller) -> None:
    answer = await robot.post("/v1/ids")
    assert problem(answer) == (503, "keygen_unavailable")
    assert "127.0.0.1" not in answer.text


# -- what it tells of itself


async def test_a_gateway_tells_how_it_is(platform: Platform, gateway: GatewayProcess) -> None:
    nobody = platform.caller(None).at(gateway)
    health = told(await nobody.get("/health"))
    assert (health["status"], health["service"]) == ("healthy", "gateway")
    assert [node["node_id"] for node in health["nodes"]] == ["node-1", "node-2", "node-3"]
    ready = await nobody.get("/ready")
    assert ready.status_code == 200
    metrics = await nobody.get("/metrics")
    assert metrics.status_code == 200
    # On a public port nothing tells of tenants.
    assert "tenant" not in metrics.text
    text = await nobody.saying(Accept="text/plain").get("/metrics")
    assert text.headers["Content-Type"].startswith("text/plain")
    described = told(await nobody.get("/openapi.json"))
    assert described["openapi"].startswith("3.")
    docs = await nobody.get("/docs")
    assert docs.headers["Content-Type"].startswith("text/html")
    assert (await nobody.get("/docs/errors")).status_code == 200


async def test_refusals_of_every_route_are_problems(robot: Caller) -> None:
    name = new_name("absent")
    for method, target, status, code in (
        ("POST", "/v1/kv", 405, "method_not_allowed"),
        ("GET", "/v1/batch", 405, "method_not_allowed"),
        ("PUT", "/v1/ids", 405, "method_not_allowed"),
        ("POST", "/v1/namespaces", 405, "method_not_allowed"),
        ("GET", f"/v1/namespaces/{name}", 404, "not_found"),
        ("GET", "/v1/kv/", 400, "invalid_key"),
    ):
        answer = await robot.saying(Origin=page_origin).ask(method, target)
        assert problem(answer) == (status, code), target
        assert ("Allow" in answer.headers) == (status == 405)
        assert answer.headers["Access-Control-Allow-Origin"] == page_origin
