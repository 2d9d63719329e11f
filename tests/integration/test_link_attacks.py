"""Whoever does not hold the secret, or opens a link wrongly, gets a reason and no link."""

from __future__ import annotations

import asyncio
import resource
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from structlog.typing import EventDict

from services.core.wire import (
    CHALLENGE,
    HELLO,
    PING,
    PROOF,
    REFUSAL,
    WELCOME,
    Frame,
    client_proof,
    encode_frame,
    frame_bytes_max,
    link_key,
    server_proof,
    split_challenge,
)
from services.runtime.link import Link, LinkServer
from tests.integration.link_ends import (
    ECHO,
    Answers,
    Service,
    linked,
    log_lines,
    refusal,
    served,
    still_serves,
    up,
)
from tests.integration.raw_peer import RawPeer, identity, raw_client, raw_server, secret
from tests.waiting import wait_until

mib = 1024 * 1024
wrong = "the secret of quite another cluster"


@pytest.fixture
def logged() -> Iterator[list[EventDict]]:
    with log_lines() as lines:
        yield lines


@pytest_asyncio.fixture
async def server() -> AsyncIterator[LinkServer]:
    async with served(Service("server").station()) as one:
        yield one


async def refused_with(logged: list[EventDict], part: str) -> None:
    def found() -> bool:
        return any(
            line["event"] == "link refused" and part in str(line["reason"]) for line in logged
        )

    await wait_until(found, f"the server logs a refusal because of: {part}")


async def reason_of(peer: RawPeer) -> str:
    """The text of the refusal that must be the last thing to come."""
    frames = await peer.frames_to_the_end()
    assert [frame[0] for frame in frames] == [REFUSAL]
    return frames[0][2].decode()


# -- without the secret


async def test_two_ends_with_different_secrets_both_say_so(logged: list[EventDict]) -> None:
    async with (
        served(Service("server", key=wrong).station()) as server,
        linked(Service("client").station(), server.port) as link,
    ):
        await refusal(link, "CLUSTER_SECRET differs between the two ends")
        await refused_with(logged, "CLUSTER_SECRET differs between the two ends")
        [line] = [line for line in logged if line["event"] == "link refused"]
        assert (line["peer"], line["host"]) == ("node client", "127.0.0.1")
        assert line["port"] > 0
        assert not server.connections


async def test_a_client_tells_a_server_of_another_secret_nothing_but_its_refusal() -> None:
    seen: list[list[Frame]] = []

    async def impostor(peer: RawPeer) -> None:
        theirs = await peer.expect(HELLO)
        ours = identity("server").hello().encode()
        peer.send(CHALLENGE, 0, ours + server_proof(link_key(wrong), theirs, ours))
        peer.send(WELCOME)
        seen.append(await peer.frames_to_the_end())

    async with raw_server(impostor) as port, linked(Service("client").station(), port) as link:
        await refusal(link, "CLUSTER_SECRET differs")
        await wait_until(lambda: bool(seen), "the client hangs up")
        assert [frame[0] for frame in seen[0]] == [REFUSAL]
        assert link.request(ECHO, b"x", Answers(), 1.0) != 0


async def test_a_server_refuses_a_client_that_proves_another_secret(server: LinkServer) -> None:
    peer = await raw_client(server.port)
    hello = identity("client").hello().encode()
    peer.send(HELLO, 0, hello)
    encoded, _ = split_challenge(await peer.expect(CHALLENGE))
    peer.send(PROOF, 0, client_proof(link_key(wrong), hello, encoded))
    peer.send(ECHO, 1, b"on the heels of a wrong proof")
    assert "CLUSTER_SECRET differs" in await reason_of(peer)
    assert not server.connections


async def test_a_recorded_opening_cannot_be_replayed_to_the_server(server: LinkServer) -> None:
    recorded = await raw_client(server.port)
    hello = identity("client").hello().encode()
    recorded.send(HELLO, 0, hello)
    encoded, _ = split_challenge(await recorded.expect(CHALLENGE))
    proof = client_proof(link_key(secret), hello, encoded)
    recorded.send(PROOF, 0, proof)
    await recorded.expect(WELCOME)
    replayed = await raw_client(server.port)
    replayed.send(HELLO, 0, hello)
    await replayed.expect(CHALLENGE)
    replayed.send(PROOF, 0, proof)
    assert "the proof does not match" in await reason_of(replayed)
    recorded.abort()


async def test_a_recorded_challenge_cannot_be_replayed_to_a_client() -> None:
    recorded: list[bytes] = []

    async def replaying(peer: RawPeer) -> None:
        theirs = await peer.expect(HELLO)
        ours = identity("server").hello().encode()
        recorded.append(ours + server_proof(link_key(secret), theirs, ours))
        peer.send(CHALLENGE, 0, recorded[0])
        if len(recorded) == 1:
            await peer.expect(PROOF)  # The first is genuine.
        else:
            assert [frame[0] for frame in await peer.frames_to_the_end()] == [REFUSAL]

    async with raw_server(replaying) as port, linked(Service("client").station(), port) as link:
        await refusal(link, "the proof does not match")


async def test_a_server_is_not_fooled_by_its_own_messages(server: LinkServer) -> None:
    peer = await raw_client(server.port)
    peer.send(HELLO, 0, identity("client").hello().encode())
    challenge = await peer.expect(CHALLENGE)
    # Its own proof back; then, on a second connection, its own hello and what it proved for it.
    peer.send(PROOF, 0, challenge[-32:])
    assert "the proof does not match" in await reason_of(peer)
    mirror, oracle = await raw_client(server.port), await raw_client(server.port)
    own_hello, _ = split_challenge(challenge)
    mirror.send(HELLO, 0, own_hello)
    nonce, _ = split_challenge(await mirror.expect(CHALLENGE))
    oracle.send(HELLO, 0, nonce)
    mirror.send(PROOF, 0, (await oracle.expect(CHALLENGE))[-32:])
    assert "the proof does not match" in await reason_of(mirror)
    oracle.abort()
    assert not server.connections


async def test_a_client_is_not_fooled_by_its_own_hello() -> None:
    async def mirror(peer: RawPeer) -> None:
        hello = await peer.expect(HELLO)
        peer.send(HELLO, 0, hello)
        assert [frame[0] for frame in await peer.frames_to_the_end()] == [REFUSAL]

    async with raw_server(mirror) as port, linked(Service("client").station(), port) as link:
        await refusal(link, "message kind 1 while opening; 2 is due")


# -- strangers


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "bytes long"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "LINK_TLS_CERT"),
        (bytes(64), "bytes long"),
        (b"\xff" * 300_000, "bytes long"),
        (encode_frame(PROOF, 0, bytes(32)), "message kind 3 while opening; 1 is due"),
        (encode_frame(WELCOME, 0, b""), "message kind 4 while opening"),
        (encode_frame(ECHO, 1, b"a request before the opening"), "message kind 16"),
        (encode_frame(PING, 0, b"") * 20_000, "message kind 6 while opening"),
        (encode_frame(HELLO, 0, b"ydht\x00\x01short"), "cut short"),
        (encode_frame(HELLO, 0, b"yd" + bytes(100)), "does not speak ydht's link protocol"),
        (encode_frame(HELLO, 0, b"ydht\x00\x00" + bytes(100)), "link protocol 0, this one 1"),
        (encode_frame(HELLO, 0, b"ydht\x00\x63"), "link protocol 99, this one 1"),
        (struct.pack(">IBI", 5 + 1020, HELLO, 0), "5 to 1020 are allowed"),
        (struct.pack(">IBI", frame_bytes_max, HELLO, 0), "5 to 1020 are allowed"),
    ],
)
async def test_a_stranger_is_told_what_was_wrong_with_its_first_words(
    server: LinkServer, logged: list[EventDict], sent: bytes, reason: str
) -> None:
    peer = await raw_client(server.port)
    peer.writer.write(sent)
    frame = await peer.frame()
    # Of a stranger that floods, the reset may overtake the reason; the server's log has it.
    if frame is not None:
        assert frame[0] == REFUSAL
        assert reason in frame[2].decode()
    await refused_with(logged, reason)
    peer.abort()
    await still_serves(server.port)


async def test_a_client_names_the_old_protocol_version_of_its_server() -> None:
    async def old(peer: RawPeer) -> None:
        await peer.expect(HELLO)
        hello = bytearray(identity("server").hello().encode())
        hello[4:6] = (0).to_bytes(2, "big")
        peer.send(CHALLENGE, 0, bytes(hello) + bytes(32))
        await peer.frames_to_the_end()

    async with raw_server(old) as port, linked(Service("client").station(), port) as link:
        await refusal(link, "link protocol 0, this one 1: run the same release on both")


@pytest.mark.parametrize(
    "text", ["\x1b]0;owned\x07\x1b[2Jrm -rf\r\n", "a\u202eb", "x" * 900, "\x9b31m"]
)
async def test_what_a_refusal_says_is_one_harmless_line(text: str, logged: list[EventDict]) -> None:
    async def rude(peer: RawPeer) -> None:
        peer.send(REFUSAL, 0, text.encode())
        await peer.frames_to_the_end()

    async with raw_server(rude) as port, linked(Service("client").station(), port) as link:
        await refusal(link, "refused by the other end")
        assert link.last_error is not None
        assert link.last_error.isprintable()
        assert len(link.last_error) < 600
        assert all(str(line.get("reason", "")).isprintable() for line in logged)


async def test_a_refusal_of_megabytes_is_not_read() -> None:
    async def endless(peer: RawPeer) -> None:
        peer.send(REFUSAL, 0, b"because " * mib)
        await peer.frames_to_the_end()

    async with raw_server(endless) as port, linked(Service("client").station(), port) as link:
        await refusal(link, "5 to 1020 are allowed")


async def test_a_flood_of_strangers_is_counted_one_by_one_and_logged_once(
    logged: list[EventDict],
) -> None:
    station = Service("server").station()
    async with served(station) as server:
        for _ in range(50):
            peer = await raw_client(server.port)
            peer.writer.write(bytes(64))
            await peer.frames_to_the_end()
        await wait_until(lambda: station.counters.connections_refused == 50, "all are counted")
        assert len([line for line in logged if line["event"] == "link refused"]) == 1


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("few_descriptors")
async def test_a_server_with_few_descriptors_takes_few_links_and_says_so() -> None:
    async with served(Service("server").station()) as server, AsyncExitStack() as stack:
        for _ in range(64):
            peer = await raw_client(server.port)
            stack.callback(peer.abort)
            await peer.open_as_client()
        late = await raw_client(server.port)
        assert await reason_of(late) == "64 links are open, which is the limit"
        assert len(server.connections) == 64
        await stack.aclose()
        await wait_until(lambda: not server.connections, "they are gone")
        await still_serves(server.port)


# -- strangers that take their time


@pytest.mark.parametrize("after_hello", [False, True])
async def test_an_opening_that_stalls_is_ended_with_a_reason(after_hello: bool) -> None:
    async with served(Service("server").station(opening_s=0.2)) as server:
        peer = await raw_client(server.port)
        if after_hello:
            peer.send(HELLO, 0, identity("client").hello().encode())
            await peer.expect(CHALLENGE)
        assert await reason_of(peer) == "the opening took more than 0.2 s"


async def test_a_byte_now_and_then_does_not_prolong_an_opening() -> None:
    async with served(Service("server").station(opening_s=0.3)) as server:
        peer = await raw_client(server.port)

        async def trickle() -> None:
            for byte in encode_frame(HELLO, 0, identity("client").hello().encode()):
                peer.writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert await reason_of(peer) == "the opening took more than 0.3 s"
        trickling.cancel()


async def test_a_client_gives_up_on_a_server_that_never_answers() -> None:
    async def mute(peer: RawPeer) -> None:
        await peer.frames_to_the_end()

    station = Service("client").station(opening_s=0.2)
    async with raw_server(mute) as port, linked(station, port) as link:
        await refusal(link, "0.2 s")


async def test_while_strangers_fill_the_door_peers_are_turned_away_and_later_get_in(
    logged: list[EventDict],
) -> None:
    """Whoever could tell a peer from a stranger before its proof would need no proof: past the
    bound all newcomers are refused, with the reason; the deadline of the strangers ends that."""
    service = Service("server")
    async with (
        served(service.station(opening_s=1.5)) as server,
        linked(Service("early").station(), server.port) as early,
    ):
        await up(early)
        strangers = await asyncio.gather(*(raw_client(server.port) for _ in range(300)))
        await refused_with(logged, "256 other connections are just opening")
        async with linked(Service("late").station(), server.port) as late:
            await refusal(late, "256 other connections are just opening")
            assert early.connected
            await up(late)
        for stranger in strangers:
            stranger.abort()


async def test_an_answer_that_comes_in_the_turn_of_the_deadline_makes_one_link_not_two() -> None:
    """The loop stalls between the proof and the welcome: both then are there at once."""
    service, loop = Service("server"), asyncio.get_running_loop()

    def stall() -> None:
        until_s = loop.time() + 0.4
        while loop.time() < until_s:
            pass

    stalls = [lambda: loop.call_soon(stall)]

    def admit(hello: object) -> str | None:
        if stalls:
            stalls.pop()()
        return None

    client = Service("client")
    async with (
        served(service.station()) as server,
        linked(client.station(opening_s=0.3), server.port, admit=admit) as link,
    ):
        await up(link)
        await asyncio.sleep(0.2)
        assert link.connected
        assert len(server.connections) == 1


@pytest.mark.parametrize(("host", "port"), [("a..b", 1), ("x\0y", 1), ("127.0.0.1", 70_000)])
async def test_an_address_that_cannot_be_is_a_reason_and_not_the_end(host: str, port: int) -> None:
    link = Link(Service("client").station(), host, port)
    link.start()
    await wait_until(lambda: link.last_error is not None, "the link says why it is down")
    assert link.last_error
    await link.close()
