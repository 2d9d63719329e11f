"""Who writes over a version that somebody else has put meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from playwright.sync_api import expect

from tests.browser.running_platform import Person
from tests.browser.visitor import Visitor


def test_an_expiry_that_is_kept_is_that_of_the_version_written_over(
    visitor: Visitor, person: Person
) -> None:
    made = visitor.platform.api_key(person)
    with visitor.platform.gateway(made["key"]) as gateway:
        put = gateway.put("/v1/kv/lease", params={"ttl": "1h"}, content=b"first")
        assert put.status_code == 200
        visitor.log_in(person, "/console/data")
        page = visitor.open("/console/data/key?namespace=default&key=lease")
        expect(page.get_by_label("Value", exact=True)).to_have_value("first")
        expect(page.locator("#value-expiry")).to_have_value("keep")
        gateway.put("/v1/kv/lease", params={"ttl": "10h"}, content=b"theirs")
        visitor.expects("status of 412")
        page.get_by_label("Value", exact=True).fill("mine")
        page.get_by_role("button", name="Save", exact=True).click()
        dialog = page.get_by_role("dialog", name="Somebody else has changed it")
        expect(dialog.locator("[data-theirs]")).to_have_text("theirs")
        dialog.get_by_role("button", name="Save mine over it").click()
        expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
        answer = gateway.get("/v1/kv/lease", headers={"X-Consistency": "strong"})
    assert answer.text == "mine"
    left = datetime.fromisoformat(answer.headers["x-expires-at"]) - datetime.now(UTC)
    assert timedelta(hours=9) < left < timedelta(hours=10, minutes=1)
