"""Anti-entropy: replicas are compared slot by slot, now and for ever, and sent what they lack.

    regular    this replicator's share of all slots, spread evenly over the time of a pass
    owed       all slots of a node that misses what no hint will bring it, once its hints are
               drained; after that it is told that it has caught up
    ordered    slots that an operator wants compared now

One block of neighbouring slots is compared at a time, whoever wants it, and what came of it counts
for every pass that had begun before. `pace.py` bounds what all of it costs the nodes. Where there
is nothing to find, a pass costs each node a hash and twelve bytes a slot.

Who finds enough to collect in a slot, or a difference that only a session mends, requests its
collection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol

from services.replicator.comparing import Comparing, Outcome
from services.replicator.mending import Mending, young_ms
from services.replicator.pace import Pace
from services.replicator.passes import Pass
from services.replicator.repair_counters import Ages, RepairCounters, SlotStates
from services.replicator.rounds import Course
from services.replicator.seams import Epochs
from services.replicator.slot_shares import Shares, block_count, block_slots
from services.replicator.stamps import Stamps
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet

# Between looks at whether something is due: what a node that is back waits for at the most.
look_s: Final = 0.25
# By then what was lost last is not young any more, by whichever clock, and so is compared.
owed_s: Final = young_ms / 1000 + 1.0
# Worth a session at once; less is worth one if it has been there for a pass.
ended_min: Final = 32
# Ages take a millisecond or two to work out, and several figures show them.
ages_s: Final = 1.0
# What could not be compared is tried again after this, and after ever longer.
again_s_min: Final = 1.0
again_s_max: Final = 30.0
# An operator is waiting: what cannot be compared by then is told.
order_rounds_max: Final = 3

log = telemetry.logger(__name__)


class Owed(Protocol):
    """What nodes miss, as `hints.Hints` knows it."""

    def mark(self, node_id: str) -> int: ...

    def mended(self, node_id: str, mark: int) -> None: ...

    def drained(self, node_id: str) -> bool: ...


class Collecting(Protocol):
    """Whoever collects slots."""

    def request(self, slot: int) -> None: ...


@dataclass(slots=True, frozen=True)
class Rates:
    """How much anti-entropy may cost."""

    pass_s: float
    records_per_s: int
    bytes_per_s: int


class _Block(NamedTuple):
    """What is compared just now: for which pass, and which others had begun before."""

    of: Pass
    passes: Sequence[Pass]
    records: int
    bytes: int


class _Owing(NamedTuple):
    """What a node is owed: a pass, the mark that was taken before, and the epoch of the map by
    which slots are the node's."""

    of: Pass
    mark: int
    epoch: int


class AntiEntropy:
    """Compares and mends from `start` to `stop`."""

    def __init__(
        self,
        fleet: Fleet,
        stamps: Stamps,
        owed: Owed,
        epochs: Epochs,
        shares: Shares,
        collecting: Collecting,
        clock: Clock,
        rates: Rates,
        counters: RepairCounters,
    ) -> None:
        self.counters = counters
        self.shares = shares
        self.pass_s = rates.pass_s
        self.states = SlotStates(clock.monotonic_s())
        # The last order of an operator, and how many there have been.
        self.order: Pass | None = None
        self.orders = 0
        # Where each of our blocks begins.
        self._ours = frozenset(block.start for block in shares.blocks())
        shares.on_change = self._divided
        self._fleet = fleet
        self._owed = owed
        self._collecting = collecting
        self._clock = clock
        self._pace = Pace(clock, rates.records_per_s, rates.bytes_per_s)
        mending = Mending(fleet, stamps, epochs, clock, counters)
        # What slots and records are like here.
        self.sizes = mending.sizes
        self._comparing = Comparing(fleet, mending, counters)
        self._regular = Pass(clock.monotonic_s())
        # While it is under way.
        self._ordered: Pass | None = None
        # By node.
        self._owing: dict[str, _Owing] = {}
        # By node, its mark and since when it has been that.
        self._marks: dict[str, tuple[int, float]] = {}
        self._course: Course[list[Outcome]] | None = None
        self._ages: Ages | None = None
        self._aged_s = 0.0
        self._stopped = False

    def start(self) -> None:
        self._regular = Pass(self._clock.monotonic_s())
        self._look()

    def stop(self) -> None:
        self._stopped = True
        if self._course is not None:
            self._course.stop()

    # -- what operators ask

    def compare(self, slots: Iterable[int] | None) -> int:
        """Compare these slots now, or all, as far as they are ours; how many that are. What an
        order before has left to do is done along with them."""
        has = self.shares.has
        ours = self.shares.slots() if slots is None else [slot for slot in slots if has(slot)]
        if self._ordered is not None:
            ours += self._ordered.unsettled()
        self.order = self._ordered = Pass(self._clock.monotonic_s(), ours)
        self.orders += 1
        self._go_on()
        return self.order.total

    @property
    def ordered(self) -> bool:
        """Whether the last order is still under way."""
        return self._ordered is not None

    @property
    def owing(self) -> dict[str, int]:
        """By node that misses what no hint brings it, how many slots are still to be compared."""
        return {node_id: owing.of.left for node_id, owing in self._owing.items()}

    def ages(self) -> Ages:
        """Of the slots that are ours, as they were within this second."""
        now_s = self._clock.monotonic_s()
        if self._ages is None or now_s - self._aged_s > ages_s:
            self._ages, self._aged_s = self.states.ages(self.shares.blocks(), now_s), now_s
        return self._ages

    @property
    def tombstones(self) -> int:
        """How much there is to collect in the slots that are ours, as each was compared last."""
        return self.states.to_collect(self.shares.blocks())

    def _divided(self, blocks: Sequence[slice]) -> None:
        """Another has looked after some of these so far."""
        now_s = self._clock.monotonic_s()
        for block in blocks:
            if block.start not in self._ours:
                self.states.take_over(block, now_s)
        self._ours = frozenset(block.start for block in blocks)
        self._ages = None

    # -- what is due

    def _look(self) -> None:
        if self._stopped:
            return
        if self._fleet.map is not None:
            self._find_owed()
            self._go_on()
        self._clock.call_later(look_s, self._look)

    def _find_owed(self) -> None:
        """Begin passes that nodes are owed, and give up those that come to nothing."""
        owed, nodes = self._owed, self._fleet.nodes
        for node_id, owing in list(self._owing.items()):
            node = nodes.get(node_id)
            # What was lost meanwhile may be in slots that have been compared already, and another
            # map may give the node slots that were passed over.
            if (
                node is None
                or not node.link.connected
                or owed.mark(node_id) != owing.mark
                or self._fleet.epoch != owing.epoch
            ):
                del self._owing[node_id]
        if not self._is_stable:
            # Nobody compares what new owners have, so that nobody can say it is all.
            return
        now_s = self._clock.monotonic_s()
        for node_id, node in nodes.items():
            mark = owed.mark(node_id)
            seen = self._marks.get(node_id)
            if seen is None or seen[0] != mark:
                seen = self._marks[node_id] = mark, now_s
            is_due = mark and now_s - seen[1] >= owed_s and owed.drained(node_id)
            if is_due and node.live and node_id not in self._owing:
                owing = _Owing(Pass(now_s, node_id=node_id), mark, self._fleet.epoch)
                self._owing[node_id] = owing
        for node_id in self._marks.keys() - nodes.keys():
            del self._marks[node_id]

    @property
    def _is_stable(self) -> bool:
        known = self._fleet.map
        return known is not None and not known.is_joint

    def _go_on(self) -> None:
        """Compare the next block that somebody wants, unless one is being compared."""
        if self._course is not None or self._stopped or self._fleet.map is None:
            return
        self._end_passes()
        urgent = [owing.of for owing in self._owing.values()]
        if self._ordered is not None:
            urgent.insert(0, self._ordered)
        now_s = self._clock.monotonic_s()
        for one in urgent:
            if one.resume_s <= now_s and (slots := self._next_of(one)):
                self._begin(one, slots)
                return
        if slots := self._next_of_regular(now_s):
            self._begin(self._regular, slots)

    def _next_of(self, one: Pass) -> Sequence[int]:
        """What is left of the next block that has some; nothing once all have had their turn."""
        for _ in range(block_count):
            left = one.wanted(one.block)
            slots = [slot for slot in left if one.concerns(self._fleet.route(slot).readers)]
            for slot in set(left).difference(slots):
                one.drop(slot)
            if slots or self._advance(one):
                return slots
        return ()

    def _next_of_regular(self, now_s: float) -> Sequence[int]:
        """Blocks are due one after the other, each in its time of the pass; those that were held
        up follow each other."""
        one = self._regular
        while not one.rounds and now_s >= one.began_s + one.block * self.pass_s / block_count:
            if self.shares.has(one.block * block_slots) and (slots := one.wanted(one.block)):
                return slots
            one.advance()
        return ()

    def _advance(self, one: Pass) -> bool:
        """Go on to the next block; once all have had their turn, what is left waits for a while."""
        if not one.advance():
            return False
        wait_s = min(again_s_min * 2 ** min(one.rounds - 1, 10), again_s_max)
        one.resume_s = self._clock.monotonic_s() + wait_s
        return True

    # -- one block

    def _begin(self, one: Pass, slots: Sequence[int]) -> None:
        passes = [self._regular, *(owing.of for owing in self._owing.values())]
        if self._ordered is not None:
            passes.append(self._ordered)
        counters = self.counters
        block = _Block(one, passes, counters.records_sent, counters.bytes_sent)
        rounds = self._comparing.compare(slots)
        ended = partial(self._compared, block)
        self._course = Course(rounds, self._pace, self._clock, ended)
        self._course.start()

    def _compared(self, block: _Block, outcomes: list[Outcome] | None) -> None:
        self._course = None
        self._advance(block.of)
        for outcome in outcomes or ():
            wanting = [one for one in block.passes if one.wants(outcome.slot)]
            self._note(outcome, wanting)
            for one in wanting:
                one.settle(outcome)
        counters = self.counters
        for one in block.passes:
            one.found.records += counters.records_sent - block.records
            one.found.bytes += counters.bytes_sent - block.bytes
        if outcomes is not None:
            self._go_on()

    def _note(self, outcome: Outcome, wanting: Sequence[Pass]) -> None:
        """Remember how the slot is, and have it collected if it is worth it; also where an owner
        is away, as whoever collects knows how to wait, and tells how much does."""
        states, slot = self.states, outcome.slot
        if outcome.below_floor:
            # Whoever's slot it is: a node may be owed what only a session can bring it.
            self._collecting.request(slot)
        if not outcome.compared:
            return
        states.ended[slot] = outcome.ended
        if outcome.by_all:
            states.compared(slot, self._clock.monotonic_s())
        some = outcome.ended > 0
        worth = outcome.ended >= ended_min or (some and self._ordered in wanting)
        if self._regular in wanting:
            worth = worth or (some and bool(states.had_ended[slot]))
            states.had_ended[slot] = some
        if worth and self.shares.has(slot):
            self._collecting.request(slot)

    # -- ends

    def _end_passes(self) -> None:
        for node_id, owing in list(self._owing.items()):
            if not owing.of.left:
                del self._owing[node_id]
                self._owed.mended(node_id, owing.mark)
                self._say(owing.of, f"{node_id} misses what no hint brings it", 0)
        ordered = self._ordered
        if ordered is not None and (not ordered.left or ordered.rounds >= order_rounds_max):
            self._ordered = None
            self._say(ordered, "asked for", ordered.left)
        regular = self._regular
        if regular.rounds:
            self.counters.passes += 1
            left = sum(map(self.shares.has, regular.unsettled()))
            if regular.found.keys or left:
                self._say(regular, "as always", left)
            # The next one is due when the time of this one is over, if that is not past.
            due_s = max(regular.began_s + self.pass_s, self._clock.monotonic_s())
            self._regular = Pass(due_s)

    def _say(self, one: Pass, why: str, left: int) -> None:
        found = one.found
        unsettled = {"not_compared": left, "trouble": one.trouble} if left else {}
        log.info(
            "replicas were compared",
            why=why,
            differing_slots=found.slots,
            differing_keys=found.keys,
            records_sent=found.records,
            bytes_sent=found.bytes,
            seconds=round(self._clock.monotonic_s() - one.began_s, 1),
            **unsettled,
        )
