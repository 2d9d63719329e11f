"""The table in memory: what a key takes, and what each thing done with it takes.

Each measurement runs in a process of its own, so that its memory is its own. Memory is what the
process grew by from before the table was made, less the bytes of keys and values (28 and 100);
the listing index has been built. Times are processor time,
so that a busy machine does not show, and include the call; "longest" is the longest single slice
or call, which is what holds the event loop.

    python -m bench.table [--keys N]
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import random
import resource
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from bench.report import Row, show
from services.core.digest import digest_key
from services.core.key import namespace_prefix
from services.core.record import value_body
from services.core.ring import slot_count, slot_of
from services.dhtnode.index import slice_budget
from services.dhtnode.listing import Query
from services.dhtnode.table import Table

tenant = 7
prefix = namespace_prefix(tenant, b"default")
key_bytes, value_bytes = 28, 100
now_ms = 1_800_000_000_000
page_keys = 100
chunk_bytes = 64 << 10


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def storage_keys(count: int) -> Iterator[bytes]:
    """Different keys in no order, without a list of them that would count as memory."""
    # It shares no factor with the powers of ten, so that no two numbers give the same key.
    for number in range(count):
        yield prefix + b"%012d" % (number * 618_033_988_749 % 10**12)


def record(number: int, later: int = 0) -> bytes:
    version = (now_ms - 10**9 + number + later << 16).to_bytes(8, "big") + bytes(4)
    return version + value_body(random.Random(number).randbytes(value_bytes))


def each_us(count: int, work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return (time.thread_time() - started) / count * 1e6


def build_index(table: Table) -> tuple[float, float, int]:
    """Seconds in all, milliseconds of the longest slice, slices."""
    longest, slices = 0.0, 0
    mark = table.index_mark(prefix)
    started = before = time.thread_time()
    done = False
    while not done:
        done = table.index_slice(prefix, mark, slice_budget)
        after = time.thread_time()
        longest, before, slices = max(longest, after - before), after, slices + 1
    return before - started, longest * 1e3, slices


def fill(table: Table, count: int, batch: int = 10_000) -> float:
    """Put new keys; only the puts are timed, not the making of keys and records."""
    keys = storage_keys(count)
    seconds, number = 0.0, 0
    while number < count:
        size = min(batch, count - number)
        fresh = [(key, record(number + at)) for at, key in zip(range(size), keys, strict=False)]
        placed = [(slot_of(key), key, made) for key, made in fresh]
        put = table.put
        started = time.thread_time()
        for slot, key, made in placed:
            put(slot, key, made)
        seconds += time.thread_time() - started
        number += size
    return seconds / count * 1e6


def filled_rows(count: int) -> list[Row]:
    million = f"{count / 1e6:g} million keys"
    before = resident_bytes()
    table = Table(digest_key("a secret for the benchmark alone"))
    put_us = fill(table, count)
    index_s, longest_ms, slices = build_index(table)
    gc.collect()
    took = resident_bytes() - before
    overhead = took / count - key_bytes - value_bytes
    started = time.thread_time()
    gc.collect()
    collected_ms = (time.thread_time() - started) * 1e3
    # As a node does when it has recovered; else a page now and then pays for such a collection.
    gc.freeze()
    estimate = f"the table's own estimate is {table.memory_bytes / took:.2f} of what it took"
    rows = [
        Row(f"memory beyond key and value, {million}", overhead, "bytes per key", estimate),
        Row("put of a new key", put_us, "us"),
        Row("index of all keys built", index_s, "s", f"{slices} slices"),
        Row("index: longest slice", longest_ms, "ms"),
        Row("full cycle collection", collected_ms, "ms"),
    ]
    return rows + work_rows(table, count) + export_rows(table, count)


def work_rows(table: Table, count: int) -> list[Row]:
    rng = random.Random(2)
    keys = [key for slot in rng.sample(range(slot_count), 1000) for key in table.keys(slot)]
    rng.shuffle(keys)
    placed = [(slot_of(key), key) for key in keys]
    again = [(slot, key, record(at, 10**6)) for at, (slot, key) in enumerate(placed)]

    def gets() -> None:
        get = table.get
        for slot, key in placed:
            get(slot, key)

    def puts() -> None:
        put = table.put
        for slot, key, made in again:
            put(slot, key, made)

    starts = [key[len(prefix) :] for key in keys[:200]]

    def pages() -> None:
        for start in starts:
            table.page(prefix, Query(start=start, limit=page_keys), now_ms)

    def puts_and_pages() -> None:
        for number, start in enumerate(starts):
            key = prefix + start + b"+"
            table.put(slot_of(key), key, record(number))
            table.index_slice(prefix, table.index_mark(prefix), slice_budget)
            table.page(prefix, Query(start=start, limit=1), now_ms)

    slots = bytes(rng.getrandbits(8) for _ in range(slot_count // 8))
    started = longest = 0.0
    for start in starts:
        started = time.thread_time()
        table.page(prefix, Query(start=start, slots=slots), now_ms)
        longest = max(longest, time.thread_time() - started)
    return [
        Row("put over a key", each_us(len(again), puts), "us"),
        Row("get", each_us(len(placed), gets), "us"),
        Row(f"page of {page_keys} keys", each_us(len(starts), pages), "us"),
        Row("put of a new key and a page after it", each_us(len(starts), puts_and_pages), "us"),
        Row("page that looks at as many keys as it may: longest", longest * 1e3, "ms"),
        trim_row(table, count),
    ]


def trim_row(table: Table, count: int) -> Row:
    def whole_pass() -> None:
        while not table.trim_slice(now_ms, 8192):
            pass

    seconds = each_us(1, whole_pass) / 1e6
    return Row("pass over all records for expired ones", seconds, "s", f"{count:,} records")


def export_rows(table: Table, count: int) -> list[Row]:
    started = time.thread_time()
    chunks = [
        (slot, list(table.export_slot(slot, chunk_bytes)), table.leaves(slot))
        for slot in range(slot_count)
    ]
    exported_s = time.thread_time() - started
    rows = [Row("export of all slots", count / exported_s, "records/s")]
    for name, leaves_follow in (("leaves loaded", True), ("digests computed", False)):
        loaded = Table(digest_key("a secret for the benchmark alone"))
        started = time.thread_time()
        for slot, bodies, leaves in chunks:
            for body in bodies:
                loaded.import_chunk(body, leaves_follow=leaves_follow)
            if leaves_follow:
                loaded.load_leaves(slot, leaves)
        imported_s = time.thread_time() - started
        if loaded.total.keys != table.total.keys:
            raise RuntimeError(f"{loaded.total.keys} of {table.total.keys} keys were imported")
        rows.append(Row(f"import, {name}", count / imported_s, "records/s", f"{imported_s:.2f} s"))
    return rows


def cache_rows(max_items: int) -> list[Row]:
    before = resident_bytes()
    table = Table(digest_key("a secret for the benchmark alone"))
    table.declare_cache(prefix, max_items)
    longest, puts = 0.0, 3 * max_items // 2
    seconds = 0.0
    for number, key in enumerate(storage_keys(puts)):
        slot, made = slot_of(key), record(number)
        started = time.thread_time()
        table.put(slot, key, made)
        took = time.thread_time() - started
        seconds += took
        longest = max(longest, took)
        if number % 10_000 == 0:
            table.tend_slice(slice_budget)
    while not table.tend_slice(slice_budget):
        pass
    overhead = (resident_bytes() - before) / max_items - key_bytes - value_bytes
    name = f"cache of {max_items / 1e6:g} million"
    return [
        Row(f"{name}: put, evicting a third of the time", seconds / puts * 1e6, "us"),
        Row(f"{name}: longest put", longest * 1e3, "ms"),
        Row(f"{name}: beyond key and value", overhead, "bytes per key"),
    ]


def alone(measure: Callable[[int], list[Row]], count: int) -> list[Row]:
    """The rows of a measurement that has a process for itself."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(measure, count, theirs))
    process.start()
    theirs.close()
    found: list[Row] = ours.recv()
    process.join()
    return found


def answer(measure: Callable[[int], list[Row]], count: int, pipe: Pipe) -> None:
    pipe.send(measure(count))


def rows(keys: int = 1_000_000) -> list[Row]:
    return alone(filled_rows, keys) + alone(cache_rows, keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    show("table", rows(parser.parse_args().keys))


if __name__ == "__main__":
    main()
