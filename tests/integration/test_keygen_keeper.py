"""Leases, key material, and what is told of how far the counters have come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.errors import RestartLater, RetryLater
from services.core.permute import radix
from services.keygen.keeper import lease_s, warn_share
from services.runtime.database_url import DatabaseAddress
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness
from tests.integration.keygen_town import Keygen, Town, a_town
from tests.waiting import wait_until


@pytest.fixture
async def town(database_address: DatabaseAddress, tmp_path: Path) -> AsyncIterator[Town]:
    async with a_town(database_address, tmp_path) as town:
        yield town


async def execute(keygen: Keygen, sql: str, *values: object) -> None:
    async with keygen.database.transaction() as connection:
        await connection.execute(sql, *values)


async def test_all_keygens_make_the_same_keys_of_an_installation(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    for size in (6, 7, 16):
        assert one.permutation(size).keys(0, 50) == other.permutation(size).keys(0, 50)
    assert len(await one.read("SELECT value FROM platform")) == 1


async def test_a_space_that_is_nearly_used_up_is_told_long_before_the_end(town: Town) -> None:
    one = await town.keygen("one")
    near, full = int(warn_share * radix**6) + 1, radix**7 - 5
    await execute(one, "UPDATE key_counters SET next = $1 WHERE size = 6", near)
    await execute(one, "UPDATE key_counters SET next = $1 WHERE size = 7", full)
    metrics = Metrics()
    other = await town.keygen("other")
    other.keeper.add_to(metrics)

    def told() -> dict[str, object]:
        return metrics.as_json()

    await wait_until(lambda: told().get("keyspace_nearly_exhausted.6") == 1, "it is told")
    assert told()["keyspace_nearly_exhausted.7"] == 1
    assert told()["keyspace_nearly_exhausted.8"] == 0
    assert 0.8 <= float(str(told()["keyspace_used_ratio.6"])) < 0.801
    assert len(await other.take(5, size=6)) == 5, "and keys are given out as before"


async def test_two_keygens_cannot_share_a_directory(town: Town) -> None:
    await town.keygen("one")
    with pytest.raises(RestartLater, match="one"):
        await town.keygen("other", home="one")


async def test_a_lease_is_renewed_and_our_own_end_of_it_is_the_sooner_one(town: Town) -> None:
    one = await town.keygen("one")
    first_s = one.pools.usable_until_s
    assert first_s < town.clock.boot_s() + lease_s
    await wait_until(lambda: one.pools.usable_until_s > first_s, "the lease is renewed")
    ((left_s,),) = await one.read(
        "SELECT extract(epoch FROM lease_until - now())::float8 FROM keygen_instances"
    )
    assert isinstance(left_s, float)
    assert one.pools.usable_until_s - town.clock.boot_s() < left_s


async def test_readiness_tells_what_can_still_be_done(town: Town) -> None:
    one = await town.keygen("one")
    readiness = Readiness()
    one.keeper.watch(readiness)
    assert readiness.look() == ("ready", {})
    await one.take()
    one.keeper.trouble = "PostgreSQL is away"
    level, reasons = readiness.look()
    assert level == "degraded"
    assert "PostgreSQL is away" in reasons["database"]
    one.pools.end()
    assert readiness.look()[0] == "unready"
    with pytest.raises(RetryLater):
        await one.take()
