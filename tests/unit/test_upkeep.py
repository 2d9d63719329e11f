"""What a node does besides answering: it keeps up with what comes in, and says when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from services.core.paxos import Promise
from services.core.record import head_bytes, value_body
from services.core.ring import slot_of
from services.core.wire import OK
from services.dhtnode.replica import Replica
from services.dhtnode.upkeep import Upkeep, tend_budget, trim_after_ms, turn_s
from services.runtime.clock import SystemClock
from services.runtime.loops import Loops
from tests.unit.replica_world import World, cached, key_of, value, version


def upkeep_of(world: World, replica: Replica | None = None) -> Upkeep:
    return Upkeep(
        replica or world.replica,
        world.log,
        world.directory,
        world.clock,
        memory_max_bytes=None,
        disk_reserve_bytes=0,
    )


async def test_a_full_cache_under_puts_lags_by_a_bound_that_memory_shows() -> None:
    world = World()
    table, upkeep = world.table, upkeep_of(world)
    table.declare_cache(cached, 10_000)
    most = 0
    for turn in range(60):
        for number in range(turn * 2_000, turn * 2_000 + 2_000):
            key = cached + b"%d" % (number * 7_919 % 1_000_003)
            table.put(slot_of(key), key, value(1))
        await upkeep.tidy()
        most = max(most, table.index_lag)
    # In 60 turns of 0.1 s there were 220,000 touches.
    assert most < 100_000
    puts = table.memory_bytes
    while not table.tend_slice(tend_budget):
        pass
    assert puts - table.memory_bytes < 10_000_000


async def test_an_expired_value_is_left_for_a_while_to_those_whose_clocks_are_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.dhtnode.upkeep.trim_pass_s", turn_s)
    world = World()
    table, upkeep, slot = world.table, upkeep_of(world), slot_of(key_of(1))
    record = version(1) + value_body(b"value", world.clock.wall_ms() + 1)
    table.put(slot, key_of(1), record)
    promises = world.replica.promises
    promises.put(slot, key_of(1), Promise(version(1), version(1), version(1), record))
    world.clock.skew_ms = trim_after_ms
    await upkeep.tidy()
    assert table.peek(slot, key_of(1)) == record
    assert promises.expired == 0
    world.clock.skew_ms += 1
    await upkeep.tidy()
    assert table.peek(slot, key_of(1)) == record[:head_bytes]
    assert promises.take_expired(2) == [key_of(1)]


class Faulty(Replica):
    """A replica with a bug: its frames break off, so many times."""

    faults = 2

    def frames(self) -> Iterator[tuple[int, bytes]]:
        whole = super().frames()
        yield next(whole)
        if self.faults:
            self.faults -= 1
            raise ZeroDivisionError("a bug in the frames")
        yield from whole


async def test_a_bug_in_the_frames_of_a_snapshot_surfaces_and_it_is_written_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    replica = Faulty(world.table, world.clock)
    replica.serve(world.log)
    world.replica = replica
    world.write(key_of(1), value(1))
    upkeep = upkeep_of(world, replica)
    failed: list[Exception] = []

    async with Loops(failed.append, SystemClock()) as loops:
        loops.start("snapshots", upkeep.keep_log_short)
        upkeep.want_snapshot()
        for _ in range(600):
            world.settle(0.01)
            await asyncio.sleep(0.005)
            if upkeep.snapshots:
                break
        assert loops.restarts == {"snapshots": 2}
        assert upkeep.snapshots == 1
        assert loops.running == 1
    assert failed == []
    names = world.disk.names(world.directory.path)
    assert sum(name.startswith("snapshot-") for name in names) == 1
    assert not [name for name in names if name.endswith(".tmp")]
    assert world.told("get", key_of(1)) == (OK, value(1))
