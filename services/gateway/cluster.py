"""The cluster as a gateway sees it: the map, a link to every node, and a link to every replicator.

    kept file ──start──► adopted ──► the fleet routes by it
    EPOCH of a replicator ──────┘ ──► the file, for a start without replicators

A gateway never chooses a map. It takes what replicators tell, as long as that can follow the map it
has, and tells how far it is. They tell it too which namespaces are caches.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.core.cluster import ClusterMap, Member
from services.core.errors import PeerError, RetryLater
from services.core.messages import CACHES, EPOCH, MALFORMED, STATE, decode_state, u64
from services.core.namespaces import decode_caches, encode_edition, no_edition
from services.core.wire import OK, Role
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.disk import Disk, Lock
from services.runtime.disk_failure import disk_failure
from services.runtime.fleet import Fleet, only_member
from services.runtime.kept_map import KeptMap
from services.runtime.link import Link, Station
from services.runtime.link_limits import LinkCounters
from services.runtime.link_tls import TlsFiles
from services.runtime.metrics import Metrics
from services.runtime.opening import Identity
from services.runtime.peer import Handlers, OwnedLink, Peer
from services.runtime.replicators import Replicators, links_to_replicators, only_replicators
from services.runtime.speakers import Speakers

# What is under way on a link to a node that left, or that has another address now.
dropped_drain_s: Final = 1.0
# Told maps that wait to be placed. Replicators tell each of theirs once, and again when asked.
waiting_max: Final = 64

log = telemetry.logger("services.gateway")


@dataclass(slots=True, frozen=True)
class Doors:
    """Where the rest of the platform is, and how it is entered."""

    name: str
    cluster_secret: str = field(repr=False)
    replicator_urls: tuple[str, ...]
    tls: TlsFiles | None = None


@dataclass(slots=True, frozen=True)
class _Told:
    """A map, and the replicator that waits to hear that it was taken."""

    map: ClusterMap
    data: bytes
    peer: Peer
    request_id: int


class Cluster:
    """Usable between `open` and `close`, while `follow` runs. Nothing is routed without a map."""

    def __init__(self, doors: Doors, disk: Disk, directory: Path, clock: Clock) -> None:
        # Only has to differ between processes.
        draw = random.Random()  # noqa: S311
        self.link_counters = LinkCounters()
        self.fleet = Fleet(self._connect, clock)
        self.speakers = Speakers(self.fleet)
        # What the storage keys of namespaces that are caches begin with.
        self.caches: frozenset[bytes] = frozenset()
        self._edition = no_edition
        # What is wrong with a map that replicators have.
        self.objection: str | None = None
        self._station = Station(
            Identity(
                Role.GATEWAY, doors.name, doors.cluster_secret, epoch=lambda: self.fleet.epoch
            ),
            self._handlers(),
            counters=self.link_counters,
            tls=doors.tls,
            on_up=self._notice,
            on_down=self._went,
        )
        self.replicators = Replicators(
            links_to_replicators(doors.replicator_urls, self._station, admit=only_replicators), draw
        )
        self._disk = disk
        self._directory = directory
        self._lock: Lock | None = None
        self._told: list[_Told] = []
        self._came = asyncio.Event()

    def add_to(self, metrics: Metrics) -> None:
        self.replicators.add_to(metrics)
        metrics.add_counters("link", "of all links", self.link_counters)
        metrics.add("cluster_epoch", "gauge", "Epoch of the map", lambda: self.fleet.epoch)
        metrics.add(
            "nodes_live",
            "gauge",
            "Nodes that answer",
            lambda: sum(node.live for node in self.fleet.nodes.values()),
        )
        metrics.add(
            "node_answers_senseless",
            "counter",
            "Answers of nodes that make no sense; the log has each",
            lambda: self.fleet.senseless,
        )

    @property
    def absence(self) -> RetryLater:
        """What to say as long as there is no map."""
        if self.replicators.live:
            return RetryLater("cluster_forming", "The cluster is forming: it has no map yet")
        return self.replicators.absence

    # -- from the start to the end

    def open(self) -> None:
        """Take the directory, begin with the map that is kept there, and connect. FatalError if
        the directory is in use or cannot be read."""
        try:
            self._disk.make_directory(self._directory)
            self._lock = self._disk.lock(self._directory)
            data = self._kept.read_or_put_aside()
        except OSError as error:
            raise disk_failure(error) from error
        if data is not None:
            self._route_by(ClusterMap.decode(data))
        self.fleet.start()
        self.replicators.start()

    async def close(self, drain_s: float) -> None:
        """Finish what is under way within that time, and be connected to nobody."""
        links = self.fleet.close()
        await asyncio.gather(
            self.replicators.close(drain_s), *[link.close(drain_s) for link in links]
        )
        self._disk.close()
        if self._lock is not None:
            self._lock.release()

    @property
    def _kept(self) -> KeptMap:
        return KeptMap(self._disk, self._directory)

    # -- maps

    async def follow(self) -> None:
        """The loop: take the maps that replicators tell, one after the other."""
        while True:
            await self._came.wait()
            told, self._told = self._told, []
            self._came.clear()
            newest = max(told, key=lambda one: one.map.epoch)
            if newest.map.epoch > self.fleet.epoch:
                await self._adopt(newest)
            for one in told:
                one.peer.reply(one.request_id, OK, u64.pack(self.fleet.epoch))

    async def _adopt(self, newest: _Told) -> None:
        """Route by this map. Its slots are placed a piece at a time, between requests."""
        for _ in newest.map.prepare():
            await asyncio.sleep(0)
        dropped = self._route_by(newest.map)
        log.info("adopted a cluster map", epoch=newest.map.epoch, nodes=len(newest.map.nodes))
        self._kept.keep_soon(newest.data, self._kept_or_not)
        await asyncio.gather(*[link.close(dropped_drain_s) for link in dropped])

    def _route_by(self, new: ClusterMap) -> list[OwnedLink]:
        dropped = self.fleet.adopt(new)
        for node in self.fleet.nodes.values():
            # Until it says otherwise, as it does when a link to it comes up.
            node.catching_up = node.catching_up or not node.link.connected
        return dropped

    def _kept_or_not(self, error: OSError | None) -> None:
        if error is not None:
            # It is told again by any replicator; only a start without any would miss it.
            log.warning("the cluster map could not be kept", reason=str(error))

    def _epoch(self, peer: Peer, request_id: int, body: bytes) -> None:
        if peer.hello.role is not Role.REPLICATOR:
            peer.reply(request_id, MALFORMED, b"maps are taken from replicators")
            return
        try:
            told = ClusterMap.decode(body)
        except PeerError as error:
            peer.reply(request_id, MALFORMED, str(error).encode())
            return
        if told.epoch < self.fleet.epoch or len(self._told) >= waiting_max:
            peer.reply(request_id, OK, u64.pack(self.fleet.epoch))
            return
        known = self.fleet.map
        objection = told.objection_after(known) if known is not None and told != known else None
        self._object(objection, peer)
        if objection is not None:
            peer.reply(request_id, MALFORMED, objection.encode())
            return
        self._told.append(_Told(told, body, peer, request_id))
        self._came.set()

    def _object(self, objection: str | None, peer: Peer) -> None:
        text = None
        if objection is not None:
            text = (
                f"{peer.hello.id} has a cluster map that cannot follow epoch {self.fleet.epoch}, "
                f"which this gateway knows: {objection}; REPLICATOR_URLS names another cluster, or "
                f"this one was made anew: then remove {self._kept.path} and start again"
            )
            if text != self.objection:
                log.error("a cluster map is refused", reason=text)
        self.objection = text

    # -- links

    def _handlers(self) -> Handlers:
        return {EPOCH: self._epoch, CACHES: self._caches, STATE: self._state}

    def _caches(self, peer: Peer, request_id: int, body: bytes) -> None:
        """Which namespaces are caches, told by a replicator: it refuses what they cannot promise
        itself, so this need not be kept for a start without replicators."""
        if peer.hello.role is not Role.REPLICATOR:
            peer.reply(request_id, MALFORMED, b"caches are told by replicators")
            return
        try:
            told = decode_caches(body)
        except PeerError as error:
            peer.reply(request_id, MALFORMED, str(error).encode())
            return
        if told.edition > self._edition:
            self._edition = told.edition
            self.caches = frozenset(cache.namespace for cache in told.caches)
        peer.reply(request_id, OK, encode_edition(self._edition))

    def _state(self, peer: Peer, request_id: int, body: bytes) -> None:
        try:
            catching_up = decode_state(body)
        except PeerError as error:
            peer.reply(request_id, MALFORMED, str(error).encode())
            return
        if peer.hello.role is Role.NODE:
            self.fleet.catching_up(peer.hello.id, catching_up)
        peer.reply(request_id, OK, b"")

    def _connect(self, member: Member) -> OwnedLink:
        return Link(
            self._station,
            member.host,
            member.link_port,
            admit=only_member(member),
            absence=f"no node {member.node_id} at {member.host} port {member.link_port} yet; "
            "waiting",
        )

    def _notice(self, peer: Peer) -> None:
        log.info("link opened", peer=peer.hello.id, role=peer.hello.role.name.lower())
        node = self.fleet.nodes.get(peer.hello.id)
        if node is not None:
            self.fleet.noticed(node)

    def _went(self, peer: Peer) -> None:
        node = self.fleet.nodes.get(peer.hello.id)
        if node is not None and not node.link.connected:
            # It says how it is when it is back; until then it may have missed something.
            self.fleet.catching_up(node.node_id, catching_up=True)
            self.fleet.noticed(node)
