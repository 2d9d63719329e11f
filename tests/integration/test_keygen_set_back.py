"""A database that was set back, by a backup or by a replica that lagged: it is noticed, nobody is
given what somebody has, and an operator can mend it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.core.errors import FatalError, FixRequest, RetryLater
from services.core.permute import radix
from services.keygen.inspection import Inspection
from services.keygen.keeper import Keeper
from services.keygen.marks import Marks
from services.keygen.range_store import Leavings, RangeStore, Wish
from services.keygen.watch_store import WatchStore, roll_call_s, skip_margin
from services.runtime.database_url import DatabaseAddress
from services.runtime.metrics import Metrics
from services.runtime.probes import Level, Readiness
from tests.integration.keygen_process import keygen_process
from tests.integration.keygen_town import Keygen, Town, a_town, bob
from tests.integration.replicator_process import until_told
from tests.integration.shell import Shell, usage_error
from tests.integration.usermanager_process import key_pepper
from tests.waiting import wait_until


@pytest.fixture
async def town(database_address: DatabaseAddress, tmp_path: Path) -> AsyncIterator[Town]:
    async with a_town(database_address, tmp_path) as town:
        yield town


async def execute(keygen: Keygen, sql: str, *values: object) -> None:
    async with keygen.database.transaction() as connection:
        await connection.execute(sql, *values)


async def set_back(keygen: Keygen, counter: int = 0) -> None:
    """As from a backup of when the counter of 7 characters stood there."""
    await execute(keygen, "DELETE FROM returned_keys")
    await execute(keygen, "DELETE FROM key_ranges WHERE size = 7 AND first >= $1", counter)
    await execute(keygen, "UPDATE key_counters SET next = $1 WHERE size = 7", counter)


async def begin_anew(keygen: Keygen) -> None:
    """As if the server had just taken the place of another one."""
    await execute(keygen, "UPDATE key_watch SET server = 'the one before', called = 'it too'")
    await execute(keygen, "UPDATE keygen_instances SET heard = 'the one before'")


async def until_closed(keygen: Keygen) -> None:
    """What is returned of the first range is free at once from then on."""

    async def is_closed() -> bool | None:
        closed = await keygen.read("SELECT id FROM key_ranges WHERE closed_at IS NOT NULL")
        return bool(closed) or None

    await until_told(is_closed, "the range is closed")


def level(keeper: Keeper) -> tuple[Level, str]:
    readiness = Readiness()
    keeper.watch(readiness)
    found, reasons = readiness.look()
    return found, reasons.get("database", "")


def indexes(keygen: Keygen, keys: list[str]) -> list[int]:
    return [keygen.permutation().index(key.encode()) for key in keys]


async def test_what_was_given_out_is_not_reserved_again(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    given = await one.take(50)
    await set_back(one)
    with pytest.raises(RetryLater, match="set back") as refused:
        await one.take(2_000)
    assert refused.value.code == "database_unavailable"
    assert refused.value.retry_after_s >= 10
    # The other one knows of nothing, and has never reserved anything.
    with pytest.raises(RetryLater, match="set back"):
        await other.take(1, tenant=bob)
    with pytest.raises(FatalError, match="ydht ids skip"):
        await Inspection(other.database).make(bob, 1, 7)
    assert await one.read("SELECT next FROM key_counters WHERE size = 7") == [(0,)]
    assert len(given) == 50


async def test_a_keygen_that_only_looks_notices_and_says_what_to_do(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    await one.take(50)
    await set_back(one, 20)
    await wait_until(lambda: level(one.keeper)[0] == "unready", "it looks by itself")
    told = level(one.keeper)[1]
    assert "ydht ids skip" in told
    ((next_,),) = await one.read("SELECT known FROM key_set_backs")
    assert f"IDs of 7 characters: at 20, and {next_} were given out" in told
    await wait_until(lambda: level(other.keeper)[0] == "unready", "and so does everybody")
    metrics = Metrics()
    other.keeper.add_to(metrics)
    assert metrics.as_json()["key_counters_set_back"] == 1


async def test_who_starts_again_remembers(town: Town) -> None:
    one = await town.keygen("one")
    await one.take(50)
    await one.stop()
    one.home.close()
    await set_back(one)
    heir = await town.keygen("heir", home="one", at_ease=False)
    await wait_until(lambda: level(heir.keeper)[1].startswith("no IDs are given"), "it notices")
    with pytest.raises(RetryLater, match="set back"):
        await heir.take(1)


async def test_a_keygen_without_memory_cannot_notice_and_the_operator_moves_on(town: Town) -> None:
    one = await town.keygen("one")
    given = await one.take(50)
    await one.stop()
    await set_back(one)
    stranger = await town.keygen("stranger")
    moved = await WatchStore(stranger.database).skip(None, 500, None)
    assert {(move.size, move.before, move.after) for move in moved.moves} == {
        (size, 0, 500) for size in range(6, 17)
    }
    assert not set(given) & set(await stranger.take(50))


async def test_counters_are_moved_past_all_that_keygens_know_of(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    given = [*await one.take(30), *await other.take(3_000, tenant=bob)]
    await set_back(one, 20)
    await wait_until(lambda: level(one.keeper)[0] == "unready", "one notices")

    most = max(indexes(one, given)) + 1

    async def is_known() -> int | None:
        ((known,),) = await one.read("SELECT known::bigint FROM key_set_backs")
        return known if isinstance(known, int) and known >= most else None

    known = await until_told(is_known, "the most is told")
    skipped = await WatchStore(one.database).skip(None, None, None)
    assert skipped.set_backs == []
    (moved,) = [move.after for move in skipped.moves if move.size == 7]
    assert moved >= known + skip_margin
    await wait_until(lambda: level(one.keeper)[0] == "ready", "it goes on by itself")
    await wait_until(lambda: level(other.keeper)[0] == "ready", "and so does the other")
    fresh = [*await one.take(3_000, tenant=9), *await other.take(3_000, tenant=9)]
    assert not set(given) & set(fresh)
    assert len(set(fresh)) == 6_000


async def test_returned_keys_are_given_to_nobody_after_a_set_back(town: Town) -> None:
    """Whether they are out again, the database has forgotten."""
    one = await town.keygen("one")
    keys = await one.take(20)
    await one.take(1)
    await until_closed(one)
    assert (await one.give_back(keys[:5])).returned == 5
    # A backup is made here; then they go out again.
    again = await one.take(5)
    assert set(again) == set(keys[:5])
    await one.stop()
    one.home.close()
    await execute(one, "DELETE FROM returned_keys")
    await execute(
        one,
        "INSERT INTO returned_keys (size, index, tenant, range_id, is_free)"
        " SELECT 7, first + n, tenant, id, true FROM key_ranges, generate_series(0, 4) AS n"
        " WHERE first = 0",
    )
    await execute(one, "UPDATE key_watch SET claims = 0")
    heir = await town.keygen("heir", home="one", at_ease=False)
    await wait_until(lambda: level(heir.keeper)[1].startswith("no IDs are given"), "it notices")
    assert "claims" in level(heir.keeper)[1]
    skipped = await WatchStore(heir.database).skip(None, None, None)
    assert skipped.void == 5
    await wait_until(lambda: heir.keeper.trouble is None, "it goes on")
    assert not set(keys) & set(await heir.take(5_000))
    # What is returned from now on goes out again.
    fresh = await heir.take(2)
    await heir.stop()
    heir.home.close()
    last = await town.keygen("last", home="one")
    assert (await last.give_back(fresh)).returned == 2
    assert set(await last.take(2)) == set(fresh)


async def test_returned_keys_in_a_pool_go_out_and_are_not_called_void(town: Town) -> None:
    one = await town.keygen("one")
    keys = await one.take(20)
    await one.take(1)
    await until_closed(one)
    assert (await one.give_back(keys[:2])).returned == 2
    # Both are claimed, and one is given out; a third is not claimed.
    (out,) = await one.take(1)
    assert (await one.give_back(keys[2:3])).returned == 1
    skipped = await WatchStore(one.database).skip(None, 0, None)
    assert skipped.void == 1
    (claimed,) = {*keys[:2]} - {out}
    (told,) = (await Inspection(one.database).fate(claimed)).returns
    assert (told.is_void, told.claimed_at is not None) == (False, True)
    (told,) = (await Inspection(one.database).fate(keys[2])).returns
    assert (told.is_void, told.claimed_at) == (True, None)


async def test_a_replica_that_takes_over_is_looked_at_by_all_before_anybody_reserves(
    town: Town,
) -> None:
    """The one that knows the most is not the first to ask."""
    behind, ahead = await town.keygen("behind"), await town.keygen("ahead")
    # So few that it reserves no more of its own accord.
    first = await behind.take(5)
    given = await ahead.take(3_000)
    await wait_until(lambda: ahead.marks.of(7) > 3_020, "it has more in its pool")
    # It stands still for a moment, as the replica takes over, which knows of the first range alone.
    assert ahead.running is not None
    ahead.running.cancel()
    await asyncio.wait((ahead.running,))
    await set_back(ahead, 20)
    await begin_anew(ahead)
    assert behind.marks.of(7) == 20, "it cannot notice by itself"
    with pytest.raises(RetryLater, match="started anew"):
        await behind.take(tenant=bob)
    ahead.running = asyncio.create_task(ahead.keeper.run())
    await wait_until(lambda: level(behind.keeper)[0] == "unready", "the other one has told")
    assert await behind.read("SELECT counter, found::int, instance_id FROM key_set_backs") == [
        (7, 20, ahead.pools.instance_id)
    ]
    with pytest.raises(RetryLater, match="set back"):
        await behind.take(tenant=bob)
    assert not set(first) & set(given)


async def test_a_server_that_was_restarted_is_used_again_once_all_have_looked(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    await begin_anew(one)
    with pytest.raises(RetryLater, match="started anew"):
        await other.take()

    async def is_over() -> bool | None:
        return await one.read("SELECT server FROM key_watch") != [("the one before",)] or None

    await until_told(is_over, "the roll is called")
    await wait_until(lambda: other.keeper.trouble is None, "it has seen that")
    assert await other.take()


async def test_nobody_is_waited_for_who_does_not_come(town: Town) -> None:
    one, gone = await town.keygen("one"), await town.keygen("gone")
    await one.die()
    await gone.die()
    long_ago = "UPDATE key_watch SET called_at = now() - make_interval(secs => $1)"
    await begin_anew(one)
    await execute(one, long_ago, roll_call_s)
    watch = WatchStore(one.database)
    assert not (await watch.look(0, Marks())).is_roll_over, "that was another roll"
    assert not (await watch.look(0, Marks())).is_roll_over
    await execute(one, long_ago, roll_call_s)
    assert (await watch.look(0, Marks())).is_roll_over


async def test_who_reports_while_an_operator_mends_it_halts_nobody(
    town: Town, database_address: DatabaseAddress
) -> None:
    """He looked before it was mended, and reports after that."""
    one = await town.keygen("one")
    await one.take(5)
    assert one.running is not None
    one.running.cancel()
    await asyncio.wait((one.running,))
    operator = await asyncpg.connect(**database_address.asyncpg())
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute("SELECT FROM key_watch FOR UPDATE")
    await set_back(one)
    watch = WatchStore(one.database)
    looking = asyncio.create_task(watch.look(1, one.marks))

    async def waits() -> bool | None:
        sql = "SELECT pid FROM pg_locks WHERE NOT granted"
        return bool(await one.read(sql)) or None

    await until_told(waits, "what was seen is to be reported")
    await operator.execute("UPDATE key_counters SET next = 1000 WHERE size = 7")
    await transaction.commit()
    await operator.close()
    assert (await looking).set_backs == []
    assert await one.read("SELECT counter FROM key_set_backs") == []


async def test_who_reserves_while_it_looks_thinks_nothing_set_back(town: Town) -> None:
    """What was confirmed after the counters were read is beyond them."""
    one = await town.keygen("one")
    watch, store = WatchStore(one.database), RangeStore(one.database, one.marks)

    async def reserve(tenant: int) -> None:
        for _ in range(40):
            await store.refill(1, Wish(tenant, 7, 1, 1, 20, 0))

    reserving = asyncio.gather(*(reserve(tenant) for tenant in range(20, 24)))
    while not reserving.done():
        assert (await watch.look(1, one.marks)).set_backs == []
    await reserving
    assert await one.read("SELECT counter FROM key_set_backs") == []


async def test_counters_are_never_moved_back(town: Town) -> None:
    one = await town.keygen("one")
    watch = WatchStore(one.database)
    await one.take(50)
    with pytest.raises(FixRequest, match="never moved back"):
        await watch.skip(7, None, 3)
    assert (await watch.skip(None, None, None)).moves == (), "nothing was set back"
    assert [move.after for move in (await watch.skip(7, None, 5_000)).moves] == [5_000]
    assert [move.size for move in (await watch.skip(8, 5, None)).moves] == [8]
    # Not beyond the end of the space.
    assert [move.after for move in (await watch.skip(6, 1 << 80, None)).moves] == [radix**6]
    assert min(indexes(one, await one.take(20, tenant=bob))) >= 5_000


async def test_a_keygen_ends_its_own_ranges_alone(town: Town) -> None:
    """Set back, a database gives the same numbers to ranges of others."""
    one, other = await town.keygen("one"), await town.keygen("other")
    await other.take(5)
    ((range_id,),) = await other.read("SELECT id FROM key_ranges")
    assert isinstance(range_id, int)
    assert one.pools.instance_id is not None
    store = RangeStore(one.database)
    await store.leave(one.pools.instance_id, Leavings(ranges=[range_id]))
    assert await other.read("SELECT id FROM key_ranges WHERE closed_at IS NULL") == [(range_id,)]


async def test_a_full_disk_is_told_of_and_stops_nobody(town: Town) -> None:
    one = await town.keygen("one")
    one.marks.trouble = "/data/marks.json cannot be written: No space left on device"
    assert level(one.keeper) == (
        "degraded",
        f"a database that is set back might not be noticed: {one.marks.trouble}",
    )
    assert len(await one.take(500)) == 500
    assert level(one.keeper)[0] == "ready", "and it was written meanwhile"


async def test_an_operator_mends_it_by_one_command(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    shell = Shell(tmp_path, DATABASE_URL=database_address.url(), KEY_PEPPER=key_pepper)
    async with keygen_process(tmp_path / "data", database_address) as keygen:
        given = set(await keygen.ids(7, 500))
        assert "nothing was moved" in (await shell.done("ids", "skip")).out
        async with a_town(database_address, tmp_path) as town:
            operator = await town.keygen("operator")
            await set_back(operator)
            await operator.stop()

        async def refuses() -> bool | None:
            return (await keygen.get("/ready")).status_code == 503 or None

        await until_told(refuses, "it refuses")

        refused = await keygen.get("/get-key")
        assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
        assert "ydht ids skip" in refused.json()["detail"]
        assert "ydht ids skip" in await shell.refused(os.EX_CONFIG, "ids", "new")
        told = (await shell.done("ids", "skip", "--json")).json[0]
        assert [moved["size"] for moved in told["moved"]] == list(range(6, 17))
        assert told["still_set_back"] == []
        await keygen.until_leased()
        assert not given & set(await keygen.ids(7, 5_000))
    assert "never moved back" in await shell.refused(
        os.EX_DATAERR, "ids", "skip", "--size", "7", "--to", "5"
    )
    assert (await shell.type("ids", "skip", "--to", "5")).code == usage_error
