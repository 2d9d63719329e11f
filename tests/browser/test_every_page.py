"""What is true of every page there is: found by following all links, from the first page, the
documentation and the console's own navigation; and every page that the site has is found so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import product
from typing import Literal
from urllib.parse import parse_qsl, urldefrag, urljoin, urlsplit

import httpx
import pytest
from playwright.sync_api import Page

from services.usermanager.pages.docs import chapters
from services.usermanager.pages.navigation import entries
from tests.browser.accessibility import issues, unguarded
from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person, RunningPlatform
from tests.browser.visitor import Visitor, phone, wide

# More than there are; a link that makes ever new ones would end it.
pages_max = 150
# Of pages that differ in what is asked for alone, as those of keys do; other tests leave many.
alike_max = 5
stranger_paths = ("/", "/signup", "/login", *(chapter.path for chapter in chapters))
long_paths = ("/docs/errors", "/docs/api/gateway")
schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
console_paths = tuple(entry.path for entry in entries)
# Where only a form may lead, or what is no page.
not_followed = re.compile(r"^/(logout|assets/|openapi\.json|favicon\.ico)|\.(csv|ndjson)\b|/export")


class Content(HTMLParser):
    """What a page consists of that may be wrong."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.inline: list[str] = []
        self.unguarded_forms: list[str] = []
        self._form: str | None = None
        self._is_guarded = True
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "a" and named.get("href"):
            self.links.append(named["href"] or "")
        if tag in ("script", "img") and named.get("src"):
            self.assets.append(named["src"] or "")
        if tag == "link" and named.get("rel") in ("stylesheet", "icon"):
            self.assets.append(named["href"] or "")
        if tag == "style" or (tag == "script" and not named.get("src")):
            self.inline.append(tag)
        self.inline += [f"{tag} {name}" for name in named if name == "style" or name[:2] == "on"]
        if tag == "form":
            self._form = named.get("action") or "(here)"
            self._is_guarded = (named.get("method") or "get").lower() == "get"
        if tag == "input" and named.get("name") == "_csrf" and named.get("value"):
            self._is_guarded = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "form" and self._form is not None:
            if not self._is_guarded:
                self.unguarded_forms.append(self._form)
            self._form = None


@pytest.fixture
def stranger(platform: RunningPlatform) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=platform.url, headers={"Accept": "text/html"}, trust_env=False, timeout=30
    ) as client:
        yield client


def wrong_with(answer: httpx.Response) -> list[str]:
    """What no page may have, or may lack."""
    headers, found = answer.headers, []
    policy = headers.get("content-security-policy", "")
    for name, is_well in {
        "policy": "default-src 'none'" in policy and "unsafe" not in policy,
        "frames": "frame-ancestors 'none'" in policy and headers.get("x-frame-options") == "DENY",
        "sniffing": headers.get("x-content-type-options") == "nosniff",
        "referrer": headers.get("referrer-policy") == "same-origin",
        "keeping": headers.get("cache-control") in ("no-store", "private, no-cache")
        or headers.get("cache-control", "").startswith("public, max-age=300"),
        "title": re.search(r"<title>[^<]{3,}</title>", answer.text) is not None,
        "language": '<html lang="en">' in answer.text,
        "main": len(re.findall(r"<main\b", answer.text)) == 1,
        "heading": len(re.findall(r"<h1\b", answer.text)) == 1,
    }.items():
        if not is_well:
            found.append(name)
    content = Content(answer.text)
    return found + content.inline + [f"form {path}" for path in content.unguarded_forms]


def is_harmless(answer: httpx.Response) -> bool:
    """Of what is no page, such as a stored value: whether no browser would run what is in it."""
    media_type = answer.headers["content-type"].partition(";")[0]
    is_quiet = media_type in ("application/octet-stream", "application/json", "text/plain")
    return is_quiet and answer.headers.get("x-content-type-options") == "nosniff"


def walk(client: httpx.Client, begin: tuple[str, ...]) -> dict[str, list[str]]:
    """Every page that can be come to from these, and what is wrong with it."""
    waiting, seen, wrong = list(begin), set(begin), {}
    assets: set[str] = set()
    alike: Counter[tuple[str, ...]] = Counter()
    while waiting:
        path = waiting.pop(0)
        answer = client.get(path)
        if answer.status_code in (302, 303, 307):
            found, links = [], [answer.headers["location"]]
        elif answer.status_code == 200 and "text/html" in answer.headers["content-type"]:
            content = Content(answer.text)
            found, links = wrong_with(answer), content.links
            assets.update(content.assets)
        elif answer.status_code == 200 and is_harmless(answer):
            found, links = [], []
        else:
            found, links = [f"{answer.status_code} {answer.headers.get('content-type')}"], []
        if found:
            wrong[path] = found
        for link in links:
            target = urldefrag(urljoin(str(client.base_url) + path, link)).url
            if not target.startswith(str(client.base_url).rstrip("/") + "/"):
                continue
            parts = urlsplit(target)
            below = parts.path + (f"?{parts.query}" if parts.query else "")
            if below not in seen and not not_followed.search(below):
                kind = (parts.path, *sorted(name for name, _ in parse_qsl(parts.query)))
                alike[kind] += 1
                if alike[kind] > alike_max:
                    continue
                seen.add(below)
                waiting.append(below)
        assert len(seen) < pages_max, sorted(seen)
    for asset in assets:
        answer = client.get(asset)
        if answer.status_code != 200 or "immutable" not in answer.headers["cache-control"]:
            wrong[asset] = [f"asset {answer.status_code}"]
    return wrong


def cookies_of(page: Page, client: httpx.Client) -> None:
    for cookie in page.context.cookies():
        client.cookies.set(cookie["name"], cookie["value"])


def test_every_page_for_strangers_is_whole(stranger: httpx.Client) -> None:
    assert walk(stranger, stranger_paths) == {}


def test_every_page_for_operators_is_whole(visitor: Visitor, stranger: httpx.Client) -> None:
    page = visitor.log_in_as_demo()
    cookies_of(page, stranger)
    shown = page.get_by_role("navigation", name="Console").get_by_role("link")
    assert shown.all_inner_texts() == [entry.label for entry in entries]
    assert walk(stranger, ("/", *console_paths)) == {}


def test_every_page_for_others_is_whole_and_no_operators_page_is_among_them(
    visitor: Visitor, person: Person, platform: RunningPlatform, stranger: httpx.Client
) -> None:
    with platform.gateway(platform.api_key(person)["key"]) as client:
        for key in ("plain", "folder/inner", "<img src=x onerror=alert(1)>"):
            client.put(f"/v1/kv/{key}", content=b"<script>alert(1)</script>").raise_for_status()
    page = visitor.log_in(person)
    cookies_of(page, stranger)
    shown = page.get_by_role("navigation", name="Console").get_by_role("link")
    assert shown.all_inner_texts() == [each.label for each in entries if not each.operators_only]
    open_to_all = tuple(entry.path for entry in entries if not entry.operators_only)
    assert walk(stranger, ("/", *open_to_all)) == {}
    for entry in entries:
        if entry.operators_only:
            assert stranger.get(entry.path).status_code == 404


def test_the_console_lets_no_stranger_in(stranger: httpx.Client) -> None:
    for path in console_paths:
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/login?next={path}")


def look(page: Page, is_each: bool = True) -> list[str]:
    """What keeps people from using this page, in light and dark, on a phone and on a desk: in each
    of the four, or in two of them that have both. A page that is wider than its window is found,
    too."""
    found = []
    for scheme, size in product(schemes, (phone, wide)):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if over > 0:
            found.append(f"{size['width']} px: {over} px too wide")
        if is_each or (scheme == "light") == (size is phone):
            page.emulate_media(color_scheme=scheme)
            found += [f"{scheme}, {size['width']} px: {issue}" for issue in issues(page)]
    return found


def test_nothing_serious_is_in_the_way_of_strangers(new_visitor: NewVisitor) -> None:
    visitor = new_visitor(**unguarded, reduced_motion="reduce")
    # Those of the API look all alike, and are long.
    paths = [
        path for path in stranger_paths if path not in ("/docs/api/keygen", "/docs/api/usermanager")
    ]
    found = {path: look(visitor.open(path), path not in long_paths) for path in paths}
    assert {path: issues for path, issues in found.items() if issues} == {}


def test_nothing_serious_is_in_the_way_in_the_console(new_visitor: NewVisitor) -> None:
    visitor = new_visitor(**unguarded, reduced_motion="reduce")
    visitor.log_in_as_demo()
    found = {path: look(visitor.open(path)) for path in (*console_paths, "/console/welcome")}
    assert {path: issues for path, issues in found.items() if issues} == {}


def by_keyboard(page: Page) -> list[str]:
    """What can be pressed or filled in on the page, and Tab does not come to."""
    # What is brought anew meanwhile would take the focus with it.
    live = page.locator("button[data-live][aria-pressed=true]")
    if live.count():
        live.click()
    page.evaluate(
        """() => {
            const shown = (one) => one.checkVisibility({ visibilityProperty: true })
              && !one.closest("[inert], dialog:not([open])") && !one.disabled;
            const radios = new Set();
            const kinds = "a[href], button, input, select, textarea, summary";
            for (const one of document.querySelectorAll(kinds)) {
              if (!shown(one) || one.type === "hidden" || one.tabIndex < 0) continue;
              // Of radio buttons of one name Tab comes to one; arrows to the others.
              if (one.type === "radio") {
                if (radios.has(one.name)) continue;
                radios.add(one.name);
                for (const other of document.getElementsByName(one.name)) {
                  other.dataset.radio = one.name;
                }
                one.dataset.waits = "radio";
                continue;
              }
              one.dataset.waits = "yes";
            }
            document.body.tabIndex = -1;
            document.body.focus();
        }"""
    )
    step = """() => {
        const one = document.activeElement;
        const name = one.dataset.radio;
        const alike = name ? document.querySelectorAll(`[data-radio="${name}"]`) : [];
        alike.forEach((other) => delete other.dataset.waits);
        delete one.dataset.waits;
        const outline = getComputedStyle(one).outlineStyle !== "none"
          || getComputedStyle(one.nextElementSibling ?? one).outlineStyle !== "none";
        return [one === document.body, outline, one.outerHTML.slice(0, 120)];
    }"""
    wrong = []
    for _ in range(400):
        page.keyboard.press("Tab")
        is_over, is_seen, html = page.evaluate(step)
        if is_over:
            break
        if not is_seen:
            wrong.append(f"focus is not seen: {html}")
    # What has gone meanwhile, as the advice for those without the demo does once its key is there,
    # is nothing to come to.
    left = page.evaluate(
        """() => [...document.querySelectorAll("[data-waits]")]
            .filter((one) => one.checkVisibility({ visibilityProperty: true }))
            .map((one) => one.outerHTML.slice(0, 120))"""
    )
    return wrong + [f"not reached: {html}" for html in left]


def test_everything_can_be_reached_by_keyboard(visitor: Visitor) -> None:
    found = {path: by_keyboard(visitor.open(path)) for path in ("/", "/signup", "/docs/limits")}
    visitor.log_in_as_demo()
    found |= {path: by_keyboard(visitor.open(path)) for path in console_paths}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}
