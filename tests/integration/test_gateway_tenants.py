"""Two tenants, one gateway: whatever one of them sends, nothing of the other's is in the answer."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from services.core.key import namespace_prefix
from services.gateway.cursors import Cursors
from tests.integration.database import SharedServer
from tests.integration.gateway_desk import GatewayDesk, whole_desk
from tests.integration.node_process import secret

pytestmark = pytest.mark.asyncio(loop_scope="module")

ada, bob = 7, 8
attempts: Final = 1_500
# What Bob's keys, values and namespaces have in them, and nothing of Ada's.
mark: Final = "zqxj"
names: Final = [f"{mark}-{number}" for number in range(30)]
spaces: Final = ["default", f"{mark}-space"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[GatewayDesk]:
    path = tmp_path_factory.mktemp("tenants")
    async with whole_desk(path, postgres_server, migrated_template) as desk:
        yield desk


async def filled(client: httpx.AsyncClient) -> dict[str, Any]:
    """Bob's data, as he sees it himself."""
    for space in spaces:
        operations = [{"op": "put", "key": name, "value": f"{mark} " * 200} for name in names]
        answer = await client.post(
            "/v1/batch", json={"operations": operations}, headers={"X-Namespace": space}
        )
        assert {one["status"] for one in answer.json()["results"]} == {200}
    return await seen(client)


async def seen(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for space in spaces:
        headers = {"X-Namespace": space}
        found[space] = (await client.get("/v1/kv?limit=1000", headers=headers)).json()["keys"]
        assert len(found[space]) == len(names)
    found["namespaces"] = (await client.get("/v1/namespaces")).json()
    return found


def crossing(draw: random.Random, cursors: list[str], other_key: str) -> dict[str, Any]:
    """A request by Ada for what is Bob's, in any way that comes to mind."""
    raw_prefix = namespace_prefix(bob, b"default").decode("latin-1")
    space = draw.choice([*spaces, "none", f"../{bob}", f"{bob}", raw_prefix.strip("\0") or "x"])
    key = draw.choice([*names, "", mark, f"{bob}/{names[0]}", raw_prefix, f"../{names[0]}"])
    headers = {"X-Namespace": "".join(c for c in space if c.isprintable() and c.isascii())}
    claims = {
        "X-Ydht-Tenant": str(bob),
        "X-Ydht-Scope": "admin",
        "X-Ydht-Namespace": headers["X-Namespace"],
        "X-Tenant": str(bob),
        "X-User-Id": str(bob),
        "X-Forwarded-User": str(bob),
        "Cookie": f"api_key={other_key}",
        "Authorization": "Basic " + other_key,
        "X-Consistency": draw.choice(["strong", "eventual"]),
    }
    headers |= {name: value for name, value in claims.items() if draw.random() < 0.3}
    asked = {
        "prefix": draw.choice(["", key, mark]),
        "delimiter": draw.choice(["", "-"]),
        "cursor": draw.choice(["", *cursors]),
    }
    query = {name: value for name, value in asked.items() if draw.random() < 0.5}
    operations = [
        {"op": "get", "key": key},
        {"op": "delete", "key": key},
        {"op": "put", "key": key, "value": "mine"},
        {"op": "get", "key": key, "encoding": "base64"},
    ]
    picked: dict[str, Any] = draw.choice(
        [
            {"method": "GET", "url": "/v1/kv", "params": query},
            {"method": "DELETE", "url": "/v1/kv", "params": {**query, "prefix": key or mark}},
            {
                "method": "POST",
                "url": "/v1/batch",
                "json": {"operations": draw.sample(operations, draw.randint(1, 4))},
            },
            {"method": "GET", "url": "/v1/namespaces"},
            {"method": "GET", "url": f"/v1/namespaces/{mark}-space"},
            {"method": "DELETE", "url": f"/v1/namespaces/{mark}-space"},
            {
                "method": "PUT",
                "url": f"/v1/namespaces/{mark}-space",
                "json": {"kind": "store"},
            },
            {"method": "POST", "url": "/v1/ids"},
        ]
    )
    return {**picked, "headers": headers}


async def test_nothing_of_another_tenant_is_ever_answered_or_changed(desk: GatewayDesk) -> None:
    draw = random.Random(20)
    cursors = Cursors(secret)
    async with desk.client(bob) as theirs, desk.client(ada) as mine:
        before = await filled(theirs)
        # One that is really Bob's, and one that is sealed for him by the same secret.
        given = (await theirs.get("/v1/kv", params={"limit": 2, "prefix": mark})).json()["cursor"]
        sealed = cursors.make(
            (b"list", namespace_prefix(bob, b"default"), b"", b""), names[0].encode()
        )
        other_key = theirs.headers["X-API-Key"]
        statuses: set[int] = set()
        for _ in range(attempts):
            request = crossing(draw, [given, sealed], other_key)
            answer = await mine.request(**request)
            statuses.add(answer.status_code)
            body = answer.text
            if request["method"] == "POST" and request["url"] == "/v1/batch":
                # What Ada has named herself comes back; nobody's value but hers.
                for one in answer.json().get("results", []):
                    assert one.get("value", "mine") == "mine", request
                    assert one.get("value_base64", "bWluZQ==") == "bWluZQ==", request
            elif request["method"] == "GET" and answer.status_code == 200:
                # Only what she has put, which is far shorter than anything of Bob's.
                document = answer.json()
                if request["url"] == "/v1/kv":
                    assert {one["size"] for one in document["keys"]} <= {len("mine")}, request
                else:
                    told = document.get("namespaces", [document])
                    assert all(one["bytes"] <= one["keys"] * 100 for one in told), request
            assert f"{mark} " not in body, request
        assert await seen(theirs) == before
    assert statuses >= {200, 400}
    assert not {status for status in statuses if status >= 500} - {503}, "IDs alone are not there"
