"""The cluster's page without a cluster: for whom it is, what it says while nobody answers, and what
may be typed into it. With one it is in tests/browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from html import escape
from urllib.parse import quote

import pytest_asyncio

from services.core.key import key_bytes_max, namespace_bytes_max, tenant_max
from services.runtime.database_url import DatabaseAddress
from tests.integration.pages_world import Browser, PagesWorld, pages_world

markup = "<img src=x onerror=alert(1)>\"'&"
every_path = ("/console/cluster", "/console/cluster/state", "/console/cluster/key")


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address) as world:
        yield world


@pytest_asyncio.fixture
async def operator(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("grace")
    await world.accounts.execute("UPDATE users SET is_operator = true")
    return browser


async def test_others_than_operators_find_nothing_there(world: PagesWorld) -> None:
    ada = world.browser()
    await ada.sign_up("ada")
    for path in every_path:
        for headers in ({}, {"HX-Request": "true"}, {"Accept": "application/json"}):
            answer = await ada.get(path, **headers)
            assert answer.status_code == 404
            assert "replicator" not in answer.text.lower()
    assert "/console/cluster" not in (await ada.get("/console/account")).text


async def test_strangers_are_asked_who_they_are(world: PagesWorld) -> None:
    answer = await world.browser().get("/console/cluster")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/login?next=/console/cluster"


async def test_that_nobody_answers_is_said_plainly_and_what_to_do(operator: Browser) -> None:
    for path in every_path[:2]:
        answer = await operator.get(path)
        assert answer.status_code == 503
        assert "No replicator answers." in answer.text
        assert "http://127.0.0.1:9" in answer.text
        assert "REPLICATOR_URLS" in answer.text
        assert answer.headers["Cache-Control"] == "no-store"
    page = (await operator.get("/console/cluster")).text
    assert "No ring yet" in page
    assert "No nodes are known" in page
    assert "/console/cluster" in (await operator.get("/console/account")).text


async def test_where_a_key_lies_is_not_guessed_without_a_map(operator: Browser) -> None:
    answer = await operator.get("/console/cluster/key?key=a")
    assert answer.status_code == 503
    assert "not known until a replicator has told the map" in answer.text


wrong = {
    "key=": "Type a key to look up",
    f"key={'k' * (key_bytes_max + 1)}": "at most 1024 are allowed",
    f"key=k&namespace={'n' * (namespace_bytes_max + 1)}": "it is 1 to 255 bytes",
    "key=k&namespace=": "it is 1 to 255 bytes",
    "key=k&namespace=%01": "contains a control character",
    "key=k&account=ada": "An account is told by its number",
    "key=k&account=-1": "An account is told by its number",
    f"key=k&account={tenant_max + 1}": "An account is told by its number",
    f"key=k&account={'9' * 5_000}": "An account is told by its number",
    "key=k&account=%D9%A3": "An account is told by its number",
    "key=%FF": "UTF-8",
    "key=a&key=b": "more than once",
}


async def test_what_is_wrong_is_said_beside_its_field(operator: Browser) -> None:
    for query, told in wrong.items():
        answer = await operator.get(f"/console/cluster/key?{query}")
        assert answer.status_code == 400, query
        assert told in answer.text, query
        assert 'id="lookup"' in answer.text
        # The whole page says the same, for who has no scripts.
        assert told in (await operator.get(f"/console/cluster?{query}")).text


async def test_what_is_typed_is_text_wherever_it_is_shown(operator: Browser) -> None:
    query = "&".join(f"{name}={quote(markup)}" for name in ("key", "namespace", "account"))
    for path in ("/console/cluster", "/console/cluster/key"):
        text = (await operator.get(f"{path}?{query}")).text
        assert markup not in text
        assert "<img" not in text
        assert escape(markup, quote=False).split('"')[0] in text


async def test_chapters_of_services_that_are_away_say_so(world: PagesWorld) -> None:
    reader = world.browser()
    for service in ("gateway", "keygen"):
        answer = await reader.get(f"/docs/api/{service}")
        assert answer.status_code == 503
        assert "This chapter is not there just now." in answer.text
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["Cache-Control"] == "no-store"
    own = await reader.get("/docs/api/usermanager")
    assert own.status_code == 200
    assert 'id="shape-Problem"' in own.text


async def test_chapters_are_kept_by_strangers_and_by_nobody_else(world: PagesWorld) -> None:
    stranger, ada = world.browser(), world.browser()
    await ada.sign_up("ada")
    for path in ("/docs", "/docs/errors", "/docs/api/usermanager"):
        open_to_all = await stranger.get(path)
        assert open_to_all.headers["Cache-Control"] == "public, max-age=300"
        assert open_to_all.headers["Vary"] == "Cookie"
        assert "set-cookie" not in open_to_all.headers
        own = await ada.get(path)
        assert own.headers["Cache-Control"] == "private, no-cache"
        assert "ada" in own.text


async def test_no_chapter_repeats_what_a_reader_has_sent(world: PagesWorld) -> None:
    reader = world.browser(url="http://evil.example")
    for path in ("/docs", "/docs/api/usermanager"):
        answer = await reader.get(f"{path}?x=injected", X_Forwarded_Host="evil.example")
        assert "evil.example" not in answer.text
        assert "injected" not in answer.text


async def test_the_api_begins_with_keys_and_values(world: PagesWorld) -> None:
    answer = await world.browser().get("/docs/api")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/docs/api/gateway")
