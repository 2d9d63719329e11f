"""A lane as a route of an ASGI application.

For requests that must pass the application's middleware, and so that one suite of tests can run
over both ways to a lane. The fast one is runtime/fastlane.py; the answers are the same, but for
the header `X-Request-ID`: here it is the one that the edge of the application adds.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from services.core.errors import ClientError
from services.runtime.body_room import Held
from services.runtime.client_address import unknown_address
from services.runtime.exchange import Exchange, Headers, Lane, split_lines
from services.runtime.request_body import body_s_default

# Statuses whose answers have no body by definition, and tell no length of one either.
bodyless: Final = frozenset({204, 304})


class LaneRoute:
    """An ASGI application that answers what its lane takes; anything else is not found.

    Without a lane it is the one in the state that the lifespan yields.
    """

    limits_bodies = True

    def __init__(self, lane: Lane | None = None, *, body_s_max: float = body_s_default) -> None:
        self._lane = lane
        self._body_s_max = body_s_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lane: Lane = self._lane or scope["state"]["lane"]
        exchange = _RouteExchange(scope)
        if not lane.takes(exchange.method, exchange.path, exchange.headers):
            raise HTTPException(404)
        whole = False
        with lane.room.held(lane.whose(exchange)) as held:
            try:
                async with asyncio.timeout(self._body_s_max):
                    whole = await _read_body(exchange, receive, lane, held)
            except TimeoutError:
                lane.timed_out(exchange)
            except ClientError as error:
                lane.refuse(exchange, error)
            else:
                exchange.began_ns = monotonic_ns()
                (lane.begin if whole else lane.too_large)(exchange)
            await exchange.answer(receive, send, whole=whole)


async def _read_body(exchange: Exchange, receive: Receive, lane: Lane, held: Held) -> bool:
    """Fill in the body; False as soon as it is known to be larger than is taken. ClientError if
    the lane does not want it, or there is no room."""
    bytes_max = lane.body_bytes_max
    announced = exchange.headers.get(b"content-length") or b""
    if announced.isdigit() and int(announced) > bytes_max:
        return False
    if announced.strip(b"0") or exchange.headers.get(b"transfer-encoding"):
        refusal = lane.refusal(exchange)
        if refusal is not None:
            raise refusal
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > bytes_max:
            return False
        held.grow(len(body))
        more = message.get("more_body", False)
    exchange.body = bytes(body)
    return True


class _RouteExchange(Exchange):
    __slots__ = ("_replied",)

    def __init__(self, scope: Scope) -> None:
        client = scope.get("client")
        super().__init__(
            scope["method"].encode("ascii"),
            scope["raw_path"],
            scope["query_string"],
            Headers([(name, value.strip(b" \t")) for name, value in scope["headers"]]),
            address=client[0] if client else unknown_address,
        )
        self._replied: asyncio.Future[tuple[int, bytes, bytes]] = (
            asyncio.get_running_loop().create_future()
        )

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        if self._replied.cancelled():
            return
        if self._replied.done():
            raise RuntimeError("this exchange has been answered")
        self.took_ns = monotonic_ns() - self.began_ns
        self._replied.set_result((status, lines, body))

    @property
    def gone(self) -> bool:
        return self._replied.cancelled()

    async def answer(self, receive: Receive, send: Send, *, whole: bool) -> None:
        """Send the reply when it is there. Raises ClientDisconnect if the client leaves before."""
        try:
            if not self._replied.done():
                await self._until_replied(receive)
            status, lines, body = self._replied.result()
        finally:
            # Whatever ended the wait: a reply that comes now has nowhere to go.
            self._replied.cancel()
        headers = [
            (name.lower(), value)
            for name, value in split_lines(lines)
            if name.lower() != b"x-request-id"
        ]
        if status in bodyless:
            body = b""
        else:
            headers.append((b"content-length", b"%d" % len(body)))
        if not whole:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _until_replied(self, receive: Receive) -> None:
        # The body is whole: the only message there can be is that the client has left.
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((self._replied, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            await asyncio.wait((leaving,))
        if not self._replied.done():
            raise ClientDisconnect
