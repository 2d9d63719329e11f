"""Links in bad weather: whatever happens, each request ends once, and truly.

Three processes ask each other over the in-memory network while messages are lost, doubled and
overtaken, directions are blocked, processes pause, and processes crash and come back.
What must hold: every request that a living process sent ends exactly once; an answer belongs to
its request; a process never hears what was meant for the one that crashed before it; and once
all is healed, every link comes up and answers again.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from services.core.wire import LOST, OK, TIMEOUT, Role, first_request_kind
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeLink, FakeNetwork, Weather
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.peer import SENT, Peer
from tests.simulation.scenario import Outcome

ASK = first_request_kind
names = ("a", "b", "c")
steps = 60
request_timeout_s = 1.0
# A lost peer is noticed in 2 s and a link retried every 2 s; three rounds of both are plenty.
healing_s = 15.0


class Process:
    """One incarnation of a process: asks its peers, and answers after a while."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.clock = FakeClock(world.timeline)
        self.alive = True
        self._world = world
        identity = Identity(Role.NODE, name, "one secret for all of them here")
        self.station = Station(identity, {ASK: self._asked})
        world.network.attach(self.station, self.clock)
        self.links = {peer: FakeLink(world.network, name, peer) for peer in names if peer != name}
        for link in self.links.values():
            link.start()

    def ask(self, peer: str) -> None:
        world = self._world
        number = world.outcome.counts.get("requests", 0)
        body = f"{self.name}{number}".encode()
        ended: list[int] = []

        def on_answer(kind: int, answer: bytes) -> None:
            assert self.alive, f"{self.name} heard an answer after its crash"
            assert kind in (OK, LOST, TIMEOUT), f"answer kind {kind}"
            assert kind != OK or answer == peer.encode() + body, f"{answer!r} answers {body!r}"
            ended.append(kind)
            assert len(ended) == 1, f"request {body!r} ended {len(ended)} times: {ended}"
            world.ended(number, kind)

        if self.links[peer].request(ASK, body, on_answer, request_timeout_s) == SENT:
            world.sent(number, self)
        world.outcome.count("requests")

    def crash(self) -> None:
        self.alive = False
        self._world.network.crash(self.name)
        self.clock.stop()

    def _asked(self, peer: Peer, request_id: int, body: bytes) -> None:
        assert self.alive, f"{self.name} was asked after its crash"
        answer = self.name.encode() + body
        delay_s = self._world.draw.choice((0.0, 0.001, 0.2, 1.5))
        self.clock.call_later(delay_s, lambda: peer.reply(request_id, OK, answer))


class World:
    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.timeline = Timeline()
        self.weather = Weather(
            loss=self.draw.choice((0.0, 0.05, 0.3)),
            duplicate=self.draw.choice((0.0, 0.1)),
            reorder=self.draw.choice((0.0, 0.2)),
        )
        self.network = FakeNetwork(self.draw, self.weather)
        self.outcome = Outcome()
        self.pending: dict[int, Process] = {}
        self.incarnations: list[Process] = []
        self.processes = {name: self._start(name) for name in names}
        self.faults: tuple[Callable[[], None], ...] = (
            self._crash,
            self._pause,
            self._block,
            self.network.heal,
        )

    def sent(self, number: int, process: Process) -> None:
        self.pending[number] = process

    def ended(self, number: int, kind: int) -> None:
        # An answer may come before `request` has returned only if the link broke its promise.
        assert number in self.pending, f"request {number} ended before it was sent"
        del self.pending[number]
        self.outcome.count({OK: "answered", LOST: "lost", TIMEOUT: "timed out"}[kind])
        self.outcome.trace = hash((self.outcome.trace, number, kind, self.timeline.now_s))

    def run(self) -> Outcome:
        self.timeline.advance(0.1)
        for _ in range(steps):
            process = self.processes[self.draw.choice(names)]
            for _ in range(self.draw.randrange(4)):
                process.ask(self.draw.choice([name for name in names if name != process.name]))
            if self.draw.random() < 0.15:
                self.draw.choice(self.faults)()
                self.outcome.count("faults")
            self.timeline.advance(self.draw.choice((0.0, 0.01, 0.3, 1.0)))
        self._heal_and_check()
        return self.outcome

    def _crash(self) -> None:
        name = self.draw.choice(names)
        crashed = self.processes[name]
        crashed.crash()
        self.pending = {n: process for n, process in self.pending.items() if process.alive}
        self.processes[name] = self._start(name)

    def _start(self, name: str) -> Process:
        self.incarnations.append(Process(self, name))
        return self.incarnations[-1]

    def _pause(self) -> None:
        clock = self.processes[self.draw.choice(names)].clock
        clock.pause()
        self.timeline.schedule(self.draw.uniform(0.1, 6.0), clock.resume)

    def _block(self) -> None:
        sender, receiver = self.draw.sample(names, 2)
        self.network.block(sender, receiver)

    def _heal_and_check(self) -> None:
        self.network.heal()
        self.weather.loss = self.weather.duplicate = self.weather.reorder = 0.0
        self.timeline.advance(healing_s)
        assert not self.pending, f"requests {sorted(self.pending)} never ended"
        answered = self.outcome.counts.get("answered", 0)
        for process in self.processes.values():
            for peer, link in process.links.items():
                assert link.connected, f"{process.name} has no link to {peer}: {link.last_error}"
                process.ask(peer)
        self.timeline.advance(healing_s)
        late = answered + 6 - self.outcome.counts["answered"]
        assert late <= self.outcome.counts.get("timed out", 0), "a healed link did not answer"
        # What the checks above raise inside a callback, the link counts and logs as a bug.
        bugs = sum(process.station.counters.bugs for process in self.incarnations)
        assert not bugs, f"{bugs} callbacks or handlers failed; the log has them"


def links(seed: int) -> Outcome:
    return World(seed).run()
