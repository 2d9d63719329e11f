"""The ring: which nodes hold a slot.

    slot of a key:      the top 14 bits of a 64-bit mmh3 of its storage key
    position of a slot: the first hash that belongs to it
    virtual nodes:      150 points per node, the mmh3 of `node-id#0` to `node-id#149`

A slot's preference list is made by going clockwise (to greater hashes, then around) from the
slot's position: first the first node of each zone as it comes up, then, if there are fewer zones
than replicas, the nodes that were passed over, nearest first. Nodes without a zone share the zone
named "". A node that joins takes slots from others and a node that leaves gives its own away;
nothing ever moves between two nodes that both stay.

The hash is the first half of the x64 variant with seed 0, unsigned. It is part of the data on
every disk: changing it moves every key.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

from mmh3 import mmh3_x64_128_utupledigest

slot_bits = 14
slot_count = 1 << slot_bits
_slot_shift = 64 - slot_bits
# A slot's keys are compared between replicas in this many parts, by the next bits of the hash.
leaf_bits = 6
leaf_count = 1 << leaf_bits
_place_shift = _slot_shift - leaf_bits
# Enough that the fullest of 50 nodes holds at most a quarter more than its share.
virtual_nodes_per_node = 150
_seed = 0
# A placement in pieces passes so many virtual nodes in each, which takes about a millisecond.
_points_in_a_piece = 512

T = TypeVar("T")
# The nodes that hold a slot, in the order in which to ask them.
Owners = tuple[str, ...]


class RingMember(NamedTuple):
    node_id: str
    zone: str = ""


class OwnershipChange(NamedTuple):
    """The nodes that become owners of a slot, and those that cease to be."""

    gained: Owners
    lost: Owners


def slot_of(storage_key: bytes) -> int:
    """The slot of a storage key: one hash, about 0.15 µs."""
    return mmh3_x64_128_utupledigest(storage_key, _seed)[0] >> _slot_shift


def place_of(storage_key: bytes) -> int:
    """The slot of a storage key and its leaf there, as one number: `slot << leaf_bits | leaf`."""
    return mmh3_x64_128_utupledigest(storage_key, _seed)[0] >> _place_shift


@dataclass(slots=True, frozen=True)
class Ring:
    """One membership's placement of every slot.

    Looking a key up is one hash and one list index: `ring.slots[slot_of(storage_key)]`. Slots
    with the same owners share one tuple. The order in which members are given does not matter.
    With fewer members than the replication factor, all of them own every slot.
    """

    members: tuple[RingMember, ...]
    replication_factor: int
    slots: tuple[Owners, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members = _checked(self.members, self.replication_factor)
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "slots", finished(_place(members, self.replication_factor)))

    @classmethod
    def in_pieces(
        cls, members: Iterable[RingMember], replication_factor: int
    ) -> Generator[None, None, Ring]:
        """The same for who must not be held up: what is returned at the end is the ring."""
        checked = _checked(members, replication_factor)
        slots = yield from _place(checked, replication_factor)
        ring = object.__new__(cls)
        object.__setattr__(ring, "members", checked)
        object.__setattr__(ring, "replication_factor", replication_factor)
        object.__setattr__(ring, "slots", slots)
        return ring


def finished(pieces: Generator[None, None, T]) -> T:
    """All pieces at once, and what they make."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            made: T = end.value
            return made


def _checked(members: Iterable[RingMember], replication_factor: int) -> tuple[RingMember, ...]:
    if replication_factor < 1:
        raise ValueError(f"a ring needs one replica at least, not {replication_factor}")
    ordered = tuple(sorted(RingMember(*member) for member in members))
    if not ordered:
        raise ValueError("a ring needs one member at least")
    seen: set[str] = set()
    for node_id, _ in ordered:
        if not node_id:
            raise ValueError("a member of the ring has an empty node id")
        if node_id in seen:
            raise ValueError(f"node {node_id!r} is twice in the ring")
        seen.add(node_id)
    return ordered


def difference(old: Ring, new: Ring) -> dict[int, OwnershipChange]:
    """For each slot whose set of owners differs, in order of slots: who gains it, who loses it."""
    # Few pairs of lists are distinct, and their tuples are shared: compare each pair once.
    changes: dict[tuple[int, int], OwnershipChange] = {}
    found: dict[int, OwnershipChange] = {}
    for slot, (before, after) in enumerate(zip(old.slots, new.slots, strict=True)):
        pair = (id(before), id(after))
        change = changes.get(pair)
        if change is None:
            change = OwnershipChange(
                gained=tuple(node for node in after if node not in before),
                lost=tuple(node for node in before if node not in after),
            )
            changes[pair] = change
        if change.gained or change.lost:
            found[slot] = change
    return found


_Point = tuple[int, str, str]


def _arcs(members: tuple[RingMember, ...]) -> Generator[None, None, list[list[_Point]]]:
    """Every virtual node as (hash, node id, zone), against the clock; node ids settle equal hashes.
    The circle is cut into arcs of a piece or less each, as evenly as hashes are spread, so that
    neither sorting them nor going through one takes longer than a piece may."""
    arc_bits = (len(members) * virtual_nodes_per_node // _points_in_a_piece).bit_length()
    arcs: list[list[_Point]] = [[] for _ in range(1 << arc_bits)]
    shift = 64 - arc_bits
    unpaused = 0
    for node_id, zone in members:
        encoded = node_id.encode()
        for number in range(virtual_nodes_per_node):
            point = mmh3_x64_128_utupledigest(b"%b#%d" % (encoded, number), _seed)[0]
            arcs[point >> shift].append((point, node_id, zone))
        unpaused += virtual_nodes_per_node
        if unpaused >= _points_in_a_piece:
            unpaused = 0
            yield
    arcs.reverse()
    for arc in arcs:
        arc.sort(reverse=True)
        yield
    return arcs


def _place(
    members: tuple[RingMember, ...], replication_factor: int
) -> Generator[None, None, tuple[Owners, ...]]:
    """The owners of every slot, in one sweep against the clock.

    Coming from behind, the point passed last is the nearest one ahead. So a dictionary in which
    each point moves its node to the end holds, read backwards, all nodes in the order in which a
    walk from here would meet them, and another one does the same for the first node of each
    zone. No walk is ever made, however unevenly nodes and zones are spread.
    """
    nearest: dict[str, None] = {}
    nearest_of_zone: dict[str, str] = {}
    shared: dict[Owners, Owners] = {}

    def passed(node_id: str, zone: str) -> None:
        nearest.pop(node_id, None)
        nearest[node_id] = None
        nearest_of_zone.pop(zone, None)
        nearest_of_zone[zone] = node_id

    def owners() -> Owners:
        chosen = tuple(islice(reversed(nearest_of_zone.values()), replication_factor))
        missing = replication_factor - len(chosen)
        if missing:
            # At most the chosen stand between us and the nearest that are missing.
            ahead = islice(reversed(nearest), replication_factor)
            chosen += tuple([node_id for node_id in ahead if node_id not in chosen][:missing])
        return shared.setdefault(chosen, chosen)

    arcs = yield from _arcs(members)
    # Once around first, so that the last slots know what comes after the end of the circle.
    for arc in arcs:
        for _, node_id, zone in arc:
            passed(node_id, zone)
        yield

    slots: list[Owners] = [()] * slot_count
    upper = slot_count
    for index, arc in enumerate(arcs):
        for point, node_id, zone in arc:
            # The slots from here up to the last point all have this point behind them.
            lower = (point >> _slot_shift) + 1
            if lower < upper:
                slots[lower:upper] = [owners()] * (upper - lower)
                upper = lower
            passed(node_id, zone)
        # To free all points at the end would take several pieces' time.
        arcs[index] = []
        yield
    slots[:upper] = [owners()] * upper
    return tuple(slots)
