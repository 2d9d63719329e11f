"""What promises take in memory: themselves, and the records that no cell has as well."""

from __future__ import annotations

import random

from services.core import ballots
from services.core import messages as m
from services.core.ring import slot_of
from services.core.wire import OK
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.promises import promise_memory_bytes
from services.dhtnode.replica import Replica
from services.dhtnode.upkeep import Upkeep
from tests.unit.replica_world import World, key_of, replayed, value, version

operation = bytes(12)


class Strong:
    """A replica with its acceptor."""

    def __init__(self) -> None:
        self.world = World()
        self.acceptor = Acceptor(self.world.replica, self.world.clock)
        self.promises = self.world.replica.promises

    def prepare(self, number: int, counter: int) -> None:
        body = ballots.encode_prepare(0, version(counter), key_of(number), grows=False)
        self.world.asked += 1
        self.acceptor.prepare(self.world.asker, self.world.asked, body)

    def accept(self, number: int, counter: int, record: bytes) -> None:
        body = ballots.encode_accept(0, version(counter), operation, key_of(number), record)
        self.world.asked += 1
        self.acceptor.accept(self.world.asker, self.world.asked, body)

    def learn(self, number: int, counter: int, record: bytes = b"") -> None:
        body = ballots.encode_learn(0, version(counter), key_of(number), record)
        self.acceptor.learn(self.world.asker, 0, body)

    def write(self, number: int, record: bytes) -> None:
        self.world.ask("write", m.encode_write(0, key_of(number), record))


def alone_bytes(replica: Replica) -> int:
    """Of all records that are held by a promise and are not the very cell."""
    return sum(
        len(held.record)
        for slot, key, held in replica.promises
        if held.record and replica.table.peek(slot, key) is not held.record
    )


def counted_bytes(replica: Replica) -> int:
    return replica.promises.memory_bytes - replica.promises.count * promise_memory_bytes


def test_what_is_accepted_counts_until_it_is_learned_and_when_something_newer_came() -> None:
    strong = Strong()
    replica, record = strong.world.replica, value(1, bytes(5_000))
    strong.prepare(1, 1)
    assert counted_bytes(replica) == 0
    strong.accept(1, 1, record)
    assert counted_bytes(replica) == len(record)
    strong.learn(1, 1)
    assert counted_bytes(replica) == 0
    strong.write(1, value(2))
    assert counted_bytes(replica) == len(record)
    strong.accept(1, 3, value(3))
    assert counted_bytes(replica) == len(value(3))
    strong.promises.wipe(slot_of(key_of(1)))
    assert (counted_bytes(replica), strong.promises.memory_bytes) == (0, 0)


def test_the_count_is_that_of_looking_at_every_promise_after_any_order_of_things() -> None:
    draw = random.Random(5)
    strong = Strong()
    replica = strong.world.replica
    for counter in range(1, 1_500):
        number = draw.randrange(12)
        record = value(counter, bytes(draw.randrange(400)))
        held = strong.promises.get(slot_of(key_of(number)), key_of(number))
        match draw.randrange(6):
            case 0:
                strong.prepare(number, counter)
            case 1 | 2:
                strong.accept(number, counter, record)
            case 3:
                strong.learn(number, int.from_bytes(held.ballot[6:8], "big") or counter)
            case 4:
                strong.learn(number, counter, record)
            case _:
                strong.write(number, record)
        assert counted_bytes(replica) == alone_bytes(replica)
    assert counted_bytes(replica) > 0
    strong.world.settle()
    for frames in (strong.world.frames, list(replica.frames())):
        again = replayed(frames)
        for _ in Acceptor(again, strong.world.clock).settle():
            pass
        assert again.promises.count == strong.promises.count
        assert counted_bytes(again) == alone_bytes(again)


def test_promises_alone_use_up_the_memory_that_puts_may_take() -> None:
    strong = Strong()
    world = strong.world
    used = world.replica.memory_bytes
    upkeep = Upkeep(
        world.replica,
        world.log,
        world.directory,
        world.clock,
        memory_max_bytes=used + (1 << 20),
        disk_reserve_bytes=0,
    )
    promised = 0
    while world.replica.full is None and promised < 6_000:
        strong.prepare(promised, 1)
        world.settle(0.01)
        upkeep.notice()
        promised += 1
    assert world.table.total.keys == 0
    assert promised * promise_memory_bytes > 1 << 20 > (promised - 1) * promise_memory_bytes
    kind, reason = world.write(key_of(1), value(2))
    assert (kind, b"MEMORY_MAX" in reason) == (m.STORAGE_FULL, True)


def test_values_that_are_accepted_and_never_learned_use_it_up_too() -> None:
    strong = Strong()
    world = strong.world
    upkeep = Upkeep(
        world.replica,
        world.log,
        world.directory,
        world.clock,
        memory_max_bytes=world.replica.memory_bytes + (1 << 20),
        disk_reserve_bytes=0,
    )
    for number in range(11):
        assert world.replica.full is None
        strong.accept(number, 1, value(1, bytes(100_000)))
        world.settle()
        upkeep.notice()
    assert world.replica.full is not None
    assert world.asker.answers[world.asked] == (OK, b"")
