"""What somebody has typed stays until it is saved or given up, whatever becomes of the session."""

from __future__ import annotations

import pytest
from playwright.sync_api import Dialog, Page, expect

from tests.browser.data_owner import Owner, data, key_page, value_of
from tests.browser.running_platform import Person, RunningPlatform
from tests.browser.visitor import Visitor


@pytest.fixture
def owner(platform: RunningPlatform, person: Person) -> Owner:
    return Owner(platform, person)


def save(page: Page) -> None:
    page.get_by_role("button", name="Save", exact=True).click()


def test_after_its_session_a_page_keeps_what_was_typed_and_goes_on_in_the_next(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    visitor.expects("status of 40[13]")
    owner.put("draft", b"first")
    visitor.log_in(person, data)
    page = visitor.open(key_page("draft"))
    assert value_of(page) == "first"
    page.get_by_label("Value", exact=True).fill("second")
    visitor.context.clear_cookies()
    save(page)
    asked = page.locator("#toasts").get_by_text("Your session has ended")
    expect(asked).to_be_visible()
    expect(page.get_by_label("Value", exact=True)).to_have_value("second")

    with visitor.context.expect_page() as opened:
        page.get_by_role("link", name="Log in in another tab").click()
    tab = opened.value
    tab.get_by_label("Email address").fill(person.email)
    tab.get_by_label("Password", exact=True).fill(person.password)
    tab.get_by_role("button", name="Log in").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("Overview")
    save(page)
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    expect(asked).to_have_count(0)
    assert owner.get("draft") == b"second"


def test_a_page_of_one_account_changes_nothing_of_another(
    visitor: Visitor, platform: RunningPlatform, person: Person, owner: Owner
) -> None:
    visitor.expects("status of 403")
    owner.put("draft", b"first")
    visitor.log_in(person, data)
    page = visitor.open(key_page("draft"))
    assert value_of(page) == "first"
    page.get_by_label("Value", exact=True).fill("second")
    other = platform.person()
    visitor.context.clear_cookies()
    tab = visitor.another_page()
    tab.goto(f"{platform.url}/login")
    tab.get_by_label("Email address").fill(other.email)
    tab.get_by_label("Password", exact=True).fill(other.password)
    tab.get_by_role("button", name="Log in").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("Overview")
    save(page)
    expect(page.get_by_role("alert").filter(has_text="belongs to another session")).to_be_visible()
    expect(page.get_by_label("Value", exact=True)).to_have_value("second")
    assert Owner(platform, other).get("draft") is None


def test_who_leaves_a_change_behind_is_asked_first(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("draft", b"first")
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    visitor.log_in(person, data)
    page = visitor.open(key_page("draft"))
    page.on("dialog", stay)
    # Who has only looked, also at its bytes in another form, goes on.
    assert value_of(page) == "first"
    page.get_by_label("Hex", exact=True).check(force=True)
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    assert asked == []

    visitor.open(key_page("draft"))
    assert value_of(page) == "first"
    page.get_by_label("Value", exact=True).fill("second")
    page.get_by_label("Let it expire after").fill("1h")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.locator("#expiry-ttl-problem")).to_contain_text("Save what you have changed first")
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_label("Value", exact=True)).to_have_value("second")
    assert asked == ["beforeunload"]
    save(page)
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    assert asked == ["beforeunload"]
    assert owner.get("draft") == b"second"

    visitor.open(f"{data}/new")
    page.get_by_label("Key", exact=True).fill("another")
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_label("Key", exact=True)).to_have_value("another")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("another")
    assert asked == ["beforeunload"] * 2
