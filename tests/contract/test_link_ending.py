"""How a link ends when its owner wants it to, tried on both kinds of link."""

from __future__ import annotations

import asyncio

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
from tests.contract.link_worlds import World


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
