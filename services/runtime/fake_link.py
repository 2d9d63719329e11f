"""Links in memory, for simulations: the seam of peer.py over seeded bad weather.

Processes of one simulation share a `FakeNetwork`. Messages are lost, doubled, delayed and
overtaken as `Weather` says, drawn from one seeded generator, and one-way blocks make partitions.
A message is delivered by a timer of the receiver's clock, so that a paused process gets its mail
when it resumes, and a crashed one never.

What this is harsher in than TCP: a single message may be lost, doubled or overtaken within a
connection. Services may not rely on its order, so whatever holds here holds there.

What this is not: bytes. Frames, the opening's proof, sizes of buffers and coalescing are tested
on the real link. Modelled here are admission, the limits on what is pending and unanswered, with
messages counted as unsent for as long as one may travel, timeouts, loss, and the parting.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from services.core.wire import DOWN, Hello
from services.runtime.clock import Clock, Timer
from services.runtime.fake_connection import FakeEnd, FakeProcess
from services.runtime.link import (
    Station,
    reconnect_s_max,
    reconnect_s_min,
)
from services.runtime.opening import Admit, anyone, bug_while_opening, mismatch
from services.runtime.peer import OnAnswer


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


class FakeNetwork:
    """Everything between the processes of a simulation. `attach` brings one to life."""

    def __init__(self, draw: random.Random, weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self.messages = 0
        self.lost = self.doubled = 0
        self._draw = draw
        self._processes: dict[str, FakeProcess] = {}
        self._blocked: set[tuple[str, str]] = set()

    def attach(self, station: Station, clock: Clock, admit: Admit = anyone) -> None:
        """Make a process reachable under its id. It replaces one of that id that crashed."""
        name = station.identity.id
        if name in self._processes:
            raise ValueError(f"{name} is attached already; crash it first")
        self._processes[name] = FakeProcess(station, clock, admit, {})

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

    def process(self, name: str) -> FakeProcess | None:
        return self._processes.get(name)

    def carry(self, end: FakeEnd, deliver: Callable[[FakeEnd], None], *, sure: bool) -> None:
        """Bring a message to the other end, or not. A sure one is only ever blocked or late."""
        weather, draw = self.weather, self._draw
        self.messages += 1
        if self.blocked(end.name, end.peer_name) or (not sure and draw.random() < weather.loss):
            self.lost += 1
            return
        doubled = not sure and draw.random() < weather.duplicate
        self.doubled += doubled
        for _ in range(1 + doubled):
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
        self._started = False
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._end is not None and self._end.connected

    @property
    def peer(self) -> Hello | None:
        return self._end.hello if self._end is not None else None

    @property
    def pending(self) -> int:
        return self._end.pending if self._end is not None else 0

    def silent_s(self) -> float:
        return self._end.silent_s() if self._end is not None else float("inf")

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        return DOWN if self._end is None else self._end.request(kind, body, on_answer, timeout_s)

    def notify(self, kind: int, body: bytes) -> bool:
        return self._end is not None and self._end.notify(kind, body)

    def start(self) -> None:
        if self._started:
            raise RuntimeError("the link was started before")
        self._started = True
        self._again(0.0)

    async def close(self, drain_s: float = 0.0) -> None:
        """As on a real link, but not awaited to its end: that comes as the clock moves on."""
        self.part(drain_s)

    def part(self, drain_s: float) -> None:
        """What `close` does, for a simulation that has no event loop."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._end is not None:
            self._end.drain(drain_s)

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
        our_hello, their_hello = ours.hello(), theirs.hello()
        if our_hello is None or their_hello is None:
            return bug_while_opening
        if ours.station.identity.secret != theirs.station.identity.secret:
            return mismatch
        refusal = ours.refusal(self._admit, their_hello) or theirs.refusal(theirs.admit, our_hello)
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
