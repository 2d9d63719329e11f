"""What a node says over HTTP, and what it says when it must not start."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from urllib.parse import quote_from_bytes

import httpx
import pytest

from services.core.errors import FatalError, RestartLater
from services.core.key import namespace_prefix
from services.core.wire import OK
from services.runtime.clock import SystemClock
from services.runtime.log.frame import head_bytes, segment_head_bytes
from services.runtime.settings import link_port_offset
from services.runtime.signing import Signer, signature_header
from tests.integration.node_process import (
    NodeClient,
    NodeProcess,
    in_flight,
    node_client,
    node_process,
    prefix,
    secret,
)
from tests.waiting import wait_until


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeProcess]:
    async with node_process(tmp_path / "data") as node:
        yield node


@pytest.fixture
async def client(node: NodeProcess) -> AsyncIterator[NodeClient]:
    async with node_client(node) as client:
        yield client


async def refused(node: NodeProcess, exit_code: int = FatalError.exit_code) -> str:
    """The one line, the last, with which a process of this node refuses to start."""
    await node.start()
    assert await node.ended() == exit_code
    lines = [line for line in node.said.splitlines() if line.startswith("ydht dhtnode: ")]
    assert len(lines) == 1, node.said
    assert node.said.endswith(lines[0] + "\n")
    node.check_no_traceback()
    return lines[0]


# Probes and figures.


async def test_health_ready_and_replicators_that_nobody_reaches(node: NodeProcess) -> None:
    health = await node.get("/health")
    assert (health.status_code, health.json()) == (
        200,
        {"status": "healthy", "service": "dhtnode", "node_id": "node-1"},
    )
    # It serves without a replicator, and says once that it looks for one.
    answer = await node.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    [reason] = answer.json()["reasons"].items()
    assert reason[0] == "cluster"
    assert reason[1].startswith("no replicator has taken this node yet; 127.0.0.1 port 1009: ")
    waiting = "no replicator yet at http://127.0.0.1:9 (REPLICATOR_URLS); waiting"
    await wait_until(lambda: waiting in node.said, "it says that nobody is there")
    await asyncio.sleep(1)
    assert node.said.count(waiting) == 1
    assert "Connection refused" in node.said
    assert "link is down" not in node.said


async def test_the_figures_agree_with_what_was_done_in_both_forms(
    node: NodeProcess, client: NodeClient
) -> None:
    for number in range(50):
        assert await client.put(b"key-%02d" % number, bytes(number)) == (OK, b"")
    for number in range(10):
        await client.write(prefix + b"key-%02d" % number, client.stamps.tombstone())
    await client.write(prefix + b"key-40", bytes(12) + bytes(11))
    for number in range(30):
        await client.read(b"key-%02d" % number)
    await client.write(b"bad", b"bad")
    figures = await node.metrics()
    expected = {
        "node_id": "node-1",
        "key_count": 40,
        "tombstone_count": 10,
        "stored_bytes": sum(len(b"key-00") + number for number in range(10, 50)),
        "replica_reads": 30,
        "replica_writes": 62,
        "replica_newer": 1,
        "replica_malformed": 1,
        "wal_frames": 60,
        "puts_refused": 0,
        "catching_up": 1,
        "links_open": 1,
        "link_connections_opened": 1,
        "epoch": 0,
    }
    assert {name: figures[name] for name in expected} == expected
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", figures["timestamp"])
    assert figures["wal_size"] == figures["wal_bytes"] + segment_head_bytes
    assert figures["wal_bytes"] > 60 * head_bytes
    for accept in ("text/plain", "application/openmetrics-text"):
        answer = await node.get("/metrics", Accept=accept)
        assert answer.headers["content-type"].startswith(accept)
        for name in ("key_count", "stored_bytes", "tombstone_count"):
            assert re.search(rf"^ydht_{name}\S* {expected[name]}(\.0)?$", answer.text, re.M), name


# The store.


async def test_a_copy_is_shown_to_whoever_holds_the_secret_and_to_nobody_else(
    node: NodeProcess, client: NodeClient
) -> None:
    record = client.stamps.value(b"\0\xffcontent")
    await client.write(prefix + b"key", record)
    answer = await node.signed("/store/key")
    assert (answer.status_code, answer.content) == (200, b"\0\xffcontent")
    assert answer.headers["etag"] == f'"{record[:12].hex()}"'
    assert answer.headers["x-node-id"] == "node-1"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/store", "/store/key"):
        unsigned = await node.get(path, **{"X-Ydht-Tenant": "7"})
        assert (unsigned.status_code, unsigned.json()["code"]) == (401, "unauthorized")
    missing = await node.signed("/store/other")
    assert (missing.status_code, missing.json()["code"]) == (404, "key_not_found")
    await client.write(prefix + b"key", client.stamps.tombstone())
    assert (await node.signed("/store/key")).status_code == 404


async def test_tenants_and_namespaces_are_walled_off(node: NodeProcess, client: NodeClient) -> None:
    await client.put(b"key", b"seven")
    other = namespace_prefix(7, "größe".encode()) + b"key"
    await client.write(other, client.stamps.value(b"other"))
    assert (await node.signed("/store/key")).content == b"seven"
    assert (await node.signed("/store/key", tenant=8)).status_code == 404
    assert (await node.signed("/store", tenant=8)).json()["keys"] == []
    named = {"X-Ydht-Namespace": "größe".encode()}
    assert (await node.signed("/store/key", headers=named)).content == b"other"
    assert (await node.signed("/store", headers=named)).json()["count"] == 1


async def test_the_namespace_is_part_of_what_is_signed(
    node: NodeProcess, client: NodeClient
) -> None:
    await client.write(namespace_prefix(7, b"other") + b"key", client.stamps.value(b"other"))
    claims = {"X-Ydht-Tenant": "7", "X-Ydht-Namespace": "open"}
    signature = Signer(secret, SystemClock()).sign("GET", "/store/key", claims.items(), b"")
    claims["X-Ydht-Namespace"] = "other"
    altered = await node.get("/store/key", **claims, **{signature_header: signature})
    assert (altered.status_code, altered.json()["code"]) == (401, "unauthorized")
    del claims["X-Ydht-Namespace"]
    left_out = await node.get("/store/key", **claims, **{signature_header: signature})
    assert left_out.status_code == 401


async def test_a_prefix_is_the_bytes_that_were_sent(node: NodeProcess, client: NodeClient) -> None:
    for name in ("größe", "gr\N{REPLACEMENT CHARACTER}", "gr+ e&="):
        await client.put(name.encode(), b"x")
    for prefix_sent, found in (
        ("gr%C3%B6", ["größe"]),
        ("gr%2B%20e%26=", ["gr+ e&="]),
        ("gr", ["gr+ e&=", "größe", "gr\N{REPLACEMENT CHARACTER}"]),
    ):
        answer = (await node.signed(f"/store?limit=9&prefix={prefix_sent}")).json()
        assert [entry["key"] for entry in answer["keys"]] == found


@pytest.mark.parametrize(
    ("target", "code", "named"),
    [
        ("/store?prefix=%zz", "invalid_query", "%"),
        ("/store?prefix=%ff", "invalid_key", "prefix"),
        ("/store?cursor=xyz", "invalid_cursor", "cursor"),
        ("/store?limit=0", "invalid_query", "limit"),
        ("/store?limit=1001", "invalid_query", "limit"),
        ("/store?limit=1&limit=2", "invalid_query", "limit"),
        ("/store?prefx=a", "invalid_query", "prefx"),
        ("/store/%zz", "invalid_key", "%"),
        ("/store/%", "invalid_key", "%"),
    ],
)
async def test_what_would_be_passed_over_is_refused(
    node: NodeProcess, target: str, code: str, named: str
) -> None:
    answer = await node.signed(target)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (400, code)
    assert named in told["detail"]


async def test_the_keys_of_a_replica_are_listed_by_pages(
    node: NodeProcess, client: NodeClient
) -> None:
    names = sorted([b"key-%04d" % number for number in range(250)] + [b"not utf-8 \xff"])
    for name in names:
        await client.put(name, b"four")
    shown, target = [], "/store?limit=100"
    for _ in range(3):
        page = (await node.signed(target)).json()
        assert page["count"] == len(page["keys"]) <= 100
        shown += [entry["key"] for entry in page["keys"]]
        target = f"/store?limit=100&cursor={page['cursor']}"
    assert page["cursor"] is None
    assert shown == [name.decode(errors="backslashreplace") for name in names]
    assert page["keys"][0]["size"] == 4
    found = (await node.signed("/store?prefix=key-000")).json()
    assert [entry["key"] for entry in found["keys"]] == [f"key-{number:04}" for number in range(10)]


NAMES = [
    b"with/slashes//and/.././dots",
    b"with%25percent and space",
    "größe/ключ/鍵".encode(),
    b"line\nbreaks\r\n",
    b"\0\x01\x7f",
    b"?query=1&more#fragment",
    b"/",
    b"x" * 1024,
]


async def test_any_key_that_a_client_may_use_can_be_looked_at(
    node: NodeProcess, client: NodeClient
) -> None:
    for name in NAMES:
        await client.put(name, b"content of " + name)
    for name in NAMES:
        answer = await node.signed(f"/store/{quote_from_bytes(name, safe='')}")
        assert (answer.status_code, answer.content) == (200, b"content of " + name), name


HOSTILE: list[tuple[str, dict[str, str | bytes], object, int, str]] = [
    ("/store/%ff", {}, 7, 400, "invalid_key"),
    ("/store/", {}, 7, 400, "invalid_key"),
    ("/store/" + "x" * 1025, {}, 7, 414, "key_too_long"),
    ("/store/key", {}, None, 400, "invalid_header"),
    ("/store/key", {}, "", 400, "invalid_header"),
    ("/store/key", {}, "-1", 400, "invalid_header"),
    ("/store/key", {}, "7.0", 400, "invalid_header"),
    ("/store/key", {}, 1 << 64, 400, "invalid_header"),
    ("/store/key", {}, "1" + "0" * 25, 400, "invalid_header"),
    ("/store/key", {}, "9" * 5_000, 400, "invalid_header"),
    ("/store/key", {"X-Ydht-Namespace": ""}, 7, 400, "invalid_namespace"),
    ("/store/key", {"X-Ydht-Namespace": "x" * 256}, 7, 400, "invalid_namespace"),
    ("/store/key", {"X-Ydht-Namespace": b"\xff"}, 7, 400, "invalid_namespace"),
    ("/store/key", {"X-Ydht-Namespace": "a\tb"}, 7, 400, "invalid_namespace"),
    ("/store/key", {"X-Namespace": "default"}, 7, 400, "invalid_header"),
    ("/store", {"X-Namespace": "other"}, 7, 400, "invalid_header"),
    ("/store?prefix=%ff", {}, 7, 400, "invalid_key"),
    ("/store?prefix=a&prefix=caf%c3", {}, 7, 400, "invalid_key"),
    ("/store?limit=0", {}, 7, 400, "invalid_query"),
    ("/store?limit=1001", {}, 7, 400, "invalid_query"),
    ("/store?limit=%D9%A1", {}, 7, 400, "invalid_query"),
    ("/store?limit=" + "9" * 5_000, {}, 7, 400, "invalid_query"),
    ("/store?cursor=xyz", {}, 7, 400, "invalid_cursor"),
    ("/store?cursor=%C3%A9", {}, 7, 400, "invalid_cursor"),
    ("/elsewhere", {}, 7, 404, "not_found"),
]


async def test_hostile_requests_are_told_what_is_wrong(node: NodeProcess) -> None:
    for target, headers, tenant, status, code in HOSTILE:
        answer = await node.signed(target, tenant=tenant, headers=headers)
        asked = (target[:40], headers, str(tenant)[:40])
        assert (answer.status_code, answer.json()["code"]) == (status, code), asked
        assert answer.json()["detail"], asked
    node.check_no_traceback()


async def test_other_methods_and_a_prefix_that_matches_nothing(node: NodeProcess) -> None:
    answer = await node.signed("/store/key", method="PUT")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert (await node.signed("/store?prefix=%c3%bf&cursor=ffff")).json()["keys"] == []
    assert (await node.get("/snapshot")).status_code in (401, 405)


# Starting.


async def test_a_large_log_is_recovered_while_ready_says_how_far_it_is(
    node: NodeProcess, client: NodeClient
) -> None:
    content = bytes(2_000)

    async def write_many(first: int) -> None:
        items = [
            (prefix + b"key-%d" % number, client.stamps.value(content))
            for number in range(first, first + 500)
        ]
        assert (await client.write_many(items))[0] == OK

    calls = [partial(write_many, first) for first in range(0, 60_000, 500)]
    await in_flight(8, calls)
    await node.kill()
    await node.start()
    shares: list[int] = []
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await node.get("/ready")
                figures = await node.metrics()
                looked_at = await node.signed("/store/key-1")
            except httpx.TransportError:
                # It does not listen yet.
                continue
            if answer.status_code == 200:
                break
            assert answer.headers["retry-after"] == "1"
            reason = answer.json()["reasons"]["recovery"]
            found = re.search(r"recovering: (\d+) % of \d+ MiB read, [\d,]+ records", reason)
            shares += [int(found[1])] if found else []
            # It may have become ready between two requests, no more.
            assert figures["key_count"] <= 60_000
            assert looked_at.status_code in (200, 503)
    assert shares == sorted(shares)
    assert len(set(shares)) > 1
    assert (await node.metrics())["key_count"] == 60_000


async def test_what_recovery_has_loaded_is_out_of_the_collectors_sight(
    node: NodeProcess,
) -> None:
    assert (await node.metrics())["frozen_objects"] > 1_000


async def test_a_second_process_on_the_same_directory_is_refused(node: NodeProcess) -> None:
    second = NodeProcess(node.data_dir)
    second.starts = 10
    # The first one may end soon.
    line = await refused(second, RestartLater.exit_code)
    assert f"in use by process {node.process.pid}" in line
    assert (await node.get("/health")).status_code == 200


async def test_a_directory_of_another_node_is_refused(node: NodeProcess) -> None:
    assert await node.terminate() == 0
    node.directory.rename(node.data_dir / "nodes" / "node-2")
    line = await refused(NodeProcess(node.data_dir, "node-2"))
    assert "belongs to node 'node-1', and this is 'node-2'" in line


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"format": 9}'])
async def test_a_directory_that_does_not_say_whose_it_is_is_refused(
    node: NodeProcess, client: NodeClient, content: bytes | None
) -> None:
    await client.put(b"key", b"x")
    assert await node.terminate() == 0
    store = node.directory / "store"
    if content is None:
        store.unlink()
    else:
        store.write_bytes(content)
    line = await refused(node)
    assert str(node.directory) in line
    assert "whose data" in line or "format" in line


async def test_a_damaged_log_is_refused_naming_file_and_offset(
    node: NodeProcess, client: NodeClient
) -> None:
    for number in range(20):
        await client.put(b"key-%d" % number, b"content")
    await node.kill()
    segment = node.directory / "log-0000000001"
    offset = segment_head_bytes + head_bytes + 3
    with segment.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes((byte[0] ^ 1,)))
    line = await refused(node)
    assert f"{segment} is damaged at byte {segment_head_bytes}: " in line
    assert "stays out" in line
    # It says so as long as nobody has mended it, and changes nothing.
    assert await refused(node) == line


async def test_a_port_that_is_taken_stops_the_node_before_it_touches_its_directory(
    node: NodeProcess, tmp_path: Path
) -> None:
    other = NodeProcess(tmp_path / "other", "node-2", DHTNODE_PORT=str(node.port))
    line = await refused(other, RestartLater.exit_code)
    assert "DHTNODE_PORT" in line
    assert f"is taken by process {node.process.pid} (" in line
    assert not other.directory.exists()


async def test_a_link_port_that_is_taken_is_named_with_who_has_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        link_port = taken.getsockname()[1]
        port = str(link_port - link_port_offset)
        one = NodeProcess(tmp_path / "data", DHTNODE_PORT=port)
        line = await refused(one, RestartLater.exit_code)
    assert f"port {link_port} on 127.0.0.1, for links, is taken by process {os.getpid()} (" in line


async def test_a_store_file_of_another_store_is_not_blamed_on_the_log(
    node: NodeProcess, client: NodeClient
) -> None:
    await client.put(b"key", b"x")
    assert (await node.signed("/snapshot", method="POST")).status_code == 202
    await wait_until(lambda: "snapshot written" in node.said, "a snapshot is there")
    assert await node.terminate() == 0
    store = node.directory / "store"
    intact = store.read_text()
    store_id = json.loads(intact)["store_id"]
    flipped = f"{int(store_id[0], 16) ^ 1:x}{store_id[1:]}"
    store.write_text(intact.replace(store_id, flipped))
    line = await refused(node)
    assert "do not belong together" in line
    for part in (str(store), store_id, flipped, "log-00"):
        assert part in line
    assert "damaged" not in line
    # Nothing was put aside for it.
    store.write_text(intact)
    await node.serve()
    assert (await node.signed("/store/key")).content == b"x"


async def test_a_torn_write_is_told_once(node: NodeProcess, client: NodeClient) -> None:
    await client.put(b"key", b"x")
    await node.kill()
    segment = node.directory / "log-0000000001"
    content = segment.read_bytes().rstrip(b"\0")
    with segment.open("r+b") as file:
        file.seek(len(content) + 40)
        file.write(b"torn")
    await node.serve()
    told = [line for line in node.said.splitlines() if "log-0000000001" in line]
    assert len(told) == 1, node.said
    assert "a write that a crash has torn" in told[0]
    assert "or damage to the last one" in told[0]
    assert (await node.signed("/store/key")).content == b"x"
