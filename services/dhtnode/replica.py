"""One replica: decides what a message does to the table, and when its answer may leave.

The node's hot path. A write is decided and applied the moment it arrives, so that two messages of
one batch see each other, and its answer waits until the batch is durable. A read of a key that
is changed by a batch under way waits for that batch: nobody is shown what a power cut could take
back. `python -m bench node` measures it.

What it is not: it knows no plans, no clients and no quorums, and opens no sockets. Table, log and
clock are passed in, and answers leave by `Peer.reply`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.core.errors import PeerError
from services.core.hlc import Version, version_bytes
from services.core.key import check_storage_key
from services.core.messages import (
    AHEAD,
    BELOW_FLOOR,
    MALFORMED,
    NEWER,
    NOT_READY,
    STORAGE_FULL,
    WRONG_EPOCH,
    Status,
    all_applied,
    applied,
    decode_get_many,
    decode_write_many,
    encode_records,
    encode_statuses,
    u16,
    u64,
    write_head_bytes,
)
from services.core.record import check, is_tombstone
from services.core.ring import leaf_bits, place_of, slot_of
from services.core.wire import OK, OVERLOADED
from services.dhtnode import frame
from services.dhtnode.replica_state import ReplicaState
from services.dhtnode.table import Table
from services.runtime.clock import Clock
from services.runtime.log.log import Batch, Log
from services.runtime.peer import Peer

# A change of the cluster is two epochs: so many are made in years of a change every few minutes.
# One that is as far ahead comes of flipped bits or a bug, and a replica that followed it could
# never go back. Of a bit that flipped in an epoch, the lower 20 at most pass.
epochs_ahead_max: Final = 1 << 20
# A reason that travels in an answer's detail, whose length in a batch's answer is one byte.
detail_bytes_max: Final = 255


@dataclass(slots=True)
class ReplicaCounters:
    """What this replica did since its start; plain integers that `/metrics` reads."""

    reads: int = 0
    reads_that_waited: int = 0
    writes: int = 0
    newer: int = 0
    below_floor: int = 0
    ahead: int = 0
    full: int = 0
    wrong_epoch: int = 0
    overloaded: int = 0
    malformed: int = 0
    # Of collections.
    freezes: int = 0
    nacked: int = 0
    no_session: int = 0
    repaired: int = 0
    purged_cells: int = 0
    purged_promises: int = 0


class Replica(ReplicaState):
    """The rules of one replica. Filled by `replay`, it serves once `serve` has given it a log."""

    def __init__(self, table: Table, clock: Clock) -> None:
        super().__init__(table)
        self.counters = ReplicaCounters()
        # Slots that are ours by the map, and whose data have not arrived yet. It is not durable:
        # after a restart every slot counts as ready, so a replica that is sent the data of a slot
        # must not rely on this to keep it from answering before it has them.
        self.not_ready: frozenset[int] = frozenset()
        # Why puts are refused just now, for people; None while they are welcome.
        self.full: str | None = None
        self._clock = clock
        # The batch with the latest change of the epoch, until that batch is durable.
        self._adopting: Batch | None = None
        # The latest batch with a change of a key, until that batch is durable.
        self._changing: dict[bytes, Batch] = {}

    def serve(self, log: Log) -> None:
        """Changes go to this log from now on. Its owner passes every durable batch to `durable`."""
        self.log = log

    def durable(self, batch: Batch) -> None:
        """Send what waited for this batch."""
        changing = self._changing
        for key in batch.keys:
            if changing[key] is batch:
                del changing[key]
        if batch is self._adopting:
            self._adopting = None
        for peer, request_id, kind, body in batch.replies:
            peer.reply(request_id, kind, body)

    def changing(self, key: bytes) -> Batch | None:
        """The batch with the latest change of this key, until that batch is durable."""
        return self._changing.get(key)

    def note_change(self, key: bytes, batch: Batch) -> None:
        """This batch has a change of this key, of its cell or of its promise, which nobody may
        see before it is durable."""
        batch.keys.add(key)
        self._changing[key] = batch

    def reply_with(self, batch: Batch, peer: Peer, request_id: int, kind: int, body: bytes) -> None:
        """Answer once this batch is durable, and the epoch in which it is answered."""
        if self._adopting is not None and self._adopting.first > batch.first:
            batch = self._adopting
        batch.replies.append((peer, request_id, kind, body))

    def after_changes(self, peer: Peer, request_id: int, kind: int, body: bytes) -> None:
        """Answer with what was read of many keys, once all that was read is durable."""
        batch = self.log.newest
        if batch is None:
            peer.reply(request_id, kind, body)
        else:
            batch.replies.append((peer, request_id, kind, body))

    # -- reading

    def get(self, peer: Peer, request_id: int, key: bytes) -> None:
        self.counters.reads += 1
        record = self.table.get(slot_of(key), key) or b""
        batch = self._changing.get(key)
        if batch is None:
            peer.reply(request_id, OK, record)
        else:
            self.counters.reads_that_waited += 1
            batch.replies.append((peer, request_id, OK, record))

    def get_many(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        """As `get`. It yields where others may have their turn."""
        keys = decode_get_many(body)
        yield
        self.counters.reads += len(keys)
        get = self.table.get
        records = encode_records([get(slot_of(key), key) or b"" for key in keys])
        changing = self._changing
        batches = [changing[key] for key in keys if key in changing]
        if not batches:
            peer.reply(request_id, OK, records)
        else:
            # Batches become durable in order, so the last one will do.
            self.counters.reads_that_waited += 1
            last = max(batches, key=lambda batch: batch.first)
            last.replies.append((peer, request_id, OK, records))

    # -- writing

    def write(self, peer: Peer, request_id: int, body: bytes) -> None:
        end = write_head_bytes + int.from_bytes(body[8:write_head_bytes], "big")
        key = body[write_head_bytes:end]
        if body[:8] != self.epoch_bytes:
            # What makes no sense brings no epoch along.
            if (objection := self._objection(key, body[end:])) is not None:
                self.reply_in_epoch(peer, request_id, *objection)
                return
            if not self.meets_epoch(peer, request_id, body):
                return
        outcome = self._store(key, body[end:], body[8:])
        if isinstance(outcome, Batch):
            # A duplicate may wait for an earlier batch than that with the epoch it came with.
            if self._adopting is not None and self._adopting.first > outcome.first:
                outcome = self._adopting
            outcome.replies.append((peer, request_id, OK, b""))
        else:
            self._refuse(peer, request_id, key, outcome)

    def _refuse(self, peer: Peer, request_id: int, key: bytes, status: Status) -> None:
        """Say why not; that something newer is here, or a floor, only once that is durable, as
        whoever hears it may forget the older write."""
        batch = self._waited_for(key, status)
        if batch is None or (self._adopting is not None and self._adopting.first > batch.first):
            self.reply_in_epoch(peer, request_id, *status)
        else:
            batch.replies.append((peer, request_id, *status))

    def _waited_for(self, key: bytes, status: Status) -> Batch | None:
        """What has to be durable before this refusal may be told."""
        if status[0] == BELOW_FLOOR:
            return self.log.newest
        return self._changing.get(key) if status[0] == NEWER else None

    def write_few(self, peer: Peer, request_id: int, body: bytes) -> None:
        """As `write_many`, in one piece."""
        for _ in self.write_many(peer, request_id, body):
            pass

    def write_many(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        """As `write`, item by item. It yields where others may have their turn; what they change
        meanwhile counts for the items that follow, a later epoch too."""
        _, items = decode_write_many(body)
        yield
        epoch = body[:8]
        met = False
        statuses: list[Status] = []
        last: Batch | None = None
        for key, record in items:
            waits: Batch | None = None
            if not met and epoch != self.epoch_bytes:
                # What makes no sense brings no epoch along.
                if (objection := self._objection(key, record)) is not None:
                    statuses.append(objection)
                    yield
                    continue
                if not self.meets_epoch(peer, request_id, body):
                    return
            met = True
            if epoch != self.epoch_bytes:
                self.counters.wrong_epoch += 1
                statuses.append((WRONG_EPOCH, self.epoch_bytes))
            elif isinstance(
                outcome := self._store(key, record, u16.pack(len(key)) + key + record), Batch
            ):
                waits = outcome
                statuses.append(applied)
            else:
                waits = self._waited_for(key, outcome)
                statuses.append(outcome)
            # What is known already may wait for an earlier batch than what stands before it.
            if waits is not None and (last is None or waits.first > last.first):
                last = waits
            yield
        self._answer_many(peer, request_id, statuses, last)

    def _answer_many(
        self, peer: Peer, request_id: int, statuses: list[Status], last: Batch | None
    ) -> None:
        """Answer once `last` and our epoch are durable, as they may be already."""
        if last is not None and last.first <= self.log.durable_sequence:
            last = None
        adopting = self._adopting
        if adopting is not None and (last is None or adopting.first > last.first):
            last = adopting
        count = len(statuses)
        plain = statuses.count(applied) == count
        answer = all_applied(count) if plain else encode_statuses(statuses)
        if last is None:
            peer.reply(request_id, OK, answer)
        else:
            last.replies.append((peer, request_id, OK, answer))

    def _store(self, key: bytes, record: bytes, change: bytes) -> Batch | Status:
        """Store the record if the rules allow it: the batch that makes it durable, or why not.

        `change` is the body of its frame in the log.
        """
        counters = self.counters
        counters.writes += 1
        if (objection := self._objection(key, record)) is not None:
            return objection
        place = place_of(key)
        slot = place >> leaf_bits
        version = record[:version_bytes]
        if slot in self.not_ready:
            return NOT_READY, b""
        if self.floors and version <= self.floors.get(slot, b""):
            counters.below_floor += 1
            return BELOW_FLOOR, self.floors[slot]
        old = self.table.peek(slot, key)
        if old is not None and old >= record:
            if old[:version_bytes] == version:
                # The same write once more, from a retry or a repair.
                return self._changing.get(key) or applied
            counters.newer += 1
            return NEWER, old[:version_bytes]
        log = self.log
        if log.overloaded:
            counters.overloaded += 1
            return OVERLOADED, b""
        high_water = self.high_water
        now_ms = self._clock.wall_ms()
        if high_water.too_far_ahead(version, now_ms):
            counters.ahead += 1
            return AHEAD, u64.pack(now_ms)
        if self.full is not None and not is_tombstone(record):
            counters.full += 1
            return STORAGE_FULL, self.full.encode()[:detail_bytes_max]
        if log.shortage is not None and not log.has_room(len(change)):
            counters.full += 1
            return self.no_room()
        high_water.take(version)
        return self.take(place, key, old, record, change)

    def take(
        self, place: int, key: bytes, old: bytes | None, record: bytes, change: bytes
    ) -> Batch:
        """Store and log a record, whatever the rules for writes say of it. `old` is what the table
        has, and `change` the body of the frame in the log."""
        self.table.replace(place, key, old, record)
        if old is not None and self.promises.count:
            slot = place >> leaf_bits
            if self.promises.get(slot, key).record is old:
                self.promises.weigh(slot, key)
        batch = self.log.append(frame.RECORD, change)
        self.note_change(key, batch)
        return batch

    def _objection(self, key: bytes, record: bytes) -> Status | None:
        """Why this is nothing to store, or None if it is."""
        try:
            check_storage_key(key)
            check(record)
        except PeerError as error:
            self.counters.malformed += 1
            return MALFORMED, str(error).encode()[:detail_bytes_max]
        return None

    def refusal(self, slot: int, stamp: Version, size: int) -> Status | None:
        """Why nothing of this stamp and size can be taken now, whatever is held; None if it can."""
        log = self.log
        if slot in self.not_ready:
            return NOT_READY, b""
        if log.overloaded:
            self.counters.overloaded += 1
            return OVERLOADED, b""
        if log.shortage is not None and not log.has_room(size):
            self.counters.full += 1
            return self.no_room()
        now_ms = self._clock.wall_ms()
        if self.high_water.too_far_ahead(stamp, now_ms):
            self.counters.ahead += 1
            return AHEAD, u64.pack(now_ms)
        return None

    # -- epochs

    def meets_epoch(self, peer: Peer, request_id: int, body: bytes) -> bool:
        """Whether the message is of our epoch or a later one, which then becomes ours, durably.
        If not, it is answered. PeerError for an epoch that cannot be."""
        if len(body) < write_head_bytes:
            raise PeerError(f"a write of {len(body)} bytes is cut short")
        epoch = u64.unpack_from(body)[0]
        if epoch < self.epoch:
            self.counters.wrong_epoch += 1
            self.reply_in_epoch(peer, request_id, WRONG_EPOCH, self.epoch_bytes)
            return False
        self.adopt_epoch(epoch)
        if self.epoch < epoch:
            self.counters.full += 1
            self.reply_in_epoch(peer, request_id, *self.no_room())
            return False
        return True

    def adopt_epoch(self, epoch: int) -> Batch | None:
        """Make a later epoch ours; the batch that makes it durable, None if it is not later, or
        if the log has no room for it. PeerError if it is so far ahead that it cannot be one."""
        if epoch - self.epoch >= epochs_ahead_max:
            raise PeerError(
                f"epoch {epoch} is {epochs_ahead_max} or more ahead of ours, {self.epoch}"
            )
        if epoch <= self.epoch or not self.log.has_room(u64.size):
            return None
        self.know_epoch(epoch)
        self._adopting = self.log.append(frame.EPOCH, self.epoch_bytes)
        return self._adopting

    def reply_in_epoch(self, peer: Peer, request_id: int, kind: int, body: bytes) -> None:
        """Answer what changed nothing, once our epoch is durable: an answer given in an epoch says
        that this replica has left the ones before for good."""
        if self._adopting is None:
            peer.reply(request_id, kind, body)
        else:
            self._adopting.replies.append((peer, request_id, kind, body))
