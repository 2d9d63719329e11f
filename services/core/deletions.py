"""What a gateway has a replicator delete many keys with: those of a prefix, or of a namespace.

    DELETE_PREFIX     msgpack PrefixDeletion       → OK  msgpack PrefixDeleted
    DELETE_NAMESPACE  msgpack NamespaceDeletion    → OK  msgpack PrefixDeleted

`decode_*` raise PeerError for what no encoder here makes.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from services.core.errors import PeerError
from services.core.key import check_namespace_prefix
from services.core.packed_bodies import decode_body

# One call of a client to delete by prefix goes through so many keys.
prefix_keys_max: Final = 10_000


class PrefixDeletion(msgspec.Struct, frozen=True, array_like=True):
    """Delete, or with `dry_run` count, the keys of a namespace that begin with a prefix, from
    `start` on. Keys are those of clients, without the prefix of the namespace. All of a namespace
    goes only if that is meant: by an empty prefix and `whole`."""

    namespace: bytes
    prefix: bytes
    start: bytes = b""
    limit: Annotated[int, msgspec.Meta(ge=1, le=prefix_keys_max)] = prefix_keys_max
    dry_run: bool = False
    whole: bool = False


class PrefixDeleted(msgspec.Struct, frozen=True, array_like=True):
    """`next` is where to go on; None once there is nothing more."""

    matched: int
    deleted: int
    next: bytes | None


def decode_prefix_deletion(body: bytes) -> PrefixDeletion:
    request = decode_body(body, PrefixDeletion)
    check_namespace_prefix(request.namespace)
    if bool(request.prefix) == request.whole:
        raise PeerError("a deletion by prefix needs a prefix, or to be of the whole, and not both")
    return request


class NamespaceDeletion(msgspec.Struct, frozen=True, array_like=True):
    """Empty a namespace from `start` on, in the order of its keys; once it is empty its
    declaration goes, too. PrefixDeleted tells in `next` where the next call goes on; None once all
    of it is gone. To repeat a call is no harm."""

    namespace: bytes
    start: bytes = b""
    limit: Annotated[int, msgspec.Meta(ge=1, le=prefix_keys_max)] = prefix_keys_max


def decode_namespace_deletion(body: bytes) -> NamespaceDeletion:
    request = decode_body(body, NamespaceDeletion)
    check_namespace_prefix(request.namespace)
    return request
