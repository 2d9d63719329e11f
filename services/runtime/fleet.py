"""The nodes as one process sees them that asks them: a link to each, and whom to ask first.

The map says who the nodes are; the links say who answers. A gateway's eventual reads ask the first
live owner of a slot, and a replicator's acknowledgement of a write waits for the very same, so the
order is made by one rule for all: live owners first, those that still catch up behind them, silent
or unreachable ones last, and otherwise as the placement has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from services.core.cluster import ClusterMap, Member
from services.core.placement import Placement
from services.core.ring import slot_count
from services.core.wire import Hello, Role
from services.runtime.clock import Clock
from services.runtime.link_limits import silent_s_max
from services.runtime.opening import Admit
from services.runtime.peer import OwnedLink

look_s: Final = 0.1


class FleetNode:
    """One node and the link to it."""

    __slots__ = (
        "catching_up",
        "link",
        "live",
        "member",
        "name",
        "node_id",
        "rank",
        "writes_unheard",
    )

    def __init__(self, member: Member, link: OwnedLink) -> None:
        self.node_id = member.node_id
        # As clients are told it.
        self.name = member.node_id.encode("ascii")
        self.member = member
        self.link = link
        self.live = False
        # A node tells so itself, when a link to it comes up and when that changes.
        self.catching_up = False
        self.rank = 2
        # Of a replicator: how many writes it was sent in messages of many, and has not told of.
        self.writes_unheard = 0

    def look(self) -> bool:
        """Whether its place in the order has changed."""
        self.live = self.link.connected and self.link.silent_s() < silent_s_max
        rank = 2 if not self.live else 1 if self.catching_up else 0
        changed, self.rank = rank != self.rank, rank
        return changed


def node_state(node: FleetNode) -> str:
    """How it is, in a word."""
    if not node.link.connected:
        return "unreachable"
    if not node.live:
        return "silent"
    return "catching_up" if node.catching_up else "live"


class Owner(NamedTuple):
    """An owner of a slot: its bit in the placement, and the node."""

    bit: int
    node: FleetNode


class Route(NamedTuple):
    """A slot in this moment: its placement and the epoch of that, which go together in all that
    is asked, and its owners in the order in which to ask."""

    epoch: int
    placement: Placement
    owners: tuple[Owner, ...]
    # Those of them that have all the data of the slot, which new owners have not, while the map
    # is joint.
    readers: tuple[FleetNode, ...]


Serves = Callable[[Placement, int], bool]
"""Whether a slot of this placement can be served by these of its owners, told by their bits."""

Connect = Callable[[Member], OwnedLink]
"""Makes a link to a node that is admitted only if it is that node, with that store."""


class Fleet:
    """Keeps a link to every node of the newest map. `adopt` a map before anything is routed."""

    def __init__(self, connect: Connect, clock: Clock) -> None:
        self.map: ClusterMap | None = None
        self.epoch = 0
        self.nodes: dict[str, FleetNode] = {}
        # Another number whenever owners may be asked in another order.
        self.order = 0
        # Answers of nodes that were none to what they had been asked.
        self.senseless = 0
        # Told of a node whose link came up or went down, or that caught up.
        self.on_change: Callable[[FleetNode], None] = lambda node: None
        self._connect = connect
        self._clock = clock
        self._routes: list[Route | None] = [None] * slot_count
        self._by_placement: dict[int, Route] = {}
        # How many slots have each placement, and what was counted of them.
        self._placements: list[tuple[Placement, int]] = []
        self._counted: dict[Serves, int] = {}
        self._closed = False

    def start(self) -> None:
        """Look after the nodes from now on."""
        self._clock.call_later(look_s, self._look)

    def adopt(self, new: ClusterMap) -> list[OwnedLink]:
        """Route by this map; the links to nodes that are in it no more, for the caller to close."""
        known = self.nodes
        nodes: dict[str, FleetNode] = {}
        dropped = []
        for node_id, member in new.nodes.items():
            node = known.get(node_id)
            if node is None or node.member != member:
                if node is not None:
                    dropped.append(node.link)
                node = FleetNode(member, self._connect(member))
                node.link.start()
            nodes[node_id] = node
        dropped += [node.link for node_id, node in known.items() if node_id not in nodes]
        # Made now, not under the first request that needs a placement.
        slots = Counter(map(id, new.placements))
        by_id = {id(placement): placement for placement in new.placements}
        self._placements = [(by_id[place], count) for place, count in slots.items()]
        self.map, self.epoch, self.nodes = new, new.epoch, nodes
        self._forget_routes()
        return dropped

    def route(self, slot: int) -> Route:
        return self._routes[slot] or self._make_route(slot)

    def catching_up(self, node_id: str, catching_up: bool) -> None:
        """A node has told how it is."""
        node = self.nodes.get(node_id)
        if node is not None and node.catching_up != catching_up:
            node.catching_up = catching_up
            self.noticed(node)

    def noticed(self, node: FleetNode) -> None:
        """Something happened to this node's link; its place may be another one now."""
        if node.look():
            self._forget_routes()
            self.on_change(node)

    @property
    def pending(self) -> int:
        """Requests to nodes that have not been answered yet, of whatever kind."""
        return sum(node.link.pending for node in self.nodes.values())

    def slots_without(self, serves: Serves) -> int:
        """How many slots cannot be served by those that are live. Asked again it is counted again
        only if another is live since; 0 without a map."""
        if all(node.live for node in self.nodes.values()):
            return 0
        count = self._counted.get(serves)
        if count is None:
            live = {node_id for node_id, node in self.nodes.items() if node.live}
            count = self._counted[serves] = sum(
                slots
                for placement, slots in self._placements
                if not serves(placement, placement.mask(live))
            )
        return count

    @property
    def slots_without_quorum(self) -> int:
        """How many have too few live owners for what is strong."""
        return self.slots_without(_has_quorum)

    def close(self) -> list[OwnedLink]:
        """Look no more; the links, for the caller to close."""
        self._closed = True
        return [node.link for node in self.nodes.values()]

    def _look(self) -> None:
        for node in list(self.nodes.values()):
            self.noticed(node)
        if not self._closed:
            self._clock.call_later(look_s, self._look)

    def _forget_routes(self) -> None:
        self.order += 1
        self._routes = [None] * slot_count
        self._by_placement = {}
        self._counted = {}

    def _make_route(self, slot: int) -> Route:
        if self.map is None:
            raise RuntimeError("adopt a map first")
        placement = self.map.placements[slot]
        # Slots with the same owners share their placement, so a few routes serve all slots.
        route = self._by_placement.get(id(placement))
        if route is None:
            owners = [
                Owner(1 << index, self.nodes[node_id])
                for index, node_id in enumerate(placement.owners)
            ]
            owners.sort(key=lambda owner: owner.node.rank)
            readers = tuple(node for bit, node in owners if bit & placement.old_mask)
            route = Route(self.epoch, placement, tuple(owners), readers)
            self._by_placement[id(placement)] = route
        self._routes[slot] = route
        return route


def _has_quorum(placement: Placement, live: int) -> bool:
    return placement.is_quorum(live)


def only_member(member: Member) -> Admit:
    """Admit this node with this store alone: one that lost its directory has forgotten what it
    promised, whatever its name is."""

    def admit(hello: Hello) -> str | None:
        if (hello.role, hello.id) != (Role.NODE, member.node_id):
            return (
                f"expected node {member.node_id} here, found {hello.role.name.lower()} {hello.id}"
            )
        if hello.store_id.hex() != member.store_id:
            return (
                f"node {member.node_id} has store {hello.store_id.hex()} here, and the cluster "
                f"knows it with store {member.store_id}: it has lost its directory, or another "
                "process has the same NODE_ID"
            )
        return None

    return admit
