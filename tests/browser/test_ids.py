"""IDs by the page: made, copied, downloaded and returned, with the quota beside them."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.accessibility import issues, unguarded
from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person
from tests.browser.visitor import Visitor, phone

path = "/console/ids"


def test_ids_are_made_downloaded_and_returned(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person, path)
    quota = page.get_by_role("region", name="Today's quota")
    expect(quota).to_contain_text("0 of 1,000")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-size-shown]")).to_have_text("9")
    expect(page.locator("[data-size-room]")).to_contain_text("10^16")
    page.get_by_label("How many").fill("25")
    page.get_by_role("button", name="Make IDs").click()
    made = page.get_by_role("region", name="The IDs")
    expect(made).to_be_visible()
    ids = made.inner_text().split()
    assert len(set(ids)) == 25
    assert {len(one) for one in ids} == {9}
    expect(quota).to_contain_text("25 of 1,000")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert Path(download.value.path()).read_text().split() == ids

    page.get_by_label("IDs", exact=True).fill(", ".join([*ids[:3], ids[0], "zzzzzzz", "<b>no</b>"]))
    page.get_by_role("button", name="Return them").click()
    region = page.get_by_role("region", name="Return IDs")
    expect(region).to_contain_text("3 were taken back")
    table = page.get_by_role("table", name="IDs that were not taken back")
    expect(table.get_by_role("row", name=ids[0])).to_contain_text("returned already")
    expect(table.get_by_role("row", name="zzzzzzz")).to_be_visible()
    expect(table.get_by_role("row", name="<b>no</b>")).to_contain_text("7 to 16 characters")
    # Returns do not refund.
    expect(quota).to_contain_text("25 of 1,000")


def test_the_gauge_tells_of_api_keys_too(visitor: Visitor, person: Person) -> None:
    made = visitor.platform.api_key(person, name="<i>robot</i>")
    with visitor.platform.gateway(made["key"]) as gateway:
        assert gateway.post("/v1/ids?count=30").status_code == 200
    page = visitor.log_in(person, path)
    page.get_by_role("button", name="Make IDs").click()
    quota = page.get_by_role("region", name="Today's quota")
    expect(quota).to_contain_text("40 made by all")
    expect(quota.get_by_role("listitem")).to_have_count(2)
    expect(quota.get_by_role("listitem").nth(0)).to_contain_text("10 of 1,000")
    expect(quota.get_by_role("listitem").nth(1)).to_contain_text("<i>robot</i>")
    expect(quota.get_by_role("progressbar", name="IDs used today: <i>robot</i>")).to_be_visible()
    visitor.open("/console")
    tile = page.locator(".tile", has=page.get_by_text("IDs made today", exact=True))
    expect(tile.locator(".tile-value")).to_have_text("40")
    expect(tile.get_by_role("img", name="IDs a day over time")).to_be_visible()


def test_what_does_not_fit_the_quota_is_refused_whole(visitor: Visitor, person: Person) -> None:
    visitor.expects("status of 429|Error Code 429")
    page = visitor.log_in(person, path)
    page.get_by_role("button", name="Make IDs").click()
    expect(page.get_by_text("10 IDs of 7 characters")).to_be_visible()
    page.get_by_label("How many").fill("991")
    page.get_by_role("button", name="Make IDs").click()
    said = page.get_by_role("status").filter(has_text="Daily quota exhausted")
    expect(said).to_contain_text("Your quota begins anew at midnight UTC")
    assert said.inner_text().count("midnight") == 1
    expect(page.get_by_role("region", name="Today's quota")).to_contain_text("10 of 1,000")
    page.get_by_label("How many").fill("990")
    page.get_by_role("button", name="Make IDs").click()
    expect(page.get_by_text("990 IDs of 7 characters")).to_be_visible()


def test_everybody_can_use_the_page(new_visitor: NewVisitor, person: Person) -> None:
    page = new_visitor(
        **unguarded, viewport=phone, color_scheme="dark", reduced_motion="reduce"
    ).log_in(person, path)
    page.get_by_role("button", name="Make IDs").click()
    expect(page.get_by_role("region", name="The IDs")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
    assert issues(page) == []
    page.emulate_media(color_scheme="light")
    page.reload()
    assert issues(page) == []
