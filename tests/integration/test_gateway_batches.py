"""Batches, deletions by prefix, namespaces and IDs, over real nodes and a real replicator."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.core.operations import batch_bytes_max
from services.core.record import value_bytes_max
from tests.integration.database import SharedServer
from tests.integration.gateway_desk import GatewayDesk, problem, whole_desk
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="module")

Item = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[GatewayDesk]:
    path = tmp_path_factory.mktemp("batches")
    async with whole_desk(path, postgres_server, migrated_template) as desk:
        yield desk


async def run(
    client: httpx.AsyncClient, operations: list[Item], *, strong: bool = False
) -> list[Item]:
    headers = {"X-Consistency": "strong"} if strong else {}
    answer = await client.post("/v1/batch", json={"operations": operations}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert len(answer.content) <= batch_bytes_max
    results: list[Item] = answer.json()["results"]
    assert len(results) == len(operations)
    for asked, result in zip(operations, results, strict=True):
        assert (result["op"], result["key"]) == (asked["op"], asked["key"])
    return results


async def run_large(
    client: httpx.AsyncClient, operations: list[Item], *, strong: bool = False
) -> list[Item]:
    """The same of so many bytes, all of which are there, that a disk which others use, too, may
    take them only later, and a node that is asked in the place of another know them only later."""

    async def attempt() -> list[Item] | None:
        results = await run(client, operations, strong=strong)
        passing = {(503, "overloaded"), (404, "key_not_found")}
        return None if passing & {told(one) for one in results} else results

    return await until_told(attempt, "the disks take it")


def put(key: str, value: str = "v", **more: Any) -> Item:
    return {"op": "put", "key": key, "value": value, **more}


def get(key: str, **more: Any) -> Item:
    return {"op": "get", "key": key, **more}


def delete(key: str) -> Item:
    return {"op": "delete", "key": key}


def told(result: Item) -> tuple[int, str | None]:
    return result["status"], result.get("code")


@pytest.mark.parametrize("strong", [False, True])
async def test_each_operation_is_answered_as_alone_and_in_order(
    desk: GatewayDesk, *, strong: bool
) -> None:
    async with desk.client(30 + strong) as ada:
        made = await run(ada, [put("a", "one"), put("b", "two", ttl="1h")], strong=strong)
        assert [told(one) for one in made] == [(200, None)] * 2
        consistency = "strong" if strong else "eventual"
        assert made[0] == {
            "op": "put",
            "key": "a",
            "status": 200,
            "success": True,
            "etag": made[0]["etag"],
            "consistency": consistency,
            "expires_at": None,
        }
        found = await run(ada, [get("b"), get("none"), get("a")], strong=strong)
        assert [told(one) for one in found] == [(200, None), (404, "key_not_found"), (200, None)]
        assert (found[0]["value"], found[2]["value"]) == ("two", "one")
        assert found[2]["etag"] == made[0]["etag"]
        assert found[0]["expires_at"] == made[1]["expires_at"] > found[0]["updated_at"]
        gone = await run(ada, [delete("a"), delete("none")], strong=strong)
        assert [told(one) for one in gone] == [(200, None)] * 2
        assert told((await run(ada, [get("a")], strong=strong))[0]) == (404, "key_not_found")


@pytest.mark.parametrize("strong", [False, True])
async def test_operations_on_one_key_take_effect_in_their_order(
    desk: GatewayDesk, *, strong: bool
) -> None:
    async with desk.client(32 + strong) as ada:
        operations = [
            get("k"),
            put("k", "1"),
            put("other", "x"),
            get("k"),
            put("k", "2"),
            put("k", "3"),
            get("k"),
            get("other"),
            delete("k"),
            get("k"),
        ]
        for _ in range(10):
            results = await run(ada, operations, strong=strong)
            values = [
                one.get("value") for one in results if one["op"] == "get" and one["key"] == "k"
            ]
            assert values == [None, "1", "3", None]
            assert results[7]["value"] == "x"


async def test_a_value_is_told_as_it_can_be_put_again(desk: GatewayDesk) -> None:
    async with desk.client(34) as ada:
        raw = {
            "text": "héllo \u0000 \u2028 \U0001f600".encode(),
            "bytes": b"\xff\xfe\0",
            "none": b"",
        }
        await run(
            ada,
            [
                {"op": "put", "key": key, "value_base64": base64.b64encode(content).decode()}
                for key, content in raw.items()
            ],
        )
        found = await run(ada, [get(key) for key in raw])
        assert found[0]["value"].encode() == raw["text"]
        assert "value" not in found[1]
        assert base64.b64decode(found[1]["value_base64"]) == raw["bytes"]
        assert found[2]["value"] == ""
        again = await run(ada, [get(key, encoding="base64") for key in raw])
        assert [base64.b64decode(one["value_base64"]) for one in again] == list(raw.values())


async def test_a_thousand_items_with_every_kind_of_fault_fail_by_themselves(
    desk: GatewayDesk,
) -> None:
    faults: list[tuple[Item, tuple[int, str | None]]] = [
        (put("ok"), (200, None)),
        (put(""), (400, "invalid_key")),
        (get(""), (400, "invalid_key")),
        (delete("k" * 1025), (414, "key_too_long")),
        (get("é" * 513), (414, "key_too_long")),
        (put("é" * 512), (200, None)),
        (put("k", ttl="0"), (400, "invalid_ttl")),
        (put("k", ttl="-1s"), (400, "invalid_ttl")),
        (put("k", ttl="11y"), (400, "invalid_ttl")),
        (put("k", ttl="4000d"), (400, "invalid_ttl")),
        (put("k", ttl=-5), (400, "invalid_ttl")),
        (put("k", ttl=3600), (200, None)),
        (put("k", ttl="1h30m"), (200, None)),
        ({"op": "put", "key": "k"}, (400, "invalid_body")),
        (put("k", value_base64="AA=="), (400, "invalid_body")),
        ({"op": "put", "key": "k", "value_base64": "A"}, (400, "invalid_body")),
        ({"op": "put", "key": "k", "value_base64": "é==="}, (400, "invalid_body")),
        ({"op": "put", "key": "k", "value_base64": "AA\n=="}, (400, "invalid_body")),
        (get("never"), (404, "key_not_found")),
        (delete("never"), (200, None)),
    ]
    for strong in (False, True):
        async with desk.client(36 + strong) as ada:
            operations = [faults[number % len(faults)] for number in range(1_000)]
            results = await run(ada, [item for item, _ in operations], strong=strong)
            assert [told(one) for one in results] == [expected for _, expected in operations]
            for one in results:
                assert ("error" in one) == ("detail" in one) == (one["status"] >= 400)


async def test_what_is_no_batch_is_refused_as_a_whole_and_nothing_is_done(
    desk: GatewayDesk,
) -> None:
    async with desk.client(38) as ada:
        wrong: list[object] = [
            {},
            {"operations": {}},
            {"operations": [put("k")] * 1_001},
            {"operations": [put("k"), {"op": "increment", "key": "k"}]},
            {"operations": [put("k"), {"key": "k"}]},
            {"operations": [put("k"), {"op": "get"}]},
            {"operations": [put("k"), put("k", if_match="x")]},
            {"operations": [put("k"), {"op": "put", "key": "k", "value": 5}]},
            {"operations": [put("k"), get("k", encoding="hex")]},
            {"operations": [put("k")], "atomic": True},
            [put("k")],
        ]
        for body in wrong:
            answer = await ada.post("/v1/batch", json=body)
            assert problem(answer) == (400, "invalid_body"), body
        for content in (b"", b"{", b'{"operations": [{"op": "get", "key": "\\ud800"}]}', b"\xff"):
            answer = await ada.post(
                "/v1/batch", content=content, headers={"Content-Type": "application/json"}
            )
            assert problem(answer) == (400, "invalid_json")
        answer = await ada.post("/v1/batch", content=b"{}")
        assert problem(answer) == (415, "unsupported_media_type")
        assert await run(ada, []) == []
        assert told((await run(ada, [get("k")]))[0]) == (404, "key_not_found")


async def test_bodies_and_answers_have_at_most_sixteen_mebibytes(desk: GatewayDesk) -> None:
    async with desk.client(40) as ada:
        value = "x" * value_bytes_max
        for start in (0, 10):
            results = await run_large(
                ada, [put(f"k{number}", value) for number in range(start, start + 10)]
            )
            assert {one["status"] for one in results} == {200}
        assert told((await run_large(ada, [put("k", value + "x")]))[0]) == (413, "value_too_large")
        body = json.dumps({"operations": [put("k", "x" * batch_bytes_max)]}).encode()
        answer = await ada.post(
            "/v1/batch", content=body, headers={"Content-Type": "application/json"}
        )
        assert problem(answer) == (413, "body_too_large")
        for strong in (False, True):
            found = await run_large(ada, [get(f"k{number}") for number in range(20)], strong=strong)
            statuses = [told(one) for one in found]
            assert set(statuses) == {(200, None), (413, "response_too_large")}
            assert statuses.count((200, None)) == 15
            # What there is room for, again and again until all of it was told.
            missing = [one["key"] for one in found if one["status"] == 413]
            rest = await run_large(ada, [get(key) for key in missing], strong=strong)
            assert {one["status"] for one in rest} == {200}


async def test_escapes_make_an_answer_longer_and_are_counted(desk: GatewayDesk) -> None:
    async with desk.client(42) as ada:
        escaped = "\x01" * (value_bytes_max // 2)
        for number in range(8):
            # Six bytes each in JSON; so by base64, which is shorter.
            content = base64.b64encode(escaped.encode()).decode()
            await run_large(ada, [{"op": "put", "key": f"k{number}", "value_base64": content}])
        found = await run_large(ada, [get(f"k{number}") for number in range(8)])
        assert [one["status"] for one in found].count(200) == 5
        assert {one["value"] for one in found if one["status"] == 200} == {escaped}
        found = await run_large(ada, [get(f"k{number}", encoding="base64") for number in range(8)])
        assert {one["status"] for one in found} == {200}


async def test_batches_stay_within_their_tenant_their_namespace_and_their_prefix(
    desk: GatewayDesk,
) -> None:
    async with (
        desk.client(44) as ada,
        desk.client(45) as bob,
        desk.client(44, prefix=b"a/") as narrow,
        desk.client(44, ["write"]) as writer,
        desk.client(44, ["read", "admin"]) as reader,
        desk.client(44, namespace="other") as other,
    ):
        await run(ada, [put("a/1"), put("b/1")])
        for client in (bob, other):
            assert told((await run(client, [get("a/1")]))[0]) == (404, "key_not_found")
        mixed = [get("a/1"), get("b/1"), put("b/2"), delete("b/1"), delete("a"), put("a/2")]
        results = [told(one) for one in await run(narrow, mixed)]
        no = (403, "key_not_allowed")
        assert results == [(200, None), no, no, no, no, (200, None)]
        assert told((await run(ada, [get("b/1")]))[0]) == (200, None)
        assert [told(one) for one in await run(writer, [put("c"), get("c")])] == [
            (200, None),
            (403, "insufficient_scope"),
        ]
        answer = await reader.post("/v1/batch", json={"operations": [get("a/1")]})
        assert problem(answer) == (403, "insufficient_scope")


async def test_a_batch_is_counted_once(desk: GatewayDesk) -> None:
    async with desk.client(46) as ada:
        before = len(desk.counted.requests)
        await run(ada, [put(f"k{number}") for number in range(250)])
        ((operation, status, bytes_in, bytes_out),) = desk.counted.requests[before:]
    assert (operation, status) == ("batch", 200)
    assert bytes_in > 250 * 20
    assert bytes_out > 250 * 40


async def test_many_batches_at_once_are_all_answered(desk: GatewayDesk) -> None:
    async with desk.client(47) as ada:

        async def one(number: int) -> None:
            keys = [f"{number}/{index}" for index in range(100)]
            made = await run(ada, [put(key, key) for key in keys])
            found = await run(ada, [get(key) for key in keys])
            assert [result["value"] for result in found] == keys
            assert {result["status"] for result in made} == {200}

        await asyncio.gather(*(one(number) for number in range(40)))


# -- deletions by prefix


async def test_what_has_a_prefix_is_counted_and_deleted(desk: GatewayDesk) -> None:
    async with desk.client(50) as ada, desk.client(51) as bob:
        for client in (ada, bob):
            await run(client, [put(f"{a}/{number}") for a in "ab" for number in range(50)])
        dry = await ada.delete("/v1/kv", params={"prefix": "a/", "dry_run": "true"})
        assert dry.json() == {"matched": 50, "deleted": 0, "cursor": None}
        done = await ada.delete("/v1/kv", params={"prefix": "a/"})
        assert done.json() == {"matched": 50, "deleted": 50, "cursor": None}
        for client, count in ((ada, 50), (bob, 100)):
            assert (await client.get("/v1/kv?limit=1000")).json()["count"] == count
        again = await ada.delete("/v1/kv", params={"prefix": "a/", "dry_run": "false"})
        assert again.json() == {"matched": 0, "deleted": 0, "cursor": None}


async def test_a_deletion_needs_a_prefix_and_the_scope_for_it(desk: GatewayDesk) -> None:
    async with (
        desk.client(52) as ada,
        desk.client(52, ["read", "write"]) as writer,
        desk.client(52, prefix=b"a/") as narrow,
    ):
        await run(ada, [put("a/1"), put("b/1")])
        assert problem(await ada.delete("/v1/kv")) == (400, "invalid_key")
        assert problem(await ada.delete("/v1/kv?prefix=")) == (400, "invalid_key")
        assert problem(await ada.delete("/v1/kv?prefix=a&dry_run=1")) == (400, "invalid_query")
        assert problem(await writer.delete("/v1/kv?prefix=a")) == (403, "insufficient_scope")
        for prefix in ("a", "b/", "b"):
            answer = await narrow.delete("/v1/kv", params={"prefix": prefix})
            assert problem(answer) == (403, "key_not_allowed")
        assert (await ada.get("/v1/kv")).json()["count"] == 2
        assert (await narrow.delete("/v1/kv?prefix=a/")).json()["deleted"] == 1


@pytest.mark.parametrize(
    "name", ["If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"]
)
async def test_what_changes_more_than_a_key_takes_no_condition(
    desk: GatewayDesk, name: str
) -> None:
    headers = {name: "Sun, 22 Nov 2026 03:00:00 GMT"}
    async with desk.client(53) as ada:
        await run(ada, [put("a/1")])
        for method, target, body in (
            ("DELETE", "/v1/kv?prefix=a", None),
            ("POST", "/v1/batch", {"operations": [{"op": "delete", "key": "a/1"}]}),
            ("PUT", "/v1/namespaces/n", {"kind": "store"}),
            ("DELETE", "/v1/namespaces/default", None),
            ("POST", "/v1/ids", None),
        ):
            answer = await ada.request(method, target, json=body, headers=headers)
            assert problem(answer) == (400, "invalid_header"), target
            assert answer.json()["detail"].startswith(name), target
        assert (await ada.get("/v1/kv")).json()["count"] == 1


async def test_ten_thousand_keys_go_in_a_call_and_a_cursor_leads_on(desk: GatewayDesk) -> None:
    async with desk.client(54) as ada:
        for start in range(0, 10_500, 500):
            await run(ada, [put(f"k{number:05d}") for number in range(start, start + 500)])
        total, cursor, calls = 0, "", 0
        while cursor is not None:
            answer = await ada.delete("/v1/kv", params={"prefix": "k", "cursor": cursor})
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert page["deleted"] == page["matched"] <= 10_000
            total, cursor, calls = total + page["deleted"], page["cursor"], calls + 1
        assert (total, calls >= 2) == (10_500, True)
        assert (await ada.get("/v1/kv")).json()["count"] == 0


# -- namespaces


async def test_a_namespace_springs_up_is_declared_and_goes(desk: GatewayDesk) -> None:
    async with desk.client(60) as ada, desk.client(61) as bob:
        await ada.post(
            "/v1/batch",
            json={"operations": [put("k", "12345")]},
            headers={"X-Namespace": "sprung"},
        )
        store = {"name": "sprung", "kind": "store", "max_items": None, "keys": 1, "bytes": 6}
        assert (await ada.get("/v1/namespaces")).json() == {
            "namespaces": [store],
            "count": 1,
            "cursor": None,
        }
        assert (await ada.get("/v1/namespaces/sprung")).json() == store
        assert problem(await bob.get("/v1/namespaces/sprung")) == (404, "not_found")
        path = "/v1/namespaces/a%2Fb%20%D1%8E"
        made = await ada.put(path, json={"kind": "cache", "max_items": 100})
        assert made.status_code == 200, made.text
        assert {**made.json(), "pending_nodes": []} == {
            "name": "a/b ю",
            "kind": "cache",
            "max_items": 100,
            "changed": True,
            "pending_nodes": [],
        }
        assert (await ada.get(path)).json()["max_items"] == 100
        assert not (await ada.put(path, json={"kind": "cache", "max_items": 100})).json()["changed"]
        refused = await ada.put(path, json={"kind": "store"})
        assert problem(refused) == (409, "already_exists")
        names = [one["name"] for one in (await ada.get("/v1/namespaces")).json()["namespaces"]]
        assert names == ["a/b ю", "sprung"]
        first = (await ada.get("/v1/namespaces?limit=1")).json()
        second = await ada.get("/v1/namespaces", params={"limit": 1, "cursor": first["cursor"]})
        assert [one["name"] for one in second.json()["namespaces"]] == ["sprung"]
        for each in (path, "/v1/namespaces/sprung"):
            assert (await ada.delete(each)).json()["cursor"] is None
            assert problem(await ada.get(each)) == (404, "not_found")
        assert (await ada.get("/v1/namespaces")).json()["count"] == 0


async def test_what_is_wrong_with_a_namespace_is_told(desk: GatewayDesk) -> None:
    async with (
        desk.client(62) as ada,
        desk.client(62, ["read", "write"]) as writer,
        desk.client(62, prefix=b"a") as narrow,
    ):
        bodies: list[Item] = [
            {},
            {"kind": "list"},
            {"kind": "cache"},
            {"kind": "store", "max_items": 1},
            {"kind": "cache", "max_items": 0},
            {"kind": "cache", "max_items": 1 << 50},
            {"kind": "store", "other": 1},
        ]
        for body in bodies:
            answer = await ada.put("/v1/namespaces/n", json=body)
            assert problem(answer) == (400, "invalid_body"), body
        good = {"kind": "store"}
        for name, expected in (
            ("", (400, "invalid_namespace")),
            ("x" * 256, (400, "invalid_namespace")),
            ("%00", (400, "invalid_namespace")),
            ("%ff", (400, "invalid_namespace")),
        ):
            answer = await ada.put(f"/v1/namespaces/{name}", json=good)
            assert problem(answer) == expected, name
        for client, code in ((writer, "insufficient_scope"), (narrow, "key_not_allowed")):
            assert problem(await client.get("/v1/namespaces")) == (403, code)
            for method in ("GET", "PUT", "DELETE"):
                body_of: Any = {"json": good} if method == "PUT" else {}
                answer = await client.request(method, "/v1/namespaces/n", **body_of)
                assert problem(answer) == (403, code)


async def test_a_cache_is_eventual(desk: GatewayDesk) -> None:
    async with desk.client(64, namespace="cache") as ada:
        made = await ada.put("/v1/namespaces/cache", json={"kind": "cache", "max_items": 10})
        assert made.status_code == 200, made.text
        answer = await ada.post(
            "/v1/batch",
            json={"operations": [put("k"), get("k")]},
            headers={"X-Consistency": "strong"},
        )
        if answer.status_code == 200:
            # Who was not told yet of the cache asks, and each item is refused by itself.
            codes = {one["code"] for one in answer.json()["results"]}
            assert codes == {"invalid_consistency"}
        else:
            assert problem(answer) == (400, "invalid_consistency")
        assert [told(one) for one in await run(ada, [put("k"), get("k")])] == [(200, None)] * 2


# -- ids, and pages from elsewhere


async def test_without_keygen_there_are_no_ids_and_it_is_said_why(desk: GatewayDesk) -> None:
    async with desk.client(70) as ada, desk.client(70, ["read"]) as reader:
        answer = await ada.post("/v1/ids")
        assert problem(answer) == (503, "keygen_unavailable")
        assert "Retry-After" in answer.headers
        assert "127.0.0.1" not in answer.text
        for query in ("count=0", "count=10001", "size=6", "size=17", "count=x"):
            assert problem(await ada.post(f"/v1/ids?{query}")) == (400, "invalid_query")
        assert problem(await reader.post("/v1/ids")) == (403, "insufficient_scope")


async def test_pages_of_allowed_origins_may_ask_and_read(desk: GatewayDesk) -> None:
    async with desk.client(72) as ada, desk.stranger() as stranger:
        asked = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key,content-type",
        }
        for path in ("/v1/batch", "/v1/kv/some/key", "/nowhere"):
            allowed = await stranger.options(path, headers=asked)
            assert (allowed.status_code, allowed.content) == (204, b"")
            assert allowed.headers["Access-Control-Allow-Origin"] == "https://app.example"
            assert allowed.headers["Access-Control-Allow-Headers"] == "x-api-key,content-type"
            assert "PATCH" in allowed.headers["Access-Control-Allow-Methods"]
            assert "Access-Control-Allow-Credentials" not in allowed.headers
            assert "X-Request-ID" in allowed.headers
        origin = {"Origin": "https://app.example"}
        for answer in (
            await ada.get("/v1/kv", headers=origin),
            await ada.get("/v1/kv?limit=x", headers=origin),
            await stranger.get("/v1/kv", headers=origin),
            await stranger.get("/nowhere", headers=origin),
            await stranger.post("/v1/batch", content=b"x" * (17 << 20), headers=origin),
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
            assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
            assert answer.headers["Vary"] == "Origin"
        other = await ada.get("/v1/kv", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in other.headers
        refused = await stranger.options(
            "/v1/kv", headers={**asked, "Origin": "https://evil.example"}
        )
        assert "Access-Control-Allow-Origin" not in refused.headers
        assert problem(await stranger.options("/v1/batch", headers=origin))[0] == 405
