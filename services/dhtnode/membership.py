"""What a node knows of the cluster: the map, and whether it has all that it missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from services.core.cluster import ClusterMap
from services.core.errors import PeerError
from services.core.wire import Role
from services.dhtnode.replica import Replica
from services.runtime.peer import Peer

map_name: Final = "map"


class Membership:
    """The newest map that was heard of, and the replicators that are connected.

    A node that was away catches up on what replicators kept for it. It is through once every
    replicator that is connected has said so; a node that knows of none has nobody to ask, and
    counts as catching up. Whether it is asked for reads meanwhile is for those who ask.

    What must be durable is the epoch, and the replica logs that before anything is answered in it.
    The map is kept besides, in its own time, so that a node that starts alone knows one. A crash
    may lose the newest, or all: the node then knows none until a replicator sends it again, as it
    does on every new link.
    """

    def __init__(self, replica: Replica, keep: Callable[[bytes], None]) -> None:
        self.map: ClusterMap | None = None
        self.catching_up = True
        self._replica = replica
        self._keep = keep
        self._connected: set[Peer] = set()
        self._through: set[Peer] = set()

    def remember(self, data: bytes) -> None:
        """Begin with the map that an earlier run has kept, unless our epoch is past it: that one
        shows placements which this replica has left for good."""
        kept = ClusterMap.decode(data)
        if kept.epoch >= self._replica.epoch:
            self.map = kept

    def adopt(self, data: bytes) -> None:
        """Take a map that a replicator sent, if it is newer than ours; its epoch is logged, and
        the map kept. PeerError if it cannot follow ours. On a disk without room for an epoch we
        stay in ours, which is what is answered."""
        received = ClusterMap.decode(data)
        known = self.map
        if known is not None and received.epoch <= known.epoch:
            # The map may have been kept by a run that was killed before its epoch was durable.
            self._replica.adopt_epoch(known.epoch)
            return
        if received.epoch < self._replica.epoch:
            # Our map was lost, and this is not the one that it was.
            return
        if known is not None and (objection := received.objection_after(known)) is not None:
            raise PeerError(f"this map cannot follow ours: {objection}")
        self._replica.adopt_epoch(received.epoch)
        if self._replica.epoch < received.epoch:
            return
        # Made now, not under the first request that needs a placement.
        _ = received.placements
        self.map = received
        self._keep(data)

    def came(self, peer: Peer) -> None:
        if peer.hello.role is Role.REPLICATOR:
            self._connected.add(peer)

    def went(self, peer: Peer) -> None:
        self._connected.discard(peer)
        self._through.discard(peer)
        self._look()

    def caught_up(self, peer: Peer) -> None:
        """This replicator has nothing more for us."""
        if peer in self._connected:
            self._through.add(peer)
            self._look()

    def _look(self) -> None:
        if self._through and self._through >= self._connected:
            self.catching_up = False
