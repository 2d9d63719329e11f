"""The table in memory: every record of this replica, and everything that is derived from them.

    slot → {storage key → record bytes}     and beside it counts, digests, order, recency, sums

The table stores what it is told to. Which record may replace which, what a client may see, and
what must be durable first, is decided by its owner; nothing here waits, and nothing is logged.

This is a hot path, and looks like one: a key costs two `bytes` objects and an entry in each of a
dictionary and an index, and no other object. Measured in CPython 3.11 with 1 million keys of 28
bytes and values of 100, in random order so that memory is seldom in the processor's cache:

    memory beyond key and value   163 bytes a key, all in (147 with 5 million keys)
    put                           2.5 µs of a new key, 2.9 µs over one: two hashes for the digest
    get                           0.3 µs
    a page of 100 keys            0.2 ms, once the index is built: 0.5 s in 405 slices up to 2 ms
    import                        1.2 µs a record, 2.2 µs if digests are computed

`python -m bench table` measures it again. To the cycle collector all of this is a few thousand
objects, because it does not look into dictionaries and tuples that hold nothing but bytes; a
process that calls `gc.freeze()` when its table has been loaded spares it these, too.

Whatever takes long is done in slices, by whoever has the loop: `trim_slice`, `tend_slice`,
`index_slice`. Their budgets count keys, or what takes as long, so that the caller bounds the time.
One slot is the smallest step of those that go over slots: with 5 million keys 305 of them.

What it is *not*: it has no clock (`now_ms` comes in), and it does not check what it is given,
except in `import_chunk`: keys and records are checked where they enter the process.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from mmap import mmap
from sys import getsizeof

from google_crc32c import value as checksum

from services.core import record as records
from services.core.digest import Digests, differing, digests_bytes, encode_leaves
from services.core.hlc import Version
from services.core.record import head_bytes, tombstone_body
from services.core.ring import leaf_bits, leaf_count, place_of, slot_count, slot_of
from services.dhtnode.cache import Caches, Held
from services.dhtnode.chunk import decode_chunk, encode_chunks
from services.dhtnode.listing import Page, Query, Scan, list_page, scan_page
from services.dhtnode.namespace import Counts, Namespace, Namespaces

# What stands behind the version in a record without flag and expiry: a value that stays.
_lasting = bytes(9)
_no_meta = bytes(2)
_leaf_mask = leaf_count - 1

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


def _blanked(record: bytes) -> bytes:
    """What stays of a record of a cache if it must outlast something older."""
    return record[:12] + tombstone_body


class Table:
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
        # The slot with which the next slice of trimming begins.
        self.trim_next = 0
        self.trimmed = 0

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

    def keys(self, slot: int) -> list[bytes]:
        """All keys of a slot, whatever their records are, in no order that means anything."""
        return [key for key, _ in self._lasting(self.items(slot), slot)]

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
        live = record[12:21] == _lasting or self._live(slot, record)
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
        was_live = old[12:21] == _lasting or self._live(slot, old)
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
        tombstone = _blanked(record)
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

    # Namespaces.

    @property
    def total(self) -> Counts:
        return self._namespaces.total

    def namespace(self, prefix: bytes) -> Counts:
        """What a namespace has, as long as it has anything; look it up again each time."""
        return self._by_prefix.get(prefix) or Counts()

    def tenant(self, tenant: int) -> Counts:
        return self._namespaces.tenant(tenant)

    def namespaces(self, tenant: int) -> dict[bytes, Counts]:
        """By name, what each namespace of a tenant has."""
        return dict(self._namespaces.tenant(tenant).namespaces)

    def namespaces_from(self, tenant: int, start: bytes, count: int) -> list[Namespace]:
        """The first so many namespaces of a tenant, in order, from this name on."""
        return self._namespaces.tenant(tenant).named_from(start, count)

    # Listings.

    def index_mark(self, prefix: bytes) -> int:
        """A listing of the namespace that starts now needs its index merged up to here."""
        namespace = self._by_prefix.get(prefix)
        return namespace.index.mark if namespace else 0

    def index_slice(self, prefix: bytes, mark: int, budget: int) -> bool:
        """Merge some of what a listing needs; whether it may start. 8192 takes about 2 ms."""
        namespace = self._by_prefix.get(prefix)
        return namespace is None or self._namespaces.merge_slice(namespace, mark, budget)

    def page(self, prefix: bytes, query: Query, now_ms: int) -> Page:
        """A page of the namespace with this prefix, of the keys that its index has."""
        namespace = self._by_prefix.get(prefix)
        if namespace is None:
            return Page([], [], None)
        return list_page(self._slots, namespace, query, now_ms)

    def scan(self, prefix: bytes, query: Query, now_ms: int, *, tombstones: bool) -> Scan:
        """The same with keys and versions alone; see `listing.scan_page`."""
        namespace = self._by_prefix.get(prefix)
        if namespace is None:
            return Scan([], None)
        return scan_page(self._slots, namespace, query, now_ms, tombstones=tombstones)

    # Bulk.

    def export_slot(self, slot: int, chunk_bytes: int) -> Iterator[bytes]:
        """Chunks of all records of the slot as they are now, whatever happens while the chunks
        are taken; `leaves` of the same turn belong to them."""
        return encode_chunks(slot, self._lasting(self.items(slot), slot), chunk_bytes)

    def raw_keys(self, slot: int) -> Collection[bytes]:
        """Whatever keys lie in the slot, for `compared`, `versions` and `lasting` to tell which of
        them matter. It holds for this turn."""
        return self._slots[slot].keys()

    def compared(self, slot: int, keys: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        """Those of these keys that take part in what replicas compare, with their records."""
        declared = self._declared
        return [
            (key, record)
            for key, record in self.lasting(slot, keys)
            if not (declared and key[: 9 + key[8]] in declared)
        ]

    def versions(
        self, slot: int, leaves: Collection[int], keys: Collection[bytes]
    ) -> list[tuple[bytes, Version]]:
        """Those of these keys that make up these leaves, with their versions."""
        wanted = frozenset(leaves)
        return [
            (key, record[:12])
            for key, record in self.compared(slot, keys)
            if place_of(key) & _leaf_mask in wanted
        ]

    def lasting(self, slot: int, keys: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        """Those of these keys that are here to stay, with their records."""
        here = self._slots[slot]
        return self._lasting([(key, here[key]) for key in keys if key in here], slot)

    def _lasting(self, items: list[tuple[bytes, bytes]], slot: int) -> list[tuple[bytes, bytes]]:
        """Without what a cache of the past is about to give up: nobody else is to have it."""
        if not self._returning:
            return items
        caches = self._caches
        return [
            (key, _blanked(record) if caches.is_past(key) else record)
            for key, record in items
            if caches.lasts(slot, key)
        ]

    def import_chunk(self, body: bytes, *, leaves_follow: bool = False) -> int:
        """Take over the records of a chunk, or the greater one where there is one already, and
        tell how many were stored. `PeerError`, storing nothing, unless all of it is sound.

        With `leaves_follow` the digests are left alone, for `load_leaves` to be called when the
        slot, which was empty before, is complete. Caches must have been declared before.
        """
        slot, keys, found = decode_chunk(body)
        here = self._slots[slot]
        stored = 0
        # Counting is most of the work of storing, so plain records of new keys are counted
        # together while they are of one namespace.
        fresh: list[bytes] = []
        namespace: Namespace | None = None
        size = 0
        for key, record in zip(keys, found, strict=True):
            if self._returning:
                self._caches.meet(key)
            old = here.get(key)
            if old is not None and old >= record:
                continue
            stored += 1
            if namespace is None or not key.startswith(namespace.prefix):
                self._load(namespace, fresh, size)
                fresh, size = [], 0
                namespace = self._namespaces.open(key[: 9 + key[8]])
            if old is None and record[12:21] == _lasting and namespace.recency is None:
                here[key] = record
                self._sums[slot] += checksum(key + record)
                fresh.append(key)
                size += len(key) + len(record)
                if not leaves_follow:
                    self._digests.toggle(place_of(key), key, record[:12])
            elif not leaves_follow:
                self.put(slot, key, record)
            else:
                self._store(slot, key, old, record)
                if namespace.recency is not None:
                    self._caches.put(namespace, key, old)
        self._load(namespace, fresh, size)
        return stored

    def _load(self, namespace: Namespace | None, keys: list[bytes], size: int) -> None:
        """Count plain records of new keys which together have this size."""
        if namespace is not None and keys:
            self._raw_bytes += size
            namespace.count(len(keys), 0, size - len(keys) * namespace.fixed_bytes)
            namespace.index.touch_all(keys)

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
            leaves[place_of(key) & _leaf_mask] ^= hash_of(key, record[:12])
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

    # Expiry.

    def trim_slice(self, now_ms: int, budget: int) -> bool:
        """Free the memory of expired values in the next slots, until some `budget` records have
        been looked at; whether that came to the end of a pass over all slots.

        What stays of an expired record is its version and expiry, so that no older write can
        surface. Of two records of one version the greater bytes win: a replica that still has the
        value may bring it back. That does no harm: it remains expired, the digests are equal, and
        the next pass trims it again. Expired keys of a cache are removed, but for those that a
        strong operation has left something for.

        A value that is trimmed is gone, even if the clock turns out to have been wrong.
        """
        while budget > 0:
            slot = self.trim_next
            budget -= 1 + len(self._slots[slot])
            self._trim(slot, now_ms)
            self.trim_next = (slot + 1) % slot_count
            if not self.trim_next:
                return True
        return False

    def _trim(self, slot: int, now_ms: int) -> None:
        trimmed_ms = self._trimmed_ms[slot]
        if now_ms <= trimmed_ms:
            return
        found = self._slots[slot]
        expired = [
            (key, record)
            for key, record in found.items()
            if record[12:21] != _lasting and records.expired(record, now_ms)
        ]
        for key, record in expired:
            if self.peek(slot, key) is not record:
                # It was one of the past.
                continue
            namespace = self._by_prefix[key[: 9 + key[8]]]
            if namespace.max_items and not self._caches.held.holds(slot, key):
                self.remove(slot, key)
                self.trimmed += 1
                continue
            if records.expires_at_ms(record) > trimmed_ms:
                namespace.count(-1, 1, namespace.fixed_bytes - len(key) - len(record))
                if namespace.recency is None or key not in namespace.recency:
                    self._ended[slot] += 1
            if len(record) > head_bytes:
                self._exchange(slot, key, record, trimmed(record))
                self._raw_bytes -= len(record) - head_bytes
                self.trimmed += 1
        self._trimmed_ms[slot] = now_ms

    # Caches.

    def declare_cache(self, prefix: bytes, max_items: int) -> None:
        """Have the namespace keep at most so many records, or another number than until now.

        Records that it has already come under this rule by and by (`tend_slice`), as if they were
        used then. The order of use is not kept anywhere: after a recovery it is that in which
        the records were loaded. Declare caches before that, so that their keys never enter the
        digests.
        """
        self._caches.declare(prefix, max_items)

    def outlast(self, held: Held) -> None:
        """Have no cache give up the version of a key that there is something held for."""
        self._caches.held = held

    def forget_cache(self, prefix: bytes) -> None:
        """Have the namespace be a store, without what the cache had: nobody is shown that any
        more, and its memory is freed by and by (`tend_slice`). It may be a store."""
        self._caches.forget(prefix)

    @property
    def evicted(self) -> int:
        """How many records caches have given up so far."""
        return self._caches.evicted

    @property
    def index_lag(self) -> int:
        """How many keys, come or gone, wait to be merged into indexes that `tend_slice` tends."""
        return self._namespaces.lag

    def tend_slice(self, budget: int) -> bool:
        """Do some of what declarations of caches, and indexes that lag behind, have left to do;
        whether there is nothing more. Call it every now and then."""
        return self._caches.tend_slice(budget) and self._namespaces.tend_slice(budget)
