"""The documentation pages: all of the document, all errors, and nothing that could run."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser

import httpx
import pytest
from starlette.applications import Starlette

from services.core.errors import CATALOGUE
from services.runtime.docs_pages import docs_routes, policy
from services.runtime.endpoints import Access, Endpoint
from services.runtime.error_advice import advice
from services.runtime.openapi import openapi_document
from tests.unit.test_openapi import listed

hostile = Endpoint(
    "GET",
    "/<script>alert(1)</script>",
    "hostile",
    '"><img src=x onerror=alert(1)>',
    None,
    Access.OPEN,
    description="<b>bold</b>",
)
document = openapi_document("things & <more>", "1", [*listed, hostile], description="About <them>")


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src"):
                self.links.append(value or "")


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=docs_routes(document))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as browser:
        yield browser


async def pages(browser: httpx.AsyncClient) -> dict[str, Page]:
    return {path: Page((await browser.get(path)).text) for path in ("/docs", "/docs/errors")}


async def test_every_link_leads_somewhere_and_nothing_comes_from_elsewhere(
    browser: httpx.AsyncClient,
) -> None:
    found = await pages(browser)
    for path, page in found.items():
        assert len(page.ids) == len(set(page.ids))
        for link in page.links:
            place, _, part = link.partition("#")
            if place == "/openapi.json":
                continue
            if place == "/docs/style.css":
                style = await browser.get(place)
                assert style.headers["Content-Type"].startswith("text/css")
                assert "url(" not in style.text
                continue
            target = found[place or path]
            assert not part or part in target.ids, link


async def test_every_operation_parameter_member_and_code_is_there(
    browser: httpx.AsyncClient,
) -> None:
    text = (await browser.get("/docs")).text
    for operations in document["paths"].values():
        for operation in operations.values():
            assert f'id="{operation["operationId"]}"' in text
            for parameter in operation.get("parameters", ()):
                assert f"<code>{parameter['name']}</code>" in text
    for name, schema in document["components"]["schemas"].items():
        assert f'id="schema-{name}"' in text
        for member in schema["properties"]:
            assert f"<code>{member}</code>" in text


async def test_every_code_has_its_entry_and_says_what_to_do(browser: httpx.AsyncClient) -> None:
    assert advice.keys() == CATALOGUE.keys()
    assert all(re.fullmatch(r"[A-Z].+\.", text, re.DOTALL) for text in advice.values())
    page = (await pages(browser))["/docs/errors"]
    assert CATALOGUE.keys() <= set(page.ids)


async def test_nothing_in_a_page_can_run(browser: httpx.AsyncClient) -> None:
    for path, page in (await pages(browser)).items():
        assert not page.tags & {"script", "style", "iframe", "img", "object", "form", "base"}
        assert not any(name.startswith("on") or name == "style" for name in page.attributes)
        headers = (await browser.get(path)).headers
        assert headers["Content-Security-Policy"] == policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Type"] == "text/html; charset=utf-8"


async def test_a_page_of_a_service_without_operations_says_so() -> None:
    app = Starlette(routes=docs_routes(openapi_document("nothing", "1", [])))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as browser:
        assert "There are no operations" in (await browser.get("/docs")).text
