"""A store in memory that is linearizable because it does one thing at a time, and clients that
use it at overlapping times: histories that are right by construction, for the checker's tests.

Operations wait before and after the moment at which they happen. Of some the client never hears,
or hears that nobody knows; those happen, perhaps long after, or do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from services.runtime.clock import FakeClock, Timeline
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
    Guard,
    History,
    Increment,
    Mismatch,
    Operation,
    Outcome,
    Patch,
    Put,
    Version,
    Wrote,
)


@dataclass(frozen=True, slots=True)
class Use:
    """How a store is used in one run."""

    operations: int = 150
    clients: int = 5
    keys: int = 3
    unknown: float = 0.1
    failed: float = 0.05
    skew_ms: int = 400
    timed: float = 0.3


class MemoryStore:
    """The keys, as the documentation describes them."""

    def __init__(self) -> None:
        self.cells: dict[bytes, tuple[bytes, Version, int]] = {}
        self.stamps = 0

    def apply(self, key: bytes, action: Action, asked_ms: int, decided_ms: int) -> Outcome:
        """Do it now. TTLs count from `asked_ms`; what expires by `decided_ms` is gone."""
        if key in self.cells and 0 < self.cells[key][2] <= decided_ms:
            del self.cells[key]
        cell = self.cells.get(key)
        current = None if cell is None else cell[1]
        guard = action.guard
        if (
            (guard is IF_ABSENT and cell is not None)
            or (guard is IF_PRESENT and cell is None)
            or (isinstance(guard, bytes) and guard != current)
        ):
            return Mismatch(current)
        if isinstance(action, Get):
            return ABSENT if cell is None else Found(*cell)
        if isinstance(action, Delete):
            self.cells.pop(key, None)
            return Wrote(self._stamp())
        if isinstance(action, Increment):
            return self._increment(key, action.by)
        expires_at_ms = 0 if action.ttl_ms is None else asked_ms + action.ttl_ms
        if isinstance(action, Put):
            value = action.value
        elif cell is None:
            return ABSENT
        else:
            value = cell[0]
        self.cells[key] = (value, self._stamp(), expires_at_ms)
        return Wrote(self.cells[key][1], None, expires_at_ms)

    def _increment(self, key: bytes, by: int) -> Outcome:
        value, _, expires_at_ms = self.cells.get(key, (b"0", b"", 0))
        if not value.isdigit():
            return NOT_AN_INTEGER
        number = int(value) + by
        self.cells[key] = (str(number).encode(), self._stamp(), expires_at_ms)
        return Wrote(self.cells[key][1], number, expires_at_ms)

    def _stamp(self) -> Version:
        self.stamps += 1
        return self.stamps.to_bytes(12, "big")


class Users:
    """The clients of one store, each with one operation at a time."""

    def __init__(self, draw: random.Random, use: Use) -> None:
        self.draw = draw
        self.use = use
        self.timeline = Timeline()
        self.store = MemoryStore()
        self.history = History(lambda: self.timeline.now_s)
        self.keys = [b"key-%d" % number for number in range(use.keys)]
        # The versions that clients have been told, for their next If-Match.
        self.learned: dict[bytes, Version] = {}
        self.values = 0

    def run(self) -> list[Operation]:
        for number in range(self.use.clients):
            self._soon(partial(self._ask, f"client-{number}"), 0.01)
        while self.timeline.step():
            pass
        return self.history.operations

    def _ask(self, client: str) -> None:
        draw = self.draw
        if len(self.history.operations) >= self.use.operations:
            return
        key = draw.choice(self.keys)
        operation = self.history.invoke(client, key, self._action(key))
        asked_ms = self._wall_ms()
        chance = draw.random()
        if chance < self.use.failed:
            self._soon(lambda: self._told(operation, FAILED), 0.02)
        elif chance < self.use.failed + self.use.unknown:
            self._lose(operation, asked_ms)
        else:
            self._soon(lambda: self._happen(operation, asked_ms, told=True), 0.03)

    def _lose(self, operation: Operation, asked_ms: int) -> None:
        """The answer is lost: it happens soon, or long after, or never."""
        fate = self.draw.random()
        if fate < 0.6:
            within_s = 0.03 if fate < 0.3 else 1.0
            self._soon(lambda: self._happen(operation, asked_ms, told=False), within_s)
        if self.draw.random() < 0.7:
            self._soon(lambda: self._told(operation, UNKNOWN), 0.05)
        else:
            self._soon(lambda: self._ask(operation.client), 0.05)

    def _happen(self, operation: Operation, asked_ms: int, *, told: bool) -> None:
        decided_ms = self.draw.choice((asked_ms, self._wall_ms()))
        outcome = self.store.apply(operation.key, operation.action, asked_ms, decided_ms)
        if isinstance(outcome, Wrote) and self.draw.random() < 0.3:
            outcome = Wrote(outcome.version)
        if told:
            self._soon(lambda: self._told(operation, outcome), 0.03)

    def _told(self, operation: Operation, outcome: Outcome) -> None:
        self.history.resolve(operation, outcome)
        if isinstance(outcome, Found | Wrote):
            self.learned[operation.key] = outcome.version
        self._ask(operation.client)

    def _action(self, key: bytes) -> Action:
        draw = self.draw
        ttl_ms = draw.choice((20, 200, 2000)) if draw.random() < self.use.timed else None
        guard: Guard = None
        if draw.random() < 0.3:
            guard = draw.choice((IF_ABSENT, IF_PRESENT, self.learned.get(key, bytes(12))))
        self.values += 1
        # Numbers are far enough apart to tell whose sum a sum is.
        number = b"%d" % (self.values * 1000)
        value = number if draw.random() < 0.5 else b"value-" + number
        return draw.choice(
            (Get(), Get(), Get(), Put(value, ttl_ms, guard), Put(value, ttl_ms, guard),
             Delete(guard), Patch(ttl_ms, guard), Increment(1, guard))
        )  # fmt: skip

    def _wall_ms(self) -> int:
        """The time by some coordinator's clock."""
        skew_ms = self.draw.randint(-self.use.skew_ms, self.use.skew_ms)
        return FakeClock(self.timeline, skew_ms).wall_ms()

    def _soon(self, callback: Callable[[], None], within_s: float) -> None:
        self.timeline.schedule(self.draw.random() * within_s, callback)
