"""The requests about one key, `/v1/kv/{key}`, as openapi.json describes them.

They are answered by the lane (kv.py), which reads them from bytes; so nothing here is enforced, and
a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from services.core.key import key_bytes_max
from services.core.operations import day_ms, ttl_ms_max
from services.core.record import user_metadata_bytes_max, value_bytes_max
from services.gateway.messages_keys import Consistency, Etag, Namespace, Time
from services.runtime.endpoints import Access, Endpoint, Raw
from services.runtime.text_members import code

_path: Final = "/v1/kv/{key:path}"
_increment_path: Final = "/v1/kv/{key:path}/incr"
_unfound: Final = ("key_not_found",)
_named: Final = ("invalid_key", "key_too_long", "key_not_allowed")
_reading: Final = (
    *_named,
    *_unfound,
    "no_quorum",
    "no_replicator",
    "overloaded",
    "cluster_forming",
)
_changing: Final = (
    *_named,
    "precondition_failed",
    "no_quorum",
    "no_replicator",
    "overloaded",
    "clock_skew",
    "cluster_forming",
    "shutting_down",
    "unknown_outcome",
)

_Ttl = Annotated[
    str,
    Meta(
        description="How long the value lives: 90s, 1h30m, 7d, or seconds; at most "
        f"{ttl_ms_max // day_ms} days",
        extra=code("invalid_ttl"),
    ),
]
_IfMatch = Annotated[
    str | None,
    Meta(
        description="The etags that the value may have, in double quotes, or * for any: else 412. "
        "Makes the request strong",
    ),
]
_RequestId = Annotated[
    str | None, Meta(description="1 to 128 visible ASCII characters; comes back with the answer")
]
_renamed: Final = {
    "namespace": "X-Namespace",
    "consistency": "X-Consistency",
    "if_match": "If-Match",
    "if_none_match": "If-None-Match",
    "request_id": "X-Request-ID",
    "etag": "ETag",
    "last_modified": "Last-Modified",
    "expires_at": "X-Expires-At",
    "node_id": "X-Node-ID",
}


class KeyPath(msgspec.Struct, frozen=True):
    key: Annotated[
        str,
        Meta(
            description=f"Everything behind /v1/kv/, percent-encoded; slashes may stay as they "
            f"are. 1 to {key_bytes_max} bytes of UTF-8",
            extra_json_schema={"minLength": 1, "maxLength": key_bytes_max},
        ),
    ]


class TtlQuery(msgspec.Struct, frozen=True):
    ttl: _Ttl | None = None


class NewTtlQuery(msgspec.Struct, frozen=True):
    ttl: Annotated[_Ttl, Meta(description="As of a PUT; 0 for none")]


class IncrementQuery(msgspec.Struct, frozen=True):
    by: int = 1


class ReadHeaders(msgspec.Struct, frozen=True, rename=_renamed):
    namespace: Namespace = "default"
    consistency: Consistency = "eventual"
    if_none_match: Annotated[
        str | None, Meta(description="Etags of values that the client has: 304 if it is one")
    ] = None
    request_id: _RequestId = None


class PutHeaders(msgspec.Struct, frozen=True, rename=_renamed):
    namespace: Namespace = "default"
    consistency: Consistency = "eventual"
    if_match: _IfMatch = None
    if_none_match: Annotated[
        str | None, Meta(description="*: there must be no value, else 412. Makes it strong")
    ] = None
    request_id: _RequestId = None


class ChangeHeaders(msgspec.Struct, frozen=True, rename=_renamed):
    namespace: Namespace = "default"
    consistency: Consistency = "eventual"
    if_match: _IfMatch = None
    request_id: _RequestId = None


class ValueHeaders(msgspec.Struct, frozen=True, rename=_renamed):
    """And X-Metadata-*, as they came with the value."""

    etag: Annotated[str, Meta(description="Of this version of the value")]
    last_modified: Annotated[str, Meta(description="When it was written, to the second")]
    node_id: Annotated[str, Meta(description="The node that answered")]
    expires_at: Annotated[Time | None, Meta(description="When it ends, if it does")] = None


class Changed(msgspec.Struct, frozen=True):
    success: bool
    key: str
    primary_node: Annotated[str, Meta(description="The first of the nodes that keep this key")]
    replicas: Annotated[int, Meta(description="How many more keep it")]
    etag: Etag
    consistency: Consistency
    expires_at: Time | None


class Counted(msgspec.Struct, frozen=True):
    key: str
    value: Annotated[int | str, Meta(description="As text beyond 2^53")]
    etag: Etag
    expires_at: Time | None


_value: Final = Raw("The value, of whatever type it was put with", ("*/*",))
_body: Final = Raw(
    f"Any bytes, at most {value_bytes_max}; the Content-Type is kept with them",
    ("application/octet-stream", "text/plain"),
)


def _of_key(method: str, name: str, summary: str, **more: Any) -> Endpoint:
    return Endpoint(
        method,
        more.pop("path", _path),
        name,
        summary,
        handler=None,
        access=Access.API_KEY,
        path_type=KeyPath,
        tag="Key",
        **more,
    )


def endpoints() -> Sequence[Endpoint]:
    not_modified = {304: "The client has this value: one of If-None-Match"}
    reading: dict[str, Any] = {
        "scope": "read",
        "header_type": ReadHeaders,
        "answer_headers": ValueHeaders,
        "also": not_modified,
        "errors": _reading,
    }
    changing: dict[str, Any] = {
        "scope": "write",
        "header_type": ChangeHeaders,
        "answer_type": Changed,
    }
    return (
        _of_key("GET", "getValue", "Get a value", answer_type=_value, **reading),
        _of_key("HEAD", "headValue", "Get what a value comes with, without the value", **reading),
        _of_key(
            "PUT",
            "putValue",
            "Put a value",
            query_type=TtlQuery,
            body_type=_body,
            body_optional=True,
            description="Headers X-Metadata-* are kept with it, names and values at most "
            f"{user_metadata_bytes_max} bytes together; Content-Encoding is not, and is refused.",
            errors=(
                *_changing,
                "value_too_large",
                "metadata_too_large",
                "unsupported_media_type",
                "storage_full",
            ),
            **{**changing, "header_type": PutHeaders},
        ),
        _of_key(
            "DELETE",
            "deleteValue",
            "Delete a value; also if there is none",
            errors=(*_changing, "invalid_body"),
            **changing,
        ),
        _of_key(
            "PATCH",
            "expireValue",
            "Change when a value ends, and nothing else; always strong",
            query_type=NewTtlQuery,
            errors=(*_changing, *_unfound, "invalid_body", "storage_full"),
            **changing,
        ),
        _of_key(
            "POST",
            "incrementValue",
            "Add to a decimal integer in text, from 0 if there is none; always strong",
            path=_increment_path,
            query_type=IncrementQuery,
            errors=(*_changing, "not_an_integer", "invalid_body", "storage_full"),
            **{**changing, "answer_type": Counted},
        ),
    )
