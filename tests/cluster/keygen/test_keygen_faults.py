"""Keygens that are killed, over a PostgreSQL that is killed and whose replies to commits are lost:
no key comes twice, no client hangs, and all is well again by itself.

KEYGEN_KILLS=100 in the environment kills as many keygens, and PostgreSQL with every twentieth, or
fourth where there are few; without it there are some.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from services.runtime.migrations import migrate
from tests.cluster.keygen.commit_cutter import CommitCutter
from tests.cluster.keygen.crowd import Crowd
from tests.cluster.test_database_kills import Postgres
from tests.integration.keygen_process import KeygenProcess
from tests.integration.replicator_process import until_told

kills = int(os.environ.get("KEYGEN_KILLS", "4"))
restart_every = 20 if kills >= 100 else 3
clients = 24
cut_share = 0.1


@asynccontextmanager
async def running_postgres(path: Path) -> AsyncIterator[Postgres]:
    postgres = Postgres(path / "postgres")
    try:
        await postgres.serve()
        await asyncio.to_thread(migrate, postgres.address)
        yield postgres
    finally:
        await postgres.clear()


@asynccontextmanager
async def running_keygens(
    path: Path, url: str, count: int, **environment: str
) -> AsyncIterator[list[KeygenProcess]]:
    keygens = [KeygenProcess(path / "data", url, **environment) for _ in range(count)]
    try:
        await asyncio.gather(*(keygen.serve() for keygen in keygens))
        await asyncio.gather(*(keygen.until_leased() for keygen in keygens))
        yield keygens
    finally:
        for keygen in keygens:
            await keygen.clear()


@pytest.mark.timeout(120 + 20 * kills)
async def test_no_key_comes_twice_whatever_dies(tmp_path: Path) -> None:
    draw = random.Random(7)
    async with (
        running_postgres(tmp_path) as postgres,
        CommitCutter(postgres.address) as cutter,
        running_keygens(tmp_path, cutter.address.url(), 3, RANGE_SIZE="100") as keygens,
        httpx.AsyncClient(
            timeout=30, trust_env=False, limits=httpx.Limits(max_connections=64)
        ) as http,
    ):
        cutter.share = cut_share
        crowd = Crowd(keygens, http)
        asking = asyncio.create_task(crowd.run(clients))
        for number in range(1, kills + 1):
            await asyncio.sleep(draw.uniform(0.2, 1.0))
            victim = draw.choice(keygens)
            await victim.kill()
            await victim.serve()
            if number % restart_every == restart_every - 1:
                await draw.choice([postgres.kill_first, postgres.kill_all])()
                await postgres.serve()
        before = crowd.total

        async def going_on() -> bool | None:
            return crowd.total > before + 200 or None

        await until_told(going_on, "keys are given out again by themselves")
        crowd.stopped = True
        await asking
        summary = (
            f"{crowd.total} keys, {kills} kills; of {cutter.cut + cutter.passed} commits "
            f"{cutter.cut} cut; {dict(crowd.refusals)}; {crowd.lost} answers lost"
        )
        logging.getLogger(__name__).warning(summary)
        assert not crowd.duplicates, (crowd.duplicates[:20], summary)
        assert crowd.total == len(crowd.seen) > 1_000
        assert cutter.cut > 0, summary


async def test_without_postgresql_pools_go_on_then_it_is_said_and_then_all_is_well_again(
    tmp_path: Path,
) -> None:
    async with (
        running_postgres(tmp_path) as postgres,
        running_keygens(tmp_path, postgres.address.url(), 1) as (keygen,),
    ):
        seen = {(await keygen.get("/get-key")).text for _ in range(5)}
        await postgres.kill_first()
        seen |= {(await keygen.get("/get-key")).text for _ in range(15)}
        assert len(seen) == 20, "from the pool"
        began_s = time.monotonic()
        refused = await keygen.get("/get-key")
        assert time.monotonic() - began_s < 5.0
        assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        ready = await keygen.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        await postgres.serve()

        async def refilled() -> bool | None:
            return (await keygen.metrics())["pool_keys"] >= 20 or None

        await until_told(refilled, "the pool is refilled, though nobody asks")
        assert (await keygen.get("/get-key")).text not in seen


async def test_a_keygen_starts_without_postgresql_and_is_ready_once_it_is_there(
    tmp_path: Path,
) -> None:
    async with running_postgres(tmp_path) as postgres:
        assert await postgres.terminate() == 0
        keygen = KeygenProcess(tmp_path / "data", postgres.address.url())
        try:
            await keygen.serve()
            assert (await keygen.get("/ready")).status_code == 503
            refused = await keygen.get("/get-key")
            assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
            await postgres.serve()
            await keygen.until_leased()
            assert (await keygen.get("/get-key")).status_code == 200
            assert await keygen.terminate() == 0
        finally:
            await keygen.clear()


async def test_one_that_stops_in_order_closes_what_it_had(tmp_path: Path) -> None:
    async with (
        running_postgres(tmp_path) as postgres,
        running_keygens(tmp_path, postgres.address.url(), 2) as (one, other),
    ):
        keys = await one.ids(7, 5)
        assert await one.terminate() == 0
        assert not set(keys) & set(await other.ids(7, 100))
        connection = await asyncpg.connect(**postgres.address.asyncpg())
        still_open = await connection.fetchval(
            "SELECT count(DISTINCT instance_id) FROM key_ranges WHERE closed_at IS NULL"
        )
        instances = await connection.fetchval("SELECT count(*) FROM keygen_instances")
        await connection.close()
        assert (still_open, instances) == (1, 1), "of the other one alone"
