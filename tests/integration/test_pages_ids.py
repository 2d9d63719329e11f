"""The pages of IDs and the overview while keygen and the gateway are away; what no form sends."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from services.core.id_requests import KeyUse, returned_max
from services.runtime.console_requests import signed_body_bytes_max
from services.runtime.database_url import DatabaseAddress
from services.usermanager.pages.console_ids import (
    Quota,
    gauges_max,
    gauges_of,
    returned_at_once,
)
from tests.integration.pages_world import Browser, PagesWorld, pages_world

path = "/console/ids"


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address) as world:
        yield world


@pytest_asyncio.fixture
async def ada(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("ada")
    return browser


async def test_without_keygen_the_page_says_so_and_what_is_not_affected(ada: Browser) -> None:
    answer = await ada.get(path)
    assert answer.status_code == 503
    assert "The ID service cannot be asked just now" in answer.text
    assert "Stored data is not affected" in answer.text


@pytest.mark.parametrize("headers", [{}, {"HX_Request": "true"}], ids=["page", "part"])
async def test_without_keygen_nothing_is_made_or_lost(
    ada: Browser, headers: dict[str, str]
) -> None:
    await ada.get(path)
    made = await ada.submit(path, {"count": "3", "size": "9"}, **headers)
    assert made.status_code == 503
    assert int(made.headers["Retry-After"]) > 0
    assert "cannot be reached" in made.text
    assert 'value="9"' in made.text
    returned = await ada.submit(f"{path}/return", {"ids": "0k3Zq1a, 0k3Zq1b"}, **headers)
    assert returned.status_code == 503
    # To be sent again.
    assert "0k3Zq1a\n0k3Zq1b</textarea>" in returned.text


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"count": "0", "size": "7"}, "count"),
        ({"count": "10001", "size": "7"}, "count"),
        ({"count": "9" * 5000, "size": "7"}, "count"),
        ({"count": "\u0661", "size": "7"}, "count"),
        ({"count": "", "size": "7"}, "count"),
        ({"count": "1", "size": "6"}, "size"),
        ({"count": "1", "size": "17"}, "size"),
        ({"size": "7"}, "count"),
    ],
    ids=lambda each: str(each)[:40],
)
async def test_what_cannot_be_made_is_told_beside_its_field(
    ada: Browser, fields: dict[str, str], field: str
) -> None:
    await ada.get(path)
    answer = await ada.submit(path, fields)
    assert answer.status_code == 400
    (problem,) = re.findall(rf'id="field-{field}-problem"[^>]*>([^<]*)<', answer.text)
    assert "Enter a whole number" in problem


@pytest.mark.parametrize("text", ["", " ,\n ", "0k3Zq1a " * (returned_max + 1)], ids=len)
async def test_none_and_too_many_are_not_returned(ada: Browser, text: str) -> None:
    await ada.get(path)
    answer = await ada.submit(f"{path}/return", {"ids": text})
    assert answer.status_code == 400
    (problem,) = re.findall(r'id="field-ids-problem"[^>]*>([^<]*)<', answer.text)
    assert problem.strip()


async def test_what_is_no_id_is_told_without_asking_anybody(ada: Browser) -> None:
    await ada.get(path)
    answer = await ada.submit(f"{path}/return", {"ids": '["<b>x</b>", "short"]'})
    assert answer.status_code == 200
    assert "&lt;b&gt;x&lt;/b&gt;" in answer.text
    assert answer.text.count("IDs are 7 to 16 characters") == 2


def test_a_part_of_returned_ids_fits_a_signed_request() -> None:
    longest = '"' + "z" * 16 + '",'
    assert len('{"keys":[]}') + len(longest) * returned_at_once <= signed_body_bytes_max


def test_the_gauge_shows_the_console_and_the_fullest_keys_and_adds_up_the_others() -> None:
    uses = [KeyUse(number, 100 - number) for number in range(1, 9)] + [KeyUse(0, 4)]
    total = sum(use.used for use in uses)
    quota = Quota(4, 1_000, datetime.now(UTC), uses, [7, total])
    gauges = gauges_of(quota, {1: "robot"})
    assert [gauge.name for gauge in gauges[:3]] == ["This console", "robot", "API key 2"]
    assert len(gauges) == 2 + gauges_max
    assert gauges[-1].limit is None
    assert sum(gauge.used for gauge in gauges) == total == quota.used_by_all
    # A keygen of an older version tells of the console alone.
    (alone,) = gauges_of(Quota(4, None, datetime.now(UTC)), {})
    assert (alone.name, alone.used, alone.limit) == ("This console", 4, None)


async def test_the_overview_tells_which_services_are_away_and_shows_the_rest(ada: Browser) -> None:
    for shown in ("/console", "/console/figures"):
        answer = await ada.get(shown)
        assert answer.status_code == 200
        assert "The data service cannot be asked just now" in answer.text
        assert "the ID service is away" in answer.text
        assert "last 24 hours" in answer.text


async def test_the_first_steps_begin_with_a_key(ada: Browser) -> None:
    assert "0 of 5" in (await ada.get("/console/first-steps")).text
    await ada.submit(
        "/console/keys", {"name": "robot", "scope_read": "yes", "expires_in_days": "7"}
    )
    assert "1 of 5" in (await ada.get("/console/first-steps")).text
