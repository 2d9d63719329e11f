"""How a link ends when its owner wants it to, tried on both kinds of link."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from services.core.wire import DOWN, LOST, OK, TIMEOUT
from services.runtime.peer import Peer
from tests.contract.link_parties import (
    ANSWER_AND_BREAK,
    ECHO,
    HOLD,
    NOTE,
    Answers,
    Server,
    client,
)
from tests.contract.link_worlds import RealWorld, World


async def test_a_drain_waits_for_what_both_ends_owe_each_other(world: World) -> None:
    server, held = Server(), list[tuple[Peer, int]]()
    theirs = server.station()
    await world.serve(theirs)
    ours = client({HOLD: lambda peer, request_id, body: held.append((peer, request_id))})
    link = await world.connect(ours)
    await world.until(lambda: link.connected and bool(server.up))
    asked, asked_back, refused = Answers(), Answers(), Answers()
    link.request(HOLD, b"x", asked, 5.0)
    server.up[0].request(HOLD, b"y", asked_back, 5.0)
    await world.until(lambda: len(server.held) == len(held) == 1)
    closing = asyncio.create_task(link.close(drain_s=5.0))
    await world.until(lambda: not link.connected and not server.up[0].connected)
    assert link.request(ECHO, b"x", refused, 1.0) == DOWN
    assert not link.notify(NOTE, b"x")
    assert server.up[0].request(ECHO, b"x", refused, 1.0) == DOWN
    server.answer_all()
    await world.until(asked.are(1))
    assert server.down == []
    held[0][0].reply(held[0][1], OK, b"z")
    await world.until(lambda: len(server.down) == 1 and link.last_error == "parted")
    await closing
    assert (asked.got, asked_back.got, refused.got) == ([(OK, b"x")], [(OK, b"z")], [])
    for station in (ours, theirs):
        assert station.counters.lost == station.counters.connections_lost == 0


async def test_an_idle_link_parts_long_before_its_drain_is_over(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    station = client()
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    closing = asyncio.create_task(link.close(drain_s=1000.0))
    await world.until(lambda: link.last_error == "parted" and len(server.down) == 1)
    await closing
    assert link.peer is None
    assert station.counters.connections_lost == 0


async def test_an_answer_that_never_comes_is_lost_when_the_drain_is_over(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    link.request(HOLD, b"x", answers, 60.0)
    await world.until(lambda: len(server.held) == 1)
    closing = asyncio.create_task(link.close(drain_s=0.2))
    await world.until(answers.are(1))
    await closing
    assert answers.got == [(LOST, b"")]
    assert link.last_error == "closed with answers outstanding after 0.2 s"
    await world.until(lambda: len(server.down) == 1)
    server.answer_all()  # Too late, and without effect.
    await world.settle()
    assert answers.are(1)()


class Turns:
    """Counts the turns from the first answer on, and how many were told in each."""

    def __init__(self, world: World, count: int) -> None:
        self.told: list[int] = []
        self.in_turn = [0]
        self._world = world
        self._count = count

    def waiter(self, number: int, also: Callable[[], None] = lambda: None) -> Callable[..., None]:
        """An answer that takes its time, as one does that goes on from there."""

        def answered(kind: int, body: bytes) -> None:
            assert kind in (LOST, TIMEOUT)
            if not self.told:
                self._world.soon(self._turn)
            self.told.append(number)
            self.in_turn[-1] += 1
            also()
            until_s = time.perf_counter() + 50e-6
            while time.perf_counter() < until_s:
                pass

        return answered

    def _turn(self) -> None:
        self.in_turn.append(0)
        if len(self.told) < self._count:
            self._world.soon(self._turn)

    def check(self, *, many_turns: bool = True) -> None:
        assert self.told == list(range(self._count))
        if many_turns:
            assert max(self.in_turn) < self._count / 2, "so many in a turn hold everybody up"


async def test_many_whose_link_is_lost_are_told_in_order_and_by_and_by_while_it_stays_down(
    world: World,
) -> None:
    server, met = Server(), list[Peer]()
    await world.serve(server.station())
    station = client(met=met)
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    turns, refused = Turns(world, 400), Answers()

    def is_down() -> None:
        assert not link.connected
        assert link.request(ECHO, b"x", refused, 1.0) == DOWN
        assert not link.notify(NOTE, b"x")
        assert len(met) == 1
        assert link.last_error is None, "it is for the owner to be told last"

    for number in range(400):
        link.request(HOLD, b"x", turns.waiter(number, is_down), 60.0)
    await world.until(lambda: len(server.held) == 400)
    await world.kill_server()
    await world.until(lambda: link.last_error is not None)
    turns.check()
    assert (station.counters.lost, station.counters.bugs, refused.got) == (400, 0, [])
    await world.serve(Server().station())
    await world.until(lambda: link.connected)
    assert (len(turns.told), len(met)) == (400, 2)


async def test_many_whose_time_is_over_are_told_in_order_and_by_and_by(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    station = client()
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    turns, late = Turns(world, 400), Answers()
    for number in range(400):
        link.request(HOLD, b"x", turns.waiter(number), 0.2)
    await world.until(lambda: len(turns.told) == 400)
    # In memory each has a timer of its own, and all of them are due before anything that is soon.
    turns.check(many_turns=isinstance(world, RealWorld))
    assert (station.counters.timeouts, link.pending) == (400, 0)
    link.request(HOLD, b"x", late, 0.1)
    await world.until(late.are(1))
    assert late.got == [(TIMEOUT, b"")]
    assert station.counters.bugs == 0


async def test_one_whose_link_is_lost_while_many_are_told_they_are_late_is_told_once(
    world: World,
) -> None:
    server = Server()
    await world.serve(server.station())
    station = client()
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    turns, closing = Turns(world, 400), list[asyncio.Task[None]]()

    def close() -> None:
        if not closing:
            closing.append(asyncio.ensure_future(link.close()))

    for number in range(400):
        link.request(HOLD, b"x", turns.waiter(number, close), 0.2)
    await world.until(lambda: len(turns.told) == 400)
    await closing[0]
    await world.settle()
    turns.check(many_turns=isinstance(world, RealWorld))
    counters = station.counters
    assert counters.timeouts + counters.lost == 400
    assert counters.bugs == 0


async def test_a_link_is_closed_once_all_who_waited_know(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    station = client()
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    turns = Turns(world, 400)
    for number in range(400):
        link.request(HOLD, b"x", turns.waiter(number), 60.0)
    await world.until(lambda: len(server.held) == 400)
    await link.close(drain_s=0.05)
    await world.until(lambda: link.last_error is not None)
    turns.check()
    assert station.counters.lost == 400


async def test_a_request_whose_time_ends_in_the_drain_holds_it_up_no_longer(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    link.request(HOLD, b"x", answers, 0.1)
    await world.until(lambda: len(server.held) == 1)
    closing = asyncio.create_task(link.close(drain_s=1000.0))
    await world.until(answers.are(1))
    assert answers.got == [(TIMEOUT, b"")]
    server.answer_all()
    await world.until(lambda: link.last_error == "parted")
    await closing


async def test_bugs_behind_answers_do_not_end_a_drain_too_early(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    early, held = Answers(), Answers()
    for _ in range(5):
        link.request(ANSWER_AND_BREAK, b"x", early, 5.0)
    await world.until(early.are(5))
    for _ in range(3):
        link.request(HOLD, b"y", held, 5.0)
    await world.until(lambda: len(server.held) == 3)
    closing = asyncio.create_task(link.close(drain_s=5.0))
    await world.until(lambda: not server.up[0].connected)
    await world.settle()
    assert held.got == []
    server.answer_all()
    await world.until(held.are(3))
    await closing
    assert held.got == [(OK, b"y")] * 3


async def test_a_link_is_started_once_and_once_closed_stays_closed(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    link = await world.connect(client())
    with pytest.raises(RuntimeError, match="started before"):
        link.start()
    await world.until(lambda: link.connected)
    await link.close()
    await world.until(lambda: len(server.down) == 1)
    with pytest.raises(RuntimeError, match="started before"):
        link.start()
    await link.close()
    await world.settle()
    assert not link.connected
    assert len(server.up) == 1
