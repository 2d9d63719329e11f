"""What tenants are told of their usage, against sums made by hand."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest

from services.core.errors import FixRequest, RetryLater
from services.core.usage_report import Rollup, count_max
from services.runtime.database_url import DatabaseAddress
from services.usermanager import usage_query
from services.usermanager import usage_store as store
from services.usermanager.messages_usage import StatsQuery, UsageQuery, UsageRow
from services.usermanager.usage_query import (
    period,
    position_of,
    questions_at_once,
    questions_waiting_max,
    waiting_per_account_max,
    windows,
)
from services.usermanager.usage_spans import Step, spans, stats_span
from tests.integration.usage_desk import (
    Desk,
    fetch,
    random_rollups,
    report,
    rollup,
    this_minute,
    usage_desk,
)

now = datetime(2026, 5, 5, 12, 30, 15, tzinfo=UTC)
hour = timedelta(hours=1)


@pytest.fixture
async def desk(database_address: DatabaseAddress) -> AsyncIterator[Desk]:
    async with usage_desk(database_address) as desk:
        yield desk


def beginning(minute: datetime, step: Step) -> datetime:
    match step:
        case "minute":
            return minute
        case "hour":
            return minute.replace(minute=0)
        case "day":
            return minute.replace(hour=0, minute=0)


def by_hand(
    rollups: list[Rollup], user_id: int, start: datetime, end: datetime, step: Step
) -> list[UsageRow]:
    groups = defaultdict(list)
    for row in rollups:
        if row.user_id == user_id and start <= row.minute < end:
            key = (beginning(row.minute, step), row.key_id, row.operation, row.status)
            groups[key].append(row)
    answer = []
    for key, rows in sorted(groups.items()):
        requests = sum(row.requests for row in rows)
        latency_us = sum(row.latency_us for row in rows)
        answer.append(
            UsageRow(
                *key,
                requests=requests,
                bytes_in=sum(row.bytes_in for row in rows),
                bytes_out=sum(row.bytes_out for row in rows),
                average_latency_ms=round(latency_us / requests / 1000, 3) if requests else 0.0,
            )
        )
    return answer


async def rows_of(desk: Desk, user_id: int, query: UsageQuery) -> list[UsageRow]:
    page = await desk.reader.page(user_id, query)
    assert page.next is None
    return page.rows


async def told(desk: Desk, count: int = 3_000) -> list[Rollup]:
    # All of them yesterday at the earliest, which is the first day that there is.
    rows = random_rollups(random.Random(13), count, minutes=1_400)
    await desk.usage.take(report(1, *rows))
    return rows


@pytest.mark.parametrize("step", ["minute", "hour", "day"])
@pytest.mark.parametrize("user_id", [1, 2, 3, 4])
async def test_rows_are_the_sums_of_the_minutes_in_the_period_and_of_one_tenant(
    desk: Desk, step: Step, user_id: int
) -> None:
    rows = await told(desk)
    draw = random.Random(user_id)
    for _ in range(5):
        end = this_minute() - timedelta(seconds=draw.randrange(40_000))
        start = end - timedelta(seconds=draw.randrange(1, 45_000))
        query = UsageQuery(start, end.astimezone(timezone(3 * hour)), step)
        expected = by_hand(rows, user_id, start, end, step)
        assert await rows_of(desk, user_id, query) == expected
        assert bool(expected) is (user_id != 4)


@pytest.mark.parametrize("user_id", [1, 2, 3, 4])
async def test_totals_are_the_sums_of_one_tenant(desk: Desk, user_id: int) -> None:
    rows = [row for row in await told(desk) if row.user_id == user_id]
    stats = await desk.reader.stats(user_id, StatsQuery())
    requests = sum(row.requests for row in rows)
    assert stats.total_requests == requests
    assert stats.successful_requests == sum(row.requests for row in rows if row.status == 200)
    assert stats.failed_requests == requests - stats.successful_requests
    assert stats.total_bytes_transferred == sum(row.bytes_in + row.bytes_out for row in rows)
    assert stats.requests_by_operation == {
        operation: sum(row.requests for row in rows if row.operation == operation)
        for operation in sorted({row.operation for row in rows})
    }
    latency_us = sum(row.latency_us for row in rows)
    average_ms = round(latency_us / requests / 1000, 3) if requests else 0.0
    assert stats.average_latency_ms == average_ms
    assert stats.until - stats.from_ == stats_span.usual


async def test_a_request_of_this_very_minute_is_in_the_answer(desk: Desk) -> None:
    await desk.usage.take(report(1, rollup(requests=5)))
    for step in spans:
        assert [row.requests for row in await rows_of(desk, 1, UsageQuery(step=step))] == [5]
    assert (await desk.reader.stats(1, StatsQuery())).total_requests == 5


async def test_sums_that_no_number_could_hold_stop_at_the_largest(desk: Desk) -> None:
    rows = [
        rollup(
            this_minute() - timedelta(minutes=number),
            requests=count_max,
            bytes_in=count_max,
            bytes_out=count_max,
            latency_us=count_max,
            operation=operation,
        )
        for number in range(1_100)
        for operation in ("get", "put")
    ]
    await desk.usage.take(report(1, *rows))
    found = await rows_of(desk, 1, UsageQuery(step="day"))
    assert {(row.requests, row.bytes_in, row.bytes_out) for row in found} == {(count_max,) * 3}
    stats = await desk.reader.stats(1, StatsQuery())
    assert stats.total_requests == stats.total_bytes_transferred == count_max
    assert stats.failed_requests == 0


async def test_a_tenant_without_usage_is_told_nothings(desk: Desk) -> None:
    assert await rows_of(desk, 1, UsageQuery()) == []
    stats = await desk.reader.stats(1, StatsQuery())
    assert (stats.total_requests, stats.average_latency_ms) == (0, 0.0)
    assert stats.requests_by_operation == {}


@pytest.mark.parametrize("step", ["minute", "hour", "day"])
@pytest.mark.parametrize("limit", [1, 7, 50])
async def test_pages_are_all_rows_each_once_and_in_order(
    desk: Desk, step: Step, limit: int
) -> None:
    rows = await told(desk, count=150)
    end = this_minute() + timedelta(minutes=1)
    start = end - 24 * hour
    query: UsageQuery | None = UsageQuery(start, end, step, limit=limit)
    pages: list[list[UsageRow]] = []
    while query is not None:
        page = await desk.reader.page(1, query)
        pages.append(page.rows)
        query = page.next
    assert [row for page in pages for row in page] == by_hand(rows, 1, start, end, step)
    assert {len(page) for page in pages[:-1]} <= {limit}
    assert 1 <= len(pages[-1]) <= limit, "no page is empty because the one before was full"


async def test_the_pages_after_the_first_are_of_the_same_period(desk: Desk) -> None:
    await told(desk, count=50)
    page = await desk.reader.page(1, UsageQuery(step="minute", limit=1))
    while page.next is not None:
        following = await desk.reader.page(1, page.next)
        if following.next is not None:
            assert following.next.from_ == page.next.from_
            assert following.next.until == page.next.until
        page = following


async def test_one_api_key_is_asked_for_alone(desk: Desk) -> None:
    rows = await told(desk, count=300)
    end = this_minute() + timedelta(minutes=1)
    start = end - 24 * hour
    for key_id in (1, 2, 3, 4):
        own = [row for row in rows if row.key_id == key_id]
        found = await rows_of(desk, 1, UsageQuery(start, end, "day", key_id))
        assert found == by_hand(own, 1, start, end, "day")
        stats = await desk.reader.stats(1, StatsQuery(start, end, key_id))
        assert stats.total_requests == sum(row.requests for row in own if row.user_id == 1)


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "1", "x.1.get.200", "29000000.1.get", "29000000.1.get.200.1", "29000000.-1.get.200"),
        *("29000000.1.GET.200", "29000000.1.get.999", "999999999.1.get.200", "0.1.get.200"),
        *(
            "29000000.9223372036854775808.get.200",
            "29000000.1.get.200\n",
            "2\u0663000000.1.get.200",
        ),
    ],
)
def test_a_cursor_that_no_page_has_given_is_refused(cursor: str) -> None:
    with pytest.raises(FixRequest) as refused:
        position_of(cursor)
    assert refused.value.code == "invalid_cursor"


async def test_a_period_with_too_much_in_it_is_refused_before_it_is_added_up(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = this_minute()
    await desk.usage.take(report(1, *(rollup(minute, key_id=key) for key in range(101))))
    monkeypatch.setattr(usage_query, "rows_read_max", 101)
    assert (await desk.reader.stats(1, StatsQuery())).total_requests == 101
    monkeypatch.setattr(usage_query, "rows_read_max", 100)
    with pytest.raises(FixRequest, match="more than 100 counts in this period"):
        await desk.reader.stats(1, StatsQuery())
    with pytest.raises(FixRequest, match="more than 100 counts in this period"):
        await rows_of(desk, 1, UsageQuery())
    # Others' rows do not count.
    assert (await desk.reader.stats(2, StatsQuery())).total_requests == 0


async def test_pages_of_a_long_list_read_each_row_about_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = this_minute()
    rows = [
        rollup(minute - timedelta(hours=ago), key_id=key) for ago in range(20) for key in range(10)
    ]
    await desk.usage.take(report(1, *rows))
    # A quarter of them: to read all that is left for each page would be too much.
    monkeypatch.setattr(usage_query, "rows_read_max", 50)
    query: UsageQuery | None = UsageQuery(
        minute - timedelta(hours=20), minute + timedelta(minutes=1), "minute", limit=15
    )
    found: list[UsageRow] = []
    while query is not None:
        page = await desk.reader.page(1, query)
        assert len(page.rows) <= 15
        found += page.rows
        query = page.next
    assert [(row.start, row.key_id) for row in found] == sorted(
        (row.minute, row.key_id) for row in rows
    )


@pytest.mark.parametrize("step", ["minute", "hour", "day"])
def test_parts_of_a_period_meet_at_full_steps(step: Step) -> None:
    start, end = now - spans[step].longest, now
    parts = list(windows(start, start, end, step))
    assert (parts[0][0], parts[-1][1]) == (start, end)
    assert all(stop == begin for (_, stop), (begin, _) in pairwise(parts))
    assert all(beginning(stop, step) == stop for _, stop in parts[:-1])
    assert len(parts) <= 40
    assert next(windows(now - hour, start, end, step))[0] == now - hour


blocker_sql = "LOCK TABLE usage_rollups IN ACCESS EXCLUSIVE MODE"


async def until_asked(blocker: Any, count: int) -> None:
    """Wait until so many questions wait for the blocker, and see that it is no more."""
    waits_sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while await blocker.fetchval(waits_sql) < count:
        await blocker.execute("SELECT pg_sleep(0.01)")
        await blocker.execute("SELECT pg_stat_clear_snapshot()")
    assert await blocker.fetchval(waits_sql) == count


async def test_questions_wait_their_turn_and_not_too_many_of_them(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    users = range(1, questions_at_once + questions_waiting_max + 1)
    await desk.usage.take(report(1, *(rollup(requests=5, user_id=user_id) for user_id in users)))
    async with desk.database.transaction() as blocker:
        await blocker.execute(blocker_sql)
        asked = [asyncio.create_task(desk.reader.stats(each, StatsQuery())) for each in users]
        await until_asked(blocker, questions_at_once)
        with pytest.raises(RetryLater, match="overloaded"):
            await desk.reader.stats(0, StatsQuery())
        # Somebody who leaves makes room, for a place in the queue and for a turn.
        for left in (asked[-1], asked[0]):
            left.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers].count(True) == 2
    assert len(answers) - 2 == sum(
        not isinstance(answer, BaseException) and answer.total_requests == 5 for answer in answers
    )
    assert (await desk.reader.stats(1, StatsQuery())).total_requests == 5


async def test_an_account_that_asks_for_a_lot_holds_up_nobody_but_itself(desk: Desk) -> None:
    await desk.usage.take(report(1, rollup(user_id=1), rollup(user_id=2)))
    async with desk.database.transaction() as blocker:
        await blocker.execute(blocker_sql)
        greedy = [
            asyncio.create_task(desk.reader.stats(1, StatsQuery()))
            for _ in range(1 + waiting_per_account_max)
        ]
        await until_asked(blocker, 1)
        with pytest.raises(RetryLater, match="of this account wait already") as refused:
            await rows_of(desk, 1, UsageQuery())
        assert refused.value.code == "overloaded"
        modest = asyncio.create_task(desk.reader.stats(2, StatsQuery()))
        await until_asked(blocker, 2)
    answers = await asyncio.gather(modest, *greedy)
    assert [answer.total_requests for answer in answers] == [1] * len(answers)
    assert (await desk.reader.stats(1, StatsQuery())).total_requests == 1


async def test_a_turn_that_does_not_come_is_not_waited_for_for_long(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_query, "turn_s_max", 0.05)
    async with desk.database.transaction() as blocker:
        await blocker.execute(blocker_sql)
        asked = [
            asyncio.create_task(desk.reader.stats(each, StatsQuery()))
            for each in range(questions_at_once)
        ]
        await until_asked(blocker, questions_at_once)
        # Of the account whose turn it is, and of another.
        for user_id in (0, questions_at_once):
            with pytest.raises(RetryLater, match="was not its turn within") as refused:
                await desk.reader.stats(user_id, StatsQuery())
            assert refused.value.code == "overloaded"
    await asyncio.gather(*asked)
    assert (await desk.reader.stats(0, StatsQuery())).total_requests == 0


async def test_nobody_waits_long_while_many_rows_are_made_into_an_answer(desk: Desk) -> None:
    minute = this_minute()
    for number in range(4):
        keys = range(2_000 * number, 2_000 * (number + 1))
        await desk.usage.take(report(number, *(rollup(minute, key_id=key) for key in keys)))
    turns = 0
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal turns
        turns += 1
        if not over.is_set():
            loop.call_soon(count)

    over = asyncio.Event()
    async with desk.database.connection() as connection:
        found = await store.sums(
            connection,
            1,
            minute,
            minute + hour,
            step="minute",
            rows_read_max=10_000,
            rows_max=10_000,
        )
    count()
    assert len(await usage_query.shown(found)) == 8_000
    over.set()
    assert turns >= 8_000 // usage_query.rows_per_turn


async def test_only_the_days_of_the_period_are_looked_at(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.usage.take(report(1, rollup()))
    plan = await fetch(
        database_address,
        "EXPLAIN SELECT * FROM usage_rollups WHERE user_id = 1 AND minute >= $1 AND minute < $2",
        this_minute(),
        this_minute() + timedelta(minutes=1),
    )
    text = "\n".join(row[0] for row in plan)
    assert text.count("usage_2") == text.count(f"usage_{this_minute():%Y%m%d}") > 0


@pytest.mark.parametrize("step", ["minute", "hour", "day"])
def test_a_period_is_as_long_as_it_may_be_and_no_longer(step: Step) -> None:
    span = spans[step]
    assert period(now - span.longest, now, span, now) == (now - span.longest, now)
    with pytest.raises(FixRequest, match=r"from: is more than \d+ hours before to, which is 2026"):
        period(now - span.longest - timedelta(microseconds=1), now, span, now)
    start, end = period(None, None, span, now)
    assert end - start == span.usual
    assert start < now < end <= now + timedelta(milliseconds=1), "none ends in the future"
    assert period(None, now, span, now) == (now - span.usual, now)


@pytest.mark.parametrize(
    ("start", "end", "member"),
    [
        (datetime.min.replace(tzinfo=UTC), None, "from"),
        (datetime.min.replace(tzinfo=timezone(14 * hour)), None, "from"),
        (None, datetime.max.replace(tzinfo=timezone(-14 * hour)), "to"),
        (None, datetime.min.replace(tzinfo=UTC), "to"),
        (now, now, "from"),
        (now + hour, now, "from"),
        (now + 2 * hour, None, "from"),
    ],
)
def test_what_is_no_period_is_refused_by_the_name_of_the_member(
    start: datetime | None, end: datetime | None, member: str
) -> None:
    with pytest.raises(FixRequest) as refused:
        period(start, end, stats_span, now)
    assert refused.value.code == "invalid_query"
    assert refused.value.members["member"] == member
