"""What clients asked of a store and were told: the operations of a run, as they are judged.

An `Action` is what was asked; an outcome is what the client learned:

    Found, Wrote, Mismatch, ABSENT, NOT_AN_INTEGER     definite: it took effect, or told what is
    FAILED                                             definite: nothing was applied
    UNKNOWN                                            may take effect at any time, or never

A `History` records them while they happen. An operation that never comes back stays UNKNOWN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

Version: TypeAlias = bytes


class Condition(Enum):
    IF_ABSENT = "If-None-Match: *"
    IF_PRESENT = "If-Match: *"


IF_ABSENT: Final = Condition.IF_ABSENT
IF_PRESENT: Final = Condition.IF_PRESENT
# A version is If-Match; None always holds.
Guard: TypeAlias = Version | Condition | None


@dataclass(frozen=True, slots=True)
class Get:
    guard: None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Values must differ from write to write, or a read cannot tell whom it reads."""

    value: bytes
    ttl_ms: int | None = None
    guard: Guard = None


@dataclass(frozen=True, slots=True)
class Delete:
    guard: Guard = None


@dataclass(frozen=True, slots=True)
class Patch:
    """Changes the expiry and nothing else; None removes it."""

    ttl_ms: int | None = None
    guard: Guard = None


@dataclass(frozen=True, slots=True)
class Increment:
    by: int = 1
    guard: Guard = None


Action: TypeAlias = Get | Put | Delete | Patch | Increment


@dataclass(frozen=True, slots=True)
class Found:
    """What a read showed. `expires_at_ms` is 0 for never."""

    value: bytes
    version: Version
    expires_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Wrote:
    """A write's new version, and what else it told: the sum of an increment, and the expiry
    (0 for never, None where the answer did not say)."""

    version: Version
    number: int | None = None
    expires_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The guard did not hold: there was another version, or nothing."""

    current: Version | None


class Answer(Enum):
    ABSENT = "absent"
    # Also a sum that does not fit 64 bits.
    NOT_AN_INTEGER = "not an integer"
    FAILED = "failed, nothing applied"
    UNKNOWN = "unknown"


ABSENT: Final = Answer.ABSENT
NOT_AN_INTEGER: Final = Answer.NOT_AN_INTEGER
FAILED: Final = Answer.FAILED
UNKNOWN: Final = Answer.UNKNOWN
Outcome: TypeAlias = Found | Wrote | Mismatch | Answer


@dataclass(slots=True, eq=False)
class Operation:
    """One operation on one key. Those whose intervals share an instant count as concurrent."""

    client: str
    key: bytes
    action: Action
    outcome: Outcome
    invoked_s: float
    returned_s: float | None

    def __str__(self) -> str:
        until = "" if self.returned_s is None else f"{self.returned_s:.6f}"
        asked = f"{type(self.action).__name__}({_told(self.action)})"
        if isinstance(self.outcome, Answer):
            said = self.outcome.value
        else:
            said = f"{type(self.outcome).__name__}({_told(self.outcome)})"
        return f"{self.invoked_s:12.6f} … {until:12} {self.client}: {asked} → {said}"


def _told(what: Action | Found | Wrote | Mismatch) -> str:
    """The members that say something, versions as the hex that clients see."""
    shown = []
    for name in what.__dataclass_fields__:
        value = getattr(what, name)
        if value is None and not isinstance(what, Mismatch):
            continue
        if name in ("version", "current", "guard") and isinstance(value, bytes):
            value = value.hex()
        elif isinstance(value, Condition):
            value = value.value
        shown.append(f"{name}={value}")
    return ", ".join(shown)


@dataclass(slots=True)
class History:
    """Records operations as they happen.

    Events get instants that grow from one to the next, however coarse the clock is: what
    returned before another was invoked is known to be earlier, even at the same reading.
    """

    now_s: Callable[[], float]
    operations: list[Operation] = field(default_factory=list)
    _latest_s: float = -math.inf

    def invoke(self, client: str, key: bytes, action: Action) -> Operation:
        operation = Operation(client, key, action, UNKNOWN, self._instant(), None)
        self.operations.append(operation)
        return operation

    def resolve(self, operation: Operation, outcome: Outcome) -> None:
        """The client was told this, now."""
        if operation.returned_s is not None:
            raise ValueError(f"told twice: {outcome} after {operation}")
        operation.outcome = outcome
        operation.returned_s = self._instant()

    def counts(self) -> dict[str, int]:
        """How many operations were definite, failed (definite too) and unknown."""
        counts = {"operations": len(self.operations), "definite": 0, "failed": 0, "unknown": 0}
        for operation in self.operations:
            if operation.outcome is UNKNOWN:
                counts["unknown"] += 1
                continue
            counts["definite"] += 1
            counts["failed"] += operation.outcome is FAILED
        return counts

    def _instant(self) -> float:
        self._latest_s = max(self.now_s(), math.nextafter(self._latest_s, math.inf))
        return self._latest_s
