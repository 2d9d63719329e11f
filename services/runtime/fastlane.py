"""The fast lane: requests answered inside the HTTP parser's callbacks.

`FastLane` is a protocol for the Listener. Of the state that the lifespan yields it takes `lane`
(runtime/exchange.py), `counters`, the RequestCounters that the application counts in too, and
`access_log`, False if it is missing. Requests that the lane takes become exchanges; all others
go to the application. Those of one connection are answered strictly one after the other:

    head parsed ──> receiving ──> pipeline ──────> turn ─────────> answered
                      its body      those before     Lane.begin      Exchange.reply

The class is in three parts: here what arrives is parsed; lane_bodies.py has bodies until they are
whole, and lane_turns.py the rest of the way, with all that is written.

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
on this connection, the parser is not asked again: `_take_again`; nor is the target read again where
the whole request came before, as those for one ID do. Of the time that this module takes for a GET
that brings 2.5 us instead of 5.6 (a bare parser with callbacks takes 1.1), and with the kernel and
the loop around it, 1.2 times the CPU of a bare protocol instead of 1.7: `make bench ARGS=fastlane`.
Where the fields are new each time it is 2.1 times.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic_ns
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from services.core.errors import ClientError, FixRequest
from services.runtime import telemetry
from services.runtime.fast_exchange import FastExchange, close_line, keep_alive_line
from services.runtime.lane_bodies import LaneBodies
from services.runtime.lane_turns import Act
from services.runtime.listener import head_bytes_max, head_too_large
from services.runtime.request_head import Head, block_bytes_max, read_target, request_line

# What of a read is parsed at once.
slice_bytes_max: Final = 64 * 1024
# A longer one is left to the parser, which counts the whole head.
_line_bytes_max: Final = head_bytes_max - block_bytes_max

_log = telemetry.logger("services.http")
_continue: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class FastLane(LaneBodies):
    """One client connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._lane_takes = self._lane.takes
        self._lane_begin = self._lane.begin
        # The message that is being parsed.
        self._messages_begun = 0
        self._handed_over = False
        self._fields: list[tuple[bytes, bytes]] = []
        # What all slices that its head stands in have together: it has no more.
        self._head_bytes = 0
        # Whether it is known that the lane does not take it.
        self._declined = False
        # The last heads that the lane took, without a body and with one; those of them that came
        # again, and are kept as they were sent; and the one that is coming again now.
        self._bare: Head | None = None
        self._full: Head | None = None
        self._repeated: list[Head] = []
        self._come_again: Head | None = None

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:
            self.address = self.client[0]

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._parting is not None:
            self._parting.cancel()
        self.pipeline.clear()
        self._leave_rooms()
        self._read_no_more()
        turn = self._turn
        if isinstance(turn, RequestResponseCycle):
            # uvicorn tells the newest one only.
            turn.disconnected = True
            turn.message_event.set()
            # As with `cycle`: they refer to each other.
            self._turn = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Whenever no request has its turn and writing is possible, nothing is waiting either.
        if self._turn is None and not self._stalled:
            if not self._mid_message:
                for head in self._repeated:
                    if data == head.whole:
                        exchange = FastExchange(
                            self, head.method, head.path, head.query, head.headers
                        )
                        if self._begin_again(exchange):
                            return
                        break
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
        if head.length:
            exchange.body = data[start + len(head.block) :]
        else:
            head.whole = data
            head.method, head.path, head.query = exchange.method, exchange.path, exchange.query
        return self._begin_again(exchange)

    def _begin_again(self, exchange: FastExchange) -> bool:
        """Begin a request that is whole; False if the parser must see it."""
        act: Act | None
        try:
            taken = self._lane_takes(exchange.method, exchange.path, exchange.headers)
            act = self._lane_begin if taken else None
        except Exception:
            # As in `_act`, without the call.
            act = partial(FastExchange.excuse, request_id=exchange.lament())
        if act is None:
            self._declined = True
            return False
        self._turn = exchange
        exchange.began_ns = monotonic_ns()
        try:
            act(exchange)
        except Exception:
            # As in `_begin`.
            exchange.excuse(exchange.lament())
        if exchange.connection is self:
            # It was not answered at once, which only now costs what keeping count does.
            exchange.counted = True
            self._counters.in_flight += 1
            self._idle_since.pop(self, None)
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
        self._framing_bytes = self._framing_bytes + size
        mid_message = self._mid_message
        self._head_bytes = size + self._head_bytes if mid_message and self._in_head else size
        self._come_again = None
        begun = self._messages_begun
        self._parse(piece)
        if self._refused:
            return
        if self._framing_bytes:
            self._bound_framing()
        head = self._coming_again()
        if head is None or mid_message or self._mid_message or not isinstance(piece, bytes):
            return
        if self._messages_begun == begun + 1:
            head.keep(piece)
            self._repeated = [one for one in (self._bare, self._full) if one and one.block]

    def _coming_again(self) -> Head | None:
        """What the parser has told meanwhile, which to the type checker is still what it was."""
        return self._come_again

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
            self._framing_bytes = self._framing_bytes - size
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
        self._framing_bytes = self._framing_bytes - (unlike - len(self.url))
        self.headers.extend(head.headers.fields)
        self.expect_100_continue = head.expects
        super().on_headers_complete()
        self._handed_over = True

    def _act(self, exchange: FastExchange) -> Act | None:
        """What is to be done with the request once it is whole; None if it is not the lane's."""
        try:
            taken = self._lane_takes(exchange.method, exchange.path, exchange.headers)
        except Exception:
            # A bug ends here, as at the edge of an application.
            return partial(FastExchange.excuse, request_id=exchange.lament())
        return self._lane_begin if taken else None

    # Refusals

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

    def _read_no_more(self) -> None:
        super()._read_no_more()
        self._repeated = []
