"""Eventual writes: every replica is sent the write, and one durable copy answers.

The acknowledgement waited for is that of the first live owner, which eventual reads ask next; if
it does not come soon, any other will do. The rest go on in the background, are tried again, and
become hints: a durable note of what a replica still has to get. A write that found a replica away
is answered only once its hint is durable.

    start ──► sent to all owners ──► made: answered ──► settled: every replica has it, or a hint
                  │      ▲
                  │      └── stamped again, once, if a replica holds something newer
                  └────────► refused (nothing was done) or unknown (something may have been)

Writes that come together, those of a batch or of one turn of the event loop, go to each node in few
messages and come back so, and so do those of them that have to be sent again. Each is still a write
by itself.

This is the hot path of the platform: for each write one object, for each message one callback made
by `partial`, no task, no future, no timer; one sweep sees to all that take too long.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Final

from services.core.errors import PeerError, RetryLater
from services.core.hlc import check_version
from services.core.messages import (
    BELOW_FLOOR,
    NEWER,
    WRITE,
    WRITE_MANY,
    WRONG_EPOCH,
    Status,
    all_applied,
    decode_statuses,
    encode_write,
    epoch_of,
)
from services.core.operations import CHANGED, UNKNOWN, changed_answer, unknown_answer
from services.core.record import expires_at_ms, version
from services.core.wire import DOWN, FAILED, LOST, OK, OVERLOADED
from services.replicator.answers import Done, Failures, refusal_of, senseless, undecided
from services.replicator.counters import Counters
from services.replicator.retries import Retries
from services.replicator.seams import Epochs, Hints
from services.replicator.stamps import Stamps
from services.replicator.write import Load, Write, few_of, loads
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet, Owner
from services.runtime.peer import SENT

operation_s: Final = 2.0
# A slow disk takes tens of milliseconds; a node that takes longer is in trouble, and its
# neighbours have the write.
awaited_s: Final = 0.25
sweep_s: Final = 0.05
# Of those that come together: to stamp, encode and send so many takes about two milliseconds.
begun_in_a_turn: Final = 256
# Of those that took too long: to refuse so many takes about a millisecond.
ended_in_a_turn: Final = 200
# What a node has been sent together with others and has not told of, as many as a link takes of
# those that go alone; past it the node counts as overloaded. Each is held here for as long.
writes_unheard_max: Final = 16_384
# Until a newer map arrives, which takes a query; without PostgreSQL it takes longer, and the pause
# doubles up to the last.
map_pause_s_min: Final = 0.03
map_pause_s_max: Final = 0.25


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
        self.retries = Retries(fleet, stamps, hints, epochs, clock, counters, draw)
        self._fleet = fleet
        self._stamps = stamps
        self._hints = hints
        self._epochs = epochs
        self._clock = clock
        self._counters = counters
        self._draw = draw
        # In the order in which they came; answered ones leave when the sweep meets them.
        self._open: deque[Write] = deque()
        self._sweeping = False
        # What has come in this turn of the loop, to be begun at its end; in the order of coming.
        self._coming: deque[Write] = deque()
        # What is to be sent and waits for more that go with it, while more are coming.
        self._gathered: list[Write] | None = None
        # Writes, with their attempts, that wait for a newer map than that of this epoch, and how
        # long the next of them wait.
        self._outdated: list[tuple[Write, int]] = []
        self._outdated_epoch = 0
        self._map_pause_s = map_pause_s_min

    @property
    def retrying(self) -> int:
        """How many replicas are tried again."""
        return self.retries.count

    @property
    def oldest_s(self) -> float | None:
        """Since when the replica that is tried again for longest has lacked its write."""
        return self.retries.oldest_s

    def write(self, key: bytes, body: bytes, done: Done, *, yields: bool = False) -> None:
        """Store a record that lacks only its version. One that `yields` is not stamped again where
        something newer is: that stays, as if it had come after."""
        self._begin(Write(key, body, done, self._clock.monotonic_s(), yields=yields))

    def write_soon(self, key: bytes, body: bytes, done: Done) -> None:
        """As `write`, but with all others for which this is called in this turn of the event loop:
        in messages of many to each node and back. They are no more ordered than if they had come
        by themselves."""
        coming = self._coming
        if not coming:
            self._clock.call_later(0.0, self._begin_coming)
        coming.append(Write(key, body, done, self._clock.monotonic_s(), yields=False))

    def _begin_coming(self) -> None:
        few = few_of(self._coming)
        if self._coming:
            self._clock.call_later(0.0, self._begin_coming)
        with self._together():
            for write in few:
                self._begin(write)

    def write_many(
        self, writes: Iterable[tuple[bytes, bytes, Done]], *, yields: bool = False
    ) -> None:
        """As `write` for each of them, but in messages of many to each node and back, some in each
        turn of the event loop. Of two on one key, the later one takes effect later."""
        self._begin_some(self._made_in_order(list(writes), yields))

    def _made_in_order(
        self, waiting: list[tuple[bytes, bytes, Done]], yields: bool
    ) -> Iterator[Write]:
        last = {key: index for index, (key, _, _) in enumerate(waiting)}
        for index, (key, body, done) in enumerate(waiting):
            time_s = self._clock.monotonic_s()
            yield Write(key, body, done, time_s, yields=yields, replaced=last[key] != index)

    def _begin_some(self, writes: Iterator[Write]) -> None:
        some = list(islice(writes, begun_in_a_turn))
        with self._together():
            for write in some:
                self._begin(write)
        if len(some) == begun_in_a_turn:
            self._clock.call_later(0.0, partial(self._begin_some, writes))

    # -- sending

    def _begin(self, write: Write) -> None:
        self._open.append(write)
        if not self._sweeping:
            self._sweeping = True
            self._clock.call_later(sweep_s, self._sweep)
        self._stamp(write)

    def _stamp(self, write: Write) -> None:
        try:
            stamp = self._stamps.tick()
        except RetryLater as error:
            if write.traceless:
                self._answer(write, *refusal_of(error))
            else:
                self._unknown(write, error.detail)
            return
        if not write.attempt:
            self._counters.total_replications += 1
        write.record = stamp + write.body
        self._send(write)

    def _send(self, write: Write) -> None:
        """To every owner of the slot, as the map now says. Answers to earlier sends are void."""
        if self._gathered is not None:
            self._gathered.append(write)
            return
        route = self._fleet.route(write.slot)
        write.begin(route)
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
                write.note(owner, asked)
        write.unheard = sent
        if write.missed and not write.possible:
            self._give_up(write)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What is to be sent meanwhile is sent at the end, to each node all of it at once."""
        gathered: list[Write] = []
        outer, self._gathered = self._gathered, gathered
        try:
            yield
        finally:
            self._gathered = outer
            self._send_together(gathered)

    def _send_together(self, writes: list[Write]) -> None:
        if len(writes) == 1:
            self._send(writes[0])
            return
        route = self._fleet.route
        begun = [(write, route(write.slot)) for write in writes]
        for write, route_ in begun:
            write.begin(route_)
        before: Load | None = None
        body = b""
        for load in loads(begun):
            if before is None or load.writes != before.writes:
                body = load.encode(self._fleet.epoch)
            before = load
            self._send_load(load, body)
        for write, route_ in begun:
            if not write.missed:
                write.awaited = route_.owners[0].bit
                continue
            away = {owner.bit for owner, _ in write.missed}
            write.awaited = next((owner.bit for owner in route_.owners if owner.bit not in away), 0)
            if not write.possible:
                self._give_up(write)

    def _send_load(self, load: Load, body: bytes) -> None:
        node = load.node
        asked = OVERLOADED
        if node.writes_unheard < writes_unheard_max:
            heard = partial(self._heard_many, load)
            asked = node.link.request(WRITE_MANY, body, heard, operation_s)
        if asked == SENT:
            node.writes_unheard += len(load.writes)
            for write in load.writes:
                write.unheard += 1
        else:
            for write, owner in zip(load.writes, load.owners, strict=True):
                write.note(owner, asked)

    # -- hearing

    def _heard(self, write: Write, attempt: int, owner: Owner, kind: int, body: bytes) -> None:
        if attempt != write.attempt:
            write.loose -= 1
            if kind == OK or kind in undecided:
                write.risked = True
            elif kind in (NEWER, BELOW_FLOOR):
                self._merge(body)
            return
        write.unheard -= 1
        if kind == OK:
            write.acked |= owner.bit
            if write.made:
                self._counters.successful_replicas += 1
                self._settle(write)
            elif write.sufficient:
                self._make(write)
        elif kind in (NEWER, BELOW_FLOOR):
            self._stands_behind(write, owner, kind, body)
        elif kind == WRONG_EPOCH and not write.made:
            self._learn_epoch(body)
            write.note(owner, kind)
            self._send_by_next_map(write)
        else:
            if kind == WRONG_EPOCH:
                self._learn_epoch(body)
            self._failed(write, owner, kind)

    def _heard_many(self, load: Load, kind: int, body: bytes) -> None:
        """What a node answers to a message with many writes. Unless it did them, and tells what
        became of each, its answer is for all."""
        count = len(load.writes)
        load.node.writes_unheard -= count
        if kind == OK and body == all_applied(count):
            for index, write in enumerate(load.writes):
                self._heard(write, load.attempts[index], load.owners[index], OK, b"")
            return
        statuses: Sequence[Status] = [(kind, body)] * count
        if kind == OK:
            try:
                statuses = decode_statuses(body)
            except PeerError:
                statuses = []
            if len(statuses) != count:
                # It did something, and nobody can say what.
                senseless(load.node.node_id, kind, f"no statuses of {count} writes")
                statuses = [(FAILED, b"")] * count
        with self._together():
            for index, write in enumerate(load.writes):
                self._heard(write, load.attempts[index], load.owners[index], *statuses[index])

    def _learn_epoch(self, body: bytes) -> None:
        self._counters.wrong_epoch += 1
        self._epochs.outdated(epoch_of(body))

    def _stands_behind(self, write: Write, owner: Owner, kind: int, body: bytes) -> None:
        """The replica holds a newer record, or has a floor above this one."""
        mergeable = self._merge(body)
        if write.made:
            # It has what replaced this write, or will get it from whoever wrote that.
            self._counters.successful_replicas += 1
            write.acked |= owner.bit
            self._settle(write)
        elif kind == NEWER and (write.final or write.yields):
            # Overtaken, for good: what is there, durably, counts as written after this.
            write.acked |= owner.bit
            if write.sufficient:
                self._make(write)
        elif mergeable and not write.final:
            write.restamped = True
            self._counters.restamped += 1
            self._stamp(write)
        else:
            self._failed(write, owner, kind if mergeable else NEWER)

    def _merge(self, body: bytes) -> bool:
        try:
            self._stamps.merge(check_version(body))
        except (PeerError, RetryLater):
            return False
        return True

    def _failed(self, write: Write, owner: Owner, kind: int) -> None:
        if write.made:
            self._deliver_later(write, owner, kind)
            return
        write.note(owner, kind)
        if owner.bit == write.awaited:
            self._await_any(write)
        if not write.made and not write.possible:
            self._give_up(write)

    def _await_any(self, write: Write) -> None:
        """The acknowledgement of any replica counts from now on."""
        write.awaited = write.placement.everyone
        if write.placement.is_in_both(write.acked):
            self._make(write)

    # -- ending

    def _make(self, write: Write) -> None:
        """Enough replicas have it. For those that are away there is a hint before anybody is
        told."""
        write.made = True
        self._counters.successful_replicas += write.acked.bit_count()
        if write.missed:
            # One more than there are hints, so that none that is kept at once ends the waiting.
            write.hints_due = 1
            for owner, kind in write.missed:
                self._deliver_later(write, owner, kind)
            self._hint_kept(write)
        else:
            self._acknowledge(write)

    def _hint_kept(self, write: Write) -> None:
        write.hints_due -= 1
        if not write.hints_due:
            self._acknowledge(write)

    def _acknowledge(self, write: Write) -> None:
        if write.answered:
            return
        write.answered = True
        self._counters.acknowledged(self._clock.monotonic_s() - write.started_s)
        record = write.record
        write.done(CHANGED, changed_answer(version(record), expires_at_ms(record)))
        self._settle(write)

    def _settle(self, write: Write) -> None:
        if write.acked == write.placement.everyone:
            self._counters.settled(self._clock.monotonic_s() - write.started_s)

    def _give_up(self, write: Write) -> None:
        """Too few replicas are left. Refused if it is sure that none has it."""
        failures = write.failures or Failures()
        if write.traceless:
            self._answer(write, *failures.refusal())
        else:
            self._unknown(write, f"the write may be on some replicas: {failures}")

    def _unknown(self, write: Write, text: str) -> None:
        self._answer(write, UNKNOWN, unknown_answer(version(write.record), text))

    def _answer(self, write: Write, kind: int, body: bytes) -> None:
        """End a write that was not made. What is still heard of it is void."""
        write.made = write.answered = True
        if write.attempt:
            everyone, acked = write.placement.everyone, write.acked
            self._counters.successful_replicas += acked.bit_count()
            self._counters.failed_replicas += (everyone & ~acked).bit_count()
        write.void()
        self._counters.refused(kind)
        write.done(kind, body)

    # -- later

    def _send_by_next_map(self, write: Write) -> None:
        """Send it again when there may be another map, with all others that wait for that."""
        write.void()
        self._outdated.append((write, write.attempt))
        if len(self._outdated) == 1:
            if self._outdated_epoch != self._fleet.epoch:
                self._outdated_epoch, self._map_pause_s = self._fleet.epoch, map_pause_s_min
            pause_s = self._map_pause_s * self._draw.uniform(0.4, 1.0)
            self._map_pause_s = min(self._map_pause_s * 2, map_pause_s_max)
            self._clock.call_later(pause_s, self._send_outdated)

    def _send_outdated(self) -> None:
        outdated, self._outdated = self._outdated, []
        # What could not be answered in its time ends as what it is now: refused by all.
        begun_s = self._clock.monotonic_s() - operation_s + awaited_s
        with self._together():
            for write, attempt in outdated:
                if write.attempt == attempt and write.started_s > begun_s:
                    self._send(write)

    def _deliver_later(self, write: Write, owner: Owner, kind: int) -> None:
        """A replica did not take a write that was made. One that is away gets it as a hint, which
        the acknowledgement waits for if it has not been given yet; one that lives, once more."""
        self._counters.failed_replicas += 1
        node_id = owner.node.node_id
        if kind in (DOWN, LOST) or self.retries.full:
            kept = None
            if not write.answered:
                write.hints_due += 1
                kept = partial(self._hint_kept, write)
            self._hints.keep(node_id, write.key, write.record, kept)
        else:
            self.retries.add(node_id, write.key, write.record, write.started_s)

    def _sweep(self) -> None:
        now_s = self._clock.monotonic_s()
        if not self._end_late(now_s):
            # The others are still the first of the next sweep.
            self._clock.call_later(0.0, self._sweep)
            return
        waiting = self._open
        still: deque[Write] = deque()
        while waiting and now_s - waiting[0].started_s > awaited_s:
            write = waiting.popleft()
            if not (write.answered or write.made):
                self._await_any(write)
            if not write.answered:
                still.append(write)
        still.extend([write for write in waiting if not write.answered])
        self._open = still
        self._sweeping = bool(still)
        if still:
            self._clock.call_later(sweep_s, self._sweep)

    def _end_late(self, now_s: float) -> bool:
        """End those that have had their time, some of them; whether these were all."""
        waiting = self._open
        ended = 0
        while waiting and now_s - waiting[0].started_s > operation_s:
            if ended == ended_in_a_turn:
                return False
            write = waiting.popleft()
            if write.answered:
                continue
            ended += 1
            if write.made:
                # What is missing is the hint of a slow disk; one durable copy there is.
                self._acknowledge(write)
            else:
                self._give_up(write)
        return True
