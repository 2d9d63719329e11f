"""Where things stand: heads, strips and tables, with long names and on small screens."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import RunningPlatform
from tests.browser.visitor import Visitor, phone

long_name = "Ada Augusta King, Countess of Lovelace"
# A line of the smallest text that we have, and of the largest that stands in tables.
line_px = (14, 24)


def box(of: Locator) -> tuple[float, float, float, float]:
    """Left, top, right and bottom."""
    found = of.bounding_box()
    assert found is not None
    x, y = found["x"], found["y"]
    return x, y, x + found["width"], y + found["height"]


def height(of: Locator) -> float:
    _, top, _, bottom = box(of)
    return bottom - top


def over(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@pytest.mark.parametrize("size", [{"width": 840, "height": 800}, phone])
def test_a_long_user_name_leaves_the_head_as_it_is(
    new_visitor: NewVisitor, platform: RunningPlatform, size: dict[str, int]
) -> None:
    person = platform.person(f"{long_name}, at {size['width']} pixels")
    page = new_visitor(viewport=size).log_in(person)
    head = page.get_by_role("banner")
    assert height(head) < 80
    assert height(head.get_by_role("button", name="Log out")) < 2 * line_px[1]
    assert over(page) <= 0


def test_the_strip_of_a_phone_shows_where_one_is_and_that_there_is_more(
    new_visitor: NewVisitor,
) -> None:
    visitor = new_visitor(viewport=phone)
    visitor.log_in_as_demo("/console/account")
    page = visitor.page
    for path, strip in (
        ("/console/account", "Console"),
        ("/console/usage", "Console"),
        ("/docs/operate", "Chapters"),
    ):
        visitor.open(path)
        links = page.get_by_role("navigation", name=strip)
        here = links.locator("[aria-current]")
        expect(here).to_be_in_viewport(ratio=1)
        left, _, right, _ = box(here)
        assert 0 <= left < right <= phone["width"], path
    rows = page.locator(".side ul")
    assert "has-more-before" in (rows.get_attribute("class") or "")
    visitor.open("/console")
    expect(rows).to_have_class("has-more-behind")


def test_words_in_tables_stay_whole_on_a_phone(
    new_visitor: NewVisitor, platform: RunningPlatform
) -> None:
    visitor = new_visitor(viewport=phone)
    person = platform.person()
    platform.api_key(person, prefix="logs/production/eu-west/")
    page = visitor.log_in(person, "/console/keys")
    scopes = page.get_by_role("cell", name="read, write, admin")
    widest = "each => Math.max(...each.textContent.split(/[\\s,]+/).map((word) => word.length))"
    assert scopes.evaluate(widest) == len("write")
    # The longest word has room, so nothing is broken within it.
    assert box(scopes)[2] - box(scopes)[0] > 5 * line_px[0] / 2
    assert height(scopes) < 4 * line_px[1] + 16
    visitor.open("/console/account")
    address = page.get_by_role("cell", name="127.0.0.1").first
    assert height(address.locator("xpath=self::*")) < 4 * line_px[1] + 16
    assert over(page) <= 0


def test_the_head_of_a_page_has_its_buttons_beside_its_words(visitor: Visitor) -> None:
    page = visitor.log_in_as_demo("/console/data")
    button, lead = page.get_by_role("link", name="Namespaces"), page.locator(".page-head p")
    assert box(button)[1] < box(lead)[3]
    assert box(button)[0] > box(lead)[2]
