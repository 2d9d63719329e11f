"""Strong operations: the driver of `paxos` over links.

    fetch ──► READ a majority ──equal──► answer                               one round trip
                    │ otherwise
                    ▼
    change ──► one at a time for each key here ──► PREPARE ──► ACCEPT ──► answer ──► LEARN
                                                     ▲   again, after a pause   │
                                                     └──────────────────────────┘

A majority is asked first and the others only if it does not answer at once; what is to be
accepted goes to all. Operations on one key wait for each other here, so that they meet rivals
only from other replicators; each has its time, waiting included, and the queues are bounded.

Until an ACCEPT with a change may have left, a failure is definite: nothing was done. From then on
the answer is what was done, or that it is unknown.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from services.core.ballots import (
    ACCEPT,
    NACK,
    PREPARE,
    READ,
    decode_seen,
    encode_accept,
    encode_prepare,
    encode_read,
)
from services.core.change import Changed, read
from services.core.errors import RetryLater
from services.core.hlc import Version, check_version
from services.core.messages import WRONG_EPOCH, epoch_of
from services.core.operations import UNKNOWN, unknown_answer
from services.core.paxos import Change, Reading, Step, no_operation
from services.core.wire import OK
from services.replicator.answers import Done, Failures, refusal, refusal_of
from services.replicator.counters import Counters
from services.replicator.key_turns import KeyTurns, ended_in_a_turn, waiting_for_key_max
from services.replicator.seams import Epochs, Hints
from services.replicator.stamps import Stamps
from services.replicator.strong_learning import Learning
from services.replicator.strong_operation import Chosen, Operation, operation_s
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet, Owner
from services.runtime.peer import SENT

# Looks for who waits too long; runs while anything is under way.
sweep_s: Final = 0.025
# A rival's two round trips take about as long as the first pause; it doubles up to the last.
pause_s_min: Final = 0.002
pause_s_max: Final = 0.1
# Until a newer map arrives, which takes a query.
epoch_pause_s: Final = 0.02
# Each holds a value of up to a mebibyte.
waiting_max: Final = 20_000

log = telemetry.logger(__name__)


def keep(current: bytes, ballot: Version) -> Changed:
    """Change nothing, and say no more."""
    return None, (OK, b"")


class StrongOperations:
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
        self._epochs = epochs
        self._clock = clock
        self._counters = counters
        self._draw = draw
        self._learning = Learning(hints, clock, counters)
        self._turns = KeyTurns(clock, self._begin_turn)
        # In the order in which they came, so that a simulation repeats itself.
        self._under_way: dict[Operation, None] = {}
        # By slot, how many of them propose something, or wait for their turn to.
        self._proposing: dict[int, int] = {}
        self._sweeping = False

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def is_proposing(self, slot: int) -> bool:
        """Whether something of this slot is proposed, or about to be: were the slot to get a floor
        above its ballot now, a client might have to be told that the outcome is unknown."""
        return slot in self._proposing

    def fetch(self, key: bytes, done: Done) -> None:
        """Read the newest value that any acknowledged strong change has left."""
        operation = self._begin(key, read, done, grows=False)
        if operation is None:
            return
        operation.route = self._fleet.route(operation.slot)
        operation.reading = Reading(operation.route.placement, self._clock.wall_ms())
        operation.start_round(self._clock.monotonic_s())
        self._ask(operation)

    def change(self, key: bytes, change: Change, done: Done, *, grows: bool = True) -> None:
        """Put the change through. `grows` tells whether it may make the store larger."""
        operation = self._begin(key, change, done, grows=grows)
        if operation is not None:
            self._queue(operation)

    def settle(self, key: bytes, settled: Callable[[Chosen | None], None]) -> None:
        """Change nothing, and have every owner accept what there is at one ballot; an expired value
        becomes a tombstone. None if one of them does not, in the time that an operation has."""

        def done(kind: int, body: bytes) -> None:
            if operation is None or kind != OK:
                settled(None)
            else:
                proposal = operation.proposal
                settled(Chosen(operation.route.epoch, proposal.ballot, proposal.record))

        operation: Operation | None = None
        operation = self._begin(key, keep, done, grows=False, of_all=True)
        if operation is not None:
            self._queue(operation)

    def _begin(
        self, key: bytes, change: Change, done: Done, *, grows: bool, of_all: bool = False
    ) -> Operation | None:
        if len(self._under_way) >= waiting_max:
            self._counters.refusals += 1
            done(*refusal("overloaded", f"{waiting_max} strong operations are under way"))
            return None
        now_s = self._clock.monotonic_s()
        operation = Operation(key, change, done, now_s, grows=grows, of_all=of_all)
        self._under_way[operation] = None
        if not self._sweeping:
            self._sweeping = True
            self._clock.call_later(sweep_s, self._sweep)
        return operation

    # -- reading

    def _seen(
        self, operation: Operation, round_: int, owner: Owner, kind: int, body: bytes
    ) -> None:
        reading = operation.reading
        if round_ != operation.round or reading is None:
            return
        if kind != OK:
            self._not_done(operation, owner, kind, body)
            return
        decided = reading.seen(owner.bit, decode_seen(body))
        if decided is None:
            return
        if decided:
            self._counters.fast_reads += 1
            self._merge(reading.ballot)
            record = reading.record
            self._learning.mend(operation, reading)
            self._end(operation, *read(record, no_operation)[1])
        else:
            self._propose_instead(operation)

    def _merge(self, ballot: Version) -> None:
        """What a client writes after it was shown this is later, also if it writes eventually and
        finds cells that have not learned yet."""
        try:
            self._stamps.merge(ballot)
        except RetryLater:
            # Too far ahead to be followed; that is no reason not to show it.
            return

    def _propose_instead(self, operation: Operation) -> None:
        operation.reading = None
        operation.end_round()
        self._queue(operation)

    # -- one at a time

    def _queue(self, operation: Operation) -> None:
        operation.queued = True
        self._proposing[operation.slot] = self._proposing.get(operation.slot, 0) + 1
        if not self._turns.take(operation):
            self._refuse(operation, "overloaded", f"{waiting_for_key_max} wait for this key")

    def _begin_turn(self, operation: Operation) -> None:
        if self._clock.monotonic_s() < operation.deadline_s:
            self._propose(operation)
        else:
            self._too_late(operation)

    # -- proposing

    def _propose(self, operation: Operation) -> None:
        """Begin a round with a new ballot."""
        proposal = operation.proposal
        try:
            ballot = self._stamps.tick()
        except RetryLater as error:
            self._cannot(operation, error)
            return
        self._counters.proposals += 1
        operation.route = self._fleet.route(operation.slot)
        proposal.begin(ballot, operation.route.placement)
        operation.start_round(self._clock.monotonic_s())
        self._ask(operation)

    def _ask(self, operation: Operation, *, all_of_them: bool = False) -> None:
        """READ or PREPARE as many as make a quorum, or everybody who was not asked yet."""
        epoch, key = operation.route.epoch, operation.key
        proposal, reading = operation.proposal, operation.reading
        if reading is not None:
            kind, message, heard = READ, encode_read(epoch, key), self._seen
        else:
            kind, heard = PREPARE, self._prepared
            message = encode_prepare(epoch, proposal.ballot, key, grows=operation.grows)
        placement = operation.route.placement
        round_ = operation.round
        while operation.unasked and (all_of_them or not placement.is_quorum(operation.asked)):
            owner = operation.unasked.pop()
            answered = partial(heard, operation, round_, owner)
            asked = owner.node.link.request(kind, message, answered, operation_s)
            if asked == SENT:
                operation.asked |= owner.bit
            elif not self._do_without(operation, owner, asked):
                return

    def _do_without(self, operation: Operation, owner: Owner, kind: int) -> bool:
        """Note that this owner failed; whether the round goes on."""
        operation.failures.note(owner.node.node_id, kind)
        operation.asked &= ~owner.bit
        if operation.reading is not None:
            left = operation.asked | sum(owner.bit for owner in operation.unasked)
            if operation.route.placement.is_quorum(left):
                return True
            step = Step.BLOCKED
        else:
            step = operation.proposal.failed(owner.bit)
        self._step(operation, step)
        return step is Step.WAIT

    def _not_done(self, operation: Operation, owner: Owner, kind: int, body: bytes) -> None:
        """A replica has not done what this round asked for."""
        if kind == WRONG_EPOCH:
            self._counters.wrong_epoch += 1
            self._epochs.outdated(epoch_of(body))
            self._again(operation, epoch_pause_s + self._pause_s(operation))
        elif self._do_without(operation, owner, kind):
            self._ask(operation)

    def _prepared(
        self, operation: Operation, round_: int, owner: Owner, kind: int, body: bytes
    ) -> None:
        if round_ != operation.round:
            return
        if kind == OK:
            self._step(operation, operation.proposal.promised(owner.bit, decode_seen(body)))
        elif kind == NACK:
            self._step(operation, operation.proposal.refused(owner.bit, check_version(body)))
        else:
            self._not_done(operation, owner, kind, body)

    def _step(self, operation: Operation, step: Step) -> None:
        if step is Step.WAIT:
            return
        if step is Step.ACCEPT:
            self._accept(operation)
        elif step is Step.CHOSEN:
            self._chosen(operation)
        elif step is Step.UNKNOWN:
            self._unknown(operation, "another change came in between")
        elif step is Step.AGAIN:
            try:
                self._stamps.merge(operation.proposal.beyond)
            except RetryLater as error:
                self._cannot(operation, error)
                return
            self._again(operation, self._pause_s(operation))
        elif operation.proposal.committed:
            self._again(operation, self._pause_s(operation))
        else:
            self._end(operation, *operation.failures.refusal(), refused=True)

    # -- accepting

    def _accept(self, operation: Operation) -> None:
        """Ask every owner, also those that have promised nothing."""
        proposal = operation.proposal
        operation.end_round()
        operation.failures = Failures()
        message = encode_accept(
            operation.route.epoch,
            proposal.ballot,
            proposal.operation,
            operation.key,
            proposal.record,
        )
        round_ = operation.round
        for owner in operation.route.owners:
            answered = partial(self._accepted, operation, round_, owner)
            asked = owner.node.link.request(ACCEPT, message, answered, operation_s)
            if asked != SENT:
                operation.failures.note(owner.node.node_id, asked)
                step = proposal.failed(owner.bit)
                if step is not Step.WAIT:
                    self._step(operation, step)
                    return

    def _accepted(
        self, operation: Operation, round_: int, owner: Owner, kind: int, body: bytes
    ) -> None:
        if round_ != operation.round:
            return
        proposal = operation.proposal
        if operation.answered:
            if kind != OK:
                self._learning.missed(operation, owner, kind)
            elif proposal.record:
                self._learning.has(operation, owner.bit)
        elif kind == OK:
            self._step(operation, proposal.accepted(owner.bit))
        elif kind == NACK:
            operation.failures.note(owner.node.node_id, kind)
            self._step(operation, proposal.refused(owner.bit, check_version(body)))
        elif kind == WRONG_EPOCH:
            self._not_done(operation, owner, kind, body)
        else:
            operation.failures.note(owner.node.node_id, kind)
            self._step(operation, proposal.failed(owner.bit))

    def _chosen(self, operation: Operation) -> None:
        """Answer, then have the cells learn, as eventual reads look there."""
        proposal = operation.proposal
        record = proposal.record
        if record:
            self._counters.acknowledged(self._clock.monotonic_s() - operation.started_s)
        self._end(operation, *proposal.answer)
        if record:
            self._learning.chosen(operation)

    # -- ending, or not yet

    def _pause_s(self, operation: Operation) -> float:
        operation.pauses += 1
        longest_s = min(pause_s_min * 2**operation.pauses, pause_s_max)
        return self._draw.uniform(0.0, longest_s)

    def _again(self, operation: Operation, pause_s: float) -> None:
        """Another round, soon."""
        self._counters.rounds_again += 1
        operation.end_round()
        round_ = operation.round

        def again() -> None:
            if operation.round != round_ or operation.answered:
                return
            if operation.reading is not None:
                self._propose_instead(operation)
            else:
                self._propose(operation)

        self._clock.call_later(pause_s, again)

    def _cannot(self, operation: Operation, error: RetryLater) -> None:
        """This replicator must not go on with it."""
        if operation.proposal.committed:
            self._unknown(operation, error.detail)
        else:
            self._end(operation, *refusal_of(error), refused=True)

    def _refuse(self, operation: Operation, code: str, text: str) -> None:
        self._end(operation, *refusal(code, text), refused=True)

    def _unknown(self, operation: Operation, why: str) -> None:
        """Once a change may have left: it is told by the id that acceptors know it by."""
        proposal, counters = operation.proposal, self._counters
        identity = proposal.identity
        accepted = proposal.accepted_by
        counters.unknown_outcomes += 1
        counters.total_replications += 1
        counters.successful_replicas += accepted.bit_count()
        counters.failed_replicas += (proposal.placement.everyone & ~accepted).bit_count()
        log.info("outcome unknown", operation=identity.hex(), why=why)
        self._end(operation, UNKNOWN, unknown_answer(identity, why))

    def _end(self, operation: Operation, kind: int, body: bytes, *, refused: bool = False) -> None:
        if operation.answered:
            return
        operation.answered = True
        self._under_way.pop(operation, None)
        if operation.queued:
            self._proposes_no_more(operation.slot)
        if not operation.proposal.chosen:
            # A late promise must not lead to an ACCEPT of what was refused just now, nor a late
            # reader to a proposal. Of what was chosen it is heard yet who did not accept it.
            operation.end_round()
        if refused:
            self._counters.refusals += 1
        operation.done(kind, body)
        self._turns.leave(operation)

    def _proposes_no_more(self, slot: int) -> None:
        left = self._proposing[slot] - 1
        if left:
            self._proposing[slot] = left
        else:
            del self._proposing[slot]

    def _sweep(self) -> None:
        now_s = self._clock.monotonic_s()
        late = 0
        for operation in list(self._under_way):
            if operation.answered:
                # By what became of one before it.
                continue
            if now_s >= operation.deadline_s:
                late += 1
                if late > ended_in_a_turn:
                    # The others are still the first of the next sweep.
                    break
                self._too_late(operation)
            elif operation.unasked and now_s >= operation.hedge_at_s:
                self._ask(operation, all_of_them=True)
        self._sweeping = bool(self._under_way)
        if self._sweeping:
            self._clock.call_later(sweep_s if late <= ended_in_a_turn else 0.0, self._sweep)

    def _too_late(self, operation: Operation) -> None:
        text = f"no quorum within {operation_s:g} s: {operation.failures}"
        if operation.proposal.committed:
            self._unknown(operation, text)
        elif operation.round:
            self._refuse(operation, "no_quorum", text)
        else:
            self._refuse(operation, "overloaded", f"{operation_s:g} s went by in the key's queue")
