"""A scrub while everything changes: it never takes a change for rot, nor rot for a change."""

from __future__ import annotations

import asyncio
import random

import pytest

from services.core import messages as m
from services.core.record import expires_at_ms, tombstone_body, value_body
from services.core.ring import slot_of
from services.dhtnode.scrub import Scrub
from services.dhtnode.table import Table
from services.runtime.clock import FakeClock
from services.runtime.log.frame import Corrupt
from tests.unit.replica_world import (
    cached,
    declare,
    key_of,
    prefix,
    records_of,
    value,
    version,
    wrong_leaves,
)
from tests.unit.scrub_world import ScrubWorld, hour_ms, rot

keys = [key_of(number) for number in range(40)]
cache_keys = [key_of(number, cached) for number in range(40)]


class Load:
    """Everything that a replica does, at random, a little at each turn of the loop."""

    def __init__(self, world: ScrubWorld, seed: int) -> None:
        self.world = world
        self.draw = random.Random(seed)
        self.stamp = 0
        self.lists = 0
        self.snapshots = True
        # The greatest record that was written of each key of the store.
        self.written: dict[bytes, bytes] = {}
        self.accepted: dict[bytes, bytes] = {}

    def __call__(self) -> None:
        for _ in range(self.draw.choice((0, 0, 1, 2, 5))):
            step = self.draw.choices(
                (self.write, self.cache, self.accept, self.trim, self.declare, self.snapshot),
                (60, 20, 15, 1, 1, 0.3),
            )[0]
            step()

    def next(self) -> bytes:
        self.stamp += 1
        return version(self.stamp % 50_000, self.stamp // 50_000)

    def record(self) -> bytes:
        stamp = self.next()
        kind = self.draw.random()
        if kind < 0.2:
            return stamp + tombstone_body
        expires_ms = self.world.clock.wall_ms() + self.draw.randrange(3000) if kind < 0.4 else 0
        return stamp + value_body(b"x" * self.draw.choice((0, 10, 3_000)), expires_ms)

    def write(self) -> None:
        key, record = self.draw.choice(keys), self.record()
        self.world.ask("write", _write(key, record))
        self.written[key] = max(record, self.written.get(key, b""))

    def cache(self) -> None:
        self.world.ask("write", _write(self.draw.choice(cache_keys), self.record()))

    def accept(self) -> None:
        key = self.draw.choice(keys)
        record = self.record()
        self.world.accept(key, record[:12], record)
        if self.draw.random() < 0.6:
            self.world.learn(key, record[:12])
            self.written[key] = max(record, self.written.get(key, b""))

    def trim(self) -> None:
        self.world.replica.trim_slice(self.world.clock.wall_ms() - 500, 1 << 30)

    def declare(self) -> None:
        self.lists += 1
        limit = self.draw.choice((0, 3, 20))
        declare(self.world, self.lists, {cached: limit} if limit else {})
        self.world.table.tend_slice(self.draw.choice((0, 20, 100_000)))

    def snapshot(self) -> None:
        if self.snapshots:
            self.world.upkeep.want_snapshot()


def _write(key: bytes, record: bytes) -> bytes:
    return m.encode_write(0, key, record)


def missing(load: Load) -> list[bytes]:
    """Keys that are not what was written, but for the values of what has expired."""
    wrong = []
    for key, record in load.written.items():
        found = load.world.table.peek(slot_of(key), key)
        if found != record and found != record[:21] + bytes(2):
            wrong.append(key)
    return wrong


def kept(table: Table) -> dict[bytes, bytes]:
    """What must be the same after a restart: all but values of what has expired, and caches."""
    return {
        key: record[:21] if expires_at_ms(record) else record
        for key, record in records_of(table, cached).items()
        if record is not None
    }


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("scrub", "scrub_reading"):
        monkeypatch.setattr(f"services.dhtnode.{module}.step_bytes", 2_000)
    monkeypatch.setattr("services.dhtnode.scrub.tail_bytes_max", 4_000)
    monkeypatch.setattr("services.dhtnode.upkeep.watch_s", 0.001)


class Ticking(FakeClock):
    """Time passes with every look at it, so that work done in slices has many of them."""

    looks = 0

    def monotonic_s(self) -> float:
        self.looks += 1
        return super().monotonic_s() + self.looks * 0.000_01


class LoadedWorld(ScrubWorld):
    def new_scrub(self, interval_ms: int = 24 * hour_ms, seed: int = 1) -> Scrub:
        self.clock = Ticking(self.timeline)
        return super().new_scrub(interval_ms, seed)


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_that_happens_is_taken_for_rot(seed: int) -> None:
    world = LoadedWorld(segment_bytes=256 << 10)
    load = Load(world, seed)
    for _ in range(300):
        load()
        world.settle(0.002)
    # One is written meanwhile, at least.
    load.snapshot()
    await world.scrub(load)
    assert world.found == (0, 0, 0)
    assert load.stamp > 500
    assert world.upkeep.snapshots
    world.settle()
    assert missing(load) == []
    assert wrong_leaves(world.table) == []


@pytest.mark.parametrize("seed", range(12))
async def test_rot_among_changes_is_mended_and_no_change_undone(seed: int) -> None:
    """Rot strikes records of the store, those of caches, promises and keys: some of what is rotten
    is replaced before anybody has seen it."""
    world = LoadedWorld(segment_bytes=256 << 10)
    load = Load(world, seed)
    for _ in range(200):
        load()
        world.settle(0.002)
    world.settle()
    draw = load.draw
    struck = draw.sample([key for key in keys if world.table.peek(slot_of(key), key)], 6)
    for key in struck:
        # Beside the version: whoever merges the greater record could else keep a rotten one.
        record = world.record(key)
        rot(record, draw.randrange(12, len(record)), draw.randrange(8))
    await world.scrub(load)
    world.settle()
    assert world.found[0] >= 1
    assert world.found[0] == world.found[2]
    await world.scrub()
    assert missing(load) == []
    assert wrong_leaves(world.table) == []
    before = world.found
    await world.scrub(load)
    assert world.found == before
    world.settle()
    assert kept(world.recovered().table) == kept(world.table)


@pytest.mark.parametrize("seed", range(6))
async def test_files_that_rot_under_load_are_replaced(seed: int) -> None:
    world = LoadedWorld(segment_bytes=256 << 10)
    load = Load(world, seed)
    for _ in range(200):
        load()
        world.settle(0.002)
    world.settle()
    if seed % 2:
        await world.snapshot()
    for _ in range(50):
        load.write()
    world.settle()
    paths = [segment.path for segment in world.log.segments]
    paths += [path for _, path in world.directory.snapshots()]
    path = load.draw.choice(paths)
    used = {segment.path: segment.used_bytes for segment in world.log.segments}
    with world.disk.open(path, "read") as file:
        size = used.get(path) or file.size()
    world.disk.flip_bit(path, load.draw.randrange(size), load.draw.randrange(8))
    # One could remove the file before it is read.
    load.snapshots = False
    told = await world.scrub(load)
    assert told["found_on_disk"] == told["mended"] == 1
    assert told["found_in_memory"] == 0
    world.settle()
    assert missing(load) == []
    assert kept(world.recovered().table) == kept(world.table)


async def test_a_scrub_that_is_cut_off_leaves_nothing_behind() -> None:
    for turns in (0, 1, 3, 10, 30):
        world = ScrubWorld()
        for number in range(50):
            world.write(key_of(number), value(number + 1))
        await world.snapshot()
        world.damage(world.log.segments[0].path, key_of(3))
        task = asyncio.create_task(world.scrubber.scrub())
        for _ in range(turns):
            world.settle(0.01)
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert world.scrubber.state == "idle"
        world.settle()
        try:
            recovered = world.recovered()
        except Corrupt:
            # The damage was there before, and the new snapshot was not yet.
            continue
        assert records_of(recovered.table) == records_of(world.table)


def test_the_keys_of_these_tests_are_of_one_store() -> None:
    assert all(key.startswith(prefix) for key in keys)
