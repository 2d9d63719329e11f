"""Slots are divided among the replicators that live: all of them, evenly, and all by one rule."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.messages import MALFORMED
from services.core.ring import slot_count
from services.core.sessions import REPLICATORS, encode_replicators
from services.core.wire import OK, UNKNOWN_KIND
from services.replicator.slot_shares import Shares, ask_s, block_slots, in_order, sharer
from tests.unit.replicator_world import World

names = st.lists(st.text("abc-123", min_size=1, max_size=8), min_size=1, max_size=9, unique=True)


@settings(max_examples=30, deadline=None)
@given(names)
def test_every_slot_is_looked_after_by_one_and_all_have_about_as_many(ids: list[str]) -> None:
    shares = Counter(sharer(in_order(ids[0], [ids]), slot) for slot in range(slot_count))
    assert sum(shares.values()) == slot_count
    assert shares.keys() == set(ids)
    assert max(shares.values()) - min(shares.values()) <= block_slots


def shares_of(world: World, by: int = 0) -> Shares:
    coordinator = world.replicators[by]
    shares = Shares(coordinator.name, coordinator.fleet, coordinator.clock)
    shares.start()
    return shares


def tell(world: World, node_id: str, *ids: str) -> None:
    world.nodes[node_id].answer(REPLICATORS, OK, encode_replicators(ids))


def test_a_replicator_that_is_told_of_nobody_looks_after_all() -> None:
    world = World()
    shares = shares_of(world)
    world.pass_time(1.0)
    assert shares.replicators == ("replicator-1",)
    assert len(shares.slots()) == slot_count


def test_whoever_any_node_names_has_a_share_and_all_agree() -> None:
    world = World(replicators=2)
    tell(world, "node-1", "replicator-1")
    tell(world, "node-2", "replicator-1", "replicator-2")
    both = [shares_of(world, by) for by in (0, 1)]
    world.pass_time(1.0)
    assert {shares.replicators for shares in both} == {("replicator-1", "replicator-2")}
    assert sorted(both[0].slots() + both[1].slots()) == list(range(slot_count))


def test_who_is_gone_has_no_share_any_more() -> None:
    world = World()
    for node_id in world.nodes:
        tell(world, node_id, "replicator-1", "replicator-2")
    shares = shares_of(world)
    world.pass_time(1.0)
    assert len(shares.slots()) == slot_count // 2
    for node_id in world.nodes:
        tell(world, node_id, "replicator-1")
    world.pass_time(ask_s + 0.5)
    assert len(shares.slots()) == slot_count


def test_what_a_node_said_before_it_went_away_counts_no_more() -> None:
    world = World()
    tell(world, "node-2", "replicator-1", "replicator-9")
    shares = shares_of(world)
    world.pass_time(1.0)
    assert "replicator-9" in shares.replicators
    world.nodes["node-2"].crash()
    world.pass_time(2 * ask_s + 3.0)
    assert shares.replicators == ("replicator-1",)


def test_answers_without_sense_change_nothing() -> None:
    world = World()
    tell(world, "node-1", "replicator-1", "replicator-2")
    world.nodes["node-2"].answer(REPLICATORS, OK, b"\0\1\377")
    world.nodes["node-3"].answer(REPLICATORS, UNKNOWN_KIND)
    shares = shares_of(world)
    world.pass_time(1.0)
    assert shares.replicators == ("replicator-1", "replicator-2")
    world.nodes["node-1"].answer(REPLICATORS, MALFORMED, b"what?")
    world.pass_time(2 * ask_s)
    assert shares.replicators == ("replicator-1", "replicator-2")


def test_it_asks_nobody_any_more_once_it_is_stopped() -> None:
    world = World()
    shares = shares_of(world)
    world.pass_time(1.0)
    asked = world.messages(REPLICATORS)
    assert asked == len(world.nodes)
    shares.stop()
    world.pass_time(5 * ask_s)
    assert world.messages(REPLICATORS) == asked
