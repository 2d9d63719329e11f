"""How much accounts had stored: who is measured, hours without a row, and what is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from services.core.usage_report import UsageReport
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database
from services.usermanager import stored_history
from services.usermanager.stored_history import (
    Amount,
    Sample,
    StoredHistory,
    filled,
    hours_shown,
    measured_per_period_max,
)
from tests.integration.usage_desk import rollup

noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
_past_sql = """
    INSERT INTO stored_history
    VALUES ($1, date_trunc('hour', now(), 'UTC') - make_interval(hours => $2), $3, $3)
"""


class Gateway:
    """Tells what is stored, or that it is away."""

    def __init__(self) -> None:
        self.stored: dict[int, Amount] = {}
        self.asked: list[int] = []

    async def measure(self, user_id: int) -> Amount | None:
        self.asked.append(user_id)
        return self.stored.get(user_id)


class Desk:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.gateway = Gateway()
        self.history = StoredHistory(database, self.gateway.measure)

    def used(self, *user_ids: int, operation: str = "put", status: int = 200) -> None:
        rows = [rollup(user_id=one, operation=operation, status=status) for one in user_ids]
        self.history.note(UsageReport("gateway-1", 1, rows))

    async def was(self, user_id: int, hours_ago: int, keys: int) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(_past_sql, user_id, hours_ago, keys)


@pytest.fixture
async def desk(database_address: DatabaseAddress) -> AsyncIterator[Desk]:
    async with Database(database_address) as database:
        yield Desk(database)


async def test_who_changes_something_is_measured_and_nobody_else(desk: Desk) -> None:
    desk.gateway.stored = {number: Amount(number, 100) for number in range(1, 6)}
    desk.used(1, 1)
    desk.used(2, operation="get")
    desk.used(3, status=503)
    desk.used(4, operation="delete_prefix")
    await desk.history.measure_due()
    await desk.history.measure_due()
    assert desk.gateway.asked == [1, 4]
    assert await desk.history.hours(1) == [Amount(1, 100)]
    assert await desk.history.hours(2) == []


async def test_an_account_that_cannot_be_measured_is_in_nobodys_way(desk: Desk) -> None:
    desk.gateway.stored = {2: Amount(2, 2)}
    desk.used(1, 2)
    await desk.history.measure_due()
    desk.gateway.stored[1] = Amount(1, 1)
    await desk.history.measure_due()
    assert desk.gateway.asked == [1, 2, 1]
    assert await desk.history.hours(1) == [Amount(1, 1)]


async def test_while_the_gateway_is_away_it_is_not_asked_for_everybody(desk: Desk) -> None:
    desk.used(*range(100))
    await desk.history.measure_due()
    assert len(desk.gateway.asked) == 3


async def test_a_period_measures_so_many_and_the_next_one_the_others(desk: Desk) -> None:
    everybody = range(measured_per_period_max + 5)
    desk.gateway.stored = dict.fromkeys(everybody, Amount(1, 1))
    desk.used(*everybody)
    await desk.history.measure_due()
    assert len(desk.gateway.asked) == measured_per_period_max
    await desk.history.measure_due()
    assert sorted(desk.gateway.asked) == list(everybody)


async def test_there_is_no_room_for_any_number_of_accounts(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_history, "due_max", 10)
    desk.used(*range(25))
    desk.used(*range(10))
    assert desk.history.dropped == 15


async def test_within_an_hour_the_last_figure_counts_and_old_hours_are_forgotten(
    desk: Desk,
) -> None:
    await desk.was(1, 60, 3)
    await desk.was(1, 2, 5)
    for keys in (7, 8):
        await desk.history.record(1, Amount(keys, 1 << 62))
    hours = await desk.history.hours(1)
    assert [amount.keys for amount in hours] == [3] * (hours_shown - 3) + [5, 5, 8]
    await desk.history.tidy()
    assert [amount.keys for amount in await desk.history.hours(1)] == [5, 5, 8]


def test_an_hour_without_a_sample_is_like_the_one_before() -> None:
    def sample(hours_ago: int, keys: int) -> Sample:
        return Sample(noon - timedelta(hours=hours_ago), Amount(keys, 0))

    def keys_of(*samples: Sample) -> list[int]:
        return [amount.keys for amount in filled(samples, noon)]

    assert keys_of(sample(0, 4)) == [4]
    assert keys_of(sample(3, 1), sample(1, 2)) == [1, 1, 2, 2]
    assert keys_of(sample(30, 1), sample(25, 2), sample(1, 3)) == [2] * 22 + [3, 3]
