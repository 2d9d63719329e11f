"""Comparing the replicas of neighbouring slots: DIGESTS of all owners, and then what differs.

Only owners that have all the data of a slot are compared: while members are changed, new ones get
theirs as a stream, and what they have by now tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.core.comparison import SlotDigest, decode_digests, encode_digests_asked
from services.core.errors import PeerError
from services.core.messages import DIGESTS
from services.core.wire import OK
from services.replicator.mending import DifferingSlot, Mending
from services.replicator.repair_counters import RepairCounters
from services.replicator.rounds import Answer, Ask, Rounds
from services.runtime import telemetry
from services.runtime.fleet import Fleet, FleetNode

# To tell so many digests costs a node what a record does.
digests_of_a_record: Final = 8

log = telemetry.logger(__name__)


@dataclass(slots=True, frozen=True)
class Outcome:
    """What a comparison of one slot came to."""

    slot: int
    # Whose replicas have the same now, but for what is on its way already or below a floor.
    compared: frozenset[str] = frozenset()
    # Whether these are all its owners, or at least a majority of them.
    by_all: bool = False
    by_majority: bool = False
    # How much there is to collect, at most.
    ended: int = 0
    # Keys that differed.
    keys: int = 0
    below_floor: bool = False
    # Why the comparison did not come to its end; None if it did.
    trouble: str | None = None


class Comparing:
    def __init__(self, fleet: Fleet, mending: Mending, counters: RepairCounters) -> None:
        self._fleet = fleet
        self._mending = mending
        self._counters = counters

    def compare(self, slots: Sequence[int]) -> Rounds[list[Outcome]]:
        """Compare and mend these slots, which are in order and near each other."""
        fleet = self._fleet
        epoch = fleet.epoch
        readers = [fleet.route(slot).readers for slot in slots]
        nodes = {node.node_id: node for each in readers for node in each}
        first = slots[0]
        span = slots[-1] - first + 1
        asked = [node for node in nodes.values() if node.link.connected]
        body = encode_digests_asked(first, span)
        cost = 1 + span // digests_of_a_record
        answers = yield [Ask(node, DIGESTS, body, cost) for node in asked]
        told: dict[str, list[SlotDigest]] = {}
        for node, answer in zip(asked, answers, strict=True):
            if (digests := self._digests(node, span, answer)) is not None:
                told[node.node_id] = digests
        found = [
            _Slot(
                slot,
                owners,
                {
                    node.node_id: told[node.node_id][slot - first]
                    for node in owners
                    if node.node_id in told
                },
            )
            for slot, owners in zip(slots, readers, strict=True)
        ]
        differing = {one.slot: one.differing() for one in found if one.differs}
        if differing:
            yield from self._mending.mend(list(differing.values()), epoch)
        outdated = "the cluster map has changed meanwhile" if fleet.epoch != epoch else None
        outcomes = [one.outcome(differing.get(one.slot), outdated) for one in found]
        self._count(outcomes)
        return outcomes

    def _digests(self, node: FleetNode, count: int, answer: Answer) -> list[SlotDigest] | None:
        kind, body = answer
        reason = None
        if kind == OK:
            try:
                digests = decode_digests(body)
            except PeerError as error:
                reason = str(error)
            else:
                if len(digests) == count:
                    return digests
                reason = f"digests of {len(digests)} slots where {count} were asked for"
            log.warning("a replica answers nonsense", node=node.node_id, reason=reason)
        self._counters.unanswered += 1
        return None

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        counters = self._counters
        for outcome in outcomes:
            if outcome.keys:
                counters.slots_differing += 1
            if outcome.by_all:
                counters.slots_compared += 1
            else:
                counters.slots_unfinished += 1


class _Slot:
    """A slot with what its owners have told of it."""

    __slots__ = ("_digests", "_owners", "differs", "slot")

    def __init__(
        self, slot: int, owners: Sequence[FleetNode], digests: dict[str, SlotDigest]
    ) -> None:
        self.slot = slot
        self._owners = owners
        self._digests = digests
        summaries = {digest.summary for digest in digests.values()}
        self.differs = len(summaries) > 1

    def differing(self) -> DifferingSlot:
        groups: dict[bytes, list[FleetNode]] = {}
        for node in self._owners:
            if (digest := self._digests.get(node.node_id)) is not None:
                groups.setdefault(digest.summary, []).append(node)
        return DifferingSlot(self.slot, list(groups.values()))

    def outcome(self, mended: DifferingSlot | None, outdated: str | None) -> Outcome:
        keys = 0 if mended is None else mended.keys
        below_floor = mended is not None and mended.below_floor
        trouble = outdated or (None if mended is None else mended.trouble)
        if trouble is not None:
            return Outcome(self.slot, keys=keys, below_floor=below_floor, trouble=trouble)
        compared, owners = frozenset(self._digests), len(self._owners)
        missing = [node.node_id for node in self._owners if node.node_id not in compared]
        return Outcome(
            self.slot,
            compared,
            by_all=not missing,
            by_majority=2 * len(compared) > owners,
            ended=max((digest.ended for digest in self._digests.values()), default=0),
            keys=keys,
            below_floor=below_floor,
            trouble=f"without {', '.join(missing)}" if missing else None,
        )
