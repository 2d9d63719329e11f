"""The bytes in which a client asks a replicator for an action of a history, and what it learns."""

from __future__ import annotations

from services.core import operations as o
from services.core.hlc import version_zero
from services.core.operations import Action as Kind
from services.core.operations import ChangeRequest
from services.core.record import expires_at_ms, value, version
from services.core.wire import DOWN, OK, OVERLOADED
from tests.simulation.history import (
    ABSENT,
    FAILED,
    IF_ABSENT,
    IF_PRESENT,
    NOT_AN_INTEGER,
    UNKNOWN,
    Action,
    Delete,
    Found,
    Get,
    Increment,
    Mismatch,
    Outcome,
    Patch,
    Put,
    Wrote,
)


def request_of(action: Action, key: bytes) -> tuple[int, bytes]:
    """The kind and the body of the strong request."""
    if isinstance(action, Get):
        return o.FETCH, key
    guard = action.guard
    present = guard is IF_PRESENT if guard in (IF_PRESENT, IF_ABSENT) else None
    versions = (guard,) if isinstance(guard, bytes) else None
    if isinstance(action, Put):
        change = ChangeRequest(Kind.PUT, key, action.value, action.ttl_ms or 0)
    elif isinstance(action, Delete):
        change = ChangeRequest(Kind.DELETE, key)
    elif isinstance(action, Patch):
        change = ChangeRequest(Kind.EXPIRE, key, ttl_ms=action.ttl_ms or 0)
    else:
        change = ChangeRequest(Kind.INCREMENT, key, by=action.by)
    return o.CHANGE, o.encode_change(change._replace(versions=versions, if_present=present))


def outcome_of(action: Action, kind: int, body: bytes) -> Outcome:
    """What an answer tells. Whatever may or may not have been done is UNKNOWN."""
    if isinstance(action, Get) and kind == OK:
        return Found(value(body), version(body), expires_at_ms(body)) if body else ABSENT
    if kind == o.CHANGED:
        told = o.decode_changed(body)
        number = told.value if isinstance(action, Increment) else None
        return Wrote(told.version, number, told.expires_at_ms)
    if kind == o.PRECONDITION_FAILED:
        return Mismatch(None if body == version_zero else body)
    if kind == o.ABSENT:
        return ABSENT
    if kind == o.NOT_AN_INTEGER:
        return NOT_AN_INTEGER
    if kind in (o.REFUSED, OVERLOADED, DOWN):
        return FAILED
    return UNKNOWN
