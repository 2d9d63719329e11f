"""What the acceptors of this replica hold: `slot → {storage key → Promise}`, and its bytes.

    PROMISED   ballot 12 · key
    ACCEPTED   ballot 12 · operation 12 · key_len u16 · key · record
    LEARNED    ballot 12 · key                     the cell took what was accepted at this ballot
    PROMISES   slot u16 · entry …                  of a snapshot
    entry      promised 12 · ballot 12 · operation 12 · key_len u16 · record_len u32 · key · record

A promise takes about 250 bytes, and no second copy of a record that the table has as well: an
accepted record and the cell that learned it are one object. A record that is no cell, as it was
not learned or something newer came, is counted here.

A value that has expired is freed with its cell only once a tombstone has been accepted in its
place: what was chosen is changed by a later choice, and never by one replica's opinion of the time.
Until then it is counted here, and named to whoever can have that done.

Replay may meet frames that are older than what a snapshot has brought: a ballot only ever grows,
so the greater one tells what is newer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from struct import Struct
from typing import Final

from services.core.errors import PeerError
from services.core.hlc import Version, version_zero
from services.core.key import check_storage_key
from services.core.messages import Reader
from services.core.paxos import Promise, nothing_promised
from services.core.record import check, expired, is_tombstone
from services.core.ring import slot_of

# A tuple, its ballots, and its share of a dictionary.
promise_memory_bytes: Final = 250
# An entry in a dictionary of keys that are held elsewhere.
noted_memory_bytes: Final = 100

_ballot_bytes: Final = 12
_accepted_head = Struct(">12s12sH")
_slot_head = Struct(">H")
_entry_head = Struct(">12s12s12sHI")


def encode_promised(ballot: Version, key: bytes) -> bytes:
    return ballot + key


def decode_promised(body: bytes) -> tuple[Version, bytes]:
    """Of PROMISED and of LEARNED: the ballot, and the key."""
    return body[:_ballot_bytes], check_storage_key(body[_ballot_bytes:])


def encode_accepted(ballot: Version, operation: Version, key: bytes, record: bytes) -> bytes:
    return _accepted_head.pack(ballot, operation, len(key)) + key + record


def decode_accepted(body: bytes) -> tuple[bytes, Promise]:
    """The key, and what is held for it afterwards."""
    reader = Reader(body)
    ballot, operation, size = _accepted_head.unpack(reader.take(_accepted_head.size))
    key = check_storage_key(reader.take(size))
    return key, Promise(ballot, ballot, operation, check_accepted(reader.rest()))


def check_accepted(record: bytes) -> bytes:
    """The record itself if it may be accepted: nothing may."""
    return check(record) if record else record


def has_ended(promise: Promise) -> bool:
    """Whether a tombstone was accepted, or that there is nothing: both are there to be collected.
    Where nothing was accepted ever there may be a value that only this replica does not know."""
    if promise.record:
        return is_tombstone(promise.record)
    return promise.ballot != version_zero


class Promises:
    """All promises of a replica. The rules for them are those of `paxos`; this only holds.

    `cell` looks a slot's key up in the table. Whoever changes a cell so that it becomes, or is not
    any more, the record of a promise has that weighed anew.
    """

    def __init__(self, cell: Callable[[int, bytes], bytes | None]) -> None:
        self._slots: dict[int, dict[bytes, Promise]] = {}
        self.count = 0
        # By slot, and there by the prefix of their namespace, how many have ended; where there are
        # none nothing is there.
        self._ended: dict[int, dict[bytes, int]] = {}
        self.ended_everywhere = 0
        # By key, the bytes of records that are held here and in no cell.
        self._alone: dict[bytes, int] = {}
        self._alone_bytes = 0
        # By key, since when something accepted has not been learned, or when a replicator was told
        # of it; the oldest first. The acceptor's, and here to be counted and wiped with the rest.
        self.unlearned: dict[bytes, float] = {}
        # Keys whose accepted value was found to have expired, and nobody was told since.
        self._expired: dict[bytes, None] = {}
        # Keys of which nobody can say any more what was accepted, until something else is.
        self.doubtful: set[bytes] = set()
        self._cell = cell

    def get(self, slot: int, key: bytes) -> Promise:
        held = self._slots.get(slot)
        return nothing_promised if held is None else held.get(key, nothing_promised)

    def holds(self, slot: int, key: bytes) -> bool:
        """Whether there is anything for this key."""
        return self.count > 0 and key in self._slots.get(slot, ())

    def put(self, slot: int, key: bytes, promise: Promise) -> None:
        held = self._slots.get(slot)
        if held is None:
            held = self._slots[slot] = {}
        before = held.get(key)
        held[key] = promise
        if before is None:
            self.count += 1
        self._count_ended(slot, key, before, promise)
        # Somebody is at it. If nothing comes of that, the next look finds it again.
        self._expired.pop(key, None)
        self.doubtful.discard(key)
        self.weigh(slot, key)

    def doubt(self, key: bytes) -> None:
        """What was accepted for this key has rotted, and no copy of it is left here."""
        self.doubtful.add(key)
        # By which some replicator hears of it, and has the others' choice accepted here as well.
        self.unlearned[key] = 0.0

    def drop(self, slot: int, key: bytes) -> None:
        """Forget what was promised for this key, as there is something."""
        held = self._slots[slot]
        self._count_ended(slot, key, held.pop(key), None)
        if not held:
            del self._slots[slot]
        self.count -= 1
        self._forget(key)

    def _forget(self, key: bytes) -> None:
        """Take a key off every list."""
        self._alone_bytes -= self._alone.pop(key, 0)
        self.unlearned.pop(key, None)
        self._expired.pop(key, None)
        self.doubtful.discard(key)

    def _count_ended(
        self, slot: int, key: bytes, before: Promise | None, after: Promise | None
    ) -> None:
        change = int(after is not None and has_ended(after))
        change -= int(before is not None and has_ended(before))
        if not change:
            return
        self.ended_everywhere += change
        by_prefix = self._ended.setdefault(slot, {})
        prefix = key[: 9 + key[8]]
        by_prefix[prefix] = by_prefix.get(prefix, 0) + change
        if not by_prefix[prefix]:
            del by_prefix[prefix]
            if not by_prefix:
                del self._ended[slot]

    def ended(self, slot: int, caches: Collection[bytes]) -> int:
        """How many of a slot have ended, those in these namespaces left out."""
        by_prefix = self._ended.get(slot)
        if by_prefix is None:
            return 0
        return sum([count for prefix, count in by_prefix.items() if prefix not in caches])

    def weigh(self, slot: int, key: bytes) -> None:
        """See whether the record of a promise is that of the cell as well."""
        record = self.get(slot, key).record
        self._alone_bytes -= self._alone.pop(key, 0)
        if record and self._cell(slot, key) is not record:
            self._alone[key] = len(record)
            self._alone_bytes += len(record)

    def merge(self, slot: int, key: bytes, found: Promise) -> None:
        """Hold what is newer of what is held and what a log or a snapshot says was held."""
        held = self.get(slot, key)
        # One ballot has one record: if they differ, one has rotted, and the later one was accepted
        # in its place.
        accepted = found if found.ballot >= held.ballot else held
        promised = max(held.promised, found.promised)
        self.put(slot, key, accepted._replace(promised=promised))

    def find_expired(self, slot: int, now_ms: int) -> None:
        """Note what has expired in a slot whose cells have just been trimmed."""
        for key, promise in self._slots.get(slot, {}).items():
            record = promise.record
            if record and expired(record, now_ms):
                self._expired[key] = None
                self.weigh(slot, key)

    @property
    def expired(self) -> int:
        """How many keys there are that `take_expired` has yet to tell."""
        return len(self._expired)

    def take_expired(self, limit: int) -> list[bytes]:
        """Some keys whose accepted value has expired. Each is told once after every look."""
        found = list(islice(self._expired, limit))
        for key in found:
            del self._expired[key]
        return found

    @property
    def memory_bytes(self) -> int:
        """An estimate of what they take besides the records that the table counts."""
        return (
            self.count * promise_memory_bytes
            + self._alone_bytes
            + (len(self._alone) + len(self.unlearned) + len(self._expired)) * noted_memory_bytes
        )

    def keys(self, slot: int) -> Collection[bytes]:
        """Those of a slot. It holds for this turn."""
        return self._slots.get(slot, {}).keys()

    def items(self, slot: int) -> list[tuple[bytes, Promise]]:
        return list(self._slots.get(slot, {}).items())

    def __iter__(self) -> Iterator[tuple[int, bytes, Promise]]:
        for slot in list(self._slots):
            for key, promise in self.items(slot):
                yield slot, key, promise

    def wipe(self, slot: int) -> None:
        wiped = self._slots.pop(slot, {})
        self.ended_everywhere -= sum(self._ended.pop(slot, {}).values())
        self.count -= len(wiped)
        for key in wiped:
            self._forget(key)

    # -- snapshots

    def export_slot(self, slot: int, chunk_bytes: int) -> Iterator[bytes]:
        """Chunks of about this size, all as of the first one's turn."""
        parts, size = [_slot_head.pack(slot)], 0
        for key, (promised, ballot, operation, record) in self.items(slot):
            head = _entry_head.pack(promised, ballot, operation, len(key), len(record))
            parts += (head, key, record)
            size += len(head) + len(key) + len(record)
            if size >= chunk_bytes:
                yield b"".join(parts)
                parts, size = [_slot_head.pack(slot)], 0
        if size:
            yield b"".join(parts)

    def import_chunk(self, body: bytes) -> None:
        """Merge what a chunk brings. PeerError for one that was not made here."""
        reader = Reader(body)
        slot = reader.slot()
        rest = memoryview(reader.rest())
        position = 0
        while position < len(rest):
            if len(rest) - position < _entry_head.size:
                raise PeerError(f"promises of slot {slot} end inside of one")
            promised, ballot, operation, key_size, size = _entry_head.unpack_from(rest, position)
            start = position + _entry_head.size
            position = start + key_size + size
            if position > len(rest):
                raise PeerError(f"promises of slot {slot} end inside of one")
            key = check_storage_key(bytes(rest[start : start + key_size]))
            if slot_of(key) != slot:
                raise PeerError(f"a promise for a key of slot {slot_of(key)} among those of {slot}")
            record = check_accepted(bytes(rest[start + key_size : position]))
            self.merge(slot, key, Promise(promised, ballot, operation, record))
