"""When replicas are compared, and by whom: in passes, by order, and because a node is owed it."""

from __future__ import annotations

import itertools

import pytest
from msgspec import structs

from services.core.cluster import ClusterMap
from services.core.messages import DIGESTS, GET_MANY, VERSIONS, WRITE_MANY
from services.core.record import tombstone_body
from services.core.ring import slot_count, slot_of
from services.core.sessions import REPLICATORS, encode_replicators
from services.core.wire import OK
from services.replicator.anti_entropy import ended_min
from services.replicator.slot_shares import block_count, block_slots
from tests.unit.repair_world import RepairWorld, keys_of_one_slot
from tests.unit.replicator_world import key_of


@pytest.fixture
def world() -> RepairWorld:
    return RepairWorld()


def test_a_regular_pass_takes_its_time_and_finds_everything() -> None:
    world = RepairWorld(pass_s=60.0)
    world.sow(range(100), "node-2")
    began_s = world.timeline.now_s
    asked = [world.messages(DIGESTS)]
    for _ in range(6):
        world.pass_time(10.0)
        asked.append(world.messages(DIGESTS))
    steps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert max(steps) <= 2 * 3 * block_count / 6, f"not evenly: {steps}"
    world.pass_until(lambda: world.counters.passes == 2 or world.timeline.now_s > began_s + 130)
    world.assert_equal()
    assert world.repairer.anti_entropy.ages().oldest_s <= 75.0
    assert world.timeline.now_s - began_s <= 130


def test_an_idle_pass_asks_next_to_nothing() -> None:
    world = RepairWorld(pass_s=600.0)
    before = world.messages(*range(16, 64))
    world.pass_time(600.0)
    asked = world.messages(*range(16, 64)) - before
    assert asked < 3 * block_count + 3 * 600 / 2 + 20


def test_two_replicators_compare_each_slot_once_between_them() -> None:
    world = RepairWorld(replicators=2, pass_s=30.0)
    for node in world.nodes.values():
        node.answer(REPLICATORS, OK, encode_replicators(["replicator-1", "replicator-2"]))
    world.pass_time(3.0)
    world.sow(range(200), "node-1")
    for repairer in world.repairers:
        assert repairer.anti_entropy.compare(None) == slot_count // 2
    world.pass_time(10.0)
    world.assert_equal()
    sent = [repairer.counters.records_sent for repairer in world.repairers]
    assert sum(sent) == 400
    assert min(sent) > 100


def test_slots_that_another_has_looked_after_are_not_called_old() -> None:
    world = RepairWorld(replicators=2)
    for node in world.nodes.values():
        node.answer(REPLICATORS, OK, encode_replicators(["replicator-1", "replicator-2"]))
    world.pass_time(600.0)
    for node in world.nodes.values():
        node.answer(REPLICATORS, OK, encode_replicators(["replicator-1"]))
    world.pass_time(10.0)
    ages = world.repairer.anti_entropy.ages()
    assert ages.slots == slot_count
    assert ages.never >= slot_count // 2 - block_slots
    assert ages.oldest_s < 615.0
    assert ages.median_s < 320.0


def test_an_order_for_slots_of_another_share_is_left_to_the_other() -> None:
    world = RepairWorld(replicators=2)
    for node in world.nodes.values():
        node.answer(REPLICATORS, OK, encode_replicators(["replicator-1", "replicator-2"]))
    world.pass_time(3.0)
    taken = [repairer.anti_entropy.compare([0, 1, 128, 300]) for repairer in world.repairers]
    assert taken == [3, 1]


def test_an_order_over_another_does_both(world: RepairWorld) -> None:
    world.sow(range(300), "node-1")
    anti_entropy = world.repairer.anti_entropy
    anti_entropy.compare(range(8_000))
    world.pass_until(lambda: world.counters.slots_compared > 1_000)
    anti_entropy.compare(range(9_000, slot_count))
    assert anti_entropy.order is not None
    assert anti_entropy.order.total > slot_count - 9_000
    world.pass_time(20.0)
    assert not anti_entropy.ordered
    missing = [n for n in range(300) if None in world.held(key_of(n))]
    assert {8_000 <= slot_of(key_of(n)) < 9_000 for n in missing} <= {True}


def test_the_pace_is_kept(world: RepairWorld) -> None:
    slow = RepairWorld(records_per_s=500)
    slow.sow(range(600), "node-1", "node-2")
    began_s = slow.timeline.now_s
    slow.repair(within_s=300.0)
    took_s = slow.timeline.now_s - began_s
    assert took_s > (600 + 600) / 500, "each record is fetched and sent"
    slow.assert_equal()


def test_bytes_are_paced_too() -> None:
    slow = RepairWorld(bytes_per_s=1 << 20)
    slow.sow(range(100), "node-1", "node-2", value=bytes(100_000))
    began_s = slow.timeline.now_s
    slow.repair(within_s=300.0)
    assert slow.timeline.now_s - began_s > 2 * 100 * 100_000 / (1 << 20)
    slow.assert_equal()


def test_once_stopped_it_asks_nothing_more(world: RepairWorld) -> None:
    world.sow(range(300), "node-1")
    world.repairer.anti_entropy.compare(None)
    world.pass_until(lambda: world.counters.records_sent > 50)
    world.repairer.anti_entropy.stop()
    world.pass_time(0.1)
    before = world.messages(DIGESTS, VERSIONS, GET_MANY, WRITE_MANY)
    world.pass_time(20.0)
    assert world.messages(DIGESTS, VERSIONS, GET_MANY, WRITE_MANY) == before


# What nodes are owed.


def test_a_node_whose_hints_overflowed_is_mended_before_anything_is_said(
    world: RepairWorld,
) -> None:
    owed = world.repairer.owed
    world.sow(range(300), "node-1", "node-2")
    owed.undrained.add("node-3")
    owed.marks["node-3"] = 4
    world.pass_time(5.0)
    assert not owed.told
    assert None in world.held(key_of(1))
    owed.undrained.clear()
    world.pass_until(lambda: bool(owed.told))
    assert owed.told == [("node-3", 4)]
    world.assert_equal()
    assert world.repairer.anti_entropy.owing == {}


def test_what_was_lost_a_moment_ago_is_mended_too_before_anything_is_said(
    world: RepairWorld,
) -> None:
    world.sow(range(100), "node-1", "node-2", ahead_ms=0)
    world.repairer.owed.marks["node-3"] = 1
    world.pass_until(lambda: bool(world.repairer.owed.told))
    world.assert_equal()
    assert world.counters.keys_young == 0


def test_all_slots_of_the_node_are_compared_whoever_has_a_share_in_them() -> None:
    world = RepairWorld(replicators=2)
    for node in world.nodes.values():
        node.answer(REPLICATORS, OK, encode_replicators(["replicator-1", "replicator-2"]))
    world.pass_time(3.0)
    world.sow(range(200), "node-1", "node-2")
    world.repairer.owed.marks["node-3"] = 1
    world.pass_time(10.0)
    assert world.repairer.owed.told == [("node-3", 1)]
    world.assert_equal()


def test_more_that_is_lost_meanwhile_begins_the_pass_anew(world: RepairWorld) -> None:
    owed = world.repairer.owed
    world.sow(range(300), "node-1", "node-2")
    owed.marks["node-3"] = 1
    world.pass_until(lambda: world.counters.records_sent > 100)
    owed.marks["node-3"] = 2
    world.pass_until(lambda: bool(owed.told))
    assert owed.told == [("node-3", 2)]
    world.assert_equal()


def test_a_majority_is_enough_to_know_what_a_node_misses(world: RepairWorld) -> None:
    world.sow(range(100), "node-1", "node-2")
    world.nodes["node-1"].crash()
    world.pass_time(3.0)
    world.repairer.owed.marks["node-3"] = 1
    world.pass_until(lambda: bool(world.repairer.owed.told))
    assert all(world.nodes["node-3"].holds(key_of(n)) for n in range(100))


def test_a_node_alone_is_owed_its_pass_until_somebody_is_there_to_compare_with(
    world: RepairWorld,
) -> None:
    world.sow(range(100), "node-1", "node-2")
    for name in ("node-1", "node-2"):
        world.nodes[name].crash()
    world.pass_time(3.0)
    world.repairer.owed.marks["node-3"] = 1
    world.pass_time(60.0)
    assert not world.repairer.owed.told
    assert world.repairer.anti_entropy.owing == {"node-3": slot_count}
    world.nodes["node-2"].begin()
    world.pass_until(lambda: bool(world.repairer.owed.told))
    assert all(world.nodes["node-3"].holds(key_of(n)) for n in range(100))


def test_several_nodes_that_are_owed_share_the_comparisons(world: RepairWorld) -> None:
    world.sow(range(100), "node-1")
    before = world.messages(DIGESTS)
    world.repairer.owed.marks.update({"node-1": 1, "node-2": 1, "node-3": 1})
    world.pass_until(lambda: len(world.repairer.owed.told) == 3)
    assert world.messages(DIGESTS) - before < 2 * 3 * block_count
    world.assert_equal()


def test_a_node_that_goes_away_again_is_owed_all_of_it_when_it_is_back(
    world: RepairWorld,
) -> None:
    world.sow(range(300), "node-1", "node-2")
    world.repairer.owed.marks["node-3"] = 1
    world.pass_until(lambda: world.counters.records_sent > 50)
    world.nodes["node-3"].crash()
    world.pass_time(5.0)
    assert world.repairer.anti_entropy.owing == {}
    world.nodes["node-3"].begin()
    world.pass_until(lambda: bool(world.repairer.owed.told))
    world.assert_equal()


def test_what_a_collection_has_to_bring_is_waited_for_before_anything_is_said() -> None:
    world = RepairWorld(replicators=2)
    for node in world.nodes.values():
        node.answer(REPLICATORS, OK, encode_replicators(["replicator-1", "replicator-2"]))
    world.pass_time(3.0)
    of_another = next(
        number for number in range(100) if not world.repairer.shares.has(slot_of(key_of(number)))
    )
    (key,) = world.sow([of_another], "node-1", "node-2")
    node = world.nodes["node-3"]
    node.replica.raise_floor(slot_of(key), world.version())
    world.repairer.owed.marks["node-3"] = 1
    world.pass_time(60.0)
    assert not world.repairer.owed.told
    assert world.repairer.anti_entropy.owing == {"node-3": 1}
    assert set(world.repairer.requested.slots) == {slot_of(key)}
    assert len(world.repairer.requested.slots) < 10, "it is asked for ever more seldom"
    node.replica.floors.clear()
    world.plant(
        node, key, world.owners(key)[0].holds(key) or world.owners(key)[1].holds(key) or b""
    )
    world.pass_until(lambda: bool(world.repairer.owed.told))
    world.assert_equal()


def test_a_map_in_the_middle_begins_anew_what_a_node_is_owed(world: RepairWorld) -> None:
    fleet, owed = world.replicator.fleet, world.repairer.owed
    world.sow(range(300), "node-1", "node-2")
    owed.marks["node-3"] = 1
    world.pass_until(lambda: world.counters.records_sent > 100)
    begun = world.repairer.anti_entropy.owing["node-3"]
    assert 0 < begun < slot_count
    fleet.adopt(ClusterMap(3, 3, world.map.members))
    before = world.messages(DIGESTS)
    world.pass_until(lambda: bool(owed.told))
    assert world.messages(DIGESTS) - before >= 3 * block_count, "no slot was passed over"
    assert owed.told == [("node-3", 1)]
    world.assert_equal()


def test_while_members_are_changed_no_node_is_said_to_have_everything(world: RepairWorld) -> None:
    fleet, owed, members = world.replicator.fleet, world.repairer.owed, world.map.members
    world.sow(range(300), "node-1", "node-2")
    owed.marks["node-3"] = 1
    world.pass_until(lambda: world.counters.records_sent > 100)
    joint = world.map.begin_change((structs.replace(members[0], zone="elsewhere"), *members[1:]))
    fleet.adopt(joint)
    world.pass_time(20.0)
    assert not owed.told
    assert world.repairer.anti_entropy.owing == {}
    fleet.adopt(joint.finish_change())
    world.pass_until(lambda: bool(owed.told))
    world.assert_equal()


def test_a_map_in_the_middle_of_an_order_leaves_nothing_out(world: RepairWorld) -> None:
    world.sow(range(300), "node-1")
    anti_entropy = world.repairer.anti_entropy
    anti_entropy.compare(None)
    world.pass_until(lambda: world.counters.records_sent > 100)
    world.replicator.fleet.adopt(ClusterMap(3, 3, world.map.members))
    world.pass_time(20.0)
    assert not anti_entropy.ordered
    assert anti_entropy.order is not None
    assert anti_entropy.order.left == 0
    world.assert_equal()


# What is collected.


def test_a_slot_with_much_to_collect_is_requested_at_once(world: RepairWorld) -> None:
    keys = keys_of_one_slot(ended_min)
    stamp = world.version(-60_000)
    world.sow_records(dict.fromkeys(keys, stamp + tombstone_body), *world.nodes)
    world.bury(range(10))
    world.repairer.owed.marks["node-1"] = 1
    world.pass_until(lambda: bool(world.repairer.owed.told))
    assert set(world.repairer.requested.slots) == {slot_of(keys[0])}
    assert world.repairer.anti_entropy.tombstones == ended_min + 10


def test_a_slot_with_little_to_collect_is_requested_after_two_passes() -> None:
    world = RepairWorld(pass_s=20.0)
    world.pass_until(lambda: world.counters.passes == 1)
    world.bury(range(10))
    world.pass_until(lambda: world.counters.passes == 2)
    assert world.repairer.requested.slots == []
    world.pass_until(lambda: world.counters.passes == 3)
    assert set(world.repairer.requested.slots) == {slot_of(key_of(n)) for n in range(10)}


def test_an_operator_has_whatever_there_is_collected(world: RepairWorld) -> None:
    world.bury([5])
    world.sow([6])
    world.repair()
    assert world.repairer.requested.slots == [slot_of(key_of(5))]


def test_what_an_order_wants_collected_is_so_whoever_compares_it(world: RepairWorld) -> None:
    """An order that rests has its slots compared by the passes of others meanwhile."""
    slot = slot_of(key_of(5))
    world.bury([5])
    world.nodes["node-2"].crash()
    world.pass_time(3.0)
    anti_entropy = world.repairer.anti_entropy
    anti_entropy.compare([slot])
    world.pass_until(lambda: anti_entropy.order is not None and anti_entropy.order.rounds == 1)
    world.repairer.requested.slots.clear()
    world.nodes["node-2"].begin()
    world.repairer.owed.marks["node-1"] = 1
    world.pass_until(lambda: not anti_entropy.ordered)
    assert world.repairer.requested.slots == [slot]


def test_what_waits_for_an_owner_is_requested_so_that_it_is_known(world: RepairWorld) -> None:
    world.bury(range(10))
    world.nodes["node-2"].crash()
    world.pass_time(3.0)
    world.repair()
    assert set(world.repairer.requested.slots) == {slot_of(key_of(n)) for n in range(10)}
    assert world.repairer.anti_entropy.tombstones == 10
    assert world.repairer.anti_entropy.ages().never >= slot_count - 2 * block_slots
