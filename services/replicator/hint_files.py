"""The files of the hints for one node: found again at a start, removed when they are delivered.

    hints/<node id>/
        log-0000000007            a segment of hints; small, and there only while hints wait
        log-0000000003.damaged    a segment that could not be read, kept for a look

Everything here blocks: it is work for an errand of the disk, or for the time before serving.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.replicator.hint_reading import check_hint
from services.runtime.disk import Disk
from services.runtime.log.frame import (
    Corrupt,
    SegmentHead,
    decode_segment,
    read,
    segment_head_bytes,
)
from services.runtime.log.scan import Cut, Found, Scan
from services.runtime.log.segments import Segment, SegmentDirectory, draft_suffix, segments_in

damaged_suffix: Final = ".damaged"
# Enough to see what happened; more of them would fill the disk that is failing.
damaged_kept_max: Final = 2


@dataclass(slots=True)
class Leftover:
    """The hints of an earlier run, and where a log goes on behind them."""

    store_id: bytes
    segments: list[Segment]
    next_sequence: int
    next_index: int
    cut: Cut | None


class HintFiles:
    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path

    def remove(self, segments: list[tuple[Path, bool]]) -> None:
        """Remove segments, in order; those that are marked as damaged are put aside."""
        for path, damaged in segments:
            if damaged:
                self.put_aside(path)
            else:
                self._disk.remove(path)

    def remove_all(self, damaged: frozenset[int] = frozenset()) -> None:
        """Remove every segment, used or spare; those of these numbers are put aside."""
        if not self._disk.exists(self._path):
            return
        self.remove([(path, index in damaged) for index, path in self._segments()])
        self.remove_drafts()
        self._disk.sync_directory(self._path)

    def remove_drafts(self) -> None:
        for name in self._disk.names(self._path):
            if name.endswith(draft_suffix):
                self._disk.remove(self._path / name)

    def put_aside(self, path: Path) -> None:
        names = [name for name in self._disk.names(self._path) if name.endswith(damaged_suffix)]
        for name in names[: len(names) + 1 - damaged_kept_max]:
            self._disk.remove(self._path / name)
        self._disk.rename(path, path.with_name(path.name + damaged_suffix))

    def put_all_aside(self) -> None:
        for _, path in self._segments():
            self.put_aside(path)
        self._disk.sync_directory(self._path)

    def find(self) -> Generator[None, None, Leftover | None]:
        """What an earlier run has left, durable and with a torn end cut; None if that is nothing.

        `Corrupt` if it makes no sense as a whole. Only the end is read: whatever stands before it
        is checked when its turn comes.
        """
        if not self._disk.exists(self._path):
            return None
        # Whoever named what is here may have been killed before the names were durable.
        self._disk.sync_directory(self._path)
        self.remove_drafts()
        heads = [head for _, path in self._segments() if (head := self._head_of(path)) is not None]
        if heads:
            scan = Scan(SegmentDirectory(self._disk, self._path, heads[0].store_id))
            segments = yield from self._scan(scan)
            cut = scan.settle()
            if scan.next_sequence > segments[0].first:
                return Leftover(
                    heads[0].store_id, segments, scan.next_sequence, scan.next_index, cut
                )
        # At most a spare, and a first write that was torn.
        self.remove_all()
        return None

    def _scan(self, scan: Scan) -> Generator[None, None, list[Segment]]:
        used = yield from scan.used()
        lowest = self._head_of(used[0][1])
        if lowest is None:
            raise Corrupt(used[0][1], 0, "its first frame is bad, and a later segment follows")
        chain = scan.chain(used, lowest.first)
        # A last segment with nothing but a torn write does not tell where the log ends.
        ends = 1 if chain[-1].head is not None else 2
        segments = [*_sealed(chain[:-ends])]
        for _ in scan.replay(chain[-ends:], lowest.first, check_hint):
            yield
        return [*segments, *scan.segments]

    def _segments(self) -> list[tuple[int, Path]]:
        return segments_in(self._disk, self._path)

    def _head_of(self, path: Path) -> SegmentHead | None:
        with self._disk.open(path, "read") as file:
            return decode_segment(read(file, 0, segment_head_bytes))


def _sealed(chain: list[Found]) -> Iterator[Segment]:
    for found in chain:
        if found.head is not None:
            yield Segment(found.index, found.path, found.head.first, found.head.size_bytes)
