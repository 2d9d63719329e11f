"""From the files of a node to its state: the newest good snapshot, then the log behind it.

The log is read and judged by the rules of `log/scan.py`; of snapshots these hold besides:

- A snapshot is checked whole before anything of it is used. If the newest is damaged, it is put
  aside with a warning and the one before is used, as long as the log from there on is complete.
- The log must reach as far as the snapshot may have seen.

Damage ends in `Corrupt`, which names file and offset.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.dhtnode.directory import NodeDirectory
from services.dhtnode.snapshot import SnapshotReader
from services.runtime.log.frame import (
    Corrupt,
    Foreign,
    Visit,
    decode_segment,
    segment_head_bytes,
)
from services.runtime.log.scan import Cut, Found, Scan
from services.runtime.log.segments import Segment


@dataclass(slots=True)
class Recovered:
    """What recovery found, for the log that goes on from here and for people."""

    next_sequence: int = 1
    next_index: int = 1
    segments: list[Segment] = field(default_factory=list)
    snapshot: Path | None = None
    cut: Cut | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Progress:
    """How far recovery is. The total is known once the files have been looked at."""

    bytes_done: int = 0
    bytes_total: int = 0
    snapshot_records: int = 0
    log_frames: int = 0


class Recovery:
    """One recovery of an open directory.

    `apply` is given the frames of the snapshot, then those of the log, in order, as (kind, body);
    of a snapshot it sees nothing before all of it was checked. It raises `PeerError` for a body
    that makes no sense. Drive it a piece at a time, so that the loop lives meanwhile:

        for _ in recovery.steps():
            await asyncio.sleep(0)
        recovery.result
    """

    def __init__(self, directory: NodeDirectory, apply: Visit) -> None:
        self.progress = Progress()
        self.result = Recovered()
        self._directory = directory
        self._disk = directory.disk
        self._scan = Scan(directory)
        self._apply = apply
        # The first sequence to replay, and the one the log must reach.
        self._first = 1
        self._through = 0
        self._snapshot: SnapshotReader | None = None
        self._damaged: list[Path] = []

    def steps(self) -> Iterator[None]:
        """Do everything. `Corrupt` ends it, as does any OSError of the disk; then do not serve."""
        scan, result = self._scan, self.result
        used = yield from scan.used()
        chain = yield from self._choose(used)
        yield from self._load_snapshot()
        for read_bytes, frames in scan.replay(chain, self._first, self._apply):
            self.progress.bytes_done += read_bytes
            self.progress.log_frames += frames
            yield
        self._check_reach()
        result.cut = scan.settle()
        if result.cut is not None:
            result.warnings.append(str(result.cut))
        self._put_damaged_aside()
        result.next_sequence, result.next_index = scan.next_sequence, scan.next_index
        result.segments = [*self._older(used, chain), *scan.segments]
        self.progress.bytes_done = self.progress.bytes_total

    def _choose(self, used: list[tuple[int, Path]]) -> Generator[None, None, list[Found]]:
        """Find the newest good snapshot, and the segments to replay behind it."""
        damage: Corrupt | None = None
        for first, path in self._directory.snapshots():
            snapshot = SnapshotReader(self._disk, path, self._directory.store_id, first)
            # It is read twice, once to be checked.
            self._expect([path, path, *(path for _, path in used)])
            try:
                yield from self._walk_snapshot(snapshot, _ignore)
            except Corrupt as error:
                damage = damage or error
                self._damaged.append(path)
                self.result.warnings.append(f"{path} was not used: {error.what}")
                continue
            assert snapshot.end is not None  # noqa: S101 - a whole snapshot has an end.
            self._first, self._through = first, snapshot.end.through
            self._snapshot = snapshot
            self.result.snapshot = path
            break
        try:
            chain = self._scan.chain(used, self._first)
        except Corrupt as error:
            # Of another store the snapshots are as well, and none of them is to blame.
            if damage is None or isinstance(error, Foreign):
                raise
            raise damage from error
        loaded = [] if self._snapshot is None else [self._snapshot.path]
        self._expect([*loaded, *(found.path for found in chain)])
        return chain

    def _expect(self, paths: list[Path]) -> None:
        """These files are still to be read."""
        self.progress.bytes_total = self.progress.bytes_done
        for path in paths:
            with self._disk.open(path, "read") as file:
                self.progress.bytes_total += file.size()

    def _load_snapshot(self) -> Iterator[None]:
        if self._snapshot is not None:
            yield from self._walk_snapshot(self._snapshot, self._apply)
            self.progress.snapshot_records = self._snapshot.records

    def _walk_snapshot(self, snapshot: SnapshotReader, visit: Visit) -> Iterator[None]:
        for size in snapshot.walk(visit):
            self.progress.bytes_done += size
            yield

    def _check_reach(self) -> None:
        reached, ending = self._scan.next_sequence - 1, self._scan.ending
        if ending is not None and reached < self._through:
            what = f"the log ends with sequence {reached}, and the snapshot is of {self._through}"
            raise Corrupt(ending.found.path, ending.frames.offset, what)

    def _put_damaged_aside(self) -> None:
        for path in self._damaged:
            self._directory.put_aside(path)
        if self._damaged:
            self._disk.sync_directory(self._directory.path)

    def _older(self, used: list[tuple[int, Path]], chain: list[Found]) -> list[Segment]:
        """The segments that are kept for the snapshot before, so that they go with it.

        Their content is not needed now, so it is not looked at, and damage there is no reason to
        stay down.
        """
        # Too high a first sequence only lets the segment before it stay longer.
        read = self._scan.segments
        first = read[0].first if read else self._scan.next_sequence
        older: list[Segment] = []
        for index, path in reversed(used[: len(used) - len(chain)]):
            with self._disk.open(path, "read") as file:
                size = file.size()
                head = decode_segment(file.read_at(0, segment_head_bytes))
            if head is not None:
                first = min(first, head.first)
            older.insert(0, Segment(index, path, first, size))
        return older


def _ignore(kind: int, body: bytes) -> None:
    """Visits a snapshot that is only being checked."""
