"""The frames of a node: their kinds, and those that a snapshot begins and ends with.

    start:     format u8  ·  store id 16  ·  first log sequence to replay u64
    end:       frames u64  ·  records u64  ·  last log sequence it may contain u64

In a snapshot, `sequence` counts the frames of the file from 1, and `batch` is the log sequence
that it starts at.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from services.core.errors import PeerError
from services.core.key import check_storage_key
from services.core.messages import u16
from services.core.record import check
from services.runtime.log.frame import encode, first_body, format_version, head_bytes

# The log itself has kind 1.
RECORD = 2
EPOCH = 3
FLOOR = 4
REMOVE = 5
CLOCK = 6
CACHE = 7
# Of the acceptors of strong operations; promises.py has their bodies.
PROMISED = 8
ACCEPTED = 9
LEARNED = 10
# Which list of caches the frames before it have completed.
EDITION = 11
# What the collection of a slot took away; purging.py has its body.
PURGED = 12
SLOT = 32
LEAVES = 33
START = 34
END = 35
PROMISES = 36

_start = Struct(">B16sQ")
_end = Struct(">QQQ")
start_bytes = head_bytes + _start.size


class SnapshotEnd(NamedTuple):
    """What the last frame of a snapshot says. `through`: the log must reach this sequence."""

    frames: int
    records: int
    through: int


def encode_start(store_id: bytes, first: int) -> bytes:
    return encode(0, 1, first, START, _start.pack(format_version, store_id, first))


def decode_start(data: bytes) -> tuple[bytes, int] | None:
    """Store id and first sequence of a snapshot, or None if these bytes are no such frame."""
    body = first_body(data, START, _start.size)
    if body is None:
        return None
    _, store_id, first = _start.unpack(body)
    return store_id, first


def encode_end(seed: int, first: int, end: SnapshotEnd) -> bytes:
    return encode(seed, end.frames, first, END, _end.pack(*end))


def decode_end(body: bytes) -> SnapshotEnd:
    """`PeerError` unless `encode_end` could have made these bytes."""
    if len(body) != _end.size:
        raise PeerError(f"the end of a snapshot is {_end.size} bytes, not {len(body)}")
    return SnapshotEnd(*_end.unpack(body))


def decode_record(body: bytes) -> tuple[bytes, bytes]:
    """Of RECORD: key and record, both checked."""
    key, record = split_record(body)
    return check_storage_key(key), check(record)


def split_record(body: bytes) -> tuple[bytes, bytes]:
    """The same of a frame that may be damaged: they may be anything."""
    end = u16.size + int.from_bytes(body[: u16.size], "big")
    return body[u16.size : end], body[end:]


def records_in(kind: int, body: bytes) -> int:
    """How many records a frame of a snapshot holds."""
    return int.from_bytes(body[2:4], "big") if kind == SLOT else 0
