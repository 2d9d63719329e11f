"""A node without links whose slots are collected: its handlers, and the turns of its loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from services.core import ballots
from services.core import messages as m
from services.core import sessions as s
from services.core.cluster import ClusterMap
from services.core.paxos import Promise
from services.core.record import value_body
from services.core.ring import slot_of
from services.core.wire import OK, Hello, Role
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.handlers import NodeHandlers
from services.dhtnode.membership import Membership
from services.dhtnode.replica import Replica
from services.runtime.clock import FakeClock
from services.runtime.link_limits import LinkCounters
from tests.unit.hand_peer import HandPeer
from tests.unit.replica_world import Answer, World, prefix, version
from tests.unit.test_membership import cluster_map

epoch = 3
operation = version(9_999)


def keys_in(slot: int, count: int) -> list[bytes]:
    """So many keys of one slot."""
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        key = prefix + b"in-%d" % number
        if slot_of(key) == slot:
            found.append(key)
        number += 1
    return sorted(found)


def passing(counter: int, expires_at_ms: int = FakeClock.epoch_ms) -> bytes:
    """A value that ends when the clock of these tests begins, unless another time is given."""
    return version(counter) + value_body(b"for now", expires_at_ms)


class BusyClock(FakeClock):
    """Time passes whenever it is asked for, so that a turn is a step or two."""

    spent_s = 0.0

    def monotonic_s(self) -> float:
        self.spent_s += 0.000_7
        return self.spent_s


class Node:
    """A replica of an odd epoch of which it has the map. Nothing is durable before `settle`, and
    what takes long is done by `finish` or turn by turn."""

    def __init__(self, *, epoch: int = epoch, world: World | None = None) -> None:
        self.world = world or World()
        self.replica = self.world.replica
        self.table = self.world.table
        self.membership = Membership(self.replica, lambda data: None)
        if epoch:
            self.membership.adopt(cluster_map(epoch))
        self.acceptor = Acceptor(self.replica, self.world.clock)
        self.due: list[Callable[[], None]] = []
        handlers = NodeHandlers(
            self.replica,
            self.membership,
            BusyClock(self.world.timeline),
            self.due.append,
            LinkCounters(),
        )
        self.handlers = handlers.table(self.acceptor.handlers())
        self.world.settle()

    def ask(self, kind: int, body: bytes) -> int:
        self.world.asked += 1
        self.handlers[kind](self.world.asker, self.world.asked, body)
        return self.world.asked

    def turn(self) -> None:
        due, self.due[:] = list(self.due), []
        for callback in due:
            callback()

    def finish(self) -> None:
        while self.due:
            self.turn()

    def answer(self, request_id: int) -> Answer | None:
        return self.world.answer(request_id)

    def told(self, kind: int, body: bytes) -> Answer:
        request_id = self.ask(kind, body)
        self.finish()
        self.world.settle()
        return self.world.asker.answers[request_id]

    # What clients, coordinators and collectors ask.

    def write(self, key: bytes, record: bytes) -> Answer:
        return self.told(m.WRITE, m.encode_write(self.replica.epoch, key, record))

    def prepare(self, key: bytes, counter: int) -> Answer:
        body = ballots.encode_prepare(self.replica.epoch, version(counter), key, grows=False)
        return self.told(ballots.PREPARE, body)

    def accept(self, key: bytes, counter: int, record: bytes) -> Answer:
        body = ballots.encode_accept(self.replica.epoch, version(counter), operation, key, record)
        return self.told(ballots.ACCEPT, body)

    def learn(self, key: bytes, counter: int, record: bytes = b"") -> None:
        body = ballots.encode_learn(self.replica.epoch, version(counter), key, record)
        self.handlers[ballots.LEARN](self.world.asker, 0, body)
        self.world.settle()

    def choose(self, key: bytes, counter: int, record: bytes) -> None:
        self.accept(key, counter, record)
        self.learn(key, counter)

    def freeze(self, slot: int, session: bytes) -> Answer:
        return self.told(s.FREEZE, s.encode_freeze(self.replica.epoch, slot, session))

    def compare(self, slot: int, session: bytes, after: bytes = b"") -> list[s.Compared]:
        body = s.encode_compare(self.replica.epoch, slot, session, after)
        kind, answer = self.told(s.COMPARE, body)
        assert kind == OK
        return s.decode_compared(answer).entries

    def repair(self, slot: int, session: bytes, *items: tuple[bytes, bytes]) -> Answer:
        return self.told(s.REPAIR, s.encode_repair(self.replica.epoch, slot, session, items))

    def purge(self, slot: int, session: bytes, *keys: tuple[bytes, bytes]) -> Answer:
        return self.told(s.PURGE, s.encode_purge(slot, session, keys))

    def stale(self, slot: int, at_ms: int = FakeClock.epoch_ms, after: bytes = b"") -> list[bytes]:
        kind, answer = self.told(s.STALE, s.encode_stale(self.replica.epoch, slot, at_ms, after))
        assert kind == OK
        return s.decode_key_page(answer).keys

    def held(self, key: bytes) -> Promise:
        return self.replica.promises.get(slot_of(key), key)

    def cell(self, key: bytes) -> bytes | None:
        return self.table.peek(slot_of(key), key)


def joint_map(number: int) -> bytes:
    """The map of an even epoch, in which two nodes are about to be one."""
    stable = ClusterMap.decode(cluster_map(number - 1))
    return replace(
        stable, epoch=number, members=stable.members[:1], old_members=stable.members
    ).encode()


def replicator_peer(name: str) -> HandPeer:
    return HandPeer(Hello(Role.REPLICATOR, name, epoch, bytes(32)))


def held_by(replica: Replica, slots: Iterable[int]) -> dict[bytes, Promise]:
    return {key: held for slot in slots for key, held in replica.promises.items(slot)}
