"""The way to single keys through the application, for what the fast lane leaves to it.

That is what the console asks for, signed in the name of a tenant, and every request where the
application runs without the fast lane. The requests are those of `KeyValue`, which answers them.
"""

from __future__ import annotations

from collections.abc import Hashable
from time import monotonic_ns
from typing import Any

from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Receive, Scope, Send

from services.core.errors import ClientError
from services.gateway.kv import KeyValue, options_of, path_prefix
from services.runtime import telemetry
from services.runtime.body_room import BodyRoom
from services.runtime.console_requests import ConsoleRequests
from services.runtime.exchange import Exchange, Headers
from services.runtime.lane_route import LaneRoute


class KeyRoute(BaseRoute):
    """Every path about a single key. Starlette's own routes match no line break, which a key may
    have."""

    def __init__(self, lane: ConsoleLane) -> None:
        self.app = LaneRoute(lane)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        is_one = scope["type"] == "http" and scope["raw_path"].startswith(path_prefix)
        return (Match.FULL if is_one else Match.NONE), {}

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class ConsoleLane:
    def __init__(self, keys: KeyValue, console: ConsoleRequests) -> None:
        self._keys = keys
        self._console = console

    @property
    def body_bytes_max(self) -> int:
        return self._keys.body_bytes_max

    def takes(self, method: bytes, path: bytes, headers: Headers) -> bool:
        if not path.startswith(path_prefix):
            return False
        # Answers of the application carry the id that its edge has given the request, and problems
        # name the same one.
        options_of(headers).request_id = telemetry.request_id.get().encode("ascii")
        return True

    @property
    def room(self) -> BodyRoom:
        return self._keys.room

    def refusal(self, exchange: Exchange) -> ClientError | None:
        if not options_of(exchange.headers).signed:
            return self._keys.refusal(exchange)
        try:
            self._console.look(exchange.headers.fields)
        except ClientError as error:
            return error
        return None

    def whose(self, exchange: Exchange) -> Hashable:
        # Whether it is signed is known by its body alone: what claims to be shares one share.
        signed = options_of(exchange.headers).signed
        return "the console" if signed else self._keys.whose(exchange)

    def refuse(self, exchange: Exchange, error: ClientError) -> None:
        self._keys.refuse(exchange, error)

    def begin(self, exchange: Exchange) -> None:
        options = options_of(exchange.headers)
        if not options.signed:
            self._keys.begin(exchange)
            return
        began_ns = monotonic_ns()
        target = exchange.path + (b"?" + exchange.query if exchange.query else b"")
        try:
            credential = self._console.credential(
                exchange.method.decode("latin-1"),
                target.decode("latin-1"),
                exchange.headers.fields,
                exchange.body,
            )
        except ClientError as error:
            self._keys.refuse_to_nobody(exchange, error)
            return
        options.belongs_to(credential)
        self._keys.begin_for(exchange, options, credential, began_ns)

    def too_large(self, exchange: Exchange) -> None:
        self._keys.too_large(exchange)

    def timed_out(self, exchange: Exchange) -> None:
        self._keys.timed_out(exchange)
