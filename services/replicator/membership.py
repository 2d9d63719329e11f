"""The cluster map as a replicator has it: where it comes from, and who is told of it.

    file `map` ──start──► adopted ──► the fleet, the file, every node and gateway that is connected
    PostgreSQL ──asked every second──┘
    a registration that made one ────┘

PostgreSQL alone puts maps in order. Without it a replicator goes on with the map that it has: the
data outlive what manages them. A map that cannot follow ours is never taken; it means that
somebody changed the database, or named another one, and an operator has to look.

Everybody who is connected is told each map and acknowledges it. Who did not, as after a message
that was lost, is told again whenever PostgreSQL has been asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.core.cluster import ClusterMap
from services.core.errors import FatalError, RetryLater, UnknownOutcome
from services.core.messages import EPOCH, MALFORMED, u64
from services.core.wire import OK, Role
from services.replicator.formation import Registered
from services.replicator.map_store import MapStore
from services.runtime import telemetry
from services.runtime.fleet import Fleet
from services.runtime.opening import readable
from services.runtime.peer import SENT, OwnedLink, Peer

# How soon a replicator learns of a map that another has made, if nobody tells it of the epoch.
poll_s: Final = 1.0
# However many tell of newer epochs at once.
poll_s_min: Final = 0.02
# While PostgreSQL is away.
poll_s_longest: Final = 5.0
# A node answers once the epoch is durable.
told_s_max: Final = 5.0
# What is under way on a link to a node that left, or that has another address now.
dropped_drain_s: Final = 1.0


@dataclass(slots=True)
class _Told:
    """What a peer has acknowledged."""

    # Of the latest map that it has, as far as we have told it.
    epoch: int = 0
    # Whether it is being told just now.
    asking: bool = False
    # Whether it has refused a map, which was logged.
    objected: bool = False


class Membership:
    """The map, and those who are to know it.

    `keep` is given the bytes of each new map, for the next start. `on_map` is called once there
    is a first map, and whenever there is another. FatalError, from `remember` and `follow`, if the
    first map was formed by other settings than ours.
    """

    def __init__(
        self,
        store: MapStore,
        fleet: Fleet,
        cluster_size: int,
        keep: Callable[[bytes], None],
        draw: random.Random,
    ) -> None:
        self.map_bytes = b""
        # While the cluster is forming, how many nodes it waits for, as last heard.
        self.missing = cluster_size
        self.on_map: Callable[[], None] = lambda: None
        # Whether PostgreSQL was asked in this life.
        self.confirmed = False
        # Why PostgreSQL cannot be asked just now.
        self.trouble: str | None = None
        # What is wrong with the map that PostgreSQL has.
        self.objection: str | None = None
        self._store = store
        self._fleet = fleet
        self._cluster_size = cluster_size
        self._keep = keep
        self._draw = draw
        self._wanted = asyncio.Event()
        self._told: dict[Peer, _Told] = {}
        self._dropped: list[OwnedLink] = []
        self._said = telemetry.logger("services.replicator")

    @property
    def map(self) -> ClusterMap | None:
        return self._fleet.map

    @property
    def forming(self) -> RetryLater | None:
        """Why there is no map, if there is none."""
        if self._fleet.map is not None:
            return None
        if self.trouble is not None:
            return RetryLater(
                "database_unavailable",
                f"the cluster map is not known yet, and PostgreSQL cannot be asked: {self.trouble}",
            )
        return RetryLater(
            "cluster_forming",
            f"the cluster is forming: {self.missing} of its {self._cluster_size} nodes have not "
            "registered yet",
        )

    # -- maps that come

    def remember(self, data: bytes) -> None:
        """Begin with the map that an earlier run has kept. PeerError if it is none."""
        kept = ClusterMap.decode(data)
        self._store.check(kept)
        self._adopt(kept)

    def outdated(self, epoch: int) -> None:
        """Somebody knows of this epoch; find its map soon."""
        if epoch > self._fleet.epoch:
            self._wanted.set()

    def registered(self, answer: Registered) -> None:
        """PostgreSQL has answered a registration; RetryLater if with a map that is not ours."""
        self.missing = answer.missing
        # An older one was overtaken while its slots were placed. That the database is an older one
        # shows when it is asked.
        if answer.map is not None and answer.map.epoch >= self._fleet.epoch:
            self._met(answer.map)
        if self.objection is not None:
            raise RetryLater("database_unavailable", self.objection)

    async def follow(self) -> None:
        """The loop: learn of new maps, and see that everybody has the newest."""
        pause_s = poll_s
        while True:
            self._wanted.clear()
            reached = await self._ask()
            pause_s = poll_s if reached else min(pause_s * 2, poll_s_longest)
            for peer in list(self._told):
                self._tell(peer)
            await self._close_dropped()
            await asyncio.sleep(poll_s_min)
            await self._pause(pause_s * self._draw.uniform(0.8, 1.0), hurry=reached)

    async def _pause(self, seconds: float, *, hurry: bool) -> None:
        """Let the time pass; if `hurry`, only until somebody knows of a newer epoch."""
        if not hurry:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _ask(self) -> bool:
        """Whether PostgreSQL has answered."""
        before = self._fleet.map
        try:
            newest = await self._store.newest()
        except (RetryLater, UnknownOutcome) as error:
            self._cannot_ask(error.detail)
            return False
        except FatalError as error:
            if self._fleet.map is None:
                raise
            # With a map there is work to do, whatever became of the database.
            self._cannot_ask(str(error))
            return False
        if self.trouble is not None:
            self._said.info("PostgreSQL can be asked for the cluster map again")
            self.trouble = None
        # A registration may have brought a map meanwhile, which this answer does not know.
        if self._fleet.map is before:
            self._met(newest)
            self.confirmed = True
        return True

    def _cannot_ask(self, reason: str) -> None:
        if self.trouble != reason:
            self._said.warning("PostgreSQL cannot be asked for the cluster map", reason=reason)
        self.trouble = reason

    def _met(self, newest: ClusterMap | None) -> None:
        """Take the map that PostgreSQL has, unless it cannot be."""
        known = self._fleet.map
        objection = None
        if newest is None:
            if known is not None:
                objection = "it has none"
        elif known is None:
            self._store.check(newest)
            self._adopt(newest)
            self._keep(self.map_bytes)
        elif newest != known:
            objection = newest.objection_after(known)
            if objection is None:
                self._adopt(newest)
                self._keep(self.map_bytes)
        self._object(objection)

    def _object(self, objection: str | None) -> None:
        text = None
        if objection is not None:
            text = (
                f"the cluster map in PostgreSQL cannot follow epoch {self._fleet.epoch}, which "
                f"this replicator has: {objection}; DATABASE_URL names another database, or this "
                "one was restored from a backup or changed by hand"
            )
        if text != self.objection:
            if text is not None:
                self._said.error("the cluster map is refused", reason=text)
            else:
                self._said.info("the cluster map in PostgreSQL is ours again")
        self.objection = text

    def _adopt(self, new: ClusterMap) -> None:
        self._dropped += self._fleet.adopt(new)
        self.map_bytes = new.encode()
        self.missing = 0
        for node in self._fleet.nodes.values():
            # Until it says otherwise, as it does when a link to it comes up.
            node.catching_up = node.catching_up or not node.link.connected
        self._said.info("adopted a cluster map", epoch=new.epoch, nodes=len(new.nodes))
        for peer in list(self._told):
            self._tell(peer)
        self._wanted.set()
        self.on_map()

    async def _close_dropped(self) -> None:
        dropped, self._dropped = self._dropped, []
        await asyncio.gather(*(link.close(dropped_drain_s) for link in dropped))

    # -- those who are told

    def came(self, peer: Peer) -> None:
        """A peer is connected. One that has been with us before may have lost what it was told."""
        if peer.hello.role in (Role.NODE, Role.GATEWAY):
            self._told[peer] = _Told()
            self._tell(peer)
        self.outdated(peer.hello.epoch)

    def went(self, peer: Peer) -> None:
        self._told.pop(peer, None)

    def is_member(self, peer: Peer) -> bool:
        """Whether this is a node of the map, with the store that it has there."""
        known = self._fleet.map
        member = known.nodes.get(peer.hello.id) if known is not None else None
        return (
            member is not None
            and peer.hello.role is Role.NODE
            and peer.hello.store_id.hex() == member.store_id
        )

    def _tell(self, peer: Peer) -> None:
        """Send the map to a peer that has not acknowledged it, if that is any of its business."""
        told, epoch = self._told[peer], self._fleet.epoch
        if self._fleet.map is None or told.asking or told.epoch >= epoch:
            return
        if peer.hello.role is Role.NODE and not self.is_member(peer):
            return
        heard = partial(self._heard, peer, told, epoch)
        told.asking = peer.request(EPOCH, self.map_bytes, heard, told_s_max) == SENT

    def _heard(self, peer: Peer, told: _Told, epoch: int, kind: int, body: bytes) -> None:
        told.asking = False
        if kind == MALFORMED and not told.objected:
            told.objected = True
            self._said.error(
                "a peer refuses the cluster map", peer=peer.hello.id, reason=readable(body)
            )
        if self._told.get(peer) is not told or kind != OK or len(body) != u64.size:
            return
        theirs = u64.unpack(body)[0]
        self.outdated(theirs)
        # A node may know a later epoch from other messages, and have no map of it.
        told.epoch = min(theirs, epoch)
        if theirs >= epoch:
            # There may be a newer map meanwhile. A peer that could not take this one has time.
            self._tell(peer)
