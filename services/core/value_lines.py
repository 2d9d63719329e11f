"""Keys and values as lines of JSON, one a key: what pages and commands import and export.

    {"key": "a", "value": "text", "expires_at": "2030-01-01T00:00:00Z", "metadata": {"by": "ada"}}
    {"key": "b", "value_base64": "AAEC", "content_type": "image/png"}
    {"key": "c", "value": "text", "ttl": "1h"}

`value` is text, kept as UTF-8, and `value_base64` any bytes; a line has one of the two. What is
exported can be imported as it is. Batches carry no content types and no metadata: lines with those
are put one by one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from services.core.record import value_bytes_max

# A value of control characters, each of them \u0000, and what may stand beside it.
line_bytes_max: Final = 8 * value_bytes_max


class ValueLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line as it is read. What is null is left out."""

    key: str
    value: str | None = None
    value_base64: str | None = None
    ttl: str | int | None = None
    expires_at: datetime | None = None
    content_type: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def goes_alone(self) -> bool:
        """Whether a batch has no place for what it says."""
        return bool(self.content_type or self.metadata)


class WrittenLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line as it is written; times are as a gateway tells them."""

    key: str
    value: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    expires_at: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET


class PutItem(msgspec.Struct, frozen=True, tag_field="op", tag="put", omit_defaults=True):
    """A line as an item of a batch."""

    key: str
    value: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    ttl: str | int | UnsetType = UNSET


class GotItem(msgspec.Struct, frozen=True):
    """What a batch tells of a key that was read, or was not."""

    key: str
    status: int
    code: str = ""
    detail: str = ""
    value: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    expires_at: str | UnsetType | None = UNSET

    def line(self) -> WrittenLine:
        metadata = self.metadata
        if metadata is not UNSET:
            metadata = {name: as_written(text) for name, text in metadata.items()}
        return WrittenLine(
            self.key,
            self.value,
            self.value_base64,
            self.expires_at or UNSET,
            self.content_type,
            metadata,
        )


class GotItems(msgspec.Struct, frozen=True):
    results: list[GotItem]


_decoder: Final = msgspec.json.Decoder(ValueLine)


def decode_line(line: bytes) -> ValueLine:
    """What a line says to put; msgspec.MsgspecError, or ValueError with words for people, if it
    says nothing that could be put."""
    found = _decoder.decode(line)
    if (found.value is None) == (found.value_base64 is None):
        raise ValueError("it has to have value or value_base64, one of the two")
    if found.ttl is not None and found.expires_at is not None:
        raise ValueError("it has both ttl and expires_at")
    if found.expires_at is not None and found.expires_at.tzinfo is None:
        raise ValueError("expires_at has no time zone; end it with Z")
    return found


def as_written(text: str) -> str:
    """Gateways tell the bytes of metadata one by one; most who write some mean UTF-8."""
    try:
        return text.encode("latin-1").decode()
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text
