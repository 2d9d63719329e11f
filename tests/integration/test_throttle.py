"""Throttles on a real database: their arithmetic over time, and many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.core.errors import FixRequest, RetryLater, UnknownOutcome
from services.runtime.client_address import network_of, site_of
from services.runtime.clock import FakeClock, Timeline
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Connection, Database, Isolation
from services.usermanager.throttle import (
    Limit,
    Throttle,
    from_address,
    skew,
)
from tests.waiting import wait_until

limit: Final = Limit("tested", burst=5, every_s=10)


@dataclass
class World:
    database: Database
    throttle: Throttle
    timeline: Timeline
    clock: FakeClock

    async def taken(self, attempts: int, value: str = "ada", of: Limit = limit) -> int:
        """How many of so many attempts, one after the other, are let through."""
        return sum([await self.attempt(value, of) is None for _ in range(attempts)])

    async def attempt(self, value: str = "ada", of: Limit = limit) -> int | None:
        """None if it is let through, else in how many seconds the next will be."""
        try:
            await self.throttle.take(of, value)
        except RetryLater as error:
            return error.retry_after_s if error.code == "rate_limited" else -1
        return None

    async def rows(self) -> int:
        async with self.database.connection() as connection:
            return int(await connection.fetchval("SELECT count(*) FROM throttles"))


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[World]:
    timeline = Timeline()
    clock = FakeClock(timeline)
    async with Database(database_address) as database:
        yield World(database, Throttle(database, clock), timeline, clock)


async def test_a_burst_is_let_through_and_then_one_in_each_interval(world: World) -> None:
    assert await world.taken(20) == 5
    assert await world.attempt() == 10
    world.timeline.advance(3.5)
    assert await world.attempt() == 7
    world.timeline.advance(6.375)
    assert await world.attempt() == 1
    world.timeline.advance(0.125)
    assert await world.taken(3) == 1
    world.timeline.advance(25)
    assert await world.taken(9) == 2
    assert world.throttle.refused > 0


async def test_what_is_refused_costs_nothing(world: World) -> None:
    assert await world.taken(50) == 5
    world.timeline.advance(10)
    assert await world.taken(50) == 1


async def test_a_subject_that_has_rested_has_its_whole_burst_and_no_more(world: World) -> None:
    assert await world.taken(5) == 5
    world.timeline.advance(50)
    assert await world.taken(9) == 5
    world.timeline.advance(1_000_000)
    assert await world.taken(9) == 5


async def test_subjects_and_limits_are_apart(world: World) -> None:
    assert await world.taken(9) == 5
    assert await world.taken(9, "eve") == 5
    assert await world.taken(9, of=Limit("another", 3, 10)) == 3
    assert await world.taken(9, "a" * 10**6) == 5
    assert await world.taken(9, "'; DELETE FROM throttles; --\x00\ud800") == 5
    assert await world.rows() == 5


async def test_of_many_at_once_exactly_the_burst_is_let_through(world: World) -> None:
    for _ in range(3):
        ends = await asyncio.gather(*(world.attempt() for _ in range(40)))
        assert ends.count(None) == 5
        assert all(wait is None or 1 <= wait <= 10 for wait in ends)
        world.timeline.advance(50)


async def test_two_user_managers_share_what_there_is(
    world: World, database_address: DatabaseAddress
) -> None:
    async with Database(database_address) as database:
        other = World(database, Throttle(database, world.clock), world.timeline, world.clock)
        ends = await asyncio.gather(*((world, other)[n % 2].attempt() for n in range(20)))
    assert ends.count(None) == 5


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    burst=st.integers(1, 6),
    every_s=st.integers(1, 20),
    waits_s=st.lists(st.integers(0, 30), min_size=8, max_size=25),
)
async def test_what_is_let_through_is_what_a_bucket_of_tokens_would(
    world: World, burst: int, every_s: int, waits_s: list[int]
) -> None:
    """The dumb version: units that come back one by one, an interval after the first is gone."""
    of = Limit(f"{burst} {every_s} {waits_s}", burst, every_s)
    left, owed_s = burst, 0.0
    for wait_s in waits_s:
        world.timeline.advance(wait_s)
        owed_s = max(0.0, owed_s - wait_s)
        left = burst - -(-int(owed_s) // every_s)
        assert (await world.attempt(of=of) is None) == (left >= 1)
        if left >= 1:
            owed_s += every_s


async def test_success_costs_nothing_and_failure_does(world: World) -> None:
    for _ in range(20):
        async with world.throttle.failures((limit, "ada")):
            pass
    for _ in range(5):
        with pytest.raises(FixRequest):
            async with world.throttle.failures((limit, "ada")):
                raise FixRequest("invalid_credentials", "wrong")
    with pytest.raises(RetryLater) as refused:
        async with world.throttle.failures((limit, "ada")):
            pytest.fail("it is not tried")
    assert refused.value.code == "rate_limited"


async def test_what_could_not_be_tried_costs_nothing(world: World) -> None:
    for _ in range(20):
        with pytest.raises(RetryLater, match="busy"):
            async with world.throttle.failures((limit, "ada")):
                raise RetryLater("overloaded", "busy")
    assert await world.taken(9) == 5


async def test_what_is_broken_off_has_its_price(world: World) -> None:
    inside = 0

    async def attempt() -> None:
        nonlocal inside
        async with world.throttle.failures((limit, "ada")):
            inside += 1
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(attempt()) for _ in range(3)]
    await wait_until(lambda: inside == 3, "all are being tried")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await world.taken(9) == 2


async def test_attempts_that_run_at_once_are_no_way_around_the_limit(world: World) -> None:
    tried = 0
    meeting = asyncio.Barrier(5)

    async def guess() -> None:
        nonlocal tried
        async with world.throttle.failures((limit, "ada")):
            tried += 1
            await meeting.wait()
            raise FixRequest("invalid_credentials", "wrong")

    ends = await asyncio.gather(*(guess() for _ in range(30)), return_exceptions=True)
    assert tried == 5
    assert sum(isinstance(end, RetryLater) for end in ends) == 25


async def test_a_clock_that_was_ahead_locks_nobody_out(world: World) -> None:
    world.clock.skew_ms = 86_400_000
    assert await world.taken(9) == 5
    world.clock.skew_ms = 0
    assert await world.taken(9) == 1, "it counts as a full burst of now, but for the first"
    assert await world.attempt() == 10
    world.timeline.advance(50)
    assert await world.taken(9) == 5


async def test_clocks_that_differ_a_little_give_nothing_away(world: World) -> None:
    world.clock.skew_ms = round(skew.total_seconds() * 1000)
    assert await world.taken(9) == 5
    world.clock.skew_ms = 0
    assert await world.taken(9) == 0


async def test_rows_that_mean_nothing_are_removed_and_others_are_not(world: World) -> None:
    await world.taken(9, "ada")
    await world.taken(1, "eve")
    world.timeline.advance(20)
    await world.throttle.tidy()
    assert await world.rows() == 1
    assert await world.taken(9, "ada") == 2
    assert await world.taken(9, "eve") == 5
    world.timeline.advance(51)
    await world.throttle.tidy()
    assert await world.rows() == 0


async def test_no_row_tells_whom_it_is_about(world: World) -> None:
    await world.taken(1, "ada@example.com")
    async with world.database.connection() as connection:
        text = await connection.fetchval("SELECT throttles::text FROM throttles")
    assert "ada" not in text


async def test_units_of_several_subjects_are_taken_together_or_not_at_all(world: World) -> None:
    other = Limit("another", 3, 10)
    for _ in range(3):
        await world.throttle.take_all((limit, "ada"), (other, "ada"))
    for _ in range(9):
        with pytest.raises(RetryLater, match="3 at once"):
            await world.throttle.take_all((limit, "ada"), (other, "ada"))
    assert await world.taken(9) == 2


async def test_subjects_in_any_order_at_once_do_not_wait_for_each_other(world: World) -> None:
    large = Limit("large", 1_000, 1)
    subjects = [(large, name) for name in ("ada", "eve", "bob", "joe")]
    await asyncio.gather(
        *(world.throttle.take_all(*subjects[n % 4 :], *subjects[: n % 4]) for n in range(80))
    )
    assert [await world.taken(1, name, large) for _, name in subjects] == [1] * 4


async def test_a_try_costs_its_unit_whatever_comes_of_it(world: World) -> None:
    tries = Limit("tries", 4, 10)
    for _ in range(3):
        async with world.throttle.failures((limit, "ada"), tries=[(tries, "ada")]):
            pass
    for _ in range(9):
        with pytest.raises(RetryLater, match="busy"):
            async with world.throttle.failures((limit, "ada"), tries=[(tries, "ada")]):
                raise RetryLater("overloaded", "busy")
    assert await world.taken(9, of=tries) == 1
    assert await world.taken(9) == 5


class ForgetfulDatabase(Database):
    """Commits, and loses the answer."""

    loses = False

    @asynccontextmanager
    async def transaction(
        self, isolation: Isolation = "read_committed"
    ) -> AsyncIterator[Connection]:
        async with super().transaction(isolation) as connection:
            yield connection
        if self.loses:
            raise UnknownOutcome("PostgreSQL was lost while it committed")


async def test_what_has_not_begun_may_be_sent_again_whatever_was_counted(
    database_address: DatabaseAddress,
) -> None:
    async with ForgetfulDatabase(database_address) as database:
        throttle = Throttle(database, FakeClock(Timeline()))
        with pytest.raises(RetryLater) as giving_back:
            async with throttle.failures((limit, "ada")):
                database.loses = True
        assert giving_back.value.code == "database_unavailable"
        with pytest.raises(RetryLater) as taking:
            await throttle.take(limit, "ada")
        assert taking.value.code == "database_unavailable"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_an_address_of_ipv6_counts_as_the_network_that_one_customer_has(
    address: str, network: str
) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("192.0.3.0", "192.0.3.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("2001:db8:1:ffff::", "2001:db8:1::/48"),
        ("2001:db8:2::1", "2001:db8:2::/48"),
        ("unknown", "unknown"),
    ],
)
def test_a_site_is_all_that_one_customer_may_easily_have(address: str, site: str) -> None:
    assert site_of(address) == site


def test_an_address_has_a_second_subject_only_where_a_customer_has_many_networks() -> None:
    far = Limit("far", 9, 9)
    assert from_address("192.0.2.7", limit, far) == ((limit, "192.0.2.7"),)
    near_one, far_one = from_address("2001:db8:1:2::1", limit, far)
    assert (near_one, far_one) == ((limit, "2001:db8:1:2::/64"), (far, "2001:db8:1::/48"))
