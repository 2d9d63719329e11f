"""Batches: many operations in one request, each by itself, and what became of each."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from services.core.operations import batch_items_max
from services.gateway.messages_keys import Etag, Time
from services.runtime.request_body import invalid_members

Op = Literal["put", "get", "delete"]
Key = Annotated[str, Meta(description="1 to 1024 bytes of UTF-8; any other is refused by itself")]


class PutItem(msgspec.Struct, frozen=True, tag_field="op", tag="put", forbid_unknown_fields=True):
    """`value` is text, kept as UTF-8; `value_base64` is any bytes. One of the two."""

    key: Key
    value: str | None = None
    value_base64: str | None = None
    ttl: Annotated[str | int | None, Meta(description="Such as 90s, 1h30m, 7d, or seconds")] = None


class GetItem(msgspec.Struct, frozen=True, tag_field="op", tag="get", forbid_unknown_fields=True):
    """Its value is told as it can be put: as `value` if it is UTF-8, else as `value_base64`; with
    the encoding `base64` always so."""

    key: Key
    encoding: Literal["auto", "base64"] = "auto"


class DeleteItem(
    msgspec.Struct, frozen=True, tag_field="op", tag="delete", forbid_unknown_fields=True
):
    key: Key


Item = PutItem | GetItem | DeleteItem
op_of: Final[dict[type, Op]] = {PutItem: "put", GetItem: "get", DeleteItem: "delete"}


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    operations: Annotated[list[Item], Meta(max_length=batch_items_max)]


# The list alone, of items as they are. Decoding it stops at one too many; as a Batch all are made
# before they are counted, which for 700,000 takes a tenth of a second.
_Bounded = msgspec.defstruct(
    "_Bounded",
    [(f"item_{number}", msgspec.Raw, msgspec.Raw(b"null")) for number in range(batch_items_max)],
    array_like=True,
    forbid_unknown_fields=True,
)
_Outline: Final = msgspec.defstruct("_Outline", [("operations", _Bounded)])


def look_at_length(body: bytes) -> None:
    """FixRequest if there are too many operations; whatever else is wrong decoding finds."""
    try:
        msgspec.json.decode(body, type=_Outline)
    except msgspec.ValidationError as error:
        if "of at most length" in str(error):
            problem = f"must have at most {batch_items_max} elements"
            raise invalid_members([("operations", problem)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one operation: what it would have been answered alone, with its status. An
    error has a `code` and what it says to people; nothing else has."""

    op: Op
    key: str
    status: int
    success: bool | UnsetType = UNSET
    # Of a get: one of the two.
    value: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    created_at: Time | UnsetType = UNSET
    updated_at: Time | UnsetType = UNSET
    etag: Etag | UnsetType = UNSET
    consistency: Literal["eventual", "strong"] | UnsetType = UNSET
    expires_at: Time | UnsetType | None = UNSET
    code: str | UnsetType = UNSET
    error: str | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    operation_id: str | UnsetType = UNSET


class BatchAnswer(msgspec.Struct, frozen=True):
    """One result for each operation, in their order."""

    results: list[Result]
