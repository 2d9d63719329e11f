"""Who may call what is offered to API keys: the keys, and the console on behalf of its users.

    which key        401 missing_api_key, invalid_api_key; 400 invalid_header if two are named
    is it good       401 invalid_api_key; 503 auth_unavailable if nobody knows; 429 if its
                     sender guesses
    a token          429 rate_limited, with Retry-After
    its scope        403 insufficient_scope

A request of the console is signed with the cluster's secret in place of a key
(console_requests.py), which says too whether it is metered.

From the token on every answer tells how many are left. A request that is refused later has cost its
token all the same, or whoever asks for what a key may not do could go on for ever.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Final, NamedTuple, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from services.core.errors import ClientError, FixRequest, RetryLater
from services.core.key_checks import Scope
from services.runtime.allowance import retry_after_s
from services.runtime.clock import Clock
from services.runtime.console_requests import ConsoleRequests, signed_body_bytes_max
from services.runtime.credential import Credential
from services.runtime.exchange import split_lines
from services.runtime.problem import problem_response
from services.runtime.request_body import body_too_large

Fields = Iterable[tuple[bytes, bytes]]

key_header: Final = "X-API-Key"
# RFC 9110 asks for one with every 401.
key_challenge: Final = {"WWW-Authenticate": 'Bearer realm="ydht"'}

_key_header: Final = key_header.lower().encode()
_bearer: Final = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)
_ns_per_s: Final = 1_000_000_000


class Keys(Protocol):
    """Whoever knows API keys (credentials.py)."""

    def cached(self, key: bytes, now_s: float, /) -> Credential | None: ...

    async def find(self, key: bytes, address: str, /) -> Credential: ...


class Meter(Protocol):
    """Whoever counts requests (metering.py)."""

    def count(
        self,
        credential: Credential,
        operation: str,
        status: int,
        bytes_in: int,
        bytes_out: int,
        latency_us: int,
        /,
    ) -> None: ...


class Need(NamedTuple):
    """What an endpoint asks of an API key, and what its requests are counted as."""

    scope: Scope
    counted_as: str
    # Whether it is known only by the body what it costs, for `respond` to spend.
    costs_later: bool = False


class Admitted:
    """One request that was let in."""

    __slots__ = ("_clock", "_spent", "body_bytes", "credential")

    def __init__(self, credential: Credential, clock: Clock) -> None:
        self.credential = credential
        self.body_bytes = 0
        self._clock = clock
        self._spent = False

    @property
    def whose(self) -> Hashable:
        return self.credential.whose

    def expect(self) -> None:
        """Refuse unless there is a token at all, of a request whose cost is not known yet."""
        wait_ns = self.credential.allowance.wait_ns(1, self._now_ns())
        if wait_ns:
            raise too_many(1, wait_ns)

    def spend(self, tokens: int) -> None:
        self._spent = True
        wait_ns = self.credential.allowance.take(tokens, self._now_ns())
        if wait_ns:
            raise too_many(tokens, wait_ns)

    def settle(self) -> None:
        """Of a request that was refused before its cost was known: a token, if there is one."""
        if not self._spent:
            self.credential.allowance.take(1, self._now_ns())

    def lines(self) -> bytes:
        return self.credential.allowance.lines(self._now_ns())

    def _now_ns(self) -> int:
        return int(self._clock.monotonic_s() * _ns_per_s)


Respond = Callable[[Admitted], Awaitable[Response]]


class KeyAccess:
    def __init__(self, keys: Keys, console: ConsoleRequests, meter: Meter, clock: Clock) -> None:
        self._keys = keys
        self._console = console
        self._meter = meter
        self._clock = clock

    async def answer(
        self, request: Request, need: Need, address: str, respond: Respond
    ) -> Response:
        """What `respond` answers once the request is let in, or why it is not."""
        began_s = self._clock.monotonic_s()
        admitted = Admitted(await self._credential(request, address), self._clock)
        try:
            response = await _respond(admitted, need, respond)
        except ClientDisconnect:
            # Nobody was answered anything.
            raise
        except Exception:
            # A bug, which is answered further out.
            self._count(admitted, need, 500, 0, began_s)
            raise
        response.raw_headers.extend(
            (name.lower(), value) for name, value in split_lines(admitted.lines())
        )
        self._count(admitted, need, response.status_code, len(response.body), began_s)
        return response

    async def _credential(self, request: Request, address: str) -> Credential:
        fields = request.scope["headers"]
        if self._console.is_one(fields):
            self._console.look(fields)
            _check_signed_body(fields)
            query = request.scope["query_string"]
            target = request.scope["raw_path"] + (b"?" + query if query else b"")
            return self._console.credential(
                request.method, target.decode("latin-1"), fields, await request.body()
            )
        key = api_key_in(fields)
        known = self._keys.cached(key, self._clock.monotonic_s())
        try:
            return known or await self._keys.find(key, address)
        except FixRequest as error:
            raise challenged(error) from error

    def _count(
        self, admitted: Admitted, need: Need, status: int, bytes_out: int, began_s: float
    ) -> None:
        latency_us = int((self._clock.monotonic_s() - began_s) * 1_000_000)
        self._meter.count(
            admitted.credential, need.counted_as, status, admitted.body_bytes, bytes_out, latency_us
        )


async def _respond(admitted: Admitted, need: Need, respond: Respond) -> Response:
    try:
        if need.costs_later:
            admitted.expect()
        else:
            admitted.spend(1)
        check_scope(admitted.credential, need.scope)
        return await respond(admitted)
    except ClientError as error:
        admitted.settle()
        return problem_response(error)


def _check_signed_body(fields: Fields) -> None:
    """Before it is read: nobody is known to have signed it until all of it is there."""
    for name, value in fields:
        if name == b"transfer-encoding":
            raise FixRequest(
                "invalid_header",
                "A signed request tells in Content-Length how long its body is",
                headers={"Connection": "close"},
            )
        if name == b"content-length" and int(value) > signed_body_bytes_max:
            raise body_too_large(signed_body_bytes_max)


def api_key_in(fields: Fields) -> bytes:
    """The API key that headers, whose names are in lower case, bring. FixRequest if they bring
    none, or two."""
    # An empty one is what a program sends whose variable is not set.
    keys = {value for name, value in fields if name == _key_header and value.strip(b" \t")}
    bearers = set()
    is_other = False
    for name, value in fields:
        if name == b"authorization":
            match = _bearer.fullmatch(value.strip(b" \t"))
            if match is not None:
                bearers.add(match[1])
            is_other = is_other or match is None
    found = keys | bearers
    if len(found) > 1:
        raise FixRequest(
            "invalid_header", "X-API-Key and Authorization name different API keys; send one"
        )
    if found:
        return found.pop()
    if is_other:
        raise FixRequest(
            "invalid_api_key",
            "The header Authorization is not Bearer <API key>; X-API-Key takes the key alone",
            headers=key_challenge,
        )
    raise FixRequest(
        "missing_api_key",
        "Send an API key as X-API-Key: ydht_… or as Authorization: Bearer ydht_…",
        headers=key_challenge,
    )


def challenged(error: FixRequest) -> FixRequest:
    """The same as a refusal of an API key, with what each of them has."""
    headers = {**key_challenge, **error.headers}
    return FixRequest(error.code, error.detail, members=error.members, headers=headers)


def check_scope(credential: Credential, scope: Scope) -> None:
    has = {"read": credential.may_read, "write": credential.may_write}
    if not has.get(scope, credential.may_admin):
        raise FixRequest(
            "insufficient_scope", f"This request needs an API key with the scope {scope}"
        )


def too_many(tokens: int, wait_ns: int) -> RetryLater:
    """What to say to a request that there are not so many tokens for."""
    wait_s = retry_after_s(wait_ns)
    costs = "a token" if tokens == 1 else f"{tokens} tokens"
    return RetryLater(
        "rate_limited",
        f"This request costs {costs}, which there will be in {wait_s} s",
        retry_after_s=wait_s,
    )
