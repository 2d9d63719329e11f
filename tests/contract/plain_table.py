"""The table as it would be if nothing had to be fast: everything is worked out when asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from hashlib import blake2b

from services.core import record as records
from services.core.digest import differing, encode_leaves
from services.core.hlc import version_ms
from services.core.key import split_storage_key, tenant_prefix
from services.core.ring import leaf_count, place_of, slot_of
from services.dhtnode.chunk import decode_chunk, encode_chunks
from services.dhtnode.listing import Entry, Page, Query, Scan
from services.dhtnode.namespace import Counts


class PlainTable:
    def __init__(self, digest_key: bytes) -> None:
        self._digest_key = digest_key
        self.records: dict[bytes, bytes] = {}
        self._trimmed_ms: dict[int, int] = {}
        # Of each cache its limit and its keys, the one used last at the end.
        self._limits: dict[bytes, int] = {}
        self._order: dict[bytes, list[bytes]] = {}
        self._loaded: dict[int, bytes] = {}

    def _in(self, slot: int) -> dict[bytes, bytes]:
        return {key: record for key, record in self.records.items() if slot_of(key) == slot}

    def _use(self, key: bytes) -> None:
        prefix = prefix_of(key)
        if prefix in self._limits:
            order = self._order[prefix]
            if key in order:
                order.remove(key)
            order.append(key)
            while len(order) > self._limits[prefix]:
                del self.records[order.pop(0)]

    # Records.

    def get(self, slot: int, key: bytes) -> bytes | None:
        if key in self.records:
            self._use(key)
        return self.records.get(key)

    def peek(self, slot: int, key: bytes) -> bytes | None:
        return self.records.get(key)

    def put(self, slot: int, key: bytes, record: bytes) -> None:
        self.records[key] = record
        self._use(key)

    def remove(self, slot: int, key: bytes) -> None:
        if self.records.pop(key, None) is not None:
            order = self._order.get(prefix_of(key), [])
            if key in order:
                order.remove(key)

    def wipe(self, slot: int) -> None:
        for key in self._in(slot):
            self.remove(slot, key)

    def compact(self, slot: int) -> None:
        """There is nothing to give back."""

    def keys(self, slot: int) -> list[bytes]:
        return list(self._in(slot))

    # Counts.

    def _counted(self, prefix: bytes) -> Counts:
        counts = Counts()
        for key, record in self.records.items():
            if not key.startswith(prefix):
                continue
            if self._is_key(key, record):
                counts.keys += 1
                counts.bytes += len(split_storage_key(key).key)
                counts.bytes += len(records.meta(record)) + records.value_bytes(record)
            else:
                counts.tombstones += 1
        return counts

    def _is_key(self, key: bytes, record: bytes) -> bool:
        return records.visible(record, self._trimmed_ms.get(slot_of(key), 0))

    @property
    def total(self) -> Counts:
        return self._counted(b"")

    def namespace(self, prefix: bytes) -> Counts:
        return self._counted(prefix)

    def tenant(self, tenant: int) -> Counts:
        return self._counted(tenant_prefix(tenant))

    def namespaces(self, tenant: int) -> dict[bytes, Counts]:
        prefixes = {*map(prefix_of, self.records), *self._limits}
        return {
            prefix[9:]: self._counted(prefix)
            for prefix in prefixes
            if prefix.startswith(tenant_prefix(tenant))
        }

    # Listings.

    def index_mark(self, prefix: bytes) -> int:
        return 0

    def index_slice(self, prefix: bytes, mark: int, budget: int) -> bool:
        return True

    def _found(self, prefix: bytes, query: Query) -> list[tuple[bytes, bytes]]:
        """Keys without the prefix of the namespace, in order, and their records."""
        return sorted(
            (key[len(prefix) :], record)
            for key, record in self.records.items()
            if key.startswith(prefix + query.prefix)
            and key[len(prefix) :] >= query.start
            and (query.slots is None or query.slots[slot_of(key) // 8] >> slot_of(key) % 8 & 1)
        )

    def page(self, prefix: bytes, query: Query, now_ms: int) -> Page:
        page = Page([], [], None)
        for key, record in self._found(prefix, query):
            if not records.visible(record, now_ms):
                continue
            behind = key[len(query.prefix) :]
            group = None
            if query.delimiter and query.delimiter in behind:
                group = query.prefix + behind.split(query.delimiter)[0] + query.delimiter
                if group in page.groups:
                    continue
            if len(page.entries) + len(page.groups) == query.limit:
                return page._replace(next=key)
            if group is None:
                whole = records.Record.decode(record)
                created_at_ms = whole.metadata.created_at_ms or version_ms(record)
                page.entries.append(
                    Entry(key, len(whole.value), whole.version, whole.expires_at_ms, created_at_ms)
                )
            else:
                page.groups.append(group)
        return page

    def scan(self, prefix: bytes, query: Query, now_ms: int, *, tombstones: bool) -> Scan:
        found = [
            (key, records.version(record))
            for key, record in self._found(prefix, query)
            if tombstones or records.visible(record, now_ms)
        ]
        more = found[query.limit][0] if len(found) > query.limit else None
        return Scan(found[: query.limit], more)

    # Bulk and digests.

    def export_slot(self, slot: int, chunk_bytes: int) -> Iterator[bytes]:
        return encode_chunks(slot, list(self._in(slot).items()), chunk_bytes)

    def import_chunk(self, body: bytes, *, leaves_follow: bool = False) -> int:
        slot, keys, found = decode_chunk(body)
        stored = 0
        for key, record in zip(keys, found, strict=True):
            if record > self.records.get(key, b""):
                self.put(slot, key, record)
                stored += 1
        return stored

    def leaves(self, slot: int) -> bytes:
        leaves = [0] * leaf_count
        for key, record in self._in(slot).items():
            if prefix_of(key) not in self._limits:
                data = key + records.version(record)
                digest = blake2b(
                    data,
                    digest_size=8,
                    salt=self._digest_key[:16],
                    person=self._digest_key[16:],
                ).digest()
                leaves[place_of(key) % leaf_count] ^= int.from_bytes(digest, "big")
        return self._loaded.get(slot, encode_leaves(leaves))

    def load_leaves(self, slot: int, leaves: bytes) -> None:
        differing(leaves, bytes(leaf_count * 8))
        self._loaded[slot] = leaves

    def rebuild_digest(self, slot: int) -> list[int]:
        loaded = self._loaded.pop(slot, None)
        return [] if loaded is None else differing(loaded, self.leaves(slot))

    def raw_keys(self, slot: int) -> Collection[bytes]:
        return self._in(slot).keys()

    def compared(self, slot: int, keys: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        return [
            (key, record)
            for key, record in self.lasting(slot, keys)
            if prefix_of(key) not in self._limits
        ]

    def versions(
        self, slot: int, leaves: Collection[int], keys: Collection[bytes]
    ) -> list[tuple[bytes, bytes]]:
        return [
            (key, records.version(record))
            for key, record in self.compared(slot, keys)
            if place_of(key) % leaf_count in leaves
        ]

    def lasting(self, slot: int, keys: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        here = self._in(slot)
        return [(key, here[key]) for key in keys if key in here]

    def ended(self, slot: int) -> int:
        return sum(
            not self._is_key(key, record)
            for key, record in self.compared(slot, self.raw_keys(slot))
        )

    # Expiry and caches.

    def trim_slice(self, now_ms: int, budget: int) -> bool:
        for key, record in list(self.records.items()):
            if now_ms > self._trimmed_ms.get(slot_of(key), 0) and records.expired(record, now_ms):
                if prefix_of(key) in self._limits:
                    self.remove(slot_of(key), key)
                else:
                    emptied = records.value_body(b"", records.expires_at_ms(record))
                    self.records[key] = records.version(record) + emptied
        for slot in range(1 << 14):
            self._trimmed_ms[slot] = max(now_ms, self._trimmed_ms.get(slot, 0))
        return True

    def declare_cache(self, prefix: bytes, max_items: int) -> None:
        if max_items < 1:
            raise ValueError(f"a cache has 1 item at least, not {max_items}")
        self._limits[prefix] = max_items
        order = self._order.setdefault(prefix, [])
        there = [key for key in self.records if key.startswith(prefix) and key not in order]
        order += sorted(there, key=slot_of)
        while len(order) > max_items:
            del self.records[order.pop(0)]

    def forget_cache(self, prefix: bytes) -> None:
        self._limits.pop(prefix, None)
        for key in self._order.pop(prefix, []):
            del self.records[key]

    def tend_slice(self, budget: int) -> bool:
        return True


def prefix_of(storage_key: bytes) -> bytes:
    return storage_key[: 9 + storage_key[8]]
