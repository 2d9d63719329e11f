"""What travels on a link: frames, and the messages with which a link opens.

    frame    length u32 · kind u8 · request id u32 · body        big endian; length counts what
                                                                 follows it: 5 + len(body)
    hello    "ydht" · version u16 · role u8 · epoch u64 · nonce 32 · store id 16
             · id length u8 · id

A link is symmetric: either end may ask. A kind below 128 is a message or a request, one from 128
on answers the request whose id it carries; each end counts its own request ids.

This is not: encryption (links may run over TLS), a schema for what services ask each other
(each kind's body belongs to the module that defines it), or a negotiation (one version is spoken).

The opening, after which each end knows that the other holds the cluster's secret:

    client ── HELLO(c) ──────────────────────────────────────► server
    client ◄─ CHALLENGE(s · HMAC(key, "server" · c · s)) ───── server
    client ── PROOF(HMAC(key, "client" · c · s)) ────────────► server
    client ◄─ WELCOME ──────────────────────────────────────── server
"""

from __future__ import annotations

import enum
import hmac
import struct
from dataclasses import dataclass
from typing import Final, NoReturn

from services.core.errors import PeerError
from services.core.subkey import subkey

# Version 1 is the first; an end that meets another version refuses it by name.
protocol_version: Final = 1

# A frame holds a batch or a slot's worth of records: 16 MiB of values and as much again of room.
frame_bytes_max: Final = 32 * 1024 * 1024
# Before a peer has proved who it is, it may make us hold this much and no more.
opening_frame_bytes_max: Final = 1024
# As much as fits its length byte; node ids are a few letters.
id_bytes_max: Final = 255
# What a refusal says fits one log line.
refusal_bytes_max: Final = 512

Frame = tuple[int, int, bytes]  # kind, request id, body

# Messages of the link itself. Service requests take 16 to 127.
HELLO: Final = 1
CHALLENGE: Final = 2
PROOF: Final = 3
WELCOME: Final = 4
REFUSAL: Final = 5
PING: Final = 6
GOODBYE: Final = 7
first_request_kind: Final = 16

# Answers that any request may get. Answers of services take 144 to 239.
OK: Final = 128
OVERLOADED: Final = 129  # a bound was reached: nothing was done
UNKNOWN_KIND: Final = 130  # that end does not know this request: nothing was done
FAILED: Final = 131  # a bug while handling it: it may or may not have been done
first_answer_kind: Final = 128

# Answers that the asking end gives itself; they never travel.
LOST: Final = 240  # the connection broke after the request left: it may or may not have been done
TIMEOUT: Final = 241  # no answer in time: it may or may not have been done
DOWN: Final = 242  # there is no connection: nothing was sent
first_local_kind: Final = 240

_header = struct.Struct(">IBI")
header_bytes: Final = _header.size
_counted_header_bytes: Final = header_bytes - 4  # what `length` counts besides the body

pack_header = _header.pack
"""`pack_header(counted + len(body), kind, request_id)`; the hot path joins it to bodies itself."""


def encode_frame(kind: int, request_id: int, body: bytes) -> bytes:
    if len(body) > frame_bytes_max - header_bytes:
        raise ValueError(f"a body of {len(body)} bytes does not fit a frame of {frame_bytes_max}")
    return _header.pack(_counted_header_bytes + len(body), kind, request_id) + body


class FrameDecoder:
    """Cuts a stream of bytes into frames, however the bytes arrive.

    `feed` returns the frames that are complete and keeps the rest, which never exceeds
    `bytes_max` and one chunk. A length outside the bounds is a PeerError, and then no frame of
    that call is returned: the stream cannot be read on, and neither can it be trusted.
    """

    __slots__ = ("_held", "_wanted", "bytes_max")

    def __init__(self, bytes_max: int = frame_bytes_max) -> None:
        self.bytes_max = bytes_max
        # One growing array: a list of chunks would cost a peer that sends a frame in pieces of a
        # byte nothing, and us an object for each.
        self._held = bytearray()
        self._wanted = header_bytes

    @property
    def held_bytes(self) -> int:
        """How many bytes of an unfinished frame are kept."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return []
            data = bytes(self._held)
            self._held = bytearray()
        unpack = _header.unpack_from
        longest = self.bytes_max - 4
        frames: list[Frame] = []
        start, size = 0, len(data)
        while size - start >= header_bytes:
            length, kind, request_id = unpack(data, start)
            if not _counted_header_bytes <= length <= longest:
                self._refuse(length)
            end = start + 4 + length
            if end > size:
                self._wanted = 4 + length
                break
            frames.append((kind, request_id, data[start + header_bytes : end]))
            start = end
        else:
            self._wanted = header_bytes
        if start < size:
            self._held += data[start:]
        return frames

    def _refuse(self, length: int) -> NoReturn:
        raise PeerError(
            f"a frame says it is {length} bytes long; "
            f"{_counted_header_bytes} to {self.bytes_max - 4} are allowed"
        )


class Role(enum.IntEnum):
    """What kind of process stands at an end of a link."""

    GATEWAY = 1
    REPLICATOR = 2
    NODE = 3
    USERMANAGER = 4
    KEYGEN = 5
    TOOL = 6


_hello = struct.Struct(">4sHBQ32s16s8sB")
_hello_prefix = struct.Struct(">4sH")
_magic: Final = b"ydht"
nonce_bytes: Final = 32
store_id_bytes: Final = 16
life_bytes: Final = 8
mac_bytes: Final = 32
no_store_id: Final = bytes(store_id_bytes)
no_life: Final = bytes(life_bytes)


@dataclass(slots=True, frozen=True)
class Hello:
    """How an end introduces itself. `store_id` is all zeros for a process without a store. `life`
    is the process: of two with the same id and store, such as one on a copy of a directory, each
    has its own."""

    role: Role
    id: str
    epoch: int
    nonce: bytes
    store_id: bytes = no_store_id
    life: bytes = no_life

    def encode(self) -> bytes:
        name = self.id.encode()
        if not 0 < len(name) <= id_bytes_max or not self.id.isprintable():
            raise ValueError(
                f"{self.id[:80]!r} is no id: 1 to {id_bytes_max} bytes that can be shown"
            )
        lengths = len(self.nonce), len(self.store_id), len(self.life)
        if lengths != (nonce_bytes, store_id_bytes, life_bytes):
            raise ValueError(
                f"a nonce has {nonce_bytes} bytes, a store id {store_id_bytes}, a life {life_bytes}"
            )
        return (
            _hello.pack(
                _magic,
                protocol_version,
                self.role,
                self.epoch,
                self.nonce,
                self.store_id,
                self.life,
                len(name),
            )
            + name
        )


def decode_hello(body: bytes) -> Hello:
    """The hello in `body`, which holds nothing else. Raises PeerError, naming what is wrong."""
    if len(body) < _hello_prefix.size:
        raise PeerError(f"a hello of {len(body)} bytes is cut short")
    magic, version = _hello_prefix.unpack_from(body)
    if magic != _magic:
        raise PeerError("the other end does not speak ydht's link protocol")
    if version != protocol_version:
        raise PeerError(
            f"the other end speaks link protocol {version}, this one {protocol_version}: "
            "run the same release on both"
        )
    if len(body) < _hello.size:
        raise PeerError(f"a hello of {len(body)} bytes is cut short")
    _, _, role, epoch, nonce, store_id, life, name_bytes = _hello.unpack_from(body)
    name = body[_hello.size :]
    if len(name) != name_bytes or not name:
        raise PeerError(f"a hello announces an id of {name_bytes} bytes and brings {len(name)}")
    try:
        text = name.decode()
        if not text.isprintable():
            raise PeerError("the id in a hello holds characters that cannot be shown")
        return Hello(Role(role), text, epoch, nonce, store_id, life)
    except UnicodeDecodeError:
        raise PeerError("the id in a hello is not UTF-8") from None
    except ValueError:
        raise PeerError(f"a hello names the unknown role {role}") from None


def split_challenge(body: bytes) -> tuple[bytes, bytes]:
    """The server's encoded hello and its proof."""
    if len(body) <= mac_bytes:
        raise PeerError(f"a challenge of {len(body)} bytes is cut short")
    return body[:-mac_bytes], body[-mac_bytes:]


def link_key(cluster_secret: str) -> bytes:
    """The key that both ends of a link prove to hold."""
    return subkey(cluster_secret, b"ydht link")


def server_proof(key: bytes, client_hello: bytes, server_hello: bytes) -> bytes:
    return hmac.digest(key, b"server" + client_hello + server_hello, "sha256")


def client_proof(key: bytes, client_hello: bytes, server_hello: bytes) -> bytes:
    return hmac.digest(key, b"client" + client_hello + server_hello, "sha256")


def is_proof(given: bytes, expected: bytes) -> bool:
    return hmac.compare_digest(given, expected)
