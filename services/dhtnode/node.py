"""One node from its directory to its links: opening, recovering, serving, ending.

    opened ──► recovering ──► serving ──► closed

The directory is opened when the service starts, so that one that is in use, or another node's,
stops it at once. Recovery runs while /health and /metrics answer already; links are taken when
the replica is whole.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import random
import secrets
from collections.abc import Iterator
from typing import Final

from services.core.cluster import Member
from services.core.digest import digest_key
from services.core.errors import FatalError, PeerError, RestartLater, RetryLater
from services.core.wire import Role
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.handlers import NodeHandlers
from services.dhtnode.membership import Membership
from services.dhtnode.places import take_place
from services.dhtnode.recovery import Recovered, Recovery
from services.dhtnode.registrar import Registrar
from services.dhtnode.replica import Replica
from services.dhtnode.scrub import Scrub
from services.dhtnode.settings import NodeSettings
from services.dhtnode.table import Table
from services.dhtnode.turns import Turns
from services.dhtnode.upkeep import Upkeep
from services.runtime import telemetry
from services.runtime.disk import Disk
from services.runtime.disk_failure import disk_failure
from services.runtime.histogram import Histogram
from services.runtime.kept_map import KeptMap
from services.runtime.link import Link, LinkServer, Station
from services.runtime.link_limits import LinkCounters
from services.runtime.link_tls import tls_files
from services.runtime.log.frame import store_id_bytes
from services.runtime.log.log import Batch, Log
from services.runtime.log.preparation import passing_errors
from services.runtime.loops import Loops
from services.runtime.opening import Identity
from services.runtime.peer import Peer
from services.runtime.replicators import links_to_replicators
from services.runtime.service import Service

# What is under way when a node is told to stop is a batch or two.
drain_s_max: Final = 3.0
# How long a look at this replica over HTTP waits for the disk: as long as an operation may take.
durable_wait_s_max: Final = 2.0
# A node that has caught up is asked for reads again after this, at the latest.
standing_s: Final = 0.25
batch_sizes: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Node:
    def __init__(self, settings: NodeSettings, service: Service, disk: Disk) -> None:
        self.settings = settings
        self.service = service
        self.table = Table(digest_key(settings.cluster_secret))
        self.replica = Replica(self.table, service.clock)
        self.acceptor = Acceptor(self.replica, service.clock)
        self.membership = Membership(self.replica, self._keep_map)
        self.batch_sizes = Histogram(batch_sizes)
        self.recovery_s = 0.0
        self.frozen_objects = 0
        self.link_counters = LinkCounters()
        self.recovery: Recovery | None = None
        self.log: Log | None = None
        self.upkeep: Upkeep | None = None
        self.scrub: Scrub | None = None
        self.server: LinkServer | None = None
        self._disk = disk
        self._directory: NodeDirectory | None = None
        self._links: list[Link] = []
        self._registrar: Registrar | None = None
        self._turns: Turns | None = None
        self._recovered = False
        # Only has to differ between processes.
        self._draw = random.Random()  # noqa: S311
        # By batches that somebody waits for, what tells them whether it has become durable.
        self._awaited: dict[Batch, asyncio.Future[bool]] = {}
        self._said = telemetry.logger("services.dhtnode")

    @property
    def serving(self) -> bool:
        return self.server is not None

    def open(self) -> None:
        """Take the directory. FatalError if it is in use, or another node's. Among nodes that
        were started alike this is what settles which of them this one is."""
        settings, store_id = self.settings, secrets.token_bytes(store_id_bytes)
        try:
            if settings.nodes_dir is None:
                path = settings.data_dir / "nodes" / settings.node_id
                self._directory = NodeDirectory.open(self._disk, path, settings.node_id, store_id)
            else:
                self._directory = take_place(self._disk, settings.nodes_dir, store_id)
                node_id = self._directory.node_id
                self.settings = dataclasses.replace(settings, node_id=node_id)
                self._said.info("took a place", node=node_id, directory=str(self.directory.path))
        except OSError as error:
            raise disk_failure(error) from error

    @property
    def directory(self) -> NodeDirectory:
        if self._directory is None:
            raise RuntimeError("open the node first")
        return self._directory

    async def start(self, loops: Loops) -> None:
        """Recover what an earlier run left, then serve. FatalError if this node must not; after
        a bug that is said by the second try, so that the first one's traceback is in the log."""
        if self._recovered:
            raise RestartLater(
                f"{self.settings.node_id} has recovered and then failed to serve in a way that "
                "nobody foresaw; the log has the traceback"
            )
        if self.recovery is not None:
            raise FatalError(
                f"recovering {self.directory.path} failed in a way that nobody foresaw; the log "
                "has the traceback"
            )
        self.recovery = Recovery(self.directory, self.replica.replay)
        try:
            found = await self._recover(self.recovery)
            self._recovered = True
            await self._serve(found, loops)
        except OSError as error:
            raise disk_failure(error) from error

    async def _recover(self, recovery: Recovery) -> Recovered:
        began_s = self.service.clock.monotonic_s()
        for _ in recovery.steps():
            await asyncio.sleep(0)
        for _ in self.acceptor.settle():
            await asyncio.sleep(0)
        self.recovery_s = self.service.clock.monotonic_s() - began_s
        # What was loaded stays for good. A full collection would look through all of it again, and
        # hold up requests by 10 ms with millions of keys.
        gc.freeze()
        # To count them walks through all of them: done once, and not whenever somebody asks.
        self.frozen_objects = gc.get_freeze_count()
        found = recovery.result
        for warning in found.warnings:
            self._said.warning("recovery", what=warning)
        self._said.info(
            "recovered",
            keys=self.table.total.keys,
            changes=recovery.progress.log_frames,
            seconds=round(self.recovery_s, 3),
        )
        return found

    async def _serve(self, found: Recovered, loops: Loops) -> None:
        settings, replica = self.settings, self.replica
        self._remember_map()
        log = self.log = Log(
            self.directory,
            self.service.clock,
            asyncio.get_running_loop().call_soon,
            next_sequence=found.next_sequence,
            next_index=found.next_index,
            segments=found.segments,
            on_durable=self._durable,
            on_failure=self._disk_failed,
            segment_bytes=settings.segment_bytes,
        )
        log.start()
        replica.serve(log)
        upkeep = self.upkeep = Upkeep(
            replica,
            log,
            self.directory,
            self.service.clock,
            memory_max_bytes=settings.memory_max_bytes,
            disk_reserve_bytes=settings.disk_reserve_bytes,
        )
        self._measure(found, upkeep)
        scrub = self.scrub = Scrub(
            replica,
            log,
            upkeep,
            self.directory,
            self.service.clock,
            self._draw,
            interval_ms=settings.scrub_interval_ms,
            others=self._has_others,
        )
        # Until there is a segment nobody knows whether anything can be logged. On a full disk a
        # put would wait instead of being refused.
        while not (log.spare_ready or log.shortage or log.failure):  # noqa: ASYNC110  It has no event.
            await asyncio.sleep(0.002)
        upkeep.notice()
        station = self._station()
        server = LinkServer(station, settings.bind_host, settings.link_port)
        await server.start()
        self.server = server
        self._connect_to_replicators(station)
        for name, run in (
            ("standing", self._keep_standing),
            ("snapshots", upkeep.keep_log_short),
            ("expiry", upkeep.free_expired),
            ("limits", upkeep.watch_limits),
            ("scrub", scrub.run),
        ):
            loops.start(name, run)
        self._said.info("serving", links=settings.link_port, epoch=replica.epoch)

    def _connect_to_replicators(self, station: Station) -> None:
        registrar = self._registrar = Registrar(
            self._member(), self.membership, self.service.clock, self.service.fail, self._draw
        )

        def reached(peer: Peer) -> None:
            self._came(peer)
            registrar.came(peer)

        def lost(peer: Peer) -> None:
            self.membership.went(peer)
            registrar.went(peer)

        dialling = dataclasses.replace(station, on_up=reached, on_down=lost)
        self._links = links_to_replicators(self.settings.replicator_urls, dialling)
        for link in self._links:
            link.start()
        self.membership.untried = self._some_untried

    @property
    def trouble(self) -> str | None:
        """Why no replicator uses this node, or not each of them; None before it serves."""
        trouble = None if self._registrar is None else self._registrar.trouble
        if trouble is None or any(link.connected for link in self._links):
            return trouble
        tried = (
            f"{link.host} port {link.port}: {link.last_error or 'being tried'}"
            for link in self._links
        )
        return f"{trouble}; {'; '.join(tried)}"

    def _member(self) -> Member:
        settings = self.settings
        return Member(
            settings.node_id,
            self.directory.store_id.hex(),
            settings.advertised_host,
            settings.port,
            settings.link_port,
            settings.zone,
        )

    def _some_untried(self) -> bool:
        """Whether a replicator of REPLICATOR_URLS has neither been reached nor found away."""
        return any(not link.connected and link.last_error is None for link in self._links)

    def _has_others(self) -> bool:
        """Whether other replicas have what this one has. One that knows no map keeps all it has."""
        adopted = self.membership.map
        return adopted is not None and adopted.replication_factor > 1

    async def _keep_standing(self) -> None:
        """The loop: see whom nobody tells of, such as a replicator that was tried in vain."""
        while True:
            await asyncio.sleep(standing_s)
            self.membership.look()

    def _measure(self, found: Recovered, upkeep: Upkeep) -> None:
        """What an earlier run has logged counts until a snapshot covers it. A node that restarts
        often would else never write one, and recover longer each time."""
        first = 1
        if found.snapshot is not None:
            first = self.directory.snapshots()[0][0]
            with self._disk.open(found.snapshot, "read") as file:
                upkeep.snapshot_bytes = file.size()
        upkeep.log_bytes_before = sum(
            segment.used_bytes for segment in found.segments if segment.first >= first
        )

    async def close(self) -> None:
        """Answer what is under way, make everything durable, and give the directory back."""
        # Once the disk has failed, what is under way cannot be answered any more.
        drain_s = 0.0 if self.service.failure is not None else drain_s_max
        self._let_go()
        for link in self._links:
            await link.close(drain_s)
        if self.server is not None:
            await self.server.close(drain_s)
        if self.log is not None:
            await self._until_idle(self.log)
            self.log.close()
        self._disk.close()
        if self._directory is not None:
            self._directory.close()

    async def until_durable(self, key: bytes | None = None) -> None:
        """Return once what can be read now is durable: of this key, or of all.

        RetryLater if the disk takes too long for that, has failed, or is being closed.
        """
        log = self.log
        batch = None
        if log is not None:
            batch = log.newest if key is None else self.replica.changing(key)
        if log is None or batch is None:
            return
        if log.failure is not None or log.closed:
            raise self._ending()
        told = self._awaited.get(batch)
        if told is None:
            told = self._awaited[batch] = asyncio.get_running_loop().create_future()
        # Others may wait for the same batch, so whoever gives up leaves the future alone.
        await asyncio.wait([told], timeout=durable_wait_s_max)
        if not told.done():
            raise RetryLater(
                "overloaded",
                f"{self.settings.node_id} has changes that did not become durable within "
                f"{durable_wait_s_max:g} s; its disk is slow, or full",
            )
        if not told.result():
            raise self._ending()

    async def in_turns(self, steps: Iterator[None]) -> None:
        """Have these steps made among all else that takes this node long. RetryLater if too much
        of that waits already. Whoever calls this has seen that the node is serving."""
        if self._turns is None:
            raise RuntimeError("the node does not serve yet")
        await self._turns.do(steps)

    def _let_go(self) -> None:
        """Tell those who wait for the disk that it keeps nothing any more."""
        for told in self._awaited.values():
            told.set_result(False)
        self._awaited.clear()

    def _ending(self) -> RetryLater:
        return RetryLater("shutting_down", f"{self.settings.node_id} is about to end")

    async def _until_idle(self, log: Log) -> None:
        """Changes that nobody waits for, such as an epoch's, may still be on their way."""
        deadline_s = self.service.clock.monotonic_s() + drain_s_max
        while not log.idle and log.failure is None:
            if self.service.clock.monotonic_s() > deadline_s:
                self._said.warning("the disk did not finish in time; nobody was told it had")
                return
            await asyncio.sleep(0.005)

    def _station(self) -> Station:
        soon = asyncio.get_running_loop().call_soon
        handlers = NodeHandlers(
            self.replica, self.membership, self.service.clock, soon, self.link_counters
        )
        self._turns = handlers.turns
        identity = Identity(
            Role.NODE,
            self.settings.node_id,
            self.settings.cluster_secret,
            lambda: self.replica.epoch,
            self.directory.store_id,
        )
        return Station(
            identity,
            handlers.table(self.acceptor.handlers()),
            counters=self.link_counters,
            tls=tls_files(self.settings),
            on_up=self._came,
            on_down=self.membership.went,
        )

    def _came(self, peer: Peer) -> None:
        self._said.info("link opened", peer=peer.hello.id, role=peer.hello.role.name.lower())
        self.membership.came(peer)

    def _durable(self, batch: Batch) -> None:
        self.batch_sizes.observe(batch.last - batch.first + 1)
        self.replica.durable(batch)
        if (told := self._awaited.pop(batch, None)) is not None:
            told.set_result(True)
        if self.upkeep is not None:
            self.upkeep.notice()

    def _disk_failed(self, error: OSError) -> None:
        self._let_go()
        self.service.fail(disk_failure(error))

    # -- the map, kept for a start without replicators

    def _remember_map(self) -> None:
        kept = KeptMap(self._disk, self.directory.path)
        try:
            if (data := kept.read_or_put_aside()) is not None:
                self.membership.remember(data)
        except (PeerError, OSError) as error:
            self._said.warning("the kept cluster map cannot be read", reason=str(error))

    def _keep_map(self, data: bytes) -> None:
        if (adopted := self.membership.map) is not None:
            self._said.info("adopted a cluster map", epoch=adopted.epoch, nodes=len(adopted.nodes))
        if self._registrar is not None:
            self._registrar.look()
        KeptMap(self._disk, self.directory.path).keep_soon(data, self._map_kept)

    def _map_kept(self, error: OSError | None) -> None:
        if error is None or self.log is None:
            return
        if error.errno in passing_errors:
            # A replicator sends it again after a restart; until then this run has it in memory.
            self._said.warning("the cluster map could not be kept", reason=error.strerror)
        else:
            self.log.fail(error)
