"""Records: a value or a tombstone as ordered bytes.

    record:    version 12  ·  flags u8  ·  expires_at_ms u64  ·  meta_len u16  ·  meta  ·  value
    meta:      nothing, or
               format u8 (1)  ·  created_at_ms u64  ·  type_len u8  ·  content type  ·  pair …
    pair:      name_len u8  ·  name  ·  value_len u16  ·  value           of an X-Metadata-* header

All integers are big-endian. A record is one `bytes` object from the socket to the table and the
log, so that a key costs no Python objects besides it. The version is its prefix: of two records
the greater bytes win (`merge`), which is last-writer-wins, and settles records of one version
with different contents in the same way everywhere.

`expires_at_ms` is 0 for never. `created_at_ms` is 0 where the version itself tells the time, and
a `meta` that would hold nothing but defaults is empty, so that a plain value pays 23 bytes.
A tombstone is the flag and nothing else: every replica makes the same bytes of one deletion.

The functions on bytes are for the hot path. They trust their argument: `check` a record once,
where it enters the process. `Record` and `Metadata` are for everything else. This is not a place
for rules: who may overwrite what, and when, is decided by those who hold records.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from struct import Struct

from services.core.errors import FixRequest, PeerError
from services.core.hlc import Version, time_ms_max, version_bytes, version_ms

# What clients may store under one key. A link frame holds a batch of them with room to spare.
value_bytes_max = 1 << 20
# All names and values of a key's X-Metadata-* headers together, as clients are told it.
user_metadata_bytes_max = 1024
# Its length is one byte, and so is that of a metadata name; longer ones are abuse.
content_type_bytes_max = 255
metadata_name_bytes_max = 255
# Enough of a name to recognise it.
_shown_name_bytes = 40

head_bytes = 23
_meta_format = 1
_meta_fixed_bytes = 1 + 8 + 1
# The worst case is a thousand names of one byte with empty values.
_pair_fixed_bytes = 1 + 2
meta_bytes_max = (
    _meta_fixed_bytes + content_type_bytes_max + user_metadata_bytes_max * (1 + _pair_fixed_bytes)
)
record_bytes_max = head_bytes + meta_bytes_max + value_bytes_max

_flag_tombstone = 1
_never = bytes(8)
_body_head = Struct(">BQH")
# What stands behind the version of a value without expiry and metadata, as most are.
plain = _body_head.pack(0, 0, 0)
_plain_bytes_max = head_bytes + value_bytes_max
_meta_head = Struct(">BQB")
# What may stand in an HTTP field: an answer repeats it to clients, so that a line break in it
# would let a tenant forge headers.
_field_name = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_field_value = re.compile(
    rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?"
)

# A record without its version, as a gateway sends it to be stamped: `version + body`.
tombstone_body = _body_head.pack(_flag_tombstone, 0, 0)


def value_body(value: bytes, expires_at_ms: int = 0, meta: bytes = b"") -> bytes:
    """Everything of a value's record but the version. The caller has checked the limits."""
    return _body_head.pack(0, expires_at_ms, len(meta)) + meta + value


def joined_body(expires_at_ms: int, meta_bytes: int, meta_and_value: bytes) -> bytes:
    """As `value_body`, of metadata and a value that are one piece already."""
    return _body_head.pack(0, expires_at_ms, meta_bytes) + meta_and_value


def restamp(record: bytes, new_version: Version) -> bytes:
    """The same contents under another version."""
    return new_version + record[version_bytes:]


def merge(one: bytes, other: bytes) -> bytes:
    """The record that stays when both are known: the later version."""
    return max(one, other)


def version(record: bytes) -> Version:
    return record[:12]


def is_tombstone(record: bytes) -> bool:
    return record[12] == _flag_tombstone


def expires_at_ms(record: bytes) -> int:
    """When the value stops being visible; 0 is never."""
    return int.from_bytes(record[13:21], "big")


def expired(record: bytes, now_ms: int) -> bool:
    """Whether the value's time is up: the moment it expires at is already too late."""
    expiry = record[13:21]
    return expiry != _never and int.from_bytes(expiry, "big") <= now_ms


def visible(record: bytes, now_ms: int) -> bool:
    """Whether a client sees a value here: neither deleted nor expired."""
    return record[12] != _flag_tombstone and not expired(record, now_ms)


def meta(record: bytes) -> bytes:
    """The encoded metadata, for `Metadata.decode`. Empty for most values."""
    return record[23 : 23 + int.from_bytes(record[21:23], "big")]


def created_at_ms(record: bytes) -> int:
    """When the key came to be, by its metadata, or with this very version."""
    data = meta(record)
    return (int.from_bytes(data[1:9], "big") if data else 0) or version_ms(record)


def with_created_at(data: bytes, time_ms: int) -> bytes:
    """Encoded metadata with another time at which the key came to be."""
    if not data:
        return _meta_head.pack(_meta_format, time_ms, 0)
    return data[:1] + time_ms.to_bytes(8, "big") + data[9:]


def value(record: bytes) -> bytes:
    return record[23 + int.from_bytes(record[21:23], "big") :]


def value_bytes(record: bytes) -> int:
    """How long the value is, without copying it."""
    return len(record) - head_bytes - int.from_bytes(record[21:23], "big")


def check(record: bytes) -> bytes:
    """The record itself if every function above may be used on it, else `PeerError`.

    What stands inside of `meta` is not looked at; `Metadata.decode` does, for whoever needs it.
    """
    if record[version_bytes:head_bytes] == plain and len(record) <= _plain_bytes_max:
        return record
    if len(record) < head_bytes:
        raise PeerError(f"a record is at least {head_bytes} bytes, not {len(record)}")
    flags, expiry_ms, meta_len = _body_head.unpack_from(record, version_bytes)
    if flags > _flag_tombstone:
        raise PeerError(f"a record has unknown flags {flags:#x}; is the peer a newer version?")
    if flags == _flag_tombstone and record[version_bytes:] != tombstone_body:
        raise PeerError("a tombstone carries an expiry, metadata or a value")
    if expiry_ms > time_ms_max:
        raise PeerError(f"a record expires at {expiry_ms} ms, which is later than any time")
    value_len = len(record) - head_bytes - meta_len
    if meta_len > meta_bytes_max or value_len < 0:
        raise PeerError(f"a record of {len(record)} bytes cannot have {meta_len} of metadata")
    if value_len > value_bytes_max:
        raise PeerError(f"a record holds a value of {value_len} bytes, above {value_bytes_max}")
    return record


@dataclass(slots=True, frozen=True)
class Metadata:
    """What is kept beside a value. Names are lower case and without `X-Metadata-`.

    Making one checks it against what an HTTP answer can carry and the limits above: `FixRequest`
    names what is wrong. `created_at_ms` is 0 where the version of the record tells the time.
    """

    created_at_ms: int = 0
    content_type: bytes = b""
    user: tuple[tuple[bytes, bytes], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.created_at_ms <= time_ms_max:
            raise ValueError(f"{self.created_at_ms} ms is no time that a version could have")
        if len(self.content_type) > content_type_bytes_max:
            raise FixRequest(
                "invalid_header",
                f"Content-Type is {len(self.content_type)} bytes; at most "
                f"{content_type_bytes_max} are kept",
            )
        if not _field_value.fullmatch(self.content_type):
            raise FixRequest("invalid_header", "Content-Type contains a control character")
        if self.user:
            object.__setattr__(self, "user", tuple(sorted(self.user)))
            self._check_user()

    def _check_user(self) -> None:
        total = 0
        previous = b""
        for name, text in self.user:
            ellipsis = "…" if len(name) > _shown_name_bytes else ""
            shown = "X-Metadata-" + name[:_shown_name_bytes].decode("latin-1") + ellipsis
            if not 1 <= len(name) <= metadata_name_bytes_max:
                raise FixRequest(
                    "invalid_header",
                    f"{shown}: {len(name)} characters follow X-Metadata-; a name has 1 to "
                    f"{metadata_name_bytes_max}",
                )
            if not _field_name.fullmatch(name):
                raise FixRequest(
                    "invalid_header", f"{shown!r} is no name of a header in lower case"
                )
            if name == previous:
                raise FixRequest("invalid_header", f"{shown} is given more than once")
            if not _field_value.fullmatch(text):
                raise FixRequest(
                    "invalid_header", f"{shown} contains a control character or outer blanks"
                )
            previous = name
            total += len(name) + len(text)
        if total > user_metadata_bytes_max:
            raise FixRequest(
                "metadata_too_large",
                f"names and values of the X-Metadata-* headers are {total} bytes together; at "
                f"most {user_metadata_bytes_max} are allowed",
            )

    def encode(self) -> bytes:
        if not (self.created_at_ms or self.content_type or self.user):
            return b""
        parts = [
            _meta_head.pack(_meta_format, self.created_at_ms, len(self.content_type)),
            self.content_type,
        ]
        for name, text in self.user:
            parts += (bytes((len(name),)), name, len(text).to_bytes(2, "big"), text)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Metadata:
        """The metadata of these bytes; `PeerError` unless `encode` could have made them."""
        if not data:
            return _no_metadata
        if data[0] != _meta_format:
            raise PeerError(f"metadata of the unknown format {data[0]}; is the peer newer?")
        reader = _Reader(data)
        _, created_at_ms, type_len = _meta_head.unpack(reader.take(_meta_fixed_bytes))
        content_type = reader.take(type_len)
        user = []
        while reader.left():
            name = reader.take(reader.take(1)[0])
            user.append((name, reader.take(int.from_bytes(reader.take(2), "big"))))
        try:
            metadata = cls(created_at_ms, content_type, tuple(user))
        except (FixRequest, ValueError) as error:
            raise PeerError(f"metadata that no client could have stored: {error}") from error
        if metadata.encode() != data:
            raise PeerError("metadata that is not in its one canonical form")
        return metadata


@dataclass(slots=True, frozen=True)
class Record:
    """A whole record, taken apart."""

    version: Version
    value: bytes = b""
    expires_at_ms: int = 0
    metadata: Metadata = field(default_factory=Metadata)
    tombstone: bool = False

    def __post_init__(self) -> None:
        if len(self.version) != version_bytes:
            raise ValueError(f"a version is {version_bytes} bytes, not {len(self.version)}")
        if not 0 <= self.expires_at_ms <= time_ms_max:
            raise ValueError(f"{self.expires_at_ms} ms is no time that a version could have")
        if self.tombstone and (self.value or self.expires_at_ms or self.metadata != _no_metadata):
            raise ValueError("a tombstone carries nothing but its version")
        if len(self.value) > value_bytes_max:
            raise FixRequest(
                "value_too_large",
                f"the value is {len(self.value)} bytes; at most {value_bytes_max} are allowed",
            )

    @property
    def created_at_ms(self) -> int:
        return self.metadata.created_at_ms or self.updated_at_ms

    @property
    def updated_at_ms(self) -> int:
        return version_ms(self.version)

    def encode(self) -> bytes:
        if self.tombstone:
            return self.version + tombstone_body
        return self.version + value_body(self.value, self.expires_at_ms, self.metadata.encode())

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """The record of these bytes; `PeerError` unless `encode` could have made them."""
        check(data)
        return cls(
            version=version(data),
            value=value(data),
            expires_at_ms=expires_at_ms(data),
            metadata=Metadata.decode(meta(data)),
            tombstone=is_tombstone(data),
        )


_no_metadata = Metadata()


class _Reader:
    """Takes bytes off the front of metadata; running past the end is the peer's fault."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def left(self) -> bool:
        return self._position < len(self._data)

    def take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise PeerError(f"metadata of {len(self._data)} bytes ends inside of a field")
        taken = self._data[self._position : end]
        self._position = end
        return taken
