"""Rules of the protocol, taken out one at a time, to see that simulations notice.

Each is undone from outside, for the time of a `with`, by putting something worse into the place of
the real method. There are no switches in the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from services.core.cluster import Placement
from services.core.hlc import Version, version_ms
from services.core.paxos import Proposal, Reading, Seen, Step
from services.core.record import expired
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.replica import Replica
from services.replicator import strong, strong_operation
from services.replicator.eventual import EventualWrites
from services.replicator.write import Write
from services.runtime.fleet import Owner
from services.runtime.log.log import Batch
from tests.simulation import cluster_operator
from tests.simulation.cluster_operator import Rules

Removal = Callable[[], AbstractContextManager[object]]


class ReadingOfTheHighest(Reading):
    """Believes whoever has accepted last, without having a majority accept the same."""

    __slots__ = ()

    def seen(self, bit: int, seen: Seen) -> bool | None:
        if self._ballot is None or seen.ballot > self._ballot:
            self._ballot, self._record = seen.ballot, seen.record
        highest = seen._replace(ballot=self._ballot, record=self._record)
        return super().seen(bit, highest)


class ForgetfulProposal(Proposal):
    """Tries again after a refusal as if nothing had left before."""

    __slots__ = ()

    def _look_back(self, operation: Version, current: bytes) -> Step | None:
        return None


class ReadingByOwnClock(Reading):
    """Takes for gone what is expired by the reader's clock, and tells nobody."""

    __slots__ = ()

    def seen(self, bit: int, seen: Seen) -> bool | None:
        decided = super().seen(bit, seen)
        if decided is False and self._is_gone and seen.ballot == self._ballot:
            return self._cell <= self._record
        return decided

    @property
    def _is_gone(self) -> bool:
        return bool(self._record) and expired(self._record, self._now_ms)

    @property
    def record(self) -> bytes:
        return b"" if self._is_gone else self._record


class ProposalByOwnClock(Proposal):
    """Takes for gone what is expired by its ballot, and leaves it where it is."""

    __slots__ = ()

    def _propose(self) -> Step:
        change = self._change

        def locally(current: bytes, ballot: Version) -> Any:
            return change(b"" if expired(current, version_ms(ballot)) else current, ballot)

        self._change = locally
        with patch("services.core.paxos.expired", lambda record, now_ms: False):
            step = super()._propose()
        self._change = change
        return step


@contextmanager
def local_expiry() -> Iterator[None]:
    with (
        patch.object(strong, "Reading", ReadingByOwnClock),
        patch.object(strong_operation, "Proposal", ProposalByOwnClock),
    ):
        yield


def stamped_again_after_the_answer() -> AbstractContextManager[object]:
    """A write that was answered is given a later stamp when a replica turns out to have more."""
    real = EventualWrites._stands_behind

    def stands_behind(
        self: EventualWrites, write: Write, owner: Owner, kind: int, body: bytes
    ) -> None:
        if write.answered and not write.restamped:
            write.restamped = True
            self._merge(body)
            self._stamp(write)
        else:
            real(self, write, owner, kind, body)

    return patch.object(EventualWrites, "_stands_behind", stands_behind)


def majority_of_the_old_alone() -> AbstractContextManager[object]:
    """While the map is joint, the old owners decide without the new ones."""
    return patch.object(Placement, "is_quorum", Placement.is_old_quorum)


def new_owner_from_one_source() -> AbstractContextManager[object]:
    """It takes what the first old owner that answers holds."""
    return patch.object(cluster_operator, "Rules", partial(Rules, every_source=False))


def new_owner_without_floor() -> AbstractContextManager[object]:
    return patch.object(cluster_operator, "Rules", partial(Rules, floor=False))


def reading_of_the_highest() -> AbstractContextManager[object]:
    return patch.object(strong, "Reading", ReadingOfTheHighest)


def forgetful_proposal() -> AbstractContextManager[object]:
    return patch.object(strong_operation, "Proposal", ForgetfulProposal)


def writes_below_the_floor() -> AbstractContextManager[object]:
    """A cell takes what its slot's floor says is long over."""
    real = Replica._store

    def store(self: Replica, key: bytes, record: bytes, change: bytes) -> Batch | Any:
        floors, self.floors = self.floors, {}
        try:
            return real(self, key, record, change)
        finally:
            self.floors = floors

    return patch.object(Replica, "_store", store)


def learns_below_the_floor() -> AbstractContextManager[object]:
    return patch.object(Acceptor, "_floored", lambda self, slot, version: False)


removals: dict[str, Removal] = {
    "read-without-write-back": reading_of_the_highest,
    "blind-retry": forgetful_proposal,
    "local-expiry": local_expiry,
    "restamp-after-answer": stamped_again_after_the_answer,
    "no-joint-quorum": majority_of_the_old_alone,
    "new-owner-from-one-source": new_owner_from_one_source,
    "new-owner-without-floor": new_owner_without_floor,
    "write-below-floor": writes_below_the_floor,
    "hint-below-floor": writes_below_the_floor,
    "learn-below-floor": learns_below_the_floor,
}
