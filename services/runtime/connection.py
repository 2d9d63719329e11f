"""One open connection between two services: many requests each way, few system calls.

This is the hot path of every operation, so it carries bytes and callbacks: no task, future or
timer per request. Everything sent within one turn of the event loop leaves in one write, and
everything one read brings is handled before the answers leave, again in one write. Against 64
plain connections that echo one message each (`make bench`), this coalescing is worth more than
the parsing costs; the README has the figures.

What callers may rely on stands in peer.py.
"""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import Callable, Iterator
from typing import Final

from services.core.errors import PeerError
from services.core.wire import (
    DOWN,
    FAILED,
    GOODBYE,
    LOST,
    OVERLOADED,
    PING,
    TIMEOUT,
    UNKNOWN_KIND,
    Frame,
    FrameDecoder,
    Hello,
    first_answer_kind,
    first_local_kind,
    first_request_kind,
    frame_bytes_max,
    pack_header,
)
from services.runtime import telemetry
from services.runtime.link_limits import LinkCounters, LinkLimits
from services.runtime.peer import SENT, Handlers, OnAnswer, body_bytes_max, no_answer

log = telemetry.logger(__name__)

request_id_max: Final = 0xFFFF_FFFF
# Answers to one read leave together; past this much, those there are leave first. One read may
# bring thousands of requests for large values: what is unsent must be seen before it is too much.
gathered_bytes_max: Final = 1024 * 1024
# Those who wait in vain are told for so long in each turn of the loop. There may be thousands, and
# what they do then is more than an answer costs: they ask others, keep hints, refuse clients.
telling_s_max: Final = 0.001
parted: Final = "parted"


class State(enum.Enum):
    OPEN = "open"
    # One end has said GOODBYE: no new requests from here, answers still go both ways.
    PARTING = "parting"
    CLOSED = "closed"


class _Period:
    """The time between two sweeps. A request's own time counts from the end of its period.

    Reading the clock at each request would cost as much as the rest of its bookkeeping, and an
    earlier reading is as much too early as the loop was held up since.
    """

    __slots__ = ("ended_s",)

    def __init__(self) -> None:
        self.ended_s = math.inf


class Connection(asyncio.Protocol):
    """Either end of one connection whose opening is done. See peer.py for the contract."""

    def __init__(
        self,
        transport: asyncio.Transport,
        hello: Hello,
        decoder: FrameDecoder,
        handlers: Handlers,
        limits: LinkLimits,
        counters: LinkCounters,
        on_closed: Callable[[Connection, str], None],
    ) -> None:
        self.hello = hello
        self.state = State.OPEN
        self._transport = transport
        self._decoder = decoder
        decoder.bytes_max = frame_bytes_max
        self._handlers = handlers
        self._limits = limits
        self._counters = counters
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        # The bodies in `_out`. They are bounded by what is asked; answers leave in between.
        self._queued_bytes = 0
        self._corked = False
        self._last_id = 0
        self._pending: dict[int, tuple[OnAnswer, int, float, _Period]] = {}
        self._period = _Period()
        self._pending_bytes = 0
        # The request whose handler runs. Most are answered by then, and never remembered.
        self._answering = no_answer
        # The peer's requests that a handler has kept, by id, with the bytes of each.
        self._unanswered: dict[int, int] = {}
        self._unanswered_bytes = 0
        self._full = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweep_due_s = 0.0
        self._reason = ""
        self._peer_said_goodbye = False
        self._closed = asyncio.Event()
        self._time = self._loop.time
        self._heard_s = self._ticked_s = self._taken_s = self._time()
        self._congested = False
        self._written_bytes = self._taken_bytes = 0
        transport.set_write_buffer_limits(high=limits.unsent_bytes_high)
        self._ticking = self._loop.call_later(limits.ping_s, self._tick)

    # -- asking

    @property
    def connected(self) -> bool:
        return self.state is State.OPEN

    def silent_s(self) -> float:
        return self._time() - self._heard_s

    @property
    def pending(self) -> int:
        return len(self._pending)

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        if self.state is not State.OPEN:
            return DOWN
        size = len(body)
        if size > body_bytes_max:
            raise ValueError(f"a body of {size} bytes; a frame holds {body_bytes_max}")
        limits = self._limits
        pending = self._pending
        queued_bytes = self._queued_bytes + size
        if (
            len(pending) >= limits.pending_max
            or self._pending_bytes + size > limits.pending_bytes_max
            or self._congested
            # As long as little is queued, nothing is unsent that would count: spare the call.
            or (queued_bytes > gathered_bytes_max and not self._room(queued_bytes))
        ):
            self._counters.overloaded += 1
            return OVERLOADED
        if self._sweeping is None:
            self._sweep_later()
        # An id comes round again after four billion requests, long after it was answered.
        request_id = self._last_id = self._last_id % request_id_max + 1
        pending[request_id] = (on_answer, size, timeout_s, self._period)
        self._pending_bytes += size
        self._queued_bytes = queued_bytes
        self._counters.requests += 1
        out = self._out
        if not out and not self._corked:
            self._loop.call_soon(self._flush)
        out.append(pack_header(5 + size, kind, request_id))
        out.append(body)
        return SENT

    def notify(self, kind: int, body: bytes) -> bool:
        if self.state is not State.OPEN:
            return False
        size = len(body)
        if size > body_bytes_max:
            raise ValueError(f"a body of {size} bytes; a frame holds {body_bytes_max}")
        queued_bytes = self._queued_bytes + size
        if self._congested or (queued_bytes > gathered_bytes_max and not self._room(queued_bytes)):
            # Nothing else bounds messages: no answer tells how many of them are under way. What is
            # unsent counts as soon as it congests, also while little is queued.
            self._counters.overloaded += 1
            return False
        self._queued_bytes = queued_bytes
        self._send(kind, no_answer, body)
        return True

    def _room(self, queued_bytes: int) -> bool:
        """Whether so much may be queued on top of what the peer has not taken yet.

        What is pending does not tell: a request over its time is not pending any more, and may
        not have left yet.
        """
        unsent_bytes = self._transport.get_write_buffer_size()
        return queued_bytes + unsent_bytes <= self._limits.pending_bytes_max

    # -- answering

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        if request_id == no_answer or self.state is State.CLOSED:
            return
        if request_id == self._answering:
            self._answering = no_answer
        else:
            asked_bytes = self._unanswered.pop(request_id, None)
            if asked_bytes is None:
                self._counters.bugs += 1
                log.error("a request over a link was answered twice", peer=self.hello.id, kind=kind)
                return
            self._unanswered_bytes -= asked_bytes
            self._full = self._unanswered_bytes >= self._limits.unanswered_bytes_max
        size = len(body)
        if size > body_bytes_max:
            self._counters.bugs += 1
            log.error("answer does not fit a frame", peer=self.hello.id, bytes=size)
            kind, body, size = FAILED, b"", 0
        out = self._out
        if not out and not self._corked:
            self._loop.call_soon(self._flush)
        out.append(pack_header(5 + size, kind, request_id))
        out.append(body)
        self._queued_bytes += size
        if self._queued_bytes > gathered_bytes_max:
            self._flush()
        if self.state is State.PARTING and not self._unanswered:
            self._loop.call_soon(self._part)

    # -- reading

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._time()
        counters = self._counters
        counters.bytes_received += len(data)
        try:
            frames = self._decoder.feed(data)
        except PeerError as error:
            self.abort(str(error))
            return
        if frames:
            self.frames_received(frames)

    def frames_received(self, frames: list[Frame]) -> None:
        """Handle these frames in order; what that sends leaves in one write afterwards."""
        counters = self._counters
        counters.frames_received += len(frames)
        pending = self._pending
        self._corked = True
        rest = iter(frames)
        while True:
            try:
                for kind, request_id, body in rest:
                    if first_answer_kind <= kind < first_local_kind:
                        asked = pending.pop(request_id, None)
                        if asked is None:
                            counters.late_answers += 1
                        else:
                            self._pending_bytes -= asked[1]
                            asked[0](kind, body)
                    elif first_request_kind <= kind < first_answer_kind:
                        self._asked(kind, request_id, body)
                    else:
                        self._control(kind)
                break
            except Exception:
                # A bug in the code behind one answer must not take the other answers with it.
                counters.bugs += 1
                log.exception("a callback of a link failed", peer=self.hello.id)
        self._corked = False
        self._flush()
        if self.state is State.PARTING:
            self._part()

    def _asked(self, kind: int, request_id: int, body: bytes) -> None:
        if self.state is State.CLOSED:
            return
        handler = self._handlers.get(kind)
        if handler is None:
            if request_id != no_answer:
                self._send(UNKNOWN_KIND, request_id, b"")
            return
        if (self._congested or self._full) and request_id != no_answer:
            self._counters.overloaded += 1
            self._send(OVERLOADED, request_id, b"")
            return
        self._answering = request_id
        try:
            handler(self, request_id, body)
        except Exception:
            # As at the edge of every service: a bug in one request fails that request alone.
            self._counters.bugs += 1
            log.exception("a request over a link failed", peer=self.hello.id, kind=kind)
            if self._answering != no_answer:
                self.reply(request_id, FAILED, b"")
        if self._answering != no_answer:
            self._answering = no_answer
            self._keep(request_id, len(body))

    def _keep(self, request_id: int, size: int) -> None:
        """Remember a request that its handler will answer later."""
        unanswered, limits = self._unanswered, self._limits
        if request_id in unanswered:
            self.abort(f"the peer asked under the id {request_id}, which still waits")
            return
        unanswered[request_id] = size
        self._unanswered_bytes += size
        self._full = (
            len(unanswered) >= limits.unanswered_max
            or self._unanswered_bytes >= limits.unanswered_bytes_max
        )

    def _control(self, kind: int) -> None:
        if kind == GOODBYE:
            self._peer_said_goodbye = True
            self._say_goodbye()
        elif kind != PING:
            self.abort(f"the message kind {kind} has no place on an open link")

    # -- writing

    def _send(self, kind: int, request_id: int, body: bytes) -> None:
        if not self._out and not self._corked:
            self._loop.call_soon(self._flush)
        self._out.append(pack_header(5 + len(body), kind, request_id))
        self._out.append(body)

    def _flush(self) -> None:
        out = self._out
        if not out:
            return
        if self.state is State.CLOSED:
            out.clear()
            return
        counters = self._counters
        counters.frames_sent += len(out) >> 1
        counters.writes += 1
        data = b"".join(out)
        counters.bytes_sent += len(data)
        self._written_bytes += len(data)
        out.clear()
        self._queued_bytes = 0
        self._transport.write(data)
        if self._congested:
            unsent = self._transport.get_write_buffer_size()
            if unsent > self._limits.unsent_bytes_max:
                self.abort(f"the peer leaves {unsent} bytes unread")

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False

    # -- time

    def _sweep_later(self) -> None:
        sweep_s = self._limits.sweep_s
        self._sweep_due_s = self._time() + sweep_s
        self._sweeping = self._loop.call_later(sweep_s, self._sweep)

    def _sweep(self) -> None:
        sweep_s = self._limits.sweep_s
        if self._time() - self._sweep_due_s > sweep_s:
            # The loop was held up, and answers that came in time lie unread: they come first.
            self._sweeping = self._loop.call_later(sweep_s, self._end_late)
        else:
            self._end_late()

    def _end_late(self) -> None:
        now = self._period.ended_s = self._time()
        self._period = _Period()
        pending = self._pending
        late = [
            request_id
            for request_id, (_, _, timeout_s, period) in pending.items()
            if period.ended_s + timeout_s <= now
        ]
        self._tell_late(iter(late))

    def _tell_late(self, late: Iterator[int]) -> None:
        """Tell those whose time is over, by and by. Who is answered before that is not late."""
        pending = self._pending
        until_s = time.monotonic() + telling_s_max
        for request_id in late:
            asked = pending.pop(request_id, None)
            if asked is not None:
                self._pending_bytes -= asked[1]
                self._counters.timeouts += 1
                self._tell(asked[0], TIMEOUT)
                if time.monotonic() > until_s:
                    self._sweeping = self._loop.call_later(0.0, self._tell_late, late)
                    return
        self._sweeping = None
        if pending:
            self._sweep_later()
        if self.state is State.PARTING:
            self._part()

    def _tick(self) -> None:
        limits = self._limits
        now = self._time()
        unsent = self._transport.get_write_buffer_size()
        # What the peer took, not how much is left: under steady load that may only grow.
        taken = self._written_bytes - unsent
        if now - self._ticked_s > 2 * limits.ping_s:
            # This process was paused, not the peer: what it sent meanwhile is yet to be read.
            self._heard_s = self._taken_s = now
        if taken > self._taken_bytes or not unsent:
            self._taken_s = now
        self._ticked_s, self._taken_bytes = now, taken
        # Once parted nothing is read any more; only the last answers are still leaving.
        if self._reason != parted and now - self._heard_s > limits.silence_s:
            self.abort(f"the peer was silent for {limits.silence_s:g} s")
        elif now - self._taken_s > limits.silence_s:
            self.abort(f"the peer took nothing for {limits.silence_s:g} s")
        else:
            self._send(PING, no_answer, b"")
            self._ticking = self._loop.call_later(limits.ping_s, self._tick)

    # -- ending

    async def drain(self, timeout_s: float) -> None:
        """Ask nothing more, answer and be answered what is under way, then close.

        The other end learns of it by GOODBYE and says so too; what it had sent before that has
        then arrived, so that nobody's outcome is left unknown unless the time runs out.
        """
        self._say_goodbye()
        self._part()
        try:
            async with asyncio.timeout(timeout_s):
                await self._closed.wait()
        except TimeoutError:
            self.abort(f"closed with answers outstanding after {timeout_s:g} s")
            await self._closed.wait()

    def abort(self, reason: str) -> None:
        """Close at once. What was pending becomes LOST as soon as the loop turns."""
        # A parted connection may still be flushing to a peer that takes nothing.
        if self.state is not State.CLOSED or self._reason == parted:
            self.state = State.CLOSED
            self._reason = reason
            self._transport.abort()

    def _say_goodbye(self) -> None:
        if self.state is State.OPEN:
            self.state = State.PARTING
            self._send(GOODBYE, no_answer, b"")

    def _part(self) -> None:
        done = self._peer_said_goodbye and not self._unanswered and not self._pending
        if done and self.state is State.PARTING:
            self._flush()
            self.state = State.CLOSED
            self._reason = parted
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.state is State.PARTING and not self._pending:
            self._reason = parted
        self.state = State.CLOSED
        self._out.clear()
        self._ticking.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
        waiting = [on_answer for on_answer, _, _, _ in self._pending.values()]
        self._pending.clear()
        self._pending_bytes = self._unanswered_bytes = 0
        self._unanswered.clear()
        counters = self._counters
        counters.lost += len(waiting)
        if self._reason != parted:
            counters.connections_lost += 1
        reason = self._reason or (str(exc) if exc else "the peer closed the connection")
        self._tell_lost(iter(waiting), reason)

    def _tell_lost(self, waiting: Iterator[OnAnswer], reason: str) -> None:
        """Tell those who wait, by and by, and then the owner: until all know, this link is down."""
        until_s = time.monotonic() + telling_s_max
        for on_answer in waiting:
            self._tell(on_answer, LOST)
            if time.monotonic() > until_s:
                self._loop.call_soon(self._tell_lost, waiting, reason)
                return
        self._closed.set()
        self._on_closed(self, reason)

    def _tell(self, on_answer: OnAnswer, kind: int) -> None:
        try:
            on_answer(kind, b"")
        except Exception:
            self._counters.bugs += 1
            log.exception("a callback of a link failed", peer=self.hello.id)
