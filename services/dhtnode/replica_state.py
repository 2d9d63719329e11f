"""What a replica holds, how that comes back from files, and how it goes there.

    snapshot, and the log behind it ──► replay ──► ReplicaState ──► frames ──► snapshot

Every change is in the log before it is told to anybody (replica.py), and a snapshot is written
while changes go on. So `replay` takes what is there already once more, and keeps the greater.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from services.core.errors import PeerError
from services.core.hlc import HighWater, Version, check_version, version_bytes
from services.core.key import check_namespace_prefix
from services.core.messages import STORAGE_FULL, Reader, Status, u16, u64
from services.core.namespaces import decode_edition, encode_edition
from services.core.ring import leaf_bits, place_of, slot_count, slot_of
from services.dhtnode import frame
from services.dhtnode.cache_list import CacheList, changed_caches
from services.dhtnode.promises import Promises, decode_accepted, decode_promised
from services.dhtnode.purging import decode_purged, take_away
from services.dhtnode.rot import RottenSlot
from services.dhtnode.slot_orders import SlotOrders
from services.dhtnode.table import Table
from services.runtime.log.frame import head_bytes
from services.runtime.log.log import Log

# A slot of a large store becomes several chunks, each made in well under a millisecond.
chunk_bytes: Final = 64 << 10
# So many slots are passed over in half a millisecond.
empty_slots_max: Final = 512


class ReplicaState:
    """Filled by `replay`; changes go to its log once it has one."""

    log: Log

    def __init__(self, table: Table) -> None:
        self.table = table
        self.promises = Promises(table.peek)
        table.outlast(self.promises)
        self.orders = SlotOrders(table, self.promises)
        self.cache_list = CacheList(table, self._log_if_there_is_room)
        self.caches = self.cache_list.caches
        self.floors: dict[int, Version] = {}
        # By slot, the floor that a collection under way has set: what it alone may still write is
        # at or below that. Neither a restart nor another epoch knows of it any more.
        self.sessions: dict[int, Version] = {}
        self.high_water = HighWater()
        self.epoch = 0
        self.epoch_bytes = u64.pack(0)

    def know_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.sessions.clear()
        self.epoch = epoch
        self.epoch_bytes = u64.pack(epoch)

    def raise_floor(self, slot: int, floor: Version) -> None:
        self.floors[slot] = max(floor, self.floors.get(slot, floor))
        self.high_water.take(floor)

    def no_room(self) -> Status:
        """The refusal of what a full disk could not keep, be it a delete or an epoch."""
        shortage = self.log.shortage
        why = "it is full" if shortage is None else shortage.strerror
        return STORAGE_FULL, f"disk: the log has no room, not for deletes either ({why})".encode()

    def _log_if_there_is_room(self, kind: int, body: bytes) -> None:
        if not self.log.has_room(head_bytes + len(body)):
            raise PeerError(self.no_room()[1].decode())
        self.log.append(kind, body)

    @property
    def memory_bytes(self) -> int:
        """An estimate of what all that is held takes."""
        return self.table.memory_bytes + self.promises.memory_bytes

    def trim_slice(self, now_ms: int, budget: int) -> bool:
        """Free expired values of the table in the next slots, as `Table.trim_slice`, and find the
        promises there that still have such a value. Keys are spread evenly over slots, so that
        these are few as well. What pages of these slots have left behind goes, too."""
        first = self.table.trim_next
        ended = self.table.trim_slice(now_ms, budget)
        for slot in range(first, self.table.trim_next or slot_count):
            self.promises.find_expired(slot, now_ms)
            self.orders.forget(slot)
        return ended

    # -- from files

    def replay(self, kind: int, body: bytes) -> None:
        """Take a frame of a snapshot or of the log. PeerError for one that no replica wrote."""
        if kind == frame.RECORD:
            key, record = frame.decode_record(body)
            place = place_of(key)
            old = self.table.peek(place >> leaf_bits, key)
            if old is None or old < record:
                self.table.replace(place, key, old, record)
            self.high_water.take(record[:version_bytes])
        elif kind in (frame.FLOOR, frame.PURGED):
            self._replay_collection(kind, body)
        elif kind == frame.EPOCH:
            if len(body) != u64.size:
                raise PeerError(f"an epoch has {u64.size} bytes, not {len(body)}")
            self.know_epoch(max(self.epoch, u64.unpack(body)[0]))
        elif kind == frame.SLOT:
            self.table.import_chunk(body, leaves_follow=True)
        elif kind == frame.LEAVES:
            reader = Reader(body)
            self.table.load_leaves(reader.slot(), reader.rest())
        elif kind in (frame.CACHE, frame.EDITION):
            self._replay_caches(kind, body)
        elif kind == frame.CLOCK:
            self.high_water.take(check_version(body))
        elif kind == frame.PROMISES:
            self.promises.import_chunk(body)
        elif kind in (frame.PROMISED, frame.ACCEPTED, frame.LEARNED):
            self._replay_promise(kind, body)
        else:
            raise PeerError(f"a change of the unknown kind {kind}; was it written by a newer ydht?")

    def _replay_collection(self, kind: int, body: bytes) -> None:
        if kind == frame.PURGED:
            take_away(self.table, self.promises, decode_purged(body))
        else:
            reader = Reader(body)
            self.raise_floor(reader.slot(), check_version(reader.rest()))

    def _replay_caches(self, kind: int, body: bytes) -> None:
        if kind == frame.EDITION:
            self.cache_list.edition = max(self.cache_list.edition, decode_edition(body))
        else:
            reader = Reader(body)
            items_max = reader.u64()
            self.cache_list.declare(check_namespace_prefix(reader.rest()), items_max)

    def _replay_promise(self, kind: int, body: bytes) -> None:
        promises = self.promises
        if kind == frame.ACCEPTED:
            key, found = decode_accepted(body)
            ballot = found.ballot
        else:
            ballot, key = decode_promised(body)
        place = place_of(key)
        slot = place >> leaf_bits
        held = promises.get(slot, key)
        if kind == frame.ACCEPTED:
            promises.merge(slot, key, found)
        elif kind == frame.PROMISED:
            promises.merge(slot, key, held._replace(promised=ballot))
        elif held.ballot == ballot and held.record:
            # What a later ballot has replaced was learned before the snapshot took the cell.
            old = self.table.peek(slot, key)
            if old is None or old < held.record:
                self.table.replace(place, key, old, held.record)
        self.high_water.take(ballot)

    # -- to files

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Everything of this replica as frames for a snapshot, each quick to make. Changes may
        come in between: what is replayed over them makes the state exact. No cache is forgotten
        meanwhile: what was put into it would be replayed into the store that came after it.
        RottenSlot if a slot is not as it should be."""
        self.cache_list.snapshots += 1
        try:
            yield from self._frames()
        finally:
            self.cache_list.snapshots -= 1

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        yield frame.EPOCH, self.epoch_bytes
        yield frame.CLOCK, self.high_water.latest
        for slot, floor in list(self.floors.items()):
            yield frame.FLOOR, u16.pack(slot) + floor
        # Before the records, so that those of caches never enter the digests.
        told, changes = dict(self.caches), self.cache_list.changes
        for prefix, items_max in told.items():
            yield frame.CACHE, u64.pack(items_max) + prefix
        if told == self.caches:
            # Else a list has come meanwhile, and the log after this snapshot has it all.
            yield frame.EDITION, encode_edition(self.cache_list.edition)
        empty = 0
        for slot in range(slot_count):
            # Before its records: a cell that comes later has learned at least as much.
            for promises in self.promises.export_slot(slot, chunk_bytes):
                yield frame.PROMISES, promises
            chunks = self.table.export_slot(slot, chunk_bytes)
            if not self.table.sound(slot) or self._is_doubtful(slot):
                # Its checksums would vouch for what is wrong.
                raise RottenSlot(slot)
            if (chunk := next(chunks, None)) is None:
                empty += 1
                if not empty % empty_slots_max:
                    # Nothing new; it lets the reader of these frames have a pause.
                    yield frame.EPOCH, self.epoch_bytes
                continue
            # Of the same turn of the loop as the chunks, so that the leaves are those of these
            # records, without the keys of what is a cache by now: that has to be told first.
            leaves = self.table.leaves(slot)
            if changes != self.cache_list.changes:
                caches, changes = dict(self.caches), self.cache_list.changes
                for prefix, items_max in changed_caches(told, caches):
                    yield frame.CACHE, u64.pack(items_max) + prefix
                told = caches
            yield frame.SLOT, chunk
            for chunk in chunks:
                yield frame.SLOT, chunk
            yield frame.LEAVES, u16.pack(slot) + leaves

    def _is_doubtful(self, slot: int) -> bool:
        """Whether what was accepted for a key of this slot has rotted, as far as that is known."""
        return slot in {slot_of(key) for key in self.promises.doubtful}
