"""How an attempt to collect a slot can end, and what becomes of all of them in numbers."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from services.core.ballots import NACK
from services.core.messages import AHEAD, WRONG_EPOCH
from services.core.sessions import NO_SESSION
from services.core.wire import DOWN, LOST, TIMEOUT


class End(enum.Enum):
    """The value is the word for it in metrics."""

    COMPLETED = "completed"
    # An owner of the slot cannot be reached. Until it can, they keep them all.
    NOT_ALL_UP = "not_all_up"
    JOINT = "joint"  # Members are being changed; there is no collecting until that is over.
    WRONG_EPOCH = "wrong_epoch"  # The map changed while the attempt was under way.
    UNSETTLED = "unsettled"  # Too many keys that not all replicas would accept at one ballot.
    CLOCK = "clock"  # Nothing can be stamped, or a replica finds that too far ahead.
    NACKED = "nacked"  # Another replicator is at it: its session is later, or its floor.
    NO_SESSION = "no_session"  # Another's session took this one's place, or the node restarted.
    TIMEOUT = "timeout"
    UNEQUAL = "unequal"  # Replicas still differed after as many rounds as there may be.
    REFUSED = "refused"  # A replica is full, has too much to do, or answers what it should not.
    PURGED_IN_PART = "purged_in_part"  # A replica did not take the last word, however often.
    STOPPED = "stopped"


_ends = {
    DOWN: End.NOT_ALL_UP,
    LOST: End.NOT_ALL_UP,
    TIMEOUT: End.TIMEOUT,
    WRONG_EPOCH: End.WRONG_EPOCH,
    NACK: End.NACKED,
    NO_SESSION: End.NO_SESSION,
    AHEAD: End.CLOCK,
}


def end_by(kind: int) -> End:
    """What an answer other than OK means to an attempt."""
    return _ends.get(kind, End.REFUSED)


# The slot is in nobody's way, and nobody is to blame: it waits until this changes.
lasting = frozenset((End.NOT_ALL_UP, End.JOINT))


@dataclass(slots=True, frozen=True)
class Collected:
    """What one attempt has come to."""

    slot: int
    end: End
    # Why, where the end alone does not tell: who answered what.
    reason: str = ""
    # Of keys purged on all replicas: those that had a tombstone in a cell, and a promise.
    tombstones: int = 0
    promises: int = 0
    # Records that replicas were brought, each counted once for each replica.
    repaired: int = 0
    repaired_bytes: int = 0
    # Whether the slot had more to collect than one attempt takes.
    more: bool = False


@dataclass(slots=True)
class CollectionCounters:
    """Since the start."""

    attempts: int = 0
    ended: Counter[End] = field(default_factory=Counter)
    tombstones: int = 0
    promises: int = 0
    repaired: int = 0
    repaired_bytes: int = 0
    # Slots that were given up after as many attempts as there may be; a later request begins anew.
    given_up: int = 0

    @property
    def completed(self) -> int:
        return self.ended[End.COMPLETED]

    def add(self, collected: Collected) -> None:
        self.ended[collected.end] += 1
        self.tombstones += collected.tombstones
        self.promises += collected.promises
        self.repaired += collected.repaired
        self.repaired_bytes += collected.repaired_bytes
