"""Links to peers that are slow, mute or dead: bounded, noticed, and everything answered once."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import socket
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest

from services.core.wire import LOST, OK, OVERLOADED, PING, TIMEOUT, FrameDecoder, encode_frame
from services.runtime.link import Link, reconnect_s_min
from services.runtime.peer import OnAnswer
from tests.integration.link_ends import (
    ECHO,
    HOLD,
    LARGE,
    Answers,
    Service,
    linked,
    quick,
    refusal,
    served,
    up,
)
from tests.integration.raw_peer import RawPeer, raw_client, raw_server
from tests.integration.tcp_proxy import TcpProxy
from tests.waiting import wait_until

mib = 1024 * 1024
kib = 1024


async def ping_on(peer: RawPeer) -> None:
    while True:
        peer.send(PING)
        await asyncio.sleep(0.05)


# -- slow peers


async def test_a_peer_that_asks_for_much_and_reads_nothing_is_cut_with_memory_bounded() -> None:
    service = Service("server")
    station = service.station(unsent_bytes_high=4 * mib, unsent_bytes_max=8 * mib, **quick)
    async with served(station) as server:
        peer = await raw_client(server.port)
        await peer.open_as_client()
        pinging = asyncio.create_task(ping_on(peer))
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, 201):
            peer.send(LARGE, number, b"%d" % mib)
        await wait_until(lambda: not server.connections, "the peer is cut")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        pinging.cancel()
        peer.abort()
    # 200 MiB were asked for. Four may wait, and what a loop's buffer and a write need to grow.
    assert peak - before < 16 * mib
    assert station.counters.overloaded > 100
    # Two thirds of what was asked for never became bytes.
    assert station.counters.bytes_sent < 60 * mib


async def test_answers_of_one_read_past_the_bound_do_not_cut_a_peer_that_reads() -> None:
    """All requests arrive at once: the first answers leave before there are too many of them."""
    server_service, client = Service("server"), Service("client")
    bounds = {"unsent_bytes_high": 4 * mib, "unsent_bytes_max": 8 * mib}
    async with (
        served(server_service.station(**bounds)) as server,
        linked(client.station(), server.port) as link,
    ):
        await up(link)
        answers = Answers()
        for _ in range(100):
            assert link.request(LARGE, b"%d" % mib, answers, 20.0) == 0
        await wait_until(answers.are(100), "all are answered")
        assert set(answers.by_kind) <= {OK, OVERLOADED}
        assert answers.by_kind[OK] >= 4
        assert link.connected


async def test_a_peer_that_reads_slowly_but_steadily_is_not_cut_though_more_is_waiting() -> None:
    service = Service("server")
    station = service.station(**quick)
    async with (
        served(station) as server,
        TcpProxy("127.0.0.1", server.port) as proxy,
        linked(Service("client").station(**quick), proxy.port) as link,
    ):
        await up(link)
        proxy.to_client.bytes_per_s_max = 12 * mib
        answers = Answers()
        # Twice as fast as it can be taken, for longer than silence_s.
        for _ in range(50):
            assert link.request(LARGE, b"%d" % mib, answers, 30.0) == 0
            await asyncio.sleep(0.04)
        await wait_until(answers.are(50), "all are answered")
        assert answers.by_kind == {OK: 50}
        assert station.counters.connections_lost == 0


async def test_a_peer_that_pings_but_stops_reading_is_lost() -> None:
    service = Service("server")
    async with served(service.station(**quick)) as server:
        peer = await raw_client(server.port)
        await peer.open_as_client()
        pinging = asyncio.create_task(ping_on(peer))
        await wait_until(lambda: bool(service.up), "the peer is there")
        answers = Answers()
        for _ in range(30):
            assert service.up[0].request(ECHO, bytes(mib), answers, 30.0) == 0
        await wait_until(answers.are(30), "everything pending is told")
        assert answers.by_kind == {LOST: 30}
        pinging.cancel()
        peer.abort()


async def test_messages_to_a_peer_that_does_not_read_are_refused_and_not_piled_up() -> None:
    service = Service("server")
    station = service.station(unsent_bytes_high=2 * mib, unsent_bytes_max=64 * mib)
    async with served(station) as server:
        peer = await raw_client(server.port)
        await peer.open_as_client()
        await wait_until(lambda: bool(service.up), "the peer is there")
        sent = 0
        for _ in range(400):
            sent += service.up[0].notify(ECHO, bytes(256 * kib))
            await asyncio.sleep(0)
        # What the two kernels hold, and 2 MiB.
        assert sent < 100
        assert service.up[0].connected
        assert station.counters.overloaded == 400 - sent
        peer.abort()


async def test_two_ends_that_send_each_other_much_at_once_do_not_wait_for_each_other() -> None:
    bounds = {"unsent_bytes_high": 2 * mib}
    ours, theirs = Service("client"), Service("server")
    async with (
        served(theirs.station(**bounds)) as server,
        linked(ours.station(**bounds), server.port) as link,
    ):
        await up(link)
        to_server, to_client = Answers(), Answers()
        for _ in range(40):
            assert link.request(ECHO, bytes(mib), to_server, 30.0) == 0
            assert theirs.up[0].request(ECHO, bytes(mib), to_client, 30.0) == 0
        await wait_until(to_server.are(40), "the client's requests are answered")
        await wait_until(to_client.are(40), "the server's requests are answered")
        assert set(to_server.by_kind) | set(to_client.by_kind) <= {OK, OVERLOADED}
        assert link.connected


async def test_requests_that_ran_out_of_time_unsent_still_count_as_unsent() -> None:
    """A peer that does not read: what is asked again and again may not pile up behind it."""
    service = Service("server")
    station = service.station(
        unsent_bytes_high=4 * mib, pending_bytes_max=8 * mib, unsent_bytes_max=16 * mib
    )
    async with served(station) as server:
        peer = await raw_client(server.port)
        await peer.open_as_client()
        await wait_until(lambda: bool(service.up), "the peer is there")
        late, refused = Answers(), 0
        for _ in range(12):
            results = [service.up[0].request(ECHO, bytes(mib), late, 0.02) for _ in range(8)]
            sent = results.count(0)
            refused += results.count(OVERLOADED)
            await wait_until(late.are(late.count + sent), "they ran out of time")
        assert late.by_kind == {TIMEOUT: 96 - refused}
        # What the kernels hold, and no more than eight at a time.
        assert refused > 40
        assert service.up[0].connected
        assert station.counters.connections_lost == 0
        peer.abort()


async def test_messages_of_one_turn_cost_no_link_to_a_peer_that_reads() -> None:
    theirs, ours = Service("server"), Service("client")
    station = ours.station()
    async with served(theirs.station()) as server, linked(station, server.port) as link:
        await up(link)
        sent = sum(link.notify(HOLD, bytes(mib)) for _ in range(300))
        assert sent == 64
        await wait_until(lambda: len(theirs.held) == sent, "what was sent arrives")
        assert link.connected
        assert station.counters.connections_lost == 0


async def test_requests_behind_the_messages_of_one_turn_find_no_room_either() -> None:
    theirs, ours = Service("server"), Service("client")
    station = ours.station(pending_bytes_max=8 * mib)
    async with served(theirs.station()) as server, linked(station, server.port) as link:
        await up(link)
        answers = Answers()
        assert sum(link.notify(HOLD, bytes(mib)) for _ in range(6)) == 6
        results = [link.request(ECHO, bytes(mib), answers, 30.0) for _ in range(4)]
        assert results == [0, 0, OVERLOADED, OVERLOADED]
        await wait_until(answers.are(2), "what was sent is answered")
        assert link.request(ECHO, bytes(mib), answers, 30.0) == 0


# -- stalls of this process


def stall(seconds: float) -> None:
    """Hold the loop up, as a long garbage collection would."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds
    while loop.time() < until_s:
        pass


async def test_after_a_stall_a_request_has_its_whole_time() -> None:
    theirs = Service("server")
    loop = asyncio.get_running_loop()
    async with (
        served(theirs.station()) as server,
        linked(Service("client").station(), server.port) as link,
    ):
        await up(link)
        ended_s: list[float] = []
        link.request(HOLD, b"so that the sweep is running", Answers(), 60.0)
        await asyncio.sleep(0.2)
        stall(0.6)
        asked_s = loop.time()
        link.request(HOLD, b"x", lambda kind, body: ended_s.append(loop.time()), 0.5)
        await wait_until(lambda: bool(ended_s), "its time is up")
        assert ended_s[0] - asked_s >= 0.5


async def test_answers_that_came_while_the_process_stalled_are_no_timeouts() -> None:
    """The peer answers as the stall begins; it lasts longer than the requests may take."""
    station, stalled = Service("client").station(), threading.Event()

    def answer(connection: socket.socket, asked: int) -> None:
        decoder = FrameDecoder()
        assert stalled.wait(10.0)
        while asked:
            for _, request_id, body in decoder.feed(connection.recv(1 << 16)):
                connection.sendall(encode_frame(OK, request_id, body))
                asked -= 1

    async def hand_over(peer: RawPeer) -> None:
        await peer.open_as_server()
        raw = peer.writer.get_extra_info("socket").dup()
        raw.settimeout(10.0)
        cast(asyncio.Transport, peer.writer.transport).pause_reading()
        await asyncio.to_thread(answer, raw, 100)
        raw.close()
        await asyncio.sleep(2.0)

    async with raw_server(hand_over) as port, linked(station, port) as link:
        await up(link)
        await asyncio.sleep(0.1)
        answers = Answers()
        for _ in range(100):
            assert link.request(ECHO, b"x", answers, 0.5) == 0
        loop, (knock, knocked) = asyncio.get_running_loop(), socket.socketpair()

        def hold_up() -> None:
            loop.remove_reader(knocked)
            stalled.set()
            stall(1.0)

        # While it reads something else: what is due comes then before the next reading.
        loop.add_reader(knocked, hold_up)
        # A sweep or two later, for their time counts from the first.
        loop.call_later(0.2, knock.send, b"x")
        await wait_until(answers.are(100), "all have ended")
        assert answers.by_kind == {OK: 100}
        assert station.counters.late_answers == 0
        knock.close()
        knocked.close()


# -- half-open and dead peers


def vanish_both(proxy: TcpProxy) -> None:
    proxy.vanish()


def vanish_to_server(proxy: TcpProxy) -> None:
    proxy.to_server.drop()


def vanish_to_client(proxy: TcpProxy) -> None:
    proxy.to_client.drop()


def stall_to_client(proxy: TcpProxy) -> None:
    proxy.to_client.stall()


@pytest.mark.parametrize(
    "strike", [vanish_both, vanish_to_server, vanish_to_client, stall_to_client]
)
async def test_a_half_open_peer_is_noticed_and_everything_pending_lost_once(
    strike: Callable[[TcpProxy], None],
) -> None:
    ours, theirs = Service("client"), Service("server")
    station = ours.station(opening_s=0.5, **quick)
    async with (
        served(theirs.station(**quick)) as server,
        TcpProxy("127.0.0.1", server.port) as proxy,
        linked(station, proxy.port) as link,
    ):
        await up(link)
        near, far = Answers(), Answers()
        for _ in range(100):
            assert link.request(HOLD, b"x", near, 60.0) == 0
            assert theirs.up[0].request(HOLD, b"x", far, 60.0) == 0
        await wait_until(lambda: len(theirs.held) == len(ours.held) == 100, "all have arrived")
        strike(proxy)
        # silence_s and one ping are 0.7 s; the rest is for a busy machine, and for the end that
        # learns of it from the other's closing.
        await wait_until(lambda: near.count > 0 and far.count > 0, "both ends notice", seconds=5.0)
        assert near.by_kind == far.by_kind == {LOST: 100}
        assert [len(ours.down), len(theirs.down)] == [1, 1]
        theirs.answer_all()  # To a peer that is gone: without effect.
        proxy.heal()
        await up(link)
        again = Answers()
        link.request(ECHO, b"again", again, 5.0)
        await wait_until(again.are(1), "the link works again")
        assert again.by_kind == {OK: 1}
        assert near.count == far.count == 100


async def test_ten_thousand_pending_requests_are_each_lost_once_and_leave_no_memory(
    record_property: Callable[[str, object], None],
) -> None:
    ours, theirs = Service("client"), Service("server")
    station = ours.station()
    loop = asyncio.get_running_loop()
    told: Counter[int] = Counter()
    times: list[float] = []

    def asked(number: int) -> OnAnswer:
        def on_answer(kind: int, body: bytes) -> None:
            assert kind == LOST
            told[number] += 1
            times.append(loop.time())

        return on_answer

    async def die_with(count: int, proxy: TcpProxy, link: Link) -> None:
        await up(link)
        for number in range(count):
            assert link.request(HOLD, b"x" * 100, asked(number), 60.0) == 0
        await wait_until(lambda: len(theirs.held) == count, "all have arrived")
        proxy.reset()
        await wait_until(lambda: len(told) == count, "all are told")
        assert set(told.values()) == {1}
        assert not link.connected
        record_property("ms_to_fail_all", round((times[-1] - times[0]) * 1000, 1))
        for memory in (told, times, theirs.held, theirs.up, theirs.down, ours.up, ours.down):
            memory.clear()
        gc.collect()

    async with (
        served(theirs.station()) as server,
        TcpProxy("127.0.0.1", server.port) as proxy,
        linked(station, proxy.port) as link,
    ):
        await die_with(100, proxy, link)  # What is made once is there now.
        await up(link)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await die_with(10_000, proxy, link)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert station.counters.lost == 10_100
        # Ten thousand requests of even ten bytes kept each would be 100 KiB; one new connection
        # (the link is coming back) and its buffers are less.
        assert after - before < 80 * kib


async def test_requests_made_by_the_callbacks_of_a_dying_link_are_refused_at_once() -> None:
    ours, theirs = Service("client"), Service("server")
    async with served(theirs.station()) as server, linked(ours.station(), server.port) as link:
        await up(link)
        results: list[int] = []

        def again(kind: int, body: bytes) -> None:
            results.append(link.request(ECHO, b"", again, 1.0))

        for _ in range(50):
            link.request(HOLD, b"", again, 60.0)
        await wait_until(lambda: len(theirs.held) == 50, "all have arrived")
        for connection in list(server.connections):
            connection.abort("killed")
        await wait_until(lambda: len(results) == 50, "all are told")
        assert 0 not in results


async def test_a_process_that_stalls_does_not_take_its_peers_for_dead() -> None:
    ours, theirs = Service("client"), Service("server")
    station, loop = ours.station(**quick), asyncio.get_running_loop()
    async with (
        served(theirs.station(**quick)) as server,
        linked(station, server.port) as link,
    ):
        await up(link)
        answers = Answers()
        link.request(HOLD, b"x", answers, 60.0)
        await wait_until(lambda: bool(theirs.held), "the request has arrived")
        for _ in range(2):
            until_s = loop.time() + 2 * quick["silence_s"]
            while loop.time() < until_s:
                pass  # The loop is blocked, as by a long garbage collection.
            await asyncio.sleep(2 * quick["ping_s"])
        theirs.answer_all()
        await wait_until(answers.are(1), "the request is answered")
        assert answers.by_kind == {OK: 1}
        assert station.counters.connections_opened == 1


# -- coming back


class SetJitter(random.Random):
    """Makes every wait the same fraction of what the backoff says."""

    factor = 1.0

    def uniform(self, a: float, b: float) -> float:
        return self.factor


async def test_a_server_that_hangs_up_at_once_is_asked_ever_more_rarely() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    async def rude(peer: RawPeer) -> None:
        times.append(loop.time())

    async with raw_server(rude) as port, linked(Service("client").station(), port) as link:
        await wait_until(lambda: len(times) == 5, "it has tried five times")
        await refusal(link, "")
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        for turn, gap in enumerate(gaps):
            assert gap >= 0.5 * reconnect_s_min * 2**turn


async def test_a_server_that_welcomes_and_hangs_up_is_no_reason_to_hammer_it() -> None:
    opened: list[float] = []
    loop = asyncio.get_running_loop()

    async def fickle(peer: RawPeer) -> None:
        await peer.open_as_server()
        opened.append(loop.time())
        await peer.writer.drain()

    async with raw_server(fickle) as port, linked(Service("client").station(), port):
        await asyncio.sleep(1.0)
        # At half the backoff each: 25, 50, 100, 200, 400 ms and so on.
        assert 2 <= len(opened) <= 6


async def test_the_backoff_stops_growing_and_starts_anew_after_a_good_time() -> None:
    times: list[float] = []
    welcoming, hang_up = asyncio.Event(), asyncio.Event()
    loop, jitter = asyncio.get_running_loop(), SetJitter()

    async def moody(peer: RawPeer) -> None:
        times.append(loop.time())
        if welcoming.is_set():
            welcoming.clear()
            await peer.open_as_server()
            pinging = asyncio.create_task(ping_on(peer))
            await hang_up.wait()
            pinging.cancel()

    async with raw_server(moody) as port:
        link = Link(Service("client").station(), "127.0.0.1", port, jitter=jitter)
        # A fiftieth of the waits: 2 s become 40 ms. Without a bound the 14th would be 8 s.
        jitter.factor = 0.02
        link.start()
        await wait_until(lambda: len(times) >= 20, "twenty attempts", seconds=6.0)
        welcoming.set()
        await up(link)
        await asyncio.sleep(2.2)
        jitter.factor = 1.0
        ended_s = loop.time()
        hang_up.set()
        count = len(times)
        await wait_until(lambda: len(times) > count, "it tries again")
        # At the bound it would have waited 2 s; anew it is a twentieth of one.
        assert times[count] - ended_s < 1.0
        await link.close()
