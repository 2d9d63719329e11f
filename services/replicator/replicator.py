"""One replicator from its directory to its links: opening, taking part, coordinating, ending.

    opened ──► linked ──a map and a stamper──► coordinating ──► closed

It takes links at once: the nodes that form a cluster register over them. Requests are refused,
with the reason, until there is a map to route by and a stamper to stamp with. Both are kept in its
directory, so that it needs PostgreSQL at its first start alone.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Final

from services.core.cluster import Member
from services.core.errors import FatalError, PeerError, RetryLater
from services.core.messages import MALFORMED, REGISTER, STATE, decode_state
from services.core.operations import MAP
from services.core.wire import OK, Role
from services.replicator.adoption import Adoption
from services.replicator.allotment import Allotment
from services.replicator.anti_entropy import Rates
from services.replicator.cache_news import CacheNews
from services.replicator.collection import CollectionRates
from services.replicator.coordinator import Coordinator, Parts
from services.replicator.counters import Counters
from services.replicator.declared import Declared
from services.replicator.declaring import Declaring
from services.replicator.directory import ReplicatorDirectory
from services.replicator.hints import Hints
from services.replicator.map_store import MapStore
from services.replicator.membership import Membership
from services.replicator.namespace_store import NamespaceStore
from services.replicator.namespaces import NamespaceListings
from services.replicator.node_states import NodeStates
from services.replicator.prefix_delete import PrefixDeletions
from services.replicator.registration import Registrations
from services.replicator.repair_counters import RepairCounters
from services.replicator.requests import Requests
from services.replicator.settings import ReplicatorSettings
from services.replicator.stamps import Stamps
from services.runtime import telemetry
from services.runtime.disk import Disk
from services.runtime.disk_failure import disk_failure
from services.runtime.fleet import Fleet, only_member
from services.runtime.kept_map import KeptMap
from services.runtime.link import Link, LinkServer, Station
from services.runtime.link_limits import LinkCounters
from services.runtime.link_tls import tls_files
from services.runtime.loops import Loops
from services.runtime.opening import Identity
from services.runtime.peer import Handlers, Peer
from services.runtime.service import Service

# As long as an operation may take, and then some.
drain_s_max: Final = 2.1
# For all links, and then for hints that are not durable yet: within what a service has to close.
close_s_max: Final = 2.4
hints_s_max: Final = 0.4


class Replicator:
    def __init__(
        self,
        settings: ReplicatorSettings,
        service: Service,
        disk: Disk,
        store: MapStore,
        namespaces: NamespaceStore,
    ) -> None:
        self.settings = settings
        self.service = service
        self.counters = Counters()
        self.repair_counters = RepairCounters()
        self.link_counters = LinkCounters()
        # Only has to differ between processes.
        self.draw = random.Random()  # noqa: S311
        self.fleet = Fleet(self._connect, service.clock)
        self.node_states = NodeStates(service.clock)
        self.fleet.on_change = self.node_states.changed
        self.membership = Membership(
            store, self.fleet, settings.cluster_size, self._keep_map, self.draw
        )
        self.registrations = Registrations(self.membership, self.fleet, store)
        self.declared = Declared()
        self.news = CacheNews(self.declared, self.fleet, self.membership.is_member, service.clock)
        self.declared.on_change = self.membership.on_map = self.news.remind
        self.declaring = Declaring(namespaces, self.declared, self.news, service.clock, self.draw)
        self.requests = Requests(
            lambda: self.refusal, self.declared, self.declaring, service.clock, self.counters
        )
        self.allotment = Allotment(store, settings.replicator_id, self.draw)
        self.coordinator: Coordinator | None = None
        # Those of the coordinator, from when they are made until they are closed.
        self._stamps: Stamps | None = None
        self._hints: Hints | None = None
        self.server: LinkServer | None = None
        self._disk = disk
        self._directory: ReplicatorDirectory | None = None
        self._begun = self._closing = False
        self._station = self._make_station()
        self._said = telemetry.logger("services.replicator")

    # -- opening

    def open(self) -> None:
        """Take the directory, and the map that it has. FatalError if it is in use, or another
        replicator's, or if the settings are not those of the cluster."""
        settings = self.settings
        try:
            self._directory = ReplicatorDirectory.open(
                self._disk,
                settings.data_dir / "replicators" / settings.replicator_id,
                settings.replicator_id,
            )
        except OSError as error:
            raise disk_failure(error) from error
        self._remember_map()
        self.declared.remember(self._disk, self.directory.path)

    @property
    def directory(self) -> ReplicatorDirectory:
        if self._directory is None:
            raise RuntimeError("open the replicator first")
        return self._directory

    async def start(self, loops: Loops) -> None:
        """Take links, and from there on whatever is needed as it comes."""
        settings = self.settings
        server = LinkServer(self._station, settings.bind_host, settings.link_port)
        await server.start()
        self.server = server
        self.fleet.start()
        loops.start("map", self.membership.follow)
        loops.start("registrations", self.registrations.serve)
        loops.start("stamper", self._begin_stamping)
        loops.start("namespaces", self.declaring.follow)
        loops.start("declarations", self.declaring.run)

    async def _begin_stamping(self) -> None:
        """Find out who we are to the clocks of others, and coordinate from then on."""
        if self._begun:
            raise FatalError(
                f"starting on {self.directory.path} failed in a way that nobody foresaw; the log "
                "has the traceback"
            )
        self._begun = True
        found, name = self.directory.found, self.settings.replicator_id
        stamper = await self.allotment.stamper() if found is None else found.stamper
        stamps = Stamps(self.directory, stamper, self.service.clock, self._disk_failed)
        hints = await self._recovered_hints(stamps)
        if self.allotment.earlier:
            # Before the stamper is kept: whoever ends meanwhile finds out once more.
            self.allotment.warn_of_earlier(self.directory.path)
            await self._note_lost(hints, self.allotment.owed)
        stamps.start()
        self._stamps = stamps
        self._coordinate(stamps, hints)
        self._said.info("coordinating", replicator=name, stamper=stamper)

    def _coordinate(self, stamps: Stamps, hints: Hints) -> None:
        settings, clock = self.settings, self.service.clock
        adoption = Adoption(self._disk, self.directory.path, hints, clock, self.draw)
        adoption.start()
        parts = Parts(
            settings.replicator_id,
            self.fleet,
            self.membership,
            clock,
            self.counters,
            self.repair_counters,
            Rates(
                settings.repair_pass_s, settings.repair_records_per_s, settings.repair_bytes_per_s
            ),
            CollectionRates(settings.collect_slots_per_s, settings.repair_bytes_per_s),
            self.draw,
        )
        made = Coordinator(parts, stamps, hints, adoption)
        made.start()
        prefixes = PrefixDeletions(self.fleet, stamps, made.eventual, clock)
        listings = NamespaceListings(self.fleet, clock, self.declared)
        self.requests.serve(made.eventual, made.strong, prefixes, listings)
        self.coordinator = made

    async def _recovered_hints(self, stamps: Stamps) -> Hints:
        """The hints of an earlier run, on their way to those who miss them."""
        hints = Hints(
            self._disk,
            self.directory.hints_path,
            self.fleet,
            stamps,
            self.membership,
            self.service.clock,
            self.draw,
            bytes_max=self.settings.hint_bytes_max,
            window_ms=self.settings.hint_window_ms,
            on_failure=self._disk_failed,
        )
        self._hints = hints
        try:
            for _ in hints.recover():
                await asyncio.sleep(0)
        except OSError as error:
            raise disk_failure(error) from error
        hints.start()
        return hints

    async def _note_lost(self, hints: Hints, node_ids: frozenset[str]) -> None:
        """Have it durable that these nodes may miss what was kept for them."""
        noted: set[str] = set()
        all_noted = asyncio.Event()

        def note(node_id: str) -> None:
            noted.add(node_id)
            if noted == node_ids:
                all_noted.set()

        for node_id in node_ids:
            hints.lost(node_id, partial(note, node_id))
        if node_ids:
            await all_noted.wait()

    # -- serving

    @property
    def refusal(self) -> RetryLater | None:
        """Why no request is taken just now; None when they are."""
        if self._closing:
            name = self.settings.replicator_id
            return RetryLater("shutting_down", f"{name} is about to end; nothing was done")
        if (forming := self.membership.forming) is not None:
            return forming
        if self.coordinator is None:
            return RetryLater(
                "database_unavailable",
                "this replicator is new, and PostgreSQL has not given it a stamper yet: "
                f"{self.allotment.trouble or 'it is being asked'}",
            )
        return None

    def _make_station(self) -> Station:
        settings = self.settings
        identity = Identity(
            Role.REPLICATOR,
            settings.replicator_id,
            settings.cluster_secret,
            lambda: self.fleet.epoch,
        )
        return Station(
            identity,
            self._handlers(),
            counters=self.link_counters,
            tls=tls_files(settings),
            on_up=self._came,
            on_down=self._went,
        )

    def _handlers(self) -> Handlers:
        return {
            REGISTER: self.registrations.register,
            STATE: self._state,
            MAP: self._map,
            **self.requests.handlers(),
        }

    def _map(self, peer: Peer, request_id: int, body: bytes) -> None:
        peer.reply(request_id, OK, self.membership.map_bytes)

    def _state(self, peer: Peer, request_id: int, body: bytes) -> None:
        try:
            catching_up = decode_state(body)
        except PeerError as error:
            peer.reply(request_id, MALFORMED, str(error).encode())
            return
        if self.membership.is_member(peer) and not self._is_second(peer):
            self.fleet.catching_up(peer.hello.id, catching_up)
        peer.reply(request_id, OK, b"")

    def _is_second(self, peer: Peer) -> bool:
        """Whether this is another process than the one that we reach as that node."""
        there = self.fleet.nodes[peer.hello.id].link.peer
        return there is not None and there.life != peer.hello.life

    # -- links

    def _connect(self, member: Member) -> Link:
        place = f"node {member.node_id} at {member.host} port {member.link_port}"
        return Link(
            self._station,
            member.host,
            member.link_port,
            admit=only_member(member),
            absence=f"no {place} yet; waiting",
        )

    def _came(self, peer: Peer) -> None:
        hello = peer.hello
        self._said.info("link opened", peer=hello.id, role=hello.role.name.lower())
        self.membership.came(peer)
        self.news.came(peer)
        self._notice(peer)

    def _went(self, peer: Peer) -> None:
        self.membership.went(peer)
        self.news.went(peer)
        node = self.fleet.nodes.get(peer.hello.id)
        if node is not None and not node.link.connected:
            # It says how it is when it is back; until then it may have missed something.
            self.fleet.catching_up(node.node_id, catching_up=True)
        self._notice(peer)

    def _notice(self, peer: Peer) -> None:
        node = self.fleet.nodes.get(peer.hello.id)
        if node is not None:
            self.fleet.noticed(node)

    # -- the map, kept for a start without PostgreSQL

    def _remember_map(self) -> None:
        kept = KeptMap(self._disk, self.directory.path)
        try:
            if (data := kept.read_or_put_aside()) is not None:
                self.membership.remember(data)
        except (PeerError, OSError) as error:
            self._said.warning("the kept cluster map cannot be read", reason=str(error))

    def _keep_map(self, data: bytes) -> None:
        KeptMap(self._disk, self.directory.path).keep_soon(data, self._map_kept)

    def _map_kept(self, error: OSError | None) -> None:
        # PostgreSQL has it, and so has every node. A disk that is broken shows at the next ceiling.
        if error is not None:
            self._said.warning("the cluster map could not be kept", reason=error.strerror)

    def _disk_failed(self, error: OSError) -> None:
        self.service.fail(disk_failure(error))

    # -- ending

    async def close(self) -> None:
        """Take no more requests, answer those under way, and give the directory back."""
        self._closing = True
        self.registrations.close()
        self.declaring.close()
        coordinator, clock = self.coordinator, self.service.clock
        ends_s = clock.monotonic_s() + close_s_max
        # Once the disk has failed, what is under way cannot be answered any more.
        failed = self.service.failure is not None
        if coordinator is not None:
            coordinator.stop()
        if self.server is not None:
            await self.server.close(0.0 if failed else drain_s_max)
        left_s = 0.0 if failed else max(0.0, ends_s - clock.monotonic_s())
        await asyncio.gather(*(link.close(left_s) for link in self.fleet.close()))
        if coordinator is not None:
            coordinator.adoption.close()
            coordinator.eventual.retries.give_up()
            await self._until_kept(coordinator.hints, 0.0 if failed else hints_s_max)
        if self._hints is not None:
            self._hints.close()
        if self._stamps is not None:
            self._stamps.seal()
        self._disk.close()
        if self._directory is not None:
            self._directory.close()

    async def _until_kept(self, hints: Hints, seconds: float) -> None:
        ends_s = self.service.clock.monotonic_s() + seconds
        while not hints.idle:
            if self.service.clock.monotonic_s() >= ends_s:
                if seconds:
                    self._said.warning("the disk did not keep all hints in time")
                return
            await asyncio.sleep(0.005)
