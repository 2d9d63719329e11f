"""The chapters of the documentation: limits as services hold them, words with code in them, and
documents of services that are away or are none of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import jinja2
import pytest

from services.core.errors import CATALOGUE
from services.runtime.api_reference import reference_of
from services.runtime.clock import FakeClock, Timeline
from services.runtime.openapi import openapi_document
from services.usermanager.pages import docs_limits
from services.usermanager.pages.assets import web_directory
from services.usermanager.pages.docs import coded, needs
from services.usermanager.pages.docs_references import References, away_s, kept_s
from services.usermanager.pages.gateway_calls import PlatformCalls
from tests.unit.test_docs_pages import hostile
from tests.unit.test_openapi import listed

told = openapi_document("ydht gateway", "1", listed)
Answer = Callable[[httpx.Request], httpx.Response]


class Elsewhere:
    """What stands at the addresses of the gateway and of keygen."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Answer = lambda _: httpx.Response(200, json=told)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        return self.answer(request)


class Desk:
    def __init__(self) -> None:
        self.timeline = Timeline()
        self.elsewhere = Elsewhere()
        clock = FakeClock(self.timeline)
        calls = PlatformCalls(
            "http://gateway",
            "http://keygen",
            "tests sign by this secret 1b9a",
            clock,
            transport=httpx.MockTransport(self.elsewhere),
        )
        own = openapi_document("ydht user manager", "1", listed)
        self.references = References(own, calls, clock)

    def later(self, seconds: float) -> None:
        self.timeline.advance(seconds)


def away(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody is there")


async def test_a_document_is_asked_for_once_in_a_minute() -> None:
    desk = Desk()
    first = await desk.references.of("gateway")
    assert first is not None
    assert first.title == "ydht gateway"
    assert await desk.references.of("gateway") is first
    assert desk.elsewhere.asked == 1
    desk.later(kept_s + 1)
    # It is the same still, and so is not read again.
    assert await desk.references.of("gateway") is first
    assert desk.elsewhere.asked == 2


async def test_who_is_away_has_no_chapter_until_it_is_there() -> None:
    desk = Desk()
    desk.elsewhere.answer = away
    assert await desk.references.of("keygen") is None
    desk.elsewhere.answer = lambda _: httpx.Response(200, json=told)
    assert await desk.references.of("keygen") is None, "it is not asked again at once"
    desk.later(away_s + 1)
    assert await desk.references.of("keygen") is not None


async def test_what_was_told_last_stays_while_its_service_is_away() -> None:
    desk = Desk()
    first = await desk.references.of("gateway")
    desk.elsewhere.answer = away
    desk.later(kept_s + 1)
    assert await desk.references.of("gateway") is first


async def test_the_own_document_needs_nobody() -> None:
    desk = Desk()
    desk.elsewhere.answer = away
    found = await desk.references.of("usermanager")
    assert found is not None
    assert desk.elsewhere.asked == 0


def test_a_chapter_has_everything_of_its_document_and_nothing_in_it_is_markup() -> None:
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(web_directory() / "templates"),
        undefined=jinja2.StrictUndefined,
    )
    document = openapi_document("hostile", "1", [*listed, hostile])
    shown = environment.get_template("docs/_reference.html").render(
        reference=reference_of(document), coded=coded, needs=needs
    )
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;alert(1)" in shown
    for operations in document["paths"].values():
        for operation in operations.values():
            assert f'id="{operation["operationId"]}"' in shown
            for parameter in operation.get("parameters", ()):
                assert f"<code>{parameter['name']}</code>" in shown
    for name in document["components"]["schemas"]:
        assert f'id="shape-{name}"' in shown


def strange(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(json.dumps(told))
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"info": 7, "paths": {}}',
        b'{"info": {"title": "x"}, "paths": {"/": {"get": []}}, "components": {"schemas": {}}}',
        b"\xff" * 100,
        strange(lambda document: document.pop("components")),
        strange(lambda document: document["paths"].update({"/x": {"get": {"operationId": "x"}}})),
        b'{"padding": "' + b"x" * (5 << 20) + b'"}',
    ],
    ids=range(11),
)
async def test_what_is_no_document_of_ours_is_no_chapter(content: bytes) -> None:
    desk = Desk()
    desk.elsewhere.answer = lambda _: httpx.Response(200, content=content)
    assert await desk.references.of("gateway") is None


def test_every_limit_names_an_error_that_there_is() -> None:
    limits = [limit for group in docs_limits.groups() for limit in group.limits]
    assert {limit.code for limit in limits} - {""} <= CATALOGUE.keys()
    told = {limit.what: limit.most for limit in limits}
    assert told["Value"] == "1 MiB"
    assert told["Metadata"] == "1 KiB"
    assert told["Key"] == "1 to 1024 bytes"
    assert told["Body of a batch, and its answer"] == "16 MiB"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain & <b>bold</b>", "plain &amp; &lt;b&gt;bold&lt;/b&gt;"),
        ("the scope `read`.", "the scope <code>read</code>."),
        ("`<img onerror=x>`", "<code>&lt;img onerror=x&gt;</code>"),
        ("one ` alone <i>", "one ` alone &lt;i&gt;"),
        ("", ""),
    ],
)
def test_what_stands_between_backticks_is_code_and_nothing_is_markup(text: str, shown: str) -> None:
    assert str(coded(text)) == shown


def test_credentials_are_told_in_words_once_each() -> None:
    assert needs(["api_key", "api_key_as_bearer"]) == "API key"
    assert needs([]) == ""
