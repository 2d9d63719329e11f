"""The network in memory: its weather is what the seed says, and fair weather is fair."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.wire import DOWN, LOST, OK, TIMEOUT, Hello, Role, first_request_kind
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeLink, FakeNetwork, Weather
from services.runtime.link import Station
from services.runtime.link_limits import LinkLimits
from services.runtime.opening import Admit, Identity, anyone
from services.runtime.peer import Peer

ECHO = first_request_kind
NOTE = first_request_kind + 1
HOLD = first_request_kind + 2
seeds = st.integers(0, 2**32)


@dataclass
class Process:
    """A process of the simulation, and what reached it, with the time."""

    name: str
    clock: FakeClock
    notes: list[tuple[float, bytes]] = field(default_factory=list)
    asked: list[bytes] = field(default_factory=list)
    up: list[Peer] = field(default_factory=list)
    down: list[Peer] = field(default_factory=list)

    def station(self, limits: LinkLimits, secret: str = "secret") -> Station:
        def echo(peer: Peer, request_id: int, body: bytes) -> None:
            self.asked.append(body)
            peer.reply(request_id, OK, body)

        def note(peer: Peer, request_id: int, body: bytes) -> None:
            self.notes.append((self.clock.monotonic_s(), body))

        def hold(peer: Peer, request_id: int, body: bytes) -> None:
            self.asked.append(body)

        return Station(
            Identity(Role.NODE, self.name, secret),
            {ECHO: echo, NOTE: note, HOLD: hold},
            limits,
            on_up=self.up.append,
            on_down=self.down.append,
        )


class Simulation:
    """Two processes, `a` with a link to `b`."""

    def __init__(
        self,
        seed: int = 1,
        weather: Weather | None = None,
        limits_a: LinkLimits | None = None,
        limits_b: LinkLimits | None = None,
    ) -> None:
        self.timeline = Timeline()
        self.network = FakeNetwork(random.Random(seed), weather)
        self.limits_b = limits_b or LinkLimits()
        self.a = Process("a", FakeClock(self.timeline))
        self.b = Process("b", FakeClock(self.timeline))
        self.station_a = self.a.station(limits_a or LinkLimits())
        self.network.attach(self.station_a, self.a.clock)
        self.network.attach(self.b.station(self.limits_b), self.b.clock)
        self.link = FakeLink(self.network, "a", "b")
        self.link.start()
        self.run(0.01)
        assert self.link.connected

    def run(self, seconds: float) -> None:
        self.timeline.advance(seconds)

    def restart_b(self, admit: Admit = anyone, secret: str = "secret") -> None:
        self.b = Process("b", FakeClock(self.timeline))
        self.network.attach(self.b.station(self.limits_b, secret), self.b.clock, admit)

    def ask(self, count: int, timeout_s: float = 1.0, kind: int = ECHO) -> list[Counter[int]]:
        """Ask so often, a millisecond apart; the kinds of answers that each request got."""
        got: list[Counter[int]] = [Counter() for _ in range(count)]

        def remember(number: int) -> Callable[[int, bytes], None]:
            def on_answer(kind: int, body: bytes) -> None:
                assert kind != OK or body == str(number).encode()
                got[number][kind] += 1

            return on_answer

        for number in range(count):
            result = self.link.request(kind, str(number).encode(), remember(number), timeout_s)
            if result:
                got[number][result] += 1
            self.run(0.001)
        return got

    def answers(self) -> bool:
        """Whether requests are answered, in fair weather, at once."""
        got = self.ask(5)
        self.run(0.1)
        return all(kinds == {OK: 1} for kinds in got)


def history(seed: int) -> tuple[list[tuple[float, bytes]], list[Counter[int]], int, int]:
    simulation = Simulation(seed, Weather(loss=0.2, duplicate=0.2, reorder=0.3))
    for number in range(50):
        simulation.link.notify(NOTE, str(number).encode())
    got = simulation.ask(50)
    simulation.run(3.0)
    network = simulation.network
    return simulation.b.notes, got, network.messages, network.lost


@given(seeds)
@settings(max_examples=30)
def test_a_seed_says_all_that_happens(seed: int) -> None:
    assert history(seed) == history(seed)


def test_another_seed_is_another_run() -> None:
    assert len({str(history(seed)) for seed in range(10)}) == 10


@given(seeds, st.floats(0.0, 0.1), st.floats(0.0, 0.3))
@settings(max_examples=50)
def test_in_fair_weather_nothing_is_lost_and_order_holds(
    seed: int, delay_s: float, more_s: float
) -> None:
    weather = Weather(delay_s_min=delay_s, delay_s_max=delay_s + more_s)
    simulation = Simulation(seed, weather)
    pauses = random.Random(seed)
    for number in range(200):
        assert simulation.link.notify(NOTE, str(number).encode())
        simulation.run(pauses.uniform(0.0, 0.01))
    got = simulation.ask(100, timeout_s=5.0)
    simulation.run(5.0)
    assert [body for _, body in simulation.b.notes] == [str(n).encode() for n in range(200)]
    assert simulation.b.asked == [str(number).encode() for number in range(100)]
    assert all(kinds == {OK: 1} for kinds in got)
    assert simulation.network.lost == 0


@given(seeds)
@settings(max_examples=30)
def test_in_any_weather_a_request_is_answered_exactly_once(seed: int) -> None:
    simulation = Simulation(seed, Weather(loss=0.2, duplicate=0.2, reorder=0.3))
    got = simulation.ask(200, timeout_s=0.5)
    simulation.run(3.0)
    assert all(kinds.total() == 1 for kinds in got)
    assert simulation.link.connected


def test_lost_messages_are_timeouts() -> None:
    simulation = Simulation(weather=Weather(loss=0.3))
    got = simulation.ask(1000)
    simulation.run(3.0)
    kinds = sum(got, Counter())
    assert set(kinds) == {OK, TIMEOUT}
    # Either way may lose it: 1 - 0.7 ** 2.
    assert 430 < kinds[TIMEOUT] < 590
    assert simulation.station_a.counters.timeouts == kinds[TIMEOUT]


def test_a_doubled_request_is_handled_twice_and_answered_once() -> None:
    simulation = Simulation(weather=Weather(duplicate=1.0))
    got = simulation.ask(10)
    simulation.run(1.0)
    assert Counter(simulation.b.asked) == {str(number).encode(): 2 for number in range(10)}
    assert all(kinds == {OK: 1} for kinds in got)
    assert simulation.station_a.counters.late_answers == 30


def test_messages_overtake_each_other_when_the_weather_says_so() -> None:
    simulation = Simulation(weather=Weather(reorder=0.3))
    sent = [str(number).encode() for number in range(200)]
    for body in sent:
        simulation.link.notify(NOTE, body)
    simulation.run(1.0)
    arrived = [body for _, body in simulation.b.notes]
    assert arrived != sent
    assert sorted(arrived) == sorted(sent)


# -- partitions


@pytest.mark.parametrize("blocked", [[("a", "b")], [("b", "a")], [("a", "b"), ("b", "a")]])
def test_a_partition_is_noticed_by_both_ends_and_ends_with_it(
    blocked: list[tuple[str, str]],
) -> None:
    simulation = Simulation()
    for sender, receiver in blocked:
        simulation.network.block(sender, receiver)
    got = simulation.ask(10, timeout_s=60.0)
    assert simulation.link.connected
    simulation.run(2.0 + 2 * 0.5 + 0.1)
    assert not simulation.link.connected
    assert [len(simulation.a.down), len(simulation.b.down)] == [1, 1]
    assert all(kinds == {LOST: 1} for kinds in got)
    # One direction is enough for no link: an opening needs both.
    simulation.run(30.0)
    assert len(simulation.b.up) == 1
    assert "no answer within" in str(simulation.link.last_error)
    simulation.network.heal()
    simulation.run(3.0)
    assert simulation.answers()


def test_what_was_on_its_way_when_the_block_began_still_arrives() -> None:
    simulation = Simulation()
    simulation.link.notify(NOTE, b"before")
    simulation.network.block("a", "b")
    simulation.link.notify(NOTE, b"after")
    simulation.run(1.0)
    assert [body for _, body in simulation.b.notes] == [b"before"]


def test_one_way_blocks_are_one_way() -> None:
    simulation = Simulation()
    simulation.network.block("b", "a")
    got = simulation.ask(5, timeout_s=0.5)
    simulation.run(1.0)
    assert len(simulation.b.asked) == 5
    assert all(kinds == {TIMEOUT: 1} for kinds in got)


# -- pauses


def test_a_paused_process_gets_its_mail_in_order_when_it_resumes() -> None:
    simulation = Simulation()
    simulation.b.clock.pause()
    for number in range(20):
        simulation.link.notify(NOTE, str(number).encode())
    simulation.run(1.0)
    assert simulation.b.notes == []
    simulation.b.clock.resume()
    simulation.run(0.01)
    assert [body for _, body in simulation.b.notes] == [str(n).encode() for n in range(20)]


def test_a_process_that_was_paused_does_not_think_its_peer_dead() -> None:
    patient = LinkLimits(silence_s=1000.0)
    simulation = Simulation(limits_a=patient)
    simulation.b.clock.pause()
    simulation.run(60.0)
    simulation.b.clock.resume()
    simulation.run(10.0)
    assert simulation.link.connected
    assert simulation.b.down == simulation.a.down == []
    assert simulation.answers()


def test_a_paused_process_is_thought_dead_by_its_peer_and_learns_of_it() -> None:
    simulation = Simulation()
    simulation.b.clock.pause()
    got = simulation.ask(5, timeout_s=60.0)
    simulation.run(4.0)
    assert len(simulation.a.down) == 1
    assert all(kinds == {LOST: 1} for kinds in got)
    assert simulation.b.down == []
    simulation.b.clock.resume()
    simulation.run(3.0)
    assert len(simulation.b.down) >= 1
    assert simulation.link.connected
    assert simulation.answers()


def test_nothing_runs_in_a_process_while_it_is_paused() -> None:
    simulation = Simulation()
    simulation.b.clock.pause()
    ups = len(simulation.b.up)
    simulation.ask(5)
    simulation.run(30.0)  # Meanwhile its peer gives up and connects again and again.
    assert len(simulation.b.up) == ups
    assert simulation.b.asked == []
    assert simulation.b.down == []


# -- crashes


def test_after_a_crash_everything_pending_is_lost_once_and_the_link_comes_back() -> None:
    simulation = Simulation()
    got = simulation.ask(20, timeout_s=60.0, kind=HOLD)
    crashed = simulation.b
    simulation.network.crash("b")
    crashed.clock.stop()
    simulation.run(0.1)
    assert not simulation.link.connected
    assert all(kinds == {LOST: 1} for kinds in got)
    assert simulation.link.request(ECHO, b"", lambda kind, body: None, 1.0) == DOWN
    simulation.run(30.0)
    assert crashed.down == []  # A dead process is told nothing.
    simulation.restart_b()
    simulation.run(3.0)
    assert simulation.answers()
    assert len(crashed.asked) == 20


def test_mail_to_a_crashed_process_never_reaches_the_one_that_replaces_it() -> None:
    simulation = Simulation(weather=Weather(delay_s_min=0.05, delay_s_max=0.1))
    simulation.link.notify(NOTE, b"for the old one")
    old = simulation.b
    simulation.network.crash("b")
    old.clock.stop()
    simulation.restart_b()
    simulation.run(10.0)
    assert simulation.link.connected
    assert old.notes == simulation.b.notes == []


def test_a_process_of_a_name_that_lives_cannot_be_attached() -> None:
    simulation = Simulation()
    with pytest.raises(ValueError, match="b is attached already"):
        simulation.restart_b()


# -- openings


def test_each_end_may_turn_the_other_away() -> None:
    def nobody(hello: Hello) -> str | None:
        return f"{hello.id} is not welcome"

    simulation = Simulation()
    refusing = FakeLink(simulation.network, "a", "b", admit=nobody)
    refusing.start()
    simulation.run(1.0)
    assert refusing.last_error == "b is not welcome"
    simulation.b.clock.stop()
    simulation.network.crash("b")
    simulation.restart_b(admit=nobody)
    simulation.run(3.0)
    assert simulation.link.last_error == "a is not welcome"


def test_another_secret_is_no_link() -> None:
    simulation = Simulation()
    simulation.b.clock.stop()
    simulation.network.crash("b")
    simulation.restart_b(secret="another")
    simulation.run(3.0)
    assert not simulation.link.connected
    assert "CLUSTER_SECRET" in str(simulation.link.last_error)


def test_a_closed_link_stays_closed_and_both_ends_know() -> None:
    simulation = Simulation()
    simulation.link.part(0.0)
    simulation.run(30.0)
    assert not simulation.link.connected
    assert [len(simulation.a.down), len(simulation.b.down)] == [1, 1]
    assert len(simulation.b.up) == 1
