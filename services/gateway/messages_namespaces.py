"""Namespaces as clients declare them and are told of them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from services.core.key import namespace_bytes_max
from services.core.listings import list_limit_max
from services.core.namespaces import max_items_max
from services.gateway.cursors import Cursor
from services.runtime.text_members import code

Kind = Literal["store", "cache"]


class NamespacePath(msgspec.Struct, frozen=True):
    name: Annotated[
        str,
        Meta(
            extra=code("invalid_namespace"),
            extra_json_schema={"minLength": 1, "maxLength": namespace_bytes_max},
        ),
    ]


class NamespacesQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=list_limit_max)] = 100
    cursor: Cursor = ""


class CursorQuery(msgspec.Struct, frozen=True):
    cursor: Cursor = ""


class Declare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cache keeps at most `max_items` keys, and gives up the least recently used; a store has no
    `max_items`."""

    kind: Kind
    max_items: Annotated[int, Meta(ge=1, le=max_items_max)] | None = None


class Declared(msgspec.Struct, frozen=True):
    """`changed` unless it was so before. `pending_nodes` are connected and have not said yet that
    they know: until they do, they keep what is put as a store does."""

    name: str
    kind: Kind
    max_items: int | None
    changed: bool
    pending_nodes: list[str]


class NamespaceInfo(msgspec.Struct, frozen=True):
    """`keys` and `bytes` count what it has now; nodes that are away make them estimates."""

    name: str
    kind: Kind
    max_items: int | None
    keys: int
    bytes: int


class NamespacePage(msgspec.Struct, frozen=True):
    """In the order of their names' bytes. With a cursor there are more."""

    namespaces: list[NamespaceInfo]
    count: int
    cursor: str | None
