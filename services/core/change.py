"""What an operation does to the record of a key: from the current record to the next one.

Each change is a callable `(current record, ballot) → (new record or None, answer)`, as
`paxos.Proposal` wants it: the current record is `b""` for a key that nobody wrote, may be a
tombstone, and is never expired. None keeps what is there. An answer is the kind and the body of
the message that tells the client (operations.py).

Times are those of the coordinator and fixed before the first round, so that a second round makes
the same change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from services.core.hlc import Version, version_zero
from services.core.operations import (
    ABSENT,
    CHANGED,
    NOT_AN_INTEGER,
    PRECONDITION_FAILED,
    changed_answer,
    i64,
    integer_max,
    integer_min,
)
from services.core.paxos import Answer
from services.core.record import (
    created_at_ms,
    expires_at_ms,
    is_tombstone,
    meta,
    tombstone_body,
    value,
    value_body,
    version,
    with_created_at,
)
from services.core.wire import OK

_decimal = re.compile(rb"-?[0-9]{1,19}")
_beyond_64_bits = re.compile(rb"-?0*[1-9][0-9]{19,}")

Changed = tuple[bytes | None, Answer]

_unfit: Final[Changed] = (None, (NOT_AN_INTEGER, b"the stored value does not fit 64 bits"))


def exists(record: bytes) -> bool:
    """Whether there is a value; what is expired has become a tombstone before."""
    return bool(record) and not is_tombstone(record)


@dataclass(slots=True, frozen=True)
class Condition:
    """What must hold of the key for a change to be made. All that is given must hold."""

    # One of these versions is the current one; None asks for nothing.
    versions: tuple[Version, ...] | None = None
    # There is a value; or there is none.
    present: bool | None = None

    def holds(self, current: bytes) -> bool:
        there = exists(current)
        if self.versions is not None and not (there and version(current) in self.versions):
            return False
        return self.present is None or self.present == there


no_condition: Final = Condition()


def read(current: bytes, ballot: Version) -> Changed:
    """Change nothing, and answer with the value's record, or with nothing."""
    return None, (OK, current if exists(current) else b"")


@dataclass(slots=True, frozen=True)
class Put:
    """Store a value. When the key came to be stays with it for as long as it exists."""

    value: bytes
    expires_at_ms: int = 0
    meta: bytes = b""
    condition: Condition = no_condition

    def __call__(self, current: bytes, ballot: Version) -> Changed:
        if not self.condition.holds(current):
            return None, _precondition_failed(current)
        meta_now = self.meta
        if exists(current):
            meta_now = with_created_at(meta_now, created_at_ms(current))
        return _changed(ballot, value_body(self.value, self.expires_at_ms, meta_now))


@dataclass(slots=True, frozen=True)
class Delete:
    """Leave a tombstone, also where nothing is: an older write may still be on its way."""

    condition: Condition = no_condition

    def __call__(self, current: bytes, ballot: Version) -> Changed:
        if not self.condition.holds(current):
            return None, _precondition_failed(current)
        return _changed(ballot, tombstone_body)


@dataclass(slots=True, frozen=True)
class Expire:
    """Let a value end at another time, or with 0 never, and change nothing else."""

    expires_at_ms: int
    condition: Condition = no_condition

    def __call__(self, current: bytes, ballot: Version) -> Changed:
        if not self.condition.holds(current):
            return None, _precondition_failed(current)
        if not exists(current):
            return None, (ABSENT, b"")
        meta_now = with_created_at(meta(current), created_at_ms(current))
        return _changed(ballot, value_body(value(current), self.expires_at_ms, meta_now))


@dataclass(slots=True, frozen=True)
class Increment:
    """Add to a decimal integer in text, from 0 if there is none; its expiry and metadata stay."""

    by: int
    condition: Condition = no_condition

    def __call__(self, current: bytes, ballot: Version) -> Changed:
        if not self.condition.holds(current):
            return None, _precondition_failed(current)
        if not exists(current):
            return self._store(ballot, 0, 0, b"")
        text = value(current)
        if _beyond_64_bits.fullmatch(text):
            return _unfit
        if not _decimal.fullmatch(text):
            return None, (NOT_AN_INTEGER, b"the value is not a decimal integer in text")
        meta_now = with_created_at(meta(current), created_at_ms(current))
        return self._store(ballot, int(text), expires_at_ms(current), meta_now)

    def _store(self, ballot: Version, before: int, expiry_ms: int, meta_now: bytes) -> Changed:
        if not integer_min <= before <= integer_max:
            return _unfit
        after = before + self.by
        if not integer_min <= after <= integer_max:
            return None, (NOT_AN_INTEGER, b"the sum does not fit 64 bits with a sign")
        body = value_body(b"%d" % after, expiry_ms, meta_now)
        return ballot + body, (CHANGED, changed_answer(ballot, expiry_ms) + i64.pack(after))


def _changed(ballot: Version, body: bytes) -> Changed:
    record = ballot + body
    return record, (CHANGED, changed_answer(ballot, expires_at_ms(record)))


def _precondition_failed(current: bytes) -> Answer:
    return PRECONDITION_FAILED, version(current) if exists(current) else version_zero
