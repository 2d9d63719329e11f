"""What a gateway answers while a part of the platform is away, and that it goes on when it is back.

On a platform of its own, of which each test takes something away and brings it back.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.cluster.gateway.answers import found, problem, put, raw, told
from tests.cluster.gateway_platform import (
    Caller,
    GatewayProcess,
    Platform,
    Tenant,
    gateway_platform,
    new_name,
    nobody_there,
    served,
)
from tests.integration.database import SharedServer, as_superuser, fresh_database
from tests.integration.lane_world import Client, request
from tests.integration.node_process import NodeProcess
from tests.integration.replicator_process import cluster_processes, until_told

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What clients have no use for.
address = re.compile(r"127\.0\.0\.1|localhost|:\d{4,5}\b")
strong = {"X_Consistency": "strong"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[Platform]:
    async with (
        fresh_database(postgres_server, migrated_template) as database,
        gateway_platform(tmp_path_factory.mktemp("outages"), database, "fast") as platform,
    ):
        yield platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ada(platform: Platform) -> Tenant:
    return await platform.tenant()


@pytest_asyncio.fixture(loop_scope="module")
async def robot(ada: Tenant) -> Caller:
    caller = (await ada.caller()).saying(X_Namespace=new_name("namespace"))
    etag = await put(caller.saying(**strong), "/v1/kv/a", b"1")
    await found(caller, "/v1/kv/a", etag)
    return caller


def unavailable(answer: httpx.Response, code: str) -> None:
    assert problem(answer) == (503, code), answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    assert not address.search(answer.json()["detail"]), answer.text


@asynccontextmanager
async def away(*processes: NodeProcess) -> AsyncIterator[None]:
    """Killed, and started again afterwards."""
    await asyncio.gather(*(process.kill() for process in processes))
    try:
        yield
    finally:
        await asyncio.gather(*(process.serve() for process in processes))


@asynccontextmanager
async def paused(process: NodeProcess) -> AsyncIterator[None]:
    process.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.process.send_signal(signal.SIGCONT)


async def test_without_a_user_manager_known_keys_go_on_and_others_wait(
    platform: Platform, ada: Tenant, robot: Caller
) -> None:
    unknown = platform.caller((await ada.make_key()).key)
    async with away(platform.usermanager):
        for _ in range(20):
            assert raw(await robot.get("/v1/kv/a")) == b"1"
        await put(robot, "/v1/kv/b")
        assert told(await robot.get("/v1/kv"))["keys"][0]["key"] == "a"
        for target in ("/v1/kv/a", "/v1/kv"):
            unavailable(await unknown.get(target), "auth_unavailable")
        # What cannot be a key is told so by anybody.
        nonsense = await platform.caller("ydht_nonsense").get("/v1/kv/a")
        assert problem(nonsense) == (401, "invalid_api_key")

    async def known() -> bool | None:
        return (await unknown.get("/v1/kv/absent")).status_code == 404 or None

    await until_told(known, "the key is known")
    await platform.until_whole()


async def test_without_a_database_nothing_that_is_kept_there_changes(
    platform: Platform, ada: Tenant, robot: Caller, postgres_server: SharedServer
) -> None:
    unknown = platform.caller((await ada.make_key()).key)
    name = platform.database
    async with as_superuser(postgres_server) as superuser:
        await superuser.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        try:
            assert raw(await robot.get("/v1/kv/a")) == b"1"
            assert raw(await robot.saying(**strong).get("/v1/kv/a")) == b"1"
            await put(robot, "/v1/kv/b")
            unavailable(await unknown.get("/v1/kv/a"), "auth_unavailable")
            declared = await robot.ask("PUT", "/v1/namespaces/new", json={"kind": "store"})
            unavailable(declared, "database_unavailable")
        finally:
            await superuser.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')

    async def declares() -> bool | None:
        answer = await robot.ask("PUT", "/v1/namespaces/new", json={"kind": "store"})
        return answer.status_code == 200 or None

    await until_told(declares, "a namespace can be declared")

    async def known() -> bool | None:
        return (await unknown.get("/v1/kv/absent")).status_code == 404 or None

    await until_told(known, "the key is known")


async def test_without_a_replicator_eventual_reads_go_on(platform: Platform, robot: Caller) -> None:
    async with away(platform.cluster.replicator):

        async def noticed() -> bool | None:
            answer = await robot.put("/v1/kv/a", b"2")
            # One that was sent as the link broke may have been put through.
            return answer.status_code == 503 or None

        await until_told(noticed, "the gateway knows that the replicator is away")
        assert raw(await robot.get("/v1/kv/a")) == b"1"
        assert (await robot.get("/v1/kv/absent")).status_code == 404
        assert told(await robot.get("/v1/kv"))["count"] == 1
        for method, target in (
            ("PUT", "/v1/kv/a"), ("DELETE", "/v1/kv/a"), ("PATCH", "/v1/kv/a?ttl=1h"),
            ("POST", "/v1/kv/n/incr"), ("DELETE", "/v1/kv?prefix=a"), ("GET", "/v1/namespaces"),
        ):  # fmt: skip
            unavailable(await robot.ask(method, target), "no_replicator")
        unavailable(await robot.saying(**strong).get("/v1/kv/a"), "no_replicator")
        operations = [{"op": "get", "key": "a"}, {"op": "put", "key": "a", "value": "2"}]
        answer = await robot.post("/v1/batch", {"operations": operations})
        results = told(answer)["results"]
        assert [(one["status"], one.get("code")) for one in results] == [
            (200, None), (503, "no_replicator"),
        ]  # fmt: skip
        ready = await robot.get("/ready")
        assert ready.status_code == 200, "which is what it can still do"
    await platform.until_whole()

    async def stamps_again() -> bool | None:
        answer = await robot.put("/v1/kv/a", b"3")
        # Its clock was stored ahead of time, and stands until time has come there.
        if answer.status_code != 200:
            assert problem(answer) == (503, "clock_skew")
            assert int(answer.headers["Retry-After"]) >= 1
        return answer.status_code == 200 or None

    await until_told(stamps_again, "the replicator's clock is sane")


async def test_a_replicator_that_falls_silent_leaves_writes_unknown_and_reads_undone(
    platform: Platform, robot: Caller
) -> None:
    async with paused(platform.cluster.replicator):
        said = robot.saying(X_Request_ID="to-be-found")
        asked = [
            said.put("/v1/kv/a", b"2"),
            said.saying(**strong).put("/v1/kv/a", b"2"),
            said.delete("/v1/kv/a"),
            said.ask("PATCH", "/v1/kv/a?ttl=1h"),
            said.post("/v1/kv/n/incr"),
            said.saying(**strong).get("/v1/kv/a"),
            said.get("/v1/kv/a"),
        ]
        *changes, read, eventual = await asyncio.gather(*asked)
    for answer in changes:
        assert problem(answer) == (504, "unknown_outcome")
        assert answer.json()["operation_id"] == "to-be-found"
        assert "Retry-After" not in answer.headers
    unavailable(read, "no_replicator")
    assert raw(eventual) == b"1"
    assert platform.fast.said.count("to-be-found") >= len(changes), "each is in the log"
    await platform.until_whole()


async def test_with_one_node_of_three_eventual_goes_on_and_strong_does_not(
    platform: Platform, robot: Caller
) -> None:
    first, *others = platform.cluster.nodes
    async with away(*others):

        async def noticed() -> bool | None:
            answer = await robot.saying(**strong).put("/v1/kv/a", b"2")
            assert answer.status_code in (503, 504), answer.text
            return answer.status_code == 503 or None

        await until_told(noticed, "it is known that two are away")
        for method, target in (
            ("PUT", "/v1/kv/a"), ("GET", "/v1/kv/a"), ("DELETE", "/v1/kv/a"),
            ("PATCH", "/v1/kv/a?ttl=1h"), ("POST", "/v1/kv/n/incr"),
        ):  # fmt: skip
            unavailable(await robot.saying(**strong).ask(method, target), "no_quorum")
        etag = await put(robot, "/v1/kv/a", b"3")
        assert raw(await found(robot, "/v1/kv/a", etag)) == b"3"
        assert told(await robot.get("/v1/kv"))["count"] == 1
        assert first.process.returncode is None
    await platform.until_whole()
    read = await robot.saying(**strong).get("/v1/kv/a")
    assert raw(read) == b"3", "what was acknowledged by one is taken over by all"


async def test_without_any_node_there_is_nothing_to_be_had(
    platform: Platform, robot: Caller
) -> None:
    async with away(*platform.cluster.nodes):

        async def noticed() -> bool | None:
            answer = await robot.get("/v1/kv/a")
            return answer.status_code == 503 or None

        await until_told(noticed, "the gateway knows that all are away")
        unavailable(await robot.get("/v1/kv/a"), "no_quorum")
        unavailable(await robot.saying(**strong).get("/v1/kv/a"), "no_quorum")
        unavailable(await robot.get("/v1/kv"), "no_quorum")
        unavailable(await robot.put("/v1/kv/a", b"2"), "no_quorum")
        unavailable(await robot.delete("/v1/kv?prefix=a"), "no_quorum")
        ready = await robot.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "unready")
    await platform.until_whole()
    assert raw(await robot.saying(**strong).get("/v1/kv/a")) == b"1"


async def test_on_full_disks_reads_and_deletes_go_on(platform: Platform, robot: Caller) -> None:
    nodes = platform.cluster.nodes
    reserves = [node.environment["DISK_RESERVE"] for node in nodes]

    async def restart(reserves: list[str]) -> None:
        for node, reserve in zip(nodes, reserves, strict=True):
            node.environment["DISK_RESERVE"] = reserve
        async with away(*nodes):
            pass

    await restart(["4096TiB"] * len(nodes))
    try:
        await platform.until_connected()
        for caller in (robot, robot.saying(**strong)):
            answer = await caller.put("/v1/kv/b", b"v")
            assert problem(answer) == (507, "storage_full")
            assert raw(await caller.get("/v1/kv/a")) == b"1"
        assert problem(await robot.post("/v1/kv/n/incr")) == (507, "storage_full")
        told(await robot.saying(**strong).delete("/v1/kv/a"))
        assert (await robot.saying(**strong).get("/v1/kv/a")).status_code == 404
    finally:
        await restart(reserves)
    await platform.until_whole()
    await put(robot, "/v1/kv/b")


async def test_a_gateway_that_has_found_no_replicator_says_so(
    platform: Platform, ada: Tenant
) -> None:
    made = await ada.make_key()
    async with served(platform.gateway(REPLICATOR_URLS=nobody_there)) as gateway:
        await nothing_is_had(platform.caller(made.key).at(gateway), "no_replicator")


async def test_a_gateway_of_a_cluster_that_is_forming_says_so(
    platform: Platform,
    ada: Tenant,
    tmp_path: Path,
    postgres_server: SharedServer,
    migrated_template: str,
) -> None:
    made = await ada.make_key()
    async with (
        fresh_database(postgres_server, migrated_template) as database,
        cluster_processes(tmp_path, database) as cluster,
        served(platform.gateway(REPLICATOR_URLS=cluster.replicator.url)) as gateway,
    ):
        # It waits for its nodes, of which there are none.
        await cluster.replicator.serve()
        caller = platform.caller(made.key).at(gateway)

        async def noticed() -> bool | None:
            return "cluster_forming" in (await caller.get("/v1/kv/a")).text or None

        await until_told(noticed, "the gateway has found the replicator")
        await nothing_is_had(caller, "cluster_forming")


async def nothing_is_had(caller: Caller, code: str) -> None:
    for method, target in (
        ("GET", "/v1/kv/a"), ("PUT", "/v1/kv/a"), ("POST", "/v1/kv/n/incr"), ("GET", "/v1/kv"),
    ):  # fmt: skip
        unavailable(await caller.ask(method, target), code)
    assert (await caller.gateway.get("/ready")).status_code == 503
    assert (await caller.gateway.get("/health")).status_code == 200


async def test_a_gateway_that_has_found_no_user_manager_says_so(
    platform: Platform, ada: Tenant
) -> None:
    made = await ada.make_key()
    async with served(platform.gateway(USERMANAGER_URL=nobody_there)) as gateway:
        caller = platform.caller(made.key).at(gateway)
        for target in ("/v1/kv/a", "/v1/kv"):
            unavailable(await caller.get(target), "auth_unavailable")


async def test_who_is_being_answered_when_a_gateway_stops_gets_the_answer(
    platform: Platform, ada: Tenant
) -> None:
    made = await ada.make_key()
    lines = [*platform.caller(made.key).lines, f"X-Namespace: {new_name('stopping')}"]
    async with served(platform.gateway()) as gateway:
        await gateway.until_whole()
        clients = [await gateway.connect() for _ in range(64)]
        for number, client in enumerate(clients):
            answer = await client.ask(request("PUT", f"/v1/kv/{number}", *lines, body=b"before"))
            assert answer.status == 200
        async with paused(platform.cluster.replicator):
            for number, client in enumerate(clients):
                client.send(request("PUT", f"/v1/kv/{number}", *lines, body=b"during"))
            await until_told(lambda: _in_flight(gateway, 64), "all are under way")
            gateway.process.send_signal(signal.SIGTERM)
            await until_told(lambda: _refuses(gateway), "it takes no more connections")
        for client in clients:
            answer = await client.answer()
            assert (answer.status, answer.closes) == (200, True)
            assert await client.closed()
            await client.close()
        assert await gateway.ended() == 0
    caller = Caller(platform.caller(None).http, platform.fast, {})
    for number in range(64):
        name = lines[-1].partition(": ")[2]
        reader = caller.saying(X_API_Key=made.key, X_Namespace=name, **strong)
        assert raw(await reader.get(f"/v1/kv/{number}")) == b"during"


async def _in_flight(gateway: GatewayProcess, count: int) -> bool | None:
    metrics = await gateway.metrics()
    # Whoever asks for metrics is being answered, too.
    return metrics["http_requests_in_flight"] == count + 1 or None


async def _refuses(gateway: GatewayProcess) -> bool | None:
    try:
        client: Client = await gateway.connect()
    except ConnectionError:
        return True
    await client.close()
    return None
