"""From sign-up to usage, all by pages; and what the page of usage shows to whom."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.accessibility import issues, unguarded
from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person, good_password
from tests.browser.visitor import Visitor, patience_ms, phone

path = "/console/usage?range=1h"
markup = "<img src=x onerror=alert(1)>"
# Gateways report every five seconds; those who look ask again every fifteen, and what they are
# shown may have been found ten seconds before.
reported_ms = 3 * patience_ms


def use(visitor: Visitor, person: Person, name: str) -> None:
    """Eight requests by a key of this name: no more than the plan lets through at once."""
    made = visitor.platform.api_key(person, name=name)
    with visitor.platform.gateway(made["key"]) as gateway:
        for number in range(3):
            gateway.put(f"/v1/kv/{number}", content=b"x" * 100)
            gateway.get(f"/v1/kv/{number}")
        gateway.get("/v1/kv/absent")
        gateway.get("/v1/kv/0", headers={"X-Consistency": "strong"})


def until_shown(page: Page, text: str | re.Pattern[str], table: str = "Usage by API key") -> None:
    """Look again until what was asked for has been reported."""
    for _ in range(reported_ms // 1_000):
        if page.get_by_role("table", name=table).filter(has_text=text).count():
            return
        page.wait_for_timeout(1_000)
        page.reload()
    raise AssertionError(f"{text} is not in: {page.inner_text('main')!r}")


def test_who_signs_up_makes_a_key_stores_reads_and_sees_it_in_usage(visitor: Visitor) -> None:
    page = visitor.open("/signup")
    page.get_by_label("Email address").fill("mary@example.com")
    page.get_by_label("User name").fill("mary")
    page.get_by_label("Password", exact=True).fill(good_password)
    page.get_by_role("button", name="Create account").click()
    page.get_by_role("button", name="Store it and read it back").click()
    expect(page.get_by_role("log")).to_contain_text("200")
    page.get_by_role("link", name="To the console").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    steps = page.get_by_role("region", name="First steps")
    # It ticks itself as soon as usage has been reported.
    expect(steps).to_contain_text("3 of 5", timeout=reported_ms)
    tile = page.locator(".tile", has=page.get_by_text("Requests", exact=True))
    expect(tile.locator(".tile-value")).to_have_text("2")
    stored = page.locator(".tile", has=page.get_by_text("Stored keys", exact=True))
    expect(stored.locator(".tile-value")).to_have_text("1")
    page.get_by_role("link", name="Usage", exact=True).click()
    by_operation = page.get_by_role("table", name="Usage by operation")
    for name in ("Put", "Get"):
        row = by_operation.get_by_role("row", name=re.compile(f"^{name} "))
        expect(row.get_by_role("cell").first).to_have_text("1")


def test_who_signs_up_puts_and_gets_in_the_console_sees_it_in_usage(visitor: Visitor) -> None:
    page = visitor.open("/signup")
    page.get_by_label("Email address").fill("hopper@example.com")
    page.get_by_label("User name").fill("hopper")
    page.get_by_label("Password", exact=True).fill(good_password)
    page.get_by_role("button", name="Create account").click()
    # The key that comes with the account, which nothing is asked with.
    expect(page.locator("#first-key")).to_be_visible()
    page.get_by_role("link", name="To the console").click()
    steps = page.get_by_role("region", name="First steps")
    expect(steps).to_contain_text("1 of 5")
    steps.get_by_role("link", name="Put a first value").click()
    page.get_by_label("Key", exact=True).fill("greeting")
    page.get_by_label("Value", exact=True).fill("Hello from a page")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("greeting")
    expect(page.get_by_label("Value", exact=True)).to_have_value("Hello from a page")
    page.get_by_role("link", name="Eventual").click()
    expect(page.get_by_label("Value", exact=True)).to_have_value("Hello from a page")

    visitor.open(path)
    # The last that was done.
    until_shown(page, re.compile(r"Get\s*[0-9]"), "Usage by operation")
    by_key = page.get_by_role("table", name="Usage by API key")
    expect(by_key.get_by_role("rowheader")).to_have_text(["console"])
    by_operation = page.get_by_role("table", name="Usage by operation")
    for name in ("Put", "Get", "Get, strong"):
        row = by_operation.get_by_role("row", name=re.compile(f"^{name} [0-9]"))
        expect(row.get_by_role("cell").first).to_have_text("1")
    page.get_by_label("API key", exact=True).select_option(label="console")
    expect(page).to_have_url(re.compile("key=0"))
    expect(by_operation).to_contain_text("Put")
    # Who only looks at the overview has asked for nothing.
    requests = page.locator(".tile", has=page.get_by_text("Requests", exact=True))
    before = requests.locator(".tile-value").inner_text()
    page.get_by_role("link", name="Overview", exact=True).click()
    expect(steps).to_contain_text("4 of 5", timeout=reported_ms)
    expect(requests.locator(".tile-value")).to_have_text(before)
    for _ in range(5):
        page.reload()
    page.wait_for_timeout(6_000)
    visitor.open(path)
    expect(requests.locator(".tile-value")).to_have_text(before)


def test_usage_is_drawn_told_in_tables_and_downloaded(visitor: Visitor, person: Person) -> None:
    use(visitor, person, markup)
    page = visitor.log_in(person, path)
    until_shown(page, markup)
    expect(page.locator(".chart canvas")).to_have_count(4)
    by_operation = page.get_by_role("table", name="Usage by operation")
    strong = by_operation.get_by_role("row", name=re.compile("^Get, strong"))
    expect(strong.get_by_role("cell").first).to_have_text("1")
    by_status = page.get_by_role("table", name="Usage by status")
    expect(by_status.get_by_role("row", name=re.compile("^404"))).to_be_visible()
    page.get_by_role("radio", name="by status").check()
    expect(page.locator("#chart-requests")).to_contain_text("404")
    page.get_by_role("radio", name="by API key").check()
    expect(page.locator("#chart-requests")).to_contain_text(markup)
    expect(page.locator("#chart-limited")).to_contain_text("429")
    page.get_by_text("as a table").click()
    expect(page.get_by_role("table", name="Usage by minute").get_by_role("row")).not_to_have_count(
        1
    )
    page.get_by_label("API key", exact=True).select_option(label=markup)
    expect(page).to_have_url(re.compile("key=[0-9]+"))
    expect(page.get_by_role("table", name="Usage by API key")).to_contain_text(markup)
    assert page.locator("img").count() == 0
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    _, *rows = csv.reader(io.StringIO(Path(download.value.path()).read_text()))
    assert sum(int(row[5]) for row in rows) == 8
    assert {row[2] for row in rows} == {markup}


def test_a_period_that_makes_no_sense_is_told_beside_its_field(
    visitor: Visitor, person: Person
) -> None:
    visitor.expects("status of 400|Error Code 400")
    page = visitor.log_in(person, path)
    expect(page.get_by_role("heading", name="Nothing was asked for in this period")).to_be_visible()
    page.get_by_text("Another period").click()
    page.get_by_label("From (UTC)").fill("2026-01-02T00:00")
    page.get_by_label("Until (UTC)").fill("2026-01-01T00:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#field-from-problem")).to_contain_text("before to")
    expect(page.get_by_label("From (UTC)")).to_have_value("2026-01-02T00:00")


def test_everybody_can_use_the_page(new_visitor: NewVisitor, person: Person) -> None:
    visitor = new_visitor(**unguarded, viewport=phone, color_scheme="dark", reduced_motion="reduce")
    use(visitor, person, "robot")
    page = visitor.log_in(person, path)
    until_shown(page, "robot")
    expect(page.locator(".chart canvas")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
    assert issues(page) == []
    page.emulate_media(color_scheme="light")
    page.reload()
    assert issues(page) == []
