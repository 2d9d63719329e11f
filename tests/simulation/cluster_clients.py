"""Clients of a simulated cluster: gateways with one operation at a time, which ask replicators by
the bytes of a real one and write down what they are told."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache, partial

from services.core import operations as o
from services.core.key import namespace_prefix
from services.core.messages import MALFORMED
from services.core.ring import slot_of
from services.core.wire import FAILED as BUG
from services.core.wire import LOST, TIMEOUT, UNKNOWN_KIND, Role
from services.runtime.clock import FakeClock
from services.runtime.fake_link import FakeLink
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.peer import SENT
from tests.simulation.asked import outcome_of, request_of
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


class Mode(Enum):
    STRONG = "strong"
    EVENTUAL = "eventual"
    MIXED = "mixed"


@lru_cache(maxsize=1)
def keys_of_one_slot() -> tuple[bytes, ...]:
    """Six storage keys that share a slot. Looking for them takes a tenth of a second."""
    prefix = namespace_prefix(7, b"store")
    first = prefix + b"key-0"
    found = [first]
    number = 0
    while len(found) < 6:
        number += 1
        key = prefix + b"key-%d" % number
        if slot_of(key) == slot_of(first):
            found.append(key)
    return tuple(found)


def key_modes() -> dict[bytes, Mode]:
    """The keys of a run: five of one slot, of which three are strong, and three from elsewhere."""
    *strong, one, other, _ = keys_of_one_slot()
    elsewhere = [namespace_prefix(7, b"store") + b"elsewhere-%d" % number for number in range(2)]
    return {
        **dict.fromkeys(strong, Mode.STRONG),
        one: Mode.MIXED,
        other: Mode.EVENTUAL,
        elsewhere[0]: Mode.EVENTUAL,
        elsewhere[1]: Mode.MIXED,
    }


@dataclass(slots=True)
class Told:
    """What clients of all kinds have done and learned."""

    history: History
    # Newest versions that eventual writes were acknowledged with, by key.
    acked: dict[bytes, Version] = field(default_factory=dict)
    # Every acknowledgement with the replicator that gave it, and its life.
    acks: list[tuple[bytes, Version, str, int]] = field(default_factory=list)
    # What eventual writes have sent: all values of a key, None for a delete.
    sent: dict[bytes, set[bytes | None]] = field(default_factory=dict)
    # Versions that anybody was told of a key, for a next If-Match.
    learned: dict[bytes, Version] = field(default_factory=dict)
    values: int = 0
    operations: int = 0


class Client:
    def __init__(self, site: Site, name: str, replicators: list[str], told: Told) -> None:
        self.site = site
        self.name = name
        self.told = told
        self.draw: random.Random = site.draw
        self.clock = FakeClock(site.timeline)
        self.station = Station(Identity(Role.GATEWAY, name, secret))
        self.modes = key_modes()
        self.keys = list(self.modes)
        self.stopped = False
        self.busy = False
        site.front.attach(self.station, self.clock)
        self.links = {
            replicator: FakeLink(site.front, name, replicator) for replicator in replicators
        }
        for link in self.links.values():
            link.start()

    def begin(self) -> None:
        self._soon(think_s)

    def _soon(self, within_s: float) -> None:
        self.clock.call_later(self.draw.uniform(0.0, within_s), self._next)

    def _next(self) -> None:
        if self.stopped or self.busy:
            return
        # Half of all operations are on strong keys, which are four of eight.
        key = self.draw.choice(self.keys)
        mode = self.modes[key]
        if mode is Mode.MIXED:
            mode = self.draw.choice((Mode.STRONG, Mode.EVENTUAL))
        if not (
            self.ask_strong(key, self._action(key)) if mode is Mode.STRONG else self._write(key)
        ):
            self._soon(0.1)

    def _link(self) -> tuple[str, FakeLink] | None:
        connected = [item for item in self.links.items() if item[1].connected]
        return self.draw.choice(connected) if connected else None

    # -- strong

    def ask_strong(self, key: bytes, action: Action) -> bool:
        """Whether it could be sent."""
        found = self._link()
        if found is None:
            return False
        self.told.operations += 1
        operation = self.told.history.invoke(self.name, key, action)
        kind, body = request_of(action, key)
        self.busy = True
        sent = found[1].request(kind, body, partial(self._answered, operation), answer_s)
        if sent != SENT:
            self._answered(operation, sent, b"")
        return True

    def _answered(self, operation: Operation, kind: int, body: bytes) -> None:
        self.busy = False
        self._look_at(kind, body)
        outcome = outcome_of(operation.action, kind, body)
        self.told.history.resolve(operation, outcome)
        if isinstance(outcome, Found | Wrote):
            self.told.learned[operation.key] = outcome.version
        refused = outcome is FAILED or outcome is UNKNOWN
        name = outcome.name.lower() if isinstance(outcome, Enum) else type(outcome).__name__.lower()
        self.site.count(f"strong {name}")
        self._soon(refused_s if refused else think_s)

    def _look_at(self, kind: int, body: bytes) -> None:
        if kind in (BUG, UNKNOWN_KIND, MALFORMED):
            self.site.wrong.append(f"{self.name} was answered {kind}: {body!r}")

    def _action(self, key: bytes) -> Action:
        draw = self.draw
        ttl_ms = draw.choice((50, 300, 1500)) if draw.random() < 0.25 else None
        guard: Guard = None
        if draw.random() < 0.3:
            learned = self.told.learned.get(key, bytes(12))
            guard = draw.choice((IF_ABSENT, IF_PRESENT, learned, learned))
        self.told.values += 1
        # Numbers are far enough apart to tell whose sum a sum is.
        number = b"%d" % (self.told.values * 1000)
        value = number if draw.random() < 0.6 else b"value-" + number
        return draw.choice(
            (Get(), Get(), Get(), Put(value, ttl_ms, guard), Put(value, ttl_ms, guard),
             Delete(guard), Patch(ttl_ms, guard), Increment(1, guard), Increment(1, None))
        )  # fmt: skip

    # -- eventual

    def _write(self, key: bytes) -> bool:
        found = self._link()
        if found is None:
            return False
        name, link = found
        told = self.told
        told.operations += 1
        told.values += 1
        value: bytes | None = None
        if self.draw.random() < 0.25:
            kind, body = o.DELETE, key
        else:
            value = b"eventual-%d" % told.values
            ttl_ms = self.draw.choice((50, 300, 1500)) if self.draw.random() < 0.2 else 0
            kind, body = o.PUT, o.encode_put(key, value, ttl_ms)
        told.sent.setdefault(key, set()).add(value)
        self.busy = True
        sent = link.request(kind, body, partial(self._written, key, name), answer_s)
        if sent != SENT:
            self._written(key, name, sent, b"")
        return True

    def _written(self, key: bytes, replicator: str, kind: int, body: bytes) -> None:
        self.busy = False
        self._look_at(kind, body)
        told = self.told
        if kind == o.CHANGED:
            version = o.decode_changed(body).version
            told.acked[key] = max(version, told.acked.get(key, b""))
            told.acks.append((key, version, replicator, 0))
            told.learned[key] = version
            self.site.count("eventual acknowledged")
        elif kind in (LOST, TIMEOUT, o.UNKNOWN):
            self.site.count("eventual unknown")
        else:
            self.site.count("eventual refused")
        self._soon(think_s if kind == o.CHANGED else refused_s)
