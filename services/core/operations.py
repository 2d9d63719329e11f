"""What a gateway asks a replicator over a link, and what it is told: kinds and bytes.

    PUT        ttl_ms u64 · key_len u16 · meta_len u16 · key · meta · value       eventual
    DELETE     key                                                               eventual
    FETCH      key                                                               strong
    CHANGE     action u8 · if_present u8 · versions u8 · version 12 …             strong
               · ttl_ms u64 · by i64 · key_len u16 · meta_len u16 · key · meta · value
    BATCH      count u16 · (kind u8 · size u32 · body)…          each as if it came alone
    MAP        nothing
    DELETE_PREFIX, DELETE_NAMESPACE                              see deletions.py
    LIST_NAMESPACES, DESCRIBE_NAMESPACE, DECLARE_NAMESPACE       see declarations.py

    → OK       FETCH: record, or nothing · BATCH: count u16 · (kind u8 · size u32 · body)…
               MAP: a cluster map, or nothing while forming
    → CHANGED  version 12 · expires_at_ms u64 · (value i64 if it was an increment)
    → ABSENT, NOT_AN_INTEGER              nothing was changed; the latter with a text
    → PRECONDITION_FAILED  version 12     of the value that is there; zeros if none is
    → UNKNOWN  operation 12 · text        it may or may not have been done
    → REFUSED  code_len u8 · code · text  nothing was done; a code of the catalogue of errors
    → INVALID  code_len u8 · code · text  nothing was done; a code of what a client has to mend
    → TOO_LARGE                           of an item alone: what it read did not fit the answer

Keys are storage keys. A ttl of 0 is none, and takes an expiry away if the action is EXPIRE. The
replicator turns it into a time once. All integers are big-endian. `decode_*` raise PeerError for
what no encoder here makes.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from services.core.errors import PeerError
from services.core.hlc import Version, time_ms_max, version_bytes
from services.core.key import check_storage_key
from services.core.messages import Reader, u16
from services.core.record import joined_body, meta_bytes_max, value_bytes_max

PUT: Final = 64
DELETE: Final = 65
FETCH: Final = 66
CHANGE: Final = 67
BATCH: Final = 68
DELETE_PREFIX: Final = 69
MAP: Final = 70
LIST_NAMESPACES: Final = 71
DESCRIBE_NAMESPACE: Final = 72
DECLARE_NAMESPACE: Final = 73
DELETE_NAMESPACE: Final = 74

CHANGED: Final = 160
ABSENT: Final = 161
PRECONDITION_FAILED: Final = 162
NOT_AN_INTEGER: Final = 163
UNKNOWN: Final = 164
REFUSED: Final = 165
TOO_LARGE: Final = 166
INVALID: Final = 167

integer_max: Final = (1 << 63) - 1
integer_min: Final = -(1 << 63)
day_ms: Final = 86_400_000
# What clients may ask for is ten years, of which at most three are leap years; a time that far
# ahead still fits every clock.
ttl_ms_max: Final = 3_653 * day_ms
# The versions of one If-Match header.
versions_max: Final = 64
batch_items_max: Final = 1_000
# The JSON of a batch, and of its answer.
batch_bytes_max: Final = 16 << 20
# In an answer; a client reads a line, not a page.
text_bytes_max: Final = 512

i64: Final = struct.Struct(">q")
_put_head: Final = struct.Struct(">QHH")
_change_head: Final = struct.Struct(">BBB")
_change_rest: Final = struct.Struct(">QqHH")
_item_head: Final = struct.Struct(">BI")
item_head_bytes: Final = _item_head.size
_changed: Final = struct.Struct(">12sQ")


class Action(enum.IntEnum):
    PUT = 1
    DELETE = 2
    EXPIRE = 3
    INCREMENT = 4


def encode_put(key: bytes, value: bytes, ttl_ms: int = 0, meta: bytes = b"") -> bytes:
    return _put_head.pack(ttl_ms, len(key), len(meta)) + key + meta + value


def put_record(body: bytes, now_ms: int) -> tuple[bytes, bytes]:
    """Of a PUT, the key and the record but for its version. On the hot path the two steps, taking
    the request apart and putting the record together, would take twice as long."""
    size = len(body)
    if size < _put_head.size:
        raise PeerError(f"a put of {size} bytes is cut short")
    ttl_ms, key_size, meta_size = _put_head.unpack_from(body)
    key_end = _put_head.size + key_size
    _check_put(ttl_ms, meta_size, size - key_end - meta_size)
    key = check_storage_key(body[_put_head.size : key_end])
    expires_at_ms = now_ms + ttl_ms if ttl_ms else 0
    return key, joined_body(expires_at_ms, meta_size, body[key_end:])


class ChangeRequest(NamedTuple):
    """A strong change. `versions` and `if_present` are what must hold, None for no matter."""

    action: Action
    key: bytes
    value: bytes = b""
    ttl_ms: int = 0
    meta: bytes = b""
    by: int = 0
    versions: tuple[Version, ...] | None = None
    if_present: bool | None = None


# In the byte for `if_present`: nothing is asked, there must be no value, or one; and with the
# third bit a list of versions is given, which may be empty and then never matches.
_presence: Final = (None, False, True)
_listed: Final = 4


def encode_change(request: ChangeRequest) -> bytes:
    versions = request.versions
    asked = _presence.index(request.if_present) | (_listed if versions is not None else 0)
    return b"".join(
        (
            _change_head.pack(request.action, asked, len(versions or ())),
            *(versions or ()),
            _change_rest.pack(request.ttl_ms, request.by, len(request.key), len(request.meta)),
            request.key,
            request.meta,
            request.value,
        )
    )


def decode_change(body: bytes) -> ChangeRequest:
    reader = Reader(body)
    action, asked, count = _change_head.unpack(reader.take(_change_head.size))
    if not Action.PUT <= action <= Action.INCREMENT:
        raise PeerError(f"{action} is no action on a key")
    if asked & ~_listed >= len(_presence) or count > versions_max or (count and asked < _listed):
        raise PeerError(f"a change asks for {count} versions and {asked:#x}")
    versions = tuple([reader.take(version_bytes) for _ in range(count)])
    ttl_ms, by, key_size, meta_size = _change_rest.unpack(reader.take(_change_rest.size))
    key = check_storage_key(reader.take(key_size))
    meta, value = reader.take(meta_size), reader.rest()
    _check_put(ttl_ms, meta_size, len(value))
    return ChangeRequest(
        Action(action),
        key,
        value,
        ttl_ms,
        meta,
        by,
        versions if asked & _listed else None,
        _presence[asked & ~_listed],
    )


def _check_put(ttl_ms: int, meta_size: int, value_size: int) -> None:
    if ttl_ms > ttl_ms_max:
        raise PeerError(f"a ttl of {ttl_ms} ms is above {ttl_ms_max}")
    if meta_size > meta_bytes_max:
        raise PeerError(f"metadata of {meta_size} bytes is above {meta_bytes_max}")
    if not 0 <= value_size <= value_bytes_max:
        raise PeerError(f"a value of {value_size} bytes is not 0 to {value_bytes_max}")


Item = tuple[int, bytes]
"""One request of a batch, or its answer: a kind and a body."""


def encode_batch(items: Sequence[Item]) -> bytes:
    parts = [u16.pack(len(items))]
    for kind, body in items:
        parts += (_item_head.pack(kind, len(body)), body)
    return b"".join(parts)


def decode_batch(body: bytes) -> list[Item]:
    reader = Reader(body)
    count = reader.u16()
    if count > batch_items_max:
        raise PeerError(f"a batch of {count}; at most {batch_items_max} are allowed")
    items = []
    for _ in range(count):
        kind, size = _item_head.unpack(reader.take(_item_head.size))
        items.append((kind, reader.take(size)))
    reader.end()
    return items


def changed_answer(version: Version, expires_at_ms: int) -> bytes:
    return _changed.pack(version, expires_at_ms)


class ChangedAnswer(NamedTuple):
    version: Version
    expires_at_ms: int
    # What an increment has led to.
    value: int | None


def decode_changed(body: bytes) -> ChangedAnswer:
    if len(body) not in (_changed.size, _changed.size + i64.size):
        raise PeerError(f"{len(body)} bytes do not tell of a change")
    version, expires_at_ms = _changed.unpack_from(body)
    if expires_at_ms > time_ms_max:
        raise PeerError(f"{expires_at_ms} ms is later than any time")
    value = i64.unpack_from(body, _changed.size)[0] if len(body) > _changed.size else None
    return ChangedAnswer(version, expires_at_ms, value)


def refused_answer(code: str, text: str) -> bytes:
    """Of REFUSED and of INVALID."""
    return bytes((len(code),)) + code.encode() + text.encode()[:text_bytes_max]


def decode_refused(body: bytes) -> tuple[str, str]:
    """A code of the catalogue of errors, and the text for people."""
    reader = Reader(body)
    code = reader.take(reader.u8())
    return code.decode("ascii", "replace"), reader.rest().decode("utf-8", "replace")


def unknown_answer(operation: Version, text: str) -> bytes:
    return operation + text.encode()[:text_bytes_max]


def decode_unknown(body: bytes) -> tuple[Version, str]:
    reader = Reader(body)
    return reader.take(version_bytes), reader.rest().decode("utf-8", "replace")
