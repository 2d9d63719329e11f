"""A peer played by hand: it speaks the protocol of links frame by frame, and breaks it at will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from services.core.wire import (
    CHALLENGE,
    HELLO,
    PROOF,
    WELCOME,
    Frame,
    FrameDecoder,
    Role,
    client_proof,
    encode_frame,
    is_proof,
    link_key,
    server_proof,
    split_challenge,
)
from services.runtime.opening import Identity

secret = "the secret of this test's cluster"
patience_s = 10.0


def identity(name: str, role: Role = Role.NODE, key: str = secret) -> Identity:
    return Identity(role, name, key)


class RawPeer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []

    def send(self, kind: int, request_id: int = 0, body: bytes = b"") -> None:
        self.writer.write(encode_frame(kind, request_id, body))

    async def frame(self) -> Frame | None:
        """The next frame, or None when the other end has closed or reset the connection."""
        async with asyncio.timeout(patience_s):
            while not self._frames:
                data = b""
                with suppress(ConnectionError):
                    data = await self.reader.read(1 << 18)
                if not data:
                    self.abort()
                    return None
                self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    async def frames_to_the_end(self) -> list[Frame]:
        frames = []
        while (frame := await self.frame()) is not None:
            frames.append(frame)
        return frames

    async def expect(self, kind: int) -> bytes:
        frame = await self.frame()
        assert frame is not None, f"closed where kind {kind} was due"
        assert frame[0] == kind, f"{frame} where kind {kind} was due"
        return frame[2]

    async def open_as_client(self, name: str = "raw", key: str = secret) -> None:
        """Prove ourselves to a server, which must prove itself too."""
        hello = identity(name).hello().encode()
        self.send(HELLO, 0, hello)
        encoded, proof = split_challenge(await self.expect(CHALLENGE))
        assert is_proof(proof, server_proof(link_key(key), hello, encoded))
        self.send(PROOF, 0, client_proof(link_key(key), hello, encoded))
        await self.expect(WELCOME)

    async def open_as_server(self, name: str = "raw", key: str = secret) -> None:
        """Prove ourselves to a client, which must prove itself too."""
        theirs = await self.expect(HELLO)
        ours = identity(name).hello().encode()
        self.send(CHALLENGE, 0, ours + server_proof(link_key(key), theirs, ours))
        assert is_proof(await self.expect(PROOF), client_proof(link_key(key), theirs, ours))
        self.send(WELCOME)

    def abort(self) -> None:
        self.writer.transport.abort()


async def raw_client(port: int) -> RawPeer:
    return RawPeer(*await asyncio.open_connection("127.0.0.1", port))


@asynccontextmanager
async def raw_server(serve: Callable[[RawPeer], Awaitable[None]]) -> AsyncIterator[int]:
    """The port of a server that plays each connection as told, and then drops it."""

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = RawPeer(reader, writer)
        try:
            # A peer that hangs up in the middle of a scene ends it.
            with suppress(ConnectionError):
                await serve(peer)
        finally:
            peer.abort()

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
