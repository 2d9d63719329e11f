"""A replicator and its nodes in one process: the real coordinators, replicas, acceptors, tables
and logs, on links, disks and clocks in memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.core.cluster import ClusterMap, Member
from services.core.digest import digest_key
from services.core.hlc import Version, pack_version
from services.core.key import namespace_prefix
from services.core.messages import WRITE, WRITE_MANY, encode_write
from services.core.operations import CHANGED, decode_changed
from services.core.paxos import Change
from services.core.placement import Placement
from services.core.record import tombstone_body, value_body
from services.core.ring import slot_of
from services.core.wire import OK, Hello, Role
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.handlers import NodeHandlers
from services.dhtnode.membership import Membership
from services.dhtnode.recovery import Recovery
from services.dhtnode.replica import Replica
from services.dhtnode.table import Table
from services.replicator.counters import Counters
from services.replicator.declared import Declared
from services.replicator.directory import ReplicatorDirectory
from services.replicator.eventual import EventualWrites
from services.replicator.namespaces import NamespaceListings
from services.replicator.prefix_delete import PrefixDeletions
from services.replicator.stamps import Stamps
from services.replicator.strong import StrongOperations
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.fake_link import FakeLink, FakeNetwork, Weather
from services.runtime.fleet import Fleet
from services.runtime.link import Station
from services.runtime.link_limits import LinkCounters
from services.runtime.log.log import Log
from services.runtime.opening import Identity
from services.runtime.peer import Handler, OnAnswer, Peer

secret = "one secret for all of them here"
prefix = namespace_prefix(7, b"default")
# Links come up, nodes are seen to be live, and the first ceiling becomes durable.
opening_s = 0.5
Answer = tuple[int, bytes]


def key_of(number: int) -> bytes:
    return prefix + b"key-%04d" % number


def member_of(number: int) -> Member:
    name = f"node-{number}"
    store_id = number.to_bytes(16, "big").hex()
    return Member(name, store_id, "127.0.0.1", 8000 + number, 9000 + number)


class Surroundings(Protocol):
    """What a node lives in."""

    timeline: Timeline
    network: FakeNetwork


class Node:
    """One node through its lives. What it is asked is counted, and may be answered otherwise."""

    def __init__(self, world: Surroundings, member: Member) -> None:
        self.world = world
        self.node_id = member.node_id
        self.store_id = bytes.fromhex(member.store_id)
        self.disk = FakeDisk(random.Random(member.link_port), FakeClock(world.timeline))
        self.asked: Counter[int] = Counter()
        # In place of what the replica would answer, by kind.
        self.instead: dict[int, Handler] = {}
        self.begin()

    def begin(self) -> None:
        timeline = self.world.timeline
        self.clock = FakeClock(timeline)
        self.replica = Replica(Table(digest_key(secret)), self.clock)
        self.acceptor = Acceptor(self.replica, self.clock)
        path = Path("/data/nodes") / self.node_id
        directory = NodeDirectory.open(self.disk, path, self.node_id, self.store_id)
        recovery = Recovery(directory, self.replica.replay)
        for _ in recovery.steps():
            pass
        for _ in self.acceptor.settle():
            pass
        found = recovery.result
        self.log = Log(
            directory,
            self.clock,
            self._soon,
            next_sequence=found.next_sequence,
            next_index=found.next_index,
            segments=found.segments,
            on_durable=self.replica.durable,
            on_failure=self._failed,
            segment_bytes=16 << 20,
            commit_bytes_max=1 << 20,
        )
        self.log.start()
        self.replica.serve(self.log)
        counters = LinkCounters()
        membership = Membership(self.replica, lambda data: None)
        handlers = NodeHandlers(self.replica, membership, self.clock, self._soon, counters)
        table = handlers.table(self.acceptor.handlers())
        identity = Identity(
            Role.NODE, self.node_id, secret, lambda: self.replica.epoch, self.store_id
        )
        watched = {kind: self._watched(kind, handler) for kind, handler in table.items()}
        self.station = Station(identity, watched, counters=counters)
        self.world.network.attach(self.station, self.clock)

    def crash(self) -> None:
        """Cut the power. `begin` starts it again."""
        self.world.network.crash(self.node_id)
        self.clock.stop()
        self.disk.crash()

    def answer(self, kind: int, answer: int, body: bytes = b"") -> None:
        """From now on, answer every request of this kind like this, having done nothing."""
        self.instead[kind] = lambda peer, request_id, _: peer.reply(request_id, answer, body)

    def ignore(self, *kinds: int) -> None:
        """From now on, neither do nor answer requests of these kinds."""
        for kind in kinds:
            self.instead[kind] = lambda peer, request_id, body: None

    def obey(self) -> None:
        self.instead.clear()

    def holds(self, key: bytes) -> bytes | None:
        """The record of the cell."""
        return self.replica.table.peek(slot_of(key), key)

    def _watched(self, kind: int, handler: Handler) -> Handler:
        def handle(peer: Peer, request_id: int, body: bytes) -> None:
            self.asked[kind] += 1
            self.instead.get(kind, handler)(peer, request_id, body)

        return handle

    def _soon(self, callback: Callable[[], None]) -> None:
        self.clock.call_later(0.0, callback)

    def _failed(self, error: OSError) -> None:
        raise AssertionError(f"the disk failed: {error}")


@dataclass
class MemoryHints:
    """Keeps hints in memory, at once or when `keep_late` is called."""

    late: bool = False
    kept: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def keep(
        self, node_id: str, key: bytes, record: bytes, kept: Callable[[], None] | None = None
    ) -> None:
        self.kept.append((node_id, key, record))
        if kept is None:
            return
        if self.late:
            self.waiting.append(kept)
        else:
            kept()

    def keep_late(self) -> None:
        waiting, self.waiting = self.waiting, []
        for kept in waiting:
            kept()


class KnownEpochs:
    """Remembers of which epochs it was told, and has `newest` adopted if there is one."""

    def __init__(self, fleet: Fleet) -> None:
        self.told: list[int] = []
        self.newest: ClusterMap | None = None
        self._fleet = fleet

    def outdated(self, epoch: int) -> None:
        self.told.append(epoch)
        if self.newest is not None and self.newest.epoch > self._fleet.epoch:
            self._fleet.adopt(self.newest)


class Coordinator:
    """One replicator process."""

    def __init__(self, world: World, number: int) -> None:
        self.name = f"replicator-{number}"
        self.clock = FakeClock(world.timeline)
        self.disk = FakeDisk(random.Random(number), self.clock)
        self.counters = Counters()
        self.draw = random.Random(number)
        self.station = Station(Identity(Role.REPLICATOR, self.name, secret))
        world.network.attach(self.station, self.clock)
        self.fleet = Fleet(
            lambda member: FakeLink(world.network, self.name, member.node_id), self.clock
        )
        self.hints = MemoryHints()
        self.epochs = KnownEpochs(self.fleet)
        directory = ReplicatorDirectory.open(self.disk, Path("/data/replicator"), self.name)
        self.stamps = Stamps(directory, number, self.clock, world.disk_failed)
        self.stamps.start()
        shared = (self.fleet, self.stamps, self.hints, self.epochs, self.clock, self.counters)
        self.writes = EventualWrites(*shared, self.draw)
        self.strong = StrongOperations(*shared, self.draw)
        self.prefixes = PrefixDeletions(self.fleet, self.stamps, self.writes, self.clock)
        self.declared = Declared()
        self.namespaces = NamespaceListings(self.fleet, self.clock, self.declared)
        self.fleet.adopt(world.map)
        self.fleet.start()


class Asked:
    """One request of a client, and what it was told."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def __call__(self, kind: int, body: bytes) -> None:
        self.answers.append((kind, body))
        assert len(self.answers) == 1, f"answered twice: {self.answers}"

    @property
    def answered(self) -> bool:
        return bool(self.answers)

    @property
    def kind(self) -> int:
        assert self.answers, "there is no answer yet"
        return self.answers[0][0]

    @property
    def body(self) -> bytes:
        return self.answers[0][1]

    @property
    def version(self) -> Version:
        """Of a change that was made."""
        assert self.kind == CHANGED, self.answers
        return decode_changed(self.body).version


class World:
    def __init__(self, nodes: int = 3, *, replicas: int = 3, replicators: int = 1) -> None:
        self.timeline = Timeline()
        self.weather = Weather()
        self.network = FakeNetwork(random.Random(1), self.weather)
        members = tuple(member_of(number) for number in range(1, nodes + 1))
        self.map = ClusterMap(1, replicas, members)
        self.nodes = {member.node_id: Node(self, member) for member in members}
        self.replicators = [Coordinator(self, number + 1) for number in range(replicators)]
        self.replicator = self.replicators[0]
        self.pass_time(opening_s)

    def pass_time(self, seconds: float = 0.1) -> None:
        self.timeline.advance(seconds)
        self.check()

    def pass_until(self, condition: Callable[[], bool]) -> None:
        """From one event to the next, until this is so."""
        while not condition():
            assert self.timeline.step(), "nothing happens any more"
        self.check()

    def check(self) -> None:
        """What is raised in a callback of a link, the link counts and logs."""
        stations = [node.station for node in self.nodes.values()]
        stations += [replicator.station for replicator in self.replicators]
        bugs = sum(station.counters.bugs for station in stations)
        assert not bugs, "a callback or a handler failed; the log has it"

    def disk_failed(self, error: OSError) -> None:
        raise AssertionError(f"the disk failed: {error}")

    # Whose key it is.

    def placement(self, key: bytes) -> Placement:
        return self.map.placements[slot_of(key)]

    def owners(self, key: bytes) -> list[Node]:
        """In the order in which to ask, if all are well."""
        return [self.nodes[node_id] for node_id in self.placement(key).owners]

    def held(self, key: bytes) -> list[bytes | None]:
        """The cells of the owners, in their order."""
        return [node.holds(key) for node in self.owners(key)]

    # What clients ask.

    def put(self, key: bytes, value: bytes = b"value") -> Asked:
        asked = Asked()
        self.replicator.writes.write(key, value_body(value), asked)
        return asked

    def put_many(self, keys: list[bytes], value: bytes = b"value") -> list[Asked]:
        asked = [Asked() for _ in keys]
        body = value_body(value)
        self.replicator.writes.write_many(
            (key, body, done) for key, done in zip(keys, asked, strict=True)
        )
        return asked

    def put_soon(self, key: bytes, value: bytes = b"value") -> Asked:
        """As clients do, each by itself."""
        asked = Asked()
        self.replicator.writes.write_soon(key, value_body(value), asked)
        return asked

    def delete(self, key: bytes) -> Asked:
        asked = Asked()
        self.replicator.writes.write(key, tombstone_body, asked)
        return asked

    def fetch(self, key: bytes, by: int = 0) -> Asked:
        asked = Asked()
        self.replicators[by].strong.fetch(key, asked)
        return asked

    def change(self, key: bytes, change: Change, by: int = 0, *, grows: bool = True) -> Asked:
        asked = Asked()
        self.replicators[by].strong.change(key, change, asked, grows=grows)
        return asked

    def plant(self, node: Node, key: bytes, record: bytes) -> None:
        """Have one replica hold a record that no other has, durably."""
        planter = _Planter()
        node.replica.write(planter, 1, encode_write(node.replica.epoch, key, record))
        self.pass_time(0.01)
        assert planter.told == [OK], planter.told

    def version(self, ahead_ms: int = 0, stamper: int = 99) -> Version:
        """A version of another replicator, by the wall clock."""
        return pack_version((self.replicator.clock.wall_ms() + ahead_ms) << 16, stamper)

    def messages(self, *kinds: int) -> int:
        """How many requests of these kinds have come to all nodes together."""
        return sum(node.asked[kind] for node in self.nodes.values() for kind in kinds)

    @property
    def writes_sent(self) -> int:
        return self.messages(WRITE, WRITE_MANY)


class _Planter:
    """A peer that keeps what it is told."""

    connected = True
    hello = Hello(Role.REPLICATOR, "replicator-9", 0, bytes(32))

    def __init__(self) -> None:
        self.told: list[int] = []

    def silent_s(self) -> float:
        return 0.0

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        raise AssertionError("a replica asks nobody")

    def notify(self, kind: int, body: bytes) -> bool:
        raise AssertionError("a replica tells nobody")

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        self.told.append(kind)
