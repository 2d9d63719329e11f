"""A directory with the segments of one log.

log-0000000007      a segment; numbers are contiguous
*.tmp               a file in the making, worth nothing after a restart
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.runtime.disk import Disk

draft_suffix = ".tmp"
_segment_name = re.compile(r"log-(\d{10,})")


@dataclass(slots=True)
class Segment:
    """A segment with frames in it: the sequence of its first one, and where the last one ends
    that is durable."""

    index: int
    path: Path
    first: int
    used_bytes: int


class SegmentDirectory:
    """Where a log lies, and the id that its checksums start from."""

    def __init__(self, disk: Disk, path: Path, store_id: bytes) -> None:
        self.disk = disk
        self.path = path
        self.store_id = store_id

    def segment_path(self, index: int) -> Path:
        return self.path / f"log-{index:010}"

    def segments(self) -> list[tuple[int, Path]]:
        """Number and path of every segment, used or not, in order."""
        return segments_in(self.disk, self.path)


def segments_in(disk: Disk, directory: Path) -> list[tuple[int, Path]]:
    return sorted(numbered(disk, directory, _segment_name))


def numbered(disk: Disk, directory: Path, pattern: re.Pattern[str]) -> Iterator[tuple[int, Path]]:
    """The files whose whole names match, by the number in them."""
    for name in disk.names(directory):
        if match := pattern.fullmatch(name):
            yield int(match[1]), directory / name
