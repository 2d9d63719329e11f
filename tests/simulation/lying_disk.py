"""A node's log, snapshots and recovery on a disk that lies, tears and fails.

One node lives many lives on one disk. Each life recovers, logs changes, takes snapshots, and ends:
by a power cut, kill -9, a failed sync, or in order; also in the middle of its recovery. What must
hold after every recovery: the state is exactly that after some number of the changes that were
ever appended, in their order (nothing invented); that number covers everything that was
acknowledged, and everything an earlier recovery has shown (nothing lost); after a failure of the
disk nothing is acknowledged; and no recovery takes an honest crash for damage.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

from services.core.errors import FatalError, PeerError
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import EPOCH, RECORD, REMOVE, SLOT
from services.dhtnode.recovery import Recovery
from services.dhtnode.snapshot import SnapshotWriter
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk, Operation
from services.runtime.log.log import Batch, Log
from tests.simulation.scenario import Outcome

lives = 12
path = Path("/data/nodes/node-1")
segment_bytes = 6_000
commit_bytes_max = 2_500
keys = 24
slots = 4
store_id = bytes(range(16))
# Every call with which opening and recovery change the disk.
interruptible: tuple[Operation, ...] = (
    "write",
    "sync",
    "rename",
    "remove",
    "sync_directory",
    "open",
    "make_directory",
)

_change = Struct(">BQ")
_slot_head = Struct(">HH")


class Table:
    """The state: for each key the number of the last change that set it, and an epoch."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.epoch = 0

    def copy(self) -> Table:
        twin = Table()
        twin.numbers, twin.epoch = dict(self.numbers), self.epoch
        return twin

    def apply(self, kind: int, body: bytes) -> None:
        if kind == SLOT:
            for key, number in _change.iter_unpack(body[_slot_head.size :]):
                self._set(key, number)
            return
        key, number = _change.unpack_from(body)
        if kind == RECORD:
            if body[_change.size :] != filler(number, len(body) - _change.size):
                raise PeerError("the body of a record is another's")
            self._set(key, number)
        elif kind == EPOCH:
            self.epoch = max(self.epoch, number)
        elif kind == REMOVE and self.numbers.get(key, number + 1) <= number:
            del self.numbers[key]

    def export(self) -> Iterator[tuple[int, bytes]]:
        """Slot by slot, each as it is when it is asked for."""
        yield EPOCH, _change.pack(0, self.epoch)
        for slot in range(slots):
            held = [entry for entry in self.numbers.items() if entry[0] % slots == slot]
            body = b"".join(_change.pack(*entry) for entry in held)
            yield SLOT, _slot_head.pack(slot, len(held)) + body

    def _set(self, key: int, number: int) -> None:
        self.numbers[key] = max(self.numbers.get(key, 0), number)


def filler(number: int, size: int) -> bytes:
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


class World:
    """The disk and what was ever promised about it."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.timeline = Timeline()
        self.disk = FakeDisk(self.draw, FakeClock(self.timeline))
        self.outcome = Outcome()
        self.number = 0
        # The state after `shown` changes, which a recovery has shown, and the changes since.
        self.shown = 0
        self.table = Table()
        self.since: list[tuple[int, bytes]] = []
        self.acknowledged = 0

    def run(self) -> Outcome:
        for _ in range(lives):
            Life(self).live()
        life = Life(self)
        self.disk.crash()
        assert life.recover(interrupted=False), "an undisturbed recovery did not end"
        return self.outcome

    def check(self, recovered: Table, next_sequence: int) -> None:
        reached = next_sequence - 1
        assert reached >= self.acknowledged, (
            f"changes up to {self.acknowledged} were acknowledged or shown, and those from "
            f"{next_sequence} on are lost"
        )
        known = self.shown + len(self.since)
        assert reached <= known, f"change {reached} was invented; {known} were appended"
        for kind, body in self.since[: reached - self.shown]:
            self.table.apply(kind, body)
        assert recovered.numbers == self.table.numbers, f"another state than after {reached}"
        assert recovered.epoch == self.table.epoch, "another epoch"
        self.since = []
        self.shown = self.acknowledged = reached
        self.outcome.trace = hash((self.outcome.trace, reached, self.timeline.now_s))

    def change(self) -> tuple[int, bytes]:
        """A change that somebody asks the node for."""
        self.number += 1
        key, chance = self.draw.randrange(keys), self.draw.random()
        if chance < 0.1:
            return REMOVE, _change.pack(key, self.draw.randint(1, self.number))
        if chance < 0.15:
            return EPOCH, _change.pack(0, self.number)
        size = self.draw.choice((0, 3, 40, 200, 700, 2_000))
        return RECORD, _change.pack(key, self.number) + filler(self.number, size)


class Life:
    """One process of the node, from start to end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.draw = world.draw
        self.disk = world.disk
        self.clock = FakeClock(world.timeline)
        self.table = Table()
        self.failures = 0
        self.snapshot: SnapshotWriter | None = None
        self.directory: NodeDirectory
        self.log: Log

    def live(self) -> None:
        count = self.world.outcome.count
        count("lives")
        if self.recover(interrupted=self.draw.random() < 0.3):
            self._work()
            if not self.failures and self.draw.random() < 0.15:
                self._stop()
                count("orderly stops")
        self.clock.stop()
        self.disk.heal()
        self.disk.capacity_bytes = 1 << 40
        if self.draw.random() < 0.6:
            self.disk.crash()
            count("power cuts")
        else:
            self.disk.kill()
            count("kills")

    def recover(self, *, interrupted: bool) -> bool:
        """Whether recovery ended; it does unless it is interrupted, by an error or a crash."""
        count = self.world.outcome.count
        if interrupted:
            operation = self.draw.choice(interruptible)
            self.disk.fail(operation, errno.EIO, "/data/*", after=self.draw.randrange(5))
        try:
            self.directory = NodeDirectory.open(self.disk, path, "node-1", store_id)
            recovery = Recovery(self.directory, self.table.apply)
            for _ in recovery.steps():
                if interrupted and self.draw.random() < 0.1:
                    count("interrupted recoveries")
                    return False
        except OSError:
            if not interrupted:
                raise
            count("interrupted recoveries")
            return False
        except FatalError as error:
            raise AssertionError(f"an honest crash was refused: {error}") from error
        self.disk.heal()
        found = recovery.result
        self.world.check(self.table, found.next_sequence)
        count("recoveries")
        count("torn writes cut", int(found.cut is not None))
        self.log = Log(
            self.directory,
            self.clock,
            lambda callback: self.clock.call_later(0.0, callback),
            next_sequence=found.next_sequence,
            next_index=found.next_index,
            segments=found.segments,
            on_durable=self._durable,
            on_failure=self._failed,
            segment_bytes=segment_bytes,
            commit_bytes_max=commit_bytes_max,
        )
        return True

    def _work(self) -> None:
        self.log.start()
        for _ in range(self.draw.randrange(40)):
            for _ in range(self.draw.choice((0, 1, 1, 3, 10))):
                self._append()
            if self.draw.random() < 0.15:
                self._snapshot()
            if self.draw.random() < 0.1:
                self.draw.choice((self._freeze, self._fill, self._break))()
            self.world.timeline.advance(self.draw.choice((0.0, 0.000_2, 0.001, 0.01, 0.2)))
            if self.failures:
                break
        if self.draw.random() < 0.5:
            self.disk.thaw()
        # Most lives end in the middle of a commit.
        for _ in range(self.draw.randrange(8)):
            self._append()
        self.world.timeline.advance(self.draw.choice((0.0, 0.000_1, 0.000_5, 0.02)))

    def _append(self) -> None:
        if self.failures or self.log.undurable_bytes > 10 * commit_bytes_max:
            return
        kind, body = self.world.change()
        batch = self.log.append(kind, body)
        self.world.since.append((kind, body))
        self.table.apply(kind, body)
        batch.replies.append(self.log.next_sequence - 1)

    def _durable(self, batch: Batch) -> None:
        assert not self.failures, "acknowledged after the disk had failed"
        expected = list(range(self.world.acknowledged + 1, batch.last + 1))
        assert batch.replies == expected, f"{batch.replies} acknowledged, not {expected}"
        self.world.acknowledged = batch.last
        self.world.outcome.count("acknowledged", len(expected))

    def _failed(self, error: OSError) -> None:
        assert error.errno == errno.EIO, f"not a failure of the disk: {error}"
        self.failures += 1
        assert self.failures == 1, "a failure was reported twice"
        self.world.outcome.count("failed disks")

    def _snapshot(self) -> None:
        if self.snapshot is None:
            self.snapshot = SnapshotWriter(
                self.directory, self.log, self.clock, self.table.export(), self._snapshot_ended
            )
            self.snapshot.start()

    def _snapshot_ended(self, snapshot: SnapshotWriter, error: OSError | None) -> None:
        assert not self.failures, "a snapshot ended after the disk had failed"
        assert error is None or error.errno == errno.ENOSPC
        self.snapshot = None
        self.world.outcome.count("snapshots" if error is None else "snapshots without space")

    def _freeze(self) -> None:
        self.disk.freeze()
        self.world.timeline.schedule(self.draw.uniform(0.0, 0.3), self.disk.thaw)

    def _fill(self) -> None:
        """Use up the disk, and make space again some time later."""
        used = self.disk.capacity_bytes - self.disk.space(path).free_bytes
        self.disk.capacity_bytes = used + self.draw.choice((0, 100, 3_000, 8_000))
        self.world.outcome.count("full disks")

        def free() -> None:
            self.disk.capacity_bytes = 1 << 40

        self.world.timeline.schedule(self.draw.uniform(0.0, 0.5), free)

    def _break(self) -> None:
        operation: Operation = self.draw.choice(("sync", "sync_directory", "write", "rename"))
        self.disk.fail(operation, errno.EIO, after=self.draw.randrange(4), times=None)

    def _stop(self) -> None:
        self.disk.thaw()
        self.disk.capacity_bytes = 1 << 40
        self.disk.heal()
        self.world.timeline.advance(10.0)
        if self.failures:
            return
        assert self.log.idle, "what was appended did not become durable within 10 s"
        self.log.close()
        self.disk.close()
        self.directory.close()
        self.world.timeline.advance(0.1)


def lying_disk(seed: int) -> Outcome:
    return World(seed).run()
