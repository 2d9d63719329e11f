"""Signed requests between services: HTTP that only a holder of `CLUSTER_SECRET` can send.

A request carries `X-Ydht-Signature: v1;time_ms;nonce;hex`, where hex is HMAC-SHA256, under a
subkey made for this purpose, of these lines:

    v1
    METHOD
    /path?query                         as sent, still percent-encoded
    SHA-256 of the body, hex
    time_ms                             milliseconds since 1970
    nonce                               22 base64url characters: 128 random bits
    name:value                          of every header below, lower-case, by name

Those are the other X-Ydht-*, claims such as `X-Ydht-Tenant`, and all by which a request says what
is to be done: Content-Type, If-Match, If-None-Match, X-Consistency, X-Metadata-*, X-Namespace.
Whatever else a service lets a signed request say in a header must have a name among them.

The receiver takes a request signed within 30 s of its own clock, once: it remembers nonces for as
long as their time would be accepted. Without room to remember, it refuses.

Not covered: other headers, the answer, and which instance is addressed; a request caught on
the way can be played once to another instance, or to this one restarted, within those 30 s.
Where the network is not trusted, use TLS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Generator, Iterable

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.errors import FixRequest, RetryLater
from services.core.subkey import subkey
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics
from services.runtime.nonces import Nonces

signature_header = "X-Ydht-Signature"
# Clocks that differ by more are a fault of their own (DHT stamps refuse half a second already).
skew_ms_max = 30_000
# How long a request may be valid here: from a clock that is ahead by the limit, twice that.
valid_s_max = 2 * skew_ms_max / 1000
# 4,000 signed requests a second without a break, which is what a user manager has answers for;
# 32 MB of them, as measured.
nonces_max = 250_000
purpose_http = b"ydht http"

# RFC 9110 asks for one with every 401.
challenge = {"WWW-Authenticate": f'{signature_header} realm="ydht"'}

_covered_prefixes = ("x-ydht-", "x-metadata-")
_covered_names = frozenset(
    {"content-type", "if-match", "if-none-match", "x-consistency", "x-namespace"}
)
# What HTTP allows around a value. Without this, strip() would also take the end of some UTF-8.
_white_space = " \t"
_form = re.compile(r"v1;(\d{1,16});([A-Za-z0-9_-]{22});([0-9a-f]{64})", re.ASCII)

Headers = Iterable[tuple[str, str]]


class Signer:
    """Signs requests with the cluster's secret."""

    def __init__(self, cluster_secret: str, clock: Clock) -> None:
        self._key = subkey(cluster_secret, purpose_http)
        self._clock = clock

    def sign(self, method: str, target: str, headers: Headers, body: bytes) -> str:
        """The value of the signature header. `target` is the path and query as sent."""
        time_ms = str(self._clock.wall_ms())
        nonce = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        digest = _digest(self._key, method, target, headers, body, time_ms, nonce)
        return f"v1;{time_ms};{nonce};{digest}"


class SignedAuth(httpx.Auth):
    """httpx's way to sign every request of a client: `httpx.AsyncClient(auth=SignedAuth(...))`."""

    requires_request_body = True

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        raw = request.headers.raw
        request.headers[signature_header] = self._signer.sign(
            request.method,
            request.url.raw_path.decode("ascii"),
            # As they are sent. httpx would decode them by a guess, and the receiver does not guess.
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw],
            request.content,
        )
        yield request


class Verifier:
    """Checks signatures, and that each is used once. One per process."""

    def __init__(self, cluster_secret: str, clock: Clock, *, capacity: int = nonces_max) -> None:
        self._key = subkey(cluster_secret, purpose_http)
        self._clock = clock
        self._nonces = Nonces(capacity, valid_s_max)
        self.accepted = 0
        self.refused = 0
        self.full = 0

    @property
    def remembered(self) -> int:
        return len(self._nonces)

    def add_to(self, metrics: Metrics) -> None:
        ends: dict[str, Callable[[], int]] = {
            "accepted": lambda: self.accepted,
            "refused": lambda: self.refused,
            "no_room": lambda: self.full,
        }
        metrics.add(
            "signed_requests",
            "counter",
            "Internal requests, by what their signatures were found to be",
            lambda: {name: read() for name, read in ends.items()},
            labels=("found",),
        )
        metrics.add("nonces", "gauge", "Signatures remembered", lambda: self.remembered)

    def look(self, headers: Headers) -> None:
        """Refuse what no body could make right: a signature that is not there, or not one, or not
        of these seconds."""
        try:
            time_ms, _, _ = _signature_in(headers)
            self._check_time(int(time_ms))
        except FixRequest:
            self.refused += 1
            raise

    def verify(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        """Return if the request is signed, recent and new; else raise what to answer."""
        try:
            self._verify(method, target, list(headers), body)
        except FixRequest:
            self.refused += 1
            raise
        self.accepted += 1

    def _verify(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        time_ms, nonce, claimed = _signature_in(headers)
        # The signature comes first: until it holds, nothing else in the request is worth an answer.
        digest = _digest(self._key, method, target, headers, body, time_ms, nonce)
        if not hmac.compare_digest(digest, claimed):
            raise _unauthorized(
                "The signature does not match: the request was altered on the way, or "
                "CLUSTER_SECRET differs between the two services"
            )
        self._check_time(int(time_ms))
        self._remember(nonce)

    def _check_time(self, time_ms: int) -> None:
        ahead_ms = time_ms - self._clock.wall_ms()
        if abs(ahead_ms) > skew_ms_max:
            where = "after" if ahead_ms > 0 else "before"
            raise _unauthorized(
                f"Signed {abs(ahead_ms)} ms {where} this machine's time, which may be at most "
                f"{skew_ms_max} ms: the request is late, or the two clocks differ"
            )

    def _remember(self, text: str) -> None:
        now_s = self._clock.monotonic_s()
        nonce = int.from_bytes(base64.urlsafe_b64decode(text + "=="))
        self._nonces.forget(now_s)
        if nonce in self._nonces:
            raise _unauthorized("This signed request was received before: a replay")
        if self._nonces.is_full:
            self.full += 1
            raise RetryLater(
                "overloaded",
                f"More than {self._nonces.capacity} signed requests within {valid_s_max:g} s: "
                "no room to remember another, so it cannot be told from a replay",
                retry_after_s=max(1, round(self._nonces.room_in_s(now_s))),
            )
        self._nonces.add(nonce, now_s)


class RequireSignature:
    """Middleware of a route or router: only signed requests get through.

    Reads the whole body of a request that has a signature at all, so it belongs inside the
    limit on bodies.
    """

    def __init__(self, app: ASGIApp, verifier: Verifier) -> None:
        self._app = app
        self._verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        self._verifier.look(headers)
        body = await _read_body(receive)
        if body is None:
            return
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        self._verifier.verify(scope["method"], target.decode("latin-1"), headers, body)
        await self._app(scope, _replay(body, receive), send)


def _signature_in(headers: Headers) -> tuple[str, str, str]:
    """Time, nonce and digest as they are claimed; FixRequest if there is no one such claim."""
    signatures = [value for name, value in headers if name.lower() == signature_header.lower()]
    if not signatures:
        raise _unauthorized(f"This path is internal: the {signature_header} header is missing")
    match = _form.fullmatch(signatures[0])
    if len(signatures) > 1 or match is None:
        raise _unauthorized(f"{signature_header} is not v1;time_ms;nonce;hex, once")
    time_ms, nonce, digest = match.groups()
    return time_ms, nonce, digest


def _unauthorized(detail: str) -> FixRequest:
    return FixRequest("unauthorized", detail, headers=challenge)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None when the client left before its end."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending = [body]

    async def receive_again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_again


def _digest(
    key: bytes, method: str, target: str, headers: Headers, body: bytes, time_ms: str, nonce: str
) -> str:
    covered = sorted(
        f"{name.lower()}:{value.strip(_white_space)}"
        for name, value in headers
        if _is_covered(name.lower())
    )
    lines = [
        "v1",
        method.upper(),
        target.removesuffix("?"),
        hashlib.sha256(body).hexdigest(),
        time_ms,
        nonce,
        *covered,
    ]
    # A newline inside a part would let one line pass for two; HTTP allows none there.
    return hmac.new(key, "\n".join(lines).encode("latin-1", "strict"), "sha256").hexdigest()


def _is_covered(name: str) -> bool:
    if name in _covered_names:
        return True
    return name.startswith(_covered_prefixes) and name != signature_header.lower()
