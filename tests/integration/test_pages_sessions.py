"""Sessions of browsers: cookies, and tokens that are renewed while pages are asked for at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from services.core.errors import RetryLater, UnknownOutcome
from services.runtime.database_url import DatabaseAddress
from services.usermanager.sessions import pages_grace
from tests.integration.accounts_world import good_password
from tests.integration.pages_world import Browser, PagesWorld, pages_world


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address) as world:
        yield world


@pytest_asyncio.fixture
async def ada(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("ada")
    return browser


def another_tab(of: Browser, cookies: dict[str, str]) -> Browser:
    """With the cookies that the browser had at some time."""
    tab = of.world.browser()
    for name, value in cookies.items():
        tab.client.cookies.set(name, value, domain="pages.example")
    return tab


def set_cookies(answer: httpx.Response) -> dict[str, str]:
    found = (line.partition("=") for line in answer.headers.get_list("set-cookie"))
    return {name: rest for name, _, rest in found}


async def later(world: PagesWorld, seconds: float) -> None:
    """What was used just now was used so long ago."""
    await world.accounts.execute(
        "UPDATE refresh_tokens SET used_at = used_at - make_interval(secs => $1)", seconds
    )


async def test_cookies_are_for_this_site_alone_and_no_script_reads_them(world: PagesWorld) -> None:
    browser = world.browser()
    await browser.sign_up("ada")
    answer = await browser.log_in("ada")
    assert answer.headers["location"] == "/console", "who is in already is led on"
    fresh = world.browser()
    answer = await fresh.log_in("ada")
    cookies = set_cookies(answer)
    assert sorted(cookies) == ["ydht-access", "ydht-refresh"]
    for value in cookies.values():
        parts = {part.strip().lower() for part in value.split(";")[1:]}
        assert {"httponly", "path=/", "samesite=lax"} <= parts
        assert "secure" not in parts
        assert not any(part.startswith("domain") for part in parts)


async def test_where_people_come_by_https_cookies_never_travel_without(
    database_address: DatabaseAddress,
) -> None:
    url = "https://ydht.example"
    async with pages_world(database_address, PUBLIC_URL=url) as world:
        browser = world.browser(url)
        await browser.sign_up("ada")
        assert sorted(browser.cookies) == [
            "__Host-ydht-access",
            "__Host-ydht-refresh",
            "__Host-ydht-visitor",
        ]
        fresh = world.browser(url)
        answer = await fresh.log_in("ada")
        for value in set_cookies(answer).values():
            assert {"Secure", "HttpOnly", "Path=/"} <= {part.strip() for part in value.split(";")}
        assert answer.headers["strict-transport-security"].startswith("max-age=")


async def test_a_session_goes_on_when_the_access_token_is_over(
    world: PagesWorld, ada: Browser
) -> None:
    before = ada.cookies
    world.accounts.timeline.advance(3_601)
    assert await ada.is_in()
    assert ada.cookies["ydht-access"] != before["ydht-access"]
    assert ada.cookies["ydht-refresh"] != before["ydht-refresh"]
    sessions = await world.accounts.fetch("SELECT id FROM sessions")
    assert len(sessions) == 1, "it is the same session"
    answer = await ada.get("/console/account")
    assert set_cookies(answer) == {}, "what is good is not renewed"


async def test_a_browser_that_has_dropped_the_access_token_has_another(ada: Browser) -> None:
    ada.client.cookies.delete("ydht-access")
    assert await ada.is_in()
    assert "ydht-access" in ada.cookies


async def test_pages_that_are_asked_for_at_once_all_get_the_same_next_token(
    world: PagesWorld, ada: Browser
) -> None:
    cookies = ada.cookies
    world.accounts.timeline.advance(3_601)
    # Four of one account at once; the others wait for them.
    tabs = [another_tab(ada, cookies) for _ in range(12)]
    assert all(await asyncio.gather(*(tab.is_in() for tab in tabs)))
    assert len({tab.cookies["ydht-refresh"] for tab in tabs}) == 1
    assert tabs[0].cookies["ydht-refresh"] != cookies["ydht-refresh"]
    assert world.accounts.sessions.counters.refresh_tokens_reused == 0
    for tab in tabs:
        assert await tab.is_in()
    # Whichever answer came last, the next renewal is as good.
    await later(world, pages_grace.total_seconds() + 1)
    world.accounts.timeline.advance(3_601)
    assert await tabs[-1].is_in()


async def test_a_page_that_comes_late_is_in_and_a_token_that_comes_too_late_ends_the_session(
    world: PagesWorld, ada: Browser
) -> None:
    old = ada.cookies
    world.accounts.timeline.advance(3_601)
    assert await ada.is_in()
    await later(world, pages_grace.total_seconds() - 5)
    assert await another_tab(ada, old).is_in()
    await later(world, 6)
    thief = another_tab(ada, old)
    assert not await thief.is_in()
    assert not await ada.is_in(), "nobody can tell which of them is the thief"
    assert await world.accounts.fetch("SELECT id FROM sessions") == []
    assert ("refresh_token_reused") in [action for action, _ in await world.accounts.audited()]


async def test_within_the_grace_a_program_that_uses_a_used_token_still_ends_the_session(
    world: PagesWorld, ada: Browser
) -> None:
    old = ada.cookies["ydht-refresh"]
    world.accounts.timeline.advance(3_601)
    assert await ada.is_in()
    answer = await world.accounts.try_refresh(old)
    assert answer.status_code == 401
    assert not await ada.is_in()


async def test_a_token_that_a_program_has_used_is_no_good_in_a_browser(
    world: PagesWorld, ada: Browser
) -> None:
    assert (await world.accounts.try_refresh(ada.cookies["ydht-refresh"])).status_code == 200
    world.accounts.timeline.advance(3_601)
    assert not await ada.is_in(), "what followed is not what a browser would have got"


async def test_tokens_that_were_renewed_come_with_an_error_too(
    world: PagesWorld, ada: Browser
) -> None:
    world.accounts.timeline.advance(3_601)
    answer = await ada.ask("POST", "/console/account/close", data={"password": good_password})
    assert answer.status_code == 403
    assert {"ydht-access", "ydht-refresh"} <= set(set_cookies(answer))
    await later(world, pages_grace.total_seconds() + 1)
    assert await ada.is_in()


async def test_to_log_out_ends_the_session_and_its_cookies(world: PagesWorld, ada: Browser) -> None:
    kept = ada.cookies
    await ada.get("/console/account")
    answer = await ada.submit("/logout", {})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert not {"ydht-access", "ydht-refresh"} & set(ada.cookies)
    assert not await ada.is_in()
    assert not await another_tab(ada, kept).is_in(), "nor is anybody who has kept them"


async def test_a_message_is_said_once(ada: Browser) -> None:
    await ada.submit("/logout", {})
    assert "You are logged out" in (await ada.get("/")).text
    assert "You are logged out" not in (await ada.get("/")).text


async def test_who_is_disabled_is_out_at_once(world: PagesWorld, ada: Browser) -> None:
    await world.accounts.execute("UPDATE users SET is_active = false")
    assert not await ada.is_in()


async def test_a_new_password_ends_the_other_sessions_and_not_this_one(
    world: PagesWorld, ada: Browser
) -> None:
    elsewhere = world.browser()
    await elsewhere.log_in("ada")
    assert await elsewhere.is_in()
    await ada.get("/console/account")
    fields = {"current_password": good_password, "new_password": "another good one"}
    answer = await ada.submit("/console/account/password", fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/account")
    assert await ada.is_in()
    assert not await elsewhere.is_in()
    assert (await elsewhere.log_in("ada")).status_code == 401
    assert (await elsewhere.log_in("ada", "another good one")).status_code == 303


async def test_a_session_elsewhere_is_ended_and_nobody_elses_is(
    world: PagesWorld, ada: Browser
) -> None:
    bob = world.browser()
    await bob.sign_up("bob")
    elsewhere = world.browser()
    await elsewhere.log_in("ada")
    rows = await world.accounts.fetch("SELECT id, user_id FROM sessions ORDER BY id")
    (_, bobs, other) = (row["id"] for row in rows)
    await ada.get("/console/account")
    await ada.submit(f"/console/account/sessions/{bobs}/end", {})
    assert await bob.is_in()
    await ada.submit(f"/console/account/sessions/{other}/end", {})
    assert not await elsewhere.is_in()
    assert await ada.is_in()


async def test_an_account_is_closed_by_who_has_its_password(
    world: PagesWorld, ada: Browser
) -> None:
    answer = await ada.submit("/console/account/close", {"password": "not hers"})
    assert answer.status_code == 401
    assert "The password is not the one of this account" in answer.text
    answer = await ada.submit("/console/account/close", {"password": good_password})
    assert answer.status_code == 303
    assert await world.accounts.fetch("SELECT id FROM users") == []
    assert not await ada.is_in()


@pytest.mark.parametrize(
    ("path", "status"), [("/", 200), ("/login", 200), ("/console/account", 503)]
)
async def test_without_the_database_pages_say_so_plainly(
    database_address: DatabaseAddress, path: str, status: int
) -> None:
    async def away() -> None:
        raise RetryLater("database_unavailable", "The database does not answer")

    async with pages_world(database_address, before=away) as world:
        browser = world.browser()
        browser.client.cookies.set("ydht-access", "whatever", domain="pages.example")
        answer = await browser.get(path)
        assert answer.status_code == status
        if status == 503:
            assert answer.headers["retry-after"].isdecimal()
            assert "Accounts cannot be reached just now" in answer.text
            program = await browser.get(path, Accept="application/json")
            assert program.json()["code"] == "database_unavailable"


class Gate:
    """A database that can be away."""

    def __init__(self) -> None:
        self.error: RetryLater | UnknownOutcome | None = None

    async def __call__(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        RetryLater("database_unavailable", "The database does not answer"),
        UnknownOutcome("A renewal may have been done or not"),
    ],
    ids=lambda error: error.code,
)
async def test_while_nobody_can_tell_whose_session_it_is_forms_say_so_and_a_browser_can_forget_it(
    database_address: DatabaseAddress, error: RetryLater | UnknownOutcome
) -> None:
    gate = Gate()
    async with pages_world(database_address, before=gate) as world:
        ada = world.browser()
        await ada.sign_up("ada")
        gate.error = error
        assert (await ada.get("/")).status_code == 200
        assert (await ada.get("/console/account")).status_code == 503
        answer = await ada.submit("/login", {"email": "ada@example.com", "password": "x"})
        assert (answer.status_code, 'data-error="database_unavailable"' in answer.text) == (
            503,
            True,
        )
        answer = await ada.submit("/logout", {}, Sec_Fetch_Site="cross-site")
        assert answer.status_code == 403
        assert "ydht-access" in ada.cookies
        answer = await ada.submit("/logout", {})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert not {"ydht-access", "ydht-refresh"} & set(ada.cookies)
        assert "It could not be ended just now" in (await ada.get("/")).text
        gate.error = None
        assert not await ada.is_in()


async def test_who_logs_in_over_a_session_ends_it(world: PagesWorld, ada: Browser) -> None:
    before = ada.cookies
    await world.accounts.sign_up("bob")
    await ada.get("/console/account")
    fields = {"email": "bob@example.com", "password": "wrong"}
    assert (await ada.submit("/login", fields)).status_code == 401
    assert await ada.is_in()
    answer = await ada.submit("/login", {**fields, "password": good_password})
    assert answer.status_code == 303
    assert "bob" in (await ada.get("/console/account")).text
    assert not await another_tab(ada, before).is_in()
    assert len(await world.accounts.fetch("SELECT id FROM sessions")) == 1


async def test_of_a_used_token_that_comes_at_once_from_elsewhere_the_audit_log_tells(
    world: PagesWorld, ada: Browser
) -> None:
    old = ada.cookies
    world.accounts.timeline.advance(3_601)
    assert await ada.is_in()
    assert await another_tab(ada, old).is_in()
    shared = "refresh_token_shared"
    assert shared not in [action for action, _ in await world.accounts.audited()]
    elsewhere = world.browser(address="198.51.100.7")
    other = another_tab(ada, old)
    other.headers["User-Agent"] = "another browser"
    for name, value in old.items():
        elsewhere.client.cookies.set(name, value, domain="pages.example")
    for number, browser in enumerate((elsewhere, other), start=1):
        assert await browser.is_in(), "who goes about with a laptop is not logged out"
        told = [action for action, _ in await world.accounts.audited()]
        assert told.count(shared) == number
