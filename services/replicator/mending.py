"""Slots whose replicas differ: which of their keys, and what each replica is then sent.

    LEAVES ──► VERSIONS of the leaves that differ ──► GET_MANY where it is newest ──► WRITE_MANY
                  └──── by pages in the order of keys ◄──────────────────────────────────┘

A few slots at a time go through this side by side, so that their records share messages. Of the
replicas that have told the same of a slot only one is asked, and each is sent what it lacks. Small
slots are asked for all their versions at once: that is less than their leaves would be.

Records are written by the ordinary rule of writes, in the epoch of the comparison. So whatever has
come to a replica meanwhile stays, whoever else mends the slot may do so, and what is at or below
a floor is refused: only a session of the slot brings that.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from services.core.comparison import (
    VersionsPage,
    decode_versions,
    encode_leaves_asked,
    encode_versions_asked,
)
from services.core.digest import differing
from services.core.errors import PeerError, RetryLater
from services.core.hlc import Version, check_version, version_bytes
from services.core.messages import (
    BELOW_FLOOR,
    GET_MANY,
    LEAVES,
    NEWER,
    VERSIONS,
    WRITE_MANY,
    WRONG_EPOCH,
    Status,
    decode_records,
    decode_statuses,
    encode_get_many,
    encode_write_many,
    epoch_of,
)
from services.core.record import check
from services.core.ring import leaf_count, slot_of
from services.core.wire import OK
from services.replicator.differences import Differences, Lacking, differences, keys_in_a_part
from services.replicator.repair_counters import RepairCounters
from services.replicator.rounds import Answer, Ask, Rounds
from services.replicator.seams import Epochs
from services.replicator.stamps import Stamps
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet, FleetNode

# A write that is younger is on its way to all replicas, by itself or as another try.
young_ms: Final = 3_000
# Side by side, as long as slots are small; so many versions in all are held at a time. Each round
# of questions waits for the slowest answer: where that takes long, half as many slots at a time
# take twice as long. A node tells of so many in its turns, beside clients.
slots_at_once_max: Final = 32
versions_held_max: Final = 32_768
# After so many others have their turn: with what they came in, these take about two milliseconds.
versions_in_a_turn: Final = 1_024
# A slot of no more keys costs less as versions than as leaves and then as some versions.
small_slot_keys: Final = 32
# A node stores so many in about a millisecond, between the requests of clients.
message_records_max: Final = 128
message_bytes_max: Final = 256 << 10
# A node may have that much to put together for each.
fetching_at_once: Final = 4
# Of what is told of sizes by the way: how much the last one weighs.
_weight: Final = 1 / 16

T = TypeVar("T")
log = telemetry.logger(__name__)
_all_leaves: Final = tuple(range(leaf_count))


class DifferingSlot:
    """A slot while it is mended. `groups` are its replicas, together where they told the same."""

    __slots__ = ("after", "below_floor", "groups", "keys", "leaves", "slot", "trouble")

    def __init__(self, slot: int, groups: Sequence[Sequence[FleetNode]]) -> None:
        self.slot = slot
        self.groups = groups
        self.leaves: Sequence[int] = _all_leaves
        # Behind which key to go on; None once there is nothing more.
        self.after: bytes | None = b""
        self.keys = 0
        self.below_floor = False
        # Why it could not be mended to the end, if it could not.
        self.trouble: str | None = None

    @property
    def asked(self) -> list[FleetNode]:
        """One replica of each group, not the same one for all slots."""
        return [group[self.slot % len(group)] for group in self.groups]


class _Item(NamedTuple):
    """A record that some replicas lack."""

    slot: DifferingSlot
    key: bytes
    version: Version
    targets: tuple[FleetNode, ...]


_Outgoing = dict[str, deque[tuple[_Item, bytes]]]


@dataclass(slots=True)
class Sizes:
    """What slots and records are like here, as far as answers have told."""

    slot_keys: float = 0.0
    record_bytes: float = float(message_bytes_max // 16)

    def saw_keys(self, count: int, leaves: int) -> None:
        """So many keys in so many leaves of a slot; if not in all, each has one for certain, as it
        differs."""
        if leaves < leaf_count:
            count = leaves + max(0, count - leaves) * leaf_count // leaves
        self.slot_keys += (count - self.slot_keys) * _weight

    def saw_record(self, size: int) -> None:
        self.record_bytes += (size - self.record_bytes) * _weight

    @property
    def slots_at_once(self) -> int:
        return max(1, min(slots_at_once_max, int(versions_held_max / 3 / max(1, self.slot_keys))))

    @property
    def fetched_at_once(self) -> int:
        return max(1, min(message_records_max, int(message_bytes_max / max(1, self.record_bytes))))


class Mending:
    def __init__(
        self, fleet: Fleet, stamps: Stamps, epochs: Epochs, clock: Clock, counters: RepairCounters
    ) -> None:
        self.sizes = Sizes()
        self._fleet = fleet
        self._stamps = stamps
        self._epochs = epochs
        self._clock = clock
        self._counters = counters

    def mend(self, slots: Sequence[DifferingSlot], epoch: int) -> Rounds[None]:
        """Have all replicas of these slots have the same, as far as they can be asked; what became
        of each slot stands in it."""
        waiting = deque(slots)
        while waiting:
            count = min(len(waiting), self.sizes.slots_at_once)
            together = [waiting.popleft() for _ in range(count)]
            if self.sizes.slot_keys > small_slot_keys:
                yield from self._find_leaves(together)
            while together := [slot for slot in together if _goes_on(slot)]:
                lacking = yield from self._compare(together)
                yield from self._deliver(lacking, epoch)

    # -- what differs

    def _find_leaves(self, slots: Sequence[DifferingSlot]) -> Rounds[None]:
        asks = [
            Ask(node, LEAVES, encode_leaves_asked(slot.slot))
            for slot in slots
            for node in slot.asked
        ]
        answers = iter((yield asks))
        for slot in slots:
            told = [self._told(slot, node, next(answers), bytes) for node in slot.asked]
            if slot.trouble is not None:
                continue
            found: set[int] = set()
            try:
                for leaves in told[1:]:
                    found.update(differing(told[0] or b"", leaves or b""))
            except PeerError as error:
                self._object(slot, str(error))
                continue
            slot.leaves = sorted(found)
            self._counters.leaves_differing += len(found)
            if not found:
                # They have become equal meanwhile.
                slot.after = None

    def _compare(self, slots: Sequence[DifferingSlot]) -> Rounds[dict[str, deque[_Item]]]:
        """The next pages of these slots; what is lacking, by the node that has it."""
        asks = [
            Ask(node, VERSIONS, encode_versions_asked(slot.slot, slot.leaves, slot.after or b""))
            for slot in slots
            for node in slot.asked
        ]
        answers = iter((yield asks))
        lacking: dict[str, deque[_Item]] = defaultdict(deque)
        before_ms = self._clock.wall_ms() - young_ms
        looked_at = 0
        for slot in slots:
            pages: list[VersionsPage] = []
            for node in slot.asked:
                page = self._told(slot, node, next(answers), decode_versions)
                if page is not None:
                    pages.append(page)
                    looked_at += len(page.found)
                if looked_at > versions_in_a_turn:
                    yield ()
                    looked_at = 0
            if slot.trouble is not None or not self._make_sense(slot, pages):
                continue
            if not slot.after:
                self.sizes.saw_keys(max(len(page.found) for page in pages), len(slot.leaves))
            for part in differences(pages, before_ms):
                self._note(slot, part, lacking)
                looked_at += keys_in_a_part if part.through is not None else 0
                if looked_at > versions_in_a_turn:
                    yield ()
                    looked_at = 0
        return lacking

    def _note(
        self, slot: DifferingSlot, found: Differences, lacking: dict[str, deque[_Item]]
    ) -> None:
        slot.after = found.through
        slot.keys += len(found.lacking)
        self._counters.keys_differing += len(found.lacking)
        self._counters.keys_young += found.young
        for one in found.lacking:
            lacking[slot.asked[one.having].node_id].append(_item(slot, one))

    def _make_sense(self, slot: DifferingSlot, pages: Sequence[VersionsPage]) -> bool:
        """Whether these pages go on where the last ones ended, with keys of this slot."""
        for page in pages:
            if page.found and page.found[0][0] <= (slot.after or b""):
                self._object(slot, "a page of versions begins before the one before it has ended")
                return False
            if page.found and slot_of(page.found[0][0]) != slot.slot:
                self._object(slot, "a page of versions is of another slot")
                return False
        return True

    # -- what is lacking

    def _deliver(self, lacking: dict[str, deque[_Item]], epoch: int) -> Rounds[None]:
        """Take records where they are, a message's worth from each node, and send them on."""
        nodes = self._fleet.nodes
        while lacking:
            asks: list[Ask] = []
            fetched: list[tuple[str, list[_Item]]] = []
            for node_id in list(lacking)[:fetching_at_once]:
                queue = lacking[node_id]
                count = min(len(queue), self.sizes.fetched_at_once)
                items = [queue.popleft() for _ in range(count)]
                if not queue:
                    del lacking[node_id]
                if (node := nodes.get(node_id)) is None:
                    _trouble(items, f"{node_id} is no member any more")
                    continue
                body = encode_get_many([item.key for item in items])
                asks.append(Ask(node, GET_MANY, body, len(items)))
                fetched.append((node_id, items))
            answers = yield asks
            outgoing: _Outgoing = defaultdict(deque)
            for (node_id, items), answer in zip(fetched, answers, strict=True):
                left_out = self._take(nodes[node_id], items, answer, outgoing)
                if left_out:
                    lacking.setdefault(node_id, deque()).extendleft(reversed(left_out))
            yield from self._send(outgoing, epoch)

    def _take(
        self, node: FleetNode, items: list[_Item], answer: Answer, outgoing: _Outgoing
    ) -> list[_Item]:
        """Put what was fetched where it is lacking; those that did not fit the answer."""
        records = self._told(items[0].slot, node, answer, decode_records)
        if records is None or len(records) != len(items) or all(one is None for one in records):
            if records is not None:
                self._counters.unanswered += 1
            _trouble(items, f"{node.node_id} does not tell its records")
            return []
        left_out: list[_Item] = []
        for item, record in zip(items, records, strict=True):
            if record is None:
                left_out.append(item)
            elif record:
                self._add(node, item, record, outgoing)
            # Else it was collected meanwhile, and is lacking nowhere.
        return left_out

    def _add(self, node: FleetNode, item: _Item, record: bytes, outgoing: _Outgoing) -> None:
        try:
            check(record)
        except PeerError as error:
            self._object(item.slot, f"a record of {node.node_id} makes no sense: {error}")
            return
        if record[:version_bytes] < item.version:
            # Its older self can only have come after a collection of the newer one.
            item.slot.trouble = "a record was replaced by an older one"
            return
        self.sizes.saw_record(len(record))
        for target in item.targets:
            outgoing[target.node_id].append((item, record))

    def _send(self, outgoing: _Outgoing, epoch: int) -> Rounds[None]:
        """One message to each node at a time."""
        nodes = self._fleet.nodes
        while outgoing:
            asks: list[Ask] = []
            sent: list[tuple[FleetNode, list[tuple[_Item, bytes]]]] = []
            for node_id, queue in list(outgoing.items()):
                message = _message(queue)
                if not queue:
                    del outgoing[node_id]
                if (node := nodes.get(node_id)) is None:
                    _trouble([item for item, _ in message], f"{node_id} is no member any more")
                    continue
                body = encode_write_many(epoch, [(item.key, record) for item, record in message])
                asks.append(Ask(node, WRITE_MANY, body, len(message)))
                sent.append((node, message))
            answers = yield asks
            for (node, message), answer in zip(sent, answers, strict=True):
                self._judge(node, message, answer)

    def _judge(self, node: FleetNode, message: list[tuple[_Item, bytes]], answer: Answer) -> None:
        items = [item for item, _ in message]
        if answer[0] == WRONG_EPOCH:
            self._epochs.outdated(epoch_of(answer[1]))
        statuses = self._told(items[0].slot, node, answer, decode_statuses)
        if statuses is None or len(statuses) != len(items):
            _trouble(items, f"{node.node_id} does not tell what became of what it was sent")
            return
        for (item, record), status in zip(message, statuses, strict=True):
            self._count(node, item, record, status)

    def _count(self, node: FleetNode, item: _Item, record: bytes, status: Status) -> None:
        counters, (kind, detail) = self._counters, status
        if kind == OK:
            counters.records_sent += 1
            counters.bytes_sent += len(item.key) + len(record)
        elif kind == NEWER:
            counters.records_newer += 1
            self._merge(detail)
        elif kind == BELOW_FLOOR:
            counters.below_floor += 1
            item.slot.below_floor = True
            self._merge(detail)
        else:
            if kind == WRONG_EPOCH:
                self._epochs.outdated(epoch_of(detail))
            counters.records_refused += 1
            item.slot.trouble = f"{node.node_id} refuses a record, with kind {kind}"

    def _merge(self, version: bytes) -> None:
        try:
            self._stamps.merge(check_version(version))
        except (PeerError, RetryLater):
            # Too far ahead to be followed, or no version at all.
            return

    # -- answers

    def _told(
        self, slot: DifferingSlot, node: FleetNode, answer: Answer, decode: Callable[[bytes], T]
    ) -> T | None:
        """What was answered; None if that was nothing, of which the slot then bears the trouble."""
        kind, body = answer
        if kind != OK:
            self._counters.unanswered += 1
            slot.trouble = f"{node.node_id} does not answer, or with kind {kind}"
            return None
        try:
            return decode(body)
        except PeerError as error:
            self._object(slot, f"{node.node_id}: {error}")
            return None

    def _object(self, slot: DifferingSlot, reason: str) -> None:
        self._counters.unanswered += 1
        slot.trouble = reason
        log.warning("a replica answers nonsense", slot=slot.slot, reason=reason)


def _goes_on(slot: DifferingSlot) -> bool:
    return slot.after is not None and slot.trouble is None


def _item(slot: DifferingSlot, one: Lacking) -> _Item:
    targets = tuple(node for place in one.lacking for node in slot.groups[place])
    return _Item(slot, one.key, one.version, targets)


def _message(queue: deque[tuple[_Item, bytes]]) -> list[tuple[_Item, bytes]]:
    """What goes first, as much as one message may hold, and one at least."""
    taken: list[tuple[_Item, bytes]] = []
    size = 0
    while queue and len(taken) < message_records_max:
        item, record = queue[0]
        size += len(item.key) + len(record)
        if taken and size > message_bytes_max:
            break
        taken.append(queue.popleft())
    return taken


def _trouble(items: Sequence[_Item], reason: str) -> None:
    for item in items:
        item.slot.trouble = reason
