"""The overview: figures that follow what is done, for as long as somebody looks."""

from __future__ import annotations

from playwright.sync_api import Page, Request, expect

from tests.browser.accessibility import issues, unguarded
from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person
from tests.browser.visitor import Visitor, patience_ms, phone

# What `document.visibilityState` says, for scripts of the page; the browser of tests is never
# hidden itself.
_hide = """
Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true });
document.dispatchEvent(new Event("visibilitychange"));
"""
_show = """
Object.defineProperty(document, "visibilityState", { value: "visible", configurable: true });
document.dispatchEvent(new Event("visibilitychange"));
"""

# Of five hours, in which there were nine keys.
_before = """
    INSERT INTO stored_history
    SELECT {user_id}, date_trunc('hour', now(), 'UTC') - make_interval(hours => ago), 9, 900
    FROM generate_series(1, 5) AS ago
"""


def tile(page: Page, label: str) -> str:
    return page.locator(".tile", has=page.get_by_text(label, exact=True)).inner_text()


def test_figures_follow_and_rest_while_nobody_looks(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person, "/console")
    expect(page.get_by_role("region", name="First steps")).to_contain_text("0 of 5")
    assert "0" in tile(page, "Stored keys")
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.evaluate(_hide)
    page.clock.install()
    page.on("request", note)
    page.clock.run_for(60_000)
    assert asked == []
    made = visitor.platform.api_key(person)
    with visitor.platform.gateway(made["key"]) as gateway:
        assert gateway.put("/v1/kv/a", content=b"x" * 2048).status_code == 200
    page.evaluate(_show)
    stored = page.locator(".tile", has=page.get_by_text("Stored keys", exact=True))
    # The next look, and what is kept for ten seconds.
    expect(stored.locator(".tile-value")).to_have_text("1", timeout=2 * patience_ms)
    expect(page.get_by_role("region", name="First steps")).to_contain_text("2 of 5")
    assert any(url.endswith("/console/figures") for url in asked)


def test_what_is_stored_is_shown_with_how_it_was(visitor: Visitor, person: Person) -> None:
    visitor.platform.sql(_before.format(user_id=person.id))
    page = visitor.log_in(person, "/console")
    for label in ("Stored keys", "Stored bytes"):
        spark = page.get_by_role("img", name=f"{label} over time")
        expect(spark).to_have_attribute("viewBox", "0 0 5 30")


def test_everybody_can_use_the_page(new_visitor: NewVisitor, person: Person) -> None:
    page = new_visitor(
        **unguarded, viewport=phone, color_scheme="dark", reduced_motion="reduce"
    ).log_in(person, "/console")
    assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
    assert issues(page) == []
    page.emulate_media(color_scheme="light")
    page.reload()
    assert issues(page) == []
