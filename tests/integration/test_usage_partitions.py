"""The days of usage: made ahead, dropped by age, by several at once, and in nobody's way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta

import asyncpg
import pytest
from alembic import command

from services.core.errors import RetryLater
from services.core.usage_report import Rollup, UsageTaken
from services.runtime.database_url import DatabaseAddress
from services.runtime.migrations import alembic_config, migrate
from services.runtime.probes import Readiness
from services.usermanager import partitions
from services.usermanager.partitions import (
    days_ahead,
    days_behind,
    days_kept,
    days_wanted,
    lock_key,
)
from tests.integration.usage_desk import (
    Desk,
    added_up,
    fetch,
    report,
    rollup,
    stored,
    this_minute,
    usage_desk,
)

first_day = date(2031, 12, 20)
tables_sql = """
    SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class
    WHERE relname ~ '^usage_[0-9]+$' ORDER BY relname
"""


@pytest.fixture
async def desk(database_address: DatabaseAddress) -> AsyncIterator[Desk]:
    async with usage_desk(database_address) as desk:
        yield desk


async def tables(address: DatabaseAddress) -> list[str]:
    return [row["relname"] for row in await fetch(address, tables_sql)]


def names(first: date, last: date) -> list[str]:
    days = (last - first).days + 1
    return [f"usage_{first + timedelta(days=n):%Y%m%d}" for n in range(days)]


def at(day: date, clock: time = time(12)) -> datetime:
    return datetime.combine(day, clock, UTC)


async def keep(desk: Desk, today: date) -> None:
    await desk.partitions.make(today)
    await desk.partitions.drop(today)


async def test_over_four_months_each_day_is_there_in_time_and_goes_in_time(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    """Across the end of a year and a 29th of February."""
    for number in range(days_kept + 30):
        today = first_day + timedelta(days=number)
        await keep(desk, today)
        taken = await desk.usage.take(report(number, rollup(at(today), requests=number)))
        assert taken == UsageTaken(counted=True, dropped=0)
        oldest = max(first_day - timedelta(days=days_behind), today - timedelta(days=days_kept))
        expected = names(oldest, today + timedelta(days=days_ahead))
        assert await tables(database_address) == expected
    last = days_kept + 29
    left = await stored(database_address)
    assert sorted(sums[0] for sums in left.values()) == list(range(last - days_kept, last + 1))
    assert "usage_20320229" in await tables(database_address)


async def test_days_meet_at_midnight_in_utc_whatever_the_server_thinks_of_time_zones(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await fetch(
        database_address,
        f"ALTER DATABASE {database_address.database} SET timezone = 'Pacific/Kiritimati'",
    )
    async with usage_desk(database_address) as elsewhere:
        await elsewhere.partitions.make(first_day)
        last, first = at(first_day, time(23, 59)), at(first_day + timedelta(days=1), time(0))
        await elsewhere.usage.take(report(1, rollup(last), rollup(first)))
        (today,) = await fetch(database_address, "SELECT (now() AT TIME ZONE 'UTC')::date")
        assert await elsewhere.partitions.today() == today[0]
    rows = await fetch(
        database_address,
        "SELECT tableoid::regclass::text, minute FROM usage_rollups"
        " WHERE minute >= '2031-01-01' ORDER BY minute",
    )
    assert [tuple(row) for row in rows] == [("usage_20311220", last), ("usage_20311221", first)]


async def test_what_is_of_no_day_is_dropped_and_said_so_and_the_rest_counts(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.partitions.make(first_day)
    too_early = first_day - timedelta(days=days_behind + 1)
    too_late = first_day + timedelta(days=days_ahead + 1)
    good = [rollup(at(first_day)), rollup(at(first_day), key_id=2)]
    bad = [rollup(at(too_early, time(23, 59))), *[rollup(at(too_late, time(0)))] * 3]
    sent = report(1, bad[0], *good, *bad[1:])
    assert await desk.usage.take(sent) == UsageTaken(counted=True, dropped=4)
    assert await stored(database_address) == added_up(good)
    # What was dropped was dropped once, and is not made good by being sent again.
    await desk.partitions.make(too_late)
    assert await desk.usage.take(sent) == UsageTaken(counted=False, dropped=0)
    assert await stored(database_address) == added_up(good)
    assert (desk.usage.counters.rows, desk.usage.counters.dropped) == (2, 4)


async def test_after_weeks_off_the_first_report_finds_its_day(
    database_address: DatabaseAddress,
) -> None:
    async with usage_desk(database_address) as before:
        await before.partitions.make(await before.partitions.today() - timedelta(days=40))
        await before.partitions.make(await before.partitions.today() - timedelta(days=140))
    async with usage_desk(database_address) as after:
        # Reports that arrive together, before any upkeep.
        answers = await asyncio.gather(*(after.usage.take(report(n, rollup())) for n in range(5)))
        assert answers == [UsageTaken(counted=True, dropped=0)] * 5
        await after.usage.tidy()
        today = await after.partitions.today()
        there = await tables(database_address)
        assert set(names(*map_ends(days_wanted(today)))) <= set(there)
        assert there[0] == f"usage_{today - timedelta(days=40 + days_behind):%Y%m%d}"
    assert [sums[0] for sums in (await stored(database_address)).values()] == [5]


async def test_a_day_that_is_gone_is_made_again_for_the_report_that_needs_it(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    assert await desk.usage.take(report(1, rollup())) == UsageTaken(counted=True, dropped=0)
    today = await desk.partitions.today()
    await fetch(database_address, f"DROP TABLE usage_{today:%Y%m%d}")
    taken = await asyncio.gather(*(desk.usage.take(report(n, rollup())) for n in range(2, 22)))
    assert taken == [UsageTaken(counted=True, dropped=0)] * 20
    assert [sums[0] for sums in (await stored(database_address)).values()] == [20]


async def test_while_a_day_cannot_be_made_its_reports_wait_and_readiness_says_so(
    desk: Desk, database_address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    readiness = Readiness()
    desk.usage.watch(readiness)
    assert readiness.look() == ("ready", {})
    await desk.usage.tidy()
    today = await desk.partitions.today()
    await fetch(database_address, f"DROP TABLE usage_{today:%Y%m%d}")
    monkeypatch.setattr(partitions, "making_lock_ms", 50)
    writer = await asyncpg.connect(**database_address.asyncpg())
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("LOCK TABLE usage_rollups IN ROW EXCLUSIVE MODE")
    for _ in range(2):
        with pytest.raises(RetryLater, match="no day could be added"):
            await desk.usage.take(report(1, rollup(), rollup(at(first_day))))
    level, reasons = readiness.look()
    assert level == "degraded"
    assert str(today) in reasons["usage"]
    await transaction.rollback()
    await writer.close()
    # It had not been taken for counted, and of it nothing but what is of no day is dropped.
    taken = await desk.usage.take(report(1, rollup(), rollup(at(first_day))))
    assert taken == UsageTaken(counted=True, dropped=1)
    assert readiness.look() == ("ready", {})
    assert [sums[0] for sums in (await stored(database_address)).values()] == [1]


async def test_a_day_that_is_to_be_kept_counts_though_nobody_has_made_it(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    """Such as those on which no user manager was on."""
    today = await desk.partitions.today()
    kept = [today - timedelta(days=days_kept), today - timedelta(days=40), today]
    unkept = [today - timedelta(days=days_kept + 1), today + timedelta(days=days_ahead + 1)]
    sent = report(1, *(rollup(at(day)) for day in (*kept, *unkept)))
    assert await desk.usage.take(sent) == UsageTaken(counted=True, dropped=2)
    await desk.partitions.drop(today)
    assert sorted(key[0] for key in await stored(database_address)) == list(map(at, kept))


def map_ends(days: list[date]) -> tuple[date, date]:
    return days[0], days[-1]


async def test_many_user_managers_may_make_and_drop_days_at_once(
    database_address: DatabaseAddress,
) -> None:
    async def one(number: int) -> None:
        async with usage_desk(database_address, connections_max=2) as desk:
            for day in range(0, 2 * days_kept + 1, 23):
                await keep(desk, first_day + timedelta(days=day))
            await desk.usage.take(report(number, rollup(at(today))))

    today = first_day + timedelta(days=2 * days_kept)
    await asyncio.gather(*map(one, range(8)))
    there = await tables(database_address)
    assert there[-1] == f"usage_{today + timedelta(days=days_ahead):%Y%m%d}"
    assert not [
        name for name in there if name < f"usage_{today - timedelta(days=days_kept):%Y%m%d}"
    ]
    assert [sums[0] for sums in (await stored(database_address)).values()] == [8]


async def test_days_are_made_and_dropped_under_the_feet_of_reports_and_readers(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    """Every row is counted or said to be dropped, and nobody meets an error."""
    # Old days, of which there are no reports, to be dropped meanwhile.
    for number in range(100, 200, 4):
        await desk.partitions.make(first_day - timedelta(days=number))
    before = len(await tables(database_address))
    over = asyncio.Event()
    sent: list[Rollup] = []
    dropped = 0

    async def gateway(name: str, seed: int) -> None:
        nonlocal dropped
        draw = random.Random(seed)
        number = 0
        while not over.is_set():
            number += 1
            days = [first_day + timedelta(days=draw.randint(-4, 200)) for _ in range(20)]
            rows = [rollup(at(day, time(draw.randrange(24)))) for day in days]
            taken = await desk.usage.take(report(number, *rows, sender=name))
            dropped += taken.dropped
            sent.extend(rows)

    async def reader() -> None:
        while not over.is_set():
            async with desk.database.connection() as connection:
                await connection.fetchval("SELECT sum(requests) FROM usage_rollups")

    async with asyncio.TaskGroup() as tasks:
        for seed in range(3):
            tasks.create_task(gateway(f"gateway-{seed}", seed))
        tasks.create_task(reader())
        async with usage_desk(database_address, connections_max=2) as upkeep:
            for number in range(0, 200, 4):
                await upkeep.partitions.make(first_day + timedelta(days=number))
                await upkeep.partitions.drop(first_day + timedelta(days=number - 110))
        over.set()
    there = await tables(database_address)
    assert before > 100
    # A day that was in use each time is left for later.
    assert len([name for name in there if name < f"usage_{first_day:%Y%m%d}"]) < before / 4
    counted = sum(sums[0] for sums in (await stored(database_address)).values())
    assert counted + dropped == len(sent)
    assert min(counted, dropped) > 0


async def test_whoever_reads_for_long_keeps_a_day_until_later_and_holds_up_nobody(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.partitions.make(first_day)
    await desk.usage.take(report(1, rollup(at(first_day))))
    there = await tables(database_address)
    much_later = first_day + timedelta(days=3 * days_kept)
    reader = await asyncpg.connect(**database_address.asyncpg())
    transaction = reader.transaction()
    await transaction.start()
    assert await reader.fetchval("SELECT count(*) FROM usage_rollups") == 1
    await desk.partitions.drop(much_later)
    assert await tables(database_address) == there
    # Others read and write as before.
    assert await desk.usage.take(report(2, rollup(at(first_day)))) == UsageTaken(
        counted=True, dropped=0
    )
    await transaction.rollback()
    await reader.close()
    await desk.partitions.drop(much_later)
    assert await tables(database_address) == []


async def test_when_the_table_stays_busy_days_are_made_another_time(
    desk: Desk, database_address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "making_lock_ms", 50)
    writer = await asyncpg.connect(**database_address.asyncpg())
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("LOCK TABLE usage_rollups IN ROW EXCLUSIVE MODE")
    with pytest.raises(RetryLater, match="no day could be added"):
        await desk.partitions.make(first_day)
    await transaction.rollback()
    await writer.close()
    await desk.partitions.make(first_day)
    expected = names(*map_ends(days_wanted(first_day)))
    assert await tables(database_address) == expected


async def test_upkeep_locks_nothing_when_there_is_nothing_to_do(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.usage.tidy()
    holder = await asyncpg.connect(**database_address.asyncpg())
    await holder.execute("SELECT pg_advisory_lock($1)", lock_key)
    async with asyncio.timeout(5):
        await desk.usage.tidy()
    await holder.close()


async def test_a_day_that_was_taken_out_by_hand_is_put_back_with_what_it_holds(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.partitions.make(first_day)
    await desk.usage.take(report(1, rollup(at(first_day))))
    name = f"usage_{first_day:%Y%m%d}"
    await fetch(database_address, f"ALTER TABLE usage_rollups DETACH PARTITION {name}")
    await desk.partitions.make(first_day)
    await desk.usage.take(report(2, rollup(at(first_day))))
    assert [sums[0] for sums in (await stored(database_address)).values()] == [2]


async def test_a_day_of_the_present_that_was_taken_out_by_hand_is_missed_by_its_report(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.usage.take(report(1, rollup()))
    name = f"usage_{this_minute():%Y%m%d}"
    await fetch(database_address, f"ALTER TABLE usage_rollups DETACH PARTITION {name}")
    assert await desk.usage.take(report(2, rollup())) == UsageTaken(counted=True, dropped=0)
    assert sum(sums[0] for sums in (await stored(database_address)).values()) == 2


async def test_the_schema_goes_down_and_up_again_with_days_in_it(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.partitions.make(first_day)
    await desk.usage.take(report(1, rollup(at(first_day))))
    await asyncio.to_thread(command.downgrade, alembic_config(database_address), "0003")
    assert await tables(database_address) == []
    await asyncio.to_thread(migrate, database_address)
    async with usage_desk(database_address) as again:
        assert await again.usage.take(report(1, rollup())) == UsageTaken(counted=True, dropped=0)


async def test_each_day_is_indexed_as_the_whole(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.partitions.make(first_day)
    rows = await fetch(
        database_address,
        "SELECT count(*) FROM pg_inherits JOIN pg_index ON indexrelid = inhrelid"
        " WHERE inhparent = 'usage_rollups_pkey'::regclass AND indisprimary AND indisvalid",
    )
    assert rows[0][0] == len(days_wanted(first_day))
