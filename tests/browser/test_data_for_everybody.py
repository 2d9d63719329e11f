"""The data pages by keyboard alone, on a phone, for screen readers; and from page to page."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.accessibility import issues, unguarded
from tests.browser.conftest import NewVisitor
from tests.browser.data_owner import Owner, data, key_page, value_of
from tests.browser.running_platform import Person, RunningPlatform
from tests.browser.visitor import Visitor, phone


@pytest.fixture
def owner(platform: RunningPlatform, person: Person) -> Owner:
    return Owner(platform, person)


def test_a_key_is_reached_and_changed_with_the_keyboard_alone(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("group/one", b"1")
    page = visitor.log_in(person, data)
    summary = page.locator("summary", has_text="group/")
    for _ in range(40):
        page.keyboard.press("Tab")
        if summary.evaluate("each => each === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name=re.compile("^one"))).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("group/one")
    area = page.get_by_label("Value", exact=True)
    expect(area).to_be_visible()
    for _ in range(40):
        page.keyboard.press("Tab")
        if area.evaluate("each => each === document.activeElement"):
            break
    page.keyboard.type("23")
    button = page.get_by_role("button", name="Save", exact=True)
    for _ in range(40):
        page.keyboard.press("Tab")
        if button.evaluate("each => each === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    assert owner.get("group/one") in (b"231", b"123")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_have_no_serious_issues(
    new_visitor: NewVisitor, person: Person, owner: Owner, scheme: str
) -> None:
    owner.put("users/ada", b'{"a": 1}', X_Metadata_by="ada")
    owner.put("plain", b"text", "?ttl=1h")
    visitor = new_visitor(**unguarded, viewport=phone, color_scheme=scheme)
    page = visitor.log_in(person, data)
    page.locator("summary", has_text="users/").click()
    expect(page.get_by_role("link", name=re.compile("^ada"))).to_be_visible()
    page.get_by_text("The same by curl").click()
    assert issues(page) == []
    others = (f"{data}?view=list", f"{data}/new", f"{data}/namespaces")
    for path in others if scheme == "light" else others[:0]:
        visitor.open(path)
        assert issues(page) == [], path
    visitor.open(key_page("users/ada"))
    value_of(page)
    expect(page.get_by_text("has it", exact=True)).to_have_count(3)
    assert issues(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
    page.get_by_role("button", name="Delete", exact=True).click()
    assert issues(page) == []


def test_a_list_is_gone_through_forth_and_back(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put_all({f"key/{number:03d}": b"1" for number in range(350)})
    visitor.log_in(person, data)
    page = visitor.open(f"{data}?view=list&prefix=key/")
    pages = page.get_by_role("navigation", name="Pages")
    expect(pages.get_by_role("link", name="Previous page")).to_have_count(0)
    for first in (100, 200, 300):
        pages.get_by_role("link", name="Next page").click()
        expect(page.get_by_role("rowheader").first).to_have_text(f"key/{first}")
    for first in (200, 100, 0):
        pages.get_by_role("link", name="Previous page").click()
        expect(page.get_by_role("rowheader").first).to_have_text(f"key/{first:03d}")
    expect(pages.get_by_role("link", name="Previous page")).to_have_count(0)
    pages.get_by_role("link", name="Next page").click()
    expect(page.get_by_role("rowheader").first).to_have_text("key/100")
