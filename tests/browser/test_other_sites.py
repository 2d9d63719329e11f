"""What pages of other sites cannot do to somebody who has logged in here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import expect

from tests.browser.running_platform import Person
from tests.browser.visitor import Visitor


class EvilSite(ThreadingHTTPServer):
    """A page that somebody else has made. It is on this machine, or the browser would keep it from
    us for that alone, and by another name, so that it is another site."""

    page = b""

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_address[1]}/"

    def lures(self, visitor: Visitor, html: str) -> None:
        self.page = html.encode()
        visitor.page.goto(self.url)


class _Answer(BaseHTTPRequestHandler):
    server: EvilSite

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(self.server.page)))
        self.end_headers()
        self.wfile.write(self.server.page)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  Likewise.
        """Says nothing."""


@pytest.fixture
def evil() -> Iterator[EvilSite]:
    with EvilSite(("127.0.0.1", 0), _Answer) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/", "/login", "/console/account"])
def test_nobody_shows_our_pages_in_a_frame(
    visitor: Visitor, evil: EvilSite, person: Person, path: str
) -> None:
    visitor.expects("frame-ancestors|ERR_BLOCKED_BY_RESPONSE")
    visitor.log_in(person)
    # Until then there is nothing in the frame anyway.
    with visitor.page.expect_console_message(lambda said: "frame-ancestors" in said.text):
        evil.lures(visitor, f'<iframe src="{visitor.platform.url}{path}"></iframe>')
    (frame,) = [each for each in visitor.page.frames if each != visitor.page.main_frame]
    expect(frame.locator("body")).not_to_contain_text("ydht")
    assert frame.locator("form").count() == 0


def test_a_form_on_another_site_logs_nobody_out(
    visitor: Visitor, evil: EvilSite, person: Person
) -> None:
    visitor.expects("status of 403")
    visitor.log_in(person)
    action = f"{visitor.platform.url}/logout"
    evil.lures(visitor, f'<form method="post" action="{action}"><button>Win!</button></form>')
    visitor.page.get_by_role("button").click()
    expect(visitor.page.locator("[data-error=csrf]")).to_be_visible()
    visitor.open("/console/account")
    expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Account")


def test_a_script_of_another_site_reads_nothing_of_ours(
    visitor: Visitor, evil: EvilSite, person: Person
) -> None:
    visitor.expects("CORS policy|ERR_FAILED")
    visitor.log_in(person)
    evil.lures(visitor, "<p>nothing to see</p>")
    read = visitor.page.evaluate(
        "(url) => fetch(url, {credentials: 'include'}).then((a) => a.text()).catch(() => 'no')",
        f"{visitor.platform.url}/console/account",
    )
    assert read == "no"


def test_a_link_to_log_in_leads_to_no_other_site(visitor: Visitor, person: Person) -> None:
    page = visitor.open("/login?next=//evil.example/")
    page.get_by_label("Email address").fill(person.email)
    page.get_by_label("Password", exact=True).fill(person.password)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{visitor.platform.url}/console")


def test_where_the_gateway_cannot_be_reached_the_box_says_so(visitor: Visitor) -> None:
    visitor.expects("Failed to load|request failed|CORS")
    page = visitor.page
    page.route(f"{visitor.platform.gateway_url}/**", lambda route: route.abort())
    visitor.open("/")
    page.get_by_role("button", name="Store it and read it back").click()
    expect(page.get_by_role("log", name="Answers")).to_contain_text("cannot be reached from here")
    expect(page.get_by_role("button", name="Store it and read it back")).to_be_enabled()
