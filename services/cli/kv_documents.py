"""A value that a gateway has answered with, as a line that can be imported."""

from __future__ import annotations

import base64
from typing import Final

import httpx
from msgspec import UNSET, UnsetType

from services.core.value_lines import WrittenLine, as_written

metadata_mark: Final = b"x-metadata-"
# What a gateway says of values whose type it was not told.
type_unsaid: Final = "application/octet-stream"


def line_of(key: str, answer: httpx.Response) -> WrittenLine:
    text: str | UnsetType = UNSET
    encoded: str | UnsetType = UNSET
    try:
        text = answer.content.decode()
    except UnicodeDecodeError:
        encoded = base64.b64encode(answer.content).decode()
    content_type = answer.headers.get("Content-Type", type_unsaid)
    metadata = {
        name[len(metadata_mark) :].decode("latin-1").lower(): as_written(value.decode("latin-1"))
        for name, value in answer.headers.raw
        if name.lower().startswith(metadata_mark)
    }
    return WrittenLine(
        key,
        text,
        encoded,
        answer.headers.get("X-Expires-At", UNSET),
        UNSET if content_type == type_unsaid else content_type,
        metadata or UNSET,
    )
