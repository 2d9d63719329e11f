"""What is still there when most nodes are not, or when no replicator is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from services.runtime.kept_map import map_name
from tests.cluster.gateway.answers import found, problem, put, raw, told
from tests.cluster.gateway_platform import Caller, Platform, nobody_there, served
from tests.cluster.gateway_turmoil.customers import customers
from tests.cluster.gateway_turmoil.platform import paused, until_degraded
from tests.integration.replicator_process import until_told
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

strong = {"X_Consistency": "strong"}
crowd = 16
# What was sent is waited for during two seconds; what is not sent is refused at once.
at_once_s_max = 1.5


async def test_with_one_node_left_eventual_traffic_goes_on_and_strong_is_refused_at_once(
    platform: Platform, robot: Caller
) -> None:
    _, *others = platform.cluster.nodes
    async with customers(robot, crowd) as report:
        await asyncio.sleep(0.5)
        await asyncio.gather(*(node.kill() for node in others))
        await until_told(lambda: is_refused(robot), "it is known that two are away")
        before = report.errors["strong PUT", 503, "no_quorum"]
        unknown = report.unknown.total()
        for _ in range(20):
            answer = await robot.saying(**strong).put("/v1/kv/a", b"2")
            assert problem(answer) == (503, "no_quorum")
            assert answer.elapsed.total_seconds() < at_once_s_max
        await asyncio.sleep(1)
        assert report.errors["strong PUT", 503, "no_quorum"] > before
        # Each may have asked before it was known; after that nothing is sent any more.
        assert report.unknown.total() <= unknown + crowd
        await asyncio.gather(*(node.serve() for node in others))
        await platform.until_whole()
        await until_told(lambda: is_taken(robot), "a majority is back")
        refused = report.errors.copy()
        await asyncio.sleep(0.5)
        assert report.errors == refused, "all goes on"
    assert not report.wrong, report.wrong[:3]
    # Nothing else, and never for what is eventual.
    assert {(status, code) for _, status, code in report.errors} == {(503, "no_quorum")}
    assert {name for name, _, _ in report.errors} == {"strong GET", "strong PUT", "incr"}
    assert set(report.unknown) <= {"strong PUT", "incr"}


async def is_refused(robot: Caller) -> bool | None:
    answer = await robot.saying(**strong).put("/v1/kv/a", b"2")
    assert problem(answer) in ((503, "no_quorum"), (504, "unknown_outcome"))
    if answer.status_code == 504:
        assert answer.json()["operation_id"]
    return answer.status_code == 503 or None


async def is_taken(robot: Caller) -> bool | None:
    """By whichever replicator a key belongs to."""
    for number in range(8):
        answer = await robot.saying(**strong).put(f"/v1/kv/taken-{number}", b"3")
        if answer.status_code != 200:
            return None
    return True


async def test_with_two_nodes_silent_what_was_sent_is_unknown_and_the_rest_is_refused(
    platform: Platform, robot: Caller
) -> None:
    etag = await put(robot.saying(**strong), "/v1/kv/a", b"1")
    await found(robot, "/v1/kv/a", etag)
    async with paused(*platform.cluster.nodes[1:]):
        first = await robot.saying(**strong).put("/v1/kv/a", b"2")
        assert problem(first) in ((503, "no_quorum"), (504, "unknown_outcome"))
        assert first.elapsed.total_seconds() < 5
        read = await robot.saying(**strong).get("/v1/kv/a")
        assert problem(read) == (503, "no_quorum")
        assert raw(await robot.get("/v1/kv/a")) in (b"1", b"2")
        told(await robot.put("/v1/kv/b", b"eventual"))
        await until_told(lambda: is_refused(robot), "it is known that two are away")
    await platform.until_whole()
    await until_told(lambda: is_taken(robot), "a majority is back")
    assert raw(await robot.saying(**strong).get("/v1/kv/b")) == b"eventual"


async def test_without_any_node_every_refusal_says_why(platform: Platform, robot: Caller) -> None:
    await put(robot, "/v1/kv/a", b"1")
    await asyncio.gather(*(node.kill() for node in platform.cluster.nodes))

    async def noticed() -> bool | None:
        return (await robot.get("/v1/kv/a")).status_code == 503 or None

    await until_told(noticed, "the gateway knows that all are away")
    asked: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("GET", "/v1/kv/a", {}),
        ("GET", "/v1/kv/a", strong),
        ("PUT", "/v1/kv/a", {}),
        ("PUT", "/v1/kv/a", strong),
        ("DELETE", "/v1/kv/a", {}),
        ("PATCH", "/v1/kv/a?ttl=1h", {}),
        ("POST", "/v1/kv/n/incr", {}),
        ("GET", "/v1/kv", {}),
        ("DELETE", "/v1/kv?prefix=a", {}),
    )
    for method, target, headers in asked:
        answer = await robot.saying(**headers).ask(method, target)
        assert problem(answer) == (503, "no_quorum"), (method, target, headers)
        assert int(answer.headers["Retry-After"]) >= 1
        assert len(answer.json()["detail"]) > 20, answer.text
    operations = [{"op": "get", "key": "a"}, {"op": "put", "key": "a", "value": "2"}]
    batch = told(await robot.post("/v1/batch", {"operations": operations}))
    assert [(one["status"], one["code"]) for one in batch["results"]] == [(503, "no_quorum")] * 2
    ready = await platform.fast.get("/ready")
    assert "node-1, node-2, node-3 cannot be reached" in ready.json()["reasons"]["replicas"]
    nodes = (await platform.fast.get("/health")).json()["nodes"]
    assert {node["state"] for node in nodes} == {"unreachable"}
    await asyncio.gather(*(node.serve() for node in platform.cluster.nodes))
    await platform.until_whole()
    assert raw(await robot.saying(**strong).get("/v1/kv/a")) == b"1"


async def test_a_gateway_that_starts_without_replicators_reads_by_the_map_it_has_kept(
    platform: Platform, robot: Caller, tmp_path: Path
) -> None:
    values = {f"/v1/kv/{number}": b"value %d" % number for number in range(40)}
    for target, value in values.items():
        await found(robot, target, await put(robot.saying(**strong), target, value))
    gateway = platform.gateway()
    async with served(gateway):
        await gateway.until_whole()
        caller = robot.at(gateway)
        kept = gateway.data_dir / "gateway" / str(gateway.port) / map_name
        await wait_until(kept.exists, "the map is kept")
        await gateway.kill()
        gateway.environment["REPLICATOR_URLS"] = nobody_there
        await gateway.serve()
        reasons = await until_degraded(gateway, "replicators")
        assert reasons["replicators"].startswith("writes and strong reads are refused")
        for target, value in values.items():
            assert raw(await caller.get(target)) == value
        assert told(await caller.get("/v1/kv"))["count"] == len(values)
        for method, headers in (("PUT", {}), ("GET", strong), ("DELETE", {})):
            answer = await caller.saying(**headers).ask(method, "/v1/kv/0")
            assert problem(answer) == (503, "no_replicator")
        # Another gateway, with a directory of its own, has no map to go by.
        other = platform.gateway(DATA_DIR=str(tmp_path / "other"), REPLICATOR_URLS=nobody_there)
        async with served(other):
            assert problem(await robot.at(other).get("/v1/kv/0")) == (503, "no_replicator")
        # One that is torn is no map, and stops nobody.
        await gateway.kill()
        kept.write_bytes(kept.read_bytes()[:-9])
        await gateway.serve()
        assert problem(await caller.get("/v1/kv/0")) == (503, "no_replicator")
        assert json.loads((await gateway.get("/health")).content)["nodes"] == []
