"""The machines of a simulated cluster: what outlives the processes that run on them, one life
after the other."""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError
from services.replicator.collection_end import Collected
from services.replicator.memory_map_store import MemoryMapStore
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk, Operation
from services.runtime.fake_link import FakeNetwork
from tests.simulation.collected import EverCollected
from tests.simulation.node_life import NodeLife, Trimming
from tests.simulation.replicator_life import ReplicatorLife
from tests.simulation.slow_network import SlowNetwork


class MapStoreOfChanges(MemoryMapStore):
    """Also of maps that no settings tell of: members come and go."""

    def publish(self, new: ClusterMap) -> None:
        self._rows.maps[new.epoch] = new.encode()

    def check(self, newest: ClusterMap) -> None:
        """Whatever there is, was meant."""


class Count(Protocol):
    """Told what has happened, and how often."""

    def __call__(self, name: str, by: int = 1) -> None: ...


@dataclass(slots=True)
class Site:
    """What all machines of one simulation share.

    Nodes are behind the `back` network, which loses, doubles and reorders messages. Clients are
    at the `front`, which only loses them: their requests are not ones to be done twice, and TCP
    does not double any.
    """

    draw: random.Random
    timeline: Timeline
    back: SlowNetwork
    front: FakeNetwork
    store: MapStoreOfChanges
    refuse_leads: bool = True
    count: Count = lambda name, by=1: None
    trimming: Trimming | None = None
    collected: EverCollected = field(default_factory=EverCollected)
    # By how much a clock may be ahead, in milliseconds.
    ahead_ms: float = math.inf
    wrong: list[str] = field(default_factory=list)

    @property
    def wall_ms(self) -> int:
        """By a clock that is right."""
        return FakeClock.epoch_ms + int(self.timeline.now_s * 1000)

    def removed(self, key: bytes, record: bytes) -> None:
        """A node does not have this record any more."""
        self.count("records collected")
        self.collected.note(key, record, self.wall_ms + self.ahead_ms)


class Machine:
    """One machine, up or down. What it is asked while it is not in the state for it, it ignores."""

    def __init__(self, site: Site, name: str, skew_ms: int) -> None:
        self.site = site
        self.name = name
        self.skew_ms = skew_ms
        self.disk_clock = FakeClock(site.timeline)
        self.disk = FakeDisk(site.draw, self.disk_clock)
        self.paused = False
        self.bugs = 0
        # Counts lives: what was planned for an earlier one is void.
        self.lives = 0

    @property
    def life(self) -> NodeLife | ReplicatorLife | None:
        raise NotImplementedError

    @property
    def up(self) -> bool:
        return self.life is not None and not self.life.ended

    def start(self) -> None:
        raise NotImplementedError

    def stop(self, *, power_cut: bool) -> None:
        """Kill the process, and cut the power of the machine or not."""
        life = self.life
        if life is None:
            return
        life.end()
        self._look_for_bugs(life)
        self.resume()
        self.disk.heal()
        if power_cut:
            self.disk.crash()
        else:
            self.disk.kill()
        self._forget_life()

    def _forget_life(self) -> None:
        raise NotImplementedError

    def _look_for_bugs(self, life: NodeLife | ReplicatorLife) -> None:
        if life.station is not None and life.station.counters.bugs:
            self.site.wrong.append(f"a callback of {self.name} failed; the log has it")

    def pause(self) -> None:
        """As SIGSTOP does. What the disk has done, it hears when it goes on."""
        if self.life is not None and self.up and not self.paused:
            self.paused = True
            self.life.pause()
            self.disk_clock.pause()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.disk_clock.resume()
            if self.life is not None:
                self.life.resume()

    def set_clock(self, skew_ms: int) -> None:
        self.skew_ms = skew_ms
        if self.life is not None:
            self.life.set_clock(skew_ms)

    def check(self) -> None:
        if self.life is not None:
            self._look_for_bugs(self.life)


class NodeMachine(Machine):
    def __init__(self, site: Site, number: int, skew_ms: int) -> None:
        super().__init__(site, f"node-{number}", skew_ms)
        # The same in all seeds, so that maps of the same members are equal, and placed once.
        self.store_id = number.to_bytes(16, "big")
        self.member = Member(self.name, self.store_id.hex(), self.name, 8082, 9082)
        self.node: NodeLife | None = None
        # The slots that it is to own, and whose data it lacks.
        self.not_ready: frozenset[int] = frozenset()

    @property
    def life(self) -> NodeLife | None:
        return self.node

    def start(self) -> None:
        if self.node is not None:
            return
        site = self.site
        self.lives += 1
        life = NodeLife(
            self.name,
            self.store_id,
            site.timeline,
            site.back,
            self.disk,
            skew_ms=self.skew_ms,
            refuse_leads=site.refuse_leads,
            trimming=site.trimming,
        )
        life.on_failed = self._failed
        life.replica.not_ready = self.not_ready
        try:
            for _ in life.recover():
                pass
        except FatalError as error:
            raise AssertionError(f"{self.name}: an honest crash was refused: {error}") from error
        life.serve()
        self.node = life

    def _failed(self, error: OSError) -> None:
        """Its disk failed, and the process has ended; somebody starts it again."""
        self.site.count("failed disks")
        draw = self.site.draw
        lives, power_cut = self.lives, draw.random() < 0.5

        def again() -> None:
            if self.lives == lives:
                self.stop(power_cut=power_cut)
                self.start()

        self.site.timeline.schedule(draw.uniform(0.05, 0.5), again)

    def _forget_life(self) -> None:
        assert self.node is not None
        self.site.wrong.extend(self.node.wrong)
        self._count_trimmed(self.node)
        self.node = None

    def check(self) -> None:
        super().check()
        if self.node is not None:
            self._count_trimmed(self.node)

    def _count_trimmed(self, life: NodeLife) -> None:
        self.site.count("values trimmed", life.replica.table.trimmed)
        self.site.count("promises of ended values", life.ended_promises)

    def be_not_ready(self, slots: Iterable[int]) -> None:
        self.not_ready |= frozenset(slots)
        self._tell_what_is_ready()

    def be_ready(self, slot: int) -> None:
        self.not_ready -= {slot}
        self._tell_what_is_ready()

    def _tell_what_is_ready(self) -> None:
        if self.node is not None:
            self.node.replica.not_ready = self.not_ready

    def break_disk(self) -> None:
        operation: Operation = self.site.draw.choice(("sync", "write"))
        self.disk.fail(operation, errno.EIO, after=self.site.draw.randrange(4), times=None)


class ReplicatorMachine(Machine):
    def __init__(self, site: Site, number: int, skew_ms: int) -> None:
        super().__init__(site, f"replicator-{number}", skew_ms)
        self.replicator: ReplicatorLife | None = None

    @property
    def life(self) -> ReplicatorLife | None:
        return self.replicator

    def start(self) -> None:
        if self.replicator is not None:
            return
        site = self.site
        self.lives += 1
        self.replicator = ReplicatorLife(
            self.name,
            site.store,
            site.timeline,
            site.back,
            site.front,
            self.disk,
            site.draw,
            skew_ms=self.skew_ms,
            refuse_leads=site.refuse_leads,
        )

    def collect(self, slot: int, done: Callable[[Collected], None]) -> None:
        """Begin one attempt to collect the slot, if it can."""
        life = self.replicator
        if life is not None and life.fleet.map is not None and not self.paused:
            life.collector.collect(slot, done)

    def request_collection(self, slot: int) -> None:
        """Have the slot collected, by as many attempts as that takes."""
        if self.replicator is not None:
            self.replicator.collector.request(slot)

    def lose_directory(self) -> None:
        """Once it is stopped: another machine takes over the name."""
        self.disk = FakeDisk(self.site.draw, self.disk_clock)

    def _forget_life(self) -> None:
        assert self.replicator is not None
        self._count_collected(self.replicator)
        self.replicator = None

    def check(self) -> None:
        super().check()
        if self.replicator is not None:
            self._count_collected(self.replicator)

    def _count_collected(self, life: ReplicatorLife) -> None:
        counters, count = life.collector.counters, self.site.count
        count("collections begun", counters.attempts)
        for end, number in counters.ended.items():
            count(f"collection {end.value.replace('_', ' ')}", number)
        count("tombstones collected", counters.tombstones)
        count("promises collected", counters.promises)
        count("records repaired in collections", counters.repaired)
        repair = life.anti_entropy.counters
        count("passes", repair.passes)
        count("differing keys found", repair.keys_differing)
        count("records repaired", repair.records_sent)
        count("repairs refused below the floor", repair.below_floor)
