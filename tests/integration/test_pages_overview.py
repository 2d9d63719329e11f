"""The overview: figures that are kept for a moment, and what it says when there is too much."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from services.core.errors import RetryLater
from services.core.id_requests import KeyUse
from services.core.usage_report import Rollup, UsageReport, no_key_id
from services.runtime.database_url import DatabaseAddress
from services.usermanager.pages.console_ids import Quota
from services.usermanager.pages.console_overview import (
    Figures,
    kept_s,
    rows_read_max,
    steps_of,
)
from services.usermanager.pages.stored import Stored
from services.usermanager.partitions import Partitions
from services.usermanager.usage import Usage
from tests.integration.pages_world import Browser, PagesWorld, pages_world

path = "/console/figures"
# As many keys in each of a thousand minutes as make it one row too many.
_too_many_sql = """
    INSERT INTO usage_rollups (minute, user_id, key_id, operation, status,
        requests, bytes_in, bytes_out, latency_us)
    SELECT date_trunc('minute', now()) - make_interval(mins => number % 1000),
        (SELECT id FROM users), number / 1000, 'get', 200, 1, 1, 1, 1
    FROM generate_series(0, $1::integer) AS number
"""


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address) as world:
        # Usage is of days by PostgreSQL's clock; and pages ask for the last one by theirs.
        clock = world.accounts.clock
        clock.timeline.advance(datetime.now(UTC).timestamp() - clock.wall_ms() / 1000)
        today = datetime.now(UTC).date()
        await Partitions(world.accounts.database).make_for({today, today - timedelta(days=1)})
        yield world


@pytest_asyncio.fixture
async def ada(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("ada")
    return browser


async def count(world: PagesWorld, sequence: int, requests: int, key_id: int = 7) -> None:
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    ((user_id,),) = [
        tuple(row.values()) for row in await world.accounts.fetch("SELECT id FROM users")
    ]
    row = Rollup(minute, user_id, key_id, "get", 200, requests, 10, 100, 1_000)
    usage = Usage(world.accounts.database, Partitions(world.accounts.database))
    assert (await usage.take(UsageReport("gateway-1", sequence, [row]))).dropped == 0


async def test_figures_are_found_anew_after_some_seconds_and_not_before(
    world: PagesWorld, ada: Browser
) -> None:
    await count(world, 1, 4_321)
    assert "4,321" in (await ada.get(path)).text
    await count(world, 2, 1_111)
    for shown in (path, "/console"):
        assert "4,321" in (await ada.get(shown)).text
    world.accounts.clock.timeline.advance(kept_s + 0.1)
    assert "5,432" in (await ada.get(path)).text


async def test_the_busiest_minute_is_that_of_api_keys_alone(
    world: PagesWorld, ada: Browser
) -> None:
    await count(world, 1, 4_321, key_id=no_key_id)
    await count(world, 2, 17, key_id=7)
    await count(world, 3, 4, key_id=8)
    text = (await ada.get(path)).text
    (busiest,) = re.findall(r"Busiest minute</span>\s*<span[^>]*>([^<]*)<", text)
    assert busiest == "21"


async def test_nobody_is_shown_what_was_kept_for_somebody_else(
    world: PagesWorld, ada: Browser
) -> None:
    await count(world, 1, 4_321)
    assert "4,321" in (await ada.get(path)).text
    bob = world.browser()
    await bob.sign_up("bob")
    assert "4,321" not in (await bob.get(path)).text


async def test_more_than_can_be_added_up_is_told_as_that_and_not_as_passing(
    world: PagesWorld, ada: Browser
) -> None:
    async with world.accounts.database.transaction() as connection:
        await connection.execute(_too_many_sql, rows_read_max)
    answer = await ada.get("/console")
    assert answer.status_code == 200
    assert "There is more usage than this page adds up" in answer.text
    assert "too many counts to be added up here" in answer.text
    assert "asked at once" not in answer.text


away = RetryLater("gateway_unavailable", "Away")


def figures(
    *, succeeded: frozenset[str] = frozenset(), keys: int | None = None, ids: int | None = None
) -> Figures:
    stored = away if keys is None else Stored(keys, 0, 1, is_all=True)
    uses = [KeyUse(7, ids or 0)]
    quota = away if ids is None else Quota(0, 1_000, datetime.now(UTC), uses, [0, ids])
    return Figures(away, away, stored, (), quota, succeeded)


@pytest.mark.parametrize(
    ("found", "done"),
    [
        (figures(), [True, False, False, False, False]),
        (figures(keys=0, ids=0), [True, False, False, False, False]),
        (figures(keys=1), [True, True, False, False, False]),
        (figures(ids=1), [True, False, False, False, True]),
        (figures(succeeded=frozenset(["put"])), [True, True, False, False, False]),
        (figures(succeeded=frozenset(["get_strong"])), [True, False, True, True, False]),
        (figures(succeeded=frozenset(["list", "ids"])), [True, False, False, False, True]),
    ],
)
def test_steps_are_done_by_pages_as_by_programs(found: Figures, done: list[bool]) -> None:
    steps = steps_of(found, found.succeeded or frozenset(), has_key=True)
    assert [step.is_done for step in steps] == done
    assert all(step.path.startswith("/console/") for step in steps)
