"""CASPaxos for one key: what an acceptor may promise and accept, and how a change is proposed.

Leaderless and per key: a change takes two round trips, an undisturbed read one. Nothing here
waits, sends or stores; drivers do, and tell these rules what came of it.

    acceptor     nothing_promised ──prepare──► promised ──accept──► accepted ──prepare──► …
                 on each replica, for each key, durable before it is answered

    proposal     begin ──► PREPARING ──quorum of promises──► ACCEPTING ──quorum of acks──► chosen
                   ▲           │                             │
                   └── again ──┴─────── a later ballot stands in the way, or a new map

A proposal may be made to be chosen by acks of all instead of a quorum: whoever is about to drop
what is accepted has to know that every replica holds the same.

A ballot is a version from the proposer's clock, so no two proposers share one, and one ballot
carries one value. What is accepted is a whole record, or nothing (`b""`), with the id of the
operation that made it: the first ballot of that operation.

Beside what it accepted a replica has the key's *cell*, the record that eventual writes change and
eventual reads show. A proposal absorbs a cell that is newer than everything accepted, and what is
chosen goes into the cells afterwards.

From the moment an ACCEPT with a change may have left, only `CHOSEN` and `UNKNOWN` may become of an
operation: a failure that is not known to be one would make its client apply it twice. An ACCEPT
that only repeats what was there changes nothing, and commits to nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, NamedTuple

from services.core.hlc import Version, version_bytes, version_ms, version_zero
from services.core.placement import Placement
from services.core.record import expired, tombstone_body

no_operation: Final = version_zero


class Promise(NamedTuple):
    """What an acceptor holds for one key. A ballot of `version_zero` is below all others."""

    promised: Version
    # The ballot at which `record` was accepted; `version_zero` if nothing ever was.
    ballot: Version
    operation: Version
    record: bytes


nothing_promised: Final = Promise(version_zero, version_zero, no_operation, b"")


def hindrance(held: Promise, floor: Version) -> Version:
    """What a new ballot has to exceed."""
    return max(held.promised, held.ballot, floor)


def prepare(held: Promise, floor: Version, ballot: Version) -> Promise | None:
    """The promise to accept nothing below `ballot`; None if as much was promised before."""
    if ballot <= hindrance(held, floor):
        return None
    return Promise(ballot, held.ballot, held.operation, held.record)


def accept(
    held: Promise, floor: Version, ballot: Version, operation: Version, record: bytes
) -> Promise | None:
    """What is held once this is accepted, `held` itself if it was before; None if it may not be."""
    if ballot == held.ballot:
        return held
    if ballot < held.promised or ballot < held.ballot or ballot <= floor:
        return None
    return Promise(ballot, ballot, operation, record)


class Seen(NamedTuple):
    """What a replica shows of a key to whoever reads or prepares."""

    ballot: Version
    operation: Version
    floor: Version
    record: bytes
    cell: bytes


nothing_seen: Final = Seen(version_zero, no_operation, version_zero, b"", b"")


class Step(enum.Enum):
    """What the driver of a proposal has to do next."""

    WAIT = enum.auto()
    ACCEPT = enum.auto()  # Send ACCEPT with `ballot`, `operation` and `record` to every owner.
    CHOSEN = enum.auto()  # Answer with `answer`; then let the cells learn the record.
    AGAIN = enum.auto()  # Begin with a ballot above `beyond`.
    BLOCKED = enum.auto()  # No quorum can be had from these replicas just now.
    UNKNOWN = enum.auto()  # Whether an earlier round's change came to be cannot be known.


Answer = tuple[int, bytes]
"""The kind and the body of what the client is told."""

Change = Callable[[bytes, Version], tuple[bytes | None, Answer]]
"""From the current record (`b""` for none, never an expired one) and the ballot to the new record,
None to keep the current one, and the answer. Called once a round."""


class Proposal:
    """One operation on one key, through as many rounds as it takes. Bits are the placement's."""

    __slots__ = (
        "_answers",
        "_based_on",
        "_change",
        "_failed",
        "_highest",
        "_newest_cell",
        "_of_all",
        "_preparing",
        "_top_floor",
        "_voted",
        "answer",
        "ballot",
        "beyond",
        "cells",
        "chosen",
        "identity",
        "operation",
        "placement",
        "record",
    )

    placement: Placement
    ballot: Version
    # Accepted with the ballot: the id of the operation that made the record, and the record.
    operation: Version
    record: bytes
    answer: Answer

    def __init__(self, change: Change, *, of_all: bool = False) -> None:
        self.beyond = version_zero
        self.chosen = False
        self._change = change
        # Whether every owner has to accept, and not only a quorum of them.
        self._of_all = of_all
        # The id of this operation itself, whatever is accepted for it: the first ballot at which a
        # change of it may have left, and `no_operation` until then. What it was then based on.
        self.identity: Version = no_operation
        self._based_on = b""
        # By the version of each record that this operation made, what its client is to be told.
        self._answers: dict[Version, Answer] = {}
        self.operation = no_operation

    @property
    def committed(self) -> bool:
        """Whether a change may have left: no definite failure may be answered any more."""
        return self.identity != no_operation

    @property
    def accepted_by(self) -> int:
        """Who has accepted the ballot, as bits."""
        return 0 if self._preparing else self._voted

    def begin(self, ballot: Version, placement: Placement) -> None:
        """A new round. What is answered to earlier ones must not be passed on any more."""
        self.ballot = ballot
        self.placement = placement
        self._preparing = True
        self._voted = self._failed = 0
        self._highest = nothing_seen
        self._newest_cell = b""
        self._top_floor = version_zero
        # Of those that promised, by their bits: what their cells hold.
        self.cells: dict[int, bytes] = {}

    def promised(self, bit: int, seen: Seen) -> Step:
        """A replica has promised the ballot and shown what it holds."""
        if not self._preparing:
            return Step.WAIT
        if seen.ballot > self._highest.ballot:
            self._highest = seen
        if seen.cell > self._newest_cell:
            self._newest_cell = seen.cell
        if seen.floor > self._top_floor:
            self._top_floor = seen.floor
        self.cells[bit] = seen.cell
        self._voted |= bit
        if not self.placement.is_quorum(self._voted):
            return Step.WAIT
        self._preparing = False
        self._voted = self._failed = 0
        return self._propose()

    def accepted(self, bit: int) -> Step:
        if self._preparing:
            return Step.WAIT
        self._voted |= bit
        if not self._enough(self._voted):
            return Step.WAIT
        self.chosen = True
        return Step.CHOSEN

    def refused(self, bit: int, by: Version) -> Step:
        """A replica holds this ballot or floor, so it neither promises nor accepts."""
        if by > self.beyond:
            self.beyond = by
        # Before anything is accepted a higher ballot costs nothing. Later the others may suffice.
        if self._preparing:
            return Step.AGAIN
        return self._without(bit, Step.AGAIN)

    def failed(self, bit: int) -> Step:
        """A replica cannot be reached, or will not do what it is asked for now."""
        return self._without(bit, Step.BLOCKED if self.beyond < self.ballot else Step.AGAIN)

    def _without(self, bit: int, otherwise: Step) -> Step:
        if self._voted & bit:
            # It had answered; what came now is a late word on the same message.
            return Step.WAIT
        self._failed |= bit
        left = self.placement.everyone & ~self._failed
        return Step.WAIT if self._enough(left) else otherwise

    def _enough(self, bits: int) -> bool:
        """Whether these are as many as this phase needs."""
        if self._of_all and not self._preparing:
            return bits == self.placement.everyone
        return self.placement.is_quorum(bits)

    def _propose(self) -> Step:
        """Choose what to have accepted, now that a quorum has shown what there is."""
        operation, current = self._highest.operation, self._highest.record
        if self._newest_cell > current:
            operation, current = no_operation, self._newest_cell
        if current[:version_bytes] >= self.ballot:
            self.beyond = max(self.beyond, current[:version_bytes])
            return Step.AGAIN
        if (verdict := self._look_back(operation, current)) is not None:
            return verdict
        found = current
        if current and expired(current, version_ms(self.ballot)):
            # An expiry is written like any change, never one reader's opinion of the time.
            operation, current = no_operation, self.ballot + tombstone_body
        changed, self.answer = self._change(current, self.ballot)
        if changed is None:
            self.operation, self.record = operation, current
        else:
            self._commit(changed, found)
        return Step.ACCEPT

    def _look_back(self, operation: Version, current: bytes) -> Step | None:
        """What an earlier round of this operation, that may have come to be, means for this one."""
        if not self.committed:
            return None
        if operation == self.identity:
            self.answer = self._answers[current[:version_bytes]]
            self.operation, self.record = operation, current
            return Step.ACCEPT
        if current != self._based_on or self._top_floor >= self.identity:
            return Step.UNKNOWN
        return None

    def _commit(self, changed: bytes, found: bytes) -> None:
        if not self.committed:
            self.identity = self.ballot
        self._based_on = found
        self._answers[changed[:version_bytes]] = self.answer
        self.operation, self.record = self.identity, changed


class Reading:
    """A linearizable read in one round trip: a majority that has accepted the same and nothing
    newer. It promises nothing and writes nothing; if it cannot decide, a proposal that changes
    nothing has to."""

    __slots__ = ("_ballot", "_cell", "_now_ms", "_placement", "_record", "_voted", "cells")

    def __init__(self, placement: Placement, now_ms: int) -> None:
        self._placement = placement
        self._now_ms = now_ms
        self._voted = 0
        self._ballot: Version | None = None
        self._record = b""
        self._cell = b""
        self.cells: dict[int, bytes] = {}

    def seen(self, bit: int, seen: Seen) -> bool | None:
        """True once it is decided what to answer, False if it cannot be; None to wait on."""
        if self._ballot is None:
            self._ballot, self._record = seen.ballot, seen.record
        elif seen.ballot != self._ballot:
            return False
        if seen.cell > self._cell:
            self._cell = seen.cell
        self.cells[bit] = seen.cell
        self._voted |= bit
        if not self._placement.is_quorum(self._voted):
            return None
        record = self._record
        return self._cell <= record and not (record and expired(record, self._now_ms))

    @property
    def record(self) -> bytes:
        """What was chosen last; `b""` if nothing ever was."""
        return self._record

    @property
    def ballot(self) -> Version:
        """At which it was accepted."""
        return self._ballot or version_zero
