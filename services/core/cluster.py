"""The cluster map: who is in the cluster, in which epoch, and how many make a quorum.

    epoch 1        epoch 2            epoch 3        epoch 4            epoch 5
    stable   ──►   joint      ──►     stable   ──►   joint      ──►     stable  …
             begin_change      finish_change   begin_change      finish_change

Membership changes one change at a time. While one runs, the map is *joint*: it holds the old
and the new membership, and whatever needs a majority needs one of each placement. So two
processes that differ by one epoch never decide on disjoint majorities. Odd epochs are stable
and even ones joint, always.

A map travels, and lies on disk, as JSON. It is the whole truth, never a difference, so that a
process that missed some epochs takes the newest and goes on. What the map is *not*: it says
nothing of who is up, and it does not choose its own successor; PostgreSQL orders the epochs.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec

from services.core.errors import PeerError
from services.core.placement import Placement
from services.core.ring import Owners, OwnershipChange, Ring, RingMember, difference, finished

# Well above what 16384 slots can be spread over sensibly, and it bounds what a peer can make us
# sort and hash.
members_max = 256
# An epoch is a bigint in PostgreSQL.
epoch_max = (1 << 63) - 1
# Two full memberships with every name at its longest take less than this.
map_bytes_max = 512 * 1024
port_max = 65_535
# Placements made in pieces are so many in each: a millisecond's, if no two have the same owners.
slots_in_a_piece = 1_024

# A node id is also the name of a directory; it and a zone appear in metrics and commands.
node_id_chars_max = 64
node_id_pattern = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{node_id_chars_max - 1}}}")
zone_pattern = re.compile(rf"[A-Za-z0-9._-]{{0,{node_id_chars_max}}}")
_store_id = re.compile(r"[0-9a-f]{32}")
# A host name or an IPv4 or IPv6 address; whether it can be reached shows when it is dialled.
_host = re.compile(r"[A-Za-z0-9._:%-]{1,253}")


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node as the map knows it. Making one checks each field: `ValueError`.

    `store_id` is the random name (16 bytes in hex) of the directory that holds the node's
    promises. A node that lost it is another node, whatever it is called.
    """

    node_id: str
    store_id: str
    host: str
    http_port: int
    link_port: int
    zone: str = ""

    def __post_init__(self) -> None:
        for name, pattern, text in (
            ("node id", node_id_pattern, self.node_id),
            ("store id", _store_id, self.store_id),
            ("host", _host, self.host),
            ("zone", zone_pattern, self.zone),
        ):
            if not pattern.fullmatch(text):
                raise ValueError(f"{text[:80]!r} is no {name}; it must match {pattern.pattern}")
        for name, port in (("HTTP", self.http_port), ("link", self.link_port)):
            if not 1 <= port <= port_max:
                raise ValueError(f"{name} port {port} of {self.node_id} is not 1 to {port_max}")
        if self.http_port == self.link_port:
            raise ValueError(f"{self.node_id} has port {self.http_port} for both HTTP and links")


# Not slotted, unlike other values: what is derived from a map is kept in its dictionary.
@dataclass(frozen=True)
class ClusterMap:
    """One epoch's truth. Equal maps have equal bytes; members are kept in order of their ids.

    `old_members` is None in a stable epoch. In a joint one it is the membership that is being
    left, and `members` the one that is being entered. Making a map checks all of it:
    `ValueError`.
    """

    epoch: int
    replication_factor: int
    members: tuple[Member, ...]
    old_members: tuple[Member, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.epoch <= epoch_max:
            raise ValueError(f"an epoch is 1 to {epoch_max}, not {self.epoch}")
        if self.replication_factor < 1:
            raise ValueError(f"a replication factor is at least 1, not {self.replication_factor}")
        if self.is_joint != (self.epoch % 2 == 0):
            kind = "joint" if self.is_joint else "stable"
            raise ValueError(f"epoch {self.epoch} cannot be {kind}: joint epochs are the even ones")
        object.__setattr__(self, "members", self._checked(self.members))
        if self.old_members is not None:
            object.__setattr__(self, "old_members", self._checked(self.old_members))
            _check_stores(self.old_members, self.members)

    def _checked(self, members: Iterable[Member]) -> tuple[Member, ...]:
        ordered = tuple(sorted(members, key=lambda member: member.node_id))
        if len(ordered) > members_max:
            raise ValueError(f"{len(ordered)} members are more than {members_max}")
        if len(ordered) < self.replication_factor:
            raise ValueError(
                f"{self.replication_factor} replicas need as many members; there are {len(ordered)}"
            )
        _check_distinct("node id", (member.node_id for member in ordered))
        _check_distinct("store id", (member.store_id for member in ordered))
        _check_distinct(
            "address",
            (
                f"{member.host.lower()} port {port}"
                for member in ordered
                for port in (member.http_port, member.link_port)
            ),
        )
        return ordered

    # What the map says.

    @property
    def is_joint(self) -> bool:
        return self.old_members is not None

    @property
    def is_stable(self) -> bool:
        return self.old_members is None

    @cached_property
    def nodes(self) -> dict[str, Member]:
        """Every node of either membership by its id, with its newest address."""
        return {member.node_id: member for member in (*(self.old_members or ()), *self.members)}

    @cached_property
    def ring(self) -> Ring:
        """Where slots are, or in a joint epoch, where they are going."""
        return self._ring_of(self.members)

    @cached_property
    def old_ring(self) -> Ring:
        """Where slots come from; the same ring as `ring` in a stable epoch."""
        return self.ring if self.old_members is None else self._ring_of(self.old_members)

    def _ring_of(self, members: tuple[Member, ...]) -> Ring:
        return finished(self._ring_in_pieces(members))

    def _ring_in_pieces(self, members: tuple[Member, ...]) -> Generator[None, None, Ring]:
        placed = (RingMember(member.node_id, member.zone) for member in members)
        return Ring.in_pieces(placed, self.replication_factor)

    @cached_property
    def placements(self) -> tuple[Placement, ...]:
        """The placement of each slot: `cluster_map.placements[slot_of(storage_key)]`.

        Made at the first use, with the rings: 2 ms for 3 nodes, 25 for 50, and 90 for 256. Whoever
        routes by a map touches it when the map is adopted, not under the first request; and whoever
        must not be held up so long by it calls `prepare` before.
        """
        return finished(self._placements_in_pieces())

    def prepare(self) -> Iterator[None]:
        """Make the rings and the placements, with a yield after each millisecond or so. Nothing
        is made again that has been made."""
        made = self.__dict__
        if "ring" not in made:
            made["ring"] = yield from self._ring_in_pieces(self.members)
        if self.old_members is not None and "old_ring" not in made:
            made["old_ring"] = yield from self._ring_in_pieces(self.old_members)
        if "placements" not in made:
            made["placements"] = yield from self._placements_in_pieces()

    def _placements_in_pieces(self) -> Generator[None, None, tuple[Placement, ...]]:
        shared: dict[tuple[Owners, Owners], Placement] = {}
        placements: list[Placement] = []
        of: tuple[Owners, Owners] | None = None
        for old, new in zip(self.old_ring.slots, self.ring.slots, strict=True):
            # Next to each other most slots have the same owners, and rings share their tuples: to
            # see that takes a third of the time of hashing all the names.
            if of is None or old is not of[0] or new is not of[1]:
                of = (old, new)
                placement = shared.get(of) or shared.setdefault(of, Placement.of(old, new))
            placements.append(placement)
            if not len(placements) % slots_in_a_piece:
                yield
        return tuple(placements)

    def owners(self, slot: int) -> Owners:
        """The owners of a slot in the order in which to ask them, old ones first."""
        return self.placements[slot].owners

    def is_quorum(self, slot: int, acked: Iterable[str]) -> bool:
        """Whether these nodes make a majority of the slot's placement, of both while joint.

        For a request in flight keep the placement and a mask instead.
        """
        placement = self.placements[slot]
        return placement.is_quorum(placement.mask(acked))

    def movement(self) -> dict[int, OwnershipChange]:
        """What this change moves: by slot, the nodes that gain it and those that lose it."""
        return difference(self.old_ring, self.ring)

    # How one map follows another.

    def begin_change(self, members: Iterable[Member]) -> ClusterMap:
        """The joint map that leads from this stable one to other members; `ValueError` if it
        is not allowed. A node that stays keeps its store, but may change its address or zone."""
        if self.is_joint:
            raise ValueError(f"epoch {self.epoch} is in the middle of another change")
        joint = ClusterMap(self.epoch + 1, self.replication_factor, tuple(members), self.members)
        if joint.members == self.members:
            raise ValueError("the new membership is the one that there is already")
        return joint

    def finish_change(self) -> ClusterMap:
        """The stable map of the new members alone, for when all of them have their data."""
        if self.is_stable:
            raise ValueError(f"epoch {self.epoch} is stable; there is no change to finish")
        return ClusterMap(self.epoch + 1, self.replication_factor, self.members)

    def can_follow(self, current: ClusterMap) -> bool:
        """Whether a process that holds `current` may adopt this map."""
        return self.objection_after(current) is None

    def objection_after(self, current: ClusterMap) -> str | None:
        """Why this map may not follow `current`, or None if it may.

        A process that was away may miss epochs, so only what must hold in between is demanded:
        the epoch grows, the replication factor stays, and a change begins where the one before
        it ended.
        """
        if self.epoch < current.epoch:
            return f"epoch {self.epoch} is older than epoch {current.epoch}"
        if self.epoch == current.epoch:
            same = "the map that is known" if self == current else "a different map of that epoch"
            return f"epoch {self.epoch} is not newer; it is {same}"
        if self.replication_factor != current.replication_factor:
            return (
                f"the replication factor changes from {current.replication_factor} to "
                f"{self.replication_factor}"
            )
        # A change that is under way ends in the next epoch, and began in the one before.
        ends = current.epoch + current.is_joint
        begins = self.epoch - self.is_joint
        beginning = self.members if self.old_members is None else self.old_members
        if begins == ends and beginning != current.members:
            return f"its members of epoch {ends} are not those that epoch {current.epoch} led to"
        return None

    # How a map travels.

    def encode(self) -> bytes:
        """JSON; equal maps give equal bytes."""
        return msgspec.json.encode(
            _Document(
                format=1,
                epoch=self.epoch,
                replication_factor=self.replication_factor,
                members=self.members,
                old_members=self.old_members,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> ClusterMap:
        """The map of these bytes; `PeerError`, saying what is wrong, if they are not one."""
        if len(data) > map_bytes_max:
            raise PeerError(f"a cluster map of {len(data)} bytes is above {map_bytes_max}")
        try:
            document = msgspec.json.decode(data, type=_Document)
            return cls(
                document.epoch,
                document.replication_factor,
                document.members,
                document.old_members,
            )
        except ValueError as error:
            # Of msgspec (its errors and those of a broken UTF-8 key are ValueErrors) and of ours.
            raise PeerError(f"not a cluster map: {error}") from error


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in the JSON. `format` stays first in all formats to come, so that a reader
    that is too old complains of it, and not of a field that it does not know."""

    format: Literal[1]
    epoch: int
    replication_factor: int
    members: tuple[Member, ...]
    old_members: tuple[Member, ...] | None


def _check_distinct(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is given to two members")
        seen.add(name)


def _check_stores(old: tuple[Member, ...], new: tuple[Member, ...]) -> None:
    """Through a change a node keeps its store and a store its node: a replica that forgot its
    promises must not be counted as its old self. Addresses may pass from a leaving node to a
    new one, because a link's greeting names the node that answers."""
    store_of = {member.node_id: member.store_id for member in old}
    node_of = {member.store_id: member.node_id for member in old}
    for member in new:
        if store_of.get(member.node_id, member.store_id) != member.store_id:
            raise ValueError(
                f"node {member.node_id!r} stays but comes with another store; a node that lost "
                "its directory must join under a new id"
            )
        if node_of.get(member.store_id, member.node_id) != member.node_id:
            raise ValueError(
                f"node {member.node_id!r} comes with the store of {node_of[member.store_id]!r}"
            )
