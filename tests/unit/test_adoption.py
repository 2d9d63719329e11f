"""Hints of a replicator that is gone reach their nodes through another one."""

from __future__ import annotations

import errno
import random

import pytest

from services.replicator.adoption import look_s, orphaned_s
from services.replicator.overflow import overflow_name
from tests.unit.hint_world import HintWorld, replicators
from tests.unit.replicator_world import key_of

theirs = replicators / "replicator-1"
looked_s = orphaned_s + 3 * look_s


def gone(count: int = 300, **limits: int) -> HintWorld:
    """replicator-1 has kept hints and is gone; replicator-2 lives beside its directory."""
    world = HintWorld(**limits)
    world.keep(count)
    world.keep(20, "node-2")
    world.pass_time()
    world.restart(name="replicator-2")
    return world


def left_behind(world: HintWorld) -> list[str]:
    return [
        f"{node}/{name}"
        for node in world.disk.names(theirs / "hints")
        for name in world.disk.names(theirs / "hints" / node)
    ]


def test_the_hints_of_a_replicator_that_is_gone_are_taken_over_and_delivered() -> None:
    world = gone()
    world.pass_time(looked_s)
    assert left_behind(world) == []
    assert world.keeper.adoption.adopted == 320
    assert world.hints.waiting == {"node-1": 300, "node-2": 20, "node-3": 0}
    assert world.hints.oldest_ms > orphaned_s * 1000
    world.come_back()
    world.pass_time(3.0)
    assert not world.missing() & set(range(300))
    assert world.times_told() == 1
    assert world.disk.names(theirs / "hints") == []


def test_a_replicator_that_restarts_finds_its_hints_where_they_were() -> None:
    world = gone()
    world.pass_time(orphaned_s - look_s)
    assert left_behind(world)
    world.restart(name="replicator-1")
    assert world.hints.waiting["node-1"] == 300


def test_a_directory_in_use_is_left_alone() -> None:
    world = gone()
    lock = world.disk.lock(theirs)
    world.pass_time(10 * looked_s)
    assert left_behind(world)
    lock.release()
    world.pass_time(looked_s)
    assert not left_behind(world)


def test_the_directory_is_not_held_while_a_node_is_away() -> None:
    world = gone()
    world.pass_time(looked_s)
    world.disk.lock(theirs).release()
    assert world.hints.waiting["node-1"] == 300


@pytest.mark.parametrize("seed", range(25))
def test_a_power_cut_while_hints_are_taken_over_loses_none(seed: int) -> None:
    draw = random.Random(seed)
    world = gone()
    world.disk.latency_s = (0.000_1, 0.05)
    for _ in range(3):
        world.pass_until(lambda: world.keeper.adoption.adopted > 0, within_s=looked_s)
        world.pass_time(draw.uniform(0.0, 1.5))
        world.restart(draw.choice((world.disk.crash, world.disk.kill)))
        if not left_behind(world):
            break
    world.pass_time(looked_s)
    assert left_behind(world) == []
    world.come_back()
    world.pass_time(3.0)
    assert not world.missing() & set(range(300))


def test_nothing_is_removed_there_before_it_is_durable_here() -> None:
    world = gone(5)
    world.disk.latency_s = (0.01, 0.05)
    world.pass_until(lambda: not any("node-1/log" in name for name in left_behind(world)), looked_s)
    world.restart()
    assert world.hints.waiting["node-1"] == 5


def test_an_overflow_is_taken_over_before_it_is_forgotten() -> None:
    world = gone(bytes_max=3_000)
    assert f"node-1/{overflow_name}" in left_behind(world)
    world.pass_time(looked_s)
    assert left_behind(world) == []
    assert overflow_name in world.keeper.files()
    world.come_back()
    world.pass_time(5.0)
    assert not world.times_told()


def test_what_our_own_limit_does_not_allow_counts_as_an_overflow_here() -> None:
    world = HintWorld()
    world.keep(300)
    world.pass_time()
    world.restart(name="replicator-2", bytes_max=5_000)
    world.pass_time(looked_s)
    assert left_behind(world) == []
    assert world.hints.counters.dropped.bytes > 200
    assert world.hints.overflowed["node-1"] > 200


def test_damaged_hints_are_no_reason_to_leave_the_others() -> None:
    world = HintWorld()
    for _ in range(30):
        world.keep(10)
        world.pass_time(0.02)
    world.disk.flip_bit(theirs / "hints/node-1/log-0000000002", 2_000, 1)
    world.restart(name="replicator-2")
    world.pass_time(looked_s)
    assert left_behind(world) == []
    assert 200 < world.hints.waiting["node-1"] < 300
    assert world.hints.overflowed["node-1"] > 0


def test_what_cannot_be_read_is_tried_again_and_stops_nobody() -> None:
    world = gone()
    world.disk.fail("open", errno.EACCES, f"{theirs}/hints/*", times=None)
    world.pass_time(3 * looked_s)
    assert left_behind(world)
    world.keep(1)
    world.pass_time()
    assert len(world.kept) == 321
    world.disk.heal()
    world.pass_time(2 * looked_s)
    assert left_behind(world) == []
    world.come_back()
    world.pass_time(3.0)
    assert all(world.node.holds(key_of(number)) for number in range(300))
