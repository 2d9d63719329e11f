"""API keys by the page: made, shown once, used, rotated and revoked; with and without scripts."""

from __future__ import annotations

import os
import re
import subprocess

from playwright.sync_api import Page, expect

from tests.browser.accessibility import issues, unguarded
from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person
from tests.browser.visitor import Visitor, phone

markup = "<img src=x onerror=alert(1)><b>bold</b>"
path = "/console/keys"


def make(page: Page, name: str) -> str:
    """A key with this name; what it is."""
    page.get_by_role("link", name="New key").click()
    dialog = page.get_by_role("dialog", name="New API key")
    dialog.get_by_label("Name", exact=True).fill(name)
    dialog.get_by_role("button", name="Make the key").click()
    return shown_key(page)


def shown_key(page: Page) -> str:
    secret = page.locator("#made-key")
    expect(secret).to_have_text(re.compile("ydht_[0-9A-Za-z]{49}"))
    return secret.inner_text()


def run(lines: str) -> str:
    """What the shell of this machine says to what a page shows."""
    ran = subprocess.run(  # noqa: S603  Of our own page.
        ["/bin/bash", "-euc", lines],
        env={"PATH": os.environ["PATH"], "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return ran.stdout


def test_a_key_is_made_used_rotated_and_revoked(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person, path)
    expect(page.get_by_role("heading", name="No API keys yet")).to_be_visible()
    first = make(page, "robot")
    expect(page.locator("#made-code-curl")).to_contain_text(f"X-API-Key: {first}")
    # A key that nobody has copied does not go by a slip.
    page.keyboard.press("Escape")
    page.mouse.click(5, 300)
    expect(page.locator("#made-key")).to_be_visible()
    page.get_by_role("link", name="I have copied it").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#made-key")).to_have_count(0)
    assert first not in page.content()
    with visitor.platform.gateway(first) as gateway:
        assert gateway.put("/v1/kv/a", content=b"1").status_code == 200

    page.get_by_role("link", name="Rotate robot").click()
    expect(page.get_by_role("dialog", name="Rotate an API key")).to_be_visible()
    page.get_by_label("How long the old key is still good").select_option("0s")
    page.get_by_role("button", name="Rotate").click()
    second = shown_key(page)
    assert second != first
    page.get_by_role("link", name="I have copied it").click()
    page.get_by_text("1 that has ended").click()
    expect(page.get_by_role("table", name="API keys that have ended")).to_contain_text("expired")

    page.get_by_role("link", name="Revoke robot").click()
    expect(page.get_by_role("dialog", name="Revoke an API key?")).to_be_visible()
    page.get_by_role("link", name="Keep it").click()
    page.get_by_role("link", name="Revoke robot").click()
    page.get_by_role("button", name="Revoke robot").click()
    expect(page.get_by_role("status").filter(has_text="was revoked")).to_be_visible()
    expect(page.get_by_role("heading", name="No API key is active")).to_be_visible()
    answers = person.ask("GET", "/apikeys").json()["api_keys"]
    assert [key["is_active"] for key in answers] == [False, False]


def test_the_lines_of_a_narrowed_key_do_what_the_key_may(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person, path)
    dialog = page.get_by_role("dialog", name="New API key")
    for scopes, prefix, told in (
        (("Read", "Write"), "logs/", "hello, world"),
        (("Read",), "", '"keys":[{"key":"logs/greeting"'),
        (("Write",), "it's/../", '"success":true'),
        (("Administer",), "logs/", '"matched":1'),
    ):
        page.get_by_role("link", name="New key").click()
        dialog.get_by_label("Name", exact=True).fill("narrow")
        for scope in ("Read", "Write", "Administer"):
            dialog.get_by_label(scope, exact=True).set_checked(scope in scopes)
        dialog.get_by_text("Narrow it further").click()
        dialog.get_by_label("Only keys that begin with").fill(prefix)
        dialog.get_by_role("button", name="Make the key").click()
        key = shown_key(page)
        lines = page.locator("#made-code-curl").inner_text()
        said = run(lines.replace("curl ", "curl -sS "))
        assert told in said, (lines, said)
        assert '"code"' not in said, (lines, said)
        for language in ("python", "javascript"):
            code = page.locator(f"#made-code-{language}").text_content() or ""
            assert key in code
            assert ("PUT" in code.upper()) == ("Write" in scopes), code
        page.get_by_role("link", name="I have copied it").click()
        expect(page.get_by_role("dialog")).to_be_hidden()


def test_what_is_wrong_stands_beside_its_field(visitor: Visitor, person: Person) -> None:
    visitor.expects("status of 400|Error Code 400")
    page = visitor.log_in(person, path)
    page.get_by_role("link", name="Make an API key").click()
    dialog = page.get_by_role("dialog", name="New API key")
    dialog.get_by_label("Name", exact=True).fill("robot")
    dialog.get_by_label("Read", exact=True).uncheck()
    dialog.get_by_label("Write", exact=True).uncheck()
    dialog.get_by_text("Narrow it further").click()
    dialog.get_by_label(re.compile("requests a minute")).fill("many")
    dialog.get_by_role("button", name="Make the key").click()
    expect(dialog.locator("#field-rate_limit_per_minute-problem")).to_contain_text("whole number")
    expect(dialog.locator("#scopes-problem")).to_contain_text("at least one")
    expect(dialog.get_by_label("Name", exact=True)).to_have_value("robot")
    assert person.ask("GET", "/apikeys").json()["count"] == 0


def test_a_form_that_cannot_be_brought_leaves_nobody_waiting(
    visitor: Visitor, person: Person
) -> None:
    visitor.expects("status of 503|Error Code 503")
    page = visitor.log_in(person, path)
    away = '<div class="toast toast-bad"><p>Away</p></div>'
    where = {"HX-Retarget": "#toasts", "HX-Reswap": "beforeend"}
    page.route(
        "**/console/keys/new",
        lambda route: route.fulfill(status=503, headers=where, content_type="text/html", body=away),
    )
    page.get_by_role("link", name="New key").click()
    expect(page.locator(".toast")).to_have_text("Away")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_by_keyboard_alone_a_key_is_made(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person, path)
    page.get_by_role("link", name="New key").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("typed")
    page.keyboard.press("Enter")
    shown_key(page)
    expect(page.locator("#key-dialog")).to_contain_text("typed")


def test_markup_in_a_name_is_text_everywhere(visitor: Visitor, person: Person) -> None:
    visitor.platform.api_key(person, name=markup, prefix=markup)
    page = visitor.log_in(person, path)
    expect(page.get_by_role("rowheader", name=markup)).to_be_visible()
    page.get_by_role("link", name=f"Revoke {markup}").click()
    expect(page.get_by_role("dialog")).to_contain_text(markup)
    page.get_by_role("link", name="Keep it").click()
    page.get_by_role("link", name=f"Rotate {markup}").click()
    expect(page.get_by_role("dialog", name="Rotate an API key")).to_contain_text(markup)
    page.get_by_role("button", name="Rotate").click()
    shown_key(page)
    expect(page.get_by_role("dialog")).to_contain_text(markup)
    assert page.locator("img").count() == 0


def test_without_scripts_forms_are_pages(new_visitor: NewVisitor, person: Person) -> None:
    page = new_visitor(java_script_enabled=False).log_in(person, path)
    page.get_by_role("link", name="New key").click()
    page.get_by_label("Name", exact=True).fill("plain")
    page.get_by_role("button", name="Make the key").click()
    shown_key(page)
    page.get_by_role("link", name="I have copied it").click()
    page.get_by_role("link", name="Revoke plain").click()
    page.get_by_role("button", name="Revoke plain").click()
    expect(page.get_by_role("heading", name="No API key is active")).to_be_visible()


def test_everybody_can_use_the_page(new_visitor: NewVisitor, person: Person) -> None:
    visitor = new_visitor(**unguarded, viewport=phone, color_scheme="dark", reduced_motion="reduce")
    visitor.platform.api_key(person, name="a name that is " + "long, " * 13 + "long")
    page = visitor.log_in(person, path)
    assert issues(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
    page.get_by_role("link", name="New key").click()
    expect(page.get_by_label("Name", exact=True)).to_be_visible()
    assert issues(page) == []
    page.emulate_media(color_scheme="light")
    page.reload()
    assert issues(page) == []
