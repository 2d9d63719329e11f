"""The events of API keys: none is missed, in their order, soon, and never quietly lost."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from services.core.errors import RetryLater
from services.core.key_checks import KeyEvent, KeyEventPage
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.migrations import migrate
from services.usermanager import key_events
from tests.integration.key_desk import KeyDesk, key_desk
from tests.waiting import wait_until

# What gateways promise of a revoked key, and what every wait here is measured against.
told_s_max = 1.0


@pytest.fixture
async def desk(database_address: DatabaseAddress) -> AsyncIterator[KeyDesk]:
    async with key_desk(database_address) as desk:
        yield desk


async def add(desk: KeyDesk, user_id: int, key_id: int | None = None) -> int:
    async with desk.database.transaction() as connection:
        return await desk.events.add(connection, user_id, key_id)


def interrupt(*, when: bool) -> None:
    if when:
        raise InterruptedError


async def is_waiting(desk: KeyDesk, count: int = 1) -> None:
    await wait_until(lambda: desk.events.waiting == count, f"{count} polls wait")


def waiting_poll(desk: KeyDesk, after: int, wait_s: float = 30) -> asyncio.Task[KeyEventPage]:
    return asyncio.create_task(desk.events.after(after, wait_s))


async def test_events_are_told_in_their_order_and_from_where_one_has_been(desk: KeyDesk) -> None:
    assert await desk.events.last() == 0
    for user_id, key_id in ((7, 70), (8, None), (7, 71)):
        await add(desk, user_id, key_id)
    page = await desk.events.after(0, 0)
    assert page == KeyEventPage(
        [KeyEvent(1, 7, 70), KeyEvent(2, 8, None), KeyEvent(3, 7, 71)], 3, reset=False
    )
    assert (await desk.events.after(2, 0)).events == [KeyEvent(3, 7, 71)]
    assert await desk.events.after(3, 0) == KeyEventPage([], 3, reset=False)


async def test_a_poll_over_http_is_signed_and_says_where_events_stand(desk: KeyDesk) -> None:
    assert (await desk.client.get("/key-events")).status_code == 401
    assert (await desk.as_user(1, "GET", "/key-events")).status_code == 401
    first = await desk.as_gateway("GET", "/key-events")
    assert first.json() == {"events": [], "last": 0, "reset": False}
    await add(desk, 7, 70)
    page = await desk.as_gateway("GET", "/key-events?after=0&wait_s=25")
    assert page.json() == {
        "events": [{"id": 1, "user_id": 7, "key_id": 70}],
        "last": 1,
        "reset": False,
    }
    nothing = await desk.as_gateway("GET", "/key-events?after=1&wait_s=0")
    assert nothing.json() == {"events": [], "last": 1, "reset": False}
    for query in (
        "after=-1",
        "after=x",
        f"after={1 << 63}",
        "wait_s=61",
        "wait_s=-1",
        "wait_s=1.5",
    ):
        refused = await desk.as_gateway("GET", f"/key-events?{query}")
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_query"), query


async def test_a_poller_never_misses_an_event_however_transactions_end(desk: KeyDesk) -> None:
    rng = random.Random(11)
    committed: list[tuple[int, int]] = []
    numbers = itertools.count(1)

    async def act() -> None:
        """One transaction with some events, which takes its time, and maybe comes to nothing."""
        keys = [next(numbers) for _ in range(rng.randint(1, 3))]
        before_s, after_s, fails = rng.random() / 50, rng.random() / 50, rng.random() < 0.3
        added = []
        with suppress(InterruptedError):
            async with desk.database.transaction() as connection:
                await asyncio.sleep(before_s)
                added += [(await desk.events.add(connection, 1, key), key) for key in keys]
                await asyncio.sleep(after_s)
                interrupt(when=fails)
            committed.extend(added)

    async def actor() -> None:
        for _ in range(12):
            await act()

    async def poller(wait_s: float) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        last = 0
        while not (over.is_set() and last == await desk.events.last()):
            page = await desk.events.after(last, wait_s)
            assert not page.reset
            assert page.last >= last
            seen += [(event.id, event.key_id or 0) for event in page.events]
            last = page.last
        return seen

    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        pollers = [tasks.create_task(poller(wait_s)) for wait_s in (0, 0.3, 0.3)]
        async with asyncio.TaskGroup() as actors:
            for _ in range(6):
                actors.create_task(actor())
        over.set()
    for seen in (task.result() for task in pollers):
        assert seen == sorted(committed)
        assert [event_id for event_id, _ in seen] == list(range(1, len(seen) + 1))
    assert len(committed) > 30


async def test_an_event_of_another_user_manager_wakes_a_poll_within_a_second(
    desk: KeyDesk, database_address: DatabaseAddress
) -> None:
    loop = asyncio.get_running_loop()
    async with key_desk(database_address) as other:
        for number in range(1, 6):
            polls = [waiting_poll(desk, number - 1) for _ in range(3)]
            await is_waiting(desk, 3)
            await add(other, 7, number)
            began_s = loop.time()
            for page in await asyncio.gather(*polls):
                assert page.events == [KeyEvent(number, 7, number)]
            assert loop.time() - began_s < told_s_max


async def test_a_revoked_key_is_seen_by_the_event_stream_within_a_second(
    desk: KeyDesk, database_address: DatabaseAddress
) -> None:
    loop = asyncio.get_running_loop()
    ada = await desk.account()
    made = await desk.make(ada)
    async with key_desk(database_address) as other:
        for revoking in (desk, other):
            last = await desk.events.last()
            key = await desk.make(ada)
            poll = asyncio.create_task(
                desk.as_gateway("GET", f"/key-events?after={last}&wait_s=25")
            )
            await is_waiting(desk)
            assert (await desk.validate(key.key)).event_id == last
            began_s = loop.time()
            await revoking.as_user(ada, "DELETE", f"/apikeys/{key.id}")
            page = (await poll).json()
            assert loop.time() - began_s < told_s_max
            assert [event["key_id"] for event in page["events"]] == [key.id]
            # Whoever heard of it and asks again is told of the key as it is now.
            assert not await desk.is_good(key.key)
            assert (await desk.validate(made.key)).event_id == page["last"]


async def test_a_poll_that_hears_nothing_ends_when_its_time_is_over(desk: KeyDesk) -> None:
    await add(desk, 7)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await desk.events.after(1, 0.3) == KeyEventPage([], 1, reset=False)
    assert loop.time() - began_s >= 0.29
    assert desk.events.waiting == 0
    looks = desk.events.counters.looks
    await asyncio.sleep(3 * key_events.look_s)
    # Nobody waits, so nobody looks.
    assert desk.events.counters.looks <= looks + 1


async def test_who_waits_is_bounded_and_one_that_leaves_makes_room(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_events, "waiters_max", 5)
    polls = [waiting_poll(desk, 0) for _ in range(5)]
    await is_waiting(desk, 5)
    with pytest.raises(RetryLater, match="overloaded"):
        await desk.events.after(0, 30)
    polls[0].cancel()
    await is_waiting(desk, 4)
    polls[0] = waiting_poll(desk, 0)
    await is_waiting(desk, 5)
    # What is there already is told to anybody.
    await add(desk, 7)
    assert (await desk.events.after(0, 30)).last == 1
    assert [page.last for page in await asyncio.gather(*polls)] == [1] * 5


async def test_a_thousand_polls_are_answered_by_few_statements(desk: KeyDesk) -> None:
    polls = [waiting_poll(desk, 0) for _ in range(1_000)]
    await is_waiting(desk, 1_000)
    looks = desk.events.counters.looks
    await add(desk, 7)
    desk.events.wake()
    pages = await asyncio.gather(*polls)
    assert {page.last for page in pages} == {1}
    assert desk.events.counters.looks - looks < 10


async def test_the_end_of_the_process_answers_all_who_wait_at_once(desk: KeyDesk) -> None:
    await add(desk, 7)
    polls = [waiting_poll(desk, 1) for _ in range(20)]
    await is_waiting(desk, 20)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    desk.stopped.set()
    for page in await asyncio.gather(*polls):
        assert page == KeyEventPage([], 1, reset=False)
    # One that was on its way waits for nothing either, and misses nothing that is there.
    assert await desk.events.after(1, 30) == KeyEventPage([], 1, reset=False)
    assert (await desk.events.after(0, 30)).last == 1
    assert loop.time() - began_s < told_s_max


async def test_pages_are_bounded_and_go_on_where_they_end(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_events, "page_events_max", 4)
    poll = waiting_poll(desk, 0)
    await is_waiting(desk)
    async with desk.database.transaction() as connection:
        for key_id in range(1, 11):
            await desk.events.add(connection, 7, key_id)
    pages = [await poll]
    while pages[-1].last < 10:
        pages.append(await desk.events.after(pages[-1].last, 30))
    assert [len(page.events) for page in pages] == [4, 4, 2]
    assert [event.id for page in pages for event in page.events] == list(range(1, 11))
    assert not any(page.reset for page in pages)


async def test_who_is_ahead_of_all_events_is_told_to_begin_again(desk: KeyDesk) -> None:
    await add(desk, 7)
    assert await desk.events.after(5, 30) == KeyEventPage([], 1, reset=True)


async def test_who_has_missed_forgotten_events_is_told_to_begin_again(desk: KeyDesk) -> None:
    for _ in range(6):
        await add(desk, 7)
    await desk.execute("UPDATE key_events SET created_at = now() - interval '25 h' WHERE id <= 3")
    await desk.events.tidy()
    assert [row["id"] for row in await desk.read("SELECT id FROM key_events ORDER BY id")] == [
        4,
        5,
        6,
    ]
    for position in (0, 2):
        assert await desk.events.after(position, 30) == KeyEventPage([], 6, reset=True)
    assert [event.id for event in (await desk.events.after(3, 30)).events] == [4, 5, 6]
    await desk.execute("UPDATE key_events SET created_at = now() - interval '25 h'")
    await desk.events.tidy()
    assert await desk.events.after(5, 30) == KeyEventPage([], 6, reset=True)
    assert await desk.events.after(6, 0) == KeyEventPage([], 6, reset=False)
    # The next one follows on what was forgotten.
    assert await add(desk, 7) == 7
    assert [event.id for event in (await desk.events.after(6, 30)).events] == [7]


async def test_tidying_leaves_no_gap_that_could_be_taken_for_none(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_events, "tidy_batch", 2)
    for _ in range(8):
        await add(desk, 7)
    # The database's clock was ahead for a while: an older event looks younger than those after it.
    await desk.execute(
        "UPDATE key_events SET created_at = now() - interval '25 h' WHERE id IN (1, 2, 3, 5, 6)"
    )
    await desk.events.tidy()
    kept = [row["id"] for row in await desk.read("SELECT id FROM key_events ORDER BY id")]
    assert kept == [4, 5, 6, 7, 8]


async def test_a_rolled_back_event_leaves_no_gap(desk: KeyDesk) -> None:
    await add(desk, 7)
    with suppress(InterruptedError):
        async with desk.database.transaction() as connection:
            assert await desk.events.add(connection, 7, 1) == 2
            interrupt(when=True)
    assert await add(desk, 7, 2) == 2
    assert (await desk.events.after(0, 30)).last == 2


@asynccontextmanager
async def standing_still(address: DatabaseAddress) -> AsyncIterator[None]:
    """Another user manager that was stopped right when it had taken the id of an event."""
    connection = await asyncpg.connect(**address.asyncpg())
    try:
        await connection.execute("BEGIN; UPDATE key_event_ids SET last = last + 1")
        yield
    finally:
        await connection.close()


async def test_one_that_stands_still_with_an_event_takes_nobody_elses_connections(
    desk: KeyDesk, database_address: DatabaseAddress
) -> None:
    ada = await desk.account()
    made = [await desk.make(ada) for _ in range(desk.database.connections_max + 4)]
    async with standing_still(database_address):
        revoking = [asyncio.create_task(desk.revoke(ada, key.id)) for key in made]
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while (await desk.read(blocked))[0]["count"] < key_events.changes.at_once:
            continue
        # There is always one for who asks, and nobody waits for it.
        for _ in range(20):
            assert await desk.is_good(made[0].key)
            assert desk.database.waiting == 0
        # Nothing was changed, and each is told so.
        for revoked in await asyncio.gather(*revoking, return_exceptions=True):
            assert isinstance(revoked, RetryLater)
            assert revoked.code in ("database_unavailable", "overloaded")
    assert all([await desk.is_good(key.key) for key in made])
    await asyncio.gather(*(desk.revoke(ada, key.id) for key in made))
    assert [event.id for event in (await desk.events.after(0, 0)).events] == list(
        range(1, len(made) + 1)
    )


async def test_while_postgresql_restarts_polls_are_told_so_and_then_go_on(tmp_path: Path) -> None:
    password = "made up for this test"

    def server() -> EmbeddedPostgres:
        return EmbeddedPostgres(tmp_path / "pg", password, durable=False, log=lambda _: None)

    running = server()
    await running.__aenter__()
    await asyncio.to_thread(migrate, running.address)
    async with key_desk(running.address) as desk:
        polls = [waiting_poll(desk, 0) for _ in range(3)]
        await is_waiting(desk, 3)
        await running.__aexit__(None, None, None)
        for poll in polls:
            with pytest.raises(RetryLater, match="database_unavailable"):
                await poll
        with pytest.raises(RetryLater, match="database_unavailable"):
            await desk.events.after(0, 30)
        async with server():
            again = waiting_poll(desk, 0)
            await is_waiting(desk)
            await add(desk, 7)
            assert (await again).events == [KeyEvent(1, 7, None)]
