"""The cells of a replica: the record of each key, and everything that is kept of each change.

    slot → {storage key → record bytes}     and beside it counts, digests, sums, order, recency

This is the table's hot path (table.py has its figures), and looks like one: a key costs two `bytes`
objects and an entry in each of a dictionary and an index, and no other object. What a put has done
to counts, digests and sums depends on nothing but bytes, so that a removal takes just that off.
"""

from __future__ import annotations

from array import array
from mmap import mmap
from sys import getsizeof

from google_crc32c import value as checksum

from services.core import record as records
from services.core.digest import Digests, differing, digests_bytes, encode_leaves
from services.core.record import tombstone_body
from services.core.ring import leaf_bits, leaf_count, place_of, slot_count, slot_of
from services.dhtnode.cache import Caches
from services.dhtnode.namespace import Counts, Namespace, Namespaces

# What stands behind the version in a record without flag and expiry: a value that stays.
lasting = bytes(9)
_no_meta = bytes(2)
leaf_mask = leaf_count - 1

# What a record takes besides the bytes of its key and itself: two object heads of 33 bytes and
# their rounding to 16 (82), its share of a dictionary (25 to 54, by how full that is), its place
# in the index and the rest of what was measured.
record_memory_bytes = 135
# Its place in the order of use of a cache.
recency_memory_bytes = 90
# A dictionary that has just grown takes up to 120 bytes a key. One that takes twice as much has had
# at least as many removed as there are left, so that giving back costs less than that has.
loose_key_bytes = 240
# And one that is empty.
loose_bytes = 64
# Digests, and dictionaries that are empty.
table_memory_bytes = 10 << 20


def trimmed(record: bytes) -> bytes:
    """What stays of a record once it has expired: its version and its expiry."""
    return record[:21] + _no_meta


def blanked(record: bytes) -> bytes:
    """What stays of a record of a cache if it must outlast something older."""
    return record[:12] + tombstone_body


class Cells:
    """All methods that take a slot and a key trust that the key is one of that slot."""

    def __init__(self, digest_key: bytes) -> None:
        self._slots: list[dict[bytes, bytes]] = [{} for _ in range(slot_count)]
        # Most of it is never touched where there are few keys; to write the zeros takes 4 ms.
        self._digests = Digests(digest_key, memoryview(mmap(-1, digests_bytes)))
        self._namespaces = Namespaces(self._present)
        self._by_prefix = self._namespaces.by_prefix
        self._caches = Caches(self._slots, self._namespaces, self)
        self._declared = self._caches.declared
        self._returning = self._caches.returning
        # Keys and records with everything in them.
        self._raw_bytes = 0
        # By slot, the time up to which expired values have been trimmed and count as tombstones.
        self._trimmed_ms = array("Q", bytes(8 * slot_count))
        # By slot, the sum of the checksums of all its keys with their records, kept with each
        # change. It is not worked out from what lies in memory: it tells whether that has rotted.
        # A crc is linear: in an XOR of them two equal flips would cancel out.
        self._sums = [0] * slot_count
        # By slot, how many keys that are in the digests count as tombstones.
        self._ended = array("l", bytes(array("l").itemsize * slot_count))

    # Records.

    def get(self, slot: int, key: bytes) -> bytes | None:
        """The record, for a client: in a cache this is a use of the key. Whether the client may
        see it is the caller's question, and `record.visible` the answer."""
        if self._returning:
            self._caches.meet(key)
        record = self._slots[slot].get(key)
        if self._declared and record is not None:
            self._caches.use(key[: 9 + key[8]], key)
        return record

    def peek(self, slot: int, key: bytes) -> bytes | None:
        """The record, for the platform itself."""
        if self._returning:
            self._caches.meet(key)
        return self._slots[slot].get(key)

    def put(self, slot: int, key: bytes, record: bytes) -> None:
        """Have this record, whatever there was. In a full cache the least recently used go."""
        self.replace(place_of(key), key, self.peek(slot, key), record)

    def replace(self, place: int, key: bytes, old: bytes | None, record: bytes) -> None:
        """As `put`, for a caller that knows the place of the key (`ring.place_of`) and what `peek`
        has just told: neither is worked out a second time."""
        namespace = self._store(place >> leaf_bits, key, old, record)
        if namespace.recency is None or not self._caches.put(namespace, key, old):
            if old is None:
                self._digests.toggle(place, key, record[:12])
            elif old[:12] != record[:12]:
                self._digests.replace(place, key, old[:12], record[:12])

    def remove(self, slot: int, key: bytes) -> None:
        """Forget the key altogether. It may be unknown."""
        record = self.peek(slot, key)
        if record is None:
            return
        namespace = self._by_prefix[key[: 9 + key[8]]]
        if not self._caches.remove(namespace, key):
            self.leave(slot, key, record)
        self.drop(namespace, slot, key)

    def wipe(self, slot: int) -> None:
        """Forget all of a slot."""
        for key in list(self._slots[slot]):
            self.remove(slot, key)
        # It gives back what it had grown to, and any drift of the digests.
        self._slots[slot] = {}
        self._sums[slot] = 0
        self._ended[slot] = 0
        self._digests.clear(slot)

    def compact(self, slot: int) -> None:
        """Give back what the slot had grown to, if it is mostly air by now. To look costs nothing,
        so that it may be called wherever something was removed."""
        here = self._slots[slot]
        if getsizeof(here) > loose_bytes + len(here) * loose_key_bytes:
            self._slots[slot] = dict(here)

    def _store(self, slot: int, key: bytes, old: bytes | None, record: bytes) -> Namespace:
        """Everything of a put but digests and recency."""
        self._slots[slot][key] = record
        if old is None:
            self._sums[slot] += checksum(key + record)
        else:
            self._sums[slot] += checksum(key + record) - checksum(key + old)
        prefix = key[: 9 + key[8]]
        namespace = self._by_prefix.get(prefix)
        if namespace is None:
            namespace = self._namespaces.open(prefix)
        live = record[12:21] == lasting or self._live(slot, record)
        if old is None:
            self._raw_bytes += len(key) + len(record)
            if live:
                namespace.count(1, 0, len(key) + len(record) - namespace.fixed_bytes)
            else:
                namespace.count(0, 1, 0)
                if namespace.recency is None:
                    self._ended[slot] += 1
            namespace.index.touch(key)
            return namespace
        self._raw_bytes += len(record) - len(old)
        was_live = old[12:21] == lasting or self._live(slot, old)
        if live and was_live:
            if len(record) != len(old):
                namespace.count(0, 0, len(record) - len(old))
        elif live or was_live:
            shown = record if live else old
            size = len(key) + len(shown) - namespace.fixed_bytes
            change = 1 if live else -1
            namespace.count(change, -change, change * size)
            if namespace.recency is None:
                self._ended[slot] -= change
        return namespace

    def drop(self, namespace: Namespace, slot: int, key: bytes, *, counted: bool = True) -> None:
        """Everything of a removal but digests and recency. The caches call it."""
        record = self._slots[slot].pop(key)
        self._sums[slot] -= checksum(key + record)
        self._raw_bytes -= len(key) + len(record)
        if counted and self._live(slot, record):
            namespace.count(-1, 0, namespace.fixed_bytes - len(key) - len(record))
        elif counted:
            namespace.count(0, -1, 0)
        self._namespaces.removed(namespace, key)

    def blank(self, namespace: Namespace, slot: int, key: bytes, *, counted: bool) -> None:
        """Leave nothing of a record but its version. The caches call it."""
        record = self._slots[slot][key]
        tombstone = blanked(record)
        self._exchange(slot, key, record, tombstone)
        self._raw_bytes += len(tombstone) - len(record)
        if not counted:
            namespace.count(0, 1, 0)
        elif self._live(slot, record):
            namespace.count(-1, 1, namespace.fixed_bytes - len(key) - len(record))

    def join(self, slot: int, key: bytes, record: bytes) -> None:
        """Have a key take part in what replicas compare and collect. The caches call it."""
        self._digests.toggle(place_of(key), key, record[:12])
        if not self._live(slot, record):
            self._ended[slot] += 1

    def leave(self, slot: int, key: bytes, record: bytes) -> None:
        """Have it take no part any more. The caches call it, too."""
        self._digests.toggle(place_of(key), key, record[:12])
        if not self._live(slot, record):
            self._ended[slot] -= 1

    def _exchange(self, slot: int, key: bytes, old: bytes, record: bytes) -> None:
        """Have another record of the same version; counting is up to the caller."""
        self._slots[slot][key] = record
        self._sums[slot] += checksum(key + record) - checksum(key + old)

    def _live(self, slot: int, record: bytes) -> bool:
        """Whether the record counts as a key. It depends on nothing but its bytes and how far the
        slot has been trimmed, so that what was added to a count is what will be taken off it."""
        if records.is_tombstone(record):
            return False
        expiry_ms = records.expires_at_ms(record)
        return not expiry_ms or expiry_ms > self._trimmed_ms[slot]

    @property
    def memory_bytes(self) -> int:
        """An estimate, a few percent off either way, of what all of this takes."""
        return (
            table_memory_bytes
            + self._raw_bytes
            + (self.total.records + self._caches.uncounted) * record_memory_bytes
            + self._caches.ordered * recency_memory_bytes
            + self._namespaces.lag_bytes
        )

    def _present(self, key: bytes) -> bool:
        return key in self._slots[slot_of(key)]

    @property
    def total(self) -> Counts:
        return self._namespaces.total

    # Digests. Keys of caches have no part in them.

    def leaves(self, slot: int) -> bytes:
        """The digest leaves of the slot; `digest.summary_of` makes the summary of them."""
        if not self._caches.settled:
            return self._scan_leaves(slot, settled=True)
        return self._digests.leaves(slot)

    def load_leaves(self, slot: int, leaves: bytes) -> None:
        """Trust these leaves to be those of the slot, as when they come from a snapshot."""
        if not self._caches.settled:
            self.rebuild_digest(slot)
        else:
            self._digests.load(slot, leaves)

    def rebuild_digest(self, slot: int) -> list[int]:
        """Compute the leaves of the slot from its records. The numbers of those that were wrong:
        there should be none, and each one is a bug or a broken memory."""
        found = self._scan_leaves(slot, settled=False)
        wrong = differing(self._digests.leaves(slot), found)
        self._digests.load(slot, found)
        self._ended[slot] = self._scan_ended(slot)
        return wrong

    def ended(self, slot: int) -> int:
        """How many keys of the slot that are in the digests count as tombstones."""
        return max(0, self._ended[slot])

    @property
    def ended_everywhere(self) -> int:
        """The same of all slots. It takes a tenth of a millisecond."""
        return max(0, sum(self._ended))

    # Rot. What these three leave alone, counts, digests and sums, is that of the sound records.

    def wrong_leaves(self, slot: int) -> list[int]:
        """As `rebuild_digest`, leaving the leaves as they are: those that were kept with each
        change know better than the records which of these have rotted."""
        return differing(self._digests.leaves(slot), self._scan_leaves(slot, settled=False))

    def sound(self, slot: int) -> bool:
        """Whether all keys and records of the slot are, byte for byte, those that were put. It
        takes half a microsecond for each, where memory is seldom in the processor's cache."""
        return self._summed(slot) == self._sums[slot]

    def count(self, slot: int) -> int:
        """How many keys lie in the slot, of stores and of caches."""
        return len(self._slots[slot])

    def items(self, slot: int) -> list[tuple[bytes, bytes]]:
        """What lies in the slot, whatever it is by now."""
        return list(self._slots[slot].items())

    def mend(self, slot: int, key: bytes, record: bytes) -> None:
        """Put the sound bytes of a record in place of those that have rotted."""
        self._slots[slot][key] = record

    def mend_key(self, slot: int, rotten: bytes, key: bytes) -> None:
        """Have the record of a key that has rotted under the sound one. `rotten` is the very
        object that `items` has: no other one is found any more."""
        self._slots[slot][key] = self._slots[slot].pop(rotten)
        namespace = self._namespaces.open(key[: 9 + key[8]])
        # An index may name keys that are not there. That of the sound key lies where it lay.
        self._namespaces.touch_removed(namespace, rotten)
        namespace.index.touch(key)

    def give_up(self, slot: int, rotten: bytes) -> None:
        """Forget a record, the very key object of which this is, because it has rotted. What
        counts, digests and sums are then is up to `accept`, and a restart for the counts."""
        namespace = self._by_prefix.get(rotten[: 9 + rotten[8]])
        if namespace is None:
            self._raw_bytes -= len(rotten) + len(self._slots[slot].pop(rotten))
            return
        self._caches.remove(namespace, rotten)
        self.drop(namespace, slot, rotten)

    def accept(self, slot: int) -> list[int]:
        """Have digests and sum of the slot be those of what lies there; the leaves that change."""
        self._sums[slot] = self._summed(slot)
        return self.rebuild_digest(slot)

    def _summed(self, slot: int) -> int:
        return sum([checksum(key + record) for key, record in self._slots[slot].items()])

    def _scan_leaves(self, slot: int, *, settled: bool) -> bytes:
        """The leaves as they are without the keys of caches; or, unless `settled`, without those
        that have left the digests so far."""
        leaves = [0] * leaf_count
        hash_of = self._digests.hash_of
        caches = self._caches
        for key, record in self._slots[slot].items():
            # A key that has rotted may be of no namespace.
            namespace = self._by_prefix.get(key[: 9 + key[8]])
            recency = None if namespace is None else namespace.recency
            if settled:
                if recency is not None or not caches.lasts(slot, key):
                    continue
            elif (recency is not None and key in recency) or caches.is_past(key):
                continue
            leaves[place_of(key) & leaf_mask] ^= hash_of(key, record[:12])
        return encode_leaves(leaves)

    def _scan_ended(self, slot: int) -> int:
        """What `ended` has to be."""
        count = 0
        for key, record in self._slots[slot].items():
            if self._is_compared(key) and not self._live(slot, record):
                count += 1
        return count

    def _is_compared(self, key: bytes) -> bool:
        """Whether the key is in the digests, as far as keys have changed sides."""
        namespace = self._by_prefix.get(key[: 9 + key[8]])
        recency = None if namespace is None else namespace.recency
        return (recency is None or key not in recency) and not self._caches.is_past(key)
