"""How answers about one key look: header lines and bodies, put together from bytes.

Every answer of the hot path passes through here. Nothing is formatted that can be kept: dates are
made once for each second that values were written in.
"""

from __future__ import annotations

from email.utils import formatdate
from typing import Final, NamedTuple

import msgspec

from services.core.errors import ClientError
from services.core.hlc import Version, rfc3339, version_bytes
from services.core.record import Metadata, expires_at_ms, head_bytes, meta, plain
from services.runtime.problem import problem_parts

# The largest integer that every JSON reader keeps exact.
integer_exact_max: Final = (1 << 53) - 1
# Seconds in which values that are read at a time were written; more begin anew.
dates_max: Final = 4_096
# The last second that a date of HTTP can name, in the year 9999.
_date_s_max: Final = 253_402_300_799

_json_line: Final = b"Content-Type: application/json\r\n"
# A value is a tenant's own: no cache on the way may keep it for others, nor show it unasked.
_value_lines: Final = b"X-Content-Type-Options: nosniff\r\nCache-Control: private, no-cache\r\n"
_octets_line: Final = b"Content-Type: application/octet-stream\r\n" + _value_lines
# Of metadata that tells when the key came to be, and nothing else.
_meta_bytes_of_time: Final = 10

encode = msgspec.json.encode


class Answer(NamedTuple):
    status: int
    lines: bytes
    body: bytes


class Dates:
    """Last-Modified lines, by second."""

    def __init__(self) -> None:
        self._lines: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def line(self, version: Version) -> bytes:
        second = int.from_bytes(version[:6], "big") // 1000
        return self._lines.get(second) or self._make(second)

    def _make(self, second: int) -> bytes:
        if len(self._lines) >= dates_max:
            self._lines.clear()
        date = formatdate(min(second, _date_s_max), usegmt=True)
        line = self._lines[second] = b"Last-Modified: %s\r\n" % date.encode("ascii")
        return line


def value_lines(record: bytes, node_id: bytes, dates: Dates) -> bytes:
    """The header lines of a value, without those that are on every answer. PeerError if what is
    kept beside it makes no sense."""
    version = record[:version_bytes]
    lines = b'ETag: "%s"\r\n%sX-Node-ID: %s\r\n' % (
        version.hex().encode("ascii"),
        dates.line(version),
        node_id,
    )
    if record[version_bytes:head_bytes] == plain:
        return _octets_line + lines
    return lines + _unusual_lines(record)


def _unusual_lines(record: bytes) -> bytes:
    parts = []
    expiry_ms = expires_at_ms(record)
    if expiry_ms:
        parts.append(b"X-Expires-At: %s\r\n" % rfc3339(expiry_ms).encode("ascii"))
    kept = meta(record)
    content_type = b""
    if len(kept) > _meta_bytes_of_time:
        metadata = Metadata.decode(kept)
        content_type = metadata.content_type
        parts += [b"X-Metadata-%s: %s\r\n" % pair for pair in metadata.user]
    if content_type:
        parts += (b"Content-Type: %s\r\n" % content_type, _value_lines)
    else:
        parts.append(_octets_line)
    return b"".join(parts)


def changed_answer(
    key: bytes, placed: bytes, version: Version, consistency: bytes, expiry_ms: int
) -> Answer:
    """Of a put, a deletion or a new expiry. `placed` is `placed_members` of the key's slot."""
    expires_at = b'"%s"' % rfc3339(expiry_ms).encode("ascii") if expiry_ms else b"null"
    body = b'{"success":true,"key":%s%s"etag":"%s","consistency":"%s","expires_at":%s}' % (
        encode(key.decode()),
        placed,
        version.hex().encode("ascii"),
        consistency,
        expires_at,
    )
    return Answer(200, _json_line, body)


def placed_members(primary_node: str, copies: int) -> bytes:
    """Where a key is kept: the part of `changed_answer` that is the same for a whole slot."""
    return b',"primary_node":%s,"replicas":%d,' % (encode(primary_node), copies - 1)


def counted_answer(key: bytes, value: int, version: Version, expiry_ms: int) -> Answer:
    """Of an increment. A value that not every JSON reader keeps exact is told as text."""
    shown: int | str = value if abs(value) <= integer_exact_max else str(value)
    document = {
        "key": key.decode(),
        "value": shown,
        "etag": version.hex(),
        "expires_at": rfc3339(expiry_ms) if expiry_ms else None,
    }
    return Answer(200, _json_line, encode(document))


def problem_answer(error: ClientError, request_id: bytes) -> Answer:
    return Answer(*problem_parts(error, request_id))
