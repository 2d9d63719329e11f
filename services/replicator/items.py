"""From the bytes of one request to what is to be done: the same alone and within a batch."""

from __future__ import annotations

from typing import Final

from services.core.change import (
    Condition,
    Delete,
    Expire,
    Increment,
    Put,
    no_condition,
    read,
)
from services.core.errors import PeerError
from services.core.key import check_storage_key
from services.core.operations import (
    CHANGE,
    DELETE,
    FETCH,
    INVALID,
    PUT,
    Action,
    ChangeRequest,
    decode_change,
    put_record,
    refused_answer,
)
from services.core.paxos import Answer, Change
from services.core.record import tombstone_body

# To whatever is strong and of a cache: each node evicts by itself, so that no two need agree.
not_of_caches: Final[Answer] = (
    INVALID,
    refused_answer(
        "invalid_consistency",
        "the namespace is a cache, which is eventual alone: strong, conditional, PATCH and "
        "increment are for stores",
    ),
)


def eventual_of(kind: int, body: bytes, now_ms: int) -> tuple[bytes, bytes] | None:
    """The key, and the record but for its version, that an eventual request writes; None if it
    is not one."""
    if kind == PUT:
        return put_record(body, now_ms)
    if kind == DELETE:
        return check_storage_key(body), tombstone_body
    return None


def strong_of(kind: int, body: bytes, now_ms: int) -> tuple[bytes, Change, bool]:
    """The key of a strong request, its change, which is `read` itself for a FETCH, and whether
    that may make the store larger."""
    if kind == FETCH:
        return check_storage_key(body), read, False
    if kind != CHANGE:
        raise PeerError(f"a request of kind {kind} is none on one key")
    request = decode_change(body)
    # Another expiry does as well, as it takes metadata: the time when the key came to be.
    grows = request.action != Action.DELETE
    return request.key, change_of(request, now_ms), grows


def change_of(request: ChangeRequest, now_ms: int) -> Change:
    action, _, value, ttl_ms, meta, by, versions, if_present = request
    condition = no_condition
    if versions is not None or if_present is not None:
        condition = Condition(versions, if_present)
    expires_at_ms = now_ms + ttl_ms if ttl_ms else 0
    if action == Action.PUT:
        return Put(value, expires_at_ms, meta, condition)
    if action == Action.DELETE:
        return Delete(condition)
    if action == Action.EXPIRE:
        return Expire(expires_at_ms, condition)
    return Increment(by, condition)
