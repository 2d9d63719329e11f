"""One process of a replicator in a simulation: the real parts, put together as `Replicator` does
it for a real one, on a disk, a clock and networks that are not."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from services.core.cluster import Member
from services.core.messages import STATE, decode_state
from services.core.wire import OK, Role
from services.replicator import anti_entropy, mending
from services.replicator.anti_entropy import AntiEntropy, Rates
from services.replicator.cache_news import CacheNews
from services.replicator.collection import Collector
from services.replicator.counters import Counters
from services.replicator.declared import Declared
from services.replicator.declaring import Declaring
from services.replicator.directory import ReplicatorDirectory
from services.replicator.eventual import EventualWrites
from services.replicator.hints import Hints
from services.replicator.map_store import MapStore
from services.replicator.membership import Membership, dropped_drain_s, poll_s
from services.replicator.memory_namespace_store import MemoryNamespaceStore, NamespaceRows
from services.replicator.namespaces import NamespaceListings
from services.replicator.passes import Pass
from services.replicator.prefix_delete import PrefixDeletions
from services.replicator.repair_counters import RepairCounters
from services.replicator.requests import Requests
from services.replicator.slot_shares import Shares, block_slots
from services.replicator.stamps import Stamps
from services.replicator.strong import StrongOperations
from services.replicator.sweeper import Sweeper
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.fake_link import FakeLink, FakeNetwork
from services.runtime.fleet import Fleet, only_member
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.peer import Handler, OwnedLink, Peer
from tests.simulation.cluster_keys import slots_of_keys
from tests.simulation.node_life import secret

hint_bytes_max = 1 << 20
hint_window_ms = 3 * 3_600_000
hint_segment_bytes = 8_000
# All slots that there are keys of are compared so often.
rates = Rates(pass_s=1.5, records_per_s=10_000, bytes_per_s=8 << 20)

T = TypeVar("T")


def finish(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that, on a store in memory, waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits")


class PassOfFew(Pass):
    """A pass over the slots that there are keys of. All the others take as long as a hundred
    operations to simulate, and are empty."""

    def __init__(
        self, began_s: float, slots: Iterable[int] | None = None, *, node_id: str | None = None
    ) -> None:
        super().__init__(began_s, slots_of_keys() if slots is None else slots, node_id=node_id)

    def unsettled(self) -> list[int]:
        return [slot for slot in slots_of_keys() if self._todo[slot]]

    def advance(self) -> bool:
        blocks = sorted({slot // block_slots for slot in slots_of_keys()})
        later = [block for block in blocks if block > self.block]
        self.block = later[0] if later else blocks[0]
        self.rounds += not later
        return not later


@contextmanager
def few_slots(young_ms: int) -> Iterator[None]:
    """What comparing replicas goes through, and how old a write has to be for it: where clocks
    are far apart, none is too young."""
    with (
        patch.object(anti_entropy, "Pass", PassOfFew),
        patch.object(mending, "young_ms", young_ms),
    ):
        yield


class SimulatedMembership(Membership):
    """Follows the map by timers, where the real one has a loop."""

    clock: FakeClock

    def begin(self, clock: FakeClock) -> None:
        self.clock = clock
        self._look_again()

    def outdated(self, epoch: int) -> None:
        if epoch > self._fleet.epoch:
            self.clock.call_later(self._draw.uniform(0.001, 0.02), self._look)

    def _look_again(self) -> None:
        self._look()
        self.clock.call_later(poll_s * self._draw.uniform(0.8, 1.0), self._look_again)

    def _look(self) -> None:
        finish(self._ask())
        for peer in list(self._told):
            self._tell(peer)
        dropped, self._dropped = self._dropped, []
        for link in dropped:
            finish(link.close(dropped_drain_s))


class ReplicatorLife:
    """From its making to `end`, all at once: what it needs of its disk it has by then."""

    def __init__(
        self,
        replicator_id: str,
        store: MapStore,
        timeline: Timeline,
        back: FakeNetwork,
        front: FakeNetwork,
        disk: FakeDisk,
        draw: random.Random,
        *,
        skew_ms: int = 0,
        refuse_leads: bool = True,
    ) -> None:
        self.replicator_id = replicator_id
        self.clock = FakeClock(timeline, skew_ms)
        self.counters = Counters()
        self.ended = False
        self.failed: OSError | None = None
        self._back = back
        self._front = front
        directory = ReplicatorDirectory.open(
            disk, Path("/data/replicators") / replicator_id, replicator_id
        )
        found = directory.found
        stamper = finish(store.allot_stamper(replicator_id)) if found is None else found.stamper
        self.fleet = Fleet(self._connect, self.clock)
        self.membership = SimulatedMembership(store, self.fleet, 3, _forget, draw)
        self.stamps = Stamps(
            directory, stamper, self.clock, self._disk_failed, refuse_leads=refuse_leads
        )
        self.hints = hints = Hints(
            disk,
            directory.hints_path,
            self.fleet,
            self.stamps,
            self.membership,
            self.clock,
            draw,
            bytes_max=hint_bytes_max,
            window_ms=hint_window_ms,
            on_failure=self._disk_failed,
            segment_bytes=hint_segment_bytes,
        )
        for _ in hints.recover():
            pass
        shared = (
            self.fleet, self.stamps, hints, self.membership, self.clock, self.counters, draw
        )  # fmt: skip
        self.eventual = EventualWrites(*shared)
        self.strong = StrongOperations(*shared)
        self.sweeper = Sweeper(self.fleet, self.strong, self.clock, draw)
        self.collector = Collector(
            self.fleet, self.stamps, self.strong, self.membership, self.clock, draw
        )
        hints.on_below_floor = self.collector.request
        self.anti_entropy = AntiEntropy(
            self.fleet,
            self.stamps,
            hints,
            self.membership,
            Shares(replicator_id, self.fleet, self.clock),
            self.collector,
            self.clock,
            rates,
            RepairCounters(),
        )
        identity = Identity(Role.REPLICATOR, replicator_id, secret, lambda: self.fleet.epoch)
        declared = Declared()
        news = CacheNews(declared, self.fleet, self.membership.is_member, self.clock)
        namespaces = MemoryNamespaceStore(NamespaceRows())
        declaring = Declaring(namespaces, declared, news, self.clock, draw)
        requests = Requests(
            lambda: self.membership.forming, declared, declaring, self.clock, self.counters
        )
        prefixes = PrefixDeletions(self.fleet, self.stamps, self.eventual, self.clock)
        listings = NamespaceListings(self.fleet, self.clock, declared)
        requests.serve(self.eventual, self.strong, prefixes, listings)
        handlers: dict[int, Handler] = {STATE: self._state, **requests.handlers()}
        self.station = Station(identity, handlers, on_up=self._came, on_down=self._went)
        back.attach(self.station, self.clock)
        front.attach(self.station, self.clock)
        self.stamps.start()
        self.fleet.start()
        self.membership.begin(self.clock)
        self.sweeper.start()
        self.collector.start()
        self.anti_entropy.shares.start()
        self.anti_entropy.start()
        hints.start()

    def pause(self) -> None:
        self.clock.pause()

    def resume(self) -> None:
        self.clock.resume()

    def set_clock(self, skew_ms: int) -> None:
        self.clock.skew_ms = skew_ms

    def end(self) -> None:
        """As by kill -9."""
        if not self.ended:
            self.ended = True
            self._back.crash(self.replicator_id)
            self._front.crash(self.replicator_id)
            self.clock.stop()

    def _disk_failed(self, error: OSError) -> None:
        self.failed = error
        self.end()

    def _state(self, peer: Peer, request_id: int, body: bytes) -> None:
        if self.membership.is_member(peer):
            self.fleet.catching_up(peer.hello.id, decode_state(body))
        peer.reply(request_id, OK, b"")

    def _connect(self, member: Member) -> OwnedLink:
        return FakeLink(self._back, self.replicator_id, member.node_id, admit=only_member(member))

    def _came(self, peer: Peer) -> None:
        self.membership.came(peer)
        self._notice(peer)

    def _went(self, peer: Peer) -> None:
        self.membership.went(peer)
        self._notice(peer)

    def _notice(self, peer: Peer) -> None:
        node = self.fleet.nodes.get(peer.hello.id)
        if node is not None:
            self.fleet.noticed(node)


def _forget(data: bytes) -> None:
    """The map is asked for again at the next start."""
