"""What every owner of a table relies on, asked of the real one and of the plain one."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from itertools import count

import pytest

from services.core.digest import digest_key
from services.core.errors import PeerError
from services.core.hlc import pack_version
from services.core.key import namespace_prefix, storage_key
from services.core.record import Metadata, Record, tombstone_body, value_body
from services.core.ring import slot_count, slot_of
from services.dhtnode.chunk import decode_chunk
from services.dhtnode.listing import Query
from services.dhtnode.namespace import Counts
from services.dhtnode.table import Table
from tests.contract.plain_table import PlainTable

AnyTable = Table | PlainTable

secret = digest_key("what the tests know")
start_ms = 1_800_000_000_000
whole = 10**9
here = namespace_prefix(7, b"here")
there = namespace_prefix(7, b"there")
other = namespace_prefix(8, b"here")


@pytest.fixture(params=[Table, PlainTable])
def table(request: pytest.FixtureRequest) -> AnyTable:
    make: Callable[[bytes], AnyTable] = request.param
    return make(secret)


def made(
    time_ms: int = start_ms, value: bytes = b"value", expires_at_ms: int = 0, meta: bytes = b""
) -> bytes:
    return pack_version(time_ms << 16, 1) + value_body(value, expires_at_ms, meta)


def deleted(time_ms: int = start_ms) -> bytes:
    return pack_version(time_ms << 16, 1) + tombstone_body


def put(table: AnyTable, key: bytes, record: bytes | None = None) -> None:
    table.put(slot_of(key), key, made() if record is None else record)


def remove(table: AnyTable, key: bytes) -> None:
    table.remove(slot_of(key), key)


def bring_up_to_date(table: AnyTable, prefix: bytes, budget: int = whole) -> None:
    mark = table.index_mark(prefix)
    while not table.index_slice(prefix, mark, budget):
        pass


def listed(table: AnyTable, prefix: bytes, query: Query, now_ms: int = start_ms) -> list[bytes]:
    """All keys, and groups after them, of the pages from this query on."""
    bring_up_to_date(table, prefix)
    keys: list[bytes] = []
    groups: list[bytes] = []
    while True:
        page = table.page(prefix, query, now_ms)
        assert len(page.entries) + len(page.groups) <= query.limit
        keys += [entry.key for entry in page.entries]
        # A page may end inside of a group before it has found a visible key there, but not after.
        assert not set(groups) & set(page.groups)
        groups += page.groups
        if page.next is None:
            return keys + groups
        assert page.next > query.start
        query = query._replace(start=page.next)


def numbers(counts: Counts) -> tuple[int, int, int]:
    return counts.keys, counts.tombstones, counts.bytes


def settle(table: AnyTable) -> None:
    while not table.tend_slice(1000):
        pass


def compared(table: AnyTable) -> list[tuple[bytes, bytes]]:
    return table.compared(77, table.raw_keys(77))


def versions(table: AnyTable, leaves: Collection[int]) -> list[tuple[bytes, bytes]]:
    return table.versions(77, leaves, table.raw_keys(77))


def all_drift(table: AnyTable) -> list[int]:
    return [slot for slot in range(slot_count) if table.rebuild_digest(slot)]


# Records.


def test_the_last_record_put_is_the_one_that_is_there(table: AnyTable) -> None:
    key = here + b"key"
    assert table.get(slot_of(key), key) is None
    put(table, key, made(value=b"one"))
    put(table, key, older := made(start_ms - 1, b"two"))
    assert table.get(slot_of(key), key) == table.peek(slot_of(key), key) == older
    assert table.keys(slot_of(key)) == [key]
    remove(table, key)
    remove(table, key)
    assert table.get(slot_of(key), key) is None


def test_counts_follow_values_tombstones_and_removals(table: AnyTable) -> None:
    put(table, here + b"abc", made(value=b"12345", meta=Metadata(content_type=b"text/a").encode()))
    put(table, there + b"x", made(value=b""))
    put(table, other + b"x", deleted())
    assert numbers(table.namespace(here)) == (1, 0, 3 + 5 + 16)
    assert numbers(table.tenant(7)) == (2, 0, 3 + 5 + 16 + 1)
    assert numbers(table.tenant(8)) == (0, 1, 0)
    assert numbers(table.total) == (2, 1, 25)
    put(table, here + b"abc", made(value=b"1"))
    assert numbers(table.namespace(here)) == (1, 0, 4)
    put(table, here + b"abc", deleted())
    assert numbers(table.namespace(here)) == (0, 1, 0)
    put(table, here + b"abc", made(value=b"12"))
    assert numbers(table.total) == (2, 1, 6)
    for key in (here + b"abc", there + b"x", other + b"x"):
        remove(table, key)
    assert numbers(table.total) == numbers(table.tenant(7)) == (0, 0, 0)
    assert table.namespaces(7) == table.namespaces(8) == {}


def test_namespaces_of_a_tenant_are_told_by_name(table: AnyTable) -> None:
    put(table, here + b"a")
    put(table, here + b"b")
    put(table, there + b"a")
    found = table.namespaces(7)
    assert {name: counts.keys for name, counts in found.items()} == {b"here": 2, b"there": 1}


def test_a_wiped_slot_is_empty_in_every_respect(table: AnyTable) -> None:
    keys = same_slot(here, 5) + same_slot(there, 5)
    slot = slot_of(keys[0])
    for key in keys:
        put(table, key)
    put(table, here + b"elsewhere")
    table.wipe(slot)
    assert table.keys(slot) == []
    assert table.leaves(slot) == bytes(512)
    assert numbers(table.total)[0] == 1
    assert listed(table, here, Query()) == [b"elsewhere"]
    assert table.namespaces(7).keys() == {b"here"}


# Expiry.


def test_an_expired_value_keeps_its_version_and_gives_back_its_memory(table: AnyTable) -> None:
    key = here + b"key"
    slot = slot_of(key)
    put(table, key, made(value=bytes(1000), expires_at_ms=start_ms + 10))
    leaves = table.leaves(slot)
    assert table.trim_slice(start_ms + 9, whole)
    assert numbers(table.total) == (1, 0, 1003)
    assert listed(table, here, Query(), start_ms + 10) == []
    assert table.trim_slice(start_ms + 10, whole)
    assert numbers(table.total) == (0, 1, 0)
    assert table.get(slot, key) == made(value=b"", expires_at_ms=start_ms + 10)
    assert table.leaves(slot) == leaves
    assert table.rebuild_digest(slot) == []


def test_an_empty_value_with_an_expiry_is_counted_until_it_expires(table: AnyTable) -> None:
    put(table, here + b"key", made(value=b"", expires_at_ms=start_ms + 10))
    table.trim_slice(start_ms, whole)
    assert numbers(table.total) == (1, 0, 3)
    table.trim_slice(start_ms + 10, whole)
    assert numbers(table.total) == (0, 1, 0)
    put(table, here + b"key", made(value=b"", expires_at_ms=start_ms + 20))
    assert numbers(table.total) == (1, 0, 3)


def test_a_full_record_that_comes_back_is_trimmed_again(table: AnyTable) -> None:
    key = here + b"key"
    full = made(value=b"value", expires_at_ms=start_ms + 10)
    put(table, key, full)
    table.trim_slice(start_ms + 10, whole)
    chunk = b"".join(export_one(key, full))
    assert table.import_chunk(chunk) == 1
    assert numbers(table.total) == (0, 1, 0)
    table.trim_slice(start_ms + 11, whole)
    assert table.peek(slot_of(key), key) == made(value=b"", expires_at_ms=start_ms + 10)
    remove(table, key)
    assert numbers(table.total) == (0, 0, 0)


def test_a_clock_that_goes_back_does_not_bring_keys_back_into_the_counts(table: AnyTable) -> None:
    put(table, here + b"key", made(expires_at_ms=start_ms + 10))
    table.trim_slice(start_ms + 10, whole)
    table.trim_slice(start_ms - 10, whole)
    assert numbers(table.total) == (0, 1, 0)
    remove(table, here + b"key")
    assert numbers(table.total) == (0, 0, 0)


# Bulk.


def same_slot(prefix: bytes, wanted: int, slot: int = 77) -> list[bytes]:
    candidates = (prefix + b"%d" % number for number in count())
    found: list[bytes] = []
    while len(found) < wanted:
        key = next(candidates)
        if slot_of(key) == slot:
            found.append(key)
    return found


def export_one(key: bytes, record: bytes) -> list[bytes]:
    plain = PlainTable(secret)
    put(plain, key, record)
    return list(plain.export_slot(slot_of(key), whole))


@pytest.mark.parametrize("chunk_bytes", [1, 200, whole])
@pytest.mark.parametrize("leaves_follow", [False, True])
def test_a_slot_arrives_elsewhere_as_it_was(
    table: AnyTable, chunk_bytes: int, leaves_follow: bool
) -> None:
    keys = same_slot(here, 6) + same_slot(there, 6) + same_slot(other, 6)
    kinds = [made(), deleted(), made(value=b"", expires_at_ms=start_ms + 5)]
    for key, record in zip(keys, kinds * 6, strict=True):
        put(table, key, record)
    chunks, leaves = list(table.export_slot(77, chunk_bytes)), table.leaves(77)
    assert all(len(chunk) <= max(chunk_bytes, 100) for chunk in chunks)
    arrived = type(table)(secret)
    for chunk in chunks:
        arrived.import_chunk(chunk, leaves_follow=leaves_follow)
    if leaves_follow:
        arrived.load_leaves(77, leaves)
    assert arrived.keys(77) == keys
    assert arrived.leaves(77) == leaves
    assert arrived.rebuild_digest(77) == []
    assert numbers(arrived.total) == numbers(table.total)
    for prefix in (here, there, other):
        assert listed(arrived, prefix, Query()) == listed(table, prefix, Query())


def test_a_chunk_replaces_what_is_less_and_nothing_else(table: AnyTable) -> None:
    low, high = same_slot(here, 2)
    put(table, low, made(start_ms))
    put(table, high, made(start_ms + 5))
    source = PlainTable(secret)
    put(source, low, made(start_ms + 3))
    put(source, high, made(start_ms + 3))
    assert [table.import_chunk(chunk) for chunk in source.export_slot(77, whole)] == [1]
    assert table.peek(77, low) == made(start_ms + 3)
    assert table.peek(77, high) == made(start_ms + 5)
    assert table.rebuild_digest(77) == []


def test_an_export_is_of_the_moment_it_was_asked_for(table: AnyTable) -> None:
    keys = same_slot(here, 4)
    for key in keys[:3]:
        put(table, key)
    chunks = table.export_slot(77, 1)
    first = next(chunks)
    remove(table, keys[1])
    put(table, keys[3])
    arrived = PlainTable(secret)
    for chunk in (first, *chunks):
        arrived.import_chunk(chunk)
    assert arrived.keys(77) == keys[:3]


def test_a_chunk_with_any_damage_stores_nothing(table: AnyTable) -> None:
    source = PlainTable(secret)
    for key in same_slot(here, 3):
        put(source, key)
    (chunk,) = source.export_slot(77, whole)
    rng = random.Random(5)
    broken = [chunk[:end] for end in range(len(chunk))]
    broken += [chunk + b"\0", b"\xff\xff" + chunk[2:], b"\0\x4e" + chunk[2:]]
    broken += [chunk[:2] + b"\0\2" + chunk[4:], chunk[:2] + b"\0\4" + chunk[4:]]
    for body in broken:
        with pytest.raises(PeerError):
            table.import_chunk(body)
    for _ in range(2000):
        bent = bytearray(chunk)
        bent[rng.randrange(len(chunk))] ^= 1 << rng.randrange(8)
        target = type(table)(secret) if isinstance(table, PlainTable) else table
        try:
            target.import_chunk(bytes(bent))
        except PeerError:
            continue
        # A bit of a version or of a value: it cannot be told from a sound one, and is stored.
        assert all(slot_of(key) == 77 for key in target.keys(77))
        target.wipe(77)
    assert numbers(table.total) == (0, 0, 0)


# Digests.


def test_digests_depend_on_keys_and_versions_and_not_on_order(table: AnyTable) -> None:
    keys = same_slot(here, 10)
    twin = type(table)(secret)
    for key in keys:
        put(table, key, made(value=b"one"))
    for key in reversed(keys):
        put(twin, key, made(start_ms - 1))
        put(twin, key, made(value=b"two"))
    assert table.leaves(77) == twin.leaves(77) != bytes(512)
    put(twin, keys[3], made(start_ms + 1))
    assert table.leaves(77) != twin.leaves(77)


def test_the_versions_of_differing_leaves_hold_the_difference(table: AnyTable) -> None:
    keys = same_slot(here, 40)
    for key in keys:
        put(table, key)
    every = dict(versions(table, range(64)))
    assert every.keys() == set(keys)
    parts = [dict(versions(table, [leaf])) for leaf in range(64)]
    assert sum(map(len, parts)) == 40
    assert {key for part in parts for key in part} == set(keys)


def test_what_has_ended_is_counted_by_slot_until_it_is_removed_or_put_again(
    table: AnyTable,
) -> None:
    keys = same_slot(here, 5)
    for key in keys[:2]:
        put(table, key, deleted())
    put(table, keys[2], made(expires_at_ms=start_ms + 5))
    put(table, keys[3])
    assert (table.ended(77), table.ended(78)) == (2, 0)
    while not table.trim_slice(start_ms + 5, whole):
        pass
    assert table.ended(77) == 3
    put(table, keys[0], deleted(start_ms + 1))
    put(table, keys[3], deleted(start_ms + 1))
    put(table, keys[4], made(start_ms + 1, expires_at_ms=start_ms + 4))
    assert table.ended(77) == 5
    assert sorted(compared(table)) == sorted((key, table.peek(77, key)) for key in table.keys(77))
    put(table, keys[0], made(start_ms + 2))
    remove(table, keys[1])
    table.compact(77)
    assert table.ended(77) == 3
    assert table.rebuild_digest(77) == []
    assert (table.ended(77), len(compared(table))) == (3, 4)
    table.wipe(77)
    assert (table.ended(77), compared(table)) == (0, [])


def test_what_has_ended_in_a_cache_is_not_there_to_be_compared_or_collected(
    table: AnyTable,
) -> None:
    old, new = same_slot(here, 2)
    stored = same_slot(there, 1)[0]
    put(table, old, deleted())
    put(table, stored, deleted())
    assert table.ended(77) == 2
    table.declare_cache(here, 5)
    settle(table)
    put(table, new, deleted())
    assert (table.ended(77), compared(table)) == (1, [(stored, deleted())])
    table.forget_cache(here)
    settle(table)
    assert (table.ended(77), compared(table)) == (1, [(stored, deleted())])
    put(table, new, deleted())
    assert table.ended(77) == 2


def test_drift_is_found_and_mended(table: AnyTable) -> None:
    key = same_slot(here, 1)[0]
    put(table, key)
    right = table.leaves(77)
    wrong = bytearray(right)
    wrong[8 * 5] ^= 1
    wrong[8 * 63 + 7] ^= 128
    table.load_leaves(77, bytes(wrong))
    assert table.leaves(77) == wrong
    assert table.rebuild_digest(77) == [5, 63]
    assert table.leaves(77) == right
    for size in (0, 511, 513):
        with pytest.raises(PeerError):
            table.load_leaves(77, bytes(size))


# Caches.


def test_a_cache_keeps_what_was_used_last(table: AnyTable) -> None:
    table.declare_cache(here, 3)
    keys = [here + b"%d" % number for number in range(5)]
    for key in keys[:3]:
        put(table, key)
    table.get(slot_of(keys[0]), keys[0])
    table.peek(slot_of(keys[1]), keys[1])
    put(table, keys[3])
    assert listed(table, here, Query()) == [b"0", b"2", b"3"]
    put(table, keys[2])
    put(table, keys[4])
    assert listed(table, here, Query()) == [b"2", b"3", b"4"]
    assert numbers(table.namespace(here)) == (3, 0, 18)
    put(table, there + b"x")
    assert numbers(table.total)[0] == 4


def test_keys_of_a_cache_are_not_in_the_digests(table: AnyTable) -> None:
    key, stored = same_slot(here, 1)[0], same_slot(there, 1)[0]
    put(table, stored)
    without = table.leaves(77)
    put(table, key)
    table.declare_cache(here, 5)
    assert table.leaves(77) == without
    settle(table)
    assert table.leaves(77) == without
    put(table, key, made(start_ms + 1))
    assert table.leaves(77) == without
    assert dict(versions(table, range(64))).keys() == {stored}
    assert table.rebuild_digest(77) == []
    table.forget_cache(here)
    assert table.leaves(77) == without
    settle(table)
    assert table.leaves(77) == without
    assert table.keys(77) == [stored]
    assert table.rebuild_digest(77) == []
    put(table, key)
    joined = table.leaves(77)
    assert joined != without
    assert table.rebuild_digest(77) == []
    remove(table, key)
    assert table.leaves(77) == without


def test_what_is_put_after_a_cache_was_forgotten_stays_and_nothing_else(table: AnyTable) -> None:
    old, again, new = same_slot(here, 3)
    table.declare_cache(here, 5)
    put(table, old)
    put(table, again)
    table.forget_cache(here)
    put(table, again, made(start_ms + 1))
    put(table, new)
    # What is about to go is not told to anybody, nor kept for a restart.
    told = [key for chunk in table.export_slot(77, whole) for key in decode_chunk(chunk)[1]]
    assert sorted(told) == sorted([again, new])
    assert dict(versions(table, range(64))).keys() == {again, new}
    settle(table)
    assert sorted(table.keys(77)) == sorted([again, new])
    assert table.namespace(here).keys == 2
    assert table.rebuild_digest(77) == []


def test_a_declared_cache_shrinks_to_its_limit_and_may_grow_again(table: AnyTable) -> None:
    for number in range(50):
        put(table, here + b"%d" % number)
    table.declare_cache(here, 20)
    settle(table)
    assert table.namespace(here).keys == 20
    table.declare_cache(here, 5)
    settle(table)
    assert table.namespace(here).keys == 5
    table.declare_cache(here, 10)
    for number in range(50):
        put(table, here + b"new%d" % number)
    assert table.namespace(here).keys == 10
    table.forget_cache(here)
    for number in range(50):
        put(table, here + b"%d" % number)
    settle(table)
    assert table.namespace(here).keys == 50
    assert all_drift(table) == []
    with pytest.raises(ValueError, match="1 item"):
        table.declare_cache(here, 0)


def test_an_expired_key_leaves_its_cache(table: AnyTable) -> None:
    table.declare_cache(here, 5)
    put(table, here + b"key", made(expires_at_ms=start_ms + 1))
    put(table, here + b"stays", made(expires_at_ms=start_ms + 9))
    table.trim_slice(start_ms + 1, whole)
    assert numbers(table.namespace(here)) == (1, 0, 10)
    assert table.namespaces(7).keys() == {b"here"}
    table.forget_cache(here)
    settle(table)
    remove(table, here + b"stays")
    assert table.namespaces(7) == {}


# Both in step, through whatever may happen.

delimiters = (b"", b"/", b"::", b"/b", b"\xff")
fragments = (b"a", b"b", b"/", b"::", b"\xff", b"\0", b"a/b", b"zz", b"\xff\xff", "é".encode())


class Steps:
    """The same random steps on the real table and on the plain one."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.real = Table(secret)
        self.plain = PlainTable(secret)
        self.now_ms = start_ms
        self.prefixes = (here, there, other)
        keys = {self.key() for _ in range(60)}
        for prefix in self.prefixes:
            keys.update(same_slot(prefix + self.rng.choice(fragments), 4))
        self.keys = sorted(keys)

    def key(self) -> bytes:
        rng = self.rng
        text = b"".join(rng.choices(fragments, k=rng.randrange(1, 6)))
        return storage_key(*rng.choice([(7, b"here"), (7, b"there"), (8, b"here")]), text)

    def record(self) -> bytes:
        rng = self.rng
        version = pack_version(self.now_ms + rng.randrange(-50, 50) << 16, rng.randrange(3))
        if rng.random() < 0.2:
            return version + tombstone_body
        expires = rng.choice([0, 0, self.now_ms + rng.randrange(-20, 60)])
        metadata = rng.choice([Metadata(), Metadata(created_at_ms=5), Metadata(content_type=b"a")])
        return Record(version, rng.randbytes(rng.choice([0, 3, 90])), expires, metadata).encode()

    def step(self) -> None:
        """Something that owners of tables do, most often what they do most often."""
        self.now_ms += self.rng.randrange(5)
        key = self.rng.choice(self.keys)
        steps = {
            self.put: 50,
            self.get: 15,
            self.remove: 12,
            self.declare: 1,
            self.forget: 1,
            self.trim: 1,
            self.wipe: 1,
            self.bring: 2,
            self.compare: 2,
        }
        (step,) = self.rng.choices(list(steps), list(steps.values()))
        step(key)

    def put(self, key: bytes) -> None:
        record = self.record()
        put(self.real, key, record)
        put(self.plain, key, record)

    def get(self, key: bytes) -> None:
        assert self.real.get(slot_of(key), key) == self.plain.get(slot_of(key), key)

    def remove(self, key: bytes) -> None:
        remove(self.real, key)
        remove(self.plain, key)

    def wipe(self, key: bytes) -> None:
        self.real.wipe(slot_of(key))
        self.plain.wipe(slot_of(key))

    def trim(self, key: bytes) -> None:
        while not self.real.trim_slice(self.now_ms, self.rng.choice([2000, whole])):
            pass
        assert self.plain.trim_slice(self.now_ms, whole)

    def declare(self, key: bytes) -> None:
        limit = self.rng.randrange(1, 20)
        self.real.declare_cache(key[: 9 + key[8]], limit)
        settle(self.real)
        self.plain.declare_cache(key[: 9 + key[8]], limit)

    def forget(self, key: bytes) -> None:
        # What the cache had goes by and by, and is seen no more from now on.
        self.real.forget_cache(key[: 9 + key[8]])
        self.plain.forget_cache(key[: 9 + key[8]])
        self.compare(key)

    def bring(self, near: bytes) -> None:
        """Records of another replica arrive."""
        slot = slot_of(near)
        source = PlainTable(secret)
        for key in self.keys:
            if slot_of(key) == slot and self.rng.random() < 0.7:
                source.put(slot, key, self.record())
        for chunk in source.export_slot(slot, self.rng.choice([1, 300, whole])):
            assert self.real.import_chunk(chunk) == self.plain.import_chunk(chunk)

    def query(self) -> Query:
        rng = self.rng
        bitmap = rng.randbytes(slot_count // 8) if rng.random() < 0.3 else None
        text = [b"".join(rng.choices(fragments, k=rng.randrange(3))) for _ in range(2)]
        return Query(text[0], text[1], rng.randrange(1, 12), rng.choice(delimiters), bitmap)

    def compare(self, near: bytes) -> None:
        real, plain, rng = self.real, self.plain, self.rng
        for prefix in self.prefixes:
            bring_up_to_date(real, prefix, rng.choice([1, whole]))
            query = self.query()
            assert real.page(prefix, query, self.now_ms) == plain.page(prefix, query, self.now_ms)
            narrow = query._replace(examined_max=rng.randrange(1, 9))
            assert listed(real, prefix, narrow, self.now_ms) == listed(
                plain, prefix, query, self.now_ms
            )
            dead = rng.random() < 0.5
            assert real.scan(prefix, query, self.now_ms, tombstones=dead) == plain.scan(
                prefix, query, self.now_ms, tombstones=dead
            )
            assert numbers(real.namespace(prefix)) == numbers(plain.namespace(prefix))
        assert numbers(real.total) == numbers(plain.total)
        for tenant in (7, 8):
            assert numbers(real.tenant(tenant)) == numbers(plain.tenant(tenant))
        for slot in {slot_of(key) for key in rng.sample(self.keys, 5)} | {77, slot_of(near)}:
            assert real.leaves(slot) == plain.leaves(slot)
            assert real.keys(slot) == plain.keys(slot)
            assert list(real.export_slot(slot, 200)) == list(plain.export_slot(slot, 200))
            assert real.rebuild_digest(slot) == []
            leaves = rng.sample(range(64), 30)
            few = rng.sample(self.keys, 10)
            for keys in (real.raw_keys(slot), few):
                assert real.lasting(slot, keys) == plain.lasting(slot, keys)
                assert real.compared(slot, keys) == plain.compared(slot, keys)
                assert real.versions(slot, leaves, keys) == plain.versions(slot, leaves, keys)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_the_table_answers_as_the_plain_one(seed: int) -> None:
    steps = Steps(seed)
    for _ in range(400):
        steps.step()
    settle(steps.real)
    steps.compare(steps.keys[0])
    assert {key: steps.real.peek(slot_of(key), key) for key in steps.keys} == {
        key: steps.plain.peek(slot_of(key), key) for key in steps.keys
    }
    for name in (7, 8):
        assert steps.real.namespaces(name).keys() == steps.plain.namespaces(name).keys()


# Listings, beyond what the steps compare.


def test_an_entry_tells_what_a_client_wants_to_know(table: AnyTable) -> None:
    put(table, here + b"a", made(value=b"12345"))
    meta = Metadata(created_at_ms=start_ms - 5, content_type=b"text/plain").encode()
    put(table, here + b"b", made(start_ms + 1, b"", start_ms + 9, meta))
    put(table, here + b"c", made(meta=Metadata(content_type=b"text/plain").encode()))
    bring_up_to_date(table, here)
    page = table.page(here, Query(), start_ms)
    assert page.next is None
    assert page.entries == [
        (b"a", 5, made()[:12], 0, start_ms),
        (b"b", 0, made(start_ms + 1)[:12], start_ms + 9, start_ms - 5),
        (b"c", 5, made()[:12], 0, start_ms),
    ]


def test_groups_stand_for_the_keys_behind_a_delimiter(table: AnyTable) -> None:
    for text in (b"a", b"a/", b"a/1", b"a/2/3", b"a0", b"b//c", b"/x", b"b"):
        put(table, here + text)
    bring_up_to_date(table, here)

    def shown(prefix: bytes, delimiter: bytes) -> tuple[list[bytes], list[bytes]]:
        page = table.page(here, Query(prefix=prefix, delimiter=delimiter), start_ms)
        return [entry.key for entry in page.entries], page.groups

    assert shown(b"", b"/") == ([b"a", b"a0", b"b"], [b"/", b"a/", b"b/"])
    assert shown(b"a", b"/") == ([b"a", b"a0"], [b"a/"])
    assert shown(b"a/", b"/") == ([b"a/", b"a/1"], [b"a/2/"])
    assert shown(b"b", b"//") == ([b"b"], [b"b//"])
    assert shown(b"c", b"/") == ([], [])


def test_a_group_of_dead_keys_is_not_shown(table: AnyTable) -> None:
    put(table, here + b"a/1", deleted())
    put(table, here + b"a/2", made(expires_at_ms=start_ms))
    put(table, here + b"b/1")
    page_keys = listed(table, here, Query(delimiter=b"/"))
    assert page_keys == [b"b/"]


def test_a_group_of_the_greatest_bytes_ends_the_listing(table: AnyTable) -> None:
    for text in (b"\xff\xff1", b"\xff\xff2", b"\xfe"):
        put(table, here + text)
    put(table, there + b"\xff")
    assert listed(table, here, Query(delimiter=b"\xff\xff")) == [b"\xfe", b"\xff\xff"]


def test_only_slots_that_are_asked_for_are_listed(table: AnyTable) -> None:
    inside, outside = same_slot(here, 3, 77), same_slot(here, 3, 78)
    for key in inside + outside:
        put(table, key)
    bitmap = bytearray(slot_count // 8)
    assert listed(table, here, Query(slots=bytes(bitmap))) == []
    bitmap[77 // 8] |= 1 << 77 % 8
    found = listed(table, here, Query(slots=bytes(bitmap)))
    assert found == sorted(key[len(here) :] for key in inside)


def test_an_unknown_namespace_lists_nothing(table: AnyTable) -> None:
    assert listed(table, here, Query()) == []
    assert table.scan(here, Query(), start_ms, tombstones=True) == ([], None)
    assert numbers(table.namespace(here)) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_keys_that_stay_are_paged_exactly_once_while_others_come_and_go(
    table: AnyTable, seed: int
) -> None:
    rng = random.Random(seed)
    texts = [b"%03d" % number for number in rng.sample(range(1000), 300)]
    stay, others = set(texts[:150]), texts[150:]
    for text in texts[:220]:
        put(table, here + text)
    query = Query(limit=rng.randrange(1, 30), examined_max=rng.randrange(1, 40))
    seen: list[bytes] = []
    start: bytes | None = b""
    while start is not None:
        bring_up_to_date(table, here, rng.choice([1, whole]))
        page = table.page(here, query._replace(start=start), start_ms)
        seen += [entry.key for entry in page.entries]
        start = page.next
        for text in rng.sample(others, 10):
            rng.choice([put, remove, put_deleted])(table, here + text)
    assert seen == sorted(set(seen))
    assert stay <= set(seen)


def put_deleted(table: AnyTable, key: bytes) -> None:
    put(table, key, deleted())
