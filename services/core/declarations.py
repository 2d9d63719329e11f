"""What a gateway has a replicator make of namespaces, stores or caches, and hears of them.

    LIST_NAMESPACES    msgpack NamespacesQuery, of namespaces.py    → OK  msgpack NamespacesTold
    DESCRIBE_NAMESPACE namespace prefix                             → OK  msgpack NamespaceTold
    DECLARE_NAMESPACE  msgpack Declaration                          → OK  msgpack DeclaredAnswer

`decode_declaration` raises PeerError for what no encoder here makes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from services.core.key import check_namespace_prefix
from services.core.packed_bodies import decode_body


class Declaration(msgspec.Struct, frozen=True, array_like=True):
    """What a namespace, named by its prefix, is to be: a cache of at most so many keys, or with
    None a store. Declaring again what it is changes nothing, and a cache may become larger or
    smaller. INVALID with `already_exists` if it is declared the other kind, or if a cache is to be
    made of a namespace that has keys; with `limit_reached` for one too many; with
    `invalid_namespace` or `invalid_body` for a name or a number that may not be."""

    namespace: bytes
    max_items: int | None
    # How many caches the tenant's plan lets it have, this one among them; None if it is not known,
    # for as many as a replicator lets any tenant declare.
    caches_max: Annotated[int, msgspec.Meta(ge=0)] | None = None


def decode_declaration(body: bytes) -> Declaration:
    request = decode_body(body, Declaration)
    check_namespace_prefix(request.namespace)
    return request


class DeclaredAnswer(msgspec.Struct, frozen=True, array_like=True):
    """It is what was asked for. `changed` unless it was so before. `untold` names the nodes that
    are connected and did not say in time that they know: what is put there until they do is kept
    as a store keeps it, and counts for the cache from then on."""

    changed: bool
    untold: list[str]


class NamespaceTold(msgspec.Struct, frozen=True, array_like=True):
    """A namespace that has keys or was declared; of a cache its `max_items`, of a store None."""

    name: bytes
    keys: int
    size_bytes: int
    max_items: int | None


class NamespacesTold(msgspec.Struct, frozen=True, array_like=True):
    """As NamespacesPage, with what was declared."""

    found: list[NamespaceTold]
    next: bytes | None
