"""The demo account's API key: for browsers on this machine, and for nobody who comes by a proxy."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.runtime.database_url import DatabaseAddress
from tests.integration.pages_world import Browser, PagesWorld, pages_world

here = "http://localhost:8081"
asking = 'action="/demo-key"'


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress, tmp_path: Path) -> AsyncIterator[PagesWorld]:
    """Of a platform that trusts no proxy, as `ydht up` starts it."""
    async with pages_world(database_address, DATA_DIR=str(tmp_path), SHOW_DEMO="true") as world:
        yield world


async def demo_key(world: PagesWorld, folder: Path) -> str:
    """That of an account which is there, where `ydht up` leaves it."""
    ada = world.browser()
    await ada.sign_up("ada")
    await ada.get("/console/keys")
    made = await ada.submit("/console/keys", {"name": "demo", "scope_read": "yes"})
    (key,) = set(re.findall(r"ydht_[0-9A-Za-z]{49}", made.text))
    (folder / "demo.json").write_text(json.dumps({"api_key": key}))
    return str(key)


async def told(browser: Browser, **headers: str) -> object:
    """What is answered to a page's own form: the key, or why there is none."""
    asked = {"Accept": "application/json", "Origin": str(browser.client.base_url), **headers}
    answer = await browser.submit("/demo-key", {}, **asked)
    document = answer.json()
    return document["api_key"] if answer.status_code == 200 else document["code"]


@pytest.mark.parametrize("url", [here, "http://127.0.0.1:8081", "http://[::1]:8081"])
async def test_a_browser_on_this_machine_gets_it_by_a_form(
    world: PagesWorld, tmp_path: Path, url: str
) -> None:
    key = await demo_key(world, tmp_path)
    browser = world.browser(url)
    page = await browser.get("/")
    assert asking in page.text
    assert key not in page.text
    assert await told(browser) == key
    await browser.get("/")
    assert await told(browser, Origin="", Sec_Fetch_Site="same-origin") == "not_found"
    assert await told(browser, X_CSRF_Token="AAAA") == "csrf"


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Server",
        "Forwarded",
        "Via",
        "X-Real-IP",
    ],
)
async def test_whoever_comes_by_a_proxy_that_says_so_gets_nothing(
    world: PagesWorld, tmp_path: Path, header: str
) -> None:
    await demo_key(world, tmp_path)
    browser = world.browser(here)
    assert asking not in (await browser.get("/", **{header: "127.0.0.1"})).text
    await browser.get("/")
    assert await told(browser, **{header: "127.0.0.1"}) == "not_found"


async def test_whoever_comes_by_a_proxy_that_changes_the_host_has_another_origin(
    world: PagesWorld, tmp_path: Path
) -> None:
    await demo_key(world, tmp_path)
    browser = world.browser("http://127.0.0.1:8081")
    await browser.get("/")
    assert await told(browser, Origin="https://ydht.example") == "not_found"
    # Of a browser that says nothing more of itself, as on a page without https.
    away = {"Origin": "http://ydht.example", "Sec_Fetch_Site": ""}
    assert await told(browser, **away) == "csrf"
    assert await told(browser, Origin="null") == "not_found"
    assert await told(browser, Origin="http://[") == "not_found"


@pytest.mark.parametrize(
    ("url", "address"),
    [("http://ydht.example", "127.0.0.1"), (here, "198.51.100.7"), ("http://10.0.0.1", "10.0.0.2")],
)
async def test_who_is_elsewhere_or_comes_by_another_name_gets_nothing(
    world: PagesWorld, tmp_path: Path, url: str, address: str
) -> None:
    await demo_key(world, tmp_path)
    browser = world.browser(url, address)
    assert asking not in (await browser.get("/")).text
    await browser.get("/login")
    assert await told(browser) == "not_found"
    assert await told(browser, Origin=here) == "not_found"


@pytest.mark.parametrize(
    ("shown", "public_url", "is_given"),
    [
        ("true", "http://localhost:8081", True),
        ("true", "http://ydht.example", False),
        ("false", "http://localhost:8081", False),
    ],
)
async def test_a_platform_that_is_there_for_others_gives_it_to_nobody(
    database_address: DatabaseAddress, tmp_path: Path, shown: str, public_url: str, is_given: bool
) -> None:
    async with pages_world(
        database_address, DATA_DIR=str(tmp_path), SHOW_DEMO=shown, PUBLIC_URL=public_url
    ) as world:
        key = await demo_key(world, tmp_path)
        browser = world.browser(here)
        assert (asking in (await browser.get("/")).text) == is_given
        await browser.get("/login")
        assert await told(browser) == (key if is_given else "not_found")


async def test_a_key_that_is_not_good_any_more_is_not_given(
    world: PagesWorld, tmp_path: Path
) -> None:
    await demo_key(world, tmp_path)
    browser = world.browser(here)
    await browser.get("/")
    await world.accounts.execute("UPDATE api_keys SET revoked_at = now()")
    assert await told(browser) is None
    (tmp_path / "demo.json").unlink()
    assert await told(browser) is None
