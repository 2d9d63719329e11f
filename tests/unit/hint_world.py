"""A replicator that keeps hints, through its lives, and the nodes that miss writes: the real log of
hints, replay, links, replicas and their logs, on disks, clocks and a network in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from services.core.cluster import ClusterMap
from services.core.hlc import pack_version
from services.core.messages import CAUGHT_UP
from services.core.record import value_body
from services.core.wire import Role
from services.replicator.adoption import Adoption
from services.replicator.directory import ReplicatorDirectory
from services.replicator.hints import Hints
from services.replicator.stamps import Stamps
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.fake_link import FakeLink, FakeNetwork, Weather
from services.runtime.fleet import Fleet
from services.runtime.link import Station
from services.runtime.opening import Identity
from tests.unit.replicator_world import KnownEpochs, Node, key_of, member_of, secret

replicators = Path("/data/replicators")
# A few dozen hints: what a test keeps spans several.
segment_bytes = 4_096
# Long enough for links to come up, and for a node to be looked at.
while_s = 0.5


class Keeper:
    """One life of a replicator, as far as hints go."""

    def __init__(self, world: HintWorld, name: str, disk: FakeDisk, **limits: int) -> None:
        self.name = name
        self.clock = FakeClock(world.timeline)
        self.world = world
        self.disk = disk
        self.failures: list[OSError] = []
        self.directory = ReplicatorDirectory.open(disk, replicators / name, name)
        self.station = Station(Identity(Role.REPLICATOR, name, secret))
        world.network.attach(self.station, self.clock)
        self.fleet = Fleet(lambda member: FakeLink(world.network, name, member.node_id), self.clock)
        # Stamps write now and then, which is not to meet the faults that are asked for here.
        quiet = FakeDisk(random.Random(1), self.clock)
        stamps = Stamps(
            ReplicatorDirectory.open(quiet, Path("/stamps"), name), 1, self.clock, _failed
        )
        stamps.start()
        self.epochs = KnownEpochs(self.fleet)
        self.hints = Hints(
            disk,
            self.directory.hints_path,
            self.fleet,
            stamps,
            self.epochs,
            self.clock,
            random.Random(5),
            on_failure=self.failures.append,
            **{
                "bytes_max": 1 << 30,
                "window_ms": 10_800_000,
                "segment_bytes": segment_bytes,
                **limits,
            },
        )
        for _ in self.hints.recover():
            pass
        self.hints.start()
        self.adoption = Adoption(
            disk, self.directory.path, self.hints, self.clock, random.Random(6)
        )
        self.adoption.start()
        self.fleet.adopt(world.map)
        self.fleet.start()

    def files(self, node_id: str = "node-1") -> list[str]:
        path = self.directory.hints_path / node_id
        return self.disk.names(path) if self.disk.exists(path) else []

    def path(self, name: str, node_id: str = "node-1") -> Path:
        return self.directory.hints_path / node_id / name


class HintWorld:
    """Nodes begin away: nothing reaches them until `come_back`."""

    def __init__(self, seed: int = 1, *, nodes: int = 3, **limits: int) -> None:
        self.timeline = Timeline()
        self.weather = Weather()
        self.network = FakeNetwork(random.Random(seed), self.weather)
        self.disk = FakeDisk(random.Random(seed), FakeClock(self.timeline))
        members = tuple(member_of(number) for number in range(1, nodes + 1))
        self.map = ClusterMap(1, 3, members)
        self.nodes = {member.node_id: Node(self, member) for member in members}
        self.limits = limits
        self.name = "replicator-1"
        # By number, the record of each hint, and which of them are known to be kept.
        self.records: dict[int, bytes] = {}
        self.kept: set[int] = set()
        for node_id in self.nodes:
            self.network.block(self.name, node_id)
        self.keeper = Keeper(self, self.name, self.disk, **limits)
        self.node = self.nodes["node-1"]

    @property
    def hints(self) -> Hints:
        return self.keeper.hints

    def come_back(self, node_id: str = "node-1") -> None:
        """Let this node be reached; all that are away stay so."""
        away = [name for name in self.nodes if self.network.blocked(self.name, name)]
        self.network.heal()
        for name in away:
            if name != node_id:
                self.network.block(self.name, name)

    def keep(self, count: int = 1, node_id: str = "node-1", *, size: int = 20) -> None:
        """Keep hints of new keys, numbered on; `kept` has those that were said to be kept."""
        for number in range(len(self.records), len(self.records) + count):
            stamp = pack_version((self.keeper.clock.wall_ms() << 16) + number % 999, 1)
            record = self.records[number] = stamp + value_body(b"%*d" % (size, number))
            kept = self._keeps(number)
            self.hints.keep(node_id, key_of(number), record, kept)

    def _keeps(self, number: int) -> Callable[[], None]:
        def kept() -> None:
            assert number not in self.kept, "told twice"
            self.kept.add(number)

        return kept

    def pass_time(self, seconds: float = while_s) -> None:
        self.timeline.advance(seconds)
        self.check()

    def pass_until(self, condition: Callable[[], bool], within_s: float = 60.0) -> None:
        until_s = self.timeline.now_s + within_s
        while not condition():
            assert self.timeline.now_s < until_s, "it does not come to that"
            self.timeline.step()
        self.check()

    def check(self) -> None:
        """What is raised in a callback of a link, the link counts and logs."""
        stations = [node.station for node in self.nodes.values()]
        bugs = sum(station.counters.bugs for station in [*stations, self.keeper.station])
        assert not bugs, "a callback or a handler failed; the log has it"

    def restart(
        self, end: Callable[[], None] | None = None, *, name: str | None = None, **limits: int
    ) -> None:
        """The replicator's next life, after a power cut or what else ends this one; or the life of
        another one on the same machine."""
        self.network.crash(self.name)
        self.keeper.clock.stop()
        (end or self.disk.crash)()
        if name is not None:
            self.name = name
            for node_id in self.nodes:
                self.network.block(name, node_id)
        self.keeper = Keeper(self, self.name, self.disk, **{**self.limits, **limits})

    def times_told(self, node_id: str = "node-1") -> int:
        """How often the node was told that it has caught up."""
        return self.nodes[node_id].asked[CAUGHT_UP]

    def missing(self, node_id: str = "node-1") -> set[int]:
        """The hints that were said to be kept and are not on the node."""
        node = self.nodes[node_id]
        return {n for n in self.kept if node.holds(key_of(n)) != self.records[n]}


def _failed(error: OSError) -> None:
    raise AssertionError(f"the disk failed: {error}")
