"""Eventual reads: who is asked, when the next one is, and what is told in the end."""

from __future__ import annotations

import random
from functools import partial
from typing import cast

import pytest

from services.core.cluster import ClusterMap, Member
from services.core.messages import GET
from services.core.ring import slot_of
from services.core.wire import FAILED, OK, OVERLOADED, Role
from services.gateway.reads import (
    Reads,
    absence_kept_s,
    hedge_s,
    read_s,
    record_kept_s,
    sweep_s,
)
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeLink, FakeNetwork, Weather
from services.runtime.fleet import Fleet, FleetNode
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.peer import Handler, OnAnswer, OwnedLink, Peer

secret = "one secret for all of them here"
key = bytes(7) + b"\7\7defaultkey"
slot = slot_of(key)


class Node:
    """Answers reads with its own name, or as it was told to; None is silence."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0
        self.answer: tuple[int, bytes] | None = (OK, name.encode())

    def get(self, peer: Peer, request_id: int, body: bytes) -> None:
        self.asked += 1
        assert body == key
        if self.answer is not None:
            peer.reply(request_id, *self.answer)


class Outcome:
    """What one read was told."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, str]] = []
        self.nobody: list[str] = []

    def on_found(self, record: bytes, node: FleetNode) -> None:
        self.found.append((record, node.node_id))


class World:
    def __init__(self, joining: bool = False) -> None:
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        weather = Weather(delay_s_min=0.0005, delay_s_max=0.0005)
        self.network = FakeNetwork(random.Random(1), weather)
        self.nodes = {f"node-{number}": Node(f"node-{number}") for number in range(1, 5)}
        for name, node in self.nodes.items():
            handlers: dict[int, Handler] = {GET: node.get}
            station = Station(Identity(Role.NODE, name, secret), handlers)
            self.network.attach(station, self.clock)
        self.network.attach(Station(Identity(Role.GATEWAY, "gateway", secret)), self.clock)
        self.fleet = Fleet(self._connect, self.clock)
        old = tuple(map(_member, range(1, 4)))
        new = tuple(map(_member, range(2, 5)))
        stable = ClusterMap(1, 3, old)
        self.fleet.adopt(stable if not joining else ClusterMap(2, 3, new, old))
        self.fleet.start()
        self.reads = Reads(self.fleet, self.clock)
        self.timeline.advance(0.3)
        # In the order in which they are asked.
        self.owners = [self.nodes[node.node_id] for node in self.fleet.route(slot).readers]

    def _connect(self, member: Member) -> OwnedLink:
        return FakeLink(self.network, "gateway", member.node_id)

    def read(self) -> Outcome:
        outcome = Outcome()
        self.reads.start(key, slot, outcome.on_found, outcome.nobody.append)
        return outcome


def _member(number: int) -> Member:
    return Member(f"node-{number}", f"{number:032x}", "127.0.0.1", 7000 + number, 8000 + number)


@pytest.fixture
def world() -> World:
    return World()


def test_one_who_answers_is_enough(world: World) -> None:
    outcome = world.read()
    world.timeline.advance(3.0)
    first = world.owners[0]
    assert outcome.found == [(first.name.encode(), first.name)]
    assert outcome.nobody == []
    assert [node.asked for node in world.owners] == [1, 0, 0]
    assert world.reads.hedged == 0


@pytest.mark.parametrize("kind", [FAILED, OVERLOADED, 200])
def test_who_cannot_answer_is_passed_over_at_once(world: World, kind: int) -> None:
    first, second, _ = world.owners
    first.answer = kind, b""
    outcome = world.read()
    world.timeline.advance(hedge_s / 2)
    assert outcome.found == [(second.name.encode(), second.name)]
    assert world.reads.hedged == 0


def test_a_silent_one_is_waited_for_25_ms_and_then_the_next_is_asked_as_well(world: World) -> None:
    first, second, third = world.owners
    first.answer = None
    outcome = world.read()
    world.timeline.advance(hedge_s - 0.001)
    assert (second.asked, outcome.found) == (0, [])
    world.timeline.advance(sweep_s + 0.003)
    assert (second.asked, outcome.found) == (1, [])
    # It has its chance, and no more than that.
    world.timeline.advance(record_kept_s)
    assert outcome.found == [(second.name.encode(), second.name)]
    assert third.asked == 0
    assert world.reads.hedged == 1


def test_two_silent_ones_cost_another_25_ms(world: World) -> None:
    first, second, third = world.owners
    first.answer = second.answer = None
    outcome = world.read()
    world.timeline.advance(2 * (hedge_s + sweep_s) + record_kept_s + 0.004)
    assert outcome.found == [(third.name.encode(), third.name)]


def test_the_first_answer_is_heard_and_no_other(world: World) -> None:
    first, second, _ = world.owners
    later: list[partial[None]] = []
    world.network.crash(first.name)
    handlers: dict[int, Handler] = {
        GET: lambda peer, request_id, body: later.append(
            partial(peer.reply, request_id, OK, b"late")
        )
    }
    world.network.attach(Station(Identity(Role.NODE, first.name, secret), handlers), world.clock)
    world.timeline.advance(3.0)
    outcome = world.read()
    world.timeline.advance(0.2)
    assert outcome.found == [(second.name.encode(), second.name)]
    for reply in later:
        reply()
    world.timeline.advance(0.1)
    assert later
    assert outcome.found == [(second.name.encode(), second.name)]


def test_a_late_answer_counts_where_the_hedge_is_silent(world: World) -> None:
    first, second, third = world.owners
    second.answer = third.answer = None
    # Longer than a hedge waits, there and back.
    world.network.weather = Weather(delay_s_min=0.02, delay_s_max=0.02)
    outcome = world.read()
    world.timeline.advance(0.1)
    assert outcome.found == [(first.name.encode(), first.name)]
    assert second.asked == 1


def test_a_lost_connection_is_passed_over_before_any_hedge(world: World) -> None:
    first, second, _ = world.owners
    first.answer = None
    outcome = world.read()
    world.timeline.advance(0.002)
    world.network.crash(first.name)
    world.timeline.advance(0.004)
    assert outcome.found == [(second.name.encode(), second.name)]
    assert world.reads.passed_over["the connection was lost"] == 1


def test_with_nobody_there_it_ends_at_once_and_says_why(world: World) -> None:
    for node in world.owners:
        world.network.crash(node.name)
    world.timeline.advance(3.0)
    outcome = world.read()
    assert outcome.found == []
    assert len(outcome.nobody) == 1
    for node in world.owners:
        assert f"{node.name}: not connected" in outcome.nobody[0]


def test_if_all_are_silent_it_ends_in_time_and_once(world: World) -> None:
    for node in world.owners:
        node.answer = None
    outcome = world.read()
    world.timeline.advance(read_s + 1.0)
    assert outcome.found == []
    assert len(outcome.nobody) == 1
    assert f"no answer within {read_s:g} s" in outcome.nobody[0]


def test_a_node_that_catches_up_is_asked_behind_the_others(world: World) -> None:
    first, second, _ = world.owners
    world.fleet.catching_up(first.name, catching_up=True)
    outcome = world.read()
    world.timeline.advance(0.01)
    assert outcome.found == [(second.name.encode(), second.name)]


def test_while_the_map_is_joint_new_owners_are_not_asked() -> None:
    world = World(joining=True)
    assert {node.name for node in world.owners} == {"node-1", "node-2", "node-3"}
    for node in world.owners:
        world.network.crash(node.name)
    world.timeline.advance(3.0)
    outcome = world.read()
    world.timeline.advance(3.0)
    assert len(outcome.nobody) == 1
    assert world.nodes["node-4"].asked == 0


def test_nothing_is_swept_while_nothing_is_under_way(world: World) -> None:
    for _ in range(1_000):
        world.read()
    world.timeline.advance(1.0)
    assert not world.reads.sweeping
    assert world.reads.waiting == 0


def slow(world: World, node: Node, answer: bytes, after_s: float) -> None:
    """Have it answer so much later."""

    def get(peer: Peer, request_id: int, body: bytes) -> None:
        world.clock.call_later(after_s, partial(peer.reply, request_id, OK, answer))

    world.network.crash(node.name)
    station = Station(Identity(Role.NODE, node.name, secret), {GET: get})
    world.network.attach(station, world.clock)
    world.timeline.advance(3.0)


@pytest.mark.parametrize("hedged", [b"", b"older"])
def test_what_a_hedge_knows_does_not_beat_what_the_first_owner_has(
    world: World, hedged: bytes
) -> None:
    """As after a PUT that was acknowledged by the first and has not come to the second."""
    first, second, third = world.owners
    second.answer = third.answer = OK, hedged
    slow(world, first, b"written", 0.06)
    outcome = world.read()
    world.timeline.advance(1.0)
    assert outcome.found == [(b"written", first.name)]
    assert second.asked == 1


def test_absence_is_believed_later_than_a_value(world: World) -> None:
    first, second, third = world.owners
    second.answer = third.answer = OK, b""
    slow(world, first, b"written", 0.2)
    outcome = world.read()
    world.timeline.advance(1.0)
    assert outcome.found == [(b"written", first.name)]
    slow(world, first, b"written", 0.3)
    outcome = world.read()
    world.timeline.advance(hedge_s + sweep_s + absence_kept_s + 0.003)
    assert outcome.found == [(b"", second.name)]
    world.timeline.advance(1.0)
    assert len(outcome.found) == 1


def test_the_later_record_of_both_is_found(world: World) -> None:
    first, second, _ = world.owners
    second.answer = OK, b"2: newer"
    slow(world, first, b"1: older", 0.05)
    outcome = world.read()
    world.timeline.advance(1.0)
    assert outcome.found == [(b"2: newer", second.name)]


def test_what_a_hedge_knows_counts_at_once_when_the_first_owner_is_lost(world: World) -> None:
    first, second, _ = world.owners
    first.answer = None
    second.answer = OK, b""
    outcome = world.read()
    world.timeline.advance(hedge_s + sweep_s + 0.003)
    assert (second.asked, outcome.found) == (1, [])
    world.network.crash(first.name)
    world.timeline.advance(0.002)
    assert outcome.found == [(b"", second.name)]


def test_an_owner_that_was_not_to_be_reached_is_not_waited_for(world: World) -> None:
    first, second, third = world.owners
    world.network.crash(first.name)
    second.answer = OK, b""
    outcome = world.read()
    world.timeline.advance(0.002)
    assert outcome.found == [(b"", second.name)]
    assert third.asked == 0


class BrokenLink:
    connected = True

    def silent_s(self) -> float:
        return 0.0

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        raise ZeroDivisionError


def test_a_bug_in_one_hedge_leaves_other_reads_theirs(world: World) -> None:
    first, second, _ = world.owners
    first.answer = None
    outcomes = [world.read() for _ in range(3)]
    node = world.fleet.route(slot).readers[1]
    link, node.link = node.link, cast("OwnedLink", BrokenLink())
    with pytest.raises(ZeroDivisionError):
        world.timeline.advance(hedge_s + sweep_s + 0.002)
    node.link = link
    world.timeline.advance(0.5)
    outcomes.append(world.read())
    world.timeline.advance(0.5)
    expected = [(second.name.encode(), second.name)]
    assert [outcome.found for outcome in outcomes].count(expected) == 3
