"""Turns on one client connection: who is answered when, and how the connection ends.

The half of a fast lane (fastlane.py) that writes. Requests that are whole come in by `_take_turn`,
from the lane, and `_start_asgi_task`, from the application. What is parsed next, and when, is the
other half's, which `_advance` moves on.

On the hot path, like all of a fast lane.
"""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable
from math import inf
from time import monotonic_ns
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from services.core.errors import ClientError
from services.runtime.client_address import unknown_address
from services.runtime.edge import RequestCounters, status_client_left
from services.runtime.exchange import Lane
from services.runtime.fast_exchange import FastExchange, answer_bytes, close_line
from services.runtime.listener import ServiceProtocol

# A balancer may be sending into an idle connection at the moment in which we leave, and could not
# tell whether that was taken. One that looks every half second has found out by then.
parting_s: Final = 1.0
# How many bytes of answers are gathered before they leave.
out_bytes_max: Final = 64 * 1024

_status_words: Final = {status: str(status) for status in range(100, 600)}

Act = Callable[[Any], None]
"""What is to be done with an exchange."""


class LaneTurns(ServiceProtocol):
    """One client connection, as it answers."""

    # What waits for its turn, newest first: an exchange with what is to be done with it, or
    # uvicorn's cycle with its application, or None with the error to refuse the rest with.
    pipeline: deque[tuple[Any, Any]]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.address = unknown_address
        self._lane: Lane = app_state["lane"]
        self._counters: RequestCounters = app_state["counters"]
        self._log_access: bool = app_state.get("access_log", False)
        # Bytes that have not been parsed, and whether a message is being parsed.
        self._held: bytes | memoryview = b""
        self._mid_message = False
        # The request that is being answered.
        self._turn: FastExchange | RequestResponseCycle | None = None
        # The room of large bodies, until their requests are answered.
        self._rooms: dict[FastExchange, tuple[int, Hashable]] = {}
        self._idle_since = self.server_state.idle_since
        # Since when we stand there, if an answer was the last that has put us there.
        self._idle_s = -inf
        self._context = contextvars.copy_context()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._advancing = False
        self._stalled = False
        self._half_closed = False
        self._draining = False
        # While draining: until when an idle connection is kept.
        self._parting: asyncio.TimerHandle | None = None
        self._ended = False

    def _advance(self) -> None:
        """Answer what waits and parse what is held, in order, as far as both can go now."""
        raise NotImplementedError

    def _more_waits(self) -> bool:
        """Whether anything has arrived behind what has its turn."""
        raise NotImplementedError

    def _read_no_more(self) -> None:
        """Drop what has not been parsed and all that comes."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        self._stalled = True
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        self._stalled = False
        super().resume_writing()
        if isinstance(self._turn, RequestResponseCycle):
            # It may be waiting for more of its body by now.
            self.flow.resume_reading()
        self._advance()

    @property
    def lost(self) -> bool:
        return self.transport.is_closing()

    def shutdown(self) -> None:
        """Answer what has arrived, and what still comes within `parting_s`; the last answer says
        that the connection ends."""
        self._draining = True
        self._parting = self.loop.call_later(parting_s, self._part)
        turn = self._turn
        if isinstance(turn, RequestResponseCycle) and not self._more_waits():
            turn.keep_alive = False
        self._advance()

    def _part(self) -> None:
        self._parting = None
        if not self._ended:
            self._advance()

    # Turns

    def _take_turn(self, exchange: FastExchange, act: Act) -> None:
        if self._turn is None and not self.pipeline and not self._stalled:
            self._begin(exchange, act)
        else:
            self.pipeline.appendleft((exchange, act))

    def _start(self, who: Any, act: Any) -> None:
        """Give its turn to an entry of the pipeline."""
        if isinstance(who, FastExchange):
            self._begin(who, act)
        elif who is None:
            self._answer_and_end(act)
        elif who.more_body and self._half_closed:
            # It will never be whole.
            self.transport.close()
        else:
            self._turn = who
            self.server_state.busy(self)
            if self._draining and not self._more_waits():
                who.keep_alive = False
            super()._start_asgi_task(who, act)

    def _begin(self, exchange: FastExchange, act: Act) -> None:
        self._turn = exchange
        exchange.counted = True
        self._counters.in_flight += 1
        self._idle_since.pop(self, None)
        exchange.began_ns = monotonic_ns()
        try:
            act(exchange)
        except Exception:
            # As above.
            exchange.excuse(exchange.lament())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """uvicorn's, for a request with no other of the application's before it."""
        if self._turn is None and not self.pipeline and not self._stalled:
            self._start(cycle, app)
        else:
            self.pipeline.appendleft((cycle, app))

    def answer(self, exchange: FastExchange, status: int, lines: bytes, body: bytes) -> None:
        """Send the reply to the exchange that has its turn, and move on."""
        counters, state = self._counters, self.server_state
        persistence = exchange.persistence
        if self._draining and not self._more_waits():
            persistence = close_line
        # First, so that nothing has changed if the lane has handed over what is no answer.
        data = answer_bytes(state.heads[status], exchange, status, lines, persistence, body)
        exchange.connection = None
        self._turn = None
        if self._rooms:
            self._leave_room(exchange)
        lost = self.transport.is_closing()
        if lost:
            status = status_client_left
        if exchange.counted:
            counters.in_flight -= 1
        exchange.took_ns = took_ns = monotonic_ns() - exchange.began_ns
        # As Histogram.observe does, without the call.
        latency_ms = counters.latency_ms
        elapsed_ms = took_ns / 1e6
        latency_ms.buckets[bisect_left(latency_ms.bounds, elapsed_ms)] += 1
        latency_ms.total += elapsed_ms
        counters.by_status[_status_words[status]] += 1
        if self._log_access:
            exchange.log(status, lines)
        if lost:
            return
        state.total_requests += 1
        if self._advancing:
            self._out.append(data)
            self._out_bytes += len(data)
            if self._out_bytes > out_bytes_max:
                self._flush()
        else:
            self.transport.write(data)
        if persistence is close_line:
            self._end()
            return
        now_s = state.now_s
        if exchange.counted or now_s != self._idle_s:
            self._idle_s = now_s
            self._idle_since.pop(self, None)
            self._idle_since[self] = now_s
        if self.pipeline or self._held or self._mid_message or self._half_closed:
            self._advance()

    def on_response_complete(self) -> None:
        """uvicorn's, when the application has answered.

        It is called from within the application. The next request shall not be answered there,
        in the context of this one and under its handlers of exceptions.
        """
        self.server_state.total_requests += 1
        self.loop.call_soon(self._end_turn, context=self._context)

    def _end_turn(self) -> None:
        self._turn = None
        if not self._ended and not self.lost:
            self.server_state.idle(self)
            self._advance()

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, []
            self._out_bytes = 0
            if not self.lost:
                self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    # Ends

    def close_after_answer(self) -> None:
        """uvicorn's way to close, when an answer of the application was the last."""
        self._end()

    def _end(self) -> None:
        """Close behind the last answer, which a reset must not overtake."""
        if self._ended:
            return
        self._ended = True
        self._read_no_more()
        self.pipeline.clear()
        self._leave_rooms()
        self._flush()
        if self.lost:
            return
        if self._half_closed:
            self.transport.close()
        else:
            # Whether anything is unread cannot be known, if only because it may be on its way.
            self._linger()

    def _answer_and_end(self, error: ClientError) -> None:
        self._ended = True
        self._flush()
        super()._answer_and_end(error)

    def _leave_room(self, exchange: FastExchange) -> None:
        taken = self._rooms.pop(exchange, None)
        if taken is not None:
            self._lane.room.give_back(*taken)

    def _leave_rooms(self) -> None:
        """The room of whatever will not be answered any more, or has not been whole."""
        for exchange in list(self._rooms):
            if exchange is not self._turn:
                self._leave_room(exchange)
