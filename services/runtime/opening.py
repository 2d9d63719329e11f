"""How a connection becomes a link: both ends prove that they hold the cluster's secret.

Until then a peer is a stranger: it may make us hold one small frame, and it has a deadline.
A refusal tells it why in one line, and never anything that depends on the secret but "wrong".
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast

from services.core.errors import PeerError
from services.core.wire import (
    CHALLENGE,
    HELLO,
    PROOF,
    REFUSAL,
    WELCOME,
    Frame,
    FrameDecoder,
    Hello,
    Role,
    client_proof,
    decode_hello,
    encode_frame,
    frame_bytes_max,
    is_proof,
    life_bytes,
    link_key,
    no_store_id,
    nonce_bytes,
    opening_frame_bytes_max,
    refusal_bytes_max,
    server_proof,
    split_challenge,
)
from services.runtime import telemetry
from services.runtime.link_limits import LinkCounters
from services.runtime.refusals import Address, address_of

log = telemetry.logger(__name__)


@dataclass(slots=True, frozen=True)
class Identity:
    """Who this process is on its links, and the secret it proves itself with."""

    role: Role
    id: str
    secret: str = field(repr=False)
    epoch: Callable[[], int] = lambda: 0
    store_id: bytes = no_store_id
    life: bytes = field(default_factory=partial(secrets.token_bytes, life_bytes))

    def hello(self) -> Hello:
        nonce = secrets.token_bytes(nonce_bytes)
        return Hello(self.role, self.id, self.epoch(), nonce, self.store_id, self.life)


Admit = Callable[[Hello], str | None]
"""Says why the peer that introduces itself so is not welcome, or None."""


def anyone(hello: Hello) -> str | None:
    """Admit every peer that holds the secret."""
    return None


def only(role: Role, name: str) -> Admit:
    """Admit just this peer, so that a stale address never reaches another process unnoticed."""

    def admit(hello: Hello) -> str | None:
        if (hello.role, hello.id) == (role, name):
            return None
        return (
            f"expected {role.name.lower()} {name} here, found {hello.role.name.lower()} {hello.id}"
        )

    return admit


OnOpen = Callable[[asyncio.Transport, Hello, FrameDecoder, list[Frame]], None]
"""Takes the transport over. The frames came with the last one of the opening."""

OnRefused = Callable[[str], None]

shutting_down: Final = "shutting down"
bug_while_opening: Final = "a bug while the link was opening; the log of that process has it"
mismatch: Final = "the proof does not match: CLUSTER_SECRET differs between the two ends"

# How TLS begins: an alert or a handshake of any version. As the length of a frame it is out of
# bounds, so the two are never mistaken for each other.
_tls_beginnings: Final = (b"\x15\x03", b"\x16\x03")
_tls_on_one_end: Final = (
    "the other end speaks TLS and this one does not: "
    "set LINK_TLS_CERT, LINK_TLS_KEY and LINK_TLS_CA on both ends or on neither"
)


def readable(body: bytes) -> str:
    """What a peer says, cut to one line of a log and with nothing that a terminal would obey."""
    text = body[:refusal_bytes_max].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Opening(asyncio.Protocol):
    """What both ends of an opening share: the deadline, the small decoder, the refusal.

    Exactly one of `on_open` and `on_refused` is called, once. A bug in what the service says of
    itself, or in whom it admits, is a refusal too.
    """

    def __init__(
        self,
        identity: Identity,
        admit: Admit,
        deadline_s: float,
        counters: LinkCounters,
        on_open: OnOpen,
        on_refused: OnRefused,
    ) -> None:
        self._key = link_key(identity.secret)
        self._identity = identity
        self._hello = b""
        self._admit = admit
        self._deadline_s = deadline_s
        self._counters = counters
        self._on_open = on_open
        self._on_refused = on_refused
        self._decoder = FrameDecoder(opening_frame_bytes_max)
        self._peer: Hello | None = None
        self._peer_hello = b""
        self._ended = False
        self._made = False
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle

    @property
    def address(self) -> Address:
        """Where the other end is."""
        return address_of(self._transport) if self._made else None

    @property
    def peer(self) -> str | None:
        """Who the other end says it is, once it has; whether or not it has proved that."""
        return None if self._peer is None else f"{self._peer.role.name.lower()} {self._peer.id}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._ended:
            # Given up while the connection was being made.
            self._transport.abort()
            return
        self._made = True
        self._deadline = asyncio.get_running_loop().call_later(self._deadline_s, self._too_late)
        try:
            self._hello = self._identity.hello().encode()
            self._begin()
        except Exception:
            self._failed()

    def data_received(self, data: bytes) -> None:
        if not self._decoder.held_bytes and data.startswith(_tls_beginnings):
            self.refuse(_tls_on_one_end)
            return
        try:
            frames = self._decoder.feed(data)
            while frames and not self._ended:
                kind, _, body = frames.pop(0)
                if kind == REFUSAL:
                    self._end(f"refused by the other end: {readable(body)}")
                else:
                    self._step(kind, body, frames)
        except PeerError as error:
            self.refuse(str(error))
        except Exception:
            self._failed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc) if exc else "the other end closed the connection while it was opening")

    def refuse(self, reason: str) -> None:
        """Tell the peer why, and close."""
        if not self._ended:
            self._send(REFUSAL, reason.encode()[:refusal_bytes_max])
            self._end(reason)

    def abandon(self) -> None:
        """Close without a word, and call nothing, unless the opening has ended already."""
        if not self._ended:
            self._ended = True
            self._close()

    def _send(self, kind: int, body: bytes) -> None:
        self._transport.write(encode_frame(kind, 0, body))

    def _begin(self) -> None:
        raise NotImplementedError

    def _step(self, kind: int, body: bytes, rest: list[Frame]) -> None:
        raise NotImplementedError

    def _failed(self) -> None:
        self._counters.bugs += 1
        log.exception("opening a link failed")
        if self._ended:
            # It was open already; whoever took it over did not get far.
            self._transport.abort()
        self.refuse(bug_while_opening)

    def _expect(self, kind: int, wanted: int) -> None:
        if kind != wanted:
            raise PeerError(f"message kind {kind} while opening; {wanted} is due")

    def _meet(self, encoded: bytes) -> Hello:
        self._peer_hello = encoded
        self._peer = decode_hello(encoded)
        return self._peer

    def _welcome(self, hello: Hello, rest: list[Frame]) -> None:
        self._ended = True
        self._deadline.cancel()
        self._decoder.bytes_max = frame_bytes_max
        # The frames left over belong to the open link; a copy, for `rest` is being consumed here.
        self._on_open(self._transport, hello, self._decoder, rest[:])

    def _too_late(self) -> None:
        self.refuse(f"the opening took more than {self._deadline_s:g} s")

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._close()
            self._on_refused(reason)

    def _close(self) -> None:
        if self._made:
            self._deadline.cancel()
            self._transport.close()


# A server with TLS hangs up like this on a client without it, or with another CA's certificate:
# asyncio closes a connection whose handshake failed before the alert that says why has left.
_hung_up: Final = (
    "the other end hung up before it introduced itself: it may be no link port, or "
    "LINK_TLS_CERT, LINK_TLS_KEY and LINK_TLS_CA are not of one authority, or set on one end alone"
)


class ClientOpening(Opening):
    def connection_lost(self, exc: Exception | None) -> None:
        if self._peer is None:
            self._end(f"{_hung_up} ({exc})" if exc else _hung_up)
        else:
            super().connection_lost(exc)

    def _begin(self) -> None:
        self._send(HELLO, self._hello)

    def _step(self, kind: int, body: bytes, rest: list[Frame]) -> None:
        if self._peer is not None:
            self._expect(kind, WELCOME)
            self._welcome(self._peer, rest)
            return
        self._expect(kind, CHALLENGE)
        encoded, proof = split_challenge(body)
        hello = self._meet(encoded)
        if not is_proof(proof, server_proof(self._key, self._hello, encoded)):
            raise PeerError(mismatch)
        if (reason := self._admit(hello)) is not None:
            raise PeerError(reason)
        # The server is known now; its first request may come on the heels of its WELCOME.
        self._decoder.bytes_max = frame_bytes_max
        self._send(PROOF, client_proof(self._key, self._hello, encoded))


class ServerOpening(Opening):
    """`on_made` is told when the stranger is there, and may name a reason to turn it away."""

    def __init__(
        self,
        identity: Identity,
        admit: Admit,
        deadline_s: float,
        counters: LinkCounters,
        on_open: OnOpen,
        on_refused: OnRefused,
        on_made: Callable[[], str | None],
    ) -> None:
        super().__init__(identity, admit, deadline_s, counters, on_open, on_refused)
        self._on_made = on_made

    def _begin(self) -> None:
        if (reason := self._on_made()) is not None:
            self.refuse(reason)

    def _step(self, kind: int, body: bytes, rest: list[Frame]) -> None:
        if self._peer is None:
            self._expect(kind, HELLO)
            self._meet(body)
            proof = server_proof(self._key, body, self._hello)
            self._send(CHALLENGE, self._hello + proof)
            return
        self._expect(kind, PROOF)
        if not is_proof(body, client_proof(self._key, self._peer_hello, self._hello)):
            raise PeerError(mismatch)
        if (reason := self._admit(self._peer)) is not None:
            raise PeerError(reason)
        self._send(WELCOME, b"")
        self._welcome(self._peer, rest)
