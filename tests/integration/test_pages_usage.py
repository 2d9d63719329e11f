"""The page of usage: what is added up, what cannot be asked, and what is downloaded."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
import pytest_asyncio

from services.core.usage_report import Rollup, UsageReport
from services.runtime.database_url import DatabaseAddress
from services.usermanager.messages_usage import page_rows_max
from services.usermanager.partitions import Partitions
from services.usermanager.usage import Usage
from services.usermanager.usage_query import UsageReader
from tests.integration.pages_world import Browser, PagesWorld, pages_world

path = "/console/usage"


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address) as world:
        yield world


@pytest_asyncio.fixture
async def ada(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("ada")
    return browser


def now(world: PagesWorld) -> datetime:
    return datetime.fromtimestamp(world.accounts.clock.wall_ms() / 1000, UTC)


def rollup(minute: datetime, **members: Any) -> Rollup:
    usual = {
        "user_id": 1,
        "key_id": 7,
        "operation": "get",
        "status": 200,
        "requests": 1,
        "bytes_in": 10,
        "bytes_out": 100,
        "latency_us": 1_500,
    }
    return Rollup(
        minute.replace(second=0, microsecond=0),
        **{**usual, **members},
    )


async def counted(world: PagesWorld, rows: list[Rollup]) -> None:
    """As a gateway reports it, of days that there are partitions for."""
    partitions = Partitions(world.accounts.database)
    await partitions.make_for({row.minute.date() for row in rows})
    usage = Usage(world.accounts.database, partitions)
    for number, start in enumerate(range(0, len(rows), 1_000), 1):
        report = UsageReport("gateway-1", number, rows[start : start + 1_000])
        assert (await usage.take(report)).dropped == 0


async def user_id(world: PagesWorld) -> int:
    ((found,),) = [
        tuple(row.values()) for row in await world.accounts.fetch("SELECT id FROM users")
    ]
    return int(found)


def chart_in(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'data-usage="([^"]*)"', text)
    chart: dict[str, Any] = json.loads(unescape(found))
    return chart


def real_now() -> datetime:
    return datetime.now(UTC)


def custom(start: datetime, end: datetime, **more: str) -> str:
    times = f"from={start:%Y-%m-%dT%H:%M}&to={end:%Y-%m-%dT%H:%M}"
    return f"?range=custom&{times}" + "".join(f"&{name}={value}" for name, value in more.items())


async def test_charts_and_tables_add_up_to_what_was_reported(
    world: PagesWorld, ada: Browser
) -> None:
    draw = random.Random(7)
    end = real_now().replace(minute=0, second=0, microsecond=0)
    start = end - timedelta(hours=2)
    mine = await user_id(world)
    rows = [
        rollup(
            start + timedelta(minutes=draw.randrange(120)),
            user_id=draw.choice((mine, mine + 1)),
            key_id=draw.randint(1, 4),
            operation=draw.choice(("get", "put", "list", "incr", "head", "batch", "ids")),
            status=draw.choice((200, 304, 404, 429, 503)),
            requests=draw.randint(1, 50),
            bytes_in=draw.randrange(10_000),
            latency_us=draw.randrange(100_000),
            # Also what an older gateway tells.
            latency_counts=[draw.randrange(5) for _ in range(draw.choice((0, 3, 18)))],
        )
        for _ in range(900)
    ]
    await counted(world, rows)
    own = [row for row in rows if row.user_id == mine]

    reader = UsageReader(world.accounts.database, world.accounts.clock)
    series = await reader.series(mine, start, end, "minute")
    by_minute = Counter[datetime]()
    by_operation = Counter[str]()
    by_status = Counter[int]()
    by_key = Counter[int]()
    for row in own:
        by_minute[row.minute] += row.requests
        by_operation[row.operation] += row.requests
        by_status[row.status] += row.requests
        by_key[row.key_id] += row.requests
    assert {time: sums.requests for time, sums in series.by_step.items()} == by_minute
    assert {
        name: sum(sums.requests for sums in parts.values())
        for name, parts in series.by_operation.items()
    } == by_operation
    assert {
        status: sum(sums.requests for sums in parts.values())
        for status, parts in series.by_status.items()
    } == by_status
    assert {
        key_id: sum(sums.requests for sums in parts.values())
        for key_id, parts in series.by_key.items()
    } == by_key
    total = series.total
    assert total.failed == sum(row.requests for row in own if row.status >= 400)
    assert total.limited == by_status[429]
    assert total.bytes_in == sum(row.bytes_in for row in own)
    assert total.latency_us == sum(row.latency_us for row in own)
    padded = ([*row.latency_counts, *[0] * (18 - len(row.latency_counts))] for row in own)
    assert total.latency_counts == tuple(map(sum, zip(*padded, strict=True)))

    chart = chart_in((await ada.get(path + custom(start, end))).text)
    assert chart["times"][0] == start.timestamp()
    assert len(chart["times"]) == 120
    for lines in chart["requests"].values():
        assert sum(sum(line["values"]) for line in lines) == total.requests
    assert [line["label"] for line in chart["requests"]["operation"]][-1] == "others"


async def test_a_period_may_begin_and_end_within_a_step(world: PagesWorld, ada: Browser) -> None:
    day = real_now().replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=5)
    mine = await user_id(world)
    at = [day, day + timedelta(hours=11), day + timedelta(days=1, hours=13)]
    await counted(world, [rollup(time, user_id=mine) for time in at])
    found = await ada.get(
        path + custom(day + timedelta(hours=10), day + timedelta(days=1, hours=13, minutes=1))
    )
    chart = chart_in(found.text)
    assert sum(chart["requests"]["status"][0]["values"]) == 2
    assert chart["step"] == "hour"
    assert len(chart["times"]) == 28


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("range=custom", "from"),
        ("range=custom&from=2026-01-01T00:00", "to"),
        ("range=custom&from=yesterday&to=2026-01-01T00:00", "from"),
        ("range=custom&from=2026-01-02T00:00&to=2026-01-01T00:00", "from"),
        ("range=custom&from=2020-06-01T00:00&to=2026-01-01T00:00", "from"),
        ("range=custom&from=0001-01-01T00:00&to=9999-12-31T23:59", "from"),
        ("key=seven", "key"),
        ("key=99999999999999999999", "key"),
        ("key=%3Cscript%3E", "key"),
    ],
)
async def test_a_period_that_makes_no_sense_is_told_beside_its_field(
    ada: Browser, query: str, field: str
) -> None:
    answer = await ada.get(f"{path}?{query}")
    assert answer.status_code == 400
    (problem,) = re.findall(rf'id="field-{field}-problem"[^>]*>([^<]*)<', answer.text)
    assert problem.strip()
    assert "<script>" not in answer.text.replace('<script src="', "").replace("<script type", "")


@pytest.mark.parametrize("query", ["", "&key=1"])
async def test_a_period_by_its_times_alone_is_that_period(
    world: PagesWorld, ada: Browser, query: str
) -> None:
    end = real_now().replace(minute=0, second=0, microsecond=0) - timedelta(days=3)
    mine = await user_id(world)
    inside, outside = end - timedelta(hours=1), end + timedelta(hours=1)
    await counted(
        world, [rollup(time, user_id=mine, key_id=1, requests=7) for time in (inside, outside)]
    )
    times = custom(end - timedelta(hours=2), end).removeprefix("?range=custom&")
    for asked in (f"?{times}{query}", f"?range=bogus&{times}{query}"):
        answer = await ada.get(path + asked)
        assert answer.status_code == 200
        assert sum(chart_in(answer.text)["requests"]["status"][0]["values"]) == 7
        assert "<details open>" in answer.text
        rows = (await ada.get(f"{path}.csv{asked}")).text.splitlines()
        assert len(rows) == 2


async def test_a_period_that_there_is_not_is_told_above_those_there_are(ada: Browser) -> None:
    answer = await ada.get(f"{path}?range=%3Cb%3E1y")
    assert answer.status_code == 400
    assert "There is no period &lt;b&gt;1y: choose one of those above" in answer.text
    assert "?range=7d" in answer.text
    assert (await ada.get(f"{path}.csv?range=1y")).status_code == 400


@pytest.mark.parametrize("query", ["range=%FF", "from=" + "1" * 10_000])
async def test_a_query_that_no_form_sends_is_a_400(ada: Browser, query: str) -> None:
    answer = await ada.get(f"{path}?range=custom&{query}")
    assert answer.status_code == 400


async def test_api_keys_of_one_name_are_told_apart(world: PagesWorld, ada: Browser) -> None:
    mine = await user_id(world)
    await world.accounts.execute(
        "INSERT INTO api_keys (user_id, key_hash, key_prefix, name, scopes) SELECT $1,"
        " sha256(prefix::bytea), prefix, name, '{read}' FROM (VALUES ('ydht_aaa', 'robot'),"
        " ('ydht_bbb', 'robot'), ('ydht_ccc', 'other'), ('ydht_ddd', 'console'))"
        " AS k (prefix, name)",
        mine,
    )
    found = await world.accounts.fetch("SELECT id FROM api_keys ORDER BY id")
    await counted(
        world,
        [
            rollup(real_now(), user_id=mine, key_id=key_id)
            for key_id in (0, *(k["id"] for k in found))
        ],
    )
    end = real_now() + timedelta(minutes=1)
    text = (await ada.get(path + custom(end - timedelta(hours=1), end))).text
    for name in (
        "robot (ydht_aaa…)",
        "robot (ydht_bbb…)",
        "other",
        "console",
        "console (ydht_ddd…)",
    ):
        assert text.count(f">{name}</option>") == 1, name
        assert text.count(f">{name}</a>") == 1, name


async def test_the_download_has_every_row_of_all_pages(world: PagesWorld, ada: Browser) -> None:
    mine = await user_id(world)
    end = real_now().replace(minute=0, second=0, microsecond=0)
    start = end - timedelta(minutes=60)
    rows = [
        rollup(start + timedelta(minutes=number % 60), user_id=mine, key_id=1 + number // 60)
        for number in range(page_rows_max + 1_000)
    ]
    await counted(world, rows)
    answer = await ada.get(f"{path}.csv{custom(start, end)}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    header, *found = csv.reader(io.StringIO(answer.text))
    assert header[:2] == ["start", "api_key_id"]
    assert len(found) == len(rows)
    assert len({(line[0], line[1]) for line in found}) == len(rows)
    assert {line[5] for line in found} == {"1"}


@pytest.mark.parametrize("sign", ["=", "+", "-", "@"])
async def test_no_name_of_a_key_becomes_a_formula(
    world: PagesWorld, ada: Browser, sign: str
) -> None:
    name = f'{sign}HYPERLINK("https://evil.example","a,b")'
    await ada.get("/console/keys")
    made = await ada.submit(
        "/console/keys", {"name": name, "scope_read": "yes", "expires_in_days": ""}
    )
    assert made.status_code == 201
    ((key_id,),) = [
        tuple(r.values()) for r in await world.accounts.fetch("SELECT id FROM api_keys")
    ]
    end = real_now()
    await counted(
        world, [rollup(end - timedelta(hours=1), user_id=await user_id(world), key_id=key_id)]
    )
    answer = await ada.get(f"{path}.csv{custom(end - timedelta(hours=2), end)}")
    _, row = csv.reader(io.StringIO(answer.text))
    assert row[2] == "'" + name


async def test_nobody_sees_the_usage_of_others(world: PagesWorld, ada: Browser) -> None:
    mine = await user_id(world)
    bob = world.browser()
    await bob.sign_up("bob")
    end = real_now()
    await counted(world, [rollup(end - timedelta(hours=1), user_id=mine, key_id=7)])
    shown = path + custom(end - timedelta(hours=2), end)
    assert "By operation" in (await ada.get(shown)).text
    for query in (shown, f"{shown}&key=7"):
        assert "Nothing was asked for" in (await bob.get(query)).text
    text = (await bob.get(f"{path}.csv{custom(end - timedelta(hours=2), end)}")).text
    assert len(text.splitlines()) == 1


async def test_first_steps_are_those_that_succeeded(world: PagesWorld) -> None:
    end = real_now()
    await counted(
        world,
        [
            rollup(end, operation="put", status=503),
            rollup(end, operation="get", status=304),
            rollup(end, operation="get_strong", status=404),
            rollup(end, operation="ids", user_id=2),
        ],
    )
    reader = UsageReader(world.accounts.database, world.accounts.clock)
    assert await reader.succeeded(1) == {"get"}
