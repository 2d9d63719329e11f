"""Collecting on a disk that loses its power: what was told is kept, and nothing half done is."""

from __future__ import annotations

import random

import pytest

from services.core.wire import OK
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.recovery import Recovery
from services.dhtnode.replica import Replica
from services.dhtnode.snapshot import SnapshotWriter
from services.dhtnode.table import Table
from services.runtime.clock import FakeClock, Timeline
from tests.unit.replica_world import World, digest_key, tombstone, version
from tests.unit.session_world import BusyClock, Node, keys_in, operation
from tests.unit.test_purging import change_one, copy_of, names, recovered

lives = 8


class Snapshots:
    """Writes a snapshot whenever it is told to and none is being written."""

    def __init__(self, world: World) -> None:
        self.ended = 0
        self._world = world
        # A slice of writing has room for a piece or two, and changes come in between.
        self._clock = BusyClock(world.timeline)
        self._writer: SnapshotWriter | None = None

    def begin(self) -> None:
        if self._writer is None:
            world = self._world
            self._writer = SnapshotWriter(
                world.directory, world.log, self._clock, world.replica.frames(), self._finished
            )
            self._writer.start()

    def _finished(self, _: SnapshotWriter, error: OSError | None) -> None:
        assert error is None
        self.ended += 1
        self._writer = None

    def stop(self) -> None:
        if self._writer is not None:
            self._writer.cancel()


def recover(world: World) -> tuple[Replica, int]:
    """What the next process finds, and after how many changes the log ends."""
    directory = NodeDirectory.open(world.disk, world.directory.path, "n", bytes(16))
    replica = Replica(Table(digest_key), FakeClock(Timeline()))
    recovery = Recovery(directory, replica.replay)
    for _ in recovery.steps():
        pass
    for _ in Acceptor(replica, FakeClock(Timeline())).settle():
        pass
    directory.close()
    return replica, recovery.result.next_sequence - 1


@pytest.mark.parametrize("seed", range(lives))
def test_wherever_the_power_goes_the_log_gives_back_what_it_ended_with(seed: int) -> None:
    draw = random.Random(seed)
    node = Node(world=World(segment_bytes=6_000, commit_bytes_max=2_500))
    world = node.world
    snapshots = Snapshots(world)
    states = {len(world.frames): copy_of(node.replica)}
    counter = 0
    for _ in range(draw.randrange(40, 250)):
        counter += draw.random() < 0.7
        what = draw.choice([name for name in names if name != "trim"])
        change_one(node, (what, draw.randrange(5), max(1, counter)))
        states[len(world.frames)] = copy_of(node.replica)
        if draw.random() < 0.1:
            snapshots.begin()
        if draw.random() < 0.3:
            world.settle(draw.choice([0.0, 0.000_3, 0.002, 0.02]))
    snapshots.stop()
    durable = world.log.durable_sequence
    world.disk.crash()
    found, length = recover(world)
    assert length >= durable
    assert copy_of(found) == copy_of(recovered(world.frames[:length]))
    # Between two changes of one message a log may end as well.
    if length in states:
        assert copy_of(found) == states[length]
    assert found.sessions == {}


@pytest.mark.parametrize("told", ["nothing", "frozen", "purged"])
def test_a_power_cut_takes_back_nothing_that_a_collector_was_told(told: str) -> None:
    node = Node()
    slot, key = 0, keys_in(0, 1)[0]
    node.accept(key, 2, tombstone(2))
    node.learn(key, 2)
    if told != "nothing":
        assert node.freeze(slot, version(5)) == (OK, b"")
    if told == "purged":
        assert node.purge(slot, version(5), (key, version(2))) == (OK, b"")
    # On its way when the power goes.
    node.learn(key, 2)
    change_one(node, ("purge", 0, 5))
    node.world.disk.crash()
    found, _ = recover(node.world)
    assert found.floors == ({} if told == "nothing" else {slot: version(5)})
    if told == "purged":
        assert (found.table.peek(slot, key), found.promises.count) == (None, 0)
        assert found.table.ended(slot) == 0
    else:
        assert found.table.peek(slot, key) in (tombstone(2), None)
    if told == "nothing":
        assert found.promises.get(slot, key)[1:] == (version(2), operation, tombstone(2))
