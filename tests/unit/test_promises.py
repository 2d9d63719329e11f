"""What promises take in memory: themselves, and the records that no cell has as well."""

from __future__ import annotations

import random
import tracemalloc
from unittest.mock import patch

from services.core import ballots
from services.core import messages as m
from services.core.record import head_bytes, tombstone_body, value_body
from services.core.ring import slot_count, slot_of
from services.core.wire import OK
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.promises import Promises, noted_memory_bytes, promise_memory_bytes
from services.dhtnode.replica import Replica
from services.dhtnode.upkeep import Upkeep
from services.runtime.clock import FakeClock
from tests.unit.replica_world import World, key_of, replayed, value, version

operation = bytes(12)
expiry_ms = FakeClock.epoch_ms + 1_000


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

    def unlearned(self, age_ms: int = 0, limit: int = 1_000) -> list[bytes]:
        """What a replicator is told."""
        self.world.asked += 1
        body = ballots.encode_unlearned(age_ms, limit)
        self.acceptor.list_unlearned(self.world.asker, self.world.asked, body)
        self.world.settle()
        kind, keys = self.world.asker.answers[self.world.asked]
        assert kind == OK
        return m.decode_get_many(keys)

    def choose(self, number: int, counter: int, record: bytes) -> None:
        self.accept(number, counter, record)
        self.learn(number, counter)
        self.world.settle()

    def trim(self) -> None:
        assert self.world.replica.trim_slice(expiry_ms + 1, 10 * slot_count)


def passing(counter: int, content: bytes = bytes(5_000)) -> bytes:
    """A value that ends at `expiry_ms`."""
    return version(counter) + value_body(content, expiry_ms)


def alone_bytes(replica: Replica) -> int:
    """Of all records that are held by a promise and are not the very cell."""
    return sum(
        len(held.record) + noted_memory_bytes
        for slot, key, held in replica.promises
        if held.record and replica.table.peek(slot, key) is not held.record
    )


def counted_bytes(replica: Replica) -> int:
    """What is counted besides the promises themselves, and the notes about keys that are held."""
    promises = replica.promises
    noted = promises.expired + len(promises.unlearned)
    taken = promises.count * promise_memory_bytes + noted * noted_memory_bytes
    return promises.memory_bytes - taken


def test_what_is_accepted_counts_until_it_is_learned_and_when_something_newer_came() -> None:
    strong = Strong()
    replica, record = strong.world.replica, value(1, bytes(5_000))
    strong.prepare(1, 1)
    assert counted_bytes(replica) == 0
    strong.accept(1, 1, record)
    assert counted_bytes(replica) == len(record) + noted_memory_bytes
    strong.learn(1, 1)
    assert counted_bytes(replica) == 0
    strong.write(1, value(2))
    assert counted_bytes(replica) == len(record) + noted_memory_bytes
    strong.accept(1, 3, value(3))
    assert counted_bytes(replica) == len(value(3)) + noted_memory_bytes
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


def test_what_a_newer_record_in_the_log_has_put_aside_counts_after_a_restart() -> None:
    strong = Strong()
    strong.choose(1, 1, value(1, bytes(50_000)))
    strong.prepare(1, 2)
    strong.write(1, value(3))
    strong.world.settle()
    assert counted_bytes(strong.world.replica) == 50_000 + head_bytes + noted_memory_bytes
    again = replayed(strong.world.frames)
    for _ in Acceptor(again, strong.world.clock).settle():
        pass
    assert counted_bytes(again) == alone_bytes(again) == counted_bytes(strong.world.replica)


def test_what_is_noted_about_keys_takes_no_more_than_is_counted_and_half_of_it_at_least() -> None:
    strong, keys = Strong(), [key_of(number) for number in range(20_000)]
    promises, table = strong.promises, strong.world.table
    for key in keys:
        slot, record = slot_of(key), value(1, bytes(300))
        table.put(slot, key, record)
        promises.put(slot, key, promises.get(slot, key)._replace(record=record))
        table.put(slot, key, value(2))
    before = promises.memory_bytes
    assert before == len(keys) * promise_memory_bytes
    tracemalloc.start()
    for number, key in enumerate(keys):
        promises.weigh(slot_of(key), key)
        promises.unlearned[key] = float(number)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    counted = promises.memory_bytes - before - len(keys) * len(value(1, bytes(300)))
    assert counted == len(keys) * 2 * noted_memory_bytes
    assert taken <= counted <= 2 * taken


def test_a_promise_is_weighed_once_for_what_becomes_of_it() -> None:
    strong = Strong()
    with patch.object(Promises, "weigh", autospec=True, side_effect=Promises.weigh) as weigh:
        strong.prepare(1, 1)
        assert weigh.call_count == 1
        strong.accept(1, 1, value(1))
        assert weigh.call_count == 2
        strong.learn(1, 1)
        assert weigh.call_count == 3


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


# Values that have expired.


def test_an_accepted_value_that_is_trimmed_counts_until_a_tombstone_was_chosen() -> None:
    strong = Strong()
    replica, key = strong.world.replica, key_of(1)
    strong.choose(1, 1, passing(1))
    assert counted_bytes(replica) == 0
    strong.trim()
    assert replica.table.peek(slot_of(key), key) == passing(1)[:head_bytes]
    assert counted_bytes(replica) == len(passing(1)) + noted_memory_bytes
    assert strong.promises.memory_bytes == (
        promise_memory_bytes + len(passing(1)) + 2 * noted_memory_bytes
    )
    assert strong.unlearned() == [key]
    strong.prepare(1, 2)
    strong.accept(1, 2, version(2) + tombstone_body)
    strong.learn(1, 2)
    assert counted_bytes(replica) == 0
    assert strong.promises.get(slot_of(key), key).record == version(2) + tombstone_body
    strong.trim()
    assert strong.unlearned() == []


def test_a_value_that_expired_is_told_once_after_every_look_and_as_one_of_few() -> None:
    strong = Strong()
    for number in range(10):
        strong.choose(number, 1, passing(1, b""))
    strong.choose(10, 1, value(1))
    strong.accept(11, 1, value(1))
    strong.world.settle()
    strong.trim()
    assert strong.promises.expired == 10
    keys = strong.unlearned(limit=4)
    assert keys[0] == key_of(11)
    told = {*keys[1:], *strong.unlearned(age_ms=1_000)}
    assert told == {key_of(number) for number in range(10)}
    assert strong.unlearned(age_ms=1_000) == []
    strong.trim()
    assert strong.promises.expired == 10
    strong.promises.wipe(slot_of(key_of(3)))
    strong.prepare(4, 5)
    assert strong.promises.expired == 8


def test_there_is_room_for_values_that_expired_beside_what_was_not_learned() -> None:
    strong = Strong()
    strong.choose(0, 1, passing(1))
    for number in range(1, 9):
        strong.accept(number, 1, value(1))
    strong.world.settle()
    assert strong.unlearned(limit=4) == [key_of(number) for number in range(1, 5)]
    strong.trim()
    assert strong.unlearned(limit=4) == [*(key_of(number) for number in range(5, 8)), key_of(0)]


def test_an_empty_cell_has_not_learned_a_value_that_does_not_end() -> None:
    strong = Strong()
    strong.write(1, version(1) + value_body(b""))
    strong.accept(1, 1, value(1))
    strong.world.settle()
    assert strong.unlearned() == [key_of(1)]


def test_an_old_value_that_expired_under_a_newer_write_is_let_go_too() -> None:
    strong = Strong()
    strong.choose(1, 1, passing(1))
    strong.write(1, value(2))
    strong.trim()
    assert strong.unlearned() == [key_of(1)]
    strong.choose(1, 3, value(2))
    assert counted_bytes(strong.world.replica) == 0


def test_after_a_snapshot_and_a_restart_a_trimmed_cell_is_not_an_unlearned_one() -> None:
    strong = Strong()
    strong.choose(1, 1, passing(1))
    strong.accept(2, 1, passing(1))
    strong.accept(3, 1, value(1))
    strong.trim()
    strong.world.settle()
    again = replayed(list(strong.world.replica.frames()))
    acceptor = Acceptor(again, strong.world.clock)
    for _ in acceptor.settle():
        pass
    assert acceptor.unlearned == 2
    assert again.promises.memory_bytes == (
        3 * promise_memory_bytes + alone_bytes(again) + 2 * noted_memory_bytes
    )
    again.trim_slice(expiry_ms + 1, 10 * slot_count)
    assert set(again.promises.take_expired(9)) == {key_of(1), key_of(2)}


def test_a_replicator_whose_clock_is_behind_does_not_make_a_trimmed_cell_an_unlearned_one() -> None:
    strong = Strong()
    strong.choose(1, 1, passing(1))
    strong.trim()
    strong.accept(1, 2, passing(1))
    assert strong.acceptor.unlearned == 0


def test_the_promises_of_a_slot_are_looked_at_with_its_cells_and_no_others() -> None:
    strong = Strong()
    for number in range(40):
        strong.choose(number, 1, passing(1, b""))
    told: list[bytes] = []
    ended = False
    while not ended:
        ended = strong.world.replica.trim_slice(expiry_ms + 1, 64)
        below = strong.world.table.trim_next or slot_count
        told += strong.promises.take_expired(40)
        assert len(told) == sum(slot_of(key_of(number)) < below for number in range(40))
    assert len(set(told)) == 40


# One object, not two.


def test_a_record_that_is_learned_in_full_or_was_written_before_is_held_once() -> None:
    strong = Strong()
    replica, record = strong.world.replica, value(1, bytes(5_000))
    strong.accept(1, 1, record)
    strong.learn(1, 1, bytes(bytearray(record)))
    assert counted_bytes(replica) == alone_bytes(replica) == 0
    strong.accept(2, 1, record)
    strong.write(2, record)
    assert counted_bytes(replica) == alone_bytes(replica) == len(record) + noted_memory_bytes
    strong.learn(2, 1)
    assert counted_bytes(replica) == alone_bytes(replica) == 0


# Those that cannot be finished hide no others.


def test_keys_that_were_told_of_go_behind_those_that_were_not() -> None:
    strong = Strong()
    keys = [key_of(number) for number in range(25)]
    for number in range(25):
        strong.accept(number, 1, value(1))
    strong.world.settle(1.0)
    assert strong.unlearned(1_000, 10) == keys[:10]
    assert strong.unlearned(1_000, 10) == keys[10:20]
    assert strong.unlearned(1_000, 10) == keys[20:]
    assert strong.unlearned(1_000, 10) == []
    strong.world.settle(1.0)
    assert strong.unlearned(1_000, 10) == keys[:10]
    assert strong.acceptor.unlearned == 25
