"""Ages of slots, and since when a node is as it is."""

from __future__ import annotations

from services.core.ring import slot_count
from services.replicator.node_states import NodeStates
from services.replicator.repair_counters import Ages, SlotStates
from tests.unit.replicator_world import World

every = [slice(0, slot_count)]


def test_slots_that_were_never_compared_are_as_old_as_the_process() -> None:
    states = SlotStates(100.0)
    assert states.ages(every, 130.0) == Ages(slot_count, 30.0, 30.0, slot_count)


def test_the_oldest_and_the_median_are_those_of_the_slots_asked_for() -> None:
    states = SlotStates(0.0)
    for slot in range(100):
        states.compared(slot, 10.0 + slot)
    assert states.ages([slice(0, 100)], 210.0) == Ages(100, 200.0, 150.0, 0)
    assert states.ages([slice(50, 60), slice(90, 100)], 210.0) == Ages(20, 150.0, 110.0, 0)
    assert states.ages([slice(99, 101)], 210.0).never == 1
    assert states.ages([], 210.0) == Ages(0, 0.0, 0.0, 0)


def test_slots_that_are_taken_over_begin_to_age_then() -> None:
    states = SlotStates(0.0)
    for slot in range(slot_count):
        states.compared(slot, 10.0)
    states.take_over(slice(128, 256), 500.0)
    assert states.ages([slice(128, 256)], 520.0) == Ages(128, 20.0, 20.0, 128)
    assert states.ages(every, 520.0) == Ages(slot_count, 510.0, 510.0, 128)


def test_what_there_is_to_collect_is_that_of_the_slots_asked_for() -> None:
    states = SlotStates(0.0)
    states.ended[5] = 4
    states.ended[6] = 3
    assert states.to_collect(every) == 7
    assert states.to_collect([slice(0, 6)]) == 4


def test_since_when_a_node_is_as_it_is_changes_with_its_state_alone() -> None:
    world = World()
    replicator = world.replicator
    states = NodeStates(replicator.clock)
    began_ms = replicator.clock.wall_ms()
    replicator.fleet.on_change = states.changed
    node = replicator.fleet.nodes["node-2"]
    world.pass_time(10.0)
    assert states.since_ms(node) == began_ms
    world.nodes["node-2"].crash()
    crashed_ms = replicator.clock.wall_ms()
    world.pass_time(10.0)
    assert crashed_ms <= states.since_ms(node) <= crashed_ms + 3_000
    away_ms = states.since_ms(node)
    world.pass_time(10.0)
    assert states.since_ms(node) == away_ms
    world.nodes["node-2"].begin()
    world.pass_time(10.0)
    assert states.since_ms(node) > away_ms + 10_000
