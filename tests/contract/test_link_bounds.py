"""What a link bears of those who ask over it and of bugs behind it, on both kinds of link."""

from __future__ import annotations

import dataclasses

import pytest

from services.core.wire import DOWN, FAILED, OK, OVERLOADED
from services.runtime.peer import Peer, body_bytes_max
from tests.contract.link_parties import (
    ANSWER_AND_BREAK,
    ANSWER_TWICE,
    BREAK,
    ECHO,
    HOLD,
    NOTE,
    Answers,
    Server,
    client,
)
from tests.contract.link_worlds import World

kib = 1024


async def test_past_the_bound_of_pending_requests_a_request_is_refused_at_once(
    world: World,
) -> None:
    server = Server()
    await world.serve(server.station())
    station = client(pending_max=10)
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    answers, refused = Answers(), Answers()
    for _ in range(10):
        assert link.request(HOLD, b"x", answers, 5.0) == 0
    assert link.request(HOLD, b"x", refused, 5.0) == OVERLOADED
    await world.until(lambda: len(server.held) == 10)
    for peer, request_id, body in server.held:
        peer.reply(request_id, OK, body)
    await world.until(answers.are(10))
    assert refused.got == []
    assert station.counters.overloaded == 1
    assert link.request(ECHO, b"x", answers, 5.0) == 0


async def test_past_the_bound_of_pending_bytes_a_request_is_refused_until_some_are_answered(
    world: World,
) -> None:
    server = Server()
    await world.serve(server.station())
    station = client(pending_bytes_max=1000 * kib)
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    answers, refused = Answers(), Answers()
    for _ in range(10):
        assert link.request(HOLD, bytes(100 * kib), answers, 5.0) == 0
    assert link.request(HOLD, b"x", refused, 5.0) == OVERLOADED
    await world.until(lambda: len(server.held) == 10)
    assert link.request(HOLD, b"x", refused, 5.0) == OVERLOADED
    server.answer_all()
    await world.until(answers.are(10))
    assert link.request(ECHO, bytes(100 * kib), answers, 5.0) == 0
    await world.until(answers.are(11))
    assert set(answers.kinds) == {OK}
    assert refused.got == []
    assert station.counters.overloaded == 2


async def test_requests_that_ran_out_of_time_give_their_room_back(world: World) -> None:
    await world.serve(Server().station())
    link = await world.connect(client(pending_bytes_max=100 * kib))
    await world.until(lambda: link.connected)
    answers = Answers()
    assert link.request(HOLD, bytes(100 * kib), answers, 0.05) == 0
    assert link.request(ECHO, b"x", answers, 5.0) == OVERLOADED
    await world.until(answers.are(1))
    assert link.request(ECHO, bytes(100 * kib), answers, 5.0) == 0
    await world.until(answers.are(2))
    assert answers.kinds[1] == OK


async def test_a_body_that_no_frame_holds_is_a_mistake_and_costs_no_link(world: World) -> None:
    server = Server()
    await world.serve(server.station())
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    with pytest.raises(ValueError, match="a frame holds"):
        link.request(ECHO, bytes(body_bytes_max + 1), answers, 5.0)
    with pytest.raises(ValueError, match="a frame holds"):
        link.notify(NOTE, bytes(body_bytes_max + 1))
    assert link.notify(NOTE, bytes(body_bytes_max))
    await world.until(lambda: len(server.notes) == 1)
    assert link.request(ECHO, b"x", answers, 5.0) == 0
    await world.until(answers.are(1))
    assert answers.got == [(OK, b"x")]


async def test_messages_of_one_turn_past_the_bound_are_refused_and_cost_no_link(
    world: World,
) -> None:
    server = Server()
    await world.serve(server.station())
    station = client(pending_bytes_max=1000 * kib)
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    sent = [link.notify(NOTE, bytes(100 * kib)) for _ in range(30)]
    assert sent == [True] * 10 + [False] * 20
    assert station.counters.overloaded == 20
    await world.until(lambda: len(server.notes) == 10)
    await world.settle()
    assert link.connected
    assert link.notify(NOTE, bytes(100 * kib))
    await world.until(lambda: len(server.notes) == 11)


async def test_a_server_holds_so_many_requests_of_a_peer_and_no_more(world: World) -> None:
    server = Server()
    station = server.station(unanswered_max=10)
    await world.serve(station)
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    for _ in range(15):
        assert link.request(HOLD, b"x", answers, 5.0) == 0
    await world.until(answers.are(5))
    assert answers.kinds == [OVERLOADED] * 5
    assert len(server.held) == 10
    assert station.counters.overloaded == 5
    server.answer_all()
    await world.until(answers.are(15))
    link.request(ECHO, b"x", answers, 5.0)
    await world.until(answers.are(16))
    assert answers.kinds[5:] == [OK] * 11


async def test_a_server_holds_so_many_bytes_of_a_peer_though_the_peer_gives_up_on_them(
    world: World,
) -> None:
    """Whose requests run out of time may ask anew; what a handler holds goes on to count."""
    server = Server()
    station = server.station(unanswered_bytes_max=300 * kib)
    await world.serve(station)
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    given_up, refused, answers = Answers(), Answers(), Answers()
    for _ in range(3):
        link.request(HOLD, bytes(100 * kib), given_up, 0.05)
    await world.until(given_up.are(3))
    link.request(HOLD, b"x", refused, 5.0)
    await world.until(refused.are(1))
    assert refused.got == [(OVERLOADED, b"")]
    assert len(server.held) == 3
    server.answer_all()
    link.request(ECHO, bytes(300 * kib), answers, 5.0)
    await world.until(answers.are(1))
    assert answers.kinds == [OK]


# -- bugs


async def test_a_bug_in_a_handler_fails_its_request_alone(world: World) -> None:
    station = Server().station()
    await world.serve(station)
    link = await world.connect(client())
    await world.until(lambda: link.connected)
    answers = Answers()
    for kind in (ECHO, BREAK, ECHO):
        link.request(kind, b"x", answers, 2.0)
    await world.until(answers.are(3))
    assert answers.got == [(OK, b"x"), (FAILED, b""), (OK, b"x")]
    assert station.counters.bugs == 1
    assert link.connected


async def test_a_bug_in_a_callback_costs_no_other_answer(world: World) -> None:
    await world.serve(Server().station())
    station = client()
    link = await world.connect(station)
    await world.until(lambda: link.connected)
    answers = Answers()

    def broken(kind: int, body: bytes) -> None:
        raise RuntimeError("a bug in a callback")

    for on_answer in (answers, broken, answers):
        link.request(ECHO, b"x", on_answer, 2.0)
    await world.until(answers.are(2))
    assert station.counters.bugs == 1
    assert link.connected


async def test_a_bug_behind_an_answer_leaves_the_answer_as_it_was(world: World) -> None:
    server = Server()
    station = server.station()
    await world.serve(station)
    asking = client()
    link = await world.connect(asking)
    await world.until(lambda: link.connected)
    answers = Answers()
    for _ in range(5):
        link.request(ANSWER_AND_BREAK, b"x", answers, 2.0)
    await world.until(answers.are(5))
    await world.settle()
    assert answers.got == [(OK, b"x")] * 5
    assert asking.counters.late_answers == 0
    assert station.counters.bugs == 5


async def test_a_second_answer_to_one_request_is_a_bug_and_never_leaves(world: World) -> None:
    station = Server().station()
    await world.serve(station)
    asking = client()
    link = await world.connect(asking)
    await world.until(lambda: link.connected)
    answers = Answers()
    link.request(ANSWER_TWICE, b"x", answers, 2.0)
    await world.until(answers.are(1))
    await world.settle()
    assert answers.got == [(OK, b"x")]
    assert asking.counters.late_answers == 0
    assert station.counters.bugs == 1
    assert link.connected


async def test_bugs_of_those_who_are_told_of_a_link_cost_no_link(world: World) -> None:
    def broken(peer: Peer) -> None:
        raise RuntimeError("a bug in whoever is told")

    server = dataclasses.replace(Server().station(), on_up=broken, on_down=broken)
    asking = dataclasses.replace(client(), on_up=broken, on_down=broken)
    await world.serve(server)
    link = await world.connect(asking)
    await world.until(lambda: link.connected)
    answers = Answers()
    link.request(ECHO, b"x", answers, 2.0)
    await world.until(answers.are(1))
    assert answers.got == [(OK, b"x")]
    assert (server.counters.bugs, asking.counters.bugs) == (1, 1)
    await world.kill_server()
    await world.until(lambda: asking.counters.bugs == 2)
    assert not link.connected


async def test_a_bug_while_connecting_is_counted_and_a_later_attempt_works(world: World) -> None:
    broken = [True]

    def epoch() -> int:
        if broken:
            raise RuntimeError("a bug in whoever tells the epoch")
        return 7

    plain = client()
    asking = dataclasses.replace(plain, identity=dataclasses.replace(plain.identity, epoch=epoch))
    await world.serve(Server().station())
    link = await world.connect(asking)
    await world.until(lambda: asking.counters.bugs >= 2)
    assert link.last_error == "a bug while the link was opening; the log of that process has it"
    assert link.request(ECHO, b"x", Answers(), 1.0) == DOWN
    broken.clear()
    await world.until(lambda: link.connected)


async def test_a_bug_of_a_server_that_meets_a_peer_costs_that_opening_alone(world: World) -> None:
    broken = [True]

    def epoch() -> int:
        if broken:
            raise RuntimeError("a bug in whoever tells the epoch")
        return 7

    plain = Server().station()
    server = dataclasses.replace(plain, identity=dataclasses.replace(plain.identity, epoch=epoch))
    await world.serve(server)
    link = await world.connect(client())
    await world.until(lambda: server.counters.bugs >= 2)
    assert not link.connected
    broken.clear()
    await world.until(lambda: link.connected)


async def test_a_bug_in_an_admission_is_a_refusal(world: World) -> None:
    broken = [True]

    def admit(hello: object) -> str | None:
        if broken:
            raise RuntimeError("a bug in whoever admits peers")
        return None

    server = Server().station()
    await world.serve(server, admit)
    link = await world.connect(client())
    await world.until(lambda: server.counters.bugs >= 2)
    assert not link.connected
    broken.clear()
    await world.until(lambda: link.connected)
