"""Coming in by the pages: sign-up, log-in, log-out."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.running_platform import Person
from tests.browser.visitor import Visitor


def test_who_has_an_account_logs_in_and_out(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person)
    expect(page.get_by_role("heading", level=1)).to_have_text("Account")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("status")).to_contain_text("You are logged out")
    visitor.open("/console/account")
    expect(page).to_have_url(f"{visitor.platform.url}/login?next=/console/account")
