"""What one key of the store may do: the sequential model that histories are held against.

A key is absent, or has a value, a version and an expiry. Every change makes a version greater
than all before it, whoever stamps it. What nobody has been told yet stays open until somebody is:
the version of a write whose outcome is unknown, and the expiry that a coordinator made of a TTL.
Both are bound by the first operation that shows them.

Expiry. A coordinator decides by its own clock, which is at most `skew_ms` off, at some moment
between the invocation and the effect of the operation that it decides for; so a value

- may turn out absent, and from then on is absent until it is written, as soon as some moment
  before the operation's effect is, for the fastest clock, at or past its expiry;
- may be seen unless even the slowest clock was past its expiry when the operation was invoked.

With `skew_ms` infinite no time is checked, but what was seen absent still stays absent.
Not here: metadata such as `created_at_ms`, and operations that do not ask for `strong`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from tests.simulation.history import (
    ABSENT,
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
    Operation,
    Patch,
    Put,
    Version,
    Wrote,
)

_integer = re.compile(rb"-?[0-9]{1,19}")


class Expiry(NamedTuple):
    """Between which times a value expires; both are equal once somebody was told."""

    low_ms: float
    high_ms: float


class Cell(NamedTuple):
    """`version` is the greatest that is known to have been stamped. It is the value's own if
    `named`; the version of a value that is not named is greater, and unknown so far."""

    value: bytes | None = None
    version: Version = b""
    named: bool = False
    expiry: Expiry | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "absent"
        version = self.version.hex() if self.named else f"not known, after {self.version.hex()}"
        expiry = "never" if self.expiry is None else f"{self.expiry.low_ms}"
        if self.expiry is not None and self.expiry.low_ms != self.expiry.high_ms:
            expiry += f" to {self.expiry.high_ms}"
        return f"{self.value!r}, version {version}, expires {expiry}"


class KeyModel:
    """The rules of one key, as steps from cell to cell (see `Model`)."""

    initial = Cell()

    def __init__(self, epoch_ms: int = 0, skew_ms: float = math.inf) -> None:
        """`epoch_ms` is the true wall time at second 0 of the history."""
        self.epoch_ms = epoch_ms
        self.skew_ms = skew_ms

    def step(self, cell: Cell, operation: Operation, until_s: float) -> Iterator[Cell]:
        for found in self._found(cell, operation, until_s):
            after = _compared(found, operation)
            if after is not None and not isinstance(operation.outcome, Mismatch):
                after = self._applied(after, operation, until_s)
            if after is not None:
                yield after

    def changes_nothing(self, operation: Operation) -> bool:
        outcome = operation.outcome
        told = isinstance(outcome, Found | Mismatch) or outcome in (ABSENT, NOT_AN_INTEGER)
        return told or isinstance(operation.action, Get)

    def rank(self, operation: Operation) -> Version | None:
        """The version written or seen: once a later one is known, no earlier one comes back."""
        outcome = operation.outcome
        if isinstance(outcome, Mismatch):
            return outcome.current
        return outcome.version if isinstance(outcome, Wrote | Found) else None

    def stand_ins(self, operations: Sequence[Operation]) -> list[Operation]:
        """Unknown operations that ask for the same are twins, and so are unknown puts whose
        values nobody can have seen. Twins are judged as if all were asked for with the first:
        that allows them more times, never fewer."""
        seen = _Seen(operations)
        first: dict[Action, Operation] = {}
        values: dict[bool, bytes] = {}
        chosen = []
        for each in operations:
            if each.outcome is not UNKNOWN:
                chosen.append(each)
                continue
            action = each.action
            if isinstance(action, Put) and seen.never(action.value):
                is_integer = _integer.fullmatch(action.value) is not None
                action = replace(action, value=values.setdefault(is_integer, action.value))
            chosen.append(first.setdefault(action, replace(each, action=action)))
        return chosen

    def _found(self, cell: Cell, operation: Operation, until_s: float) -> Iterator[Cell]:
        """The cell as the operation may find it: there, or expired."""
        if cell.expiry is None:
            yield cell
            return
        low_ms, high_ms = cell.expiry
        if high_ms > self._wall_ms(operation.invoked_s) - self.skew_ms:
            yield cell
        if low_ms <= self._wall_ms(until_s) + self.skew_ms:
            yield Cell(None, cell.version)

    def _applied(self, cell: Cell, operation: Operation, until_s: float) -> Cell | None:
        """What an operation whose guard holds leaves behind, or None if it cannot have been
        told its outcome there. One whose outcome is unknown leaves None too where it changes
        nothing: that is as if it had not happened."""
        action, outcome = operation.action, operation.outcome
        if isinstance(action, Get):
            return _read(cell, operation)
        if isinstance(action, Delete):
            if outcome is UNKNOWN and cell.value is None:
                return None
            return _written(cell, operation, None, None)
        if isinstance(action, Increment):
            return _incremented(cell, operation, action)
        if isinstance(action, Patch) and cell.value is None:
            return cell if outcome is ABSENT else None
        value = action.value if isinstance(action, Put) else cell.value
        expiry = None
        if action.ttl_ms is not None:
            expiry = Expiry(
                self._wall_ms(operation.invoked_s) - self.skew_ms + action.ttl_ms,
                self._wall_ms(until_s) + self.skew_ms + action.ttl_ms,
            )
        return _written(cell, operation, value, expiry)

    def _wall_ms(self, at_s: float) -> float:
        # Clocks tell whole milliseconds, rounded down.
        return self.epoch_ms + math.floor(at_s * 1000) if math.isfinite(at_s) else at_s


class _Seen:
    """What anybody was shown of a key's values, to tell which can have stayed unseen."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.values: set[bytes] = set()
        numbers: list[int] = []
        self.lower = self.higher = 0
        for each in operations:
            if isinstance(each.action, Increment):
                self.lower += min(each.action.by, 0)
                self.higher += max(each.action.by, 0)
            if isinstance(each.outcome, Found):
                self.values.add(each.outcome.value)
            elif isinstance(each.outcome, Wrote) and each.outcome.number is not None:
                numbers.append(each.outcome.number)
        numbers.extend(int(value) for value in self.values if _integer.fullmatch(value))
        self.numbers = sorted(numbers)

    def never(self, value: bytes) -> bool:
        """Neither the value itself nor, of an integer, any sum that starts with it."""
        if not _integer.fullmatch(value):
            return value not in self.values
        least, most = int(value) + self.lower, int(value) + self.higher
        shown = bisect_left(self.numbers, least) < bisect_right(self.numbers, most)
        return not shown and _fits(least) and _fits(most)


def _compared(cell: Cell, operation: Operation) -> Cell | None:
    """The cell if its guard holds there or does not, as the outcome says; None otherwise."""
    guard, outcome = operation.action.guard, operation.outcome
    absent = cell.value is None
    if not isinstance(outcome, Mismatch):
        if isinstance(guard, bytes):
            return _named(cell, guard)
        impossible = (guard is IF_ABSENT and not absent) or (guard is IF_PRESENT and absent)
        return None if impossible else cell
    if outcome.current is None:
        return cell if absent and (guard is IF_PRESENT or isinstance(guard, bytes)) else None
    if guard is IF_ABSENT or (isinstance(guard, bytes) and guard != outcome.current):
        return _named(cell, outcome.current)
    return None


def _named(cell: Cell, version: Version) -> Cell | None:
    """The cell with its value known to have this version; None if it has another."""
    if cell.value is None:
        return None
    if cell.named:
        return cell if cell.version == version else None
    return cell._replace(version=version, named=True) if version > cell.version else None


def _expiring(cell: Cell, expires_at_ms: int | None) -> Cell | None:
    """The cell with its expiry known to be this; None if it is another."""
    if expires_at_ms is None:
        return cell
    if cell.expiry is None:
        return cell if expires_at_ms == 0 else None
    if not cell.expiry.low_ms <= expires_at_ms <= cell.expiry.high_ms or expires_at_ms == 0:
        return None
    return cell._replace(expiry=Expiry(expires_at_ms, expires_at_ms))


def _read(cell: Cell, operation: Operation) -> Cell | None:
    outcome = operation.outcome
    if outcome is ABSENT:
        return cell if cell.value is None else None
    if not isinstance(outcome, Found) or cell.value != outcome.value:
        return None
    named = _named(cell, outcome.version)
    return None if named is None else _expiring(named, outcome.expires_at_ms)


def _incremented(cell: Cell, operation: Operation, action: Increment) -> Cell | None:
    outcome = operation.outcome
    value = b"0" if cell.value is None else cell.value
    before = int(value) if _integer.fullmatch(value) else None
    number = None if before is None or not _fits(before) else before + action.by
    if number is None or not _fits(number):
        return cell if outcome is NOT_AN_INTEGER else None
    if isinstance(outcome, Wrote) and outcome.number not in (None, number):
        return None
    return _written(cell, operation, b"%d" % number, cell.expiry)


def _fits(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 63


def _written(
    cell: Cell, operation: Operation, value: bytes | None, expiry: Expiry | None
) -> Cell | None:
    """The cell after a change, under its new version if that was told."""
    outcome = operation.outcome
    if outcome is UNKNOWN:
        return Cell(value, cell.version, named=False, expiry=expiry)
    if not isinstance(outcome, Wrote) or outcome.version <= cell.version:
        return None
    if value is None:
        return Cell(None, outcome.version)
    after = Cell(value, outcome.version, named=True, expiry=expiry)
    return _expiring(after, outcome.expires_at_ms)
