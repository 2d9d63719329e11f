"""What a node lists of a namespace, page by page.

    LIST        msgpack ListQuery    → OK  msgpack ListPage
    SCAN        msgpack ListQuery    → OK  msgpack ScanPage

`decode_list_query` raises PeerError for bytes that no encoder here makes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.core.errors import PeerError
from services.core.key import check_namespace_prefix
from services.core.packed_bodies import decode_body
from services.core.ring import slot_count

# How much of a listing one request may cost a node.
list_limit_max: Final = 1_000
slot_bitmap_bytes: Final = slot_count // 8


class ListQuery(msgspec.Struct, frozen=True, array_like=True):
    """One page of a namespace, of the slots that the node is asked to speak for.

    `start` is the first key that may be shown, and `next` of a page the start of the one behind
    it. `slots` has the bit `1 << (slot & 7)` of the byte `slot >> 3` set for each slot to be heard
    of; None stands for all. Keys are those of clients, without the prefix of the namespace.
    """

    namespace: bytes
    prefix: bytes = b""
    start: bytes = b""
    limit: int = list_limit_max
    delimiter: bytes = b""
    slots: bytes | None = None
    # A scan only: also what is deleted or expired.
    tombstones: bool = False


class ListEntry(msgspec.Struct, frozen=True, array_like=True):
    key: bytes
    size: int
    version: bytes
    expires_at_ms: int
    created_at_ms: int


class ListPage(msgspec.Struct, frozen=True, array_like=True):
    """A page may be empty and yet not the last: a node looks at so many keys a time, whether they
    match or not. `next` is None at the end."""

    entries: list[ListEntry]
    groups: list[bytes]
    next: bytes | None


class ScanPage(msgspec.Struct, frozen=True, array_like=True):
    """Keys with their versions alone, for whoever deletes them."""

    found: list[tuple[bytes, bytes]]
    next: bytes | None


def decode_list_query(body: bytes) -> ListQuery:
    query = decode_body(body, ListQuery)
    check_namespace_prefix(query.namespace)
    if not 1 <= query.limit <= list_limit_max:
        raise PeerError(f"a list of {query.limit} keys; 1 to {list_limit_max} are allowed")
    if query.slots is not None and len(query.slots) != slot_bitmap_bytes:
        raise PeerError(f"a bitmap of slots has {slot_bitmap_bytes} bytes, not {len(query.slots)}")
    return query
