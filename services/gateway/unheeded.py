"""Headers that a request about keys could only ignore. It is refused: who sends them counts on
them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.core.errors import FixRequest

# How the names begin under which options.py tells of metadata; the others are told by their names.
metadata_mark: Final = b"x-metadata-"
content_encoding: Final = b"content-encoding"
content_range: Final = b"content-range"
_dates: Final = frozenset((b"if-modified-since", b"if-unmodified-since"))

_reads: Final = frozenset((b"GET", b"HEAD"))
_keeping: Final = frozenset((b"PATCH", b"POST"))
# A body that is as it is.
_as_it_is: Final = frozenset((b"", b"identity"))


def is_noted(name: bytes, value: bytes) -> bool:
    """Whether some method could only ignore this header, which is none of metadata."""
    if name == content_encoding:
        return value.lower() not in _as_it_is
    return name in _dates or name == content_range


def check_heeded(method: bytes, names: Iterable[bytes]) -> None:
    """FixRequest if one of the headers with these names has no effect on the method."""
    for name in names:
        if name == content_encoding:
            if method == b"PUT":
                raise FixRequest(
                    "unsupported_media_type",
                    "Content-Encoding is not kept with a value: leave it out, and tell of the "
                    "encoding in your own Content-Type, or in an X-Metadata header",
                )
        elif name == content_range:
            if method == b"PUT":
                raise FixRequest(
                    "invalid_header",
                    "Content-Range: a PUT replaces the whole value; leave it out",
                )
        elif name == metadata_mark:
            if method in _keeping:
                raise FixRequest(
                    "invalid_header",
                    "X-Metadata headers come with a PUT: this request keeps those that are there",
                )
        elif method not in _reads:
            shown = "-".join(part.capitalize() for part in name.decode("ascii").split("-"))
            raise FixRequest(
                "invalid_header",
                f"{shown} is no condition of a change: give the etag of the value in If-Match",
            )


def check_no_metadata(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """FixRequest if there is metadata, which a batch keeps with none of its values."""
    if any(name.startswith(metadata_mark) for name, _ in fields):
        raise FixRequest(
            "invalid_header",
            "X-Metadata headers come with a PUT of a single key: a batch keeps none; leave them "
            "out",
        )
