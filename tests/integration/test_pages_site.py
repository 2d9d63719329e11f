"""What every page is promised, shown on pages that are made for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest_asyncio
from starlette.responses import Response

from services.core.errors import RetryLater
from services.runtime.database_url import DatabaseAddress
from services.usermanager.pages.page import Audience, Page, Visit
from tests.integration.pages_world import Browser, PagesWorld, pages_world

markup = "<script>alert(1)</script>"


class Asked(msgspec.Struct):
    limit: int = 10


class Filled(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    sizes: list[int]


class Named(msgspec.Struct):
    name: str


class Samples:
    """Pages that do what handlers do."""

    def __init__(self) -> None:
        self.under_way = 0
        self.most_at_once = 0

    def pages(self) -> list[Page]:
        anybody = Audience.ANYBODY
        return [
            Page("GET", "/samples/bug", self.bug, anybody),
            Page("GET", "/samples/later", self.later),
            Page("GET", "/samples/typed", self.typed, anybody),
            Page("POST", "/samples/form", self.form),
            Page("DELETE", "/samples/{name}", self.delete),
            Page("GET", "/samples/operators", self.nothing, Audience.OPERATORS),
            Page("GET", "/samples/slow", self.slow),
        ]

    async def bug(self, _: Visit) -> Response:
        raise RuntimeError(f"a secret of ours {markup}")

    async def later(self, _: Visit) -> Response:
        raise RetryLater("gateway_unavailable", f"The gateway is away {markup}", retry_after_s=7)

    async def typed(self, visit: Visit) -> Response:
        return Response(str(visit.query(Asked).limit))

    async def form(self, visit: Visit) -> Response:
        filled = await visit.form(Filled, sizes=[1, 2])
        visit.say(f"Made {filled.name}")
        return visit.redirect("/console/account")

    async def delete(self, visit: Visit) -> Response:
        return Response(f"Deleted {visit.path_as(Named).name}")

    async def nothing(self, _: Visit) -> Response:
        return Response("for operators")

    async def slow(self, _: Visit) -> Response:
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        await asyncio.sleep(0.05)
        self.under_way -= 1
        return Response("done")


@pytest_asyncio.fixture
async def samples() -> Samples:
    return Samples()


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress, samples: Samples) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address, more=samples.pages()) as world:
        yield world


@pytest_asyncio.fixture
async def ada(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("ada")
    return browser


async def test_a_bug_is_a_page_that_tells_nothing_of_us(world: PagesWorld) -> None:
    browser = world.browser()
    answer = await browser.get("/samples/bug")
    assert answer.status_code == 500
    assert "Something went wrong on our side" in answer.text
    assert "secret of ours" not in answer.text
    assert answer.headers["x-request-id"] in answer.text, "by which it is found in the logs"
    part = await browser.get("/samples/bug", HX_Request="true")
    assert part.headers["x-request-id"] in part.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    program = await browser.get("/samples/bug", Accept="*/*")
    assert program.json()["code"] == "internal"


async def test_what_may_work_later_says_when(ada: Browser) -> None:
    answer = await ada.get("/samples/later")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert "Data service is unavailable" in answer.text
    assert markup not in answer.text
    assert 'href="/samples/later"' in answer.text, "it can be tried again"
    part = await ada.get("/samples/later", HX_Request="true")
    assert (part.status_code, part.headers["hx-retarget"]) == (503, "#toasts")
    assert "The gateway is away" in part.text


async def test_queries_and_forms_are_checked_as_those_of_the_api(ada: Browser) -> None:
    assert (await ada.get("/samples/typed?limit=3")).text == "3"
    for wrong in ("limit=x", "limit=1&limit=2", "other=1", "limit=%ff"):
        answer = await ada.get(f"/samples/typed?{wrong}", Accept="application/json")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query"), wrong
    await ada.get("/console/account")
    # What is no member of it, such as the token, is no fault; what is missing is.
    answer = await ada.submit("/samples/form", {"name": "this", "sizes": "9", "x": "1"})
    assert answer.headers["location"] == "/console/account"
    assert "Made this" in (await ada.get("/console/account")).text
    answer = await ada.submit("/samples/form", {}, Accept="application/json")
    assert answer.json()["errors"] == [{"member": "name", "detail": "is missing"}]


async def test_htmx_is_led_on_and_told_in_its_own_ways(ada: Browser) -> None:
    await ada.get("/console/account")
    answer = await ada.submit("/samples/form", {"name": "this"}, HX_Request="true")
    assert (answer.status_code, answer.headers["hx-redirect"]) == (200, "/console/account")
    answer = await ada.ask("DELETE", "/samples/it", X_CSRF_Token=ada.token, HX_Request="true")
    assert answer.text == "Deleted it"


async def test_any_method_that_changes_something_needs_the_token(ada: Browser) -> None:
    await ada.get("/console/account")
    for method in ("POST", "DELETE"):
        path = "/samples/form" if method == "POST" else "/samples/it"
        answer = await ada.ask(method, path)
        assert (method, answer.status_code) == (method, 403)
    assert (await ada.ask("PUT", "/samples/form")).status_code == 405


async def test_operators_are_let_in_where_others_find_nothing(
    world: PagesWorld, ada: Browser
) -> None:
    answer = await ada.get("/samples/operators")
    assert answer.status_code == 404
    assert 'data-error="not_found"' in answer.text
    await world.accounts.execute("UPDATE users SET is_operator = true")
    assert (await ada.get("/samples/operators")).text == "for operators"
    await world.accounts.execute("UPDATE users SET is_operator = false")
    assert (await ada.get("/samples/operators")).status_code == 404, "it holds from the next page"


async def test_one_account_does_not_have_all_of_a_user_manager(
    ada: Browser, samples: Samples
) -> None:
    answers = await asyncio.gather(*(ada.ask("GET", "/samples/slow") for _ in range(12)))
    assert [answer.status_code for answer in answers] == [200] * 12
    assert samples.most_at_once == 4
    answers = await asyncio.gather(*(ada.ask("GET", "/samples/slow") for _ in range(30)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert "You can go on in" in refused[0].text


async def test_a_head_is_a_get_without_its_body_and_changes_nothing(ada: Browser) -> None:
    for path in ("/", "/console/account"):
        answer = await ada.ask("HEAD", path)
        assert answer.status_code == 200
        assert "content-security-policy" in answer.headers
