"""Eventual writes: every replica is sent the write, and one durable copy answers.

The acknowledgement waited for is that of the first live owner, which eventual reads ask next; if
it does not come soon, any other will do. The rest go on in the background, are tried again, and
become hints: a durable note of what a replica still has to get. A write that found a replica away
is answered only once its hint is durable.

    start ──► sent to all owners ──► made: answered ──► settled: every replica has it, or a hint
                  │      ▲
                  │      └── stamped again, once, if a replica holds something newer
                  └────────► refused (nothing was done) or unknown (something may have been)

This is the hot path of the platform: for each write one object, one callback for each replica
made by `partial`, no task, no future, no timer; one sweep sees to all that take too long.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from services.core.cluster import Placement
from services.core.errors import RetryLater
from services.core.hlc import check_version
from services.core.messages import (
    BELOW_FLOOR,
    NEWER,
    WRITE,
    WRONG_EPOCH,
    encode_write,
    u64,
)
from services.core.operations import CHANGED, UNKNOWN, changed_answer, unknown_answer
from services.core.record import expires_at_ms, version
from services.core.ring import slot_of
from services.core.wire import DOWN, LOST, OK
from services.replicator.answers import Done, Failures, refusal_of
from services.replicator.counters import Counters
from services.replicator.fleet import Fleet, Owner
from services.replicator.stamps import Stamps
from services.runtime.clock import Clock
from services.runtime.peer import SENT

operation_s: Final = 2.0
# A slow disk takes tens of milliseconds; a node that takes longer is in trouble, and its
# neighbours have the write.
awaited_s: Final = 0.25
sweep_s: Final = 0.05
# The first is for a lost message, the last for a node that restarts.
retry_s: Final = (0.1, 0.4, 1.0)
# Writes that wait for another try hold their records in memory; past this they become hints.
retrying_max: Final = 20_000


class Hints(Protocol):
    """Where writes are kept for replicas that are away."""

    def keep(
        self, node_id: str, key: bytes, record: bytes, kept: Callable[[], None] | None = None
    ) -> None:
        """Note that this replica misses this record; `kept` hears of it once the note is durable,
        or cannot be made, in which case comparing replicas will find what is missing."""
        ...


class Epochs(Protocol):
    """Where newer maps come from."""

    def outdated(self, epoch: int) -> None:
        """Somebody knows of this epoch; find its map."""
        ...


class _Write:
    """One write on its way, until every replica has it or is to be told later."""

    __slots__ = (
        "acked",
        "answered",
        "attempt",
        "awaited",
        "body",
        "done",
        "failures",
        "hints_due",
        "key",
        "made",
        "missed",
        "placement",
        "record",
        "restamped",
        "risked",
        "slot",
        "started_s",
        "unheard",
    )

    # Of the present attempt.
    record: bytes
    placement: Placement
    # The owners whose acknowledgement is waited for, as bits of the placement.
    awaited: int
    missed: list[tuple[Owner, int]]
    failures: Failures | None

    def __init__(self, key: bytes, body: bytes, done: Done, now_s: float) -> None:
        self.key = key
        self.slot = slot_of(key)
        self.body = body
        self.done = done
        self.started_s = now_s
        self.attempt = self.unheard = 0
        # Enough replicas have it; its client was told; a later stamp was given; and an earlier
        # attempt may have left it somewhere.
        self.made = self.answered = self.restamped = self.risked = False
        self.acked = self.hints_due = 0


class EventualWrites:
    def __init__(
        self,
        fleet: Fleet,
        stamps: Stamps,
        hints: Hints,
        epochs: Epochs,
        clock: Clock,
        counters: Counters,
        draw: random.Random,
    ) -> None:
        self._fleet = fleet
        self._stamps = stamps
        self._hints = hints
        self._epochs = epochs
        self._clock = clock
        self._counters = counters
        self._draw = draw
        # In the order in which they came; answered ones leave when the sweep meets them.
        self._open: deque[_Write] = deque()
        self._sweeping = False
        # Which replicas are tried again, and since when each write was on its way; oldest first
        # but for a second or two.
        self._behind: dict[tuple[_Write, str], float] = {}

    @property
    def retrying(self) -> int:
        """How many replicas are tried again."""
        return len(self._behind)

    @property
    def oldest_s(self) -> float | None:
        """Since when the replica that is tried again for longest has lacked its write."""
        return next(iter(self._behind.values()), None)

    def write(self, key: bytes, body: bytes, done: Done) -> None:
        """Store a record that lacks only its version."""
        write = _Write(key, body, done, self._clock.monotonic_s())
        self._counters.total_replications += 1
        self._open.append(write)
        if not self._sweeping:
            self._sweeping = True
            self._clock.call_later(sweep_s, self._sweep)
        self._stamp(write)

    # -- sending

    def _stamp(self, write: _Write) -> None:
        try:
            stamp = self._stamps.tick()
        except RetryLater as error:
            self._answer(write, *refusal_of(error))
            return
        write.record = stamp + write.body
        self._send(write)

    def _send(self, write: _Write) -> None:
        """To every owner of the slot, as the map now says. Answers to earlier sends are void."""
        route = self._fleet.route(write.slot)
        write.risked = write.risked or bool(write.acked or write.unheard)
        write.attempt += 1
        write.placement = route.placement
        write.acked = write.awaited = 0
        write.missed = []
        write.failures = None
        message = encode_write(route.epoch, write.key, write.record)
        sent = 0
        for owner in route.owners:
            bit, node = owner
            heard = partial(self._heard, write, write.attempt, owner)
            asked = node.link.request(WRITE, message, heard, operation_s)
            if asked == SENT:
                # The first that can be asked is the first live one, by the order of the route.
                write.awaited = write.awaited or bit
                sent += 1
            else:
                self._note(write, owner, asked)
        write.unheard = sent
        self._counters.queue_size += sent
        if write.missed and not self._possible(write):
            self._give_up(write)

    # -- hearing

    def _heard(self, write: _Write, attempt: int, owner: Owner, kind: int, body: bytes) -> None:
        counters = self._counters
        counters.queue_size -= 1
        if attempt != write.attempt:
            if kind in (NEWER, BELOW_FLOOR):
                self._merge(body)
            return
        write.unheard -= 1
        if kind == OK:
            counters.successful_replicas += 1
            write.acked |= owner.bit
            if write.made:
                self._settle(write)
            elif write.acked & write.awaited and write.placement.is_in_both(write.acked):
                self._make(write)
        elif kind in (NEWER, BELOW_FLOOR):
            self._stands_behind(write, owner, kind, body)
        elif kind == WRONG_EPOCH and not write.made:
            self._learn_epoch(body)
            self._send_later(write)
        else:
            if kind == WRONG_EPOCH:
                self._learn_epoch(body)
            self._failed(write, owner, kind)

    def _learn_epoch(self, body: bytes) -> None:
        self._counters.wrong_epoch += 1
        self._epochs.outdated(u64.unpack(body)[0])

    def _stands_behind(self, write: _Write, owner: Owner, kind: int, body: bytes) -> None:
        """The replica holds a newer record, or has a floor above this one."""
        mergeable = self._merge(body)
        if write.made:
            # It has what replaced this write, or will get it from whoever wrote that.
            self._counters.successful_replicas += 1
            write.acked |= owner.bit
            self._settle(write)
        elif not write.restamped and mergeable:
            write.restamped = True
            self._counters.restamped += 1
            self._stamp(write)
        elif kind == NEWER and write.restamped:
            # Overtaken once more: what is there, durably, was written after this.
            write.acked |= owner.bit
            if write.acked & write.awaited and write.placement.is_in_both(write.acked):
                self._make(write)
        else:
            self._failed(write, owner, kind)

    def _merge(self, body: bytes) -> bool:
        try:
            self._stamps.merge(check_version(body))
        except RetryLater:
            return False
        return True

    def _failed(self, write: _Write, owner: Owner, kind: int) -> None:
        if write.made:
            self._deliver_later(write, owner, kind)
            return
        self._note(write, owner, kind)
        if owner.bit == write.awaited:
            self._await_any(write)
        if not write.made and not self._possible(write):
            self._give_up(write)

    def _await_any(self, write: _Write) -> None:
        """The acknowledgement of any replica counts from now on."""
        write.awaited = write.placement.everyone
        if write.placement.is_in_both(write.acked):
            self._make(write)

    def _note(self, write: _Write, owner: Owner, kind: int) -> None:
        write.missed.append((owner, kind))
        if write.failures is None:
            write.failures = Failures()
        write.failures.note(owner.node.node_id, kind)

    def _possible(self, write: _Write) -> bool:
        """Whether those that have not failed could still be enough."""
        missed = 0
        for owner, _ in write.missed:
            missed |= owner.bit
        return write.placement.is_in_both(write.placement.everyone & ~missed)

    # -- ending

    def _make(self, write: _Write) -> None:
        """Enough replicas have it. For those that are away there is a hint before anybody is
        told."""
        write.made = True
        if write.missed:
            # One more than there are hints, so that none that is kept at once ends the waiting.
            write.hints_due = 1
            for owner, kind in write.missed:
                self._deliver_later(write, owner, kind)
            self._hint_kept(write)
        else:
            self._acknowledge(write)

    def _hint_kept(self, write: _Write) -> None:
        write.hints_due -= 1
        if not write.hints_due:
            self._acknowledge(write)

    def _acknowledge(self, write: _Write) -> None:
        if write.answered:
            return
        write.answered = True
        self._counters.acknowledged(self._clock.monotonic_s() - write.started_s)
        record = write.record
        write.done(CHANGED, changed_answer(version(record), expires_at_ms(record)))
        self._settle(write)

    def _settle(self, write: _Write) -> None:
        if write.acked == write.placement.everyone:
            self._counters.settled(self._clock.monotonic_s() - write.started_s)

    def _give_up(self, write: _Write) -> None:
        """Too few replicas are left. Refused if it is sure that none has it."""
        failures = write.failures or Failures()
        if write.risked or write.acked or write.unheard or failures.undecided:
            text = f"the write may be on some replicas: {failures}"
            self._answer(write, UNKNOWN, unknown_answer(version(write.record), text))
        else:
            self._answer(write, *failures.refusal())

    def _answer(self, write: _Write, kind: int, body: bytes) -> None:
        """End a write that was not made. What is still heard of it is void."""
        write.made = write.answered = True
        write.attempt += 1
        self._counters.refused(kind)
        write.done(kind, body)

    # -- later

    def _send_later(self, write: _Write) -> None:
        """Send it again when there may be another map."""
        write.attempt += 1
        attempt = write.attempt

        def again() -> None:
            if write.attempt == attempt:
                self._send(write)

        self._clock.call_later(self._draw.uniform(0.01, 0.03), again)

    def _deliver_later(self, write: _Write, owner: Owner, kind: int) -> None:
        """A replica did not take a write that was made. One that is away gets it as a hint, which
        the acknowledgement waits for if it has not been given yet; one that lives, once more."""
        self._counters.failed_replicas += 1
        node_id = owner.node.node_id
        if kind in (DOWN, LOST) or len(self._behind) >= retrying_max:
            kept = None
            if not write.answered:
                write.hints_due += 1
                kept = partial(self._hint_kept, write)
            self._hints.keep(node_id, write.key, write.record, kept)
        else:
            self._behind[write, node_id] = write.started_s
            self._retry(write, node_id, 0)

    def _retry(self, write: _Write, node_id: str, tried: int) -> None:
        delay_s = retry_s[tried] * self._draw.uniform(0.5, 1.0)
        self._clock.call_later(delay_s, partial(self._try_again, write, node_id, tried))

    def _try_again(self, write: _Write, node_id: str, tried: int) -> None:
        node = self._fleet.nodes.get(node_id)
        if node is None:
            # No member any more; its slots have other owners, who got their data otherwise.
            del self._behind[write, node_id]
            return
        self._counters.retries += 1
        heard = partial(self._retried, write, node_id, tried)
        message = encode_write(self._fleet.epoch, write.key, write.record)
        asked = node.link.request(WRITE, message, heard, operation_s)
        if asked != SENT:
            heard(asked, b"")

    def _retried(self, write: _Write, node_id: str, tried: int, kind: int, body: bytes) -> None:
        if kind in (OK, NEWER, BELOW_FLOOR):
            if kind != OK:
                self._merge(body)
            self._counters.successful_replicas += 1
            del self._behind[write, node_id]
            return
        if kind == WRONG_EPOCH:
            self._learn_epoch(body)
        if kind in (DOWN, LOST) or tried + 1 == len(retry_s):
            del self._behind[write, node_id]
            self._hints.keep(node_id, write.key, write.record)
        else:
            self._retry(write, node_id, tried + 1)

    def _sweep(self) -> None:
        now_s = self._clock.monotonic_s()
        waiting = self._open
        still: deque[_Write] = deque()
        while waiting and now_s - waiting[0].started_s > awaited_s:
            write = waiting.popleft()
            if write.answered:
                continue
            if write.made:
                # What is missing is the hint of a slow disk; one durable copy there is.
                if now_s - write.started_s > operation_s:
                    self._acknowledge(write)
            elif now_s - write.started_s > operation_s:
                self._give_up(write)
            else:
                self._await_any(write)
            if not write.answered:
                still.append(write)
        still.extend(write for write in waiting if not write.answered)
        self._open = still
        self._sweeping = bool(still)
        if still:
            self._clock.call_later(sweep_s, self._sweep)
