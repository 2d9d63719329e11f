"""Forms that only pages of ours can send, and where pages may lead on to."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.core.record import value_bytes_max
from services.runtime.database_url import DatabaseAddress
from services.usermanager.pages.page import Audience
from tests.integration.accounts_world import good_password
from tests.integration.pages_world import Browser, PagesWorld, form_path, host, pages_world

markup = "<script>alert(1)</script>"


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address) as world:
        yield world


@pytest_asyncio.fixture
async def ada(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("ada")
    return browser


async def test_nothing_is_changed_by_any_form_without_its_token(
    world: PagesWorld, ada: Browser
) -> None:
    changing = [page for page in world.web.every_page() if page.method != "GET"]
    await world.accounts.execute("UPDATE users SET is_operator = true")
    assert {"/login", "/logout", "/signup"} < {page.path for page in changing}
    for page in changing:
        answer = await ada.ask(page.method, form_path(page.path), data={"password": good_password})
        assert (page.path, answer.status_code) == (page.path, 403)
        assert 'data-error="csrf"' in answer.text
    assert await ada.is_in()


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": ""},
        {"Sec_Fetch_Site": "", "Origin": "null"},
        {"Sec_Fetch_Site": "", "Origin": "https://evil.example"},
        {"Sec_Fetch_Site": "", "Origin": f"http://{host}.evil.example"},
        {"Sec_Fetch_Site": "", "Origin": f"http://{host}:81"},
        # A page of ours would not say both.
        {"Sec_Fetch_Site": "cross-site", "Origin": f"http://{host}"},
    ],
    ids=str,
)
async def test_a_form_that_another_site_sends_is_refused_also_with_its_token(
    ada: Browser, headers: dict[str, str]
) -> None:
    answer = await ada.submit("/logout", {}, **headers)
    assert answer.status_code == 403
    assert await ada.is_in()


async def test_where_a_browser_names_only_the_origin_that_is_enough(ada: Browser) -> None:
    answer = await ada.submit("/logout", {}, Sec_Fetch_Site="", Origin=f"http://{host}")
    assert answer.status_code == 303


async def test_behind_a_proxy_that_changes_the_host_the_public_url_is_ours(
    database_address: DatabaseAddress,
) -> None:
    async with pages_world(database_address, PUBLIC_URL="http://ydht.example") as world:
        browser = world.browser()
        await browser.sign_up("ada")
        headers = {"Sec_Fetch_Site": "", "Origin": "http://ydht.example"}
        assert (await browser.submit("/logout", {}, **headers)).status_code == 303


async def test_a_token_is_of_one_session(world: PagesWorld, ada: Browser) -> None:
    eve = world.browser()
    await eve.get("/login")
    before = eve.token
    await eve.sign_up("eve")
    for token in (eve.token, before, "", "x", "AAAA", ada.token[:-2] + "AA", "é"):
        answer = await ada.submit("/logout", {"_csrf": token})
        assert answer.status_code == 403, token
    assert await ada.is_in()


async def test_each_page_has_another_token_and_all_of_a_session_are_good(ada: Browser) -> None:
    await ada.get("/console/account")
    first = ada.token
    await ada.get("/console/account")
    assert first != ada.token
    assert (await ada.submit("/logout", {"_csrf": first})).status_code == 303


async def test_scripts_send_the_token_as_a_header(ada: Browser) -> None:
    await ada.get("/console/account")
    fields = {"current_password": "wrong", "new_password": "long enough"}
    answer = await ada.ask("POST", "/console/account/password", data=fields, X_CSRF_Token=ada.token)
    assert answer.status_code == 401
    assert "The password is not the one of this account" in answer.text


async def test_who_has_not_logged_in_is_told_apart_by_a_cookie(world: PagesWorld) -> None:
    eve, victim = world.browser(), world.browser()
    await world.accounts.sign_up("eve")
    await eve.get("/login")
    fields = {"email": "eve@example.com", "password": good_password}
    # So nobody is logged in as somebody else behind his back.
    answer = await victim.submit("/login", {**fields, "_csrf": eve.token})
    assert answer.status_code == 403
    await victim.get("/login")
    answer = await victim.submit("/login", {**fields, "_csrf": eve.token})
    assert answer.status_code == 403
    assert (await eve.submit("/login", fields)).status_code == 303


@pytest.mark.parametrize(
    "goal",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "evil.example",
        "/%0d%0aSet-Cookie:a=b\r\nX: y",
        "",
        "/" + "a" * 3_000,
    ],
)
async def test_a_login_leads_to_no_other_site(world: PagesWorld, goal: str) -> None:
    await world.accounts.sign_up("ada")
    browser = world.browser()
    await browser.get("/login")
    fields = {"email": "ada@example.com", "password": good_password, "next": goal}
    answer = await browser.submit("/login", fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")


async def test_a_login_leads_back_to_where_one_was(world: PagesWorld) -> None:
    await world.accounts.sign_up("ada")
    browser = world.browser()
    answer = await browser.get("/console/account?tab=a%20b")
    assert answer.status_code == 303
    where = answer.headers["location"]
    assert where == "/login?next=/console/account%3Ftab%3Da%2520b"
    page = await browser.get(where)
    assert 'name="next" value="/console/account?tab=a%20b"' in page.text
    goal = "/console/account?tab=a%20b"
    fields = {"email": "ada@example.com", "password": good_password, "next": goal}
    assert (await browser.submit("/login", fields)).headers["location"] == goal


@pytest.mark.parametrize(
    ("headers", "goal"),
    [
        ({"Referer": f"http://{host}/console/ids?a=1"}, "/console/ids%3Fa%3D1"),
        ({"HX-Request": "true", "HX-Current-URL": f"http://{host}/console/keys"}, "/console/keys"),
        ({}, "/console"),
        ({"Referer": "http://evil.example/console/ids"}, "/console"),
        ({"Referer": f"http://{host}//evil.example/"}, "/console"),
        ({"Referer": f"http://{host}/\\evil.example/"}, "/console"),
        ({"Referer": "http://[/"}, "/console"),
        ({"HX-Request": "true", "HX-Current-URL": "javascript:alert(1)"}, "/console"),
        ({"HX-Request": "true", "Referer": f"http://{host}/console/keys"}, "/console"),
    ],
)
async def test_a_form_of_a_session_that_has_ended_leads_back_to_its_page(
    world: PagesWorld, headers: dict[str, str], goal: str
) -> None:
    browser = world.browser()
    answer = await browser.submit("/console/keys", {"name": "robot"}, **headers)
    where = answer.headers.get("location") or answer.headers["hx-redirect"]
    assert where == f"/login?next={goal}"


async def test_a_page_hears_of_a_session_that_began_after_it(
    world: PagesWorld, ada: Browser
) -> None:
    page = await ada.get("/console/data/new")
    (account,) = re.findall(r'name="account" content="(\d+)"', page.text)
    old = ada.token
    await ada.submit("/logout", {})
    ada.token = ""
    assert (await ada.ask("GET", "/console/session", Accept="application/json")).status_code == 401
    await ada.log_in("ada")
    told = (await ada.ask("GET", "/console/session", Accept="application/json")).json()
    assert str(told["account"]) == account
    renamed = {"name": "robot", "scope_read": "yes", "expires_in_days": "7", "_csrf": old}
    assert (await ada.submit("/console/keys", renamed)).status_code == 403
    renamed["_csrf"] = told["token"]
    assert (await ada.submit("/console/keys", renamed)).status_code == 201


async def test_scripts_of_who_is_out_are_told_so_in_their_way(world: PagesWorld) -> None:
    browser = world.browser()
    answer = await browser.get("/console/account", HX_Request="true")
    assert (answer.status_code, answer.headers["hx-redirect"]) == (200, "/login?next=/console")
    answer = await browser.get("/console/account", Accept="application/json")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_every_page_of_the_console_is_for_who_has_logged_in(world: PagesWorld) -> None:
    browser = world.browser()
    console = [page for page in world.web.every_page() if page.path.startswith("/console")]
    assert console
    for page in console:
        assert page.audience is not Audience.ANYBODY, page.path
        answer = await browser.ask(page.method, form_path(page.path))
        assert answer.status_code == 303, page.path
        assert answer.headers["location"].startswith("/login?next=/console"), page.path


async def test_what_is_for_operators_is_nothing_for_others(world: PagesWorld, ada: Browser) -> None:
    for page in world.web.every_page():
        if page.audience is Audience.OPERATORS:
            answer = await ada.ask(page.method, form_path(page.path))
            assert (page.path, answer.status_code) == (page.path, 404)


async def test_every_answer_keeps_other_sites_and_inline_scripts_out(
    world: PagesWorld, ada: Browser
) -> None:
    for path in ("/", "/login", "/status", "/console/account", "/nothing", "/console/nothing"):
        headers = (await ada.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


async def test_names_full_of_markup_are_shown_as_they_are(world: PagesWorld) -> None:
    browser = world.browser()
    await browser.get("/signup")
    fields = {"email": "eve@example.com", "username": markup, "password": good_password}
    assert (await browser.submit("/signup", fields)).status_code == 303
    page = await browser.get("/console/account")
    assert markup not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text


async def test_what_was_typed_wrong_is_shown_as_it_is(world: PagesWorld) -> None:
    browser = world.browser()
    await browser.get("/signup")
    fields = {"email": f'"{markup}', "username": "a\u202eb", "password": "short"}
    answer = await browser.submit("/signup", fields)
    assert answer.status_code == 400
    assert markup not in answer.text
    for told in ("Email address is not an email address", "contains U+202E", "Password is "):
        assert told in answer.text
    assert "short" not in answer.text.replace("Password is shorter", ""), "no password comes back"


async def test_forms_and_programs_share_a_path(world: PagesWorld) -> None:
    await world.accounts.sign_up("grace")
    browser = world.browser()
    document = {"email": "ada@example.com", "username": "ada", "password": good_password}
    answer = await browser.client.post("/signup", json=document)
    assert (answer.status_code, answer.json()["username"]) == (201, "ada")
    answer = await browser.client.post("/login", json={"email": "ada@example.com", "password": "x"})
    assert answer.json()["code"] == "invalid_credentials"
    answer = await browser.client.put("/signup", json=document)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert (await browser.client.post("/signup", content=b"x")).status_code == 415


async def test_who_is_taken_is_told_beside_the_field(world: PagesWorld) -> None:
    await world.accounts.sign_up("ada")
    browser = world.browser()
    await browser.get("/signup")
    fields = {"email": "ada@example.com", "username": "other", "password": good_password}
    answer = await browser.submit("/signup", fields)
    assert answer.status_code == 409
    assert "Email address is taken" in answer.text
    assert 'value="other"' in answer.text, "what was right need not be typed again"


async def test_a_login_that_is_throttled_is_told_how_long_to_wait(world: PagesWorld) -> None:
    await world.accounts.sign_up("ada")
    browser = world.browser()
    for _ in range(10):
        assert (await browser.log_in("ada", "wrong")).status_code == 401
    answer = await browser.log_in("ada", "wrong")
    assert answer.status_code == 429
    seconds = answer.headers["retry-after"]
    assert f"You can try again in {seconds} s" in answer.text
    assert "Too many failed logins to this account" in answer.text


async def test_a_form_that_is_too_large_or_none_is_a_page_that_says_so(ada: Browser) -> None:
    answer = await ada.submit("/console/account/password", {"new_password": "x" * 70_000})
    assert answer.status_code == 413
    assert 'data-error="body_too_large"' in answer.text
    many = {f"field{number}": "" for number in range(101)}
    answer = await ada.submit("/console/account/password", many)
    assert (answer.status_code, 'data-error="invalid_body"' in answer.text) == (400, True)


async def test_errors_are_pages_for_people_and_problems_for_programs(ada: Browser) -> None:
    answer = await ada.get(f"/{markup}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is nothing here" in answer.text
    assert "To the console" in answer.text, "it is known who asks"
    assert markup not in answer.text
    problem = await ada.get("/nothing", Accept="*/*")
    assert problem.headers["content-type"] == "application/problem+json"
    part = await ada.get("/console/nothing", HX_Request="true")
    assert (part.status_code, part.headers["hx-retarget"]) == (404, "#toasts")
    assert "<html" not in part.text


@pytest.mark.parametrize("number", ["9" * 5_000, "9" * 20, "0", "-1", "1e3", "a", "%C2%B2", "%FF"])
async def test_what_is_no_number_of_a_row_is_nothing(
    world: PagesWorld, ada: Browser, number: str
) -> None:
    await ada.get("/console/account")
    stranger = world.browser()
    for method, path in (
        ("POST", f"/console/account/sessions/{number}/end"),
        ("GET", f"/console/keys/{number}/rotate"),
        ("POST", f"/console/keys/{number}/rotate"),
        ("POST", f"/console/keys/{number}/revoke"),
    ):
        assert (await stranger.ask(method, path)).status_code == 303
        data = {"_csrf": ada.token, "overlap": "1h"} if method == "POST" else None
        answer = await ada.ask(method, path, data=data)
        assert (path[:60], answer.status_code) == (path[:60], 404)


async def test_the_largest_body_of_any_page_may_come_in(world: PagesWorld) -> None:
    largest = max(page.body_bytes_max for page in world.web.every_page())
    assert world.web.body_bytes_max == largest == value_bytes_max
