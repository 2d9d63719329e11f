"""What anyone who asks or answers over a link may rely on, tried on both kinds of link."""

from __future__ import annotations

import dataclasses

from services.core.wire import (
    DOWN,
    LOST,
    OK,
    TIMEOUT,
    UNKNOWN_KIND,
    Role,
)
from services.runtime.peer import Handlers, Peer
from tests.contract.link_parties import ECHO, HOLD, NOTE, REFUSE, Answers, Server, client
from tests.contract.link_worlds import World


async def test_a_request_is_answered(world: World) -> None:
    await world.serve(Server().station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    assert link.request(ECHO, b"hello", answers, 2.0) == 0
    assert answers.got == []
    await world.until(answers.are(1))
    assert answers.got == [(OK, b"hello")]


async def test_answers_come_in_the_order_of_the_requests(world: World) -> None:
    await world.serve(Server().station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    for number in range(1000):
        assert link.request(ECHO, str(number).encode(), answers, 2.0) == 0
    await world.until(answers.are(1000))
    assert answers.got == [(OK, str(number).encode()) for number in range(1000)]


async def test_the_server_may_ask_the_client(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    handlers: Handlers = {ECHO: lambda peer, number, body: peer.reply(number, REFUSE, body[::-1])}
    await world.connect(client(handlers))
    await world.until(lambda: bool(server.up))
    answers = Answers()
    assert server.up[0].request(ECHO, b"abc", answers, 2.0) == 0
    await world.until(answers.are(1))
    assert answers.got == [(REFUSE, b"cba")]


async def test_each_end_knows_who_the_other_is(world: World) -> None:
    server, met = Server(), list[Peer]()
    await world.serve(server.station())
    await world.connect(client(met=met))
    await world.until(lambda: bool(met) and bool(server.up))
    for hello, role, name in (
        (met[0].hello, Role.NODE, "server"),
        (server.up[0].hello, Role.REPLICATOR, "client"),
    ):
        assert (hello.role, hello.id, hello.epoch) == (role, name, 7)
        assert hello.store_id == bytes(range(16))


async def test_an_unknown_kind_is_answered_as_such(world: World) -> None:
    await world.serve(Server().station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    link.request(127, b"", answers, 2.0)
    await world.until(answers.are(1))
    assert answers.got == [(UNKNOWN_KIND, b"")]


async def test_without_a_connection_nothing_is_sent_and_nothing_called(world: World) -> None:
    await world.serve(Server().station())
    await world.kill_server()
    link = await world.connect(client())
    answers = Answers()
    assert link.request(ECHO, b"x", answers, 0.05) == DOWN
    assert not link.notify(NOTE, b"x")
    await world.settle()
    assert answers.got == []


async def test_a_request_over_its_time_is_unknown_and_its_late_answer_dropped(
    world: World,
) -> None:
    server = Server()
    await world.serve(server.station())
    station = client()
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    answers = Answers()
    link.request(HOLD, b"x", answers, 0.05)
    await world.until(answers.are(1))
    assert answers.got == [(TIMEOUT, b"")]
    peer, request_id, body = server.held[0]
    peer.reply(request_id, OK, body)
    await world.until(lambda: station.counters.late_answers == 1)
    assert answers.are(1)()
    assert station.counters.timeouts == 1


async def test_a_request_waits_its_whole_time(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers, short = Answers(), Answers()
    link.request(HOLD, b"x", answers, 60.0)
    link.request(HOLD, b"x", short, 0.05)
    await world.until(short.are(1))
    assert answers.got == []


async def test_when_the_peer_dies_everything_pending_is_lost_once(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    station = client()
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    answers = Answers()
    for _ in range(100):
        link.request(HOLD, b"x", answers, 0.5)
    await world.until(lambda: len(server.held) == 100)
    await world.kill_server()
    await world.until(answers.are(100))
    assert not link.connected
    assert link.request(ECHO, b"x", answers, 0.5) == DOWN
    await world.settle()
    assert answers.got == [(LOST, b"")] * 100
    assert station.counters.lost == 100
    assert station.counters.connections_lost == 1


async def test_a_link_comes_back_with_its_peer(world: World) -> None:
    await world.serve(Server().station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    await world.kill_server()
    await world.until(lambda: not link.connected)
    await world.serve(Server().station())
    await world.until(lambda: link.connected)
    answers = Answers()
    link.request(ECHO, b"again", answers, 2.0)
    await world.until(answers.are(1))
    assert answers.got == [(OK, b"again")]


async def test_an_answer_to_a_peer_that_is_gone_goes_nowhere(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    link.request(HOLD, b"old", answers, 0.5)
    await world.until(lambda: len(server.held) == 1)
    await world.kill_server()
    await world.serve(Server().station())
    await world.until(lambda: link.connected)
    peer, request_id, body = server.held[0]
    peer.reply(request_id, OK, body)
    await world.settle()
    assert answers.got == [(LOST, b"")]


async def test_a_message_gets_no_answer(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    station = client()
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    assert link.notify(NOTE, b"news")
    assert link.notify(ECHO, b"a handler that answers all the same")
    await world.until(lambda: server.notes == [(0, b"news")])
    await world.settle()
    assert station.counters.late_answers == 0


async def test_a_peer_that_is_not_admitted_never_gets_a_link(world: World) -> None:
    server = Server()
    await world.serve(server.station(), lambda hello: f"{hello.id} is not welcome")
    link = await world.connect(client())
    await world.settle()
    assert not link.connected
    assert server.up == []
    assert "client is not welcome" in str(link.last_error)


async def test_the_service_is_told_when_peers_come_and_go(world: World) -> None:
    went: list[Peer] = []
    server, station = Server(), client()
    await world.serve(server.station())
    link = await world.connect(dataclasses.replace(station, on_down=went.append))
    await world.until(lambda: link.connected)
    assert len(server.up) == 1
    await world.kill_server()
    await world.until(lambda: len(went) == 1)
    assert went[0].hello.id == "server"
    assert not went[0].connected


async def test_an_idle_link_stays_up_and_its_peer_is_not_silent(world: World) -> None:
    station = client(ping_s=0.05, silence_s=0.5)
    await world.serve(Server().station(ping_s=0.05, silence_s=0.5))
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    # Twice as long as silence would be borne.
    for _ in range(10):
        await world.settle()
        assert link.connected
        assert link.silent_s() < 0.5
    assert station.counters.connections_opened == 1
