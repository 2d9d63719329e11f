"""One end of an open connection in memory: what `Connection` is on a real link."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from services.core.wire import DOWN, FAILED, LOST, OVERLOADED, TIMEOUT, UNKNOWN_KIND, Hello
from services.runtime import telemetry
from services.runtime.clock import Clock, Timer
from services.runtime.connection import State, parted
from services.runtime.link import Station
from services.runtime.opening import Admit, bug_while_opening
from services.runtime.peer import SENT, OnAnswer, body_bytes_max, no_answer

if TYPE_CHECKING:
    from services.runtime.fake_link import FakeNetwork

log = telemetry.logger(__name__)

# Messages in order arrive at least this far apart: more than the rounding of a sum of times, by
# which one that was sent later would now and then arrive earlier.
order_gap_s: Final = 1e-9
# Of those whose connection is lost; a real one goes by the time that it takes.
told_in_a_turn: Final = 64


@dataclass(slots=True)
class FakeProcess:
    """A process as its links see it."""

    station: Station
    clock: Clock
    admit: Admit
    # In order of opening: a set would close them in another order at each run of a seed.
    ends: dict[FakeEnd, None]

    def hello(self) -> Hello | None:
        """How it introduces itself; None, and a bug counted, if it fails to."""
        try:
            return self.station.identity.hello()
        except Exception:
            self._failed()
            return None

    def refusal(self, admit: Admit, hello: Hello) -> str | None:
        try:
            return admit(hello)
        except Exception:
            self._failed()
            return bug_while_opening

    def _failed(self) -> None:
        """As on a real link: a bug in an opening fails that opening alone."""
        self.station.counters.bugs += 1
        log.exception("opening a link failed")


class FakeEnd:
    """See the module; what travels, and how late, the network decides."""

    other: FakeEnd

    def __init__(
        self,
        network: FakeNetwork,
        process: FakeProcess,
        hello: Hello,
        on_closed: Callable[[str], None],
    ) -> None:
        self.name = process.station.identity.id
        self.peer_name = hello.id
        self.hello = hello
        self.clock = process.clock
        self.state = State.OPEN
        self._network = network
        self._process = process
        self._on_closed = on_closed
        self._last_id = 0
        self._pending: dict[int, tuple[OnAnswer, Timer, int]] = {}
        self._pending_bytes = 0
        # What handlers know a request by: a doubled one arrives twice, and is asked twice.
        self._arrivals = 0
        self._unanswered: dict[int, tuple[int, int]] = {}
        self._unanswered_bytes = 0
        self._leaving_bytes = 0
        self._peer_said_goodbye = False
        self._heard_s = self._pinged_s = self._last_delivery_s = process.clock.monotonic_s()

    def begin(self) -> None:
        """Both ends know each other; nothing has been carried yet."""
        self._process.ends[self] = None
        self._process.station.counters.connections_opened += 1
        self._process.station.came(self)
        self._ping()

    @property
    def connected(self) -> bool:
        return self.state is State.OPEN

    @property
    def pending(self) -> int:
        return len(self._pending)

    def silent_s(self) -> float:
        return self.clock.monotonic_s() - self._heard_s

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        if not self.connected:
            return DOWN
        station, size = self._process.station, _size(body)
        limits = station.limits
        if (
            len(self._pending) >= limits.pending_max
            or self._pending_bytes + size > limits.pending_bytes_max
        ):
            station.counters.overloaded += 1
            return OVERLOADED
        request_id = self._last_id = self._last_id + 1
        timer = self.clock.call_later(timeout_s, lambda: self._answered(request_id, TIMEOUT, b""))
        self._pending[request_id] = (on_answer, timer, size)
        self._pending_bytes += size
        station.counters.requests += 1
        self._carry(lambda far: far._asked(kind, request_id, body))
        return SENT

    def notify(self, kind: int, body: bytes) -> bool:
        if not self.connected:
            return False
        station, size = self._process.station, _size(body)
        if self._leaving_bytes + size > station.limits.pending_bytes_max:
            station.counters.overloaded += 1
            return False
        self._leaving_bytes += size
        self.clock.call_later(self._network.weather.delay_s_max, lambda: self._left(size))
        self._carry(lambda far: far._asked(kind, no_answer, body))
        return True

    def _left(self, size: int) -> None:
        self._leaving_bytes -= size

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        if request_id == no_answer or self.state is State.CLOSED:
            return
        asked = self._unanswered.pop(request_id, None)
        counters = self._process.station.counters
        if asked is None:
            counters.bugs += 1
            log.error("a request over a link was answered twice", peer=self.peer_name, kind=kind)
            return
        theirs, asked_bytes = asked
        self._unanswered_bytes -= asked_bytes
        if len(body) > body_bytes_max:
            counters.bugs += 1
            log.error("answer does not fit a frame", peer=self.peer_name, bytes=len(body))
            kind, body = FAILED, b""
        self._carry(lambda far: far._answered(theirs, kind, body))
        if self.state is State.PARTING:
            self.clock.call_later(0.0, self._part)

    def drain(self, drain_s: float) -> None:
        """Part in order, as `Connection.drain`; when the time is up, close all the same."""
        self._say_goodbye()
        late = f"closed with answers outstanding after {drain_s:g} s"
        self.clock.call_later(drain_s, lambda: self.close(late))

    def close(self, reason: str) -> None:
        """Close this end now and the other one a moment later."""
        if self.state is not State.CLOSED:
            self._carry(lambda far: far._ended("the peer closed the connection"), sure=True)
            self._ended(reason)

    def vanish(self) -> None:
        """This end's process died: no callback here, and the other end learns of it soon."""
        self._carry(lambda far: far._ended("reset by the peer"), sure=True)
        self.state = State.CLOSED
        self._process.ends.pop(self, None)

    def arrive(self, deliver: Callable[[FakeEnd], None]) -> None:
        if self.state is not State.CLOSED:
            self._heard_s = self.clock.monotonic_s()
            deliver(self)

    def in_order(self, delay_s: float) -> float:
        """The delay, made long enough not to overtake what was sent before from this end."""
        now_s = self.clock.monotonic_s()
        self._last_delivery_s = max(self._last_delivery_s + order_gap_s, now_s + delay_s)
        return self._last_delivery_s - now_s

    def _carry(self, deliver: Callable[[FakeEnd], None], *, sure: bool = False) -> None:
        self._network.carry(self, deliver, sure=sure)

    def _asked(self, kind: int, request_id: int, body: bytes) -> None:
        station = self._process.station
        handler = station.handlers.get(kind)
        arrival = no_answer
        if request_id != no_answer:
            refusal = UNKNOWN_KIND if handler is None else self._overload()
            if refusal is not None:
                self._carry(lambda far: far._answered(request_id, refusal, b""))
                return
            arrival = self._arrivals = self._arrivals + 1
            self._unanswered[arrival] = (request_id, len(body))
            self._unanswered_bytes += len(body)
        if handler is None:
            return
        try:
            handler(self, arrival, body)
        except Exception:
            # The same edge as on a real link: a bug in one request fails that request alone.
            station.counters.bugs += 1
            log.exception("a request over a link failed", peer=self.peer_name, kind=kind)
            if arrival in self._unanswered:
                self.reply(arrival, FAILED, b"")

    def _overload(self) -> int | None:
        limits, counters = self._process.station.limits, self._process.station.counters
        if (
            len(self._unanswered) < limits.unanswered_max
            and self._unanswered_bytes < limits.unanswered_bytes_max
        ):
            return None
        counters.overloaded += 1
        return OVERLOADED

    def _answered(self, request_id: int, kind: int, body: bytes) -> None:
        asked = self._pending.pop(request_id, None)
        if asked is None:
            self._process.station.counters.late_answers += 1
            return
        asked[1].cancel()
        self._pending_bytes -= asked[2]
        if kind == TIMEOUT:
            self._process.station.counters.timeouts += 1
        self._tell(asked[0], kind, body)
        self._part()

    def _say_goodbye(self) -> None:
        if self.state is State.OPEN:
            self.state = State.PARTING
            self._carry(lambda far: far._goodbye(), sure=True)
            self._part()

    def _goodbye(self) -> None:
        self._peer_said_goodbye = True
        self._say_goodbye()
        self._part()

    def _part(self) -> None:
        done = self._peer_said_goodbye and not self._unanswered and not self._pending
        if done and self.state is State.PARTING:
            self.close(parted)

    def _ping(self) -> None:
        """As on a real link: be heard every so often, and notice when the peer is not."""
        if self.state is State.CLOSED:
            return
        limits = self._process.station.limits
        now_s = self.clock.monotonic_s()
        if now_s - self._pinged_s > 2 * limits.ping_s:
            # This process was paused, not the peer: its mail is yet to be delivered.
            self._heard_s = now_s
        self._pinged_s = now_s
        if self.silent_s() > limits.silence_s:
            self.close(f"the peer was silent for {limits.silence_s:g} s")
            return
        self._carry(lambda far: None, sure=True)
        self.clock.call_later(limits.ping_s, self._ping)

    def _ended(self, reason: str) -> None:
        if self.state is State.PARTING and not self._pending:
            reason = parted
        self.state = State.CLOSED
        process = self._process
        process.ends.pop(self, None)
        if reason != parted:
            process.station.counters.connections_lost += 1
        pending, self._pending = self._pending, {}
        process.station.counters.lost += len(pending)
        for _, timer, _ in pending.values():
            timer.cancel()
        self._tell_lost(iter([on_answer for on_answer, _, _ in pending.values()]), reason)

    def _tell_lost(self, waiting: Iterator[OnAnswer], reason: str) -> None:
        """As on a real link: by and by, and their owner last."""
        some = list(islice(waiting, told_in_a_turn))
        for on_answer in some:
            self._tell(on_answer, LOST, b"")
        if len(some) == told_in_a_turn:
            self.clock.call_later(0.0, lambda: self._tell_lost(waiting, reason))
            return
        self._on_closed(reason)
        self._process.station.went(self)

    def _tell(self, on_answer: OnAnswer, kind: int, body: bytes) -> None:
        try:
            on_answer(kind, body)
        except Exception:
            self._process.station.counters.bugs += 1
            log.exception("a callback of a link failed", peer=self.peer_name)


def _size(body: bytes) -> int:
    if len(body) > body_bytes_max:
        raise ValueError(f"a body of {len(body)} bytes; a frame holds {body_bytes_max}")
    return len(body)
