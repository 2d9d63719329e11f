"""What links tell of namespaces: which there are with how much in them, and which are caches.

    NAMESPACES  msgpack NamespacesQuery                  → OK  msgpack NamespacesPage
    COUNT       tenant prefix, or namespace prefix       → OK  msgpack Count
    CACHES      epoch u64 · version u64 · msgpack list of Cache
        → OK    epoch u64 · version u64, of the list that is known now

Nodes answer the first two, and take the third as gateways do; replicators ask and tell. Integers
are big-endian. `decode_*` raise PeerError for bytes that no encoder here makes.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, NamedTuple

import msgspec

from services.core.errors import PeerError
from services.core.key import check_namespace_prefix, namespace_bytes_max, tenant_max
from services.core.listings import list_limit_max
from services.core.packed_bodies import decode_body, encode_body

# Of all tenants together. A list of so many travels whole: with names of 20 bytes 130 KB, with the
# longest 1.1 MB. It takes whoever is told 3 ms, or as many turns of a node's loop as it likes.
caches_max: Final = 4_096
# Of one cache, over all nodes; memory ends long before.
max_items_max: Final = 1 << 40

_edition = struct.Struct(">QQ")
edition_bytes: Final = _edition.size


class NamespacesQuery(msgspec.Struct, frozen=True, array_like=True):
    """One page of the namespaces of a tenant, in the order of their names. `start` is the first
    name that may be shown, and `next` of a page the start of the one behind it."""

    tenant: int
    start: bytes = b""
    limit: int = list_limit_max


class NamespaceCount(msgspec.Struct, frozen=True, array_like=True):
    name: bytes
    keys: int
    # Of keys, as clients know them, with their values and metadata.
    size_bytes: int


class NamespacesPage(msgspec.Struct, frozen=True, array_like=True):
    """Namespaces that have keys. A node counts what it has of each, in whatever slots. As any
    page, it may be empty and yet not the last; `next` is None at the end."""

    found: list[NamespaceCount]
    next: bytes | None


def decode_namespaces_query(body: bytes) -> NamespacesQuery:
    query = decode_body(body, NamespacesQuery)
    if not 0 <= query.tenant <= tenant_max:
        raise PeerError(f"a tenant is 0 to {tenant_max}, not {query.tenant}")
    if len(query.start) > namespace_bytes_max:
        raise PeerError(f"no namespace has a name of {len(query.start)} bytes")
    if not 1 <= query.limit <= list_limit_max:
        raise PeerError(f"{query.limit} namespaces; 1 to {list_limit_max} are allowed")
    return query


class Count(msgspec.Struct, frozen=True, array_like=True):
    """What this replica has of a tenant or of a namespace."""

    keys: int
    bytes: int
    tombstones: int


class Cache(msgspec.Struct, frozen=True, array_like=True):
    """A namespace that keeps at most so many keys: a node is told its share of them, and everybody
    else the whole."""

    namespace: bytes
    items_max: Annotated[int, msgspec.Meta(gt=0, le=max_items_max)]


class Edition(NamedTuple):
    """Which of two lists of caches is the newer one. The version counts the declarations in
    PostgreSQL, and comes first: in a list with fewer of them a namespace may be a cache that is a
    store by now, whose keys must not be evicted. The epoch is that of the map by which shares were
    worked out; a replicator that learns of a later one tells them anew."""

    version: int
    epoch: int


no_edition: Final = Edition(0, 0)


class CacheList(NamedTuple):
    """All caches that there are, never a difference: who was away takes the newest and goes on.
    Namespaces that are not in it are stores."""

    edition: Edition
    caches: list[Cache]


def encode_caches(edition: Edition, caches: list[Cache]) -> bytes:
    return encode_edition(edition) + encode_body(caches)


def decode_caches(body: bytes) -> CacheList:
    """The list, every name in it checked."""
    told = decode_caches_unchecked(body)
    for cache in told.caches:
        check_namespace_prefix(cache.namespace)
    return told


def decode_caches_unchecked(body: bytes) -> CacheList:
    """As `decode_caches`, for who looks at the names in turns."""
    caches = decode_body(body[_edition.size :], list[Cache])
    if len(caches) > caches_max:
        raise PeerError(f"{len(caches)} caches; at most {caches_max} are allowed")
    return CacheList(decode_edition(body[: _edition.size]), caches)


def encode_edition(edition: Edition) -> bytes:
    return _edition.pack(edition.epoch, edition.version)


def decode_edition(body: bytes) -> Edition:
    if len(body) != _edition.size:
        raise PeerError(f"{len(body)} bytes are no edition of the list of caches")
    epoch, version = _edition.unpack(body)
    return Edition(version, epoch)
