"""Whose data a page asks for: of nobody but who has logged in, whatever the address says.

All other services are one that is a dictionary by tenants here, and believes a claim only as they
do: if it is signed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import httpx
import pytest
import pytest_asyncio

from services.core.cluster import ClusterMap, Member
from services.core.errors import FixRequest
from services.core.hlc import rfc3339
from services.runtime.clock import Clock, FakeClock
from services.runtime.console_requests import scope_header, tenant_header
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import Verifier
from tests.integration.pages_world import Browser, PagesWorld, nowhere, pages_world, secrets

her_key: Final = "diary/of-ada"
her_value: Final = "nobody else reads this"
etag: Final = "0123456789abcdef01234567"
of_key: Final = "key=diary%2Fof-ada&namespace=default"
of_prefix: Final = "prefix=diary&namespace=default"
members: Final = tuple(
    Member(f"node-{number}", f"{number:032x}", f"node{number}", 8_000 + number, 9_000 + number)
    for number in (1, 2, 3)
)
put_line: Final = {"items": [{"line": 1, "key": her_key, "value": "overwritten"}]}

# How each page is asked for what is hers: what stands in the address, and the body.
asked: Final[dict[tuple[str, str], tuple[str, object]]] = {
    ("GET", "/console/data"): (of_prefix, None),
    ("GET", "/console/data/key"): (of_key, None),
    ("GET", "/console/data/new"): ("namespace=default", None),
    ("GET", "/console/data/value"): (of_key, None),
    ("PUT", "/console/data/value"): (of_key, None),
    ("PATCH", "/console/data/value"): (f"{of_key}&ttl=1h", None),
    ("POST", "/console/data/increment"): (of_key, None),
    ("GET", "/console/data/replicas"): (of_key, None),
    ("GET", "/console/data/count"): (of_prefix, None),
    ("GET", "/console/data/export"): (of_prefix, None),
    ("POST", "/console/data/import"): ("namespace=default", put_line),
    ("GET", "/console/data/namespaces"): ("", None),
    ("POST", "/console/data/namespaces"): ("", "name=default&kind=store"),
    ("DELETE", "/console/data/value"): (of_key, None),
    ("POST", "/console/data/delete"): (of_prefix, None),
    ("POST", "/console/data/namespaces/delete"): ("namespace=default", None),
}


@dataclass(slots=True, frozen=True)
class Seen:
    """One request that has reached another service."""

    request: httpx.Request
    body: bytes

    @property
    def path(self) -> str:
        return str(self.request.url.path)

    @property
    def tenant(self) -> str:
        return str(self.request.headers.get(tenant_header, ""))

    def headers(self, **changed: str) -> list[tuple[str, str]]:
        named = {name.replace("_", "-").lower(): value for name, value in changed.items()}
        raw = [
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in self.request.headers.raw
        ]
        return [(name, named.get(name.lower(), value)) for name, value in raw]

    def is_signed(self, clock: Clock, **changed: str) -> bool:
        """Whether a service would take it, with these headers changed on the way."""
        target = self.request.url.raw_path.decode("ascii")
        verifier = Verifier(secrets["CLUSTER_SECRET"], clock)
        try:
            verifier.verify(self.request.method, target, self.headers(**changed), self.body)
        except FixRequest:
            return False
        return True


class Everything(httpx.AsyncBaseTransport):
    """Gateway, replicator and nodes: each tenant has keys of its own."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, str]] = {}
        self.seen: list[Seen] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        seen = Seen(request, await request.aread())
        self.seen.append(seen)
        status, headers, content = self._answer(seen)
        if isinstance(content, str):
            return httpx.Response(status, headers=headers, text=content, request=request)
        return httpx.Response(status, headers=headers, json=content, request=request)

    def _answer(self, seen: Seen) -> tuple[int, dict[str, str], Any]:
        path = seen.path
        if path == "/cluster":
            return 200, {}, cluster_document()
        if path in ("/ready", "/metrics"):
            return 200, {}, {"status": "ready", "reasons": {}, "key_count": 1, "wal_size": 1}
        mine = self.values.get(seen.tenant, {})
        for begins in ("/v1/kv/", "/store/"):
            if path.startswith(begins):
                return self._of_key(seen, unquote(path.removeprefix(begins)), mine)
        if path == "/v1/kv" and seen.request.method == "GET":
            keys = [listed(key, value) for key, value in mine.items()]
            return 200, {}, {"keys": keys, "prefixes": [], "cursor": None}
        if path == "/v1/batch":
            return (
                200,
                {},
                {"results": [got(one, mine) for one in json.loads(seen.body)["operations"]]},
            )
        if path == "/v1/namespaces":
            return 200, {}, {"namespaces": [namespace(mine)], "cursor": None}
        if path.startswith("/v1/namespaces/"):
            return 200, {}, namespace(mine)
        return 200, {}, {"keys": len(mine), "cursor": None}

    @staticmethod
    def _of_key(seen: Seen, key: str, mine: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        value = mine.get(key)
        if value is None:
            return 404, {}, {"code": "key_not_found", "detail": "There is no such key"}
        return 200, {"ETag": f'"{etag}"'}, value


def namespace(mine: dict[str, str]) -> dict[str, object]:
    size = sum(map(len, mine.values()))
    shown = {"name": "default", "kind": "store", "max_items": None}
    return {**shown, "keys": len(mine), "bytes": size}


def listed(key: str, value: str) -> dict[str, object]:
    times = {"updated_at": "2026-01-01T00:00:00Z", "expires_at": None}
    return {"key": key, "size": len(value), "etag": etag, **times}


def got(operation: dict[str, str], mine: dict[str, str]) -> dict[str, object]:
    value = mine.get(operation["key"])
    if value is None:
        return {"key": operation["key"], "status": 404, "code": "key_not_found"}
    return {"key": operation["key"], "status": 200, "value": value}


def cluster_document() -> dict[str, object]:
    """As a replicator tells it."""
    known = ClusterMap(1, 3, members)
    node = {
        "state": "live",
        "since": rfc3339(FakeClock.epoch_ms),
        "zone": "",
        "slots": 16_384,
        "link_error": None,
        "retries": 0,
        "hints": 0,
        "overflowed": False,
        "lag_ms": 0,
    }
    return {
        "replicator_id": "replicator-1",
        "epoch": 1,
        "state": "stable",
        "replication_factor": 3,
        "database": None,
        "slots_without_quorum": 0,
        "map": json.loads(known.encode()),
        "nodes": {
            member.node_id: {
                **node,
                "store_id": member.store_id,
                "host": member.host,
                "http_port": member.http_port,
                "link_port": member.link_port,
            }
            for member in members
        },
        "repair": None,
        "collection": None,
    }


@pytest.fixture
def everything() -> Everything:
    return Everything()


@pytest_asyncio.fixture
async def world(
    database_address: DatabaseAddress, everything: Everything
) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address, platform=everything, REPLICATOR_URLS=nowhere) as world:
        yield world


async def newcomer(world: PagesWorld, name: str) -> tuple[Browser, str]:
    """A browser that has logged in, and whose it is."""
    browser = world.browser()
    await browser.sign_up(name)
    sql = "SELECT id FROM users WHERE username = $1"
    ((tenant,),) = [tuple(row.values()) for row in await world.accounts.fetch(sql, name)]
    return browser, str(tenant)


async def visit(browser: Browser, method: str, path: str) -> httpx.Response:
    query, body = asked[method, path]
    more: dict[str, Any] = {"json": body} if isinstance(body, dict) else {}
    if isinstance(body, str):
        form = "application/x-www-form-urlencoded"
        more = {"content": body, "headers": {"Content-Type": form}}
    headers = {**browser.headers, "X-CSRF-Token": browser.token, **more.pop("headers", {})}
    return await browser.client.request(method, f"{path}?{query}", headers=headers, **more)


def data_pages(world: PagesWorld) -> Iterator[tuple[str, str]]:
    for page in world.web.every_page():
        if page.path.startswith("/console/data"):
            yield page.method, page.path


async def test_each_page_of_data_asks_for_what_is_of_its_visitor_alone(
    world: PagesWorld, everything: Everything
) -> None:
    ada, adas = await newcomer(world, "ada")
    bob, bobs = await newcomer(world, "bob")
    everything.values = {adas: {her_key: her_value}, bobs: {"shopping": "milk"}}
    assert set(data_pages(world)) == set(asked), "a new page is to be tried here, too"
    clock = world.accounts.clock
    for browser, tenant in ((bob, bobs), (ada, adas)):
        told = []
        for method, path in asked:
            everything.seen.clear()
            answer = await visit(browser, method, path)
            assert answer.status_code < 500, (method, path, answer.text)
            told.append(answer.text)
            of_tenants = [
                one for one in everything.seen if one.path.startswith(("/v1/", "/store/"))
            ]
            assert of_tenants or path == "/console/data/import", (method, path)
            for one in of_tenants:
                assert (method, path, one.tenant) == (method, path, tenant)
                assert one.is_signed(clock)
                # Nor can anybody on the way make it another's.
                assert not one.is_signed(clock, **{tenant_header: adas if tenant == bobs else bobs})
                if scope_header in one.request.headers:
                    assert not one.is_signed(clock, **{scope_header: "read,write,admin,all"})
        has_seen_it = any(her_value in text for text in told)
        assert has_seen_it == (tenant == adas)


async def test_the_replicas_of_a_key_are_those_of_ones_own(
    world: PagesWorld, everything: Everything
) -> None:
    ada, adas = await newcomer(world, "ada")
    bob, bobs = await newcomer(world, "bob")
    everything.values = {adas: {her_key: her_value}}
    path = f"/console/data/replicas?{of_key}"
    hers, his = (await ada.get(path)).text, (await bob.get(path)).text
    asked_of_nodes = [one.tenant for one in everything.seen if one.path.startswith("/store/")]
    assert asked_of_nodes == [adas] * 3 + [bobs] * 3
    assert (hers.count("badge-good"), his.count("badge-good")) == (3, 0)
    # A key of one tenant lies elsewhere than that of another.
    assert hers != his
