"""Keygens that are killed, over a PostgreSQL that is killed and whose replies to commits are lost:
no key comes twice, no client hangs, and all is well again by itself.

`make stress-ids KEYS=10000000 KILLS=100` does the same at full size.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import asyncpg
import pytest

from tests.cluster.keygen.collected import Collected
from tests.cluster.keygen.installation import running_keygens, running_postgres
from tests.cluster.keygen.turmoil import Plan, turmoil
from tests.integration.keygen_process import KeygenProcess
from tests.integration.replicator_process import until_told


@pytest.mark.timeout(240)
async def test_no_key_comes_twice_whatever_dies(tmp_path: Path) -> None:
    plan = Plan(keys=100_000, kills=4, restarts=1, cut_share=0.1, clients=24)
    outcome = await turmoil(plan, tmp_path)
    logging.getLogger(__name__).warning("%s keys; %s", outcome.crowd.total, outcome)
    assert list(outcome.crowd.collected.duplicates()) == []
    assert outcome.crowd.total >= plan.keys
    assert (outcome.kills, outcome.restarts) == (plan.kills, plan.restarts)
    assert outcome.cut > 0


def test_a_key_that_comes_twice_would_be_noticed() -> None:
    collected = Collected()
    collected.add(f"{number:07}" for number in range(10_000))
    collected.add(f"{number:08}" for number in range(10_000))
    assert list(collected.duplicates()) == []
    collected.add(["0001234", "00000007", "0001234"])
    assert sorted(collected.duplicates()) == ["00000007", "0001234", "0001234"]
    assert collected.total == 20_003


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
