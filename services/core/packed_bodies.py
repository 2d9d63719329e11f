"""Bodies of messages that come seldom: msgspec structs, packed by msgpack.

The structs stand in listings.py, namespaces.py, declarations.py and deletions.py. There are none in
messages.py and operations.py, which pack theirs by hand, and are compiled as no structs can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from services.core.errors import PeerError

T = TypeVar("T")


def encode_body(body: msgspec.Struct | Sequence[msgspec.Struct]) -> bytes:
    return msgspec.msgpack.encode(body)


def decode_body(body: bytes, of: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(body, type=of)
    except ValueError as error:
        # Of msgspec, all of whose errors are ValueErrors, as is that of a text that is not UTF-8.
        raise PeerError(f"not a message of the form that is due: {error}") from error
