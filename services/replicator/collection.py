"""Collecting tombstones, slot by slot: which slots, how many at once, and when again.

    request ──► waiting ──► under way ──► completed
                  ▲            │
                  ├── a pause ─┤  it ended otherwise: a few times, then only a later request helps
                  └── parked ◄─┘  an owner is away, or members are being changed

One attempt is `collection_attempt`'s. Whatever an attempt leaves half done is harmless: replicas
that differ at or below a floor are found by comparing them, and then the slot is requested again.

A slot is parked while its owners do not let it be collected, and is tried again when all of them
are there and have caught up: before that, what they missed would come to them by repair, beside
the hints that bring it anyway. Whoever cannot wait for the latter requests the slot once more.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from services.replicator.collection_asking import Means
from services.replicator.collection_attempt import Attempt
from services.replicator.collection_end import Collected, CollectionCounters, End, lasting
from services.replicator.pace import Pace
from services.replicator.seams import Epochs
from services.replicator.stamps import Stamps
from services.replicator.strong import StrongOperations
from services.runtime import telemetry
from services.runtime.clock import Clock, Timer
from services.runtime.fleet import Fleet, Route

# An attempt mostly waits, for round trips and disks: with so many the nodes always have something
# to do, and what they are asked arrives in few writes.
slots_at_once: Final = 16
# After an attempt that ended otherwise; the next ones wait twice as long each. Two replicators at
# the same slot get out of each other's way by the jitter.
retry_s_min: Final = 0.25
attempts_max: Final = 6
# Between looks at whether parked slots can be collected now, and at how many: a millisecond's.
look_s: Final = 0.5
looks_in_a_turn: Final = 1_024
# A slot that was given up is left to the next pass over the replicas. One that nobody has come
# back to for so long has nothing to collect any more, or is another replicator's.
failing_s_max: Final = 3_600.0

log = telemetry.logger(__name__)


@dataclass(slots=True, frozen=True)
class CollectionRates:
    """How much collecting may cost. An attempt costs the replicator 0.28 ms of CPU and each of its
    three nodes 0.18 ms, more where there are promises to settle. At this pace nine tenths of a
    replicator's time are left to clients, and more of a node's, and all slots there are take 41 s.
    What is brought to replicas costs besides."""

    slots_per_s: int = 400
    repaired_bytes_per_s: int = 16 << 20


usual_rates: Final = CollectionRates()


class Collector:
    """Collects what is requested, from `start` to `stop`."""

    def __init__(
        self,
        fleet: Fleet,
        stamps: Stamps,
        strong: StrongOperations,
        epochs: Epochs,
        clock: Clock,
        draw: random.Random,
        rates: CollectionRates = usual_rates,
    ) -> None:
        self.counters = CollectionCounters()
        # Why the slot that was given up last could not be collected.
        self.trouble: str | None = None
        self._means = Means(fleet, stamps, strong, epochs, clock)
        self._fleet = fleet
        self._clock = clock
        self._draw = draw
        self._pace = Pace(clock, rates.slots_per_s, rates.repaired_bytes_per_s)
        self._resting: Timer | None = None
        # Slots whose turn comes, in this order; a set of at most all slots there are.
        self._waiting: dict[int, None] = {}
        self._under_way: dict[int, Attempt] = {}
        # Those that somebody asked for by `collect`.
        self._alone: dict[Attempt, None] = {}
        # After an attempt that failed: how many have, and the timer of the next.
        self._tries: dict[int, int] = {}
        self._pausing: dict[int, Timer] = {}
        self._parked: dict[int, End] = {}
        # Those that were given up and not collected since, by when, in that order.
        self._given_up: dict[int, float] = {}
        self._beginning = False
        self._running = False

    # -- what /metrics and /cluster tell

    @property
    def waiting(self) -> int:
        """Slots that will be attempted, now or after a pause."""
        return len(self._waiting) + len(self._pausing)

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    @property
    def blocked(self) -> int:
        """Slots that were requested and cannot be collected, for an owner is away: if it is gone
        for good and not replaced, never."""
        return sum(end is End.NOT_ALL_UP for end in self._parked.values())

    @property
    def failing(self) -> int:
        """Slots that were given up after several attempts and not collected since, for whatever
        `trouble` says."""
        given_up, past_s = self._given_up, self._clock.monotonic_s() - failing_s_max
        while given_up and next(iter(given_up.values())) < past_s:
            del given_up[next(iter(given_up))]
        return len(given_up)

    def is_busy_with(self, slot: int) -> bool:
        """Whether an attempt is under way or will follow by itself, so that what was requested of
        this slot has not come to its end."""
        return slot in self._waiting or slot in self._under_way or slot in self._pausing

    # -- what is asked of it

    def start(self) -> None:
        self._running = True
        self._clock.call_later(look_s, self._look)
        self._begin_more()

    def stop(self) -> None:
        """Begin nothing more, and abandon what is under way."""
        self._running = False
        for timer in self._pausing.values():
            timer.cancel()
        if self._resting is not None:
            self._resting.cancel()
        self._waiting.clear()
        self._pausing.clear()
        self._parked.clear()
        for attempt in (*self._under_way.values(), *self._alone):
            attempt.abandon()

    def request(self, slot: int) -> None:
        """Have the slot collected soon, whatever there is to collect. Without effect on one that
        waits for its turn or is under way."""
        if slot in self._waiting or slot in self._under_way:
            return
        self._tries.pop(slot, None)
        if (timer := self._pausing.pop(slot, None)) is not None:
            timer.cancel()
        self._enqueue(slot)

    def collect(self, slot: int, done: Callable[[Collected], None]) -> None:
        """One attempt at once, besides those that are under way; `done` hears how it ended, maybe
        before this returns. For whoever has to know; two attempts at one slot only end each other.
        """

        def ended(collected: Collected) -> None:
            self._alone.pop(attempt)
            self.counters.add(collected)
            done(collected)

        attempt = Attempt(slot, self._means, ended)
        self._alone[attempt] = None
        self.counters.attempts += 1
        attempt.begin()

    # -- turns

    def _enqueue(self, slot: int) -> None:
        self._parked.pop(slot, None)
        self._waiting[slot] = None
        self._begin_more()

    def _begin_more(self) -> None:
        """An attempt may end at once, as without a node; the next one has its turn later then."""
        if self._beginning or not self._running:
            return
        self._beginning = True
        begun = 0
        while self._waiting and len(self._under_way) < slots_at_once:
            rest_s = self._pace.wait_s
            if rest_s or begun == slots_at_once:
                self._rest(rest_s)
                break
            begun += 1
            slot = next(iter(self._waiting))
            del self._waiting[slot]
            attempt = Attempt(slot, self._means, self._ended)
            self._under_way[slot] = attempt
            self.counters.attempts += 1
            attempt.begin()
        self._beginning = False

    def _rest(self, seconds: float) -> None:
        def rested() -> None:
            self._resting = None
            self._begin_more()

        if self._resting is None:
            self._resting = self._clock.call_later(seconds, rested)

    def _ended(self, collected: Collected) -> None:
        slot, end = collected.slot, collected.end
        del self._under_way[slot]
        self.counters.add(collected)
        if not self._running:
            return
        if end in lasting:
            self._parked[slot] = end
            self._tries.pop(slot, None)
            self._begin_more()
            return
        self._pace.spend(1, collected.repaired_bytes)
        if end is not End.COMPLETED:
            self._later(collected)
        else:
            self._tries.pop(slot, None)
            self._given_up.pop(slot, None)
            if collected.more and (collected.tombstones or collected.promises):
                self._waiting[slot] = None
        self._begin_more()

    def _later(self, collected: Collected) -> None:
        slot = collected.slot
        tries = self._tries.pop(slot, 0) + 1
        log.debug("a slot was not collected", slot=slot, end=collected.end.value, tries=tries)
        if tries == attempts_max:
            self.counters.given_up += 1
            self._given_up.pop(slot, None)
            self._given_up[slot] = self._clock.monotonic_s()
            self.trouble = f"slot {slot}: {collected.reason or collected.end.value}"
            return
        self._tries[slot] = tries
        pause_s = retry_s_min * 2**tries * self._draw.uniform(0.25, 1.0)

        def again() -> None:
            del self._pausing[slot]
            self._enqueue(slot)

        self._pausing[slot] = self._clock.call_later(pause_s, again)

    def _look(self) -> None:
        """Take up what was parked, where it can be collected now."""
        if not self._running:
            return
        for slot, end in list(islice(self._parked.items(), looks_in_a_turn)):
            del self._parked[slot]
            if self._allows(self._fleet.route(slot)):
                self._waiting[slot] = None
            else:
                # Behind those that were not looked at.
                self._parked[slot] = end
        self._clock.call_later(look_s, self._look)
        self._begin_more()

    def _allows(self, route: Route) -> bool:
        newest = self._fleet.map
        everybody = all(owner.node.rank == 0 for owner in route.owners)
        return everybody and newest is not None and newest.is_stable
