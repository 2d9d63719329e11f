"""The parts that listings and caches are made of, at sizes and in orders that may break them."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from itertools import islice
from sys import getsizeof

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.digest import digest_key
from services.core.hlc import pack_version
from services.core.key import namespace_prefix
from services.core.record import tombstone_body, value_body
from services.core.ring import leaf_bits, slot_count, slot_of
from services.dhtnode.cells import loose_bytes, loose_key_bytes
from services.dhtnode.chunk import decode_chunk
from services.dhtnode.index import Index
from services.dhtnode.listing import Query
from services.dhtnode.recency import Recency, lone_part_keys_max
from services.dhtnode.runs import run_keys
from services.dhtnode.table import Table
from tests.contract.plain_table import PlainTable

prefix = namespace_prefix(7, b"here")
now_ms = 1_800_000_000_000


def record(later: int = 0) -> bytes:
    return pack_version(now_ms + later << 16, 1) + value_body(b"value")


# The index.


class Held:
    """An index and the keys that are there."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.index = Index(self.keys.__contains__)

    def add(self, key: bytes) -> None:
        if key not in self.keys:
            self.keys.add(key)
            self.index.touch(key)

    def remove(self, key: bytes) -> None:
        if key in self.keys:
            self.keys.remove(key)
            self.index.touch_removed(key)

    def merge(self, budget: int = 1 << 40) -> int:
        slices, mark = 1, self.index.mark
        while not self.index.merge_slice(mark, budget):
            slices += 1
        return slices

    def indexed(self, start: bytes = b"") -> list[bytes]:
        return list(self.index.keys_from(self.index.find(start)))


orders: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "random": lambda keys: random.Random(1).sample(keys, len(keys)),
    "ascending": lambda keys: keys,
    "descending": lambda keys: keys[::-1],
    "interleaved": lambda keys: [key for lane in range(7) for key in keys[lane::7]],
    "saw": lambda keys: [key for low in range(0, len(keys), 999) for key in keys[low:][998::-1]],
    "ends first": lambda keys: [key for pair in zip(keys, keys[::-1], strict=True) for key in pair],
}


@pytest.mark.parametrize("order", orders)
@pytest.mark.parametrize("size", [0, 1, 130, run_keys, 12 * run_keys + 7])
def test_keys_are_in_order_however_they_came(order: str, size: int) -> None:
    keys = [b"%08d" % number for number in range(size)]
    held = Held()
    for key in orders[order](keys):
        held.add(key)
    held.merge()
    assert held.indexed() == keys
    assert held.index.behind == 0


@pytest.mark.parametrize("order", orders)
def test_a_merge_goes_in_many_steps_and_reading_may_come_between(order: str) -> None:
    keys = orders[order]([b"%08d" % number for number in range(20 * run_keys)])
    held = Held()
    early = keys[: run_keys // 2]
    for key in early:
        held.add(key)
    held.merge()
    for key in keys:
        held.add(key)
    mark = held.index.mark
    slices = 1
    while not held.index.merge_slice(mark, 1):
        slices += 1
        if slices % 50 == 0:
            found = held.indexed()
            assert found == sorted(set(found))
            assert set(early) <= set(found)
    # To sort a run is a step of its own, to find a piece another, and more to merge it.
    assert slices > 3 * len(held.keys) // run_keys
    assert held.indexed() == sorted(held.keys)


def test_keys_that_come_while_a_listing_waits_do_not_keep_it_waiting() -> None:
    held = Held()
    rng = random.Random(3)
    for _ in range(3 * run_keys):
        held.add(rng.randbytes(8))
    mark, waiting = held.index.mark, set(held.keys)
    slices = 1
    while not held.index.merge_slice(mark, 1):
        slices += 1
        for _ in range(run_keys):
            held.add(rng.randbytes(8))
        assert slices < 500
    assert waiting <= set(held.indexed())
    held.merge()
    assert held.indexed() == sorted(held.keys)


@given(st.data())
def test_removals_between_and_within_merges_are_followed(data: st.DataObject) -> None:
    held = Held()
    keys = st.binary(max_size=2)
    for _ in range(data.draw(st.integers(1, 6))):
        for key, adds in data.draw(st.lists(st.tuples(keys, st.booleans()), max_size=40)):
            (held.add if adds else held.remove)(key)
        for _ in range(data.draw(st.integers(0, 4))):
            held.index.merge_slice(held.index.mark, 1)
        found = [key for key in held.indexed() if key in held.keys]
        assert found == sorted(set(found))
    held.merge()
    assert held.indexed() == sorted(held.keys)


@pytest.mark.parametrize("seed", range(6))
def test_large_changes_in_the_middle_of_a_merge_are_followed(seed: int) -> None:
    rng = random.Random(seed)
    held = Held()
    for _ in range(30):
        low = rng.randrange(20_000)
        for number in range(low, low + rng.randrange(6_000)):
            (held.add if rng.random() < 0.6 else held.remove)(b"%06d" % number)
        for _ in range(rng.randrange(30)):
            held.index.merge_slice(held.index.mark, 1)
        found = [key for key in held.indexed() if key in held.keys]
        assert found == sorted(set(found))
    held.merge()
    assert held.indexed() == sorted(held.keys)


def test_one_key_that_comes_and_goes_forever_is_in_the_index_once() -> None:
    held = Held()
    for _ in range(3 * run_keys):
        held.add(b"key")
        held.remove(b"key")
    held.add(b"key")
    held.merge()
    assert held.indexed() == [b"key"]
    held.remove(b"key")
    held.merge()
    assert held.indexed() == []


@given(st.sets(st.binary(max_size=3), max_size=600), st.binary(max_size=3))
def test_reading_starts_at_the_first_key_that_is_not_less(keys: set[bytes], start: bytes) -> None:
    held = Held()
    for key in keys:
        held.add(key)
    held.merge()
    assert held.indexed(start) == sorted(key for key in keys if key >= start)


# Listings that must not take long.


def filled(texts: list[bytes]) -> Table:
    table = Table(digest_key(""))
    for text in texts:
        table.put(slot_of(prefix + text), prefix + text, record())
    while not table.index_slice(prefix, table.index_mark(prefix), 10_000):
        pass
    return table


def test_a_page_that_finds_nothing_says_where_to_go_on() -> None:
    table = filled([b"%04d" % number for number in range(1000)])
    nobody = bytes(slot_count // 8)
    pages, start = 0, b""
    while True:
        page = table.page(prefix, Query(start=start, slots=nobody, examined_max=64), now_ms)
        assert (page.entries, page.groups) == ([], [])
        pages += 1
        if page.next is None:
            break
        start = page.next
    assert pages == -(-1000 // 64)


def test_a_group_is_skipped_without_walking_its_keys() -> None:
    texts = [b"%d/%05d" % (group, number) for group in range(5) for number in range(4000)]
    table = filled([*texts, b"9"])
    page = table.page(prefix, Query(delimiter=b"/", examined_max=6), now_ms)
    assert page.groups == [b"0/", b"1/", b"2/", b"3/", b"4/"]
    assert [entry.key for entry in page.entries] == [b"9"]
    assert page.next is None


def test_a_page_may_end_inside_of_a_group_that_it_has_not_shown() -> None:
    table = filled([b"a/%02d" % number for number in range(50)])
    for number in range(49):
        key = prefix + b"a/%02d" % number
        table.put(slot_of(key), key, record(1)[:12] + value_body(b"", now_ms - 1))
    first = table.page(prefix, Query(delimiter=b"/", examined_max=10), now_ms)
    assert first == ([], [], b"a/10")
    rest = table.page(prefix, Query(delimiter=b"/", start=b"a/10"), now_ms)
    assert rest == ([], [b"a/"], None)


def test_a_namespace_whose_keys_come_and_go_does_not_grow() -> None:
    table = Table(digest_key(""))
    index_bound = 12 * run_keys
    for number in range(15 * run_keys):
        key = prefix + b"%d" % number
        table.put(slot_of(key), key, record())
        table.remove(slot_of(key), key)
        if number % 100 == 0:
            table.tend_slice(1000)
        namespace = table._by_prefix.get(prefix)
        if namespace is not None:
            assert namespace.index.behind < index_bound
    table.tend_slice(1 << 40)
    assert table.namespaces(7) == {}


# The order of use.


def test_an_empty_order_of_use_takes_little() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        many = [Recency() for _ in range(1_000)]
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(many[0]) == 0
    assert taken < 600 * 1_000


@pytest.mark.parametrize("around", [lone_part_keys_max - 1, lone_part_keys_max + 1])
def test_the_order_of_use_survives_its_own_growth(around: int) -> None:
    recency = Recency()
    keys = [b"%d" % number for number in range(around)]
    for key in keys:
        recency.touch(key)
    # Queued as the oldest, and not the oldest any more when the part is divided.
    recency.touch(keys[0])
    recency.discard(keys[1])
    late = [b"late-%d" % number for number in range(5)]
    for key in late:
        recency.touch(key)
    expected = [*keys[2:], keys[0], *late]
    assert len(recency) == len(expected)
    assert [recency.pop_oldest() for _ in expected] == expected
    assert len(recency) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_oldest_key_is_the_one_that_a_list_would_name(seed: int) -> None:
    rng = random.Random(seed)
    recency, plain = Recency(), dict[bytes, None]()
    for _ in range(20_000):
        key = b"%d" % int(rng.expovariate(0.01))
        match rng.choices(range(3), (10, 3, 4 + seed))[0]:
            case 0:
                recency.touch(key)
                plain.pop(key, None)
                plain[key] = None
            case 1:
                recency.discard(key)
                plain.pop(key, None)
            case _ if plain:
                oldest = next(iter(plain))
                assert recency.pop_oldest() == oldest
                del plain[oldest]
        assert len(recency) == len(plain)
        assert (key in recency) == (key in plain)
    assert [recency.pop_oldest() for _ in range(len(recency))] == list(plain)


# Caches while their keys change sides.


@pytest.mark.parametrize("seed", range(10))
def test_digests_hold_while_a_namespace_changes_its_kind_under_load(seed: int) -> None:
    rng = random.Random(seed)
    table = Table(digest_key(""))
    store = namespace_prefix(8, b"store")
    keys = [name + b"%d" % number for name in (prefix, store) for number in range(120)]
    declared = limit = 0
    since: set[bytes] = set()
    for step in range(2000):
        key = rng.choice(keys)
        slot = slot_of(key)
        match rng.choices(range(6), (40, 10, 10, 20, 1, 1))[0]:
            case 0:
                kind = rng.randrange(4)
                made = record(step)
                if kind == 0:
                    made = made[:12] + tombstone_body
                elif kind == 1:
                    made = made[:12] + value_body(b"value", now_ms + rng.randrange(4_000))
                table.put(slot, key, made)
                since.add(key)
            case 1:
                table.remove(slot, key)
                since.discard(key)
            case 2:
                table.get(slot, key)
            case 3:
                # So little that a change of sides goes on through many steps.
                table.tend_slice(rng.choice([1, 50, 5000]))
                table.trim_next = slot
                table.trim_slice(now_ms + step, 1)
            case 4:
                declared, limit = step, rng.randrange(20, 150)
                table.declare_cache(prefix, limit)
            case _:
                # What was put into the cache goes, and what is put from now on stays.
                since = {held for held in since if held.startswith(store)}
                declared = 0
                table.forget_cache(prefix)
        ended = table.ended(slot)
        assert table.rebuild_digest(slot) == []
        assert table.ended(slot) == ended
        chunks = table.export_slot(slot, 1 << 20)
        lasting = {held for chunk in chunks for held in decode_chunk(chunk)[1]}
        assert all(
            held in lasting
            for held in since
            if slot_of(held) == slot and (held.startswith(store) or not declared)
        )
        expected = PlainTable(digest_key(""))
        expected.records = {
            held: found
            for held in table.keys(slot)
            if not (declared and held.startswith(prefix))
            and held in lasting
            and (found := table.peek(slot, held))
        }
        assert table.leaves(slot) == expected.leaves(slot)
    while not table.tend_slice(5000):
        pass
    if declared:
        assert table.namespace(prefix).records <= limit
    assert all(table.rebuild_digest(slot) == [] for slot in {slot_of(key) for key in keys})


def test_a_lowered_limit_is_reached_by_puts_alone() -> None:
    table = Table(digest_key(""))
    table.declare_cache(prefix, 100)
    numbers = iter(range(10_000))
    for number in islice(numbers, 100):
        key = prefix + b"%d" % number
        table.put(slot_of(key), key, record())
    table.declare_cache(prefix, 10)
    for number in islice(numbers, 90):
        key = prefix + b"%d" % number
        table.put(slot_of(key), key, record())
    assert table.namespace(prefix).records == 10
    assert table.evicted == 180


def test_memory_is_estimated_from_what_is_there() -> None:
    table = Table(digest_key(""))
    empty = table.memory_bytes
    keys = [prefix + b"%d" % number for number in range(100)]
    for key in keys:
        table.put(slot_of(key), key, record() + bytes(1000))
    grown = table.memory_bytes
    assert 100 * 1000 < grown - empty < 100 * 1400
    for key in keys:
        table.put(slot_of(key), key, record(1))
    assert table.memory_bytes == grown - 100 * 1000
    table.declare_cache(prefix, 50)
    while not table.tend_slice(5000):
        pass
    for key in keys:
        table.remove(slot_of(key), key)
    held = table.memory_bytes - empty
    assert held >= sum(map(len, keys)), "the index still holds what was evicted and removed"
    assert table.index_slice(prefix, table.index_mark(prefix), 1 << 40)
    assert table.memory_bytes == empty


def test_an_estimate_of_memory_counts_what_the_indexes_of_churning_namespaces_hold() -> None:
    table = Table(digest_key(""))
    spaces = [namespace_prefix(tenant, b"here") for tenant in range(1, 30)]
    keys = (space + b"%0500d" % number for number in range(400) for space in spaces)
    before = 0
    tracemalloc.start()
    try:
        for space in spaces:
            table.declare_cache(space, 10)
        empty = table.memory_bytes
        before = tracemalloc.get_traced_memory()[0]
        for key in keys:
            table.put(slot_of(key), key, record())
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown > 29 * 390 * 500, "evicted keys are still held"
    assert 0.8 * grown < table.memory_bytes - empty < 1.25 * grown
    for space in spaces:
        table.index_slice(space, table.index_mark(space), 1 << 40)
        table.forget_cache(space)
    while not table.tend_slice(1 << 40):
        pass
    for space in spaces:
        for slot, key in [
            (slot_of(space + b"%0500d" % n), space + b"%0500d" % n) for n in range(400)
        ]:
            table.remove(slot, key)
    assert table.namespaces(7) == {}
    assert table.memory_bytes == empty, "a namespace that vanishes takes its lag with it"


# The namespaces of a tenant.


@pytest.mark.parametrize("size", [0, 1, 999, 1_000, 1_001, 2_500])
def test_namespaces_come_in_order_however_many_there_are_and_whatever_came_and_went(
    size: int,
) -> None:
    table, draw = Table(digest_key("x" * 32)), random.Random(size)

    def store(key: bytes) -> None:
        table.put(slot_of(key), key, record())

    def remove(key: bytes) -> None:
        table.remove(slot_of(key), key)

    names = [b"%04d" % number for number in range(size)]
    for name in draw.sample(names, size):
        store(namespace_prefix(7, name) + b"key")
    store(namespace_prefix(8, b"of another") + b"key")
    for name in names[::3]:
        remove(namespace_prefix(7, name) + b"key")
    left = [name for name in names if name not in set(names[::3])]
    for start in (b"", b"0", b"0500", b"05005", b"9"):
        found = [namespace.name for namespace in table.namespaces_from(7, start, 10)]
        assert found == [name for name in left if name >= start][:10]
    for name in left:
        remove(namespace_prefix(7, name) + b"key")
    assert table.namespaces_from(7, b"", 10) == []


# What a slot gives back.


def test_a_slot_that_is_emptied_bit_by_bit_gives_back_its_memory_and_is_copied_seldom() -> None:
    table = Table(digest_key(""))
    for number in range(20_000):
        table.replace(77 << leaf_bits, prefix + b"%05d" % number, None, record())
    here = table._slots
    full_bytes = getsizeof(here[77])
    copies = [here[77]]
    for number, (key, _) in enumerate(table.items(77)):
        table.give_up(77, key)
        if not number % 64:
            table.compact(77)
            assert getsizeof(here[77]) <= loose_bytes + len(here[77]) * loose_key_bytes
            if here[77] is not copies[-1]:
                copies.append(here[77])
    table.compact(77)
    assert getsizeof(here[77]) == getsizeof({}) < full_bytes / 1_000
    assert len(copies) < 20
