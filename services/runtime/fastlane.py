"""The fast lane: requests answered inside the HTTP parser's callbacks.

`FastLane` is a protocol for the Listener. Of the state that the lifespan yields it takes `lane`
(runtime/exchange.py), `counters`, the RequestCounters that the application counts in too, and
`access_log`, False if it is missing. Requests that the lane takes become exchanges; all others
go to the application. Those of one connection are answered strictly one after the other:

    head parsed ──> receiving ──> pipeline ──────> turn ─────────> answered
                      its body      those before     Lane.begin      Exchange.reply

- While a request has its turn nothing behind it is parsed: bytes are held as they came, and
  reading is paused. But a slice of `slice_bytes_max`, once begun, is parsed to its end, so what
  has stood in one slice may wait in the pipeline.
- While answers are not read by the client no request gets its turn, and nothing is read.
- A refusal ends the connection, behind the answers to what came before. A body that is not here
  with its head is refused before the rest is read, if the lane has a reason by then.
- What a body has beyond `small_bytes_max` takes its room (body_room.py) as it arrives, until the
  answer.
- A client that has ended its side gets its answers all the same.

This is a hot path and looks like one: callbacks and bytes, and for a request no task, future,
timer or log line. Answers that are ready while one read is handled leave in one write.

When one read is exactly one request, and all behind its target is byte for byte what came before
on this connection, the parser is not asked again: `_take_again`. Of the time that this module
takes for a GET that brings 2.5 us instead of 5.6 (a bare parser with callbacks takes 1.1), and
with the kernel and the loop around it, 1.2 times the CPU of a bare protocol instead of 1.7:
`make bench ARGS=fastlane`. Requests whose fields are new each time take 2.1 times as much.
"""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from time import perf_counter
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from services.core.errors import ClientError, FixRequest
from services.runtime import telemetry
from services.runtime.body_room import small_bytes_max
from services.runtime.client_address import unknown_address
from services.runtime.client_connections import receive_s_max
from services.runtime.edge import RequestCounters, status_client_left
from services.runtime.exchange import Lane
from services.runtime.fast_exchange import (
    FastExchange,
    answer_bytes,
    close_line,
    keep_alive_line,
)
from services.runtime.listener import ServiceProtocol, head_bytes_max, head_too_large
from services.runtime.request_head import Head, block_bytes_max, read_target, request_line

# A balancer may be sending into an idle connection at the moment in which we leave, and could not
# tell whether that was taken. One that looks every half second has found out by then.
parting_s: Final = 1.0
# What of a read is parsed at once, and how many bytes of answers are gathered before they leave.
slice_bytes_max: Final = 64 * 1024
# A longer one is left to the parser, which counts the whole head.
_line_bytes_max: Final = head_bytes_max - block_bytes_max

_log = telemetry.logger("services.http")
_continue: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_status_words: Final = {status: str(status) for status in range(100, 600)}


Act = Callable[[Any], None]


class FastLane(ServiceProtocol):
    """One client connection."""

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
        self._lane_takes = self._lane.takes
        self._lane_begin = self._lane.begin
        self._small_bytes_max = min(small_bytes_max, self._lane.body_bytes_max)
        self._counters: RequestCounters = app_state["counters"]
        self._log_access: bool = app_state.get("access_log", False)
        # Bytes that have not been parsed.
        self._held: bytes | memoryview = b""
        # The message that is being parsed.
        self._mid_message = False
        self._messages_begun = 0
        self._handed_over = False
        self._fields: list[tuple[bytes, bytes]] = []
        # What all slices that its head stands in have together: it has no more.
        self._head_bytes = 0
        # Whether it is known that the lane does not take it.
        self._declined = False
        # If the lane takes it, while the body arrives.
        self._receiving: FastExchange | None = None
        self._act_when_whole: Act = self._lane.begin
        self._body: bytes | bytearray = b""
        # How large it may become before room has to be found for it.
        self._body_bytes_free = 0
        self._continue_due = False
        # The room of large bodies, until their requests are answered.
        self._rooms: dict[FastExchange, tuple[int, Hashable]] = {}
        self._watched = False
        # The last heads that the lane took, without a body and with one; those of them that came
        # again, and are kept as they were sent; and the one that is coming again now.
        self._bare: Head | None = None
        self._full: Head | None = None
        self._repeated: list[Head] = []
        self._come_again: Head | None = None
        # The request that is being answered.
        self._turn: FastExchange | RequestResponseCycle | None = None
        self._idle_since = self.server_state.idle_since
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

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:
            self.address = self.client[0]

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._parting is not None:
            self._parting.cancel()
        self._unwatch()
        self.pipeline.clear()
        self._held = b""
        self._leave_rooms()
        turn = self._turn
        if isinstance(turn, RequestResponseCycle):
            # uvicorn tells the newest one only.
            turn.disconnected = True
            turn.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Whenever no request has its turn and writing is possible, nothing is waiting either.
        if self._turn is None and not self._stalled:
            if not self._mid_message:
                for head in self._repeated:
                    start = len(data) - head.tail_bytes
                    if (
                        0 < start <= _line_bytes_max
                        and data.startswith(head.block, start)
                        and self._take_again(head, data, start)
                    ):
                        return
            if not self._refused and len(data) <= slice_bytes_max and not self._held:
                self._parse_at_once(data)
                return
        if not self._refused:
            self._held = b"".join((self._held, data)) if self._held else data
            self._advance()

    def _take_again(self, head: Head, data: bytes, start: int) -> bool:
        """Take a request whose header lines came before; False if the parser must see it."""
        line = request_line.fullmatch(data, 0, start)
        if line is None:
            return False
        method, path, query = line.groups()
        exchange = FastExchange(self, method, path, query or b"", head.headers)
        act: Act | None
        try:
            act = self._lane_begin if self._lane_takes(method, path, head.headers) else None
        except Exception:
            # As in `_act`, without the call.
            act = partial(FastExchange.excuse, request_id=exchange.lament())
        if act is None:
            self._declined = True
            return False
        if head.length:
            exchange.body = data[start + len(head.block) :]
        self._turn = exchange
        self._counters.in_flight += 1
        self._idle_since.pop(self, None)
        exchange.began_s = perf_counter()
        try:
            act(exchange)
        except Exception:
            # As in `_begin`.
            exchange.excuse(exchange.lament())
        return True

    def _parse_at_once(self, data: bytes) -> None:
        """What `_advance` comes down to for a read that nothing is before and little is in."""
        self._advancing = True
        try:
            self._parse_slice(data)
        finally:
            self._advancing = False
        if self.pipeline:
            self._advance()
        else:
            if self._out:
                self._flush()
            if self._mid_message and self._turn is None and not self._ended:
                self._wait()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to keep the connection: the client may still wait for answers."""
        self._half_closed = True
        turn = self._turn
        if isinstance(turn, RequestResponseCycle) and turn.more_body:
            return False
        return bool(turn is not None or self.pipeline or self._held)

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

    # Moving on

    def _advance(self) -> None:
        """Answer what waits and parse what is held, in order, as far as both can go now."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while not self._ended and not self.lost:
                if self._turn is None and self.pipeline and not self._stalled:
                    self._start(*self.pipeline.pop())
                elif len(self._held) and self._may_parse():
                    self._parse_slice(self._next_slice())
                else:
                    break
        finally:
            self._advancing = False
        self._flush()
        if not self._ended and not self.lost:
            self._wait()

    def _may_parse(self) -> bool:
        """Whether nothing comes before what is held."""
        turn = self._turn
        if self.pipeline or self._stalled:
            return False
        return turn is None or (isinstance(turn, RequestResponseCycle) and turn.more_body)

    def _next_slice(self) -> bytes | memoryview:
        piece, self._held = self._held, b""
        if len(piece) > slice_bytes_max:
            whole = memoryview(piece)
            piece, self._held = whole[:slice_bytes_max], whole[slice_bytes_max:]
        return piece

    def _parse_slice(self, piece: bytes | memoryview) -> None:
        size = len(piece)
        self._framing_bytes += size
        mid_message = self._mid_message
        self._head_bytes = size + self._head_bytes if mid_message and self._in_head else size
        self._come_again = None
        begun = self._messages_begun
        self._parse(piece)
        if self._refused:
            return
        if self._framing_bytes:
            self._bound_framing()
        head = self._come_again
        if head is None or mid_message or self._mid_message or not isinstance(piece, bytes):
            return
        if self._messages_begun == begun + 1:
            head.keep(piece)
            self._repeated = [one for one in (self._bare, self._full) if one and one.block]

    def _wait(self) -> None:
        """See to it that what is waited for can come, and does not take forever."""
        turn = self._turn
        waiting = bool(self.pipeline) or len(self._held) > 0 or self._stalled
        if turn is None and not waiting:
            leaving = self._draining and self._parting is None and self._receiving is None
            if self._half_closed or leaving:
                self.transport.close()
                return
            if self._mid_message and not self._watched:
                self._watched = True
                self.server_state.receiving(self)
                if self._receiving is not None and self._refuse_early(self._receiving):
                    return
            if self._continue_due:
                self._continue_due = False
                self.transport.write(_continue)
        if waiting:
            self.flow.pause_reading()
        elif not isinstance(turn, RequestResponseCycle) or not turn.more_body:
            # Of a body for the application uvicorn decides how much is read.
            self.flow.resume_reading()

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

    def _more_waits(self) -> bool:
        return bool(self.pipeline) or len(self._held) > 0 or self._receiving is not None

    def _malformed(self, error: httptools.HttpParserError) -> None:
        if isinstance(error, httptools.HttpParserCallbackError) and not self._refused:
            # No fault of the client's: a callback has failed, and no answer can be trusted.
            _log.error("bug", exc_info=error)
            self.transport.abort()
        else:
            super()._malformed(error)

    # What the parser tells

    def on_message_begin(self) -> None:
        self._in_head = True
        self._mid_message = True
        self._handed_over = False
        self._messages_begun += 1
        self._fields = []
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url = self.url + url if self.url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        method = parser.get_method()
        # What comes behind the head are trailers, which nobody looks at.
        fields, self._fields = self._fields, []
        try:
            head = self._head_of(fields, parser.get_http_version())
            path, query = read_target(method, self.url)
        except FixRequest as error:
            self.server_state.malformed += 1
            self._refuse_head(error)
        if head.chunked or self._head_bytes > head_bytes_max:
            size = len(method) + len(self.url) + head.size
            if size > head_bytes_max:
                self._refuse_head(head_too_large())
        exchange = FastExchange(self, method, path, query, head.headers)
        act = None if self._declined else self._act(exchange)
        if act is None:
            self._declined = False
            self._hand_over(path, query, head)
            return
        if head.chunked:
            self._framing_bytes -= size
        self._in_head = False
        if not parser.should_keep_alive():
            exchange.persistence = close_line
        elif head.version == "1.0":
            exchange.persistence = keep_alive_line
        elif head is self._bare or head is self._full:
            self._come_again = None if head.block or parser.should_upgrade() else head
        elif head.length:
            self._full = head
        else:
            self._bare = head
        self._decline_upgrade(head.headers.fields)
        self._receive(exchange, act, head)

    def _head_of(self, fields: list[tuple[bytes, bytes]], version: str) -> Head:
        for head in (self._bare, self._full):
            if head is not None and head.sent == fields and head.version == version:
                return head
        return Head(fields, version)

    def _hand_over(self, path: bytes, query: bytes, head: Head) -> None:
        """Let the application answer: tell uvicorn what it would have been told so far."""
        unlike = len(self.url)
        super().on_message_begin()
        self.url = path + b"?" + query if query else path
        self._framing_bytes -= unlike - len(self.url)
        self.headers += head.headers.fields
        self.expect_100_continue = head.expects
        super().on_headers_complete()
        self._handed_over = True

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
        self._framing_bytes -= len(body)
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

    def _leave_room(self, exchange: FastExchange) -> None:
        taken = self._rooms.pop(exchange, None)
        if taken is not None:
            self._lane.room.give_back(*taken)

    def _leave_rooms(self) -> None:
        """The room of whatever will not be answered any more, or has not been whole."""
        for exchange in list(self._rooms):
            if exchange is not self._turn:
                self._leave_room(exchange)

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

    # Turns

    def _act(self, exchange: FastExchange) -> Act | None:
        """What is to be done with the request once it is whole; None if it is not the lane's."""
        try:
            taken = self._lane_takes(exchange.method, exchange.path, exchange.headers)
        except Exception:
            # A bug ends here, as at the edge of an application.
            return partial(FastExchange.excuse, request_id=exchange.lament())
        return self._lane_begin if taken else None

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
        self._counters.in_flight += 1
        self._idle_since.pop(self, None)
        exchange.began_s = perf_counter()
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
        counters.in_flight -= 1
        elapsed_ms = (perf_counter() - exchange.began_s) * 1000
        # As Histogram.observe does, without the call.
        latency_ms = counters.latency_ms
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
            if self._out_bytes > slice_bytes_max:
                self._flush()
        else:
            self.transport.write(data)
        if persistence is close_line:
            self._end()
            return
        self._idle_since[self] = state.now_s
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

    def _read_no_more(self) -> None:
        self._refused = True
        self._held = b""
        self._repeated = []
        if self._receiving is not None:
            self._leave_room(self._receiving)
            self._receiving = None
        self._body = b""
        self._continue_due = False
        self._unwatch()

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

    def _refuse(self, error: ClientError) -> None:
        """Refuse the request that is arriving, behind the answers to those before it."""
        cycle = self.cycle
        half_here = self._mid_message and self._handed_over
        self._read_no_more()
        if half_here and cycle.more_body and not cycle.response_complete:
            # Its body will never be whole; the handler sees a client that has left.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle is not self._turn:
                self.pipeline.popleft()
            elif cycle.response_started:
                self._flush()
                self.transport.close()
                return
            else:
                self._turn = None
        self.pipeline.appendleft((None, error))
        self._advance()

    def _answer_and_end(self, error: ClientError) -> None:
        self._ended = True
        self._flush()
        super()._answer_and_end(error)
