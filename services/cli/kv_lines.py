"""What a line of an import says to put; what is wrong with it, in the words of people."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET

from services.cli.kv_reading import Line
from services.core.value_lines import PutItem, ValueLine, decode_line, line_bytes_max
from services.runtime.plain_words import in_words

_located: Final = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>.*)`", re.DOTALL)


@dataclass(slots=True, frozen=True)
class Put:
    """One line that is to be put; `item` is what a batch has of it."""

    number: int
    line: ValueLine
    ttl: str | int | None
    item: bytes

    @property
    def content(self) -> bytes:
        """ValueError if it is not what it is said to be."""
        if self.line.value is not None:
            return self.line.value.encode()
        try:
            return binascii.a2b_base64(self.line.value_base64 or "", strict_mode=True)
        except binascii.Error as error:
            raise ValueError(f"value_base64 is not base64: {error}") from None


def put_of(line: Line, now_ms: int) -> Put | None:
    """None if what it says has expired meanwhile; ValueError, in words, if it is wrong."""
    found = _decoded(line)
    ttl = found.ttl
    if found.expires_at is not None:
        left_ms = round(found.expires_at.timestamp() * 1000) - now_ms
        if left_ms <= 0:
            return None
        ttl = f"{left_ms}ms"
    item = PutItem(
        found.key,
        UNSET if found.value is None else found.value,
        UNSET if found.value_base64 is None else found.value_base64,
        UNSET if ttl is None else ttl,
    )
    return Put(line.number, found, ttl, msgspec.json.encode(item))


def _decoded(line: Line) -> ValueLine:
    if line.text is None:
        raise ValueError(f"it is longer than {line_bytes_max} bytes, and so than any value")
    try:
        return decode_line(line.text)
    except msgspec.ValidationError as error:
        match = _located.fullmatch(str(error))
        what, where = (match["what"], match["where"]) if match else (str(error), "")
        raise ValueError(f"{where}: {in_words(what)}" if where else in_words(what)) from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
