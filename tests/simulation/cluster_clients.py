"""Clients of a simulated cluster: gateways with one operation at a time, which ask replicators by
the bytes of a real one and write down what they are told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from services.core import operations as o
from services.core.messages import MALFORMED
from services.core.wire import DOWN, OK, OVERLOADED, UNKNOWN_KIND, Role
from services.core.wire import FAILED as BUG
from services.runtime.clock import FakeClock
from services.runtime.fake_link import FakeLink
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.peer import SENT
from tests.simulation.asked import outcome_of, request_of
from tests.simulation.cluster_keys import Mode, key_modes
from tests.simulation.history import (
    FAILED,
    IF_ABSENT,
    IF_PRESENT,
    UNKNOWN,
    Action,
    Delete,
    Found,
    Get,
    Guard,
    History,
    Increment,
    Operation,
    Patch,
    Put,
    Version,
    Wrote,
)
from tests.simulation.machines import Site
from tests.simulation.node_life import secret

# What a replicator gives an operation, and some time on the way.
answer_s = 2.5
think_s = 0.02
# Whoever was refused waits longer before the next try.
refused_s = 0.15


# So that rivals meet: most operations are on few keys.
shares = {Mode.STRONG: 4, Mode.MIXED: 2, Mode.EVENTUAL: 2}


class Habits:
    """What clients of one run do how often: some delete much of what they put."""

    def __init__(self, draw: random.Random) -> None:
        # Of strong operations, beside three reads, two puts and some others.
        self.deletes: int = draw.choice((1, 3, 5))
        # Shares of eventual writes, and of writes that are to end by themselves.
        self.eventual_deletes: float = draw.choice((0.25, 0.5))
        self.ending: float = draw.choice((0.1, 0.25, 0.4))
        self.think_s: float = draw.choice((think_s, think_s, 3 * think_s))
        # Where all are on three keys, one of each mode, rivals meet at every step.
        keys = key_modes().items()
        if draw.random() < 0.3:
            first = {mode: key for key, mode in reversed(keys)}
            keys = {key: mode for mode, key in first.items()}.items()
        self.keys = [key for key, mode in keys for _ in range(shares[mode])]


@dataclass(slots=True)
class Write:
    """An eventual write: what was asked, and what came of it."""

    key: bytes
    # None for a delete.
    value: bytes | None
    replicator: str
    # Of the replicator, at the time.
    life: int
    # How many messages the network had doubled by then.
    doubled: int
    # 0 for one that stays.
    ttl_ms: int = 0
    acked: Version | None = None
    # Whether it certainly was not done, and is not going to be.
    refused: bool = False


@dataclass(slots=True)
class Told:
    """What clients of all kinds have done and learned."""

    history: History
    writes: list[Write] = field(default_factory=list)
    # Versions that anybody was told of a key, for a next If-Match.
    learned: dict[bytes, Version] = field(default_factory=dict)
    values: int = 0
    operations: int = 0


Heard = Callable[[int, bytes], None]
"""Told the kind and the body of an answer."""


class Client:
    """One gateway. `life_of` tells how many lives a replicator has had."""

    def __init__(
        self,
        site: Site,
        name: str,
        replicators: list[str],
        told: Told,
        habits: Habits,
        life_of: Callable[[str], int],
    ) -> None:
        self.site = site
        self.name = name
        self.told = told
        self.draw: random.Random = site.draw
        self.clock = FakeClock(site.timeline)
        self.station = Station(Identity(Role.GATEWAY, name, secret))
        self.modes = key_modes()
        self.keys = habits.keys
        self.stopped = False
        self._habits = habits
        self._life_of = life_of
        # Something was refused or is unknown; the next request waits longer.
        self._in_trouble = False
        site.front.attach(self.station, self.clock)
        self.links = {
            replicator: FakeLink(site.front, name, replicator) for replicator in replicators
        }
        for link in self.links.values():
            link.start()

    def begin(self) -> None:
        self._soon(self._habits.think_s)

    def _soon(self, within_s: float) -> None:
        self.clock.call_later(self.draw.uniform(0.0, within_s), self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        connected = [name for name, link in self.links.items() if link.connected]
        if not connected:
            self._soon(0.1)
            return
        replicator = self.draw.choice(connected)
        self._in_trouble = False
        if self.draw.random() < 0.08:
            self._ask_many(replicator)
        else:
            kind, body, heard = self._one(replicator)
            self._ask(replicator, kind, body, heard)

    def _ask(self, replicator: str, kind: int, body: bytes, heard: Heard) -> None:
        def answered(kind: int, body: bytes) -> None:
            if kind in (BUG, UNKNOWN_KIND, MALFORMED):
                self.site.wrong.append(f"{self.name} was answered {kind}: {body!r}")
            heard(kind, body)
            self._soon(refused_s if self._in_trouble else self._habits.think_s)

        sent = self.links[replicator].request(kind, body, answered, answer_s)
        if sent != SENT:
            answered(sent, b"")

    def _ask_many(self, replicator: str) -> None:
        """A batch. Its items are put through at the same time, each by itself."""
        items = [self._one(replicator) for _ in range(self.draw.randint(2, 6))]
        self.site.count("batches")

        def heard(kind: int, body: bytes) -> None:
            answers = o.decode_batch(body) if kind == OK else [(kind, body)] * len(items)
            for (_, _, heard_one), answer in zip(items, answers, strict=True):
                heard_one(*answer)

        body = o.encode_batch([(kind, body) for kind, body, _ in items])
        self._ask(replicator, o.BATCH, body, heard)

    def _one(self, replicator: str) -> tuple[int, bytes, Heard]:
        """One operation on some key: kind and body of its request, and who hears of the answer."""
        key = self.draw.choice(self.keys)
        mode = self.modes[key]
        if mode is Mode.MIXED:
            mode = self.draw.choice((Mode.STRONG, Mode.EVENTUAL))
        self.told.operations += 1
        if mode is Mode.EVENTUAL:
            return self._write(key, replicator)
        return self._strong(key, self._action(key))

    # -- strong

    def read(self, key: bytes) -> Operation:
        """Begin a strong read, through whoever can be reached."""
        kind, body, heard = self._strong(key, Get())
        operation = self.told.history.operations[-1]
        connected = [name for name, link in self.links.items() if link.connected]
        assert connected, "no replicator can be reached"
        self._ask(self.draw.choice(connected), kind, body, heard)
        return operation

    def _strong(self, key: bytes, action: Action) -> tuple[int, bytes, Heard]:
        operation = self.told.history.invoke(self.name, key, action)
        return *request_of(action, key), partial(self._answered, operation)

    def _answered(self, operation: Operation, kind: int, body: bytes) -> None:
        outcome = outcome_of(operation.action, kind, body)
        self.told.history.resolve(operation, outcome)
        if isinstance(outcome, Found | Wrote):
            self.told.learned[operation.key] = outcome.version
        self._in_trouble = self._in_trouble or outcome is FAILED or outcome is UNKNOWN
        name = outcome.name if isinstance(outcome, Enum) else type(outcome).__name__
        self.site.count(f"strong {name.lower().replace('_', ' ')}")

    def _action(self, key: bytes) -> Action:
        draw = self.draw
        ttl_ms = draw.choice((50, 300, 1500)) if draw.random() < self._habits.ending else None
        guard: Guard = None
        if draw.random() < 0.3:
            learned = self.told.learned.get(key, bytes(12))
            guard = draw.choice((IF_ABSENT, IF_PRESENT, learned, learned))
        self.told.values += 1
        # Numbers are far enough apart to tell whose sum a sum is.
        number = b"%d" % (self.told.values * 1000)
        value = number if draw.random() < 0.6 else b"value-" + number
        actions: list[Action] = [
            Get(), Get(), Get(), Put(value, ttl_ms, guard), Put(value, ttl_ms, guard),
            Patch(ttl_ms, guard), Increment(1, guard), Increment(1, None),
        ]  # fmt: skip
        return draw.choice(actions + [Delete(guard)] * self._habits.deletes)

    # -- eventual

    def _write(self, key: bytes, replicator: str) -> tuple[int, bytes, Heard]:
        self.told.values += 1
        deletes = self.draw.random() < self._habits.eventual_deletes
        value = None if deletes else b"eventual-%d" % self.told.values
        life, doubled = self._life_of(replicator), self.site.back.doubled
        write = Write(key, value, replicator, life, doubled)
        self.told.writes.append(write)
        heard = partial(self._written, write)
        if value is None:
            return o.DELETE, key, heard
        if self.draw.random() < self._habits.ending:
            write.ttl_ms = self.draw.choice((50, 300, 1500))
        return o.PUT, o.encode_put(key, value, write.ttl_ms), heard

    def _written(self, write: Write, kind: int, body: bytes) -> None:
        if kind == o.CHANGED:
            write.acked = self.told.learned[write.key] = o.decode_changed(body).version
            self.site.count("eventual acknowledged")
            return
        self._in_trouble = True
        refused = kind in (o.REFUSED, OVERLOADED, DOWN)
        # A replica may refuse a message, for its clock or its disk, and take the same one if it
        # comes again. No connection brings one twice; this network does.
        write.refused = refused and write.doubled == self.site.back.doubled
        self.site.count("eventual refused" if refused else "eventual unknown")
