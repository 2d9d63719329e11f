"""The documentation: each chapter, each error's own place, examples that work, and paper."""

from __future__ import annotations

import os
import re
import subprocess

import httpx
import pytest
from playwright.sync_api import expect

from services.core.errors import CATALOGUE
from services.usermanager.pages.docs import chapters
from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person, RunningPlatform
from tests.browser.visitor import Visitor, phone


def test_every_chapter_leads_to_each_of_its_parts(visitor: Visitor) -> None:
    page = visitor.open("/docs")
    links = page.get_by_role("navigation", name="Chapters").get_by_role("link")
    assert links.all_inner_texts() == [chapter.title for chapter in chapters]
    for chapter in chapters:
        visitor.open(chapter.path)
        expect(page.get_by_role("heading", level=1)).to_have_text(chapter.title)
        broken = page.evaluate(
            """() => [...document.querySelectorAll("main a[href^='#']")]
                .map((link) => decodeURIComponent(link.hash.slice(1)))
                .filter((id) => !document.getElementById(id))"""
        )
        assert broken == [], chapter.path
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
        assert len(ids) == len(set(ids)), chapter.path
        # What is on a page is listed on it.
        titled = page.locator("article h2").count()
        listed = page.locator(".docs-contents > ul > li").count()
        assert titled == listed > 0, chapter.path


def test_the_type_of_an_error_is_a_link_to_what_to_do(
    visitor: Visitor, person: Person, platform: RunningPlatform
) -> None:
    with platform.gateway(platform.api_key(person)["key"]) as client:
        problem = client.get("/v1/kv/nothing").json()
    page = visitor.open(problem["type"])
    section = page.locator("#key_not_found")
    expect(section).to_be_in_viewport()
    expect(section).to_contain_text("Key not found")
    for code in CATALOGUE:
        assert page.locator(f"section#{code}").count() == 1, code


def test_every_operation_of_every_service_is_told_with_its_errors(visitor: Visitor) -> None:
    for service, operation, code in (
        ("gateway", "putValue", "value_too_large"),
        ("gateway", "runBatch", "invalid_body"),
        ("keygen", "returnKeys", "invalid_api_key"),
        ("usermanager", "signUp", "already_exists"),
    ):
        page = visitor.open(f"/docs/api/{service}#{operation}")
        section = page.locator(f"section#{operation}")
        expect(section).to_be_in_viewport()
        link = section.get_by_role("link", name=code, exact=True)
        expect(link).to_have_attribute("href", f"/docs/errors#{code}")


def test_the_examples_of_the_quick_start_do_what_they_say(
    visitor: Visitor, platform: RunningPlatform
) -> None:
    page = visitor.open("/docs")
    # Of a plan that allows all of them within a second.
    key = platform.demo["api_key"]
    expected = {
        "code-signup": '"key":"ydht_',
        "code-ttl": '"expires_at":"',
        "code-strong": "signed",
        "code-conditions": '"value":1',
        "code-many": '"matched":1',
        "code-ids": '"ids":[',
    }
    for block, told in expected.items():
        code = page.locator(f"#{block}").inner_text().replace("curl ", "curl -sS ")
        # Others may have her name in this platform.
        code = code.replace("ada@example", "quick-start@example").replace('"ada"', '"quick start"')
        # What the page tells everybody to run, in the shell of this machine.
        ran = subprocess.run(  # noqa: S603
            ["/bin/bash", "-euc", code],
            env={"PATH": os.environ["PATH"], "YDHT_API_KEY": key, "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert told in ran.stdout, ran.stdout
        assert '"code":"' not in ran.stdout, ran.stdout
    # It would end by itself, and that amidst another test that follows every link.
    lock = f"{platform.gateway_url}/v1/kv/lock/report"
    assert httpx.delete(lock, headers={"X-API-Key": key}, trust_env=False).status_code == 200


def test_a_language_is_chosen_by_keyboard_and_kept(visitor: Visitor) -> None:
    page = visitor.open("/docs")
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#first-python")).to_be_visible()
    visitor.open("/docs")
    expect(page.get_by_role("tab", name="Python")).to_have_attribute("aria-selected", "true")


def test_on_paper_there_is_the_text_alone(visitor: Visitor) -> None:
    page = visitor.open("/docs/consistency")
    page.emulate_media(media="print")
    for part in (".top", ".side", ".docs-contents", ".foot"):
        expect(page.locator(part)).to_be_hidden()
    expect(page.get_by_role("img", name=re.compile("A strong write"))).to_be_visible()


@pytest.mark.parametrize("path", ["/docs/consistency", "/docs/api/gateway"])
def test_a_chapter_is_readable_on_a_phone(new_visitor: NewVisitor, path: str) -> None:
    page = new_visitor(viewport=phone).open(path)
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_be_visible()
    small = page.evaluate(
        """() => [...document.querySelectorAll(".seq text")]
            .map((text) => text.getBoundingClientRect().height).filter((height) => height < 9)"""
    )
    assert small == []
