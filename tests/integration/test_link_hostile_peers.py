"""A peer that holds the secret and breaks the protocol loses its link, and costs others nothing."""

from __future__ import annotations

import gc
import struct
import tracemalloc
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.core.wire import (
    CHALLENGE,
    HELLO,
    LOST,
    OK,
    OVERLOADED,
    PING,
    PROOF,
    REFUSAL,
    WELCOME,
    encode_frame,
    frame_bytes_max,
)
from services.runtime.link import LinkServer
from tests.integration.link_ends import (
    ECHO,
    HOLD,
    Service,
    linked,
    log_lines,
    quick,
    refusal,
    served,
    still_serves,
    up,
)
from tests.integration.raw_peer import RawPeer, raw_client, raw_server
from tests.waiting import wait_until

mib = 1024 * 1024


@pytest_asyncio.fixture
async def server() -> AsyncIterator[LinkServer]:
    async with served(Service("server").station()) as one:
        yield one


@pytest.mark.parametrize(
    "kind", [0, HELLO, CHALLENGE, PROOF, WELCOME, REFUSAL, 8, 15, 240, LOST, 255]
)
@pytest.mark.parametrize("by_client", [True, False])
async def test_a_kind_that_has_no_place_on_an_open_link_ends_it(kind: int, by_client: bool) -> None:
    reason = f"the message kind {kind} has no place on an open link"
    with log_lines() as lines:
        if by_client:
            async with served(Service("server").station()) as server:
                peer = await raw_client(server.port)
                await peer.open_as_client()
                peer.send(kind, 1, b"")
                await peer.frames_to_the_end()
                await wait_until(lambda: not server.connections, "the server drops it")
        else:

            async def hostile(peer: RawPeer) -> None:
                await peer.open_as_server()
                peer.send(kind, 1, b"")
                await peer.frames_to_the_end()

            async with raw_server(hostile) as port, linked(Service("c").station(), port) as link:
                await refusal(link, reason)
    assert any(line.get("reason") == reason for line in lines)


@pytest.mark.parametrize("by_client", [True, False])
async def test_an_oversized_frame_ends_the_link_at_its_first_bytes(by_client: bool) -> None:
    oversized = struct.pack(">IBI", frame_bytes_max - 3, ECHO, 1)

    async def hostile(peer: RawPeer) -> None:
        peer.writer.write(oversized)
        # It goes on sending; nobody may keep that.
        peer.writer.write(bytes(8 * mib))
        await peer.frames_to_the_end()

    async def hostile_server(peer: RawPeer) -> None:
        await peer.open_as_server()
        await hostile(peer)

    with log_lines() as lines:
        if by_client:
            async with served(Service("server").station()) as server:
                peer = await raw_client(server.port)
                await peer.open_as_client()
                await hostile(peer)
                await still_serves(server.port)
        else:
            async with (
                raw_server(hostile_server) as port,
                linked(Service("client").station(), port) as link,
            ):
                await refusal(link, "are allowed")
    assert any("are allowed" in str(line.get("reason")) for line in lines)


async def test_hundreds_of_oversized_frames_cost_no_memory() -> None:
    service = Service("server")

    async def attack(server: LinkServer, count: int) -> None:
        for number in range(count):
            peer = await raw_client(server.port)
            if number % 2:
                await peer.open_as_client()
            peer.writer.write(struct.pack(">IBI", 2**32 - 1, ECHO, 1) + bytes(1000))
            await peer.frames_to_the_end()
        await wait_until(lambda: not server.connections, "the server has dropped them all")
        # What this test itself remembers of them.
        for memory in (service.up, service.down, lines):
            memory.clear()
        gc.collect()

    with log_lines() as lines:
        async with served(service.station()) as server:
            await attack(server, 50)  # What is made once (codecs, log processors) is there now.
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            await attack(server, 500)
            after, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    # Five hundred connections of even one kilobyte kept each would be 500 KiB; what there is
    # are cancelled timers, which the loop drops a hundred at a time.
    assert after - before < 150 * 1024
    # One connection at a time, a chunk of a quarter MiB each way, and this test's own buffers.
    assert peak - before < 3 * mib


async def test_a_peer_that_asks_more_than_is_bearable_is_told_so_for_the_surplus() -> None:
    service = Service("server")
    station = service.station(unanswered_max=100)
    async with served(station) as server:
        peer = await raw_client(server.port)
        await peer.open_as_client()
        for number in range(1, 151):
            peer.send(HOLD, number)
        refused = [await peer.frame() for _ in range(50)]
        assert refused == [(OVERLOADED, number, b"") for number in range(101, 151)]
        assert len(service.held) == 100
        service.answer_all()
        assert [await peer.frame() for _ in range(100)] == [
            (OK, number, b"") for number in range(1, 101)
        ]
        peer.send(ECHO, 151, b"again")
        assert await peer.frame() == (OK, 151, b"again")
        peer.abort()


async def test_the_same_request_id_over_and_over_is_answered_as_often(server: LinkServer) -> None:
    peer = await raw_client(server.port)
    await peer.open_as_client()
    for number in range(1000):
        peer.send(ECHO, 7, str(number).encode())
    assert [await peer.frame() for _ in range(1000)] == [
        (OK, 7, str(number).encode()) for number in range(1000)
    ]
    peer.abort()


async def test_an_id_that_is_asked_again_before_its_answer_ends_the_link() -> None:
    """Nobody could tell which of the two an answer belongs to."""
    service = Service("server")
    async with served(service.station()) as server:
        peer = await raw_client(server.port)
        await peer.open_as_client()
        peer.send(HOLD, 7, b"once")
        peer.send(HOLD, 7, b"twice")
        assert await peer.frames_to_the_end() == []
        await wait_until(lambda: not server.connections, "the server drops it")
        service.answer_all()  # To a peer that is gone: without effect.
        await still_serves(server.port)


async def test_answers_to_what_was_never_asked_are_counted_and_change_nothing() -> None:
    async def liar(peer: RawPeer) -> None:
        await peer.open_as_server()
        frame = await peer.frame()
        assert frame is not None
        kind, request_id, body = frame
        assert kind == ECHO
        for other in range(request_id + 1, request_id + 1001):
            peer.send(OK, other, b"a lie")
        peer.send(OK, request_id, body)
        peer.send(OK, request_id, b"and once more")
        await peer.frames_to_the_end()

    station = Service("client").station()
    async with raw_server(liar) as port, linked(station, port) as link:
        await up(link)
        got: list[tuple[int, bytes]] = []
        link.request(ECHO, b"truth", lambda kind, body: got.append((kind, body)), 5.0)
        await wait_until(lambda: station.counters.late_answers == 1001, "all lies have come")
        assert got == [(OK, b"truth")]
        assert link.connected


async def test_a_peer_that_pings_in_floods_is_heard_and_answered_nothing() -> None:
    service = Service("server")
    async with served(service.station(**quick)) as server:
        peer = await raw_client(server.port)
        await peer.open_as_client()
        peer.writer.write(encode_frame(PING, 0, b"") * 100_000)
        peer.send(ECHO, 1, b"x")
        frame = await peer.frame()
        while frame is not None and frame[0] == PING:
            frame = await peer.frame()
        assert frame == (OK, 1, b"x")
        peer.abort()
