"""The ring: placement of slots on nodes."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter

import mmh3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.ring import (
    Owners,
    Ring,
    RingMember,
    difference,
    slot_count,
    slot_of,
    virtual_nodes_per_node,
)

seeds = st.integers(0, 2**32)


def random_members(rng: random.Random, count: int, zones: int = 1) -> tuple[RingMember, ...]:
    return tuple(
        RingMember(f"{rng.getrandbits(64):016x}", f"zone-{rng.randrange(zones)}")
        for _ in range(count)
    )


def owners_by_walking(ring: Ring, slot: int) -> Owners:
    """The definition, word by word: walk clockwise from the slot's position."""
    points = sorted(
        (mmh3.hash64(f"{node_id}#{number}".encode(), signed=False)[0], node_id, zone)
        for node_id, zone in ring.members
        for number in range(virtual_nodes_per_node)
    )
    position = slot * 2**50
    clockwise = [p for p in points if p[0] >= position] + [p for p in points if p[0] < position]
    chosen: list[str] = []
    zones = set()
    for _, node_id, zone in clockwise:
        if zone not in zones and len(chosen) < ring.replication_factor:
            chosen.append(node_id)
            zones.add(zone)
    for _, node_id, _ in clockwise:
        if node_id not in chosen and len(chosen) < ring.replication_factor:
            chosen.append(node_id)
    return tuple(chosen)


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_the_table_is_what_a_walk_around_the_ring_finds(
    seed: int, count: int, zones: int, replication_factor: int
) -> None:
    rng = random.Random(seed)
    ring = Ring(random_members(rng, count, zones), replication_factor)
    for slot in (0, 1, slot_count - 2, slot_count - 1, *(rng.randrange(slot_count),) * 4):
        assert ring.slots[slot] == owners_by_walking(ring, slot)


def test_the_whole_table_of_a_small_ring_is_what_a_walk_finds() -> None:
    members = [RingMember("a", "east"), RingMember("b", "east"), RingMember("c", "west")]
    ring = Ring(tuple(members), 2)
    for slot in range(0, slot_count, 16):
        assert ring.slots[slot] == owners_by_walking(ring, slot)


def test_the_table_of_a_large_ring_is_what_a_walk_finds_and_comes_in_small_pieces() -> None:
    members = random_members(random.Random(7), 100, 4)
    pieces = Ring.in_pieces(members, 3)
    count = 0
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            ring: Ring = end.value
            break
        count += 1
    # Hashed, sorted, and passed twice: some five hundred points in each.
    assert count > 4 * 100 * virtual_nodes_per_node / 700
    for slot in (0, 1, slot_count - 1, *range(77, slot_count, 400)):
        assert ring.slots[slot] == owners_by_walking(ring, slot)


def test_placement_never_changes_from_one_release_to_the_next() -> None:
    # These are on the disks of running clusters. If this fails, the ring is wrong, not the test.
    assert slot_of(b"") == 0
    assert slot_of(b"\0\0\0\0\0\0\0\1\7defaultuser:123") == 9868
    assert slot_of(bytes(range(256))) == 1830
    ring = Ring(tuple(RingMember(f"node-{n}") for n in range(1, 6)), 3)
    assert [ring.slots[slot] for slot in (0, 1, 8_000, 16_383)] == [
        ("node-3", "node-4", "node-5"),
        ("node-3", "node-4", "node-5"),
        ("node-5", "node-1", "node-3"),
        ("node-3", "node-4", "node-5"),
    ]


@given(st.binary(max_size=60))
def test_the_slot_of_a_key_is_the_top_of_its_hash(storage_key: bytes) -> None:
    slot = slot_of(storage_key)
    assert 0 <= slot < slot_count
    assert slot == (mmh3.hash64(storage_key)[0] % 2**64) // 2**50


def test_the_fullest_node_holds_at_most_a_quarter_more_than_its_share() -> None:
    worst = 0.0
    for seed in range(1_000):
        rng = random.Random(seed)
        count = rng.randint(3, 50)
        ring = Ring(random_members(rng, count), 3)
        replicas: Counter[str] = Counter()
        for owners, slots in Counter(ring.slots).items():
            for node_id in owners:
                replicas[node_id] += slots
        assert replicas.total() == 3 * slot_count
        worst = max(worst, max(replicas.values()) * count / replicas.total())
    assert worst <= 1.25


@pytest.mark.alone
def test_the_table_for_a_hundred_nodes_is_built_in_a_quarter_of_a_second() -> None:
    for zones in (1, 3):
        members = random_members(random.Random(zones), 100, zones)
        taken_s = []
        for _ in range(5):
            started_s = time.perf_counter()
            Ring(members, 3)
            taken_s.append(time.perf_counter() - started_s)
        assert statistics.median(taken_s) < 0.250


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_a_join_moves_no_slot_between_two_nodes_that_both_stay(
    seed: int, count: int, zones: int, replication_factor: int
) -> None:
    *members, newcomer = random_members(random.Random(seed), count + 1, zones)
    before = Ring(tuple(members), replication_factor)
    after = Ring((*members, newcomer), replication_factor)

    joined = difference(before, after)
    assert all(change.gained == (newcomer.node_id,) for change in joined.values())
    assert all(len(change.lost) == (count >= replication_factor) for change in joined.values())

    left = difference(after, before)
    assert left.keys() == joined.keys()
    assert all(change.lost == (newcomer.node_id,) for change in left.values())
    assert all(left[slot].gained == joined[slot].lost for slot in left)


def test_a_join_moves_about_its_fair_share_of_slots_and_no_more() -> None:
    rng = random.Random(11)
    members = random_members(rng, 10)
    moved = len(difference(Ring(members[:9], 3), Ring(members, 3)))
    assert 0.8 < moved / (slot_count * 3 / 10) < 1.25


def test_the_difference_names_every_slot_whose_owners_change_and_no_other() -> None:
    rng = random.Random(7)
    members = random_members(rng, 8, zones=3)
    old, new = Ring(members[:6], 3), Ring(members[2:], 3)
    changes = difference(old, new)
    assert list(changes) == sorted(changes)
    for slot in range(slot_count):
        before, after = set(old.slots[slot]), set(new.slots[slot])
        if before == after:
            assert slot not in changes
        else:
            assert set(changes[slot].gained) == after - before
            assert set(changes[slot].lost) == before - after
    assert difference(old, Ring(old.members, 3)) == {}


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 15), st.integers(1, 6))
def test_owners_are_distinct_and_stand_in_as_many_zones_as_they_can(
    seed: int, count: int, zones: int
) -> None:
    members = random_members(random.Random(seed), count, zones)
    zone_of = dict(members)
    ring = Ring(members, 3)
    for owners in set(ring.slots):
        assert len(set(owners)) == len(owners) == min(3, count)
        spread = len({zone_of[node_id] for node_id in owners})
        assert spread == min(3, len(set(zone_of.values())))
        # The distinct zones come first, so that the first two replicas asked are apart.
        assert len({zone_of[node_id] for node_id in owners[:spread]}) == spread


def test_the_order_of_members_does_not_matter() -> None:
    members = random_members(random.Random(3), 12, zones=4)
    ring, reversed_ring = Ring(members, 3), Ring(members[::-1], 3)
    assert ring == reversed_ring
    assert ring.slots == reversed_ring.slots


def test_slots_with_the_same_owners_share_one_tuple() -> None:
    ring = Ring(random_members(random.Random(1), 50), 3)
    assert len({id(owners) for owners in ring.slots}) == len(set(ring.slots))


def test_fewer_members_than_replicas_own_everything() -> None:
    ring = Ring((RingMember("a"), RingMember("b")), 3)
    assert len(ring.slots) == slot_count
    assert set(ring.slots) == {("a", "b"), ("b", "a")}
    assert set(Ring((RingMember("only"),), 3).slots) == {("only",)}


def test_node_ids_may_contain_what_separates_virtual_nodes() -> None:
    ring = Ring((RingMember("a"), RingMember("a#1"), RingMember("a#1#1")), 1)
    assert {owners[0] for owners in ring.slots} == {"a", "a#1", "a#1#1"}


@pytest.mark.parametrize(
    ("members", "replication_factor", "complaint"),
    [
        ((), 3, "one member at least"),
        ((RingMember(""),), 3, "empty node id"),
        ((RingMember("a"), RingMember("b"), RingMember("a")), 3, "'a' is twice"),
        ((RingMember("a", "east"), RingMember("a", "west")), 1, "'a' is twice"),
        ((RingMember("a"),), 0, "one replica at least, not 0"),
        ((RingMember("a"),), -1, "one replica at least, not -1"),
    ],
)
def test_a_membership_that_makes_no_ring_is_refused(
    members: tuple[RingMember, ...], replication_factor: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Ring(members, replication_factor)


def test_a_ring_cannot_be_changed() -> None:
    ring = Ring((RingMember("a"),), 1)
    with pytest.raises(AttributeError):
        ring.slots = ()  # type: ignore[misc]
    assert hash(ring) == hash(Ring((RingMember("a"),), 1))
