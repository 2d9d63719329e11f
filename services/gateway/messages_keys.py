"""What is asked about many keys, and what is told of them, as JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from services.core.key import key_bytes_max, namespace_bytes_max
from services.core.listings import list_limit_max
from services.gateway.cursors import Cursor
from services.runtime.text_members import code

limit_default: Final = 100
_invalid_key: Final = code("invalid_key")

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Etag = Annotated[str, Meta(description="Of this version of the value; bare, as If-Match takes it")]
Namespace = Annotated[
    str,
    Meta(
        description=f"The keyspace that keys are in: 1 to {namespace_bytes_max} bytes of UTF-8 "
        "without control characters",
        extra=code("invalid_namespace"),
        # It is looked at in bytes.
        extra_json_schema={"minLength": 1, "maxLength": namespace_bytes_max},
    ),
]
Prefix = Annotated[
    str,
    Meta(
        description=f"What keys begin with, at most {key_bytes_max} bytes",
        extra=_invalid_key,
        extra_json_schema={"maxLength": key_bytes_max},
    ),
]
Consistency = Annotated[
    Literal["eventual", "strong"],
    Meta(
        description="strong: linearizable, by a majority of the replicas of each key",
        extra=code("invalid_consistency"),
    ),
]


NoCondition = Annotated[
    str,
    Meta(
        max_length=0,
        description="Only requests about a single key can have conditions",
        extra=code("invalid_header", "conditions are for single keys only; leave it out"),
    ),
]
_names: Final = {
    "namespace": "X-Namespace",
    "consistency": "X-Consistency",
    "if_match": "If-Match",
    "if_none_match": "If-None-Match",
    "if_modified_since": "If-Modified-Since",
    "if_unmodified_since": "If-Unmodified-Since",
}


class ManyHeaders(msgspec.Struct, frozen=True, rename=_names):
    """Of what is about many keys. What would have no effect is refused: who sends it counts on
    it."""

    namespace: Namespace = "default"
    consistency: Annotated[
        Literal["eventual"],
        Meta(
            description="What is about many keys is eventual, but for batches",
            extra=code(
                "invalid_consistency",
                "listings, and deletions by prefix, are always eventual; leave it out",
            ),
        ),
    ] = "eventual"
    if_match: NoCondition = ""
    if_none_match: NoCondition = ""


class ManyChangesHeaders(ManyHeaders, frozen=True, rename=_names):
    """Of what changes many keys. A time says nothing wrong of what is only read: it may be passed
    over there."""

    if_modified_since: NoCondition = ""
    if_unmodified_since: NoCondition = ""


class BatchHeaders(msgspec.Struct, frozen=True, rename=_names):
    namespace: Namespace = "default"
    consistency: Consistency = "eventual"
    if_match: NoCondition = ""
    if_none_match: NoCondition = ""
    if_modified_since: NoCondition = ""
    if_unmodified_since: NoCondition = ""


class UnconditionalHeaders(msgspec.Struct, frozen=True, rename=_names):
    """Of changes that are not about keys."""

    if_match: NoCondition = ""
    if_none_match: NoCondition = ""
    if_modified_since: NoCondition = ""
    if_unmodified_since: NoCondition = ""


class ListQuery(msgspec.Struct, frozen=True):
    prefix: Prefix = ""
    delimiter: Annotated[
        str,
        Meta(
            description="Keys that have it behind the prefix are told together, as one prefix",
            max_length=key_bytes_max,
            extra=_invalid_key,
        ),
    ] = ""
    limit: Annotated[int, Meta(ge=1, le=list_limit_max)] = limit_default
    cursor: Cursor = ""


class KeyInfo(msgspec.Struct, frozen=True):
    """A key, and of its value all but the bytes. `size` is theirs."""

    key: str
    size: int
    etag: Etag
    created_at: Time
    updated_at: Time
    expires_at: Time | None
    has_ttl: bool


class KeyPage(msgspec.Struct, frozen=True):
    """In the order of the keys' bytes. `count` is of keys and prefixes together; with a cursor
    there is more."""

    keys: list[KeyInfo]
    prefixes: list[str]
    count: int
    cursor: str | None


class DeleteQuery(msgspec.Struct, frozen=True):
    prefix: Annotated[Prefix, Meta(extra_json_schema={"minLength": 1})]
    dry_run: Annotated[bool, Meta(description="Count, and delete nothing")] = False
    cursor: Cursor = ""


class Deleted(msgspec.Struct, frozen=True):
    """`matched` keys were seen, and `deleted` of them deleted; with a cursor there are more."""

    matched: int
    deleted: int
    cursor: str | None
