"""Changing one key: what a replicator is asked for, and what its answer means to a client.

A change that is conditional, or of what is there already, is strong, whatever was asked for.
"""

from __future__ import annotations

from typing import Final

from services.core.errors import ClientError, FixRequest, PeerError, RetryLater, UnknownOutcome
from services.core.hlc import version_zero
from services.core.operations import (
    ABSENT,
    CHANGE,
    CHANGED,
    DELETE,
    NOT_AN_INTEGER,
    PRECONDITION_FAILED,
    PUT,
    UNKNOWN,
    Action,
    ChangeRequest,
    decode_changed,
    decode_unknown,
    encode_change,
    encode_put,
)
from services.core.wire import FAILED, LOST, TIMEOUT
from services.gateway.answers import changed_answer, counted_answer
from services.gateway.calls import KeyCall
from services.gateway.gets import answer_absent
from services.gateway.queries import increment_of, no_query, ttl_of

_unknown: Final = frozenset((LOST, TIMEOUT, FAILED))
_read_first: Final = "read the key before you repeat it"


class Change(KeyCall):
    """What all changes have in common: how they are asked for, and what becomes of them."""

    __slots__ = ("_consistency",)

    def eventual(self, kind: int, body: bytes, slot: int) -> None:
        self._consistency = b"eventual"
        self.ask(kind, body, slot)

    def strong(self, request: ChangeRequest, slot: int) -> None:
        self._consistency = b"strong"
        self.check_no_cache()
        self.ask(CHANGE, encode_change(self._conditioned(request)), slot)

    def _conditioned(self, request: ChangeRequest) -> ChangeRequest:
        match, none_match = self.options.if_match, self.options.if_none_match
        if match is None and none_match is None:
            return request
        if match is not None and match.any and none_match is not None:
            raise FixRequest(
                "invalid_header", "If-Match: * and If-None-Match: * exclude each other"
            )
        versions, if_present = None, None
        if match is not None:
            versions, if_present = (None, True) if match.any else (match.versions, None)
        if none_match is not None:
            if_present = False
        return request._replace(versions=versions, if_present=if_present)

    def no_body(self) -> None:
        """Refuse what would be ignored otherwise."""
        if self.exchange.body:
            method = self.exchange.method.decode("ascii")
            raise FixRequest("invalid_body", f"{method} takes no body here; nothing was changed")

    def no_if_none_match(self) -> None:
        if self.options.if_none_match is not None:
            raise FixRequest("invalid_header", "If-None-Match is for reads, and * for PUT")

    def told(self, kind: int, body: bytes) -> None:
        if kind == CHANGED:
            self.changed(body)
        elif kind == PRECONDITION_FAILED:
            etag = None if body == version_zero else body.hex()
            if etag is None:
                there = "there is no value"
            elif self.options.if_none_match is not None:
                there = "there is a value already"
            else:
                there = "the value is another one"
            self.refuse(
                FixRequest(
                    "precondition_failed",
                    f"The condition does not hold: {there}; nothing was changed",
                    members={"etag": etag},
                )
            )
        elif kind == ABSENT:
            answer_absent(self)
        elif kind == NOT_AN_INTEGER:
            self.refuse(FixRequest("not_an_integer", _sentence(body.decode())))
        elif kind == UNKNOWN:
            operation, text = decode_unknown(body)
            told = f"{text}; {_read_first}"
            self.refuse(UnknownOutcome(told, operation_id=operation.hex()))
        elif kind in _unknown:
            self._untold()
        else:
            raise PeerError(f"a replicator answered a change with kind {kind}: {body[:200]!r}")

    def refuse(self, error: ClientError) -> None:
        """Of a change it matters most that it was not made, where that is certain."""
        if isinstance(error, RetryLater) and "nothing was" not in error.detail:
            detail = f"{error.detail}; nothing was changed"
            if error.code != "storage_full":
                detail += ": try again"
            error = RetryLater(error.code, detail, retry_after_s=error.retry_after_s)
        KeyCall.refuse(self, error)

    def _untold(self) -> None:
        # The replicator may have logged it, under an id that it could not tell; here it is logged
        # under that of the request.
        operation_id = self.request_id.decode("ascii")
        text = f"The replicator of this key did not tell what became of the change; {_read_first}"
        self.platform.unknown_outcomes.note(operation_id)
        self.refuse(UnknownOutcome(text, operation_id=operation_id))

    def changed(self, body: bytes) -> None:
        version, expires_at_ms, value = decode_changed(body)
        if value is not None:
            self.answer(*counted_answer(self.key, value, version, expires_at_ms))
            return
        fleet = self.platform.cluster.fleet
        if fleet.map is None:
            raise RuntimeError("a change was put through, and there is no map")
        placed = self.platform.places.members(fleet.map, self.slot)
        self.answer(*changed_answer(self.key, placed, version, self._consistency, expires_at_ms))


class Put(Change):
    __slots__ = ()

    def start(self, storage_key: bytes, slot: int) -> None:
        options, value = self.options, self.exchange.body
        ttl_ms = ttl_of(self.exchange.query) if self.exchange.query else 0
        if options.if_none_match is not None and not options.if_none_match.any:
            raise FixRequest("invalid_header", "If-None-Match of a PUT is *, or left out")
        meta = options.meta()
        if options.strong or options.conditional:
            self.strong(ChangeRequest(Action.PUT, storage_key, value, ttl_ms, meta), slot)
        else:
            self.eventual(PUT, encode_put(storage_key, value, ttl_ms, meta), slot)


class Delete(Change):
    __slots__ = ()

    def start(self, storage_key: bytes, slot: int) -> None:
        no_query(self.exchange.query)
        self.no_body()
        self.no_if_none_match()
        if self.options.strong or self.options.conditional:
            self.strong(ChangeRequest(Action.DELETE, storage_key), slot)
        else:
            self.eventual(DELETE, storage_key, slot)


class Expire(Change):
    __slots__ = ()

    def start(self, storage_key: bytes, slot: int) -> None:
        ttl_ms = ttl_of(self.exchange.query, removable=True)
        self.no_body()
        self.no_if_none_match()
        self.strong(ChangeRequest(Action.EXPIRE, storage_key, ttl_ms=ttl_ms), slot)


class Increment(Change):
    __slots__ = ()

    def start(self, storage_key: bytes, slot: int) -> None:
        by = increment_of(self.exchange.query)
        self.no_body()
        self.no_if_none_match()
        self.strong(ChangeRequest(Action.INCREMENT, storage_key, by=by), slot)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
