"""One process of a node in a simulation: the real parts, put together as `Node` does it for a
real one, on a disk, a clock and a network that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.core.digest import digest_key
from services.core.hlc import HighWater
from services.core.messages import u16
from services.core.wire import Role
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.handlers import NodeHandlers
from services.dhtnode.membership import Membership
from services.dhtnode.recovery import Recovery
from services.dhtnode.replica import Replica
from services.dhtnode.snapshot import SnapshotWriter
from services.dhtnode.table import Table
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.fake_link import FakeNetwork
from services.runtime.link import Station
from services.runtime.link_limits import LinkCounters
from services.runtime.log.log import Batch, Log
from services.runtime.opening import Identity

secret = "one secret for all of them here"
segment_bytes = 6_000
commit_bytes_max = 2_500
# How often a node looks whether everybody knows how it is.
look_s = 0.5
# A frame of the log that a real node has no use for yet: all of a slot was forgotten, since it
# belongs to others. Its body is the slot.
WIPED = 250


class BusyClock(FakeClock):
    """A clock on which whatever is measured takes a while, so that work is done in slices."""

    spent_s = 0.0

    def monotonic_s(self) -> float:
        self.spent_s += 0.000_7
        return super().monotonic_s() + self.spent_s


@dataclass(frozen=True, slots=True)
class Trimming:
    """What a node frees whenever it looks: values in these slots that have ended so long ago by
    its own clock. A real one goes round all slots, which takes as long as two hundred operations
    to simulate."""

    slots: tuple[int, ...]
    after_ms: int


class NodeLife:
    """From `recover` over `serve` to `end`. Whoever has it looks after the disk in between.

    What its disk fails ends it at once; what it must never do, it notes in `wrong`.
    """

    def __init__(
        self,
        node_id: str,
        store_id: bytes,
        timeline: Timeline,
        network: FakeNetwork,
        disk: FakeDisk,
        *,
        skew_ms: int = 0,
        refuse_leads: bool = True,
        trimming: Trimming | None = None,
    ) -> None:
        self.node_id = node_id
        self.store_id = store_id
        self.clock = FakeClock(timeline, skew_ms)
        # Also busy, so that long requests take many turns and others come in between.
        self.busy_clock = BusyClock(timeline, skew_ms)
        self.replica = Replica(Table(digest_key(secret)), self.clock)
        self.replica.high_water = HighWater(refuse_leads=refuse_leads)
        self.acceptor = Acceptor(self.replica, self.clock)
        self.membership = Membership(self.replica, self._keep_map)
        self.snapshot: SnapshotWriter | None = None
        self.station: Station | None = None
        self.failed = False
        # How often a promise was found to hold a value that has ended.
        self.ended_promises = 0
        self.ended = False
        self.wrong: list[str] = []
        # How snapshots ended: None, or for want of what.
        self.on_snapshot: Callable[[OSError | None], None] = lambda error: None
        self.on_failed: Callable[[OSError], None] = lambda error: None
        self.directory: NodeDirectory
        self.log: Log
        self._network = network
        self._trimming = trimming
        self._disk = disk
        self._recovery: Recovery | None = None

    def recover(self) -> Iterator[None]:
        """Read what an earlier life has left. OSError or FatalError end it."""
        path = Path("/data/nodes") / self.node_id
        self.directory = NodeDirectory.open(self._disk, path, self.node_id, self.store_id)
        self._recovery = Recovery(self.directory, self._replay)
        yield from self._recovery.steps()
        for _ in self.acceptor.settle():
            pass

    def _replay(self, kind: int, body: bytes) -> None:
        if kind == WIPED:
            self._forget(u16.unpack(body)[0])
        else:
            self.replica.replay(kind, body)

    def wipe(self, slot: int) -> None:
        """Forget all of a slot, and log it."""
        self._forget(slot)
        self.log.append(WIPED, u16.pack(slot))

    def _forget(self, slot: int) -> None:
        self.replica.table.wipe(slot)
        self.replica.promises.wipe(slot)

    def serve(self) -> None:
        """Take links. The recovery has ended."""
        assert self._recovery is not None
        found = self._recovery.result
        self.log = Log(
            self.directory,
            self.clock,
            self._soon,
            next_sequence=found.next_sequence,
            next_index=found.next_index,
            segments=found.segments,
            on_durable=self._durable,
            on_failure=self._disk_failed,
            segment_bytes=segment_bytes,
            commit_bytes_max=commit_bytes_max,
        )
        self.log.start()
        self.replica.serve(self.log)
        counters = LinkCounters()
        handlers = NodeHandlers(
            self.replica, self.membership, self.busy_clock, self._soon, counters
        )
        identity = Identity(
            Role.NODE, self.node_id, secret, lambda: self.replica.epoch, self.store_id
        )
        self.station = Station(
            identity,
            handlers.table(self.acceptor.handlers()),
            counters=counters,
            on_up=self.membership.came,
            on_down=self.membership.went,
        )
        self._network.attach(self.station, self.clock)
        self._look()

    def _look(self) -> None:
        self.membership.look()
        if self._trimming is not None:
            self._trim(self._trimming)
        self.clock.call_later(look_s, self._look)

    def _trim(self, trimming: Trimming) -> None:
        now_ms = self.clock.wall_ms() - trimming.after_ms
        known = self.replica.promises.expired
        for slot in trimming.slots:
            self.replica.table.trim_next = slot
            self.replica.trim_slice(now_ms, 1)
        self.ended_promises += self.replica.promises.expired - known

    def take_snapshot(self) -> None:
        if self.snapshot is None:
            self.snapshot = SnapshotWriter(
                self.directory, self.log, self.busy_clock, self.replica.frames(), self._written
            )
            self.snapshot.start()

    def pause(self) -> None:
        self.clock.pause()
        self.busy_clock.pause()

    def resume(self) -> None:
        self.clock.resume()
        self.busy_clock.resume()

    def set_clock(self, skew_ms: int) -> None:
        self.clock.skew_ms = self.busy_clock.skew_ms = skew_ms

    def end(self) -> None:
        """As by kill -9: it says nothing more to anybody. What becomes of the disk is another
        matter."""
        if self.ended:
            return
        self.ended = True
        if self.station is not None:
            self._network.crash(self.node_id)
        self.clock.stop()
        self.busy_clock.stop()

    def _soon(self, callback: Callable[[], None]) -> None:
        self.clock.call_later(0.0, callback)

    def _keep_map(self, data: bytes) -> None:
        """The map comes again with the first link; only the epoch has to be known before."""

    def _durable(self, batch: Batch) -> None:
        if self.ended:
            self.wrong.append("acknowledged after the process had ended, or its disk failed")
        self.replica.durable(batch)

    def _disk_failed(self, error: OSError) -> None:
        self.failed = True
        self.end()
        self.on_failed(error)

    def _written(self, snapshot: SnapshotWriter, error: OSError | None) -> None:
        self.snapshot = None
        self.on_snapshot(error)
