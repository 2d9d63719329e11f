"""Cursors: where a listing goes on, in a form that is good for that listing alone.

    cursor:  base64url of  seal 16  ·  place

The seal is an HMAC, under a subkey of the cluster's secret, of the place and of all that the
listing was asked for: whose it is, which namespace, prefix and so on. So every gateway takes the
cursors of every other, and a cursor that was made up, cut, or given to another tenant or for
another query is told from one that was given for this. It is no secret: the place in it is a key
that whoever has the cursor was shown or may be shown next.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable
from typing import Annotated, Final

from msgspec import Meta

from services.core.errors import FixRequest
from services.core.key import key_bytes_max
from services.core.subkey import subkey
from services.runtime.text_members import code

purpose_cursors: Final = b"ydht cursors"
_seal_bytes: Final = 16
# A place may be a byte longer than a key: the next one behind it.
cursor_chars_max: Final = -(-(_seal_bytes + key_bytes_max + 1) // 3) * 4

# Empty is as good as none, for clients that fill in a form.
Cursor = Annotated[
    str,
    Meta(
        max_length=cursor_chars_max,
        description="Where to go on: the `cursor` of the answer before, to the same query",
        extra=code("invalid_cursor"),
    ),
]


class Cursors:
    def __init__(self, cluster_secret: str) -> None:
        self._key = subkey(cluster_secret, purpose_cursors)

    def make(self, query: Iterable[bytes], place: bytes) -> str:
        """A cursor for whoever asks exactly this. `query` is all that has to stay the same."""
        return base64.urlsafe_b64encode(self._seal(query, place) + place).decode().rstrip("=")

    def read(self, query: Iterable[bytes], cursor: str) -> bytes:
        """The place, empty without a cursor; FixRequest `invalid_cursor` if it is not one that was
        made for this query."""
        if not cursor:
            return b""
        try:
            sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            sealed = b""
        seal, place = sealed[:_seal_bytes], sealed[_seal_bytes:]
        if not hmac.compare_digest(seal, self._seal(query, place)):
            raise FixRequest(
                "invalid_cursor",
                "The cursor was not given for this query: send back the one of the answer before, "
                "with all other parameters and headers as they were",
            )
        return place

    def _seal(self, query: Iterable[bytes], place: bytes) -> bytes:
        parts = (*query, place)
        # With their lengths, so that nothing can move from one part into the next.
        whole = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, whole, "sha256")[:_seal_bytes]
