"""The page of API keys, as its forms are sent: what is refused, shown once, and whose keys are."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html import escape

import httpx
import pytest
import pytest_asyncio

from services.core.errors import RetryLater
from services.core.key_checks import Scope
from services.runtime.database_url import DatabaseAddress
from services.runtime.endpoints import Call
from services.usermanager.api_keys import ApiKeys, live_keys_max
from services.usermanager.messages_api_keys import CreatedKey, KeyPage, KeyPath, RotateKey
from services.usermanager.pages.example_requests import requests_for
from services.usermanager.pages.render import iso_moment
from tests.integration.pages_world import Browser, PagesWorld, pages_world

markup = "<img src=x onerror=alert(1)>\"'&"
path = "/console/keys"
usual = {"name": "robot", "scope_read": "yes", "expires_in_days": "90"}


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address) as world:
        yield world


@pytest_asyncio.fixture
async def ada(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("ada")
    return browser


async def keys_of(world: PagesWorld) -> list[dict[str, object]]:
    return await world.accounts.fetch(
        "SELECT id, name, scopes, prefix, rate_limit_per_minute, revoked_at, replaced_by,"
        " expires_at - created_at AS lifetime FROM api_keys ORDER BY id"
    )


def key_in(answer: httpx.Response) -> str:
    (found,) = set(re.findall(r"ydht_[0-9A-Za-z]{49}", answer.text))
    return str(found)


async def test_a_key_is_made_as_asked_and_shown_this_once(world: PagesWorld, ada: Browser) -> None:
    assert "No API keys yet" in (await ada.get(path)).text
    made = await ada.submit(
        path,
        {
            **usual,
            "scope_admin": "yes",
            "expires_in_days": "30",
            "prefix": "logs/",
            "rate_limit_per_minute": "60",
        },
    )
    assert made.status_code == 201
    key = key_in(made)
    assert f"X-API-Key: {key}" in made.text.replace("&#39;", "'")
    (stored,) = await keys_of(world)
    assert stored["scopes"] == ["read", "admin"]
    assert (stored["prefix"], stored["rate_limit_per_minute"]) == (b"logs/", 60)
    assert str(stored["lifetime"]).startswith("30 days")
    for shown in (path, f"{path}/list", f"{path}/{stored['id']}/rotate"):
        text = (await ada.get(shown)).text
        assert "robot" in text
        assert key not in text
        assert key[:8] in text


@pytest.mark.parametrize(
    ("scopes", "prefix", "asked"),
    [
        (["read", "write"], None, [("PUT", "/v1/kv/greeting"), ("GET", "/v1/kv/greeting")]),
        (["write", "admin"], "logs/", [("PUT", "/v1/kv/logs/greeting")]),
        (["read", "admin"], "a&b ", [("GET", "/v1/kv?prefix=a%26b%20&limit=10")]),
        (["admin"], "x'", [("DELETE", "/v1/kv?prefix=x%27&dry_run=true")]),
        (["admin"], None, [("DELETE", "/v1/kv?prefix=greeting&dry_run=true")]),
        # What clients would take for a step upwards, or for nothing, stays what it is.
        (["write"], "a/../b", [("PUT", "/v1/kv/a%2F%2E%2E%2Fbgreeting")]),
        (["write"], "a//", [("PUT", "/v1/kv/a%2F%2Fgreeting")]),
        # And there is no room for more.
        (["write"], "p" * 1020, [("PUT", "/v1/kv/" + "p" * 1020)]),
    ],
)
def test_a_key_is_shown_with_what_it_may_ask_for(
    scopes: list[Scope], prefix: str | None, asked: list[tuple[str, str]]
) -> None:
    assert [request[:2] for request in requests_for(scopes, prefix)] == asked


async def test_a_form_says_what_is_wrong_beside_each_field_and_keeps_the_others(
    world: PagesWorld, ada: Browser
) -> None:
    await ada.get(path)
    answer = await ada.submit(
        path,
        {
            "name": " ",
            "prefix": "p" * 1025,
            "rate_limit_per_minute": "-5",
            "expires_in_days": "0",
        },
    )
    assert answer.status_code == 400
    for name in ("name", "prefix", "rate_limit_per_minute", "expires_in_days"):
        (problem,) = re.findall(rf'id="field-{name}-problem"[^>]*>([^<]*)<', answer.text)
        assert problem.strip(), name
    assert "Choose at least one" in answer.text
    assert 'value="-5"' in answer.text
    assert await keys_of(world) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a\u202eb"},
        {"name": "n" * 101},
        {"rate_limit_per_minute": "9" * 10},
        {"rate_limit_per_minute": "9" * 5000},
        {"rate_limit_per_minute": "\u0663"},
        {"rate_limit_per_minute": "1e3"},
        {"expires_in_days": "3651"},
        {"expires_in_days": "-1"},
        {"prefix": "\0" * 2000},
    ],
    ids=lambda fields: ascii(fields)[:40],
)
async def test_what_makes_no_sense_is_the_forms_fault_and_makes_no_key(
    world: PagesWorld, ada: Browser, fields: dict[str, str]
) -> None:
    await ada.get(path)
    answer = await ada.submit(path, {**usual, **fields})
    assert answer.status_code == 400
    assert 'aria-invalid="true"' in answer.text
    assert await keys_of(world) == []


async def test_markup_in_names_and_prefixes_is_text_on_every_page(
    world: PagesWorld, ada: Browser
) -> None:
    await ada.get(path)
    named = {**usual, "name": markup, "prefix": markup}
    made = await ada.submit(path, named)
    assert made.status_code == 201, made.text
    ((key_id,),) = [(key["id"],) for key in await keys_of(world)]
    pages = [made, await ada.submit(path, {**named, "rate_limit_per_minute": markup})]
    for shown in (path, f"{path}/{key_id}/rotate", f"{path}/{key_id}/revoke", "/console/usage"):
        pages.append(await ada.get(shown))
        pages.append(await ada.get(shown, HX_Request="true"))
    for answer in pages:
        assert "<img src=x" not in answer.text
        assert escape("<img src=x", quote=False) in answer.text
    revoked = await ada.submit(f"{path}/{key_id}/revoke", {})
    assert revoked.status_code == 303
    assert "<img src=x" not in (await ada.get(path)).text


async def test_a_rotated_key_has_a_successor_and_is_rotated_once(
    world: PagesWorld, ada: Browser
) -> None:
    await ada.get(path)
    first = key_in(await ada.submit(path, usual))
    ((key_id,),) = [(key["id"],) for key in await keys_of(world)]
    rotate = f"{path}/{key_id}/rotate"
    assert (await ada.submit(rotate, {"overlap": "31d"})).status_code == 400
    assert (await ada.submit(rotate, {"overlap": "soon"})).status_code == 400
    made = await ada.submit(rotate, {"overlap": "7d"}, HX_Request="true")
    assert made.status_code == 201
    assert made.headers["HX-Trigger"] == "keys-changed"
    assert key_in(made) != first
    assert "is good until" in made.text
    old, new = await keys_of(world)
    assert old["replaced_by"] == new["id"]
    again = await ada.submit(rotate, {"overlap": "7d"})
    assert again.status_code == 409
    assert f"into key {new['id']}" in again.text
    assert len(await keys_of(world)) == 2


async def test_nobody_rotates_or_revokes_the_keys_of_others(
    world: PagesWorld, ada: Browser
) -> None:
    await ada.get(path)
    await ada.submit(path, usual)
    ((key_id,),) = [(key["id"],) for key in await keys_of(world)]
    bob = world.browser()
    await bob.sign_up("bob")
    for what in ("rotate", "revoke"):
        assert (await bob.get(f"{path}/{key_id}/{what}")).status_code == 404
        assert (await bob.submit(f"{path}/{key_id}/{what}", {"overlap": "1h"})).status_code == 404
    (key,) = await keys_of(world)
    assert (key["revoked_at"], key["replaced_by"]) == (None, None)
    assert "robot" not in (await bob.get(path)).text


async def test_a_revoked_key_is_shown_among_those_that_have_ended(
    world: PagesWorld, ada: Browser
) -> None:
    await ada.get(path)
    await ada.submit(path, usual)
    ((key_id,),) = [(key["id"],) for key in await keys_of(world)]
    for _ in range(2):
        answer = await ada.submit(f"{path}/{key_id}/revoke", {}, HX_Request="true")
        assert answer.headers["HX-Redirect"] == path
    shown = (await ada.get(path)).text
    assert "No API key is active" in shown
    assert "1 that has ended" in shown


async def test_who_has_all_the_keys_there_may_be_is_told_what_to_do(
    world: PagesWorld, ada: Browser
) -> None:
    await world.accounts.execute(
        "INSERT INTO api_keys (user_id, key_hash, key_prefix, name, scopes)"
        " SELECT id, sha256(number::text::bytea), 'ydht_abc', 'k' || number, '{read}'"
        " FROM users, generate_series(1, $1) AS number",
        live_keys_max,
    )
    await ada.get(path)
    answer = await ada.submit(path, usual)
    assert answer.status_code == 409
    assert "revoke one first" in answer.text
    assert 'value="robot"' in answer.text


class LostAfterwards(ApiKeys):
    """Keys whose database is away once one has been rotated."""

    is_lost = False

    async def rotate_own(self, call: Call[KeyPath, None, RotateKey]) -> CreatedKey:
        made = await super().rotate_own(call)
        self.is_lost = True
        return made

    async def page(self, user_id: int, limit: int, cursor: str | None) -> KeyPage:
        if self.is_lost:
            raise RetryLater("database_unavailable", "PostgreSQL does not answer")
        return await super().page(user_id, limit, cursor)


@pytest.mark.parametrize(
    ("lifetime", "overlap", "told"),
    [("90", "24h", "is good until"), ("", "24h", "is good until"), ("90", "0s", "has ended")],
)
async def test_a_key_that_was_rotated_is_shown_whatever_happens_next(
    database_address: DatabaseAddress, lifetime: str, overlap: str, told: str
) -> None:
    async with pages_world(database_address, keys=LostAfterwards) as world:
        ada = world.browser()
        await ada.sign_up("ada")
        await ada.get(path)
        first = key_in(await ada.submit(path, {**usual, "expires_in_days": lifetime}))
        ((key_id,),) = [(key["id"],) for key in await keys_of(world)]
        made = await ada.submit(f"{path}/{key_id}/rotate", {"overlap": overlap})
        assert made.status_code == 201
        assert key_in(made) != first
        assert told in made.text
        ends = (await world.accounts.fetch("SELECT expires_at FROM api_keys ORDER BY id"))[0]
        assert (iso_moment(ends["expires_at"]) in made.text) == (overlap != "0s")
