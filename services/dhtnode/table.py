"""The table in memory: every record of this replica, and everything that is derived from them.

    slot → {storage key → record bytes}     and beside it counts, digests, order, recency, sums

The table stores what it is told to. Which record may replace which, what a client may see, and
what must be durable first, is decided by its owner; nothing here waits, and nothing is logged.

Its cells (cells.py) take a put or a get; what goes over many of them is here. Measured in CPython
3.11 with 1 million keys of 28 bytes and values of 100, in random order so that memory is seldom in
the processor's cache:

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

from collections.abc import Collection, Iterator

from google_crc32c import value as checksum

from services.core import record as records
from services.core.hlc import Version
from services.core.record import head_bytes
from services.core.ring import place_of, slot_count
from services.dhtnode.cache import Held
from services.dhtnode.cells import Cells, blanked, lasting, leaf_mask, trimmed
from services.dhtnode.chunk import decode_chunk, encode_chunks
from services.dhtnode.listing import Page, Query, Scan, list_page, scan_page
from services.dhtnode.namespace import Counts, Namespace


class Table(Cells):
    """All methods that take a slot and keys trust that the keys are of that slot."""

    def __init__(self, digest_key: bytes) -> None:
        super().__init__(digest_key)
        # The slot with which the next slice of trimming begins.
        self.trim_next = 0
        self.trimmed = 0

    # Namespaces.

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

    def keys(self, slot: int) -> list[bytes]:
        """All keys of a slot, whatever their records are, in no order that means anything."""
        return [key for key, _ in self._lasting(self.items(slot), slot)]

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
            if place_of(key) & leaf_mask in wanted
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
            (key, blanked(record) if caches.is_past(key) else record)
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
            if old is None and record[12:21] == lasting and namespace.recency is None:
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
            if record[12:21] != lasting and records.expired(record, now_ms)
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
