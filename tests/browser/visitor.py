"""Somebody at a browser: a context of its own, whose every page is watched.

What a page must never do fails its test at the end: write an error to the console, let an exception
escape, break its own content policy, or ask for something that cannot be had. A test that provokes
such a thing says so before, by `expects`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    expect,
)

from tests.browser.running_platform import Person, RunningPlatform

wide = {"width": 1280, "height": 800}
phone = {"width": 375, "height": 720}
# On two cores that others use too.
patience_ms = 15_000

# What the browser calls a violation, besides the line it writes to the console.
_watch_policy = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violated: ${event.violatedDirective} by ${event.blockedURI}`));
"""


class Visitor:
    """`page` is the first page; more can be opened in the same context (`another_page`)."""

    def __init__(self, platform: RunningPlatform, context: BrowserContext) -> None:
        self.platform = platform
        self.context = context
        self._wrong: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        context.set_default_timeout(patience_ms)
        context.add_init_script(_watch_policy)
        context.on("page", self._watch)
        self.page = context.new_page()

    def another_page(self) -> Page:
        return self.context.new_page()

    def open(self, path: str) -> Page:
        """Go to a path of the user manager, and wait until the page's scripts have run."""
        self.page.goto(self.platform.url + path, wait_until="load")
        return self.page

    def log_in(self, person: Person, then: str = "/console/account") -> Page:
        """By the form, as people do; the page behind it has run its scripts."""
        return self._log_in(person.email, person.password, then)

    def log_in_as_demo(self, then: str = "/console/account") -> Page:
        """The demo account, an operator."""
        demo = self.platform.demo
        return self._log_in(demo["email"], demo["password"], then)

    def _log_in(self, email: str, password: str, then: str) -> Page:
        page = self.open(f"/login?next={then}")
        page.get_by_label("Email address").fill(email)
        page.get_by_label("Password", exact=True).fill(password)
        page.get_by_role("button", name="Log in").click()
        expect(page).to_have_url(self.platform.url + then)
        page.wait_for_load_state("load")
        return page

    def follow(self, link: Locator) -> Page:
        """Click what leads to another page, or to this one again, and wait until the scripts of
        that page have run."""
        with self.page.expect_navigation(wait_until="load"):
            link.click()
        return self.page

    def expects(self, pattern: str) -> None:
        """What this test brings about on purpose, such as `status of 404`."""
        self._expected.append(re.compile(pattern))

    def check(self) -> None:
        wrong = [
            text for text in self._wrong if not any(each.search(text) for each in self._expected)
        ]
        assert not wrong, "\n".join(wrong)

    def _watch(self, page: Page) -> None:
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._wrong.append(f"exception: {error}"))
        page.on("requestfailed", self._failed)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._wrong.append(f"{message.type}: {message.text} ({message.location})")

    def _failed(self, request: Request) -> None:
        # Whoever goes on to another page breaks off what the last one had asked for.
        if request.failure != "net::ERR_ABORTED":
            self._wrong.append(f"request failed: {request.url} {request.failure}")


@contextmanager
def visiting(platform: RunningPlatform, browser: Browser, **options: Any) -> Iterator[Visitor]:
    """`options` are those of a browser context: color_scheme="dark", viewport=phone, …"""
    context = browser.new_context(**{"viewport": wide, "locale": "en-GB", **options})
    try:
        visitor = Visitor(platform, context)
        yield visitor
        visitor.check()
    finally:
        context.close()
