"""Stamps: never twice, whatever happens to the process, its disk and its wall clock."""

from __future__ import annotations

import asyncio
import errno
import random
from contextlib import suppress
from pathlib import Path

import pytest

from services.core.errors import RetryLater
from services.core.hlc import (
    Version,
    ceiling_ahead_ms,
    counter_bits,
    lead_ms_max,
    pack_version,
    version_ms,
    version_stamper,
)
from services.replicator.directory import ReplicatorDirectory, stamper_name
from services.replicator.stamps import Stamps, upkeep_s
from services.runtime.clock import FakeClock, SystemClock, Timeline
from services.runtime.disk import SystemDisk
from services.runtime.fake_disk import FakeDisk, Operation

path = Path("/data/replicators/replicator-1")
file = path / stamper_name
# Longer than the slowest write of a ceiling on a fake disk that does nothing else.
written_s = 0.01


class World:
    """One replicator's machine: a disk that lies, a wall clock that jumps, and process after
    process on them. It remembers every stamp that was ever made."""

    def __init__(self, seed: int = 1, *, refuse_leads: bool = True) -> None:
        self.timeline = Timeline()
        self.disk = FakeDisk(random.Random(seed), FakeClock(self.timeline))
        self.refuse_leads = refuse_leads
        self.skew_ms = 0
        self.failures: list[OSError] = []
        self.stamps: list[Version] = []
        self.start()

    def start(self) -> None:
        self.clock = FakeClock(self.timeline, self.skew_ms)
        self.directory = ReplicatorDirectory.open(self.disk, path, "replicator-1")
        found = self.directory.found
        if self.stamps and found is not None:
            assert found.ceiling_ms > version_ms(self.stamps[-1]), "stamped above the ceiling"
        assert found is not None or not self.stamps, "the ceiling is lost"
        self.running = Stamps(
            self.directory, 7, self.clock, self.failures.append, refuse_leads=self.refuse_leads
        )
        self.running.start()

    def crash(self) -> None:
        """Cut the power, and start again."""
        self.clock.stop()
        self.disk.crash()
        self.start()

    def kill(self) -> None:
        self.clock.stop()
        self.disk.kill()
        self.start()

    def stop(self) -> None:
        """End in order, and start again."""
        self.running.seal()
        self.disk.close()
        self.directory.close()
        self.timeline.advance(0.0)
        self.clock.stop()
        self.disk.kill()
        self.start()

    def tick(self) -> Version:
        stamp = self.running.tick()
        if self.stamps:
            assert stamp > self.stamps[-1], "time went back"
        assert version_stamper(stamp) == 7
        self.stamps.append(stamp)
        return stamp

    def wait(self, seconds: float = written_s) -> None:
        self.timeline.advance(seconds)

    def wall_ms(self) -> int:
        return self.clock.wall_ms()


def refusal(world: World) -> RetryLater:
    made = len(world.stamps)
    with pytest.raises(RetryLater) as refused:
        world.tick()
    assert len(world.stamps) == made
    return refused.value


def version_at(time_ms: int) -> Version:
    return pack_version(time_ms << counter_bits, 9)


def test_nothing_is_stamped_before_the_first_ceiling_is_durable() -> None:
    world = World()
    world.disk.freeze()
    world.wait(60)
    assert not world.running.ready
    assert refusal(world).code == "no_replicator"
    world.disk.thaw()
    world.wait()
    # What was asked for before the freeze lies behind the wall clock by now.
    assert refusal(world).code == "no_replicator"
    world.wait()
    assert world.running.ready
    assert version_ms(world.tick()) == world.wall_ms()


def test_stamps_are_started_once() -> None:
    with pytest.raises(RuntimeError, match="once"):
        World().running.start()


def test_a_stamper_other_than_the_directorys_is_a_bug() -> None:
    world = World()
    world.wait()
    world.running.seal()
    world.wait()
    world.directory.close()
    directory = ReplicatorDirectory.open(world.disk, path, "replicator-1")
    with pytest.raises(ValueError, match="has stamper 7, not 8"):
        Stamps(directory, 8, world.clock, world.failures.append)


def test_a_second_of_stamping_costs_about_one_write() -> None:
    world = World()
    world.wait()
    for _ in range(1_000):
        for _ in range(10):
            world.tick()
        world.wait(0.01)
    assert 8 <= world.running.ceilings_stored <= 12
    # Two copies; and before, the file was made and looked at.
    assert world.disk.counters.syncs == 2 * world.running.ceilings_stored + 2


def test_an_idle_clock_keeps_its_ceiling_ahead_and_stamps_at_once() -> None:
    world = World()
    world.wait(3_600)
    assert version_ms(world.tick()) == world.wall_ms()


def test_a_merged_version_is_exceeded_and_one_too_far_ahead_is_refused() -> None:
    world = World()
    world.wait()
    seen = version_at(world.wall_ms() + lead_ms_max)
    world.running.merge(seen)
    assert world.running.time_ms == world.wall_ms() + lead_ms_max
    assert world.tick() > seen
    with pytest.raises(RetryLater) as refused:
        world.running.merge(version_at(world.wall_ms() + lead_ms_max + 1))
    assert refused.value.code == "clock_skew"


def test_a_slow_disk_stops_stamping_at_the_ceiling_and_not_before() -> None:
    world = World()
    world.wait()
    ceiling_ms = FakeClock.epoch_ms + ceiling_ahead_ms
    world.disk.freeze()
    while world.wall_ms() < ceiling_ms - 1:
        world.tick()
        world.wait(0.001)
    while world.wall_ms() < ceiling_ms:
        world.wait(0.001)
    refused = refusal(world)
    assert refused.code == "no_replicator"
    assert "disk of this replicator is slow" in refused.detail
    assert (
        world.running.trouble == "the ceiling of the clock is not stored in time: the disk is slow"
    )
    world.disk.thaw()
    world.wait()
    assert version_ms(world.tick()) == world.wall_ms()


def test_after_a_pause_the_first_refusal_asks_for_a_ceiling_without_waiting_for_the_timer() -> None:
    world = World()
    world.wait()
    world.clock.pause()
    world.wait(3_600)
    # Timers that fell due meanwhile have not run yet.
    assert refusal(world).code == "no_replicator"
    world.wait()
    assert world.tick()
    world.clock.resume()


def test_after_a_power_cut_stamping_waits_until_the_wall_clock_is_near() -> None:
    world = World()
    world.wait()
    world.tick()
    world.crash()
    world.wait()
    assert refusal(world).code == "clock_skew"
    world.wait((ceiling_ahead_ms - lead_ms_max) / 1_000 + upkeep_s)
    assert world.tick()


def test_after_an_orderly_stop_stamping_goes_on_at_once() -> None:
    world = World()
    world.wait()
    for _ in range(20):
        world.tick()
        world.stop()
        world.wait()
    assert world.running.ready


def test_a_stop_while_a_ceiling_is_on_its_way_leaves_the_sealed_one() -> None:
    world = World()
    world.wait()
    world.disk.freeze()
    world.wait(1.3)
    world.tick()
    stamped_ms = version_ms(world.stamps[-1])
    world.running.seal()
    world.disk.thaw()
    world.wait()
    world.directory.close()
    reopened = ReplicatorDirectory.open(world.disk, path, "replicator-1")
    assert reopened.found is not None
    assert reopened.found.ceiling_ms == stamped_ms + 1


def test_sealed_stamps_make_no_more_and_sealing_twice_is_harmless() -> None:
    world = World()
    world.wait()
    world.running.seal()
    world.running.seal()
    assert not world.running.ready
    assert refusal(world).code == "shutting_down"
    world.wait(3_600)
    assert refusal(world).code == "shutting_down"
    with pytest.raises(RuntimeError):
        world.running.start()


def test_stamps_sealed_before_their_first_ceiling_have_promised_nothing() -> None:
    world = World()
    world.running.seal()
    assert refusal(world).code == "shutting_down"
    world.wait()
    assert not world.running.ready
    world.stop()
    world.wait()
    assert world.tick()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_failed_disk_ends_stamping_and_is_reported_once(operation: Operation) -> None:
    world = World()
    world.wait()
    world.tick()
    world.disk.fail(operation, errno.EIO, times=None)
    world.wait(10)
    (failure,) = world.failures
    assert failure.errno == errno.EIO
    refused = refusal(world)
    assert refused.code == "shutting_down"
    assert "disk of this replicator has failed (Input/output error)" in refused.detail
    assert not world.running.ready
    world.running.seal()
    world.disk.heal()
    world.crash()
    world.wait(ceiling_ahead_ms / 1_000)
    assert world.tick()


def test_on_a_disk_without_any_space_stamping_goes_on_and_starts_again() -> None:
    world = World()
    world.wait()
    world.disk.capacity_bytes = 0
    for restart in (world.stop, world.kill, world.crash):
        for _ in range(100):
            world.tick()
            world.wait(0.1)
        restart()
        world.wait(ceiling_ahead_ms / 1_000)
        assert world.running.trouble is None
    assert world.tick()


def test_a_process_without_descriptors_goes_on_stamping() -> None:
    world = World()
    world.wait()
    world.disk.fail("open", errno.EMFILE, times=None)
    world.wait(60)
    assert world.tick()


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_where_every_change_wants_space_a_full_disk_stops_stamping_until_there_is_room(
    code: int, operation: Operation
) -> None:
    world = World()
    world.wait()
    world.disk.fail(operation, code, times=None)
    world.wait(1.5)
    world.tick()
    assert "cannot be stored" in (world.running.trouble or "")
    world.wait(10)
    refused = refusal(world)
    assert (refused.code, refused.status) == ("storage_full", 507)
    assert not world.failures
    world.disk.heal()
    world.wait(upkeep_s + written_s)
    assert version_ms(world.tick()) == world.wall_ms()


def test_a_wall_clock_that_jumps_back_stops_stamping_until_it_is_sane() -> None:
    world = World()
    world.wait()
    world.tick()
    world.clock.skew_ms = -3_600_000
    world.wait(60)
    assert refusal(world).code == "clock_skew"
    world.clock.skew_ms = 0
    # By now the old ceiling is passed; the first refusal asks for a new one.
    assert refusal(world).code == "no_replicator"
    world.wait()
    assert world.tick()


def test_clocks_that_refuse_no_leads_follow_each_other_however_wrong_they_are() -> None:
    world = World(refuse_leads=False)
    world.wait()
    far = version_at(world.wall_ms() + 30_000)
    world.running.merge(far)
    assert refusal(world).code == "no_replicator"
    world.wait()
    assert world.tick() > far
    world.crash()
    world.wait()
    assert world.tick() > far


@pytest.mark.parametrize("steps", range(60))
def test_a_power_cut_between_any_two_events_repeats_no_stamp(steps: int) -> None:
    for seed in range(4):
        world = World(seed, refuse_leads=False)
        for _ in range(steps):
            world.timeline.step()
            _tick_if_possible(world)
        world.crash()
        world.wait()
        assert world.tick()


@pytest.mark.parametrize("refuse_leads", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_no_stamp_is_made_twice_through_hundreds_of_restarts(seed: int, refuse_leads: bool) -> None:
    draw = random.Random(seed)
    world = World(seed, refuse_leads=refuse_leads)
    spread_ms = 400 if refuse_leads else 30_000
    for _ in range(200):
        for _ in range(draw.randint(0, 12)):
            world.wait(draw.choice([0.0, 0.001, 0.3, 2.5]) * draw.random())
            for _ in range(draw.randint(0, 5)):
                _tick_if_possible(world)
            if draw.random() < 0.2:
                _merge_if_possible(world, draw.randint(-spread_ms, spread_ms))
        _trouble(world, draw, spread_ms)
    assert len(world.stamps) > 1_000
    assert len(set(world.stamps)) == len(world.stamps)


def _trouble(world: World, draw: random.Random, spread_ms: int) -> None:
    world.disk.heal()
    world.skew_ms = draw.randint(-spread_ms, spread_ms)
    match draw.randrange(6):
        case 0 | 1:
            world.crash()
        case 2:
            world.kill()
        case 3:
            world.stop()
        case 4:
            world.clock.skew_ms = world.skew_ms
        case 5:
            operation: Operation = draw.choice(["write", "sync", "rename", "sync_directory"])
            world.disk.fail(operation, draw.choice([errno.EIO, errno.ENOSPC]))
            world.wait(draw.random() * 3)
            world.disk.heal()
            world.crash()


def _tick_if_possible(world: World) -> None:
    with suppress(RetryLater):
        world.tick()


def _merge_if_possible(world: World, ahead_ms: int) -> None:
    version = version_at(world.wall_ms() + ahead_ms)
    try:
        world.running.merge(version)
    except RetryLater:
        return
    made = len(world.stamps)
    _tick_if_possible(world)
    assert len(world.stamps) == made or world.stamps[-1] > version


async def test_on_a_real_disk_the_clock_goes_on_through_restarts(tmp_path: Path) -> None:
    last = bytes(12)
    for _ in range(5):
        disk = SystemDisk()
        directory = ReplicatorDirectory.open(disk, tmp_path / "r", "replicator-1")
        failures: list[OSError] = []
        stamps = Stamps(directory, 7, SystemClock(), failures.append)
        stamps.start()
        while not stamps.ready:  # noqa: ASYNC110  It has no event.
            await asyncio.sleep(0.001)
        for _ in range(100):
            stamp = stamps.tick()
            assert stamp > last
            last = stamp
        stamps.seal()
        disk.close()
        directory.close()
        # Reports come in later turns of the loop, to stamps that are sealed.
        await asyncio.sleep(0)
        assert not failures
