"""The account page: password, sessions, and the end."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person
from tests.browser.visitor import Visitor, phone


def test_a_password_is_changed_and_other_sessions_end(
    visitor: Visitor, new_visitor: NewVisitor, person: Person
) -> None:
    visitor.expects("status of 401")
    elsewhere = new_visitor()
    elsewhere.log_in(person)
    page = visitor.log_in(person)
    page.get_by_label("Current password", exact=True).fill("not the one")
    page.get_by_label("New password", exact=True).fill("another good password")
    page.get_by_role("button", name="Change password").click()
    problem = page.locator("#field-current_password-problem")
    expect(problem).to_have_text("The password is not the one of this account")
    page.get_by_label("Current password", exact=True).fill(person.password)
    page.get_by_label("New password", exact=True).fill("another good password")
    page.get_by_role("button", name="Change password").click()
    expect(page.locator("#toasts")).to_contain_text("Your password was changed")
    elsewhere.open("/console/account")
    expect(elsewhere.page).to_have_url(f"{visitor.platform.url}/login?next=/console/account")


def test_sessions_are_listed_and_ended(
    visitor: Visitor, new_visitor: NewVisitor, person: Person
) -> None:
    elsewhere = new_visitor()
    elsewhere.log_in(person)
    page = visitor.log_in(person)
    rows = page.get_by_role("region", name="Sessions").locator("tbody tr")
    # Of the program that signed up, too.
    expect(rows).to_have_count(3)
    expect(rows.filter(has_text="this one")).to_have_count(1)
    others = rows.filter(has_text="Chrome").filter(has_not_text="this one")
    others.get_by_role("button", name="End").click()
    expect(page.locator("#toasts")).to_contain_text("That session was ended")
    expect(rows).to_have_count(2)
    elsewhere.open("/console/account")
    expect(elsewhere.page).to_have_url(f"{visitor.platform.url}/login?next=/console/account")


def test_an_account_is_closed_only_when_that_is_typed(visitor: Visitor, person: Person) -> None:
    visitor.expects("status of 401")
    page = visitor.log_in(person)
    page.get_by_role("button", name="Close my account").click()
    dialog = page.get_by_role("dialog", name="Close the account for good?")
    button = dialog.get_by_role("button", name="Delete everything")
    expect(button).to_be_disabled()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Close my account").click()
    dialog.get_by_label("Your password", exact=True).fill("not the one")
    dialog.get_by_label("Type delete everything").fill("delete everything")
    button.click()
    # It is open again, and says what was wrong.
    expect(dialog.locator("#closing-password-problem")).to_contain_text("not the one of this")
    dialog.get_by_label("Your password", exact=True).fill(person.password)
    dialog.get_by_label("Type delete everything").fill("delete everything")
    button.click()
    expect(page.locator("#toasts")).to_contain_text("Your account is closed")
    assert person.ask("GET", "/me").status_code == 401


def test_the_account_page_fits_a_phone(new_visitor: NewVisitor, person: Person) -> None:
    page = new_visitor(viewport=phone, color_scheme="dark").log_in(person)
    assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
