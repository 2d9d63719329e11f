"""What pages ask of other services, and what is made of what those answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import msgspec
import pytest

from services.core.errors import FixRequest, PeerError, RetryLater
from services.runtime.api_reference import told_reference
from services.runtime.clock import FakeClock, Timeline
from services.runtime.probes import Readiness
from services.usermanager.messages_accounts import User
from services.usermanager.pages.console_data_listing import list_keys
from services.usermanager.pages.console_ids import IdSource
from services.usermanager.pages.gateway_calls import PlatformCalls
from services.usermanager.pages.platform_status import PlatformStatus

secret = "tests sign their requests 51e0aa with this"
ada = User(
    id=1,
    email="ada@example.com",
    username="ada",
    is_active=True,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    plan="free",
    is_operator=False,
)


def calls_of(answering: Callable[[httpx.Request], httpx.Response]) -> PlatformCalls:
    transport = httpx.MockTransport(answering)
    clock = FakeClock(Timeline())
    return PlatformCalls("http://gateway", "http://keygen", secret, clock, transport=transport)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_header_that_cannot_be_sent_is_no_outage_and_no_unknown_outcome(
    method: str,
) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        # As h11 does, before anything is sent.
        raise httpx.LocalProtocolError("Illegal header value b' a'", request=request)

    calls = calls_of(refuse)
    with pytest.raises(FixRequest) as caught:
        await calls.of(1).ask(method, "/v1/kv/a")
    assert caught.value.code == "invalid_header"
    with pytest.raises(FixRequest):
        async with calls.of(1).stream(method, "/v1/kv/a"):
            pass
    await calls.close()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"used": "many"}', b"<html>"])
async def test_an_answer_of_another_version_is_told_as_an_outage(content: bytes) -> None:
    calls = calls_of(lambda _: httpx.Response(200, content=content))
    with pytest.raises(RetryLater) as caught:
        await list_keys(calls.of(1), "default", "")
    assert caught.value.code == "gateway_unavailable"
    ids = IdSource(calls)
    quota = await ids.quota(ada)
    assert isinstance(quota, RetryLater)
    assert quota.code == "keygen_unavailable"
    with pytest.raises(RetryLater):
        await ids.make(ada, 1, 7)
    assert isinstance((await ids.take_back(ada, ["abcdefg"])).stopped, RetryLater)
    await calls.close()


@pytest.mark.parametrize(
    ("states", "words", "kind"),
    [
        ([], "0 of 0 up", "bad"),
        (["live"] * 3, "3 of 3 up", "good"),
        (["live", "live", "away"], "2 of 3 up", "warn"),
        (["live", "away", "away"], "1 of 3 up", "bad"),
    ],
)
async def test_a_platform_without_nodes_is_not_well(
    states: list[str], words: str, kind: str
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        document = {"status": "ready", "nodes": [{"state": state} for state in states]}
        return httpx.Response(200, json=document)

    calls = calls_of(answer)
    parts = await PlatformStatus(calls, Readiness(), FakeClock(Timeline())).parts()
    assert (parts[1].name, parts[1].words, parts[1].kind) == ("Storage nodes", words, kind)
    await calls.close()


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"info": []}',
        b'{"info": {"title": "a"}, "paths": []}',
        b'{"info": {"title": "a"}, "paths": {"/": {"get": 1}}, "components": {"schemas": {}}}',
        msgspec.json.encode({"info": {"title": "a"}, "paths": {}, "components": {"schemas": [1]}}),
    ],
)
def test_a_document_of_another_make_is_a_peers_fault(document: bytes) -> None:
    with pytest.raises(PeerError, match="no document of ours"):
        told_reference(document)
