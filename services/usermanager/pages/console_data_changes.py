"""What the data pages send to the gateway for one key: conditions, expiry, and what is kept beside
a value, checked before it becomes headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import httpx
import msgspec

from services.core.errors import FixRequest
from services.core.hlc import parse_etag
from services.core.key import check_namespace
from services.core.record import (
    Metadata,
    metadata_name_bytes_max,
    user_metadata_bytes_max,
)
from services.usermanager.pages.console_data_links import consistency_header, namespace_header

metadata_mark: Final = "x-metadata-"
# What scripts send it all in, as JSON of ASCII. It stands in no address, which proxies log.
metadata_header: Final = "X-Metadata"
# What the gateway says of a value that was put without a type.
type_unsaid: Final = "application/octet-stream"
# As names of headers are, in lower case.
_metadata_name: Final = re.compile(
    rf"[!#$%&'*+\-.^_`|~0-9a-z]{{1,{metadata_name_bytes_max}}}", re.ASCII
)
# What would break a header into two.
_control: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_shown_chars_max: Final = 40
# A condition that no etag is: there must be no value yet.
absent: Final = "absent"


@dataclass(slots=True, frozen=True)
class Facts:
    """A value but for its bytes, as the gateway tells in headers."""

    etag: str
    size: int
    updated: str
    expires_at: str
    content_type: str
    metadata: dict[str, str]
    node_id: str


def facts_of(answer: httpx.Response) -> Facts:
    headers = answer.headers
    return Facts(
        etag=headers.get("etag", "").strip('"'),
        size=int(headers.get("content-length", "0")),
        updated=headers.get("last-modified", ""),
        expires_at=headers.get("x-expires-at", ""),
        content_type=headers.get("content-type", "").removesuffix(type_unsaid),
        metadata={
            name.decode("ascii").lower().removeprefix(metadata_mark): text_of(value)
            for name, value in headers.raw
            if name.lower().startswith(metadata_mark.encode())
        },
        node_id=headers.get("x-node-id", ""),
    )


def text_of(value: bytes) -> str:
    """What a header says: UTF-8, as these pages write it, or else what all of them once were."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def where(namespace: str, consistency: str = "") -> dict[str, str]:
    """The headers that say which keys are meant; FixRequest for a name that no header can carry."""
    check_header_name(namespace)
    headers = {namespace_header: namespace}
    if consistency:
        headers[consistency_header] = consistency
    return headers


def check_header_name(namespace: str) -> None:
    """FixRequest unless keys in a namespace of this name can be asked for."""
    check_namespace(namespace.encode())
    if namespace != namespace.strip(" "):
        raise FixRequest(
            "invalid_namespace",
            "the namespace begins or ends with a blank, which no header can have there",
        )


def conditioned(condition: str) -> dict[str, str]:
    """`condition` is an etag, or `absent`, or nothing; FixRequest if it is anything else."""
    if not condition:
        return {}
    if condition == absent:
        return {"If-None-Match": "*"}
    tag = f'"{condition}"'
    parse_etag(tag)
    return {"If-Match": tag}


def kept_beside(content_type: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """The headers of what is kept with a value; FixRequest if it cannot be."""
    if not content_type.isascii():
        raise FixRequest("invalid_header", "A content type has only characters of ASCII")
    lower = {name.lower(): text for name, text in metadata.items()}
    if len(lower) != len(metadata):
        raise FixRequest("invalid_header", "Names of metadata differ by more than capital letters")
    Metadata(content_type=content_type.encode(), user=_pairs(lower))
    headers = {f"X-Metadata-{name}": text for name, text in lower.items()}
    return {**headers, "Content-Type": content_type} if content_type else headers


def _pairs(metadata: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    """FixRequest where they cannot be kept, in words for who has typed them into fields of a page
    and knows of no headers."""
    for name, text in metadata.items():
        short = name if len(name) <= _shown_chars_max else f"{name[:_shown_chars_max]}…"
        if not name:
            raise FixRequest("invalid_header", "Give every piece of metadata a name")
        if _metadata_name.fullmatch(name) is None:
            raise FixRequest(
                "invalid_header",
                f"{short} cannot be a name: use up to {metadata_name_bytes_max} letters from a to "
                "z, digits, - and _",
            )
        if text != text.strip(" \t") or _control.search(text):
            raise FixRequest(
                "invalid_header",
                f"What stands under {short} begins or ends with a blank, or has a control "
                "character in it",
            )
    pairs = tuple((name.encode(), text.encode()) for name, text in metadata.items())
    total = sum(len(name) + len(text) for name, text in pairs)
    if total > user_metadata_bytes_max:
        raise FixRequest(
            "metadata_too_large",
            f"Names and contents have {total} bytes together; {user_metadata_bytes_max} is the "
            "most",
        )
    return pairs


def metadata_of(text: str) -> dict[str, str]:
    """Metadata as a script sends it in a header: a JSON object of texts, or nothing."""
    try:
        return msgspec.json.decode(text, type=dict[str, str]) if text else {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FixRequest("invalid_header", f"metadata: {error}") from None


def ttl_of(ttl: str, expires_at: datetime | None, now_ms: int) -> str:
    """The time to live of a value; of one that keeps its expiry, what is left of it. FixRequest if
    that is nothing."""
    if expires_at is None:
        return ttl
    left_ms = round(expires_at.timestamp() * 1000) - now_ms
    if left_ms <= 0:
        raise FixRequest(
            "invalid_ttl", "The expiry to keep has passed meanwhile: choose another one"
        )
    return f"{left_ms}ms"
