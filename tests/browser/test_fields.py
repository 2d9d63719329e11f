"""Beside each field stands what is wrong with it, in words of ours, until it is typed in again."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import NewVisitor
from tests.browser.data_owner import Owner, data, key_page, value_of
from tests.browser.running_platform import Person, RunningPlatform, good_password
from tests.browser.visitor import Visitor


@pytest.fixture
def owner(platform: RunningPlatform, person: Person) -> Owner:
    return Owner(platform, person)


def refused(page: Page, button: str, field: str, words: str) -> None:
    """A button of a form that is not filled in as it has to be."""
    page.get_by_role("button", name=button, exact=True).last.click()
    expect(page.locator(f"#{field}-problem")).to_have_text(words)
    expect(page.locator(f"#{field}")).to_be_focused()


def test_forms_are_refused_beside_their_fields_before_they_are_sent(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("count", b"1")
    visitor.log_in(person, "/console/ids")
    page = visitor.page
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    whole = "Enter a whole number from 1 to 1,000"
    for count in ("", "0", "1001"):
        page.get_by_label("How many").fill(count)
        refused(page, "Make IDs", "field-count", whole)
    page.get_by_label("How many").fill("3")
    expect(page.locator("#field-count-problem")).to_be_empty()
    refused(page, "Return them", "field-ids", "Paste at least one ID")

    visitor.open(data)
    page.get_by_role("button", name="Upload").click()
    refused(page, "Upload", "upload-file", "Choose a file")
    visitor.open(f"{data}/new")
    refused(page, "Make the key", "new-key", "Give the key a name")
    visitor.open(f"{data}/namespaces")
    refused(page, "Declare", "field-name", "Give it a name")
    visitor.open("/console/keys")
    page.get_by_role("link", name="New key").click()
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    refused(page, "Make the key", "field-name", "Give it a name to know it by")
    visitor.open(key_page("count"))
    assert value_of(page) == "1"
    page.get_by_label("Count it up by").fill("one")
    refused(page, "Add", "increment-by", "A whole number, such as 1 or -5")
    assert set(sent) == {"GET"}


def test_what_the_server_said_of_a_field_goes_when_it_is_typed_in(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    visitor.expects("status of 4")
    owner.put("text", b"many")
    visitor.log_in(person, data)
    page = visitor.open(key_page("text"))
    assert value_of(page) == "many"
    page.get_by_role("button", name="Add", exact=True).click()
    problem = page.locator("#increment-by-problem")
    expect(problem).to_contain_text("integer")
    page.get_by_label("Count it up by").fill("2")
    expect(problem).to_be_empty()

    page.get_by_role("button", name="Add metadata").click()
    page.get_by_label("Name", exact=True).fill("written by")
    page.get_by_label("Content", exact=True).fill("ada")
    page.get_by_role("button", name="Save", exact=True).click()
    problem = page.locator("#metadata-problem")
    expect(problem).to_contain_text("written by cannot be a name")
    expect(problem).not_to_contain_text("X-Metadata")
    page.get_by_label("Name", exact=True).fill("by")
    expect(problem).to_be_empty()


def test_a_limit_that_is_none_is_told_in_a_whole_sentence(visitor: Visitor, person: Person) -> None:
    visitor.expects("status of 400|Error Code 400")
    page = visitor.log_in(person, "/console/keys")
    page.get_by_role("link", name="New key").click()
    dialog = page.get_by_role("dialog", name="New API key")
    dialog.get_by_label("Name", exact=True).fill("robot")
    dialog.get_by_text("Narrow it further").click()
    problem = dialog.locator("#field-rate_limit_per_minute-problem")
    for limit, words in (
        ("abc", "Enter a whole number, such as 60"),
        ("0", "The limit must be at least 1"),
    ):
        dialog.get_by_label(re.compile("requests a minute")).fill(limit)
        expect(problem).to_be_empty()
        dialog.get_by_role("button", name="Make the key").click()
        expect(problem).to_have_text(words)


def test_who_clicks_twice_means_it_once(
    visitor: Visitor, new_visitor: NewVisitor, person: Person, owner: Owner
) -> None:
    owner.put("count", b"1")
    page = visitor.open("/signup")
    page.get_by_label("Email address").fill("twice@example.com")
    page.get_by_label("User name").fill("twice")
    page.get_by_label("Password", exact=True).fill(good_password)
    page.get_by_role("button", name="Create account").dblclick()
    expect(page.get_by_role("heading", level=1)).to_have_text("Welcome, twice")

    visitor = new_visitor()
    visitor.log_in(person, data)
    page = visitor.open(key_page("count"))
    assert value_of(page) == "1"
    page.get_by_role("button", name="Add", exact=True).dblclick(force=True)
    expect(page.get_by_role("status").filter(has_text="Counted")).to_be_visible()
    assert owner.get("count") == b"2"


def test_what_is_said_again_and_again_stands_there_once(visitor: Visitor) -> None:
    visitor.expects("status of 503|Error Code 503")
    page = visitor.log_in_as_demo("/console/cluster")
    away = '<div class="toast toast-bad"><p>Away</p></div>'
    where = {"HX-Retarget": "#toasts", "HX-Reswap": "beforeend"}
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=503, headers=where, content_type="text/html", body=away)

    page.route("**/console/cluster/state", refuse)
    toast = page.locator(".toast")
    expect(toast).to_have_text("Away")
    first = len(asked)
    while len(asked) < first + 2:
        with page.expect_response("**/console/cluster/state"):
            pass
    expect(toast).to_have_count(1)


def test_a_short_password_is_told_once(visitor: Visitor) -> None:
    page = visitor.open("/signup")
    password = page.get_by_label("Password", exact=True)
    page.get_by_role("button", name="Create account").click()
    expect(page.locator("#field-password-problem")).to_have_text("Choose a password")
    password.fill("short")
    page.get_by_label("User name").focus()
    words = "Use at least 8 characters"
    expect(page.locator("#field-password-problem")).to_have_text(words)
    expect(page.get_by_text(words).locator("visible=true")).to_have_count(1)
    password.fill("a longer one, of words")
    expect(page.locator("#field-password-problem")).to_be_empty()
    expect(page.locator("[data-words]")).to_have_text("Very good")
