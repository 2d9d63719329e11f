"""The cluster map: epochs, quorums, and how a map travels."""

from __future__ import annotations

import random
from itertools import chain, combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.cluster import (
    ClusterMap,
    Member,
    epoch_max,
    map_bytes_max,
    members_max,
    slots_in_a_piece,
)
from services.core.errors import PeerError
from services.core.placement import Placement
from services.core.ring import Owners, Ring, RingMember, slot_count


def member(number: int, **changes: Any) -> Member:
    return Member(
        **{
            "node_id": f"node-{number}",
            "store_id": f"{number:032x}",
            "host": "127.0.0.1",
            "http_port": 8_000 + number,
            "link_port": 9_000 + number,
            "zone": f"zone-{number % 3}",
            **changes,
        }
    )


def members(*numbers: int) -> tuple[Member, ...]:
    return tuple(member(number) for number in numbers)


def document(cluster_map: ClusterMap, **changes: Any) -> bytes:
    """The map's JSON with some of its fields replaced."""
    return msgspec.json.encode({**msgspec.json.decode(cluster_map.encode()), **changes})


stable = ClusterMap(1, 3, members(1, 2, 3, 4))
joint = stable.begin_change(members(2, 3, 4, 5, 6))
after = joint.finish_change()


def subsets(nodes: Owners) -> list[Owners]:
    sizes = range(len(nodes) + 1)
    return list(chain.from_iterable(combinations(nodes, size) for size in sizes))


def test_a_change_goes_from_stable_over_joint_to_stable() -> None:
    assert [m.epoch for m in (stable, joint, after)] == [1, 2, 3]
    assert [m.is_joint for m in (stable, joint, after)] == [False, True, False]
    assert [m.is_stable for m in (stable, joint, after)] == [True, False, True]
    assert joint.old_members == stable.members
    assert joint.members == after.members == members(2, 3, 4, 5, 6)
    assert after.old_members is None


def test_changes_come_one_at_a_time() -> None:
    with pytest.raises(ValueError, match="in the middle of another change"):
        joint.begin_change(members(1, 2, 3))
    with pytest.raises(ValueError, match="no change to finish"):
        stable.finish_change()


def test_a_change_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="there is already"):
        stable.begin_change(reversed(stable.members))


def test_a_stable_slot_needs_a_majority_of_its_owners() -> None:
    for slot in range(0, slot_count, 97):
        owners = stable.owners(slot)
        assert owners == stable.ring.slots[slot]
        for acked in subsets(owners):
            assert stable.is_quorum(slot, acked) == (len(acked) >= 2)


def test_a_joint_slot_needs_a_majority_of_the_old_and_of_the_new_owners() -> None:
    for slot in range(0, slot_count, 97):
        old, new = stable.ring.slots[slot], after.ring.slots[slot]
        assert joint.owners(slot)[:3] == old
        assert set(joint.owners(slot)) == set(old) | set(new)
        for acked in subsets(joint.owners(slot)):
            enough = len(set(acked) & set(old)) >= 2 and len(set(acked) & set(new)) >= 2
            assert joint.is_quorum(slot, acked) == enough


@pytest.mark.parametrize(("one", "other"), [(stable, joint), (joint, after), (joint, joint)])
def test_quorums_of_neighbouring_epochs_always_share_a_node(
    one: ClusterMap, other: ClusterMap
) -> None:
    for pair in set(zip(one.placements, other.placements, strict=True)):
        quorums = [
            [set(acked) for acked in subsets(p.owners) if p.is_quorum(p.mask(acked))] for p in pair
        ]
        assert all(a & b for a in quorums[0] for b in quorums[1])


def test_nodes_that_do_not_own_the_slot_have_no_say() -> None:
    placement = stable.placements[0]
    (outsider,) = {m.node_id for m in stable.members} - set(placement.owners)
    first = placement.owners[0]
    assert not stable.is_quorum(0, [first, outsider, "node-99", ""])
    assert placement.mask([outsider, "node-99"]) == 0


def test_a_node_that_answers_twice_is_counted_once() -> None:
    first, second, _ = stable.owners(0)
    assert not stable.is_quorum(0, [first, first, first])
    assert stable.is_quorum(0, [first, second, first])


node_sets = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True).map(tuple)


@given(node_sets, node_sets, st.sets(st.sampled_from("abcdefghxyz")))
def test_counting_bits_agrees_with_counting_names(
    old: Owners, new: Owners, acked: set[str]
) -> None:
    placement = Placement.of(old, new)
    mask = placement.mask(acked)
    old_enough = len(acked & set(old)) > len(old) / 2
    new_enough = len(acked & set(new)) > len(new) / 2
    assert placement.is_old_quorum(mask) == old_enough
    assert placement.is_quorum(mask) == (old_enough and new_enough)
    assert placement.is_in_both(mask) == bool(acked & set(old) and acked & set(new))
    assert placement.old_owners == old
    assert placement.mask(placement.owners) == placement.everyone
    assert placement.is_quorum(placement.everyone)


def test_slots_with_the_same_owners_share_one_placement() -> None:
    pairs = set(zip(joint.old_ring.slots, joint.ring.slots, strict=True))
    assert len({id(placement) for placement in joint.placements}) == len(pairs)
    assert joint.placements is joint.placements
    assert stable.old_ring is stable.ring


@pytest.mark.parametrize("known", [stable, joint, after])
def test_every_slot_has_the_placement_of_its_owners_before_and_after(known: ClusterMap) -> None:
    for slot, placement in enumerate(known.placements):
        old, new = known.old_ring.slots[slot], known.ring.slots[slot]
        assert placement.owners == tuple(dict.fromkeys(old + new))
        assert (placement.old_mask, placement.new_mask) == (
            placement.mask(old),
            placement.mask(new),
        )
        assert (placement.old_majority, placement.new_majority) == (2, 2)


def test_the_movement_of_a_change_is_between_its_two_rings() -> None:
    movement = joint.movement()
    assert movement
    for slot, change in movement.items():
        assert set(change.gained) == set(after.owners(slot)) - set(stable.owners(slot))
        assert set(change.lost) == set(stable.owners(slot)) - set(after.owners(slot))
    assert stable.movement() == {}


def test_zones_are_heeded() -> None:
    ring = Ring(tuple(RingMember(m.node_id, m.zone) for m in stable.members), 3)
    assert stable.ring == ring
    assert stable.ring != Ring(tuple(RingMember(m.node_id) for m in stable.members), 3)


def test_a_node_that_stays_may_move_to_another_address() -> None:
    moved = (member(1, host="10.0.0.1", zone="elsewhere"), *members(2, 3, 4))
    change = stable.begin_change(moved)
    assert change.nodes["node-1"].host == "10.0.0.1"
    assert sorted(joint.nodes) == [f"node-{n}" for n in range(1, 7)]


def test_a_node_that_takes_the_place_of_a_lost_one_may_take_its_address() -> None:
    replaced = (member(9, http_port=8_001, link_port=9_001), *members(2, 3, 4))
    change = stable.begin_change(replaced)
    assert change.finish_change().members[-1].node_id == "node-9"


def test_a_node_that_lost_its_store_does_not_pass_for_its_old_self() -> None:
    with pytest.raises(ValueError, match="must join under a new id"):
        stable.begin_change((member(1, store_id="f" * 32), *members(2, 3, 4)))
    with pytest.raises(ValueError, match="comes with the store of 'node-1'"):
        stable.begin_change((member(9, store_id=member(1).store_id), *members(2, 3, 4)))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epoch": 0}, "an epoch is 1 to"),
        ({"epoch": -1}, "an epoch is 1 to"),
        ({"epoch": epoch_max + 2}, "an epoch is 1 to"),
        ({"epoch": 2}, "epoch 2 cannot be stable"),
        ({"old_members": members(1, 2, 3)}, "epoch 1 cannot be joint"),
        ({"replication_factor": 0}, "at least 1"),
        ({"replication_factor": 5}, "5 replicas need as many members; there are 4"),
        ({"members": ()}, "there are 0"),
        ({"epoch": 2, "old_members": members(1, 2)}, "there are 2"),
        ({"members": members(1, 2, 3, 3)}, "node id 'node-3' is given to two"),
        (
            {"members": (*members(1, 2), member(3, store_id=f"{2:032x}"))},
            "store id '0{31}2' is given to two",
        ),
        (
            {"members": (*members(1, 2), member(3, http_port=8_001))},
            "address '127.0.0.1 port 8001' is given to two",
        ),
        (
            {"members": (*members(1, 2), member(3, link_port=8_001))},
            "address '127.0.0.1 port 8001' is given to two",
        ),
        (
            {"members": tuple(member(n, host=f"10.0.0.{n}") for n in range(1, members_max + 2))},
            "257 members are more than 256",
        ),
    ],
)
def test_a_map_that_contradicts_itself_is_refused_when_made_and_when_read(
    changes: dict[str, Any], complaint: str
) -> None:
    fields = {
        "epoch": 1,
        "replication_factor": 3,
        "members": stable.members,
        "old_members": None,
        **changes,
    }
    with pytest.raises(ValueError, match=complaint):
        ClusterMap(**fields)
    with pytest.raises(PeerError, match=complaint):
        ClusterMap.decode(msgspec.json.encode({"format": 1, **fields}))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("node_id", ["", "a b", "a/b", "..", ".hidden", "-flag", "n" * 65, "nöde", "a\n", "a\x00"]),
        ("store_id", ["", "0" * 31, "0" * 33, "G" * 32, "F" * 32, "0" * 32 + "\n"]),
        ("host", ["", "a b", "h" * 254, "a/b", "user@host", "höst", "h\n"]),
        ("zone", ["z" * 65, "a b", "\n"]),
        ("http_port", [0, -1, 65_536, 1 << 70]),
        ("link_port", [0, -1, 65_536, 8_001]),
    ],
)
def test_a_member_with_a_field_out_of_bounds_is_refused(field: str, wrong: list[Any]) -> None:
    for value in wrong:
        with pytest.raises(ValueError, match=r"is no|is not 1 to|for both HTTP and links"):
            member(1, **{field: value})
        broken = {**msgspec.to_builtins(member(1)), field: value}
        data = document(stable, members=[broken, *members(2, 3)])
        with pytest.raises(PeerError, match="not a cluster map"):
            ClusterMap.decode(data)


@pytest.mark.parametrize("host", ["localhost", "10.0.0.1", "::1", "fe80::1%eth0", "node_1.example"])
def test_hosts_are_names_or_addresses(host: str) -> None:
    assert member(1, host=host).host == host


def test_a_process_follows_only_newer_maps() -> None:
    assert joint.can_follow(stable)
    assert after.can_follow(joint)
    assert after.can_follow(stable)
    assert not stable.can_follow(joint)
    assert not stable.can_follow(stable)
    assert "older than epoch 3" in str(stable.objection_after(after))
    assert "the map that is known" in str(stable.objection_after(stable))
    other = ClusterMap(1, 3, members(1, 2, 3))
    assert "a different map of that epoch" in str(other.objection_after(stable))


def test_a_change_must_begin_where_the_one_before_it_ended() -> None:
    strangers = ClusterMap(2, 3, members(7, 8, 9), members(1, 2, 7))
    assert "not those that epoch 1 led to" in str(strangers.objection_after(stable))
    elsewhere = ClusterMap(3, 3, members(2, 3, 4))
    assert "not those that epoch 2 led to" in str(elsewhere.objection_after(joint))
    next_joint = ClusterMap(4, 3, members(7, 8, 9), members(2, 3, 4))
    assert "not those that epoch 2 led to" in str(next_joint.objection_after(joint))
    assert after.begin_change(members(7, 8, 9)).can_follow(joint)
    # What happened in epochs that were missed altogether cannot be known.
    assert elsewhere.can_follow(stable)


def test_the_replication_factor_of_a_cluster_stays() -> None:
    assert "changes from 3 to 2" in str(ClusterMap(3, 2, after.members).objection_after(joint))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_every_history_of_changes_can_be_followed_with_gaps_and_never_backwards(seed: int) -> None:
    rng = random.Random(seed)
    history = [ClusterMap(1, 2, members(1, 2))]
    while len(history) < 9:
        numbers = rng.sample(range(1, 10), rng.randint(2, 6))
        if {f"node-{n}" for n in numbers} == {m.node_id for m in history[-1].members}:
            continue
        change = history[-1].begin_change(members(*numbers))
        history += [change, change.finish_change()]
    for i, earlier in enumerate(history):
        for j, later in enumerate(history):
            assert later.can_follow(earlier) == (j > i)
            assert (later == earlier) == (i == j)


@pytest.mark.parametrize("cluster_map", [stable, joint, after])
def test_a_map_is_read_back_as_it_was_written(cluster_map: ClusterMap) -> None:
    data = cluster_map.encode()
    again = ClusterMap.decode(data)
    assert again == cluster_map
    assert again.encode() == data
    assert again.placements == cluster_map.placements
    assert data.startswith(b'{"format":1,')


def test_equal_maps_have_equal_bytes_whatever_the_order_of_members() -> None:
    shuffled = ClusterMap(1, 3, stable.members[::-1])
    assert shuffled == stable
    assert shuffled.encode() == stable.encode()


def test_the_greatest_map_stays_within_its_bound() -> None:
    def largest(number: int) -> Member:
        return Member(
            node_id=f"{number:064d}",
            store_id=f"{number:032x}",
            host=f"{number:0253d}",
            http_port=60_000,
            link_port=60_001,
            zone="z" * 64,
        )

    old, new = (tuple(largest(n + start) for n in range(members_max)) for start in (0, members_max))
    data = ClusterMap(epoch_max - 1, members_max, new, old).encode()
    assert len(data) <= map_bytes_max
    assert ClusterMap.decode(data).epoch == epoch_max - 1


def test_a_map_cut_at_any_byte_is_a_clean_error() -> None:
    data = joint.encode()
    for size in range(len(data)):
        with pytest.raises(PeerError):
            ClusterMap.decode(data[:size])
    with pytest.raises(PeerError):
        ClusterMap.decode(data + b"}")


def test_every_byte_of_a_map_may_be_any_other_without_an_exception_from_inside() -> None:
    data = ClusterMap(2, 1, members(2), members(1)).encode()
    for position in range(len(data)):
        for byte in range(0, 256, 3):
            corrupt = data[:position] + bytes((byte,)) + data[position + 1 :]
            try:
                cluster_map = ClusterMap.decode(corrupt)
            except PeerError:
                continue
            assert ClusterMap.decode(cluster_map.encode()) == cluster_map


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"1",
        b"\xff\xfe",
        b'{"\xff":1}',
        b"[" * 400_000,
        b'{"format":' + b"[" * 400_000,
        b'{"format":1,"members":' + b"[" * 400_000,
        b'{"unknown":' + b"[" * 400_000,
        b" " * (map_bytes_max + 1),
    ],
)
def test_garbage_is_a_clean_error(data: bytes) -> None:
    with pytest.raises(PeerError, match="cluster map"):
        ClusterMap.decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_map_or_a_clean_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        ClusterMap.decode(data)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 2}, r"2 - at `\$\.format`"),
        ({"format": "1"}, r"\$\.format"),
        ({"epoch": 1.5}, r"\$\.epoch"),
        ({"epoch": "1"}, r"\$\.epoch"),
        ({"epoch": True}, r"\$\.epoch"),
        ({"epoch": 10**40}, "an epoch is 1 to"),
        ({"replication_factor": None}, r"\$\.replication_factor"),
        ({"members": {}}, r"\$\.members"),
        ({"members": [1]}, r"\$\.members"),
        ({"members": [{}]}, "node_id"),
        ({"members": [{**msgspec.to_builtins(member(1)), "weight": 2}]}, "unknown field `weight`"),
        ({"quorum": "any"}, "unknown field `quorum`"),
    ],
)
def test_a_document_of_another_shape_is_refused_by_the_name_of_the_field(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(PeerError, match=complaint):
        ClusterMap.decode(document(stable, **changes))


def test_a_document_of_a_newer_format_is_recognised_before_its_unknown_fields() -> None:
    with pytest.raises(PeerError, match="format"):
        ClusterMap.decode(b'{"format":2,"shards":{},"epoch":1}')


def test_a_missing_field_is_refused() -> None:
    whole = msgspec.json.decode(stable.encode())
    for name in whole:
        without = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(PeerError, match=f"missing required field `{name}`"):
            ClusterMap.decode(msgspec.json.encode(without))


@pytest.mark.parametrize("nodes", [3, 10, 50])
def test_placements_made_in_pieces_are_the_same_and_none_shows_before_all_are_made(
    nodes: int,
) -> None:
    stable = ClusterMap(1, 3, members(*range(1, nodes + 1)))
    joint = stable.begin_change(members(*range(1, nodes + 2)))
    for at_once in (stable, joint):
        in_pieces = ClusterMap.decode(at_once.encode())
        pieces = 0
        for _ in in_pieces.prepare():
            assert "placements" not in vars(in_pieces)
            pieces += 1
        assert pieces >= 2 + slot_count // slots_in_a_piece
        made = vars(in_pieces)["placements"]
        assert made == at_once.placements
        assert in_pieces.ring == at_once.ring
        assert in_pieces.ring.slots == at_once.ring.slots
        assert in_pieces.old_ring.slots == at_once.old_ring.slots
        assert in_pieces.placements is made, "nothing is made again"
        assert not list(in_pieces.prepare())
