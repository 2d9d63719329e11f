"""Leases, key material, and what is told of how far the counters have come."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.core.errors import FatalError, RestartLater, RetryLater
from services.core.permute import radix
from services.keygen import keeper, quotas
from services.keygen.keeper import lease_s, warn_share
from services.keygen.range_store import Doubt, Leavings
from services.runtime.database_url import DatabaseAddress
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness
from tests.integration.keygen_town import Keygen, Town, a_town
from tests.integration.replicator_process import until_told
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


def copied(path: Path, name: str) -> None:
    """The directory of `one` under another name, as a copy of a whole DATA_DIR leaves it."""
    shutil.copytree(path / "one", path / name, ignore=shutil.ignore_patterns("LOCK"))


async def test_a_copy_of_a_directory_in_use_is_refused_and_harms_nobody(
    town: Town, tmp_path: Path
) -> None:
    one = await town.keygen("one")
    await one.take(5)
    instance_id = one.pools.instance_id
    copied(tmp_path, "copy")
    copy = await town.keygen("copy", at_ease=False)
    assert copy.running is not None
    await asyncio.wait((copy.running,))
    error = copy.running.exception()
    assert isinstance(error, FatalError)
    assert "copy/instance is a copy: the keygen that it names runs at http://one." in str(error)
    assert "DATA_DIR of its own" in str(error)
    assert await one.read("SELECT id FROM keygen_instances WHERE lease_until > now()") == [
        (instance_id,)
    ]
    assert await one.read("SELECT id FROM key_ranges WHERE closed_at IS NOT NULL") == []
    # A second start is refused likewise, and without that file it is another keygen.
    assert (tmp_path / "copy" / "instance").read_bytes() == (
        tmp_path / "one" / "instance"
    ).read_bytes()
    copy.home.close()
    (tmp_path / "copy" / "instance").unlink()
    other = await town.keygen("other", home="copy")
    assert not set(await other.take(50)) & set(await one.take(50))
    assert one.pools.instance_id == instance_id


async def test_a_directory_that_was_moved_is_taken_over_without_ending_anybody(
    town: Town, tmp_path: Path
) -> None:
    """Its keygen may only have lost PostgreSQL for a while."""
    one = await town.keygen("one")
    await one.take(5)
    instance_id = one.pools.instance_id
    await one.die()
    copied(tmp_path, "moved")
    heir = await town.keygen("heir", home="moved")
    assert await heir.read("SELECT id FROM keygen_instances ORDER BY started_at") == [
        (instance_id,),
        (heir.pools.instance_id,),
    ]
    assert await heir.read("SELECT id FROM key_ranges WHERE closed_at IS NOT NULL") == []


async def test_a_copy_of_a_directory_whose_keygen_has_stopped_is_as_good_as_it(
    town: Town, tmp_path: Path
) -> None:
    one = await town.keygen("one")
    await one.stop()
    copied(tmp_path, "copy")
    copy = await town.keygen("copy")
    assert len(await copy.take(5)) == 5


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


@pytest.mark.parametrize("commits", [True, False])
async def test_a_reservation_in_doubt_is_let_go_of_however_late_it_happens(
    town: Town, database_address: DatabaseAddress, *, commits: bool
) -> None:
    """Its reply is lost, and the server is only about to do it: told once, it would know of
    nothing to let go of."""
    one = await town.keygen("one")
    assert one.pools.instance_id is not None
    server = await asyncpg.connect(**database_address.asyncpg())
    transaction = server.transaction()
    await transaction.start()
    range_id = await server.fetchval(
        "INSERT INTO key_ranges (size, first, count, tenant, instance_id)"
        " VALUES (7, 0, 20, 7, $1) RETURNING id",
        one.pools.instance_id,
    )
    transaction_id = await server.fetchval("SELECT pg_current_xact_id()::text")
    doubt = Doubt(transaction_id, one.pools.instance_id, Leavings(ranges=[range_id]))
    one.pools.doubts.append(doubt)
    one.pools.left_something.set()
    looked_s = one.pools.usable_until_s
    await wait_until(lambda: one.pools.usable_until_s > looked_s, "it has looked")
    metrics = Metrics()
    one.pools.add_to(metrics)
    assert metrics.as_json()["pool_reservations_in_doubt"] == 1
    await (transaction.commit() if commits else transaction.rollback())
    await server.close()
    await wait_until(lambda: not one.pools.doubts, "it is no more in doubt")
    ranges = await one.read("SELECT closed_at IS NOT NULL FROM key_ranges")
    assert ranges == ([(True,)] if commits else [])


async def test_a_doubt_of_another_server_is_none(town: Town) -> None:
    """Which knows nothing of the transaction, or has not come as far."""
    one = await town.keygen("one")
    assert one.pools.instance_id is not None
    one.pools.doubts.append(Doubt(str(1 << 62), one.pools.instance_id, Leavings(ranges=[1])))
    one.pools.left_something.set()
    await wait_until(lambda: not one.pools.doubts, "it is no more in doubt")
    assert one.keeper.trouble is None


async def test_chores_that_fail_stop_nothing_else(
    town: Town, database_address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging waits for rows that somebody holds, gives up, and tries again."""
    monkeypatch.setattr(keeper, "look_around_s", 0.2)
    monkeypatch.setattr(quotas, "block_idle_s", 0.0)
    one = await town.keygen("one")
    instance_id = one.pools.instance_id
    old = (
        "INSERT INTO key_ranges (size, first, count, tenant, instance_id, reserved_at, closed_at)"
        " SELECT 7, 20 * n, 20, 7, 0, '2026-01-02', now() FROM generate_series(0, 4) AS n"
    )
    other = await asyncpg.connect(**database_address.asyncpg())
    transaction = other.transaction()
    await execute(one, "UPDATE key_counters SET next = 100 WHERE size = 7")
    await execute(one, old)
    await transaction.start()
    await other.execute("SELECT FROM key_ranges FOR UPDATE")
    await wait_until(lambda: one.keeper.chores_failed == 2, "it was tried twice")
    assert one.keeper.trouble is None
    assert one.pools.instance_id == instance_id
    account = one.quotas.account(7, 1, None)
    await one.quotas.take(account, 5)
    await wait_until(lambda: account.spent_unlimited == 0, "quotas are told all the same")
    assert len(await one.take(50)) == 50
    await transaction.rollback()
    await other.close()

    async def are_merged() -> bool | None:
        return await one.read("SELECT count FROM key_ranges WHERE first < 100") == [(100,)] or None

    await until_told(are_merged, "it is done in the end")


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
