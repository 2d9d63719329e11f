"""How replicas of slots are compared: from summaries over leaves to the versions of keys.

    DIGESTS   first u16 · count u16                   → OK  for each slot: summary 8 · ended u32
    LEAVES    slot u16                                → OK  64 of u64, as digest.py has them
    VERSIONS  slot u16 · mask of leaves u64 · after   → OK  more u8 · (key_len u16 · key · version)…

`ended` is how much of a slot there is to collect: cells that hold a tombstone or had expired when
the replica last looked, and promises that accepted a tombstone or nothing. A key that was deleted
strongly counts for both, as both have to go. Keys of caches do not count.
The mask has the bit `1 << leaf` for each leaf that differs. VERSIONS goes through these by pages in
the order of keys: `after` is the last key of the page before. The kinds are those of messages.py.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from services.core.digest import summary_bytes
from services.core.errors import PeerError
from services.core.hlc import Version, version_bytes
from services.core.messages import Reader, decode_page, encode_page, u16
from services.core.ring import leaf_count, slot_count

# About two milliseconds, and many times that while the keys of a cache change sides.
digests_max: Final = 1024
versions_max: Final = 4096

_digests_asked = struct.Struct(">HH")
_versions_head = struct.Struct(">HQ")
_slot_digest = struct.Struct(f">{summary_bytes}sI")


def encode_digests_asked(first: int, count: int) -> bytes:
    return _digests_asked.pack(first, count)


def decode_digests_asked(body: bytes) -> range:
    """The slots."""
    reader = Reader(body)
    first, count = reader.slot(), reader.u16()
    reader.end()
    if not 0 < count <= min(digests_max, slot_count - first):
        raise PeerError(f"{count} slots from slot {first} on; {digests_max} go at a time")
    return range(first, first + count)


class SlotDigest(NamedTuple):
    """A slot of a replica in short: equal summaries stand for equal keys and versions."""

    summary: bytes
    ended: int


def encode_digests(digests: Sequence[SlotDigest]) -> bytes:
    return b"".join(_slot_digest.pack(*digest) for digest in digests)


def decode_digests(body: bytes) -> list[SlotDigest]:
    """In the order of the slots that were asked for."""
    if len(body) % _slot_digest.size:
        raise PeerError(f"digests of slots in {len(body)} bytes; each takes {_slot_digest.size}")
    return [SlotDigest(*fields) for fields in _slot_digest.iter_unpack(body)]


def encode_leaves_asked(slot: int) -> bytes:
    return u16.pack(slot)


def decode_leaves_asked(body: bytes) -> int:
    """The slot."""
    reader = Reader(body)
    slot = reader.slot()
    reader.end()
    return slot


class VersionsAsked(NamedTuple):
    slot: int
    leaves: list[int]
    after: bytes


def encode_versions_asked(slot: int, leaves: Collection[int], after: bytes) -> bytes:
    return _versions_head.pack(slot, sum(1 << leaf for leaf in leaves)) + after


def decode_versions_asked(body: bytes) -> VersionsAsked:
    reader = Reader(body)
    slot, mask = reader.slot(), reader.u64()
    return VersionsAsked(
        slot, [leaf for leaf in range(leaf_count) if mask >> leaf & 1], reader.rest()
    )


class VersionsPage(NamedTuple):
    """Some keys in order with their versions, and whether there are more behind the last."""

    more: bool
    found: list[tuple[bytes, Version]]


def encode_versions(found: Sequence[tuple[bytes, Version]]) -> bytes:
    """The first page of these."""
    return encode_page(found, versions_max)


def decode_versions(body: bytes) -> VersionsPage:
    return VersionsPage(*decode_page(body, version_bytes, versions_max))
