"""What a node knows of the cluster: the map, and whether it has all that it missed."""

from __future__ import annotations

from collections.abc import Callable

from services.core.cluster import ClusterMap
from services.core.errors import PeerError
from services.core.messages import STATE, encode_state
from services.core.wire import Role
from services.dhtnode.replica import Replica
from services.runtime.peer import Peer


class Membership:
    """The newest map that was heard of, and the peers that are connected.

    A node that was away catches up on what replicators kept for it. It is through once every
    replicator that lives has said so: every one that is connected, by whichever end has dialled,
    while none of those it is to connect to is still untried. A replicator's word holds as long as
    the connection on which it was said: on the next one it may have kept something meanwhile. A
    node that nobody has told so in this life counts as catching up.

    Whoever asks for reads is told how it is, and decides. What could not be said, and that somebody
    was tried in vain, is seen by the next `look`.

    What must be durable is the epoch, and the replica logs that before anything is answered in it.
    The map is kept besides, in its own time, so that a node that starts alone knows one. A crash
    may lose the newest, or all: the node then knows none until a replicator sends it again, as it
    does on every new link.
    """

    def __init__(self, replica: Replica, keep: Callable[[bytes], None]) -> None:
        self.map: ClusterMap | None = None
        self.catching_up = True
        # Whether a replicator that may have something for us has not even been tried.
        self.untried: Callable[[], bool] = lambda: False
        self._replica = replica
        self._keep = keep
        # Replicators by their ids: one has a connection of its own making, and one of ours.
        self._connected: dict[str, set[Peer]] = {}
        # Those that take part in looking after slots.
        self._sharing: set[Peer] = set()
        # By the ids of those who have said that they have nothing more, where they said so.
        self._through: dict[str, Peer] = {}
        self._once_through = False
        # Who is told how we are, and what each was told last.
        self._told: dict[Peer, bool | None] = {}

    def remember(self, data: bytes) -> None:
        """Begin with the map that an earlier run has kept, unless our epoch is past it: that one
        shows placements which this replica has left for good."""
        kept = ClusterMap.decode(data)
        if kept.epoch >= self._replica.epoch:
            self.map = kept

    def adopt(self, data: bytes) -> None:
        """Take a map that a replicator sent, if it is newer than ours; its epoch is logged, and
        the map kept. PeerError if it cannot follow ours. On a disk without room for an epoch we
        stay in ours, which is what is answered.

        Placements are left alone: a node stores what it is sent, whoever owns it, and to make them
        would hold the loop for many milliseconds.
        """
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
        self.map = received
        self._keep(data)

    def sharing(self, peer: Peer) -> list[str]:
        """This replicator takes part in looking after slots, as it asks who does: the ids of all
        that have asked where they are connected, in order. One that cannot look after any yet, for
        want of a stamper, does not ask."""
        if peer in self._connected.get(peer.hello.id, ()):
            self._sharing.add(peer)
        return sorted({sharing.hello.id for sharing in self._sharing})

    def came(self, peer: Peer) -> None:
        role, name = peer.hello.role, peer.hello.id
        if role is Role.REPLICATOR:
            self._connected.setdefault(name, set()).add(peer)
        if role in (Role.REPLICATOR, Role.GATEWAY):
            self._told[peer] = None
        self.look()

    def went(self, peer: Peer) -> None:
        self._told.pop(peer, None)
        self._sharing.discard(peer)
        name = peer.hello.id
        peers = self._connected.get(name, set())
        peers.discard(peer)
        if not peers:
            self._connected.pop(name, None)
        if self._through.get(name) is peer:
            del self._through[name]
        self.look()

    def caught_up(self, peer: Peer) -> None:
        """This replicator has nothing more for us."""
        if peer in self._connected.get(peer.hello.id, ()):
            self._through[peer.hello.id] = peer
            self.look()

    def look(self) -> None:
        """Decide how we are, and tell everybody who does not know."""
        self._once_through = self._once_through or bool(self._through)
        if self._connected.keys() - self._through.keys():
            self.catching_up = True
        elif self._once_through and not self.untried():
            self.catching_up = False
        for peer, told in list(self._told.items()):
            if told is not self.catching_up and peer.notify(
                STATE, encode_state(catching_up=self.catching_up)
            ):
                self._told[peer] = self.catching_up
