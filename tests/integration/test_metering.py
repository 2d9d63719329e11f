"""Usage as a gateway counts it, at a real user manager: all of it arrives, and counts once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.core.errors import RetryLater
from services.runtime import metering
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.metering import Tally
from services.runtime.migrations import migrate
from tests.integration.key_checks import KeyChecks
from tests.integration.replicator_process import until_told
from tests.integration.tcp_proxy import TcpProxy
from tests.integration.usage_desk import fetch, stored
from tests.integration.usermanager_process import UserManagerProcess, usermanager_process
from tests.waiting import wait_until

operations = ("get", "put", "head", "list", "delete_prefix", "batch", "ids", "namespaces")


@dataclass(slots=True)
class Caller:
    tenant: int
    key_id: int
    tally: Tally | None = field(default_factory=dict)


@pytest.fixture
async def usermanager(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[UserManagerProcess]:
    async with usermanager_process(tmp_path, database_address) as usermanager:
        yield usermanager


async def requests_of(address: DatabaseAddress) -> int:
    return sum(numbers[0] for numbers in (await stored(address)).values())


def count_some(checks: KeyChecks, rng: random.Random, callers: list[Caller]) -> int:
    number = rng.randint(1, 40)
    for _ in range(number):
        checks.meters.count(
            rng.choice(callers), rng.choice(operations), rng.choice((200, 404)), 10, 100, 1_000
        )
    return number


async def test_what_a_gateway_counts_its_tenant_reads(usermanager: UserManagerProcess) -> None:
    ada = await usermanager.person()
    key = (await ada.post("/apikeys", {"name": "robot"})).json()["key"]
    checks = KeyChecks(usermanager.url)
    async with checks.user_manager, checks.credentials:
        credential = await checks.find(key)
        for status in (200, 200, 404):
            checks.meters.count(credential, "get", status, 10, 100, 2_000)
        # Of the console what it asks for by itself is not counted; what a person does is.
        by_itself, by_ada = (checks.credentials.of_console(ada.id) for _ in range(2))
        by_ada.tally = {}
        checks.meters.count(by_itself, "get", 200, 10, 100, 2_000)
        checks.meters.count(by_ada, "put", 200, 10, 100, 2_000)
        await checks.meters.close()
    stats = (await ada.get("/usage/stats")).json()
    assert stats["total_requests"] == 4
    assert stats["successful_requests"] == 3
    assert stats["total_bytes_transferred"] == 440
    assert stats["average_latency_ms"] == 2.0
    assert stats["requests_by_operation"] == {"get": 3, "put": 1}
    (by_page, first, _) = (await ada.get("/usage")).json()
    assert (by_page["key_id"], by_page["operation"], by_page["requests"]) == (0, "put", 1)
    assert (first["key_id"], first["operation"]) == (credential.key_id, "get")
    (only,) = (await ada.get("/usage?key_id=0")).json()
    assert only == by_page


async def test_more_rows_than_a_report_takes_arrive_in_several(
    usermanager: UserManagerProcess, database_address: DatabaseAddress
) -> None:
    checks = KeyChecks(usermanager.url)
    async with checks.user_manager:
        for key_id in range(2_300):
            checks.meters.count(Caller(7, key_id), "get", 200, 1, 1, 1)
        await checks.meters.close()
    assert await requests_of(database_address) == 2_300
    assert checks.meters.counters.reports == 3


async def test_a_report_whose_answer_was_lost_is_sent_again_and_counts_once(
    usermanager: UserManagerProcess, database_address: DatabaseAddress
) -> None:
    async with TcpProxy("127.0.0.1", usermanager.port) as proxy:
        checks = KeyChecks(f"http://127.0.0.1:{proxy.port}")
        async with checks.user_manager:
            checks.meters.count(Caller(7, 1), "get", 200, 10, 100, 1_000)
            await checks.meters.collect()
            proxy.to_client.drop()
            sending = asyncio.create_task(checks.meters.send())

            async def counted() -> bool | None:
                return await requests_of(database_address) == 1 or None

            await until_told(counted, "the report is counted")
            # Twice, as the client tries once more by itself.
            proxy.refuse = True
            proxy.reset()
            with pytest.raises(RetryLater):
                await sending
            proxy.heal()
            checks.meters.count(Caller(7, 1), "get", 200, 10, 100, 1_000)
            await checks.meters.close()
    assert await requests_of(database_address) == 2
    assert checks.meters.counters.reports == 2
    assert (await usermanager.metrics())["usage_repeated"] == 1


async def test_everything_is_counted_once_through_kills_of_the_user_manager(
    usermanager: UserManagerProcess,
    database_address: DatabaseAddress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metering, "report_s", 0.1)
    monkeypatch.setattr(metering, "pause_s_min", 0.05)
    rng = random.Random(3)
    callers = [Caller(tenant, tenant) for tenant in range(5)]
    counted = 0
    checks = KeyChecks(usermanager.url)
    async with checks.user_manager:
        running = asyncio.create_task(checks.meters.run())
        for _ in range(3):
            for _ in range(20):
                counted += count_some(checks, rng, callers)
                await asyncio.sleep(0.02)
            await usermanager.kill()
            for _ in range(20):
                counted += count_some(checks, rng, callers)
                await asyncio.sleep(0.02)
            await usermanager.serve()
        running.cancel()
        await asyncio.wait([running])
        counted += count_some(checks, rng, callers)
        await checks.meters.close()
    assert checks.meters.rows_waiting == 0
    assert await requests_of(database_address) == counted
    senders = await fetch(database_address, "SELECT sender FROM usage_senders")
    assert len(senders) == 1


async def test_usage_waits_for_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "report_s", 0.1)

    def server() -> EmbeddedPostgres:
        return EmbeddedPostgres(tmp_path / "pg", "made up", durable=False, log=lambda _: None)

    running = server()
    await running.__aenter__()
    await asyncio.to_thread(migrate, running.address)
    rng = random.Random(4)
    callers = [Caller(1, 1), Caller(2, 2)]
    async with usermanager_process(tmp_path / "data", running.address) as usermanager:
        checks = KeyChecks(usermanager.url)
        async with checks.user_manager:
            reporting = asyncio.create_task(checks.meters.run())
            counted = count_some(checks, rng, callers)
            await wait_until(lambda: checks.meters.counters.reports > 0, "some is reported")
            await running.__aexit__(None, None, None)
            counted += count_some(checks, rng, callers)
            await wait_until(lambda: checks.meters.counters.failed > 0, "some is not")
            async with server() as again:
                await wait_until(lambda: checks.meters.rows_waiting == 0, "all is reported")
                rows = await stored(again.address)
                assert sum(numbers[0] for numbers in rows.values()) == counted
                by_operation = Counter(name[3] for name in rows)
                assert set(by_operation) <= set(operations)
            reporting.cancel()
            await asyncio.wait([reporting])
