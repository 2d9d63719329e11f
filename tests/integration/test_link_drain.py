"""A link that ends in order leaves no outcome unknown, whichever end wants it to end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.core.wire import CHALLENGE, DOWN, HELLO, LOST, OK, REFUSAL
from services.runtime.link import Link, LinkServer
from services.runtime.peer import Caller
from tests.integration.link_ends import (
    ECHO,
    HOLD,
    LARGE,
    Answers,
    Service,
    linked,
    quick,
    served,
    up,
)
from tests.integration.raw_peer import identity, raw_client
from tests.integration.tcp_proxy import TcpProxy
from tests.waiting import wait_until

mib = 1024 * 1024


class Load:
    """Keeps requests under way: each answer asks again, until the link is down."""

    def __init__(self, caller: Caller, in_flight: int) -> None:
        self.answers = Answers()
        self.sent = 0
        self.refused = 0
        self._caller = caller
        for _ in range(in_flight):
            self._ask()

    def _ask(self) -> None:
        if self._caller.request(ECHO, b"x" * 100, self._answered, 30.0) == DOWN:
            self.refused += 1
        else:
            self.sent += 1

    def _answered(self, kind: int, body: bytes) -> None:
        self.answers(kind, body)
        self._ask()


async def client_drains(link: Link, server: LinkServer) -> None:
    await link.close(drain_s=10.0)


async def server_drains(link: Link, server: LinkServer) -> None:
    await server.close(drain_s=10.0)


async def both_drain(link: Link, server: LinkServer) -> None:
    await asyncio.gather(link.close(drain_s=10.0), server.close(drain_s=10.0))


@pytest.mark.parametrize("drain", [client_drains, server_drains, both_drain])
async def test_under_load_both_ways_a_drain_loses_nothing(
    drain: Callable[[Link, LinkServer], Awaitable[None]],
) -> None:
    ours, theirs = Service("client"), Service("server")
    station = ours.station()
    async with served(theirs.station()) as server, linked(station, server.port) as link:
        await up(link)
        loads = (Load(link, 200), Load(theirs.up[0], 200))
        await wait_until(lambda: all(load.answers.count > 2000 for load in loads), "load flows")
        await drain(link, server)
        await wait_until(lambda: all(load.refused == 200 for load in loads), "the load ends")
        for load in loads:
            assert load.answers.by_kind == {OK: load.sent}
        assert station.counters.lost == station.counters.connections_lost == 0
        await wait_until(lambda: len(ours.down) == len(theirs.down) == 1, "both ends are told")


async def test_a_drain_waits_for_the_answer_that_is_still_being_worked_on() -> None:
    theirs = Service("server")
    async with (
        served(theirs.station()) as server,
        linked(Service("client").station(), server.port) as link,
    ):
        await up(link)
        answers, refused = Answers(), Answers()
        link.request(HOLD, b"x", answers, 30.0)
        await wait_until(lambda: bool(theirs.held), "the request has arrived")
        draining = asyncio.create_task(server.close(drain_s=10.0))
        await wait_until(lambda: not link.connected, "the client hears of it")
        assert link.request(ECHO, b"x", refused, 1.0) == DOWN
        assert not draining.done()
        theirs.answer_all()
        await draining
        await wait_until(answers.are(1), "the answer has come")
        assert answers.by_kind == {OK: 1}
        assert refused.count == 0


async def test_a_large_answer_leaves_whole_before_the_link_closes() -> None:
    theirs = Service("server")
    async with (
        served(theirs.station()) as server,
        linked(Service("client").station(), server.port) as link,
    ):
        await up(link)
        sizes: list[int] = []
        for _ in range(20):
            link.request(LARGE, b"%d" % mib, lambda kind, body: sizes.append(len(body)), 30.0)
        await server.close(drain_s=10.0)
        await wait_until(lambda: len(sizes) == 20, "all answers have come")
        assert sizes == [mib] * 20


async def test_a_held_answer_ends_with_the_deadline_of_the_drain_and_is_lost() -> None:
    theirs = Service("server")
    async with (
        served(theirs.station()) as server,
        linked(Service("client").station(), server.port) as link,
    ):
        await up(link)
        answers = Answers()
        link.request(HOLD, b"x", answers, 30.0)
        await wait_until(lambda: bool(theirs.held), "the request has arrived")
        await server.close(drain_s=0.2)
        assert not server.connections
        await wait_until(answers.are(1), "the client is told")
        assert answers.by_kind == {LOST: 1}
        theirs.answer_all()  # Too late, and without effect.


async def test_a_drain_ends_in_time_though_the_peer_says_nothing() -> None:
    async with served(Service("server").station()) as server:
        peer = await raw_client(server.port)
        await peer.open_as_client()
        await server.close(drain_s=0.2)
        assert not server.connections
        await peer.frames_to_the_end()


@pytest.mark.parametrize("limits", [{}, quick])
async def test_a_drain_ends_though_the_peer_stops_reading_the_last_answers(
    limits: dict[str, float],
) -> None:
    """All is said on both sides, and the last bytes cannot leave."""
    theirs = Service("server")
    async with (
        served(theirs.station()) as server,
        TcpProxy("127.0.0.1", server.port) as proxy,
        linked(Service("client").station(**limits), proxy.port) as link,
    ):
        await up(link)
        answers = Answers()
        for _ in range(30):
            link.request(LARGE, b"%d" % mib, answers, 30.0)
        proxy.to_client.stall()
        await wait_until(
            lambda: theirs.up[0].connected and link.connected, "both ends are still up"
        )
        closing = asyncio.create_task(server.close(drain_s=0.5))
        await asyncio.wait_for(closing, 5.0)
        assert not server.connections
        proxy.reset()
        await wait_until(answers.are(30), "the client is told")
        assert set(answers.by_kind) <= {OK, LOST}


async def test_a_client_that_closes_while_its_link_is_opening_leaves_nothing() -> None:
    service = Service("server")
    async with served(service.station()) as server:
        for turns in range(12):
            link = Link(Service("client").station(), "127.0.0.1", server.port)
            link.start()
            for _ in range(turns):
                await asyncio.sleep(0)
            await link.close()
            assert not link.connected
        await wait_until(lambda: not server.connections, "the server keeps none of them")


async def test_a_server_that_closes_ends_openings_with_a_reason() -> None:
    async with served(Service("server").station()) as server:
        stranger = await raw_client(server.port)
        stranger.send(HELLO, 0, identity("client").hello().encode())
        await stranger.expect(CHALLENGE)
        await server.close()
        assert await stranger.frames_to_the_end() == [(REFUSAL, 0, b"shutting down")]


async def test_after_a_drain_the_client_does_not_hammer_the_address() -> None:
    async with (
        served(Service("server").station()) as server,
        TcpProxy("127.0.0.1", server.port) as proxy,
        linked(Service("client").station(), proxy.port) as link,
    ):
        await up(link)
        await server.close(drain_s=5.0)
        await wait_until(lambda: not link.connected, "the client hears of it")
        before = proxy.connects
        await asyncio.sleep(1.0)
        # After half of 50, 100, 200, 400, 800 ms at the least, each.
        assert 1 <= proxy.connects - before <= 6
