"""The user manager, or the database behind it, is away: who is known goes on, and all counts."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from services.runtime.metering import report_s
from tests.cluster.gateway.answers import found, problem, put, raw, told
from tests.cluster.gateway_platform import Caller, Platform, Tenant, new_name
from tests.cluster.gateway_turmoil.platform import paused, until_degraded
from tests.integration.database import SharedServer, as_superuser
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="package")

strong = {"X_Consistency": "strong"}
# From when it takes requests again until keys that it alone knows are let in.
back_s_max = 2.0
revoked_s_max = 1.0
rounds = 10


@asynccontextmanager
async def without_usermanager(platform: Platform) -> AsyncIterator[None]:
    await platform.usermanager.kill()
    try:
        yield
    finally:
        await platform.usermanager.serve()


@asynccontextmanager
async def without_database(platform: Platform, server: SharedServer) -> AsyncIterator[None]:
    name = platform.database
    async with as_superuser(server) as superuser:
        await superuser.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        try:
            yield
        finally:
            await superuser.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


class Ledger:
    """What a tenant's usage must come to: every request that was answered, and none twice."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant
        self.by_operation: Counter[str] = Counter()

    async def settled(self) -> None:
        """Wait until all has arrived; then that nothing arrives on top."""
        await until_told(self._is_even, f"usage is {self.by_operation}")

    async def _is_even(self) -> bool | None:
        answer = await self._tenant.person.get("/usage/stats")
        if answer.status_code != 200:
            return None
        arrived = answer.json()["requests_by_operation"]
        for operation, count in arrived.items():
            assert count <= self.by_operation[operation], (arrived, self.by_operation)
        return arrived == dict(self.by_operation) or None


async def ask_for_everything(robot: Caller, ledger: Ledger) -> None:
    """Everything that a known key is good for, and all of it works."""
    for number in range(rounds):
        etag = await put(robot, f"/v1/kv/{number}", b"%d" % number)
        answer = await robot.saying(**strong).get(f"/v1/kv/{number}")
        assert answer.status_code in (200, 404), "an eventual put may not be there yet"
        assert told(await robot.post("/v1/kv/counter/incr"))["value"] == number + 1
        await put(robot.saying(**strong), f"/v1/kv/{number}", etag.encode())
        assert raw(await robot.saying(**strong).get(f"/v1/kv/{number}")) == etag.encode()
        assert (await robot.get("/v1/kv/absent")).status_code == 404
    told(await robot.delete("/v1/kv/0"))
    assert told(await robot.get("/v1/kv"))["count"] >= rounds
    told(await robot.post("/v1/batch", {"operations": [{"op": "get", "key": "1"}]}))
    ledger.by_operation += Counter(
        put=2 * rounds,
        get=rounds,
        get_strong=2 * rounds,
        incr=rounds,
        delete=1,
        list=1,
        batch=1,
    )


def without(
    part: str, platform: Platform, server: SharedServer
) -> AbstractAsyncContextManager[None]:
    if part == "user manager":
        return without_usermanager(platform)
    if part == "database":
        return without_database(platform, server)
    # It takes what it is sent, and reports among that, but says nothing until it is too late.
    return paused(platform.usermanager)


@pytest.mark.parametrize("part", ["user manager", "database", "user manager's answer"])
async def test_while_it_is_away_known_keys_go_on_and_others_are_asked_to_wait(
    platform: Platform, postgres_server: SharedServer, part: str
) -> None:
    tenant = await platform.tenant()
    ledger = Ledger(tenant)
    robot = (await tenant.caller()).saying(X_Namespace=new_name("outage"))
    etag = await put(robot.saying(**strong), "/v1/kv/a", b"1")
    await found(robot.saying(**strong), "/v1/kv/a", etag)
    ledger.by_operation += Counter(put=1, get_strong=1)
    unknown = platform.caller((await tenant.make_key()).key)
    async with without(part, platform, postgres_server):
        away_s = time.monotonic()
        await ask_for_everything(robot.saying(X_Namespace=new_name("during")), ledger)
        targets = ("/v1/kv/a", "/v1/kv", "/v1/namespaces")
        for answer in await asyncio.gather(*map(unknown.get, targets)):
            assert problem(answer) == (503, "auth_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
            assert "WWW-Authenticate" not in answer.headers, "the key may be good"
        reasons = await until_degraded(platform.fast, "usermanager")
        assert "known API keys go on" in reasons["usermanager"]
        # Long enough for usage to have been due.
        await asyncio.sleep(max(0.0, away_s + report_s - time.monotonic()))
        await ask_for_everything(robot.saying(X_Namespace=new_name("later")), ledger)
    began_s = time.monotonic()
    if part == "database":
        # Its pool connects anew before it can say anything.
        await until_told(lambda: answers(platform), "the user manager has its database")
        began_s = time.monotonic()

    async def is_known() -> bool | None:
        answer = await unknown.get("/v1/kv/absent")
        if answer.status_code == 503:
            assert problem(answer) == (503, "auth_unavailable")
            return None
        ledger.by_operation["get"] += 1
        return answer.status_code == 404 or None

    await until_told(is_known, "the key is known")
    took_s = time.monotonic() - began_s
    sys.stdout.write(f"\nwithout the {part}: unknown keys are let in {took_s:.2f} s later\n")
    assert took_s < back_s_max
    await platform.fast.until_whole()
    await ask_for_everything(robot.saying(X_Namespace=new_name("after")), ledger)
    await ledger.settled()
    # Another report, behind which nothing of the others is left.
    await put(robot, "/v1/kv/last")
    ledger.by_operation["put"] += 1
    await ledger.settled()


async def answers(platform: Platform) -> bool | None:
    status, _ = await platform.usermanager.readiness()
    return status == 200 or None


async def test_a_key_that_is_revoked_right_after_an_outage_ends_within_a_second(
    platform: Platform,
) -> None:
    tenant = await platform.tenant()
    made = await tenant.make_key()
    robot = platform.caller(made.key)
    assert (await robot.get("/v1/kv/a")).status_code == 404
    async with without_usermanager(platform):
        assert (await robot.get("/v1/kv/a")).status_code == 404
        await until_degraded(platform.fast, "usermanager")
    await made.revoke()
    began_s = time.monotonic()
    await until_told(lambda: is_refused(robot), "the key is refused")
    assert time.monotonic() - began_s < revoked_s_max


async def is_refused(robot: Caller) -> bool | None:
    answer = await robot.get("/v1/kv/a")
    assert answer.status_code in (404, 401)
    return answer.status_code == 401 or None
