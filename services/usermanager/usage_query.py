"""Usage as tenants see it: their own, by steps or in total, of a bounded period.

How long a period may be depends on its steps. What has many rows comes in pages, each with a Link
to the next. However short a period is, a busy tenant can have more counts in it than is worth the
work of all others' logins; what is too much is refused with what to ask for instead, and only a few
such questions are worked on at once.

A cursor is the last row of its page, by what tells it from others: who makes one up begins
elsewhere in what is theirs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import asyncpg
import msgspec

from services.core.errors import FixRequest, RetryLater
from services.core.usage_report import count_max, earliest, latest
from services.runtime.clock import Clock
from services.runtime.endpoints import Call, Endpoint, Headed
from services.runtime.postgres import Connection, Database
from services.runtime.request_body import invalid_members
from services.usermanager import usage_store as store
from services.usermanager.messages_usage import (
    StatsQuery,
    UsageHeaders,
    UsageQuery,
    UsageRow,
    UsageStats,
)
from services.usermanager.row_ids import id_max
from services.usermanager.usage_series import UsageSeries, series_of, step_beginning
from services.usermanager.usage_spans import Span, Step, spans, stats_span
from services.usermanager.usage_store import Position

# Some seconds of one processor: a month of a tenant that uses thirty pairs of API key and
# operation in every single minute.
rows_read_max: Final = 1_500_000
# Some ten milliseconds; it is asked again and again while somebody takes the first steps.
rows_looked_through_max: Final = 20_000
# They share connections and processors with those who log in.
questions_at_once: Final = 2
questions_waiting_max: Final = 20
# An account has one of them worked on, and a page of charts that asks for a few more at a time.
waiting_per_account_max: Final = 2
# Longer than a question of most takes; who asks hears soon that it is not answered.
turn_s_max: Final = 3.0
# Less than a millisecond of the loop.
rows_per_turn: Final = 1_000
# Times of ours are those of milliseconds; the present one is in the period.
present: Final = timedelta(milliseconds=1)

# What a page reads at a time: all of a period again for each of its pages would be a square of it.
_windows: Final[Mapping[Step, timedelta]] = {
    "minute": timedelta(hours=1),
    "hour": timedelta(days=1),
    "day": timedelta(days=4),
}
# Where the parts of a period end: at full steps, or larger ones.
_aligned: Final[Mapping[Step, timedelta]] = {
    "minute": timedelta(hours=1),
    "hour": timedelta(days=1),
    "day": timedelta(days=1),
}

_cursor: Final = re.compile(
    r"(?P<minute>[0-9]{1,9})\.(?P<key_id>[0-9]{1,19})\.(?P<operation>[a-z][a-z_]{0,31})"
    r"\.(?P<status>[1-5][0-9]{2})",
    re.ASCII,
)


@dataclass(slots=True, frozen=True)
class UsagePage:
    """Rows, and what to ask for the next ones; None if these are the last."""

    rows: list[UsageRow]
    next: UsageQuery | None


@dataclass(slots=True)
class _Line:
    """The questions of one account: one at a time, and a few that wait."""

    turn: asyncio.Lock
    asked: int = 0


class UsageReader:
    """Answers what an account has used."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._turns = asyncio.Semaphore(questions_at_once)
        self._waiting = 0
        # Of accounts that ask for something now.
        self._lines: dict[int, _Line] = {}

    async def page(self, user_id: int, query: UsageQuery) -> UsagePage:
        """Sums of each step, API key, operation and status, in this order.

        A step in which there was nothing has no row. A period that begins or ends within a step
        has only that part of it. What is counted while somebody goes from page to page may be in
        the later ones; no row is in two of them.
        """
        start, end = period(query.from_, query.until, spans[query.step], self.now())
        after = None if query.cursor is None else position_of(query.cursor)
        found: list[asyncpg.Record] = []
        read = 0
        async with self._turn(user_id) as connection:
            for begin, stop in windows(after.start if after else start, start, end, query.step):
                part = await store.sums(
                    connection,
                    user_id,
                    begin,
                    stop,
                    step=query.step,
                    # One more than may be tells whether there are more.
                    rows_read_max=rows_read_max - read + 1,
                    rows_max=query.limit + 1 - len(found),
                    key_id=query.key_id,
                    after=after,
                )
                read += _read(part)
                _check_read(read, rows_read_max)
                found += part
                if len(found) > query.limit:
                    break
        rows = await shown(found[: query.limit])
        if len(found) <= query.limit:
            return UsagePage(rows, None)
        # Of the same period, also if it was to end now.
        return UsagePage(
            rows,
            msgspec.structs.replace(query, from_=start, until=end, cursor=_cursor_of(rows[-1])),
        )

    async def stats(self, user_id: int, query: StatsQuery) -> UsageStats:
        """Totals of a period."""
        start, end = period(query.from_, query.until, stats_span, self.now())
        async with self._turn(user_id) as connection:
            found = await store.totals(
                connection,
                user_id,
                start,
                end,
                rows_read_max=rows_read_max + 1,
                key_id=query.key_id,
            )
        _check_read(_read(found), rows_read_max)
        return _stats(start, end, found)

    async def series(
        self,
        user_id: int,
        start: datetime | None,
        end: datetime | None,
        step: Step,
        key_id: int | None = None,
        rows_most: int | None = None,
    ) -> UsageSeries:
        """The same for charts: sums of each step, and of each operation, status and API key.
        FixRequest if there are more rows than `rows_most`, or are ever read."""
        rows_most = rows_read_max if rows_most is None else rows_most
        start, end = period(start, end, spans[step], self.now())
        async with self._turn(user_id) as connection:
            found = await store.series(
                connection,
                user_id,
                start,
                end,
                step=step,
                rows_read_max=rows_most + 1,
                key_id=key_id,
            )
        _check_read(_read(found), rows_most)
        return await series_of(start, end, step, found)

    async def succeeded(self, user_id: int) -> set[str]:
        """Which operations this account has ever been successful with, of those that are known."""
        async with self._turn(user_id) as connection:
            return await store.succeeded(connection, user_id, rows_looked_through_max)

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                "/usage",
                "listUsage",
                "List the usage of this account by time, API key, operation and status",
                self._rows,
                query_type=UsageQuery,
                answer_type=list[UsageRow],
                answer_headers=UsageHeaders,
                errors=("overloaded",),
                description="A long list comes in pages: while there is a header Link with "
                'rel="next" (RFC 8288), it says where the next page is.',
                tag="Usage",
            ),
            Endpoint(
                "GET",
                "/usage/stats",
                "getUsageStats",
                "Add up the usage of this account",
                self._stats,
                query_type=StatsQuery,
                answer_type=UsageStats,
                errors=("overloaded",),
                tag="Usage",
            ),
        ]

    async def _rows(self, call: Call[None, UsageQuery, None]) -> Headed:
        page = await self.page(call.caller.user_id, call.query)
        headers = {} if page.next is None else {"Link": f'<{_target(page.next)}>; rel="next"'}
        return Headed(page.rows, headers)

    async def _stats(self, call: Call[None, StatsQuery, None]) -> UsageStats:
        return await self.stats(call.caller.user_id, call.query)

    def now(self) -> datetime:
        """Where a period ends for which nobody has said it."""
        return datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)

    @asynccontextmanager
    async def _turn(self, user_id: int) -> AsyncIterator[Connection]:
        """A connection, when it is one's turn: in the account's own line, then in everybody's."""
        if self._waiting >= questions_waiting_max:
            raise _too_many(f"{questions_waiting_max} questions about usage")
        line = self._lines.setdefault(user_id, _Line(asyncio.Lock()))
        if line.asked > waiting_per_account_max:
            raise _too_many(f"{waiting_per_account_max} questions about usage of this account")
        line.asked += 1
        try:
            async with AsyncExitStack() as stack:
                await self._wait(stack, line)
                yield await stack.enter_async_context(self._database.connection())
        finally:
            line.asked -= 1
            if not line.asked:
                del self._lines[user_id]

    async def _wait(self, stack: AsyncExitStack, line: _Line) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(turn_s_max):
                await stack.enter_async_context(line.turn)
                await stack.enter_async_context(self._turns)
        except TimeoutError:
            raise RetryLater(
                "overloaded", f"It was not its turn within {turn_s_max:g} s to be answered"
            ) from None
        finally:
            self._waiting -= 1


def period(
    start: datetime | None, end: datetime | None, span: Span, now: datetime
) -> tuple[datetime, datetime]:
    """The period that is meant, in UTC; FixRequest if it is none, or too long."""
    for member, time in (("from", start), ("to", end)):
        if time is not None and not earliest <= time <= latest:
            raise _wrong(member, f"is not between the years {earliest.year} and {latest.year}")
    end = now + present if end is None else end
    start = end - span.usual if start is None else start
    if start >= end:
        raise _wrong("from", f"is not before to, which is {_shown(end)}")
    if end - start > span.longest:
        hours = span.longest // timedelta(hours=1)
        raise _wrong(
            "from",
            f"is more than {hours} hours before to, which is {_shown(end)}; that is the most "
            "for these steps",
        )
    return start.astimezone(UTC), end.astimezone(UTC)


def _wrong(member: str, problem: str) -> FixRequest:
    return invalid_members([(member, problem)], "invalid_query")


def position_of(cursor: str) -> Position:
    """Where a page goes on; `invalid_cursor` if none of ours can have given the cursor."""
    match = _cursor.fullmatch(cursor)
    if match is not None:
        start = datetime.fromtimestamp(int(match["minute"]) * 60, UTC)
        key_id = int(match["key_id"])
        if earliest <= start < latest and key_id <= id_max:
            return Position(start, key_id, match["operation"], int(match["status"]))
    raise FixRequest("invalid_cursor", "The cursor is not one that GET /usage has given")


def _cursor_of(row: UsageRow) -> str:
    minute = int(row.start.timestamp()) // 60
    return f"{minute}.{row.key_id}.{row.operation}.{row.status}"


def _target(query: UsageQuery) -> str:
    """Where the answer to it is, for who has asked here."""
    members = msgspec.to_builtins(query)
    return "/usage?" + urlencode(
        {name: value for name, value in members.items() if value is not None}
    )


def _shown(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def windows(
    first: datetime, start: datetime, end: datetime, step: Step
) -> Iterator[tuple[datetime, datetime]]:
    """A period in parts that a page reads one after the other until it is full, from the step on in
    which `first` is; no step is in two of them."""
    begin = max(first, start)
    while begin < end:
        stop = min(step_beginning(begin, _aligned[step]) + _windows[step], end)
        yield begin, stop
        begin = stop


def _read(found: Sequence[Mapping[str, Any]]) -> int:
    return int(found[0]["rows_read"]) if found else 0


def _check_read(read: int, most: int) -> None:
    if read > most:
        raise FixRequest(
            "invalid_query",
            f"There are more than {most} counts in this period: ask for a shorter one (from, to)",
        )


async def shown(found: Sequence[Mapping[str, Any]]) -> list[UsageRow]:
    """Rows of the answer, with a moment for everybody else now and then."""
    rows: list[UsageRow] = []
    for start in range(0, len(found), rows_per_turn):
        rows += map(_row, found[start : start + rows_per_turn])
        await asyncio.sleep(0)
    return rows


def _too_many(what: str) -> RetryLater:
    return RetryLater("overloaded", f"{what} wait already")


def _row(found: Mapping[str, Any]) -> UsageRow:
    return UsageRow(
        found["start"],
        found["key_id"],
        found["operation"],
        found["status"],
        found["requests"],
        found["bytes_in"],
        found["bytes_out"],
        average_ms(found["latency_us"], found["requests"]),
    )


def _stats(start: datetime, end: datetime, found: Sequence[Mapping[str, Any]]) -> UsageStats:
    requests = _total(found, "requests")
    successful = _total(found, "successful")
    return UsageStats(
        start,
        end,
        requests,
        successful,
        requests - successful,
        _total(found, "bytes"),
        average_ms(_total(found, "latency_us"), requests),
        {row["operation"]: row["requests"] for row in found},
    )


def _total(found: Sequence[Mapping[str, Any]], name: str) -> int:
    return min(sum(int(row[name]) for row in found), count_max)


def average_ms(latency_us: int, requests: int) -> float:
    return round(latency_us / requests / 1000, 3) if requests else 0.0
