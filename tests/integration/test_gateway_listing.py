"""Listing keys over real nodes: all of them, once, in order, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.runtime.database_url import DatabaseAddress
from tests.integration.database import SharedServer
from tests.integration.gateway_desk import (
    GatewayDesk,
    gateway_desk,
    problem,
    running_cluster,
    whole_desk,
)
from tests.integration.replicator_process import until_metrics
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[GatewayDesk]:
    path = tmp_path_factory.mktemp("listing")
    async with whole_desk(path, postgres_server, migrated_template) as desk:
        yield desk


async def put(client: httpx.AsyncClient, values: dict[str, str], **more: Any) -> None:
    keys = list(values)
    for start in range(0, len(keys), 1_000):
        operations = [
            {"op": "put", "key": key, "value": values[key], **more}
            for key in keys[start : start + 1_000]
        ]
        answer = await client.post("/v1/batch", json={"operations": operations})
        assert answer.status_code == 200, answer.text
        assert {result["status"] for result in answer.json()["results"]} == {200}


async def listed(client: httpx.AsyncClient, **query: Any) -> tuple[list[str], list[str], int]:
    """Keys and groups of all pages, and how many pages there were."""
    keys: list[str] = []
    prefixes: list[str] = []
    pages = 0
    while True:
        answer = await client.get("/v1/kv", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page["count"] == len(page["keys"]) + len(page["prefixes"])
        assert page["count"] <= query.get("limit", 100)
        keys += [found["key"] for found in page["keys"]]
        prefixes += page["prefixes"]
        pages += 1
        if page["cursor"] is None:
            return keys, prefixes, pages
        assert page["count"], "a page of a quiet cluster has something in it"
        query = {**query, "cursor": page["cursor"]}


async def test_keys_are_listed_in_order_with_all_that_is_known_of_them(desk: GatewayDesk) -> None:
    async with desk.client(20) as ada, desk.client(21) as bob:
        names = [f"key-{number:04d}" for number in range(2_500)]
        await put(ada, {name: "x" * (int(name[-2:])) for name in names})
        await put(bob, {"theirs": "x"})
        assert await listed(ada) == (names, [], 25)
        assert await listed(ada, limit=1_000) == (names, [], 3)
        assert await listed(ada, limit=2_500 // 4) == (names, [], 4)
        assert await listed(ada, prefix="key-01", limit=7) == (names[100:200], [], 15)
        assert await listed(ada, prefix="nothing") == ([], [], 1)
        assert await listed(bob) == (["theirs"], [], 1)
        await put(ada, {"with-ttl": "12345"}, ttl="1h")
        (found,) = (await ada.get("/v1/kv?prefix=with-ttl")).json()["keys"]
        (plain,) = (await ada.get("/v1/kv?prefix=key-0042")).json()["keys"]
    assert set(found) == {
        "key",
        "size",
        "etag",
        "created_at",
        "updated_at",
        "expires_at",
        "has_ttl",
    }
    assert (found["size"], found["has_ttl"], plain["has_ttl"]) == (5, True, False)
    assert (plain["size"], plain["expires_at"]) == (42, None)
    assert len(found["etag"]) == 24
    assert found["created_at"] == found["updated_at"] < found["expires_at"]
    assert found["expires_at"].endswith("Z")


async def test_groups_stand_for_what_is_behind_a_delimiter(desk: GatewayDesk) -> None:
    async with desk.client(22) as ada:
        keys = {f"{a}/{b}/{c}" for a in "abc" for b in range(12) for c in range(9)}
        await put(ada, dict.fromkeys([*keys, "a", "b0", "z", "ключ/один", "ключ"], "1"))
        assert await listed(ada, delimiter="/") == (["a", "b0", "z", "ключ"], [
            "a/", "b/", "c/", "ключ/",
        ], 1)  # fmt: skip
        for limit in (1, 2, 5):
            found, groups, _ = await listed(ada, delimiter="/", prefix="b/", limit=limit)
            assert (found, groups) == ([], sorted(f"b/{number}/" for number in range(12)))
        found, groups, _ = await listed(ada, prefix="ключ", delimiter="/")
        assert (found, groups) == (["ключ"], ["ключ/"])


async def test_namespaces_and_what_was_deleted_or_has_expired_stay_apart(
    desk: GatewayDesk,
) -> None:
    async with desk.client(24) as ada:
        await put(ada, dict.fromkeys(["a", "b", "c"], "1"))
        await put(ada, {"d": "1"}, ttl="1ms")
        await ada.post("/v1/batch", json={"operations": [{"op": "delete", "key": "b"}]})
        answer = await ada.get("/v1/kv", headers=[(b"X-Namespace", "другое".encode())])
        assert answer.json()["keys"] == []
        await asyncio.sleep(0.01)
        assert (await listed(ada))[0] == ["a", "c"]


async def test_each_key_is_there_at_most_once_and_none_is_missing_under_writes(
    desk: GatewayDesk,
) -> None:
    async with desk.client(26) as ada:
        lasting = {f"key-{number:05d}": "v" for number in range(0, 6_000, 3)}
        await put(ada, lasting)
        draw = random.Random(5)
        stop = asyncio.Event()
        rounds = 0

        async def write() -> None:
            nonlocal rounds
            while not stop.is_set():
                numbers = [draw.randrange(6_000) for _ in range(100)]
                operations = [
                    {"op": "put", "key": f"key-{number:05d}", "value": "w"}
                    if number % 3 == 0 or draw.random() < 0.5
                    else {"op": "delete", "key": f"key-{number:05d}"}
                    for number in numbers
                ]
                answer = await ada.post("/v1/batch", json={"operations": operations})
                assert {result["status"] for result in answer.json()["results"]} == {200}
                rounds += 1

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            for limit in (37, 100, 1_000, 61):
                keys, _, _ = await listed(ada, limit=limit)
                assert keys == sorted(set(keys))
                assert lasting.keys() <= set(keys)
            stop.set()
        assert rounds > 3


async def test_a_node_that_dies_while_a_listing_runs_is_spoken_for_by_others(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with (
        running_cluster(tmp_path, database_address) as cluster,
        gateway_desk(cluster, tmp_path) as desk,
        desk.client(28) as ada,
    ):
        names = {f"key-{number:04d}": "v" for number in range(3_000)}
        await put(ada, names)
        for node in cluster.nodes:
            await until_metrics(node, key_count=len(names))
        found: list[str] = []
        cursor = ""
        pages = 0
        while True:
            answer = await ada.get("/v1/kv", params={"limit": 50, "cursor": cursor})
            assert answer.status_code == 200, answer.text
            page = answer.json()
            found += [one["key"] for one in page["keys"]]
            pages += 1
            if pages == 20:
                await cluster.nodes[1].kill()
            if page["cursor"] is None:
                break
            cursor = page["cursor"]
        assert found == sorted(names)
        # With none of its owners there is no listing, not even of other slots.
        await cluster.nodes[0].kill()
        await cluster.nodes[2].kill()
        await wait_until(
            lambda: not any(node.live for node in desk.cluster.fleet.nodes.values()),
            "the gateway sees that they are gone",
        )
        answer = await ada.get("/v1/kv")
        assert problem(answer) == (503, "no_quorum")
        assert "Retry-After" in answer.headers


async def test_a_cursor_is_good_for_its_own_query_alone(desk: GatewayDesk) -> None:
    async with desk.client(30) as ada, desk.client(31) as bob:
        for client in (ada, bob):
            await put(client, {f"a/{number}": "1" for number in range(9)})
        query = {"prefix": "a/", "limit": "2"}
        cursor = (await ada.get("/v1/kv", params=query)).json()["cursor"]
        assert (await ada.get("/v1/kv", params={**query, "cursor": cursor})).status_code == 200
        assert (
            await ada.get("/v1/kv", params={**query, "limit": "5", "cursor": cursor})
        ).status_code == 200
        wrong = [
            (bob, query, {}),
            (ada, {**query, "prefix": "a"}, {}),
            (ada, {**query, "delimiter": "/"}, {}),
            (ada, query, {"X-Namespace": "other"}),
        ]
        for client, other, headers in wrong:
            answer = await client.get("/v1/kv", params={**other, "cursor": cursor}, headers=headers)
            assert problem(answer) == (400, "invalid_cursor")
        answer = await ada.delete("/v1/kv", params={"prefix": "a/", "cursor": cursor})
        assert problem(answer) == (400, "invalid_cursor")
        answer = await ada.get("/v1/namespaces", params={"cursor": cursor})
        assert problem(answer) == (400, "invalid_cursor")
        for forged in ("x", "AAAA", cursor[:-2], cursor + "AA", "ключ", "A" * 1388, "A" * 5_000):
            answer = await ada.get("/v1/kv", params={**query, "cursor": forged})
            assert problem(answer) == (400, "invalid_cursor")


async def test_what_is_wrong_with_a_listing_is_told_by_its_code(desk: GatewayDesk) -> None:
    async with desk.client(32) as ada:

        async def refused(query: str, **headers: str) -> tuple[int, str]:
            return problem(await ada.get(f"/v1/kv?{query}", headers=headers))

        assert await refused("", **{"X-Consistency": "strong"}) == (400, "invalid_consistency")
        assert await refused("", **{"X-Consistency": "x"}) == (400, "invalid_consistency")
        assert await refused("", **{"X-Namespace": ""}) == (400, "invalid_namespace")
        assert await refused("", **{"X-Namespace": "x" * 256}) == (400, "invalid_namespace")
        assert await refused("", **{"X-Namespace": "a\tb"}) == (400, "invalid_namespace")
        assert await refused("prefix=%ff") == (400, "invalid_key")
        assert await refused("prefix=" + "x" * 1025) == (414, "key_too_long")
        assert await refused("prefix=a&prefix=b") == (400, "invalid_key")
        for query in ("limit=0", "limit=1001", "limit=ten", "limit=", "other=1"):
            assert await refused(query) == (400, "invalid_query")
        assert (await ada.get("/v1/kv?prefix=&delimiter=&limit=100&cursor=")).status_code == 200
        eventual = await ada.get("/v1/kv", headers={"X-Consistency": "eventual"})
        assert eventual.status_code == 200


async def test_a_key_that_is_limited_to_a_prefix_lists_nothing_else(desk: GatewayDesk) -> None:
    async with desk.client(34) as ada, desk.client(34, prefix=b"a/") as narrow:
        await put(ada, dict.fromkeys(["a/1", "a/2", "b/1"], "1"))
        assert (await listed(narrow, prefix="a/"))[0] == ["a/1", "a/2"]
        for prefix in ("", "a", "b", "b/"):
            answer = await narrow.get("/v1/kv", params={"prefix": prefix})
            assert problem(answer) == (403, "key_not_allowed")
            assert "'a/'" in answer.json()["detail"]
