"""Signed requests: whatever is late, altered or repeated is refused, each with its own reason."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from services.core.errors import ClientError, FixRequest, RetryLater
from services.core.subkey import subkey
from services.runtime.clock import FakeClock, Timeline
from services.runtime.metrics import Metrics
from services.runtime.signing import (
    RequireSignature,
    SignedAuth,
    Signer,
    Verifier,
    signature_header,
    skew_ms_max,
)

secret = "Vb8rJ2mQx0LkTz5WnYc7PdSg1HfUe4Ao"
target = "/validate-key?trace=%2Fx"
body = b'{"key": "abc"}'
claims = [("X-Ydht-Tenant", "7"), ("X-Ydht-Scope", "read"), ("Accept", "*/*")]


class Two:
    """A sender and a receiver on one timeline, each with a clock of its own."""

    def __init__(self, *, skew_ms: int = 0, capacity: int = 1000) -> None:
        self.timeline = Timeline()
        self.sender_clock = FakeClock(self.timeline, skew_ms)
        self.clock = FakeClock(self.timeline)
        self.signer = Signer(secret, self.sender_clock)
        self.verifier = Verifier(secret, self.clock, capacity=capacity)

    def signed(self) -> list[tuple[str, str]]:
        return [*claims, (signature_header, self.signer.sign("POST", target, claims, body))]

    def verify(self, headers: list[tuple[str, str]]) -> None:
        self.verifier.verify("POST", target, headers, body)

    def refusal(self, headers: list[tuple[str, str]]) -> str:
        return detail_of(self.verifier, "POST", target, headers, body)


def detail_of(
    verifier: Verifier, method: str, target: str, headers: list[tuple[str, str]], body: bytes
) -> str:
    with pytest.raises(FixRequest) as caught:
        verifier.verify(method, target, headers, body)
    assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
    assert secret not in caught.value.detail
    return caught.value.detail


def test_a_signed_request_is_accepted_once() -> None:
    two = Two()
    headers = two.signed()
    two.verify(headers)
    assert "replay" in two.refusal(headers)
    assert (two.verifier.accepted, two.verifier.refused) == (1, 1)


def test_the_same_request_signed_again_is_another_request() -> None:
    two = Two()
    two.verify(two.signed())
    two.verify(two.signed())
    assert two.verifier.remembered == 2


def test_names_of_headers_and_their_order_do_not_matter() -> None:
    two = Two()
    two.verify([(name.upper(), value) for name, value in reversed(two.signed())])


@pytest.mark.parametrize(
    ("method", "at", "content"),
    [
        ("GET", target, body),
        ("POST", target + "x", body),
        ("POST", "/validate-key?trace=/x", body),
        ("POST", "/validate-key", body),
        ("POST", target, body + b" "),
        ("POST", target, b""),
    ],
)
def test_any_alteration_is_refused(method: str, at: str, content: bytes) -> None:
    two = Two()
    assert "does not match" in detail_of(two.verifier, method, at, two.signed(), content)


def test_altered_added_or_removed_claims_are_refused() -> None:
    two = Two()
    tenant, scope, accept, signature = two.signed()
    for headers in (
        [("X-Ydht-Tenant", "8"), scope, accept, signature],
        [scope, accept, signature],
        [tenant, scope, accept, signature, ("x-ydht-operator", "true")],
        [tenant, tenant, scope, accept, signature],
    ):
        assert "does not match" in two.refusal(headers)
    two.verify([tenant, scope, ("Accept", "text/html"), signature])


@pytest.mark.parametrize(
    "name",
    [
        "Content-Type",
        "If-Match",
        "If-None-Match",
        "X-Consistency",
        "X-Metadata-Color",
        "X-Namespace",
    ],
)
def test_what_a_request_says_in_headers_is_signed_with_it(name: str) -> None:
    two = Two()
    assert "does not match" in two.refusal([*two.signed(), (name, "other")])
    said = [*claims, (name, "this")]
    signature = (signature_header, two.signer.sign("POST", target, said, body))
    assert "does not match" in two.refusal([*claims, signature])
    assert "does not match" in two.refusal([*claims, (name, "that"), signature])
    two.verify([*claims, (name.lower(), " this"), signature])


def test_a_look_finds_what_is_out_of_date_before_there_is_a_body() -> None:
    two = Two(skew_ms=-skew_ms_max - 1)
    with pytest.raises(FixRequest, match="before this machine's time"):
        two.verifier.look(two.signed())
    assert two.verifier.refused == 1
    Two().verifier.look(Two().signed())


def test_every_refusal_says_how_to_be_let_in() -> None:
    two = Two(skew_ms=skew_ms_max + 1)
    late, missing = two.signed(), claims
    for headers in (late, missing):
        with pytest.raises(FixRequest) as caught:
            two.verifier.look(headers)
        assert caught.value.headers["WWW-Authenticate"].startswith("X-Ydht-Signature ")


def test_another_secret_or_another_purpose_does_not_sign() -> None:
    two = Two()
    stranger = Signer(secret[::-1], two.sender_clock).sign("POST", target, claims, body)
    assert "CLUSTER_SECRET differs" in two.refusal([*claims, (signature_header, stranger)])
    assert subkey(secret, b"ydht http") != subkey(secret, b"ydht link")


def test_missing_malformed_and_doubled_signatures_have_their_own_reasons() -> None:
    two = Two()
    assert "header is missing" in two.refusal(claims)
    signature = two.signed()[-1]
    assert "once" in two.refusal([*claims, signature, signature])
    version, time_ms, nonce, digest = signature[1].split(";")
    for malformed in (
        "",
        "v1",
        f"v2;{time_ms};{nonce};{digest}",
        f"{version};{time_ms};{nonce};{digest.upper()}",
        f"{version};-{time_ms};{nonce};{digest}",
        f"{version};{time_ms};{nonce};{digest}\n",
        f"{version};\u0661{time_ms};{nonce};{digest}",
        f"{version};{'9' * 400};{nonce};{digest}",
    ):
        assert "v1;time_ms;nonce;hex" in two.refusal([*claims, (signature_header, malformed)])


@pytest.mark.parametrize("skew_ms", [-skew_ms_max, skew_ms_max])
def test_a_clock_within_the_limit_is_fine(skew_ms: int) -> None:
    two = Two(skew_ms=skew_ms)
    two.verify(two.signed())


@pytest.mark.parametrize(
    ("skew_ms", "word"), [(-skew_ms_max - 1, "before"), (skew_ms_max + 1, "after")]
)
def test_a_late_or_early_request_names_the_difference(skew_ms: int, word: str) -> None:
    two = Two(skew_ms=skew_ms)
    assert f"Signed 30001 ms {word} this machine's time" in two.refusal(two.signed())


def test_a_nonce_is_remembered_as_long_as_its_time_would_be_accepted() -> None:
    two = Two(skew_ms=skew_ms_max)
    headers = two.signed()
    two.verify(headers)
    for _ in range(59):
        two.timeline.advance(1)
        assert "replay" in two.refusal(headers)
    two.timeline.advance(0.999)
    assert "replay" in two.refusal(headers)
    two.timeline.advance(0.1)
    assert "before this machine's time" in two.refusal(headers)


def test_without_room_for_another_nonce_it_refuses_and_says_so_and_recovers() -> None:
    two = Two(capacity=3)
    for _ in range(3):
        two.verify(two.signed())
        two.timeline.advance(10)
    with pytest.raises(RetryLater) as caught:
        two.verify(two.signed())
    assert caught.value.code == "overloaded"
    assert "More than 3 signed requests within 60 s" in caught.value.detail
    assert caught.value.retry_after_s == 30
    metrics = Metrics()
    two.verifier.add_to(metrics)
    assert metrics.as_json() == {
        "signed_requests.accepted": 3,
        "signed_requests.refused": 0,
        "signed_requests.no_room": 1,
        "nonces": 3,
    }
    two.timeline.advance(30.5)
    two.verify(two.signed())


def test_unsigned_requests_take_no_room() -> None:
    two = Two()
    forged = two.signed()
    forged[-1] = (signature_header, forged[-1][1][:-4] + "0000")
    for _ in range(100):
        two.refusal(forged)
    assert two.verifier.remembered == 0


@pytest.mark.parametrize("signature", [None, b"v1;1;2;3"])
async def test_the_body_of_a_request_without_a_signature_is_not_read(
    signature: bytes | None,
) -> None:
    two = Two()
    reads = 0

    async def receive() -> Message:
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": body, "more_body": False}

    async def app(*_: object) -> None:
        raise AssertionError("it got through")

    async def send(_: Message) -> None:
        raise AssertionError("the refusal is raised, not sent")

    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": b"/validate-key",
        "query_string": b"",
        "headers": [] if signature is None else [(b"x-ydht-signature", signature)],
    }
    with pytest.raises(FixRequest, match=signature_header):
        await RequireSignature(app, two.verifier)(scope, receive, send)
    assert reads == 0
    assert (two.verifier.accepted, two.verifier.refused) == (0, 1)


@settings(max_examples=300)
@given(st.text(max_size=200))
def test_no_header_value_makes_the_check_fail_otherwise(value: str) -> None:
    two = Two()
    try:
        two.verifier.verify("GET", "/", [(signature_header, value)], b"")
    except ClientError as error:
        refused = error.code
    assert refused == "unauthorized"


async def test_httpx_signs_the_bytes_of_headers_whatever_they_are() -> None:
    two = Two()
    names = ["größe".encode(), "鍵".encode(), b"\xff\xfe", "à".encode(), b"plain"]

    def receive(request: httpx.Request) -> httpx.Response:
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers.raw]
        # The last byte of a UTF-8 character is part of it, though some would take it for a space.
        cut = [(name, value.removesuffix("\xa0")) for name, value in headers]
        if cut != headers:
            refusal = detail_of(two.verifier, "GET", "/store", cut, b"")
            assert "does not match" in refusal
        two.verifier.verify(request.method, request.url.path, headers, request.content)
        return httpx.Response(204)

    async with httpx.AsyncClient(
        auth=SignedAuth(two.signer), transport=httpx.MockTransport(receive), base_url="http://peer"
    ) as client:
        for name in names:
            answer = await client.get("/store", headers={b"X-Ydht-Namespace": name})
            assert answer.status_code == 204
    assert two.verifier.accepted == len(names)


async def test_httpx_signs_what_it_really_sends() -> None:
    two = Two()
    received: list[str] = []

    def receive(request: httpx.Request) -> httpx.Response:
        two.verifier.verify(
            request.method,
            request.url.raw_path.decode(),
            request.headers.multi_items(),
            request.content,
        )
        received.append(request.url.path)
        return httpx.Response(204)

    async with httpx.AsyncClient(
        auth=SignedAuth(two.signer), transport=httpx.MockTransport(receive), base_url="http://peer"
    ) as client:
        await client.post("/a b/ü?q=1&q=ü", json={"x": 1}, headers={"X-Ydht-Tenant": "7"})
        await client.get("/plain?")
        await client.put("/bytes", content=b"\x00" * 100_000)
    assert received == ["/a b/ü", "/plain", "/bytes"]
