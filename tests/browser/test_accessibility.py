"""What axe-core finds on pages, in light and in dark; and how heavy and how soon they are."""

from __future__ import annotations

import sys

import pytest
from playwright.sync_api import Request, expect

from tests.browser.accessibility import issues, unguarded
from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person
from tests.browser.visitor import Visitor, phone


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/signup", "/login", "/nothing"])
def test_nothing_serious_is_in_the_way_of_strangers(
    new_visitor: NewVisitor, path: str, scheme: str
) -> None:
    visitor = new_visitor(**unguarded, color_scheme=scheme)
    visitor.expects("status of 404")
    page = visitor.open(path)
    if path == "/":
        expect(page.get_by_text("3 of 3 up")).to_be_visible()
    if path == "/signup":
        page.get_by_role("button", name="Create account").click()
        page.get_by_label("Password", exact=True).fill("password1")
    assert issues(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/console/welcome", "/console/account"])
def test_nothing_serious_is_in_the_way_of_who_has_an_account(
    new_visitor: NewVisitor, person: Person, path: str, scheme: str
) -> None:
    page = new_visitor(**unguarded, color_scheme=scheme, viewport=phone).log_in(person, path)
    if path == "/console/welcome":
        expect(page.locator("#first-key")).to_be_visible()
    else:
        page.get_by_role("button", name="Close my account").click()
    assert issues(page) == []


def test_the_first_page_is_light(visitor: Visitor) -> None:
    sizes: dict[str, int] = {}

    def weigh(request: Request) -> None:
        sizes[request.url] = request.sizes()["responseBodySize"]

    visitor.page.on("requestfinished", weigh)
    page = visitor.open("/")
    expect(page.get_by_text("3 of 3 up")).to_be_visible()
    weight = sum(sizes.values())
    # All modules and deferred scripts have run, so whatever is clicked answers.
    ready_ms = page.evaluate(
        "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
    )
    assert ready_ms > 0
    sys.stdout.write(f"first page: {weight:,} bytes, {len(sizes)} requests, {ready_ms:.0f} ms\n")
    assert weight < 100_000
