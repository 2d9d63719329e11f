"""One strong operation on one key, from its arrival to its answer; what is done with it stands in
`strong`."""

from __future__ import annotations

from typing import Final, NamedTuple

from services.core.hlc import Version
from services.core.paxos import Change, Proposal, Reading
from services.core.ring import slot_of
from services.replicator.answers import Done, Failures
from services.runtime.fleet import Owner, Route

# Its time, waiting for others included.
operation_s: Final = 2.0
# As long as a gateway waits before it asks the next replica for a read.
hedge_s: Final = 0.025


class Chosen(NamedTuple):
    """What all owners have accepted: at this ballot, in this epoch; `b""` for nothing."""

    epoch: int
    ballot: Version
    record: bytes


class Operation:
    """One operation on one key, from its arrival to its answer; and what late words mean to it."""

    __slots__ = (
        "answered",
        "asked",
        "deadline_s",
        "done",
        "failures",
        "grows",
        "having",
        "hedge_at_s",
        "key",
        "pauses",
        "proposal",
        "queued",
        "reading",
        "round",
        "route",
        "slot",
        "started_s",
        "unasked",
    )

    route: Route
    # The owners that are not asked yet in this round, the next one last.
    unasked: list[Owner]
    reading: Reading | None
    # Of what was chosen: the owners that are known to have it, as bits of the placement.
    having: int

    def __init__(
        self,
        key: bytes,
        change: Change,
        done: Done,
        now_s: float,
        *,
        grows: bool,
        of_all: bool = False,
    ) -> None:
        self.key = key
        self.slot = slot_of(key)
        self.done = done
        # Whether it may make the store larger, which a replica that is full refuses.
        self.grows = grows
        self.proposal = Proposal(change, of_all=of_all)
        self.reading = None
        self.unasked = []
        self.started_s = now_s
        self.deadline_s = now_s + operation_s
        self.hedge_at_s = now_s + hedge_s
        # What is answered to an earlier round is dropped by its number.
        self.round = self.asked = self.pauses = 0
        self.answered = False
        # Whether it proposes something, or waits for its turn to.
        self.queued = False
        self.failures = Failures()

    def start_round(self, now_s: float) -> None:
        """Ask owners, in their order as of now."""
        self.round += 1
        self.asked = 0
        self.unasked = list(reversed(self.route.owners))
        self.hedge_at_s = now_s + hedge_s
        self.failures = Failures()

    def end_round(self) -> None:
        """Ask nobody more in this round; what it is still told is void."""
        self.round += 1
        self.unasked = []
