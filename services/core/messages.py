"""What a node is asked over links, and what it answers: kinds and the bytes of their bodies.

Bodies of the hot path are packed by hand; a caller that knows a storage key sends

    GET         key                                        → OK  record, or nothing
    WRITE       epoch u64 · key_len u16 · key · record     → OK once durable
    WRITE_MANY  epoch u64 · count u16 · (key_len u16 · record_len u32 · key · record)…
        → OK    count u16 · (kind u8 · size u8 · detail)…  once all that was stored is durable

and the rest comes many at a time or seldom:

    GET_MANY    count u16 · (key_len u16 · key)…
        → OK    count u16 · (size u32 · record)…
    LIST, SCAN                                             see listings.py
    NAMESPACES, COUNT, CACHES                              see namespaces.py
    DIGESTS, LEAVES, VERSIONS                              see comparison.py
    SLOT        slot u16 · after                           → OK  last_len u16 · last · chunk
    EPOCH       a cluster map                              → OK  epoch u64
    CAUGHT_UP   nothing                                    → OK

What a node says of itself to replicators, and of what it holds to all that ask it:

    REGISTER    msgpack Member
        → OK    missing u16 · a cluster map, or nothing while so many nodes are missing
        → NOT_WELCOME, TRY_LATER                           a text
    STATE       catching_up u8                             no answer

VERSIONS and SLOT go through a slot by pages in the order of its keys: `after` is the last key of
the page before. A SLOT that has no more is answered with nothing behind a last_len of 0.

Whatever else is answered means that nothing was done: NEWER and BELOW_FLOOR bring the version that
stands in the way, WRONG_EPOCH the epoch to use, AHEAD the node's wall clock, the others a text.
All integers are big-endian. `decode_*` raise PeerError for bytes that no encoder here makes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from services.core.errors import PeerError
from services.core.ring import slot_count
from services.core.wire import OK

GET: Final = 16
WRITE: Final = 17
GET_MANY: Final = 18
WRITE_MANY: Final = 19
LIST: Final = 24
SCAN: Final = 25
COUNT: Final = 26
DIGESTS: Final = 27
LEAVES: Final = 28
VERSIONS: Final = 29
SLOT: Final = 30
EPOCH: Final = 31
CACHES: Final = 32
CAUGHT_UP: Final = 33
NAMESPACES: Final = 34
REGISTER: Final = 40
STATE: Final = 41

NEWER: Final = 144
WRONG_EPOCH: Final = 145
BELOW_FLOOR: Final = 146
AHEAD: Final = 147
STORAGE_FULL: Final = 148
NOT_READY: Final = 149
MALFORMED: Final = 150
# This node is none of the cluster's as it is; somebody has to do what the text says.
NOT_WELCOME: Final = 151
TRY_LATER: Final = 152

# A batch request of a client holds 1000 operations, and a repair sends no more: storing so many
# takes a node about 8 ms, a millisecond in each turn of its loop.
items_max: Final = 1_024
# And so many bytes of records, whatever their number: taking these apart or putting them together
# takes a node about 2 ms in one piece. It holds the largest record with its key alone. Of an
# answer, records that do not fit are marked so.
many_bytes_max: Final = 2 << 20
# What clients write in one turn of a replicator's loop comes in messages of many, too. So few small
# ones a node stores in one piece, which takes about half a millisecond; more take turns.
few_items_max: Final = 128
few_bytes_max: Final = 128 << 10
# A page of keys is put together in one piece, which takes about two milliseconds. With keys as long
# as they may be it has fewer.
page_bytes_max: Final = 256 << 10

u16: Final = struct.Struct(">H")
u32: Final = struct.Struct(">I")
u64: Final = struct.Struct(">Q")
_write_head: Final = struct.Struct(">QH")
_many_head: Final = struct.Struct(">QH")
_item_head: Final = struct.Struct(">HI")
_status_head: Final = struct.Struct(">BB")

write_head_bytes: Final = _write_head.size
# Stands for the size of a record that did not fit the answer; ask for it alone.
left_out: Final = 0xFFFF_FFFF


def epoch_of(body: bytes) -> int:
    """The epoch that a WRONG_EPOCH tells of; 0, which is older than any, if it tells of none."""
    return int(u64.unpack(body)[0]) if len(body) == u64.size else 0


def encode_write(epoch: int, key: bytes, record: bytes) -> bytes:
    return _write_head.pack(epoch, len(key)) + key + record


def encode_get_many(keys: Sequence[bytes]) -> bytes:
    parts = [u16.pack(len(keys))]
    for key in keys:
        parts += (u16.pack(len(key)), key)
    return b"".join(parts)


def decode_get_many(body: bytes) -> list[bytes]:
    reader = Reader(body)
    keys = [reader.take(reader.u16()) for _ in range(reader.count())]
    reader.end()
    return keys


def encode_records(records: Sequence[bytes]) -> bytes:
    """Records in order; each that would make the answer too large is left out, and marked."""
    parts = [u16.pack(len(records))]
    room = many_bytes_max - u16.size - len(records) * u32.size
    for record in records:
        if len(record) > room:
            parts.append(u32.pack(left_out))
        else:
            parts += (u32.pack(len(record)), record)
            room -= len(record)
    return b"".join(parts)


def decode_records(body: bytes) -> list[bytes | None]:
    """The records in order; None for one that was left out."""
    reader = Reader(body)
    records: list[bytes | None] = []
    for _ in range(reader.count()):
        size = reader.u32()
        records.append(None if size == left_out else reader.take(size))
    reader.end()
    return records


def encode_write_many(epoch: int, items: Sequence[tuple[bytes, bytes]]) -> bytes:
    parts = [_many_head.pack(epoch, len(items))]
    for key, record in items:
        parts.append(_item_head.pack(len(key), len(record)))
        parts.append(key)
        parts.append(record)
    return b"".join(parts)


def decode_write_many(body: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    """The epoch, and each key with its record."""
    if len(body) > many_bytes_max:
        raise PeerError(f"{len(body)} bytes of writes in one message; at most {many_bytes_max}")
    reader = Reader(body)
    epoch = reader.u64()
    count = reader.count()
    # Without the reader, which would take half of the time: every write of a client comes so.
    items: list[tuple[bytes, bytes]] = []
    position, size = _many_head.size, len(body)
    while len(items) < count:
        begin = position + _item_head.size
        if begin > size:
            raise PeerError(f"a message of {size} bytes ends inside of a field")
        key_size, record_size = _item_head.unpack_from(body, position)
        middle = begin + key_size
        position = middle + record_size
        if position > size:
            raise PeerError(f"a message of {size} bytes ends inside of a field")
        items.append((body[begin:middle], body[middle:position]))
    if position < size:
        raise PeerError(f"{size - position} bytes too many at the end of a message")
    return epoch, items


def is_of_few(body: bytes) -> bool:
    """Whether this WRITE_MANY is done in one piece, by what it says before it is decoded."""
    return (
        len(body) <= few_bytes_max
        and int.from_bytes(body[u64.size : _many_head.size], "big") <= few_items_max
    )


Status = tuple[int, bytes]
"""What became of one item: OK or another answer's kind, and that answer's body."""

applied: Final[Status] = (OK, b"")
_applied: Final = _status_head.pack(OK, 0)


def all_applied(count: int) -> bytes:
    """The statuses of so many items if all of them were done, which is what is mostly told."""
    return u16.pack(count) + _applied * count


def encode_statuses(statuses: Sequence[Status]) -> bytes:
    parts = [u16.pack(len(statuses))]
    for kind, detail in statuses:
        parts += (_status_head.pack(kind, len(detail)), detail)
    return b"".join(parts)


def decode_statuses(body: bytes) -> list[Status]:
    reader = Reader(body)
    statuses = []
    for _ in range(reader.count()):
        kind, size = reader.u8(), reader.u8()
        statuses.append((kind, reader.take(size)))
    reader.end()
    return statuses


class RegisteredAnswer(NamedTuple):
    """A node is known. Without a map the cluster waits for so many more."""

    missing: int
    map: bytes


def encode_registered(missing: int, map: bytes) -> bytes:  # noqa: A002  What it is.
    return u16.pack(missing) + map


def decode_registered(body: bytes) -> RegisteredAnswer:
    reader = Reader(body)
    return RegisteredAnswer(reader.u16(), reader.rest())


def encode_state(*, catching_up: bool) -> bytes:
    return b"\1" if catching_up else b"\0"


def decode_state(body: bytes) -> bool:
    """Whether the node that said so is catching up."""
    if body not in (b"\0", b"\1"):
        raise PeerError(f"{body[:8]!r} is no state of a node")
    return body == b"\1"


def encode_page(told: Iterable[tuple[bytes, bytes]], limit: int) -> bytes:
    """As many of these keys as make a page, each with what is told of it:
    `more u8 · (key_len u16 · key · told)…`"""
    parts = [b"\0"]
    size = 0
    for key, what in told:
        if len(parts) > limit or size > page_bytes_max:
            parts[0] = b"\1"
            break
        parts.append(u16.pack(len(key)) + key + what)
        size += len(key)
    return b"".join(parts)


def decode_page(body: bytes, told_bytes: int, limit: int) -> tuple[bool, list[tuple[bytes, bytes]]]:
    """Whether more keys follow, and these with what is told of each, which has that many bytes.
    PeerError for a page that is not in order, or would not lead to an end. A page may have some
    thousand keys, and is taken in one piece."""
    more = Reader(body).flag()
    told: list[tuple[bytes, bytes]] = []
    position, size, last = 1, len(body), b""
    while position < size:
        begin = position + u16.size
        middle = begin + int.from_bytes(body[position:begin], "big")
        position = middle + told_bytes
        if position > size:
            raise PeerError(f"a page of {size} bytes ends inside of a key or of what is told of it")
        key = body[begin:middle]
        if told and key <= last:
            raise PeerError("the keys of a page are not in order")
        last = key
        told.append((key, body[middle:position]))
    if len(told) > limit or (more and not told):
        raise PeerError(f"a page of {len(told)} keys; 1 to {limit} are allowed")
    return more, told


class Reader:
    """Takes fields off the front of a body; running past its end is the peer's fault."""

    __slots__ = ("_body", "_position")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0

    def take(self, size: int) -> bytes:
        begin = self._passed(size)
        return self._body[begin : self._position]

    def rest(self) -> bytes:
        return self.take(self.left)

    def slot(self) -> int:
        slot = self.u16()
        if slot >= slot_count:
            raise PeerError(f"slot {slot}; there are {slot_count}")
        return slot

    def u8(self) -> int:
        return self._body[self._passed(1)]

    def u16(self) -> int:
        at = self._passed(2)
        return self._body[at] << 8 | self._body[at + 1]

    def u32(self) -> int:
        at = self._passed(4)
        body = self._body
        return body[at] << 24 | body[at + 1] << 16 | body[at + 2] << 8 | body[at + 3]

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def flag(self) -> bool:
        flag = self.u8()
        if flag > 1:
            raise PeerError(f"{flag} where 0 or 1 is due")
        return flag == 1

    def count(self) -> int:
        """How many items follow."""
        count = self.u16()
        if count > items_max:
            raise PeerError(f"{count} items in one message; at most {items_max} are allowed")
        return count

    def _passed(self, size: int) -> int:
        """Where the next field of that many bytes begins, which is passed now."""
        begin = self._position
        end = begin + size
        if end > len(self._body):
            raise PeerError(f"a message of {len(self._body)} bytes ends inside of a field")
        self._position = end
        return begin

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._body) - self._position

    def end(self) -> None:
        """Insist that nothing is left."""
        if self.left:
            raise PeerError(f"{self.left} bytes too many at the end of a message")
