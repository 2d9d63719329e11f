"""Hints read back from the segments of their log, a piece at a time."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from services.core.errors import PeerError
from services.runtime.disk import Disk, File
from services.runtime.log.frame import FrameReader, seed_of, segment_head_bytes
from services.runtime.log.segments import Segment

HINT: Final = 2

_head = Struct(">QH")


class Hint(NamedTuple):
    sequence: int
    kept_ms: int
    key: bytes
    record: bytes


def encode_hint(kept_ms: int, key: bytes, record: bytes) -> bytes:
    return _head.pack(kept_ms, len(key)) + key + record


def check_hint(kind: int, body: bytes) -> None:
    """`PeerError` unless `encode_hint` could have made this frame."""
    if kind != HINT:
        raise PeerError(f"a frame of kind {kind} is no hint")
    if len(body) < _head.size or len(body) <= _head.size + _head.unpack_from(body)[1]:
        raise PeerError(f"{len(body)} bytes are no hint")


class Reading:
    """How far a log has been read, and what of that was not taken yet."""

    def __init__(self) -> None:
        self.ahead: deque[Hint] = deque()
        # A piece is being read in the background.
        self.busy = False
        # The segment that is being read; none has 0. `over` when the rest of it is given up.
        self.index = 0
        self.over = False
        # The next frame to be read; 0 before the first segment.
        self.sequence = 0
        self._frames: FrameReader | None = None
        self._seed = 0
        self._file: File | None = None
        self._piece = b""

    @property
    def position(self) -> int:
        return segment_head_bytes if self._frames is None else self._frames.position

    @property
    def stopped(self) -> bool:
        """Whether something was found that is not the next frame."""
        return self._frames is not None and self._frames.stopped

    def begin(self, segment: Segment, store_id: bytes) -> None:
        self.close()
        self.index = segment.index
        self.over = False
        self.sequence = segment.first
        self._seed = seed_of(store_id)

    def give_up(self, next_sequence: int) -> None:
        """Read nothing more of this segment."""
        self.close()
        self.over = True
        self.sequence = next_sequence

    def read(self, disk: Disk, path: Path, length: int) -> None:
        """Runs as an errand of the disk, while nothing else here is touched."""
        if self._file is None:
            self._file = disk.open(path, "read")
        self._piece = self._file.read_at(self.position, length)

    def feed(self) -> None:
        """Take the hints off what was read. `Corrupt` if something else stands there."""
        assert self._file is not None  # noqa: S101 - what is fed was read.
        if self._frames is None:
            self._frames = FrameReader(
                self._file, self._seed, self.sequence, offset=segment_head_bytes
            )
        piece, self._piece = self._piece, b""
        self._frames.feed(piece, self._visit)

    def close(self) -> None:
        self._frames = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _visit(self, kind: int, body: bytes) -> None:
        check_hint(kind, body)
        kept_ms, size = _head.unpack_from(body)
        end = _head.size + size
        self.ahead.append(Hint(self.sequence, kept_ms, body[_head.size : end], body[end:]))
        self.sequence += 1
