"""The durable half of a node on a disk in memory, one process after another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct

from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import RECORD, SLOT
from services.dhtnode.recovery import Recovered, Recovery
from services.dhtnode.snapshot import SnapshotWriter
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.log.log import Batch, Log

path = Path("/data/nodes/node-1")
store_id = bytes(range(16))
segment_bytes = 4_096
commit_bytes_max = 1_024

_entry = Struct(">HI")
_slot_head = Struct(">HH")
entries_per_chunk = 16


class DurableNode:
    """Opens the directory, recovers, and logs numbered changes of a table {key: number}."""

    def __init__(
        self,
        disk: FakeDisk | None = None,
        timeline: Timeline | None = None,
        *,
        segment_size: int = segment_bytes,
        commit_size: int = commit_bytes_max,
    ) -> None:
        self.timeline = timeline or Timeline()
        self.disk = disk or FakeDisk(random.Random(3), FakeClock(self.timeline))
        self.clock = FakeClock(self.timeline)
        self.table: dict[int, int] = {}
        self.applied: list[tuple[int, bytes]] = []
        self.durable: list[Batch] = []
        self.failures: list[OSError] = []
        self.snapshots: list[OSError | None] = []
        self.directory = NodeDirectory.open(self.disk, path, "node-1", store_id)
        self.recovery = Recovery(self.directory, self.apply)
        for _ in self.recovery.steps():
            pass
        found = self.found
        self.log = Log(
            self.directory,
            self.clock,
            lambda callback: self.clock.call_later(0.0, callback),
            next_sequence=found.next_sequence,
            next_index=found.next_index,
            segments=found.segments,
            on_durable=self.durable.append,
            on_failure=self.failures.append,
            segment_bytes=segment_size,
            commit_bytes_max=commit_size,
        )

    @property
    def found(self) -> Recovered:
        return self.recovery.result

    def start(self) -> DurableNode:
        self.log.start()
        self.timeline.advance(0.01)
        return self

    def apply(self, kind: int, body: bytes) -> None:
        self.applied.append((kind, body))
        if kind == RECORD:
            key, number = _entry.unpack_from(body)
            self._set(key, number)
        elif kind == SLOT:
            for key, number in _entry.iter_unpack(body[_slot_head.size :]):
                self._set(key, number)

    def put(self, number: int, *, key: int | None = None, filler: bytes = b"") -> Batch:
        key = number % 256 if key is None else key
        self._set(key, number)
        return self.log.append(RECORD, _entry.pack(key, number) + filler)

    def fill(self, count: int, *, batch: int = 10, filler: bytes = b"") -> None:
        """Put `count` changes, numbered as the log numbers them, in batches of `batch`."""
        for _ in range(count):
            self.put(self.log.next_sequence, filler=filler)
            if self.log.next_sequence % batch == 1:
                self.settle()
        self.settle()

    def settle(self, seconds: float = 0.1) -> None:
        self.timeline.advance(seconds)

    def snapshot(self, during: Callable[[], None] | None = None) -> SnapshotWriter:
        """Write one to its end; `during` runs between two of its chunks."""

        def ended(_: SnapshotWriter, error: OSError | None) -> None:
            self.snapshots.append(error)

        source = self._export(during)
        writer = SnapshotWriter(self.directory, self.log, self.clock, source, ended)
        writer.start()
        self.settle(1.0)
        return writer

    def restart(self, end: Callable[[], None] | None = None) -> DurableNode:
        """The next process, after kill -9 or what else ends this one."""
        self.clock.stop()
        (end or self.disk.kill)()
        return DurableNode(self.disk, self.timeline)

    def names(self) -> list[str]:
        return self.disk.names(path)

    def content(self, name: str) -> bytes:
        return self.disk.read(path / name, 1 << 24)

    def _export(self, during: Callable[[], None] | None) -> Iterator[tuple[int, bytes]]:
        for first in range(0, 256, entries_per_chunk):
            if during is not None and first == 128:
                during()
            keys = range(first, first + entries_per_chunk)
            entries = [_entry.pack(key, self.table[key]) for key in keys if key in self.table]
            yield SLOT, _slot_head.pack(0, len(entries)) + b"".join(entries)

    def _set(self, key: int, number: int) -> None:
        self.table[key] = max(number, self.table.get(key, 0))
