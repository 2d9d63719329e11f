"""Links in memory, for simulations: the seam of peer.py over seeded bad weather.

Processes of one simulation share a `FakeNetwork`. Messages are lost, doubled, delayed and
overtaken as `Weather` says, drawn from one seeded generator, and one-way blocks make partitions.
A message is delivered by a timer of the receiver's clock, so that a paused process gets its mail
when it resumes, and a crashed one never.

What this is harsher in than TCP: a single message may be lost, doubled or overtaken within a
connection. Services may not rely on its order, so whatever holds here holds there.

What this is not: bytes. Frames, the opening's proof, sizes of buffers and coalescing are tested
on the real link; admission, limits on what is pending, timeouts and loss are modelled here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.core.wire import DOWN, FAILED, LOST, OVERLOADED, TIMEOUT, UNKNOWN_KIND, Hello
from services.runtime import telemetry
from services.runtime.clock import Clock, Timer
from services.runtime.link import Station, reconnect_s_max, reconnect_s_min
from services.runtime.opening import Admit, anyone
from services.runtime.peer import SENT, OnAnswer, no_answer

log = telemetry.logger(__name__)

# Messages in order arrive at least this far apart: more than the rounding of a sum of times, by
# which one that was sent later would now and then arrive earlier.
order_gap_s: Final = 1e-9


@dataclass(slots=True)
class Weather:
    """How messages fare; may be changed while a simulation runs."""

    loss: float = 0.0
    duplicate: float = 0.0
    # The chance that a message may be overtaken by those sent after it.
    reorder: float = 0.0
    delay_s_min: float = 0.0001
    delay_s_max: float = 0.001
    # How much longer than delay_s_max an overtaken message may take.
    straggle_s_max: float = 0.05


@dataclass(slots=True)
class _Process:
    station: Station
    clock: Clock
    admit: Admit
    # In order of opening: a set would close them in another order at each run of a seed.
    ends: dict[FakeEnd, None]


class FakeNetwork:
    """Everything between the processes of a simulation. `attach` brings one to life."""

    def __init__(self, draw: random.Random, weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self.messages = 0
        self.lost = 0
        self._draw = draw
        self._processes: dict[str, _Process] = {}
        self._blocked: set[tuple[str, str]] = set()

    def attach(self, station: Station, clock: Clock, admit: Admit = anyone) -> None:
        """Make a process reachable under its id. It replaces one of that id that crashed."""
        name = station.identity.id
        if name in self._processes:
            raise ValueError(f"{name} is attached already; crash it first")
        self._processes[name] = _Process(station, clock, admit, {})

    def crash(self, name: str) -> None:
        """The process is gone, without a word; its peers notice soon, as by a reset.

        The caller stops the process's clock.
        """
        process = self._processes.pop(name)
        for end in list(process.ends):
            end.vanish()

    def block(self, sender: str, receiver: str) -> None:
        """From now on nothing sent by `sender` reaches `receiver`; what is on its way does."""
        self._blocked.add((sender, receiver))

    def heal(self) -> None:
        self._blocked.clear()

    def blocked(self, sender: str, receiver: str) -> bool:
        return (sender, receiver) in self._blocked

    def process(self, name: str) -> _Process | None:
        return self._processes.get(name)

    def carry(self, end: FakeEnd, deliver: Callable[[FakeEnd], None], *, sure: bool) -> None:
        """Bring a message to the other end, or not. A sure one is only ever blocked or late."""
        weather, draw = self.weather, self._draw
        self.messages += 1
        if self.blocked(end.name, end.peer_name) or (not sure and draw.random() < weather.loss):
            self.lost += 1
            return
        copies = 2 if not sure and draw.random() < weather.duplicate else 1
        for _ in range(copies):
            delay_s = draw.uniform(weather.delay_s_min, weather.delay_s_max)
            if not sure and draw.random() < weather.reorder:
                delay_s += draw.uniform(0.0, weather.straggle_s_max)
            else:
                delay_s = end.in_order(delay_s)
            end.other.clock.call_later(delay_s, lambda: end.other.arrive(deliver))


class FakeLink:
    """The client's end of links to one process, kept up from `start` to `close`."""

    def __init__(
        self, network: FakeNetwork, name: str, peer_name: str, *, admit: Admit = anyone
    ) -> None:
        self.last_error: str | None = None
        self._admit = admit
        self._network = network
        self._name = name
        self._peer_name = peer_name
        self._end: FakeEnd | None = None
        self._retry: Timer | None = None
        self._wait_s = reconnect_s_min
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._end is not None and self._end.connected

    @property
    def peer(self) -> Hello | None:
        return self._end.hello if self._end is not None else None

    def silent_s(self) -> float:
        return self._end.silent_s() if self._end is not None else float("inf")

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        return DOWN if self._end is None else self._end.request(kind, body, on_answer, timeout_s)

    def notify(self, kind: int, body: bytes) -> bool:
        return self._end is not None and self._end.notify(kind, body)

    def start(self) -> None:
        self._again(0.0)

    def close(self) -> None:
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._end is not None:
            self._end.close("closed")

    def _again(self, delay_s: float) -> None:
        process = self._network.process(self._name)
        if process is not None and not self._closed:
            self._retry = process.clock.call_later(delay_s, self._connect)

    def _connect(self) -> None:
        refusal = self._open()
        if refusal is not None:
            self.last_error = refusal
            self._wait_s = min(self._wait_s * 2, reconnect_s_max)
            self._again(self._wait_s)

    def _open(self) -> str | None:
        """Join the two processes at once: the round trips of a real opening decide nothing."""
        network = self._network
        ours, theirs = network.process(self._name), network.process(self._peer_name)
        if ours is None or theirs is None:
            return "no such process"
        there, back = (self._name, self._peer_name), (self._peer_name, self._name)
        if network.blocked(*there) or network.blocked(*back):
            return f"no answer within {ours.station.limits.opening_s:g} s"
        our_hello, their_hello = ours.station.identity.hello(), theirs.station.identity.hello()
        if ours.station.identity.secret != theirs.station.identity.secret:
            return "the proof does not match: CLUSTER_SECRET differs between the two ends"
        refusal = self._admit(their_hello) or theirs.admit(our_hello)
        if refusal is not None:
            return refusal
        near = FakeEnd(network, ours, their_hello, self._down)
        far = FakeEnd(network, theirs, our_hello, lambda reason: None)
        near.other, far.other = far, near
        self._end, self.last_error, self._wait_s = near, None, reconnect_s_min
        # A paused process learns of the connection when it resumes, before anything it carries.
        theirs.ends[far] = None
        theirs.clock.call_later(0.0, far.begin)
        near.begin()
        return None

    def _down(self, reason: str) -> None:
        self._end = None
        self.last_error = reason
        self._again(self._wait_s)


class FakeEnd:
    """One end of an open connection: what `Connection` is on a real link."""

    other: FakeEnd

    def __init__(
        self,
        network: FakeNetwork,
        process: _Process,
        hello: Hello,
        on_closed: Callable[[str], None],
    ) -> None:
        self.name = process.station.identity.id
        self.peer_name = hello.id
        self.hello = hello
        self.clock = process.clock
        self.connected = True
        self._network = network
        self._process = process
        self._on_closed = on_closed
        self._last_id = 0
        self._pending: dict[int, tuple[OnAnswer, Timer]] = {}
        self._heard_s = self._pinged_s = self._last_delivery_s = process.clock.monotonic_s()

    def begin(self) -> None:
        """Both ends know each other; nothing has been carried yet."""
        self._process.ends[self] = None
        self._process.station.counters.connections_opened += 1
        self._process.station.on_up(self)
        self._ping()

    def silent_s(self) -> float:
        return self.clock.monotonic_s() - self._heard_s

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        if not self.connected:
            return DOWN
        station = self._process.station
        if len(self._pending) >= station.limits.pending_max:
            station.counters.overloaded += 1
            return OVERLOADED
        request_id = self._last_id = self._last_id + 1
        timer = self.clock.call_later(timeout_s, lambda: self._answered(request_id, TIMEOUT, b""))
        self._pending[request_id] = (on_answer, timer)
        station.counters.requests += 1
        self._carry(lambda far: far._asked(kind, request_id, body))
        return SENT

    def notify(self, kind: int, body: bytes) -> bool:
        if self.connected:
            self._carry(lambda far: far._asked(kind, no_answer, body))
        return self.connected

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        if self.connected and request_id != no_answer:
            self._carry(lambda far: far._answered(request_id, kind, body))

    def close(self, reason: str) -> None:
        """Close this end now and the other one a moment later."""
        if self.connected:
            self._carry(lambda far: far._ended("the peer closed the connection"), sure=True)
            self._ended(reason)

    def vanish(self) -> None:
        """This end's process died: no callback here, and the other end learns of it soon."""
        self._carry(lambda far: far._ended("reset by the peer"), sure=True)
        self.connected = False
        self._process.ends.pop(self, None)

    def arrive(self, deliver: Callable[[FakeEnd], None]) -> None:
        if self.connected:
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
        if handler is None:
            self.reply(request_id, UNKNOWN_KIND, b"")
            return
        try:
            handler(self, request_id, body)
        except Exception:
            # The same edge as on a real link: a bug in one request fails that request alone.
            station.counters.bugs += 1
            log.exception("a request over a link failed", peer=self.peer_name, kind=kind)
            self.reply(request_id, FAILED, b"")

    def _answered(self, request_id: int, kind: int, body: bytes) -> None:
        asked = self._pending.pop(request_id, None)
        if asked is None:
            self._process.station.counters.late_answers += 1
            return
        asked[1].cancel()
        if kind == TIMEOUT:
            self._process.station.counters.timeouts += 1
        self._tell(asked[0], kind, body)

    def _ping(self) -> None:
        """As on a real link: be heard every so often, and notice when the peer is not."""
        if not self.connected:
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
        self.connected = False
        process = self._process
        process.ends.pop(self, None)
        process.station.counters.connections_lost += 1
        pending, self._pending = self._pending, {}
        process.station.counters.lost += len(pending)
        for on_answer, timer in pending.values():
            timer.cancel()
            self._tell(on_answer, LOST, b"")
        self._on_closed(reason)
        process.station.on_down(self)

    def _tell(self, on_answer: OnAnswer, kind: int, body: bytes) -> None:
        try:
            on_answer(kind, body)
        except Exception:
            self._process.station.counters.bugs += 1
            log.exception("a callback of a link failed", peer=self.peer_name)
