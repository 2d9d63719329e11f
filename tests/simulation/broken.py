"""Rules of the protocol, taken out one at a time, to see that simulations notice.

Each is undone from outside, for the time of a `with`, by putting something worse into the place of
the real method. There are no switches in the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from services.core import collecting, paxos
from services.core.collecting import Settled, Verdict
from services.core.hlc import Version, version_bytes, version_ms, version_zero
from services.core.messages import Status
from services.core.paxos import Promise, Proposal, Reading, Seen, Step
from services.core.placement import Placement
from services.core.record import expired
from services.core.sessions import Compared, ended
from services.dhtnode import sessions
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.promises import Promises
from services.dhtnode.purging import Purged, what_goes
from services.dhtnode.replica import Replica
from services.dhtnode.sessions import Sessions
from services.dhtnode.table import Table
from services.replicator import strong, strong_operation
from services.replicator.collection_attempt import Attempt
from services.replicator.collection_end import End
from services.replicator.eventual import EventualWrites
from services.replicator.write import Write
from services.runtime.fleet import FleetNode, Owner
from services.runtime.log.log import Batch
from services.runtime.peer import Peer
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


def _within(setting: Removal, steps: Iterator[None]) -> Iterator[None]:
    """Each step of what takes several, and not what others do in between."""
    while True:
        with setting():
            if next(steps, True):
                return
        yield


@contextmanager
def _no_floors(replica: Replica) -> Iterator[None]:
    floors, replica.floors = replica.floors, {}
    try:
        yield
    finally:
        replica.floors = floors


def writes_below_the_floor() -> AbstractContextManager[object]:
    """A cell takes what its slot's floor says is long over."""
    real = Replica._store

    def store(self: Replica, key: bytes, record: bytes, change: bytes) -> Batch | Status:
        with _no_floors(self):
            return real(self, key, record, change)

    return patch.object(Replica, "_store", store)


def hints_below_the_floor() -> AbstractContextManager[object]:
    """The same of what comes in messages of many, as hints do; not of what clients write."""
    real = Replica.write_many

    def write_many(self: Replica, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        return _within(lambda: _no_floors(self), real(self, peer, request_id, body))

    return patch.object(Replica, "write_many", write_many)


def learns_below_the_floor() -> AbstractContextManager[object]:
    return patch.object(Acceptor, "_floored", lambda self, slot, version: False)


@contextmanager
def floors_that_nobody_heeds() -> Iterator[None]:
    def prepare(held: Promise, floor: Version, ballot: Version) -> Promise | None:
        return paxos_prepare(held, version_zero, ballot)

    def accept(
        held: Promise, floor: Version, ballot: Version, operation: Version, record: bytes
    ) -> Promise | None:
        return paxos_accept(held, version_zero, ballot, operation, record)

    paxos_prepare, paxos_accept = paxos.prepare, paxos.accept
    with (
        writes_below_the_floor(),
        learns_below_the_floor(),
        patch.object(paxos, "prepare", prepare),
        patch.object(paxos, "accept", accept),
    ):
        yield


# -- of collecting


@contextmanager
def collecting_with_a_majority() -> Iterator[None]:
    """Whoever cannot be reached is not asked."""

    def all_up(self: Attempt, nodes: list[FleetNode]) -> bool:
        self._asking.nodes = [node for node in nodes if node.live]
        return 2 * len(self._asking.nodes) > len(nodes)

    def enough(self: Proposal, bits: int) -> bool:
        return self.placement.is_quorum(bits)

    with patch.object(Attempt, "_all_up", all_up), patch.object(Proposal, "_enough", enough):
        yield


@contextmanager
def collecting_while_joint() -> Iterator[None]:
    """The old owners are frozen and purged while new ones are given what they had."""

    def begin(self: Attempt) -> None:
        fleet = self._means.fleet
        if fleet.map is None:
            self._asking.fail(End.JOINT, "no map")
            return
        self._asking.nodes = list(fleet.route(self._slot).readers)
        if self._all_up(self._asking.nodes):
            self._list_stale()

    def enough(self: Proposal, bits: int) -> bool:
        old = self.placement.old_mask if self._of_all and not self._preparing else 0
        return bits & old == old and self.placement.is_quorum(bits)

    with (
        patch.object(Attempt, "begin", begin),
        patch.object(Proposal, "_enough", enough),
        patch.object(Sessions, "_is_stable", lambda self: True),
    ):
        yield


def repairing_without_a_session() -> AbstractContextManager[object]:
    """A replica takes what it lacks for whichever session it was meant."""
    real = Sessions.repair

    def repair(self: Sessions, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        def in_any() -> AbstractContextManager[object]:
            return patch.object(Sessions, "_is_in", lambda self, slot, session: True)

        return _within(in_any, real(self, peer, request_id, body))

    return patch.object(Sessions, "repair", repair)


def purging_what_differs() -> AbstractContextManager[object]:
    """What has ended on the replica that knows most is purged, whatever others have."""
    real = collecting.judge

    def judge(
        key: bytes,
        shown: Sequence[Compared | None],
        session: Version,
        settled: Settled | None,
    ) -> Verdict:
        verdict = real(key, shown, session, settled)
        if (lack := verdict.lack) is None:
            return verdict
        same: list[Compared | None] = []
        for entry in shown:
            if entry is None:
                entry = Compared(key, ended, lack.version, version_zero, version_zero)
            elif entry.version < lack.version:
                entry = entry._replace(cell=ended, version=lack.version)
            same.append(entry)
        return real(key, same, session, settled)

    return patch.object(collecting, "judge", judge)


@contextmanager
def purging_promises_regardless() -> Iterator[None]:
    """Whatever was promised since the floor goes with what it was promised on."""
    judge = collecting.judge

    def judge_records(
        key: bytes, shown: Sequence[Compared | None], session: Version, settled: Settled | None
    ) -> Verdict:
        frozen = [
            entry and entry._replace(promised=min(entry.promised, session)) for entry in shown
        ]
        return judge(key, frozen, session, settled)

    def all_goes(
        table: Table,
        promises: Promises,
        slot: int,
        session: Version,
        floor: Version,
        keys: Iterable[tuple[bytes, Version]],
    ) -> Purged:
        return what_goes(table, promises, slot, session, _latest, keys)

    with (
        patch.object(collecting, "judge", judge_records),
        patch.object(sessions, "what_goes", all_goes),
    ):
        yield


_latest = b"\xff" * version_bytes


class _NoCells:
    def peek(self, slot: int, key: bytes) -> None:
        return None


def settling_what_was_accepted_alone() -> AbstractContextManager[object]:
    """Keys whose tombstone is in cells, and not in what was accepted, are not settled."""
    real = Sessions.stale

    def stale(self: Sessions, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        def blind() -> AbstractContextManager[object]:
            return patch.object(self, "_table", _NoCells())

        return _within(blind, real(self, peer, request_id, body))

    return patch.object(Sessions, "stale", stale)


removals: dict[str, Removal] = {
    "read-without-write-back": reading_of_the_highest,
    "blind-retry": forgetful_proposal,
    "local-expiry": local_expiry,
    "restamp-after-answer": stamped_again_after_the_answer,
    "no-joint-quorum": majority_of_the_old_alone,
    "new-owner-from-one-source": new_owner_from_one_source,
    "new-owner-without-floor": new_owner_without_floor,
    "no-floor": floors_that_nobody_heeds,
    "write-below-floor": writes_below_the_floor,
    "hint-below-floor": hints_below_the_floor,
    "learn-below-floor": learns_below_the_floor,
    "collect-without-all": collecting_with_a_majority,
    "collect-while-joint": collecting_while_joint,
    "repair-without-session": repairing_without_a_session,
    "purge-before-equal": purging_what_differs,
    "purge-any-promise": purging_promises_regardless,
    "settle-without-cells": settling_what_was_accepted_alone,
}
