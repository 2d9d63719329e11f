"""What became of API keys, told to gateways in its order and within a second.

Whoever changes what a key may do adds an event in the same transaction. Ids are taken from one
row that is held until the commit, so they become visible in their order and without a gap:
whoever has seen an id has seen all below it, and can tell when the next ones are no longer kept.
The price is that transactions with an event commit one after the other, some hundreds a second, and
wait for one that stands still. So each waits for no more than a moment, and few at once: nothing
else does for them.

A gateway asks for what came after the last id it has seen, and waits for the answer. Other user
managers add events too, so while anybody waits one statement looks for all of them, at an interval
and right after an event of this process. When PostgreSQL cannot be asked, all who wait are told
so: silence would look like no news.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from services.core.errors import ClientError, RetryLater
from services.core.key_checks import KeyEvent, KeyEventPage, KeyEventsQuery
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.metrics import Metrics
from services.runtime.postgres import Connection, Database
from services.runtime.shares import ShareLimit, Shares

# With what it takes to look and to answer, a fifth of the second in which a revocation is known.
look_s: Final = 0.2
# Gateways and keygens, of which there are tens. Each that waits holds a connection and a task.
waiters_max: Final = 1_000
# About 60 KB as JSON. Who is further behind asks again at once.
page_events_max: Final = 1_000
# A gateway that was away for longer has nothing left in its cache that it could rely on.
kept_hours: Final = 24
tidy_batch: Final = 1_000
# One turn of upkeep removes no more than this many batches, and the next turn goes on.
tidy_batches_max: Final = 100

# Of the connections of this process (postgres.connections_max_default) the smaller part. More
# would commit no faster: they come one after the other.
changes: Final = ShareLimit(4, 100, 3.0, "overloaded", "changes of API keys and accounts")
# Those before it take milliseconds each. Who waits for longer waits for one that stands still.
turn_ms_max: Final = 1_000

_HURRY: Final = f"SET LOCAL lock_timeout = {turn_ms_max}"
# clock_timestamp, because now() is when the transaction began, and would not ascend with ids.
_ADD: Final = """
    WITH counter AS (UPDATE key_event_ids SET last = last + 1 RETURNING last)
    INSERT INTO key_events (id, user_id, key_id, created_at)
    SELECT last, $1, $2, clock_timestamp() FROM counter
    RETURNING id
"""
_LAST: Final = "SELECT last FROM key_event_ids"
# One statement, so that where events stand and which there are is of one moment.
_AFTER: Final = """
    SELECT counter.last, event.id, event.user_id, event.key_id
    FROM key_event_ids AS counter
    LEFT JOIN LATERAL (
        SELECT id, user_id, key_id FROM key_events WHERE id > $1 ORDER BY id LIMIT $2
    ) AS event ON true
    ORDER BY event.id
"""
# Only a run of the oldest, never one from among younger ones: a gap must show as such.
_FORGET: Final = """
    WITH oldest AS (SELECT id, created_at FROM key_events ORDER BY id LIMIT $2),
    run AS (
        SELECT id, bool_and(created_at < now() - make_interval(hours => $1)) OVER (ORDER BY id)
            AS is_old
        FROM oldest
    )
    DELETE FROM key_events WHERE id <= (SELECT max(id) FROM run WHERE is_old)
"""


@dataclass(slots=True)
class KeyEventCounters:
    """Since the start, for `/metrics`."""

    polls: int = 0
    events_told: int = 0
    resets: int = 0
    polls_refused: int = 0
    looks: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    after: int
    answer: asyncio.Future[KeyEventPage] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class KeyEvents:
    """The events of all user managers. `stopped` returns when this process is to end."""

    def __init__(self, database: Database, stopped: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._stopped = stopped
        self._waiters: set[_Waiter] = set()
        self._somebody_waits = asyncio.Event()
        self._news = asyncio.Event()
        self._closed = False
        self._changes = Shares(changes)
        self.counters = KeyEventCounters()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def add_to(self, metrics: Metrics) -> None:
        metrics.add_counters("key_events", "of the events of API keys", self.counters)
        metrics.add("key_event_waiters", "gauge", "Polls that wait", lambda: self.waiting)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction to `add` events in, after whose commit this process looks for them."""
        async with self._changes.of(self), self._database.transaction() as connection:
            yield connection
        self.wake()

    async def add(self, connection: Connection, user_id: int, key_id: int | None) -> int:
        """Have gateways look up this API key again, or with None all of the account.

        Takes effect with the `transaction`. To be called last in it: until its commit everybody
        else who adds an event waits, and whoever waited for a row after this could wait for
        somebody who waits here. Returns the event's id.
        """
        await connection.execute(_HURRY)
        try:
            return int(await connection.fetchval(_ADD, user_id, key_id))
        except asyncpg.LockNotAvailableError as error:
            raise RetryLater(
                "database_unavailable", "Another change of API keys has not ended in time"
            ) from error

    def wake(self) -> None:
        """Look for new events now: one of this process was committed."""
        self._news.set()

    async def last(self) -> int:
        """The greatest id so far; whatever is read from the database from now on shows what
        events up to it have told of."""
        async with self._database.connection() as connection:
            return int(await connection.fetchval(_LAST))

    async def after(self, position: int, wait_s: float) -> KeyEventPage:
        """What came after this id, as soon as there is anything, or nothing when that long is
        over or this process ends."""
        self.counters.polls += 1
        page = await self._page(position)
        if page is None:
            page = await self._wait(position, wait_s)
        self.counters.events_told += len(page.events)
        self.counters.resets += page.reset
        return page

    async def run(self) -> None:
        """Answer those who wait, until this process is to end; then all at once."""
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(self._look_again_and_again())
            await self._stopped()
            looking.cancel()
        self._closed = True
        for waiter in list(self._waiters):
            self._answer(waiter, _nothing_new(waiter.after))

    async def tidy(self) -> None:
        """Forget what is older than gateways may ask for."""
        for _ in range(tidy_batches_max):
            async with self._database.transaction() as connection:
                done = await connection.execute(_FORGET, kept_hours, tidy_batch)
            if int(done.split()[-1]) < tidy_batch:
                return

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                "/key-events",
                "pollKeyEvents",
                "Wait for API keys that have to be looked up again",
                self._poll,
                access=Access.INTERNAL,
                query_type=KeyEventsQuery,
                waits=True,
                answer_type=KeyEventPage,
                errors=("overloaded", "database_unavailable"),
                tag="Internal",
            )
        ]

    async def _poll(self, call: Call[None, KeyEventsQuery, None]) -> KeyEventPage:
        if call.query.after is None:
            return _nothing_new(await self.last())
        return await self.after(call.query.after, call.query.wait_s)

    async def _wait(self, position: int, wait_s: float) -> KeyEventPage:
        if wait_s <= 0 or self._closed:
            return _nothing_new(position)
        if len(self._waiters) >= waiters_max:
            self.counters.polls_refused += 1
            raise RetryLater("overloaded", f"{waiters_max} polls wait for events already")
        waiter = _Waiter(position)
        self._waiters.add(waiter)
        self._somebody_waits.set()
        try:
            async with asyncio.timeout(wait_s):
                return await waiter.answer
        except TimeoutError:
            return _nothing_new(position)
        finally:
            self._waiters.discard(waiter)

    async def _look_again_and_again(self) -> None:
        while True:
            if not self._waiters:
                self._somebody_waits.clear()
                await self._somebody_waits.wait()
            # Before looking: what is committed meanwhile is looked for once more.
            self._news.clear()
            await self._look()
            try:
                async with asyncio.timeout(look_s):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        """Answer all for whom there is something. Who is not of the first page, waits on."""
        waiters = list(self._waiters)
        if not waiters:
            return
        self.counters.looks += 1
        try:
            rows = await self._rows_after(min(waiter.after for waiter in waiters))
        except Exception as error:
            for waiter in waiters:
                self._refuse(waiter)
            if not isinstance(error, ClientError):
                raise
            return
        for waiter in waiters:
            page = _page_of(rows, waiter.after)
            if page is not None:
                self._answer(waiter, page)

    def _answer(self, waiter: _Waiter, page: KeyEventPage) -> None:
        self._waiters.discard(waiter)
        if not waiter.answer.done():
            waiter.answer.set_result(page)

    def _refuse(self, waiter: _Waiter) -> None:
        self._waiters.discard(waiter)
        self.counters.polls_refused += 1
        if not waiter.answer.done():
            detail = "The events of API keys cannot be read now"
            # One of its own for each: an exception that several raise grows a traceback of all.
            waiter.answer.set_exception(RetryLater("database_unavailable", detail))

    async def _page(self, position: int) -> KeyEventPage | None:
        return _page_of(await self._rows_after(position), position)

    async def _rows_after(self, position: int) -> Sequence[Any]:
        async with self._database.connection() as connection:
            rows: Sequence[Any] = await connection.fetch(_AFTER, position, page_events_max)
            return rows


def _page_of(rows: Sequence[Any], position: int) -> KeyEventPage | None:
    """What to tell somebody who has seen all up to this id; None if there is nothing.

    The rows are those after this id or a lower one, and never none: each has the last id.
    """
    last = int(rows[0]["last"])
    if position == last:
        return None
    if position > last:
        # Of another history: the database was restored from a backup, or is another one.
        return KeyEventPage([], last, reset=True)
    events = [
        KeyEvent(row["id"], row["user_id"], row["key_id"])
        for row in rows
        if row["id"] is not None and row["id"] > position
    ]
    if not events and len(rows) == page_events_max:
        # All of these rows are for somebody further behind.
        return None
    if not events or events[0].id != position + 1:
        return KeyEventPage([], last, reset=True)
    return KeyEventPage(events, events[-1].id, reset=False)


def _nothing_new(position: int) -> KeyEventPage:
    return KeyEventPage([], position, reset=False)
