"""How the tombstones of a slot are collected: what the replicas are asked, and what they answer.

    STALE     epoch u64 · slot u16 · at_ms u64 · after        → OK  more u8 · (key_len u16 · key)…
    FREEZE    epoch u64 · slot u16 · session 12               → OK, once durable
    COMPARE   epoch u64 · slot u16 · session 12 · after
        → OK  more u8 · (key_len u16 · key · cell u8 · version 12 · promised 12 · ballot 12)…
    REPAIR    epoch u64 · slot u16 · session 12
              · count u16 · (key_len u16 · record_len u32 · key · record)…
                                                              → OK, once all of it is durable
    PURGE     slot u16 · session 12 · count u16 · (key_len u16 · key · ballot 12)…
                                                              → OK, once durable
    REPLICATORS  nothing                                      → OK  count u16 · (len u8 · id)…

A session is a version: the floor that its FREEZE set, at or below which nothing is written any
more but by REPAIR in that session. A replica has one for a slot at most, and none that it would
know after a restart or in another epoch.

STALE names the keys with a promise whose cell, or whose accepted record, is a tombstone, has
expired by `at_ms`, or is nothing (accepted as such). COMPARE shows every key with a cell or a
promise, those of caches left out; whether a value has expired is decided by the milliseconds of
the session. A version, a promise or a ballot that is not there is `version_zero`. Both go through a
slot by pages in the order of keys: `after` is the last key of the page before.

REPAIR brings records that are not above the session; a refusal says that the rest was not taken,
and it may be sent once more. PURGE drops the cells of its keys that have ended, and the promises
that hold what was accepted at the ballot it names, or nothing if they ever accepted nothing. A
ballot of `version_zero` names none. Every PURGE closes its session, and needs it not: however many
it takes for all keys, each may come again, in any epoch, and after a restart.

Refused are FREEZE and PURGE by NACK with the floor: the session of a FREEZE is not above it (or,
where the NACK's version is below the session, the replica's map is joint, or it has none of its own
epoch); that of a PURGE is above it, so that this replica was never frozen for it. COMPARE and
REPAIR out of their session are refused by NO_SESSION. All of them are refused as writes are, by
WRONG_EPOCH, NOT_READY (PURGE never by these two), OVERLOADED, STORAGE_FULL and AHEAD.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from services.core.errors import PeerError
from services.core.hlc import Version, version_bytes, version_zero
from services.core.messages import Reader, decode_page, encode_page, many_bytes_max, u16

STALE: Final = 56
FREEZE: Final = 57
COMPARE: Final = 58
REPAIR: Final = 59
PURGE: Final = 60
REPLICATORS: Final = 61

# The replica has no such session, any more or yet; its body is empty.
NO_SESSION: Final = 154

# What COMPARE shows of a cell.
no_cell: Final = 0
lives: Final = 1
ended: Final = 2

# A page is made in one piece, which takes about two milliseconds.
stale_max: Final = 4_096
compared_max: Final = 2_048

_stale_head = struct.Struct(">QHQ")
_session_head = struct.Struct(">QH12s")
_purge_head = struct.Struct(">H12sH")
_compared = struct.Struct(">B12s12s12s")
_item_head = struct.Struct(">HI")


class Stale(NamedTuple):
    """Which keys are asked for by STALE."""

    slot: int
    at_ms: int
    after: bytes


def encode_stale(epoch: int, slot: int, at_ms: int, after: bytes) -> bytes:
    return _stale_head.pack(epoch, slot, at_ms) + after


def decode_stale(body: bytes) -> Stale:
    reader = Reader(body)
    reader.u64()
    return Stale(reader.slot(), reader.u64(), reader.rest())


class KeyPage(NamedTuple):
    """Some keys in order, and whether there are more behind the last of them."""

    more: bool
    keys: list[bytes]


def encode_key_page(keys: Sequence[bytes]) -> bytes:
    """The first page of these keys."""
    return encode_page([(key, b"") for key in keys], stale_max)


def decode_key_page(body: bytes) -> KeyPage:
    more, told = decode_page(body, 0, stale_max)
    return KeyPage(more, [key for key, _ in told])


class Session(NamedTuple):
    """A slot and the session it is about; of COMPARE also the key to go on behind."""

    slot: int
    session: Version
    after: bytes = b""


def encode_freeze(epoch: int, slot: int, session: Version) -> bytes:
    return _session_head.pack(epoch, slot, session)


def decode_freeze(body: bytes) -> Session:
    asked = decode_compare(body)
    if asked.after:
        raise PeerError(f"{len(asked.after)} bytes too many at the end of a FREEZE")
    return asked


def encode_compare(epoch: int, slot: int, session: Version, after: bytes) -> bytes:
    return _session_head.pack(epoch, slot, session) + after


def decode_compare(body: bytes) -> Session:
    reader = Reader(body)
    reader.u64()
    return Session(reader.slot(), _session(reader), reader.rest())


class Compared(NamedTuple):
    """What a replica has of a key: `no_cell`, `lives` or `ended`, and versions."""

    key: bytes
    cell: int
    version: Version
    promised: Version
    # At which something was accepted, if anything ever was.
    ballot: Version


class ComparedPage(NamedTuple):
    """Some keys in order, and whether there are more behind the last of them."""

    more: bool
    entries: list[Compared]


def encode_compared(entries: Sequence[Compared]) -> bytes:
    """The first page of these entries."""
    return encode_page([(entry[0], _compared.pack(*entry[1:])) for entry in entries], compared_max)


def decode_compared(body: bytes) -> ComparedPage:
    more, told = decode_page(body, _compared.size, compared_max)
    entries: list[Compared] = []
    for key, what in told:
        entry = Compared(key, *_compared.unpack(what))
        if entry.cell > ended or (entry.cell == no_cell) != (entry.version == version_zero):
            raise PeerError(f"a cell of the kind {entry.cell} at version {entry.version.hex()}")
        entries.append(entry)
    return ComparedPage(more, entries)


class Repair(NamedTuple):
    """Keys with the records that they are to have at least."""

    slot: int
    session: Version
    items: list[tuple[bytes, bytes]]


def encode_repair(
    epoch: int, slot: int, session: Version, items: Sequence[tuple[bytes, bytes]]
) -> bytes:
    parts = [_session_head.pack(epoch, slot, session), u16.pack(len(items))]
    for key, record in items:
        parts += (_item_head.pack(len(key), len(record)), key, record)
    return b"".join(parts)


# What a REPAIR takes besides its items, and each of these besides its key and its record. All of
# it together may be `many_bytes_max`.
repair_head_bytes: Final = _session_head.size + u16.size
repair_item_bytes: Final = _item_head.size


def decode_repair(body: bytes) -> Repair:
    if len(body) > many_bytes_max:
        raise PeerError(f"{len(body)} bytes of records in one message; at most {many_bytes_max}")
    reader = Reader(body)
    reader.u64()
    slot, session = reader.slot(), _session(reader)
    items: list[tuple[bytes, bytes]] = []
    for _ in range(reader.count()):
        key_size, record_size = reader.u16(), reader.u32()
        items.append((reader.take(key_size), reader.take(record_size)))
    reader.end()
    return Repair(slot, session, items)


class Purge(NamedTuple):
    """Keys with the ballot at which their tombstone was accepted by all, or `version_zero`."""

    slot: int
    session: Version
    keys: list[tuple[bytes, Version]]


def encode_purge(slot: int, session: Version, keys: Sequence[tuple[bytes, Version]]) -> bytes:
    parts = [_purge_head.pack(slot, session, len(keys))]
    for key, ballot in keys:
        parts += (u16.pack(len(key)), key, ballot)
    return b"".join(parts)


def decode_purge(body: bytes) -> Purge:
    reader = Reader(body)
    slot, session = reader.slot(), _session(reader)
    keys = [(reader.take(reader.u16()), reader.take(version_bytes)) for _ in range(reader.count())]
    reader.end()
    return Purge(slot, session, keys)


def encode_replicators(ids: Sequence[str]) -> bytes:
    parts = [u16.pack(len(ids))]
    for name in ids:
        data = name.encode()
        parts += (bytes((len(data),)), data)
    return b"".join(parts)


def decode_replicators(body: bytes) -> list[str]:
    """The ids of the replicators that have asked the node for them where they are connected."""
    reader = Reader(body)
    names: list[str] = []
    for _ in range(reader.count()):
        data = reader.take(reader.u8())
        try:
            names.append(data.decode())
        except UnicodeDecodeError as error:
            raise PeerError(f"{data[:40]!r} is no id of a replicator") from error
    reader.end()
    return names


def _session(reader: Reader) -> Version:
    session = reader.take(version_bytes)
    if session == version_zero:
        raise PeerError("a session of version zero, which no clock stamps")
    return session
