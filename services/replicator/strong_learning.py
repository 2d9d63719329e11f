"""Having cells learn what strong operations have chosen, as eventual reads look there, and noting
who has it.

Nobody waits for this: the client has its answer. Whoever accepted is told the ballot alone, a
replica that holds a later one or a floor is told the record as well, and for one that cannot be
reached a hint is kept.
"""

from __future__ import annotations

from services.core.ballots import LEARN, NACK, encode_learn
from services.core.paxos import Reading
from services.replicator.counters import Counters
from services.replicator.seams import Hints
from services.replicator.strong_operation import Operation
from services.runtime.clock import Clock
from services.runtime.fleet import Owner


class Learning:
    def __init__(self, hints: Hints, clock: Clock, counters: Counters) -> None:
        self._hints = hints
        self._clock = clock
        self._counters = counters

    def mend(self, operation: Operation, reading: Reading) -> None:
        """Have replicas learn what was read if they turned out to be behind it."""
        for owner in operation.route.owners:
            cell = reading.cells.get(owner.bit)
            if cell is not None and cell < reading.record:
                self._counters.read_repairs += 1
                learn = encode_learn(operation.route.epoch, reading.ballot, operation.key, b"")
                owner.node.link.notify(LEARN, learn)

    def chosen(self, operation: Operation) -> None:
        """A record was chosen, and its client is answered."""
        proposal = operation.proposal
        self._counters.total_replications += 1
        operation.having = 0
        self.has(operation, proposal.accepted_by)
        learn = encode_learn(operation.route.epoch, proposal.ballot, operation.key, b"")
        failed = operation.failures.by_node
        for owner in operation.route.owners:
            if (kind := failed.get(owner.node.node_id)) is not None:
                self.missed(operation, owner, kind)
            elif proposal.cells.get(owner.bit) != proposal.record:
                owner.node.link.notify(LEARN, learn)

    def has(self, operation: Operation, bits: int) -> None:
        """These owners have what was chosen, each told once."""
        self._counters.successful_replicas += bits.bit_count()
        operation.having |= bits
        if operation.having == operation.route.placement.everyone:
            self._counters.settled(self._clock.monotonic_s() - operation.started_s)

    def missed(self, operation: Operation, owner: Owner, kind: int) -> None:
        """This owner did not accept what was chosen; its cell is to have it all the same."""
        proposal = operation.proposal
        if not proposal.record or not proposal.chosen:
            return
        if proposal.cells.get(owner.bit) == proposal.record:
            # What was chosen is what it had shown.
            self.has(operation, owner.bit)
            return
        self._counters.failed_replicas += 1
        if kind == NACK:
            learn = encode_learn(
                operation.route.epoch, proposal.ballot, operation.key, proposal.record
            )
            owner.node.link.notify(LEARN, learn)
        else:
            self._hints.keep(owner.node.node_id, operation.key, proposal.record)
