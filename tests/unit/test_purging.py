"""What a purge takes away, live and when log and snapshot are replayed: the same, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core import ballots
from services.core import messages as m
from services.core import sessions as s
from services.core.errors import PeerError
from services.core.hlc import version_zero
from services.core.ring import leaf_bits, place_of, slot_count
from services.dhtnode import frame, replica_state
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.purging import Purged, decode_purged
from services.dhtnode.replica import Replica
from services.runtime.clock import FakeClock, Timeline
from tests.unit.replica_world import replayed, tombstone, value, version
from tests.unit.session_world import Node, held_by, keys_in, passing
from tests.unit.test_promises import alone_bytes, counted_bytes

# The first slots of a snapshot, so that changes come in between what is written of them.
slots = (0, 1)
keys = [*keys_in(0, 3), *keys_in(1, 2)]
slot_of_key = {key: place_of(key) >> leaf_bits for key in keys}
later_ms = FakeClock.epoch_ms + 400

names = (
    *("put", "delete", "delete", "passing", "lasting"),
    *("prepare", "accept", "accept", "accept none", "accept tombstone", "learn", "relearn"),
    *("freeze", "freeze", "repair", "repair tombstone", "purge", "purge", "purge some", "trim"),
)
Change = tuple[str, int, int]
changes = st.lists(
    st.tuples(st.sampled_from(names), st.integers(0, 4), st.integers(1, 40)), max_size=30
)


def change_one(node: Node, change: Change) -> None:
    """Do one thing, at whatever version; the rules of the replica say what becomes of it."""
    what, number, counter = change
    key = keys[number]
    if what in written:
        record = written[what](counter)
        node.ask(m.WRITE, m.encode_write(node.replica.epoch, key, record))
    elif what in ("freeze", "repair", "repair tombstone", "purge", "purge some"):
        collect_one(node, key, what, counter)
    elif what == "trim":
        node.table.trim_next = 0
        node.replica.trim_slice(FakeClock.epoch_ms + counter % 40 * 20, 5)
    else:
        operate_one(node, key, what, counter)


written: dict[str, Callable[[int], bytes]] = {
    "put": value,
    "delete": tombstone,
    "passing": passing,
    "lasting": lambda counter: passing(counter, later_ms),
}


def operate_one(node: Node, key: bytes, what: str, counter: int) -> None:
    """A message of a strong operation."""
    own, held = node.replica.epoch, node.held(key)
    if what == "prepare":
        body = ballots.encode_prepare(own, version(counter), key, grows=False)
        node.ask(ballots.PREPARE, body)
    elif what.startswith("accept"):
        # As an operation does it: what it accepts is new, or what was found.
        found = max(node.cell(key) or b"", held.record)
        record = {"accept": found, "accept none": b""}.get(what, tombstone(counter))
        if record[:12] <= version(counter):
            body = ballots.encode_accept(own, version(counter), version(counter), key, record)
            node.ask(ballots.ACCEPT, body)
    elif what == "learn":
        body = ballots.encode_learn(own, held.ballot, key, b"")
        node.handlers[ballots.LEARN](node.world.asker, 0, body)
    elif counter >= 5:
        body = ballots.encode_learn(own, version(counter), key, tombstone(5))
        node.handlers[ballots.LEARN](node.world.asker, 0, body)


def collect_one(node: Node, key: bytes, what: str, counter: int) -> None:
    """A message of a collector, about whatever floor there is."""
    own, slot = node.replica.epoch, slot_of_key[key]
    floor = node.replica.floors.get(slot, version_zero)
    if what == "freeze":
        node.ask(s.FREEZE, s.encode_freeze(own, slot, version(counter)))
    elif what.startswith("repair"):
        record = tombstone(counter) if what.endswith("tombstone") else value(counter)
        if record[:12] <= floor:
            node.ask(s.REPAIR, s.encode_repair(own, slot, floor, [(key, record)]))
    elif floor != version_zero:
        told = [
            (key, node.held(key).ballot)
            for number, key in enumerate(keys)
            if slot_of_key[key] == slot and (what == "purge" or counter >> number & 1)
        ]
        node.ask(s.PURGE, s.encode_purge(slot, floor, told))
    node.finish()


@dataclass
class Copy:
    """All that has to be the same of two replicas of which one was recovered."""

    cells: dict[bytes, bytes | None]
    promises: dict[bytes, tuple[bytes, bytes, bytes, bytes]]
    floors: dict[int, bytes]
    leaves: list[bytes]
    tombstones: int
    promises_ended: list[int]


def copy_of(replica: Replica) -> Copy:
    return Copy(
        {key: replica.table.peek(slot_of_key[key], key) for key in keys},
        {key: tuple(held) for key, held in held_by(replica, slots).items()},  # type: ignore[misc]
        dict(replica.floors),
        [replica.table.leaves(slot) for slot in slots],
        replica.table.total.tombstones,
        [replica.promises.ended(slot, ()) for slot in slots],
    )


def frames_of(replica: Replica) -> Iterator[tuple[int, bytes]]:
    """A snapshot, but for the slots that have nothing here: they take long to pass over."""
    begun = False
    for kind, body in replica.frames():
        if kind == frame.EPOCH and begun:
            return
        begun = True
        yield kind, body


def recovered(frames: list[tuple[int, bytes]]) -> Replica:
    again = replayed(frames)
    for _ in Acceptor(again, FakeClock(Timeline())).settle():
        pass
    return again


def assert_same(live: Replica, again: Replica) -> None:
    # Values that were trimmed are whole in a log, which is as well: they have expired there, too.
    for each in (live, again):
        each.table.trim_next = 0
        each.trim_slice(later_ms + 1_000, 5)
        while not each.table.tend_slice(1_000):
            pass
    assert copy_of(again) == copy_of(live)
    for each in (live, again):
        for slot in slots:
            ended = each.table.ended(slot)
            assert each.table.rebuild_digest(slot) == []
            assert each.table.ended(slot) == ended
            assert each.table.sound(slot)
    # What an index has yet to hear of may differ.
    lag_bytes_max = 1_000
    assert abs(again.table.memory_bytes - live.table.memory_bytes) <= lag_bytes_max
    for each in (live, again):
        assert counted_bytes(each) == alone_bytes(each)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is written in many pieces."""
    monkeypatch.setattr(replica_state, "chunk_bytes", 40)


@settings(max_examples=60)
@given(
    before=changes,
    during=changes,
    after=changes,
    paces=st.lists(st.integers(0, 9), min_size=1, max_size=12),
)
def test_a_snapshot_that_was_written_during_purges_and_the_log_behind_it_give_the_replica_back(
    before: list[Change], during: list[Change], after: list[Change], paces: list[int]
) -> None:
    node = Node()
    for change in before:
        change_one(node, change)
    first = len(node.world.frames)
    pending = list(during)
    snapshot = []
    for number, told in enumerate(frames_of(node.replica)):
        snapshot.append(told)
        for _ in range(paces[number % len(paces)]):
            if pending:
                change_one(node, pending.pop(0))
    for change in pending + after:
        change_one(node, change)
    assert_same(node.replica, recovered(snapshot + node.world.frames[first:]))
    assert_same(node.replica, recovered(node.world.frames))
    # Nobody waits for what never comes.
    node.world.settle(1.0)
    assert len(node.world.asker.answers) == node.world.asked


@settings(max_examples=10)
@given(done=changes)
def test_a_log_that_ends_anywhere_gives_back_what_there_was_at_that_change(
    done: list[Change],
) -> None:
    node = Node()
    states = {len(node.world.frames): copy_of(node.replica)}
    for change in done:
        if change[0] != "trim":
            change_one(node, change)
            states[len(node.world.frames)] = copy_of(node.replica)
    for length, state in states.items():
        assert copy_of(recovered(node.world.frames[:length])) == state


# By example, what would go wrong.

slot = 0
key = keys[0]


def purged_of(node: Node) -> list[Purged]:
    return [decode_purged(body) for kind, body in node.world.frames if kind == frame.PURGED]


def test_a_promise_made_after_a_purge_keeps_nothing_of_what_was_accepted_before_it() -> None:
    """The log before the purge still says that it was accepted; the snapshot has the promise."""
    node = Node()
    node.prepare(key, 1)
    first = len(node.world.frames)
    node.choose(key, 2, tombstone(2))
    node.freeze(slot, version(5))
    node.purge(slot, version(5), (key, version(2)))
    node.prepare(key, 9)
    again = recovered([*frames_of(node.replica), *node.world.frames[first:]])
    assert again.promises.get(slot, key) == node.held(key)
    assert node.held(key).promised == version(9)
    assert node.held(key).ballot == version_zero
    assert_same(node.replica, again)


def test_a_tombstone_that_is_learned_again_after_its_purge_is_there_after_a_restart() -> None:
    """A later ballot has taken its place among the promises, so that only the log knows it."""
    node = Node()
    node.choose(key, 2, tombstone(2))
    node.freeze(slot, version(5))
    first = len(node.world.frames)
    node.purge(slot, version(5), (key, version(2)))
    node.choose(key, 7, tombstone(2))
    node.accept(key, 9, value(9))
    again = recovered([*frames_of(node.replica), *node.world.frames[first:]])
    assert again.table.peek(slot, key) == tombstone(2)
    assert_same(node.replica, again)


def test_it_is_there_also_if_its_promise_was_left_or_there_was_none() -> None:
    for promised in (None, 6):
        node = Node()
        node.write(key, tombstone(2))
        node.freeze(slot, version(5))
        if promised is not None:
            node.prepare(key, promised)
        first = len(node.world.frames)
        node.purge(slot, version(5), (key, version_zero))
        node.choose(key, 7, tombstone(2))
        node.accept(key, 9, value(9))
        again = recovered([*frames_of(node.replica), *node.world.frames[first:]])
        assert again.table.peek(slot, key) == tombstone(2)
        assert_same(node.replica, again)


def test_what_is_learned_above_the_floor_after_a_purge_is_there_after_a_restart() -> None:
    node = Node()
    node.write(key, tombstone(2))
    node.freeze(slot, version(5))
    first = len(node.world.frames)
    node.purge(slot, version(5), (key, version_zero))
    node.choose(key, 7, value(7))
    node.accept(key, 9, value(9))
    again = recovered([*frames_of(node.replica), *node.world.frames[first:]])
    assert again.table.peek(slot, key) == value(7)
    assert_same(node.replica, again)


def test_what_a_later_session_repairs_below_an_earlier_floor_survives_the_earlier_purge() -> None:
    node = Node()
    node.write(key, tombstone(2))
    node.freeze(slot, version(5))
    first = len(node.world.frames)
    node.purge(slot, version(5), (key, version_zero))
    node.freeze(slot, version(8))
    node.repair(slot, version(8), (key, value(4)))
    again = recovered([*frames_of(node.replica), *node.world.frames[first:]])
    assert again.table.peek(slot, key) == value(4)
    assert_same(node.replica, again)


def test_a_floor_that_rose_later_does_not_take_a_promise_that_an_earlier_purge_has_left() -> None:
    node = Node()
    first = len(node.world.frames)
    node.freeze(slot, version(5))
    node.write(keys[1], tombstone(7))
    node.prepare(key, 6)
    node.purge(slot, version(5), (key, version_zero), (keys[1], version_zero))
    node.freeze(slot, version(8))
    again = recovered([*frames_of(node.replica), *node.world.frames[first:]])
    assert again.promises.get(slot, key).promised == version(6)
    assert_same(node.replica, again)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        Purged(slot_count, version(1), []).encode(),
        Purged(1, version(1), [(key, True, False)]).encode(),
        Purged(slot, version(1), [(key, False, False)]).encode(),
        Purged(slot, version(1), [(b"no key", True, False)]).encode(),
        Purged(slot, version(1), [(key, True, True)]).encode() + b"\0",
        Purged(slot, version(1), [(key, True, True)]).encode()[:-1] + b"\4",
        Purged(slot, version(1), [(key, True, True)]).encode()[:-1],
    ],
)
def test_a_frame_that_no_purge_wrote_is_refused(body: bytes) -> None:
    with pytest.raises(PeerError):
        replayed([(frame.PURGED, body)])


@given(
    gone=st.lists(
        st.tuples(st.sampled_from(keys[:3]), st.booleans(), st.booleans()).filter(
            lambda entry: entry[1] or entry[2]
        )
    )
)
def test_what_was_purged_comes_out_as_it_went_in(gone: list[tuple[bytes, bool, bool]]) -> None:
    purged = Purged(slot, version(2), gone)
    assert decode_purged(purged.encode()) == purged
    assert purged.cells == [cell for _, cell, _ in gone].count(True)
    assert purged.promises == [promise for _, _, promise in gone].count(True)
