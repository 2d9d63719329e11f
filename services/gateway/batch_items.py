"""The items of a batch: what each of them asks for, and how what became of it is told."""

from __future__ import annotations

import base64
import binascii

from msgspec import UNSET, UnsetType

from services.core.errors import (
    ClientError,
    FixRequest,
    InternalError,
    PeerError,
    RetryLater,
    UnknownOutcome,
    kept,
)
from services.core.hlc import rfc3339, version_bytes, version_ms
from services.core.key import check_key
from services.core.operations import (
    CHANGE,
    CHANGED,
    DELETE,
    FETCH,
    INVALID,
    PUT,
    REFUSED,
    TOO_LARGE,
    UNKNOWN,
    Action,
    ChangedAnswer,
    ChangeRequest,
    decode_changed,
    decode_unknown,
    encode_change,
    encode_put,
)
from services.core.record import (
    Metadata,
    created_at_ms,
    expires_at_ms,
    meta,
    value,
    value_bytes_max,
)
from services.core.wire import OK
from services.gateway.keyspace import absent, check_allowed
from services.gateway.many_reads import too_large
from services.gateway.messages_batch import GetItem, Item, Op, PutItem, Result, op_of
from services.gateway.queries import ttl_ms_of
from services.runtime import telemetry
from services.runtime.credential import Credential
from services.runtime.key_access import check_scope
from services.runtime.replicators import as_told_to_clients, fault_told, refusal_told

log = telemetry.logger("services.gateway")

# A record (nothing for none), a change that was made, or why there is neither.
Outcome = bytes | ChangedAnswer | ClientError


class Asked:
    """One item and what becomes of it. What is wrong with it is its outcome from the start."""

    __slots__ = ("_strong", "item", "outcome", "request", "storage_key")

    def __init__(self, item: Item, credential: Credential, prefix: bytes, *, strong: bool) -> None:
        self.item = item
        self.storage_key = b""
        # The kind and the body of what a replicator is asked.
        self.request = (0, b"")
        self.outcome: Outcome | None = None
        self._strong = strong
        try:
            self._prepare(credential, prefix)
        except ClientError as error:
            self.outcome = kept(error)

    @property
    def is_read(self) -> bool:
        return isinstance(self.item, GetItem)

    @property
    def value_bytes(self) -> int:
        """How large the record is that it has read; 0 without one."""
        return len(self.outcome) if isinstance(self.outcome, bytes) else 0

    def _prepare(self, credential: Credential, prefix: bytes) -> None:
        if self.is_read:
            check_scope(credential, "read")
        key = check_key(self.item.key.encode())
        check_allowed(credential, key)
        self.storage_key = prefix + key
        self.request = self._request(self.item)

    def _request(self, item: Item) -> tuple[int, bytes]:
        key = self.storage_key
        if isinstance(item, GetItem):
            return FETCH, key
        if isinstance(item, PutItem):
            content, ttl_ms = _value_of(item), _ttl_of(item)
            if not self._strong:
                return PUT, encode_put(key, content, ttl_ms)
            change = ChangeRequest(Action.PUT, key, content, ttl_ms)
        elif not self._strong:
            return DELETE, key
        else:
            change = ChangeRequest(Action.DELETE, key)
        return CHANGE, encode_change(change)

    def told(self, kind: int, body: bytes) -> None:
        """What a replicator answers to this item."""
        if kind == OK and self.is_read:
            self.outcome = body
        elif kind == CHANGED and not self.is_read:
            self.outcome = decode_changed(body)
        elif kind == UNKNOWN:
            operation, text = decode_unknown(body)
            # What is unknown of a read is whether it has settled something; it has no outcome
            # itself.
            self.outcome = (
                RetryLater("no_quorum", text)
                if self.is_read
                else UnknownOutcome(text, operation_id=operation.hex())
            )
        elif kind in (REFUSED, INVALID):
            self.outcome = _refused(kind, body)
        elif kind == TOO_LARGE:
            self.outcome = too_large()
        else:
            raise PeerError(f"a replicator answered an item of a batch with kind {kind}")

    def lost(self, why: str, operation_id: str | None = None) -> None:
        """No replicator has told of it: it may have been done."""
        self.outcome = (
            RetryLater("no_replicator", "The replicator that was asked gave no answer")
            if self.is_read
            else UnknownOutcome(why, operation_id=operation_id)
        )

    def result(self) -> Result:
        """What a client is told."""
        op, key, outcome = op_of[type(self.item)], self.item.key, self.outcome
        if outcome is None:
            raise RuntimeError("nothing has become of an item")
        if isinstance(outcome, ClientError):
            return _problem(op, key, outcome)
        if isinstance(outcome, bytes):
            if not outcome:
                return _problem(op, key, absent(key.encode()))
            return self._found(outcome)
        return Result(
            op=op,
            key=key,
            status=200,
            success=True,
            etag=outcome.version.hex(),
            consistency="strong" if self._strong else "eventual",
            expires_at=_time_or_none(outcome.expires_at_ms),
        )

    def without_value(self) -> Result:
        """What a client is told if its value does not fit."""
        return _problem(op_of[type(self.item)], self.item.key, too_large())

    def _found(self, record: bytes) -> Result:
        text, encoded = _shown(self.item, value(record))
        metadata = Metadata.decode(meta(record))
        version = record[:version_bytes]
        return Result(
            op="get",
            key=self.item.key,
            status=200,
            value=text,
            value_base64=encoded,
            content_type=metadata.content_type.decode("latin-1") or UNSET,
            metadata={
                name.decode("latin-1"): content.decode("latin-1") for name, content in metadata.user
            }
            or UNSET,
            created_at=rfc3339(created_at_ms(record)),
            updated_at=rfc3339(version_ms(version)),
            etag=version.hex(),
            expires_at=_time_or_none(expires_at_ms(record)),
        )


def _value_of(item: PutItem) -> bytes:
    if (item.value is None) == (item.value_base64 is None):
        raise FixRequest("invalid_body", "Give value or value_base64; one of the two")
    if item.value is not None:
        content = item.value.encode()
    else:
        try:
            content = binascii.a2b_base64(item.value_base64 or "", strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise FixRequest("invalid_body", f"value_base64 is not base64: {error}") from None
    if len(content) > value_bytes_max:
        raise FixRequest(
            "value_too_large",
            f"the value is {len(content)} bytes; at most {value_bytes_max} are allowed",
        )
    return content


def _ttl_of(item: PutItem) -> int:
    return 0 if item.ttl is None else ttl_ms_of(str(item.ttl))


def _shown(item: Item, content: bytes) -> tuple[str | UnsetType, str | UnsetType]:
    """A value as text, or else in base64."""
    if isinstance(item, GetItem) and item.encoding == "auto":
        try:
            return content.decode(), UNSET
        except UnicodeDecodeError:
            pass
    return UNSET, base64.b64encode(content).decode()


def _refused(kind: int, body: bytes) -> ClientError:
    try:
        if kind == REFUSED:
            return as_told_to_clients(refusal_told(body))
        return fault_told(body)
    except PeerError:
        # The other items are what they are.
        log.exception("an item of a batch failed")
        return InternalError()


def _problem(op: Op, key: str, error: ClientError) -> Result:
    operation_id = error.members.get("operation_id", UNSET)
    return Result(
        op=op,
        key=key,
        status=error.status,
        code=error.code,
        error=error.entry.title,
        detail=error.detail,
        operation_id=operation_id,
    )


def _time_or_none(time_ms: int) -> str | None:
    return rfc3339(time_ms) if time_ms else None
