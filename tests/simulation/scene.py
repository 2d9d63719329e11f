"""Three nodes and two replicators for a scene that is told step by step, in good weather but for
what the scene does to single pairs of processes."""

from __future__ import annotations

import random
from collections.abc import Callable

from services.core import operations as o
from services.core.cluster import ClusterMap
from services.core.record import is_tombstone, value
from services.core.ring import slot_of
from services.core.wire import Role
from services.replicator.collection_end import Collected
from services.replicator.memory_map_store import Rows
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeLink, FakeNetwork
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.peer import Peer
from tests.simulation.asked import outcome_of, request_of
from tests.simulation.cluster_keys import keys_of_one_slot
from tests.simulation.cluster_operator import Operator
from tests.simulation.history import Action, History, Operation
from tests.simulation.key_model import KeyModel
from tests.simulation.linearizability import check
from tests.simulation.machines import MapStoreOfChanges, NodeMachine, ReplicatorMachine, Site
from tests.simulation.node_life import secret
from tests.simulation.replicator_life import finish
from tests.simulation.slow_network import SlowNetwork

answer_s = 2.5
patience_s = 20.0


class Held:
    """Messages of one kind from one sender, or from all, which wait before a node. They come to it
    when they are let go, or never."""

    def __init__(self, station: Station, kind: int, sender: str | None) -> None:
        self.messages: list[tuple[Peer, int, bytes]] = []
        self._sender = sender
        self._kind = kind
        assert isinstance(station.handlers, dict)
        self._handlers = station.handlers
        self._handler = station.handlers[kind]
        self._handlers[kind] = self._meet

    def _meet(self, peer: Peer, request_id: int, body: bytes) -> None:
        if self._sender in (None, peer.hello.id):
            self.messages.append((peer, request_id, body))
        else:
            self._handler(peer, request_id, body)

    def forget(self) -> None:
        """What waits does not arrive, and what follows does not wait any more."""
        self._handlers[self._kind] = self._handler
        self.messages = []

    def let_go(self) -> None:
        """All that waits arrives. An answer reaches nobody whose connection has ended meanwhile."""
        messages = self.messages
        self.forget()
        for peer, request_id, body in messages:
            self._handler(peer, request_id, body)


class Scene:
    """`ask` begins an operation, `wait` lets time pass; `verdict` says what is wrong at the end."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.back = SlowNetwork(random.Random(0), self.timeline)
        self.front = FakeNetwork(random.Random(0))
        self.rows = Rows()
        store = MapStoreOfChanges(self.rows, 3, 3)
        self.site = Site(random.Random(0), self.timeline, self.back, self.front, store)
        self.nodes = [NodeMachine(self.site, number, 0) for number in (1, 2, 3)]
        self.replicators = [ReplicatorMachine(self.site, number, 0) for number in (1, 2)]
        self.history = History(lambda: self.timeline.now_s)
        self.key = keys_of_one_slot()[0]
        self.slot = slot_of(self.key)
        for node in self.nodes:
            node.start()
            finish(store.register(node.member))
        # From here on they are known by their place among the owners of the key.
        owners = self.map.owners(self.slot)
        self.nodes.sort(key=lambda machine: owners.index(machine.name))
        for replicator in self.replicators:
            replicator.start()
        self.station = Station(Identity(Role.GATEWAY, "client", secret))
        self.front.attach(self.station, FakeClock(self.timeline))
        self.links = [FakeLink(self.front, "client", each.name) for each in self.replicators]
        for link in self.links:
            link.start()
        self.operator = Operator(self.site, self.nodes, [self.key])
        self.wait(0.5)

    def wait(self, seconds: float) -> None:
        self.timeline.advance(seconds)

    @property
    def map(self) -> ClusterMap:
        newest = finish(self.site.store.newest())
        assert newest is not None
        return newest

    # -- who speaks with whom

    def cut(self, replicator: int, *nodes: int) -> None:
        """Nothing that this replicator sends reaches these nodes."""
        for node in nodes:
            self.back.block(f"replicator-{replicator}", self._name(node))

    def cut_operator(self, *nodes: int) -> None:
        for node in nodes:
            self.back.block("operator", self._name(node))

    def _name(self, node: int) -> str:
        return self.nodes[node - 1].name

    def mend(self) -> None:
        self.back.heal()
        self.back.late_s.clear()

    def hold(self, kind: int, *nodes: int, of: int | None = None) -> list[Held]:
        """Messages of this kind, of one replicator or of all, wait before these nodes."""
        held = []
        for node in nodes:
            life = self.nodes[node - 1].node
            assert life is not None
            assert life.station is not None
            held.append(Held(life.station, kind, None if of is None else f"replicator-{of}"))
        return held

    def let_go(self, held: list[Held]) -> None:
        for each in held:
            each.let_go()
        self.wait(0.2)

    def wait_until(self, done: Callable[[], object]) -> None:
        """Let pass as much time as it takes, and no more."""
        end_s = self.timeline.now_s + patience_s
        while not done():
            assert self.timeline.now_s < end_s, "it does not come to that"
            assert self.timeline.step()

    def delay(self, replicator: int, node: int, seconds: float) -> None:
        self.back.late_s[f"replicator-{replicator}", self._name(node)] = seconds

    # -- strong operations

    def ask(self, replicator: int, action: Action, key: bytes | None = None) -> Operation:
        operation = self.history.invoke(f"client-{replicator}", key or self.key, action)

        def answered(kind: int, body: bytes) -> None:
            self.history.resolve(operation, outcome_of(action, kind, body))

        kind, body = request_of(action, operation.key)
        assert not self.links[replicator - 1].request(kind, body, answered, answer_s)
        return operation

    def ask_until_promised(self, replicator: int, action: Action) -> Operation:
        """Ask, and stop in the moment in which two nodes have promised a ballot for it."""
        before = self._promised()
        operation = self.ask(replicator, action)
        while sum(one != other for one, other in zip(before, self._promised(), strict=True)) < 2:
            assert self.timeline.step()
        return operation

    def _promised(self) -> list[bytes]:
        lives = [machine.node for machine in self.nodes]
        return [
            life.replica.promises.get(self.slot, self.key).promised
            for life in lives
            if life is not None
        ]

    def restart(self, node: int) -> None:
        machine = self.nodes[node - 1]
        machine.stop(power_cut=False)
        self.wait(0.05)
        machine.start()
        self.wait(0.5)

    def asked(self, replicator: int, action: Action) -> Operation:
        """Ask, and wait for the answer."""
        operation = self.ask(replicator, action)
        self.wait(0.2)
        return operation

    @property
    def verdict(self) -> str | None:
        """What the history of strong operations shows to be wrong."""
        violations = check(self.history.operations, KeyModel(FakeClock.epoch_ms, 900)).violations
        return violations[0] if violations else None

    # -- cells

    def put(self, replicator: int, value: bytes) -> None:
        """Write eventually, and wait for the acknowledgement."""
        self._write(replicator, o.PUT, o.encode_put(self.key, value))

    def delete(self, replicator: int) -> None:
        self._write(replicator, o.DELETE, self.key)

    def _write(self, replicator: int, kind: int, body: bytes) -> None:
        told = []

        def answered(kind: int, body: bytes) -> None:
            told.append(kind)

        assert not self.links[replicator - 1].request(kind, body, answered, answer_s)
        self.wait(0.03)
        assert told == [o.CHANGED]

    # -- collecting

    def collect(self, replicator: int) -> Collected:
        """Have the slot collected by one attempt; how it ended."""
        ended = self.begin_to_collect(replicator)
        self.wait_until(lambda: ended)
        self.wait(0.1)
        return ended[0]

    def begin_to_collect(self, replicator: int) -> list[Collected]:
        """Begin one attempt; how it ends is in the list as soon as it has."""
        ended: list[Collected] = []
        self.replicators[replicator - 1].collect(self.slot, ended.append)
        return ended

    def lose(self, replicator: int) -> None:
        """It dies, and all that it has kept is lost."""
        machine = self.replicators[replicator - 1]
        machine.stop(power_cut=True)
        machine.lose_directory()
        self.wait(0.1)

    def left(self) -> list[str]:
        """What replicas have of the key, each that has anything."""
        found = []
        for number, machine in enumerate(self.nodes, 1):
            if machine.node is None:
                continue
            replica = machine.node.replica
            cell = replica.table.peek(self.slot, self.key)
            if cell is not None:
                found.append(f"node {number} has the cell {cell!r}")
            if replica.promises.holds(self.slot, self.key):
                promise = replica.promises.get(self.slot, self.key)
                found.append(f"node {number} has the promise {promise}")
        return found

    def send(self, node: int, kind: int, message: bytes) -> bytes:
        """A message of some replicator comes to a node, however late; what is answered."""
        life = next(each.replicator for each in self.replicators if each.up)
        assert life is not None
        told: list[bytes] = []

        def answered(kind: int, body: bytes) -> None:
            told.append(body)

        link = life.fleet.nodes[self._name(node)].link
        assert not link.request(kind, message, answered, answer_s)
        self.wait(0.1)
        return b"".join(told)

    def owe(self, node: int, record: bytes) -> None:
        """A replicator has kept a hint of this record."""
        life = self.replicators[0].replicator
        assert life is not None
        life.hints.keep(self._name(node), self.key, record)
        self.wait(0.5)

    @property
    def stamp(self) -> bytes:
        """A version of this moment."""
        life = self.replicators[0].replicator
        assert life is not None
        return life.stamps.tick()

    def compare_nothing(self) -> None:
        """Replicas get no better by themselves from here on."""
        for machine in self.replicators:
            assert machine.replicator is not None
            machine.replicator.anti_entropy.stop()

    # -- members

    def replace(self, leaving: list[int]) -> None:
        """Begin to put new nodes into the places of these."""
        stay = [machine for number, machine in enumerate(self.nodes, 1) if number not in leaving]
        joining = [NodeMachine(self.site, 4 + number, 0) for number in range(len(leaving))]
        self.nodes.extend(joining)
        for machine in joining:
            machine.start()
        self.operator.begin(self.map, stay + joining)

    def values(self) -> set[bytes]:
        """What the owners' cells show to eventual reads."""
        found = set()
        for name in self.map.owners(self.slot):
            machine = next(each for each in self.nodes if each.name == name)
            assert machine.node is not None
            cell = machine.node.replica.table.peek(self.slot, self.key)
            if cell and not is_tombstone(cell):
                found.add(value(cell))
        return found
