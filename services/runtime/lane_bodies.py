"""Bodies of a fast lane's requests, as they arrive: counted, bounded in time and in room.

A body that is not wanted is refused as soon as that is known, by its size, by its head, by how long
it takes, or for want of room. One that is here with its head has cost nothing yet, and goes
by with a comparison.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from services.core.errors import FixRequest
from services.runtime.body_room import small_bytes_max
from services.runtime.client_connections import receive_s_max
from services.runtime.fast_exchange import FastExchange, close_line
from services.runtime.lane_turns import Act, LaneTurns
from services.runtime.request_head import Head


class LaneBodies(LaneTurns):
    """One client connection, as it takes bodies and answers."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._small_bytes_max = min(small_bytes_max, self._lane.body_bytes_max)
        # The request whose body arrives, if the lane takes it.
        self._receiving: FastExchange | None = None
        self._act_when_whole: Act = self._lane.begin
        self._body: bytes | bytearray = b""
        # How large it may become before room has to be found for it.
        self._body_bytes_free = 0
        self._continue_due = False
        # Whether the time of what arrives is watched.
        self._watched = False

    def _receive(self, exchange: FastExchange, act: Act, head: Head) -> None:
        self._receiving = exchange
        self._act_when_whole = act
        self._continue_due = head.expects and (head.chunked or head.length > 0)
        self._body_bytes_free = self._small_bytes_max
        if head.length > self._lane.body_bytes_max:
            self._refuse_body(exchange, self._lane.too_large)
            raise httptools.HttpParserError

    def on_body(self, body: bytes) -> None:
        exchange = self._receiving
        if exchange is None:
            super().on_body(body)
            return
        self._framing_bytes = self._framing_bytes - len(body)
        self._continue_due = False
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        if len(self._body) > self._body_bytes_free:
            self._make_room(exchange, len(self._body))

    def _make_room(self, exchange: FastExchange, size: int) -> None:
        """For a body that has come to be so large."""
        lane = self._lane
        if size > lane.body_bytes_max:
            self._refuse_body(exchange, lane.too_large)
            raise httptools.HttpParserError
        taken, whose = self._rooms.get(exchange) or (0, lane.whose(exchange))
        # Something ahead, or a body of small chunks would ask with each.
        wanted = min(size + small_bytes_max, lane.body_bytes_max)
        if not lane.room.take(wanted - taken, whose):
            error = lane.room.refusal(wanted - taken)
            self._refuse_body(exchange, partial(lane.refuse, error=error))
            raise httptools.HttpParserError
        self._rooms[exchange] = wanted, whose
        # An upload that comes along gives way after those that do not.
        self.server_state.idle(self)
        self._body_bytes_free = wanted

    def on_message_complete(self) -> None:
        if self._declining:
            return
        self._mid_message = False
        self._unwatch()
        exchange = self._receiving
        if exchange is None:
            super().on_message_complete()
            return
        self._framing_bytes = 0
        self._receiving = None
        self._continue_due = False
        if self._body:
            exchange.body = bytes(self._body)
            self._body = b""
        self._take_turn(exchange, self._act_when_whole)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self.server_state.received(self)

    # Refusals

    def too_slow(self) -> None:
        """The request that is arriving has taken too long to."""
        self._watched = False
        exchange = self._receiving
        if exchange is not None:
            self._refuse_body(exchange, self._lane.timed_out)
        elif self._in_head:
            what = f"The head of the request was not whole after {receive_s_max:g} s"
            self._refuse(FixRequest("request_timeout", what))
        else:
            # The rest of a body that the application did not want.
            self._end()

    def _refuse_early(self, exchange: FastExchange) -> bool:
        """Whether the lane knows already why it does not want the body, and has said so."""
        act: Act
        try:
            error = self._lane.refusal(exchange)
            if error is None:
                self.server_state.idle(self)
                return False
            act = partial(self._lane.refuse, error=error)
        except Exception:
            # As in `_act`.
            act = partial(FastExchange.excuse, request_id=exchange.lament())
        self._refuse_body(exchange, act)
        return True

    def _refuse_body(self, exchange: FastExchange, act: Act) -> None:
        """Have the lane say why the body is not taken."""
        self._read_no_more()
        exchange.persistence = close_line
        self._take_turn(exchange, act)

    def _read_no_more(self) -> None:
        self._refused = True
        self._held = b""
        if self._receiving is not None:
            self._leave_room(self._receiving)
            self._receiving = None
        self._body = b""
        self._continue_due = False
        self._unwatch()
