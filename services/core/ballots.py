"""What a replicator asks the acceptors of a key: kinds and bytes of the strong messages.

    READ       epoch u64 · key                                        → OK Seen
    PREPARE    epoch u64 · ballot 12 · grows u8 · key                 → OK Seen      or NACK
    ACCEPT     epoch u64 · ballot 12 · operation 12 · key_len u16 · key · record
                                                                      → OK           or NACK
    LEARN      epoch u64 · ballot 12 · key_len u16 · key · record     no answer
    UNLEARNED  age_ms u32 · limit u16        → OK keys as in messages.py

    Seen       ballot 12 · operation 12 · floor 12 · record_len u32 · record · cell
    NACK       version 12     the ballot or the floor that stands in the way

A record may be empty: nothing. A LEARN without one means what was accepted at its ballot, which
spares sending every value twice. In Seen a `record_len` of `same` stands for a record that is the
cell. `grows` tells a replica that is full what it may refuse before anything is at stake.

What an acceptor decodes are plain tuples, which compiled code does not even make; one with names
takes a call of the interpreter, and a change has one in each of its eight messages.

UNLEARNED asks for keys that somebody has to finish. Whoever is told of one is given it for as long
as `age_ms`: those that cannot be finished go to the end of the list, and hide no others.
"""

from __future__ import annotations

import struct
from typing import Final

from services.core.errors import PeerError
from services.core.hlc import Version
from services.core.messages import u64
from services.core.paxos import Seen

READ: Final = 48
PREPARE: Final = 49
ACCEPT: Final = 50
LEARN: Final = 51
UNLEARNED: Final = 52

NACK: Final = 153

# In the place of a record's length: the record is the cell that follows.
same: Final = 0xFFFF_FFFF
unlearned_max: Final = 1_000

_prepare_head = struct.Struct(">Q12sB")
_accept_head = struct.Struct(">Q12s12sH")
_learn_head = struct.Struct(">Q12sH")
_seen_head = struct.Struct(">12s12s12sI")
_unlearned = struct.Struct(">IH")
seen_head_bytes: Final = _seen_head.size
# Every one of these messages begins with its epoch.
epoch_bytes: Final = u64.size


def encode_read(epoch: int, key: bytes) -> bytes:
    return u64.pack(epoch) + key


def encode_prepare(epoch: int, ballot: Version, key: bytes, *, grows: bool) -> bytes:
    return _prepare_head.pack(epoch, ballot, grows) + key


def decode_prepare(body: bytes) -> tuple[Version, bool, bytes]:
    """The ballot, `grows`, and the key."""
    if len(body) < _prepare_head.size:
        raise PeerError(f"a PREPARE of {len(body)} bytes is cut short")
    _, ballot, grows = _prepare_head.unpack_from(body)
    return ballot, bool(grows), body[_prepare_head.size :]


def encode_accept(
    epoch: int, ballot: Version, operation: Version, key: bytes, record: bytes
) -> bytes:
    return _accept_head.pack(epoch, ballot, operation, len(key)) + key + record


def decode_accept(body: bytes) -> tuple[Version, Version, bytes, bytes]:
    """The ballot, the operation, the key and the record."""
    if len(body) < _accept_head.size:
        raise PeerError(f"an ACCEPT of {len(body)} bytes is cut short")
    _, ballot, operation, size = _accept_head.unpack_from(body)
    end = _accept_head.size + size
    if end > len(body):
        raise PeerError(f"an ACCEPT of {len(body)} bytes ends inside of its key")
    return ballot, operation, body[_accept_head.size : end], body[end:]


def encode_learn(epoch: int, ballot: Version, key: bytes, record: bytes) -> bytes:
    return _learn_head.pack(epoch, ballot, len(key)) + key + record


def decode_learn(body: bytes) -> tuple[Version, bytes, bytes]:
    """The ballot, the key and the record."""
    if len(body) < _learn_head.size:
        raise PeerError(f"a LEARN of {len(body)} bytes is cut short")
    _, ballot, size = _learn_head.unpack_from(body)
    end = _learn_head.size + size
    if end > len(body):
        raise PeerError(f"a LEARN of {len(body)} bytes ends inside of its key")
    return ballot, body[_learn_head.size : end], body[end:]


def encode_seen(
    ballot: Version, operation: Version, floor: Version, record: bytes, cell: bytes
) -> bytes:
    if record is cell or record == cell:
        return _seen_head.pack(ballot, operation, floor, same) + cell
    return _seen_head.pack(ballot, operation, floor, len(record)) + record + cell


def decode_seen(body: bytes) -> Seen:
    if len(body) < _seen_head.size:
        raise PeerError(f"{len(body)} bytes do not tell what a replica holds")
    ballot, operation, floor, size = _seen_head.unpack_from(body)
    rest = body[_seen_head.size :]
    if size == same:
        return Seen(ballot, operation, floor, rest, rest)
    if size > len(rest):
        raise PeerError(f"a record of {size} bytes in an answer that has {len(rest)}")
    return Seen(ballot, operation, floor, rest[:size], rest[size:])


def encode_unlearned(age_ms: int, limit: int) -> bytes:
    return _unlearned.pack(age_ms, limit)


def decode_unlearned(body: bytes) -> tuple[int, int]:
    """How old, and how many."""
    if len(body) != _unlearned.size:
        raise PeerError(f"an UNLEARNED of {len(body)} bytes")
    age_ms, limit = _unlearned.unpack(body)
    if not 1 <= limit <= unlearned_max:
        raise PeerError(f"{limit} keys at a time; 1 to {unlearned_max} are allowed")
    return age_ms, limit
