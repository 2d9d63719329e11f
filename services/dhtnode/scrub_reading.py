"""Checking the files of a node that runs: every frame of its snapshots and of its log.

It reads what is durable and no further, and goes on behind a frame that is bad, so that one flipped
bit hides nothing else. Each `step` is a piece that takes a millisecond or two once it is in memory;
`ahead` says what to bring there first.

A file that goes while it is read was made unnecessary by a newer snapshot. Who has opened it reads
on; one that is gone before that is `vanished`, which is no damage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import END, decode_start, start_bytes
from services.runtime.disk import File
from services.runtime.log.frame import (
    Corrupt,
    FrameReader,
    Visit,
    decode_segment,
    head_bytes,
    is_zero,
    read,
    seed_of,
    segment_head_bytes,
)
from services.runtime.log.log import Log
from services.runtime.log.segments import Segment

# Some 400 frames of a log with small records, each looked at: a millisecond.
step_bytes: Final = 64 << 10

Ahead = tuple[Path, int]
"""A file, and from where on `step_bytes` of it are read next."""


class Witness(Protocol):
    """Who is told what lies in the files."""

    def saw(self, kind: int, body: bytes) -> None:
        """A frame whose checksum is right."""
        ...

    def saw_damaged(self, kind: int, body: bytes) -> None:
        """A frame whose checksum is wrong."""
        ...

    def damage(self, path: Path, offset: int, what: str) -> None:
        """What is wrong with a file, and where."""
        ...


class Frames:
    """The frames of one open file from an offset on. With `open_ended` they may end in zeros."""

    def __init__(
        self,
        file: File,
        seed: int,
        sequence: int,
        offset: int,
        witness: Witness,
        *,
        open_ended: bool = False,
    ) -> None:
        self.file = file
        # Whether what follows cannot be told from anything any more.
        self.lost = False
        self._witness = witness
        self._reader = FrameReader(file, seed, sequence, offset=offset)
        self._open_ended = open_ended
        # Where the zeros behind the last frame are being looked at.
        self._zeros: int | None = None

    @property
    def sequence(self) -> int:
        """Of the next frame."""
        return self._reader.sequence

    @property
    def offset(self) -> int:
        """Where the next frame begins."""
        return self._reader.offset

    @property
    def position(self) -> int:
        """Where the next piece is to be read."""
        return self._reader.position if self._zeros is None else self._zeros

    def done(self, end: int) -> bool:
        return self.lost or (self.offset if self._zeros is None else self._zeros) >= end

    def step(self, end: int, visit: Visit) -> None:
        """Look at what the next piece up to `end` has. Frames end there, too."""
        reader = self._reader
        try:
            piece = read(self.file, self.position, min(step_bytes, end - self.position))
            if self._zeros is not None:
                self._look_at_zeros(piece)
                return
            reader.feed(piece, visit)
            if reader.stopped or not piece or (reader.position >= end and reader.offset < end):
                self._pass_over(end)
        except Corrupt as error:
            self._lose(error.offset, error.what)

    def _look_at_zeros(self, piece: bytes) -> None:
        if not piece or not is_zero(piece):
            self._lose(self.offset, f"frame {self.sequence} is bad")
        self._zeros = self.position + len(piece)

    def _pass_over(self, end: int) -> None:
        offset, sequence = self._reader.offset, self._reader.sequence
        if self._open_ended and is_zero(read(self.file, offset, head_bytes)):
            self._zeros = offset
            return
        found = self._reader.pass_over(end)
        if found is None:
            self._lose(offset, f"frame {sequence} is bad, and so is what tells its length")
        else:
            self._witness.damage(self.file.path, offset, f"frame {sequence} is bad")
            self._witness.saw_damaged(*found)

    def _lose(self, offset: int, what: str) -> None:
        self.lost = True
        self._witness.damage(self.file.path, offset, what)


class SnapshotCheck:
    """One snapshot, from its first byte to its last. FileNotFoundError if it has gone."""

    def __init__(self, directory: NodeDirectory, path: Path, first: int, witness: Witness) -> None:
        self._witness = witness
        self._ended = False
        self._file = file = directory.disk.open(path, "read")
        self.size = file.size()
        self._frames = Frames(file, seed_of(directory.store_id), 2, start_bytes, witness)
        try:
            whose = decode_start(read(file, 0, start_bytes))
        except Corrupt:
            whose = None
        if whose != (directory.store_id, first):
            # The frames behind it may be whole all the same.
            witness.damage(path, 0, "it does not begin as this snapshot of this node")

    @property
    def behind_bytes(self) -> int:
        return 0 if self._frames.done(self.size) else self.size - self._frames.position

    @property
    def done(self) -> bool:
        return self._frames.done(self.size)

    @property
    def ahead(self) -> Ahead:
        return self._file.path, self._frames.position

    def step(self) -> None:
        self._frames.step(self.size, self._visit)
        if self.done and not (self._frames.lost or self._ended):
            self._witness.damage(self._file.path, self.size, "its end is missing")

    def close(self) -> None:
        self._file.close()

    def _visit(self, kind: int, body: bytes) -> None:
        if kind == END:
            self._ended = True
        else:
            self._witness.saw(kind, body)


class LogCheck:
    """The log, from the oldest segment that there is to what is durable now, and on from there."""

    def __init__(self, directory: NodeDirectory, log: Log, witness: Witness) -> None:
        # Whether a segment went before it was opened.
        self.vanished = False
        # How much is done with, be it that nothing can be told of it any more.
        self.looked_bytes = 0
        self._directory = directory
        self._log = log
        self._witness = witness
        self._segment: Segment | None = None
        self._frames: Frames | None = None
        # The sequence that the next segment begins with; None if nobody knows.
        self._expected: int | None = None

    @property
    def behind_bytes(self) -> int:
        """How much is durable, of the segment at hand and of later ones, and was not looked at."""
        at, frames = self._segment, self._frames
        behind = 0
        for segment in self._log.segments:
            if at is None or segment.index > at.index:
                behind += segment.used_bytes
        if at is not None and frames is not None and not frames.done(at.used_bytes):
            behind += at.used_bytes - frames.position
        return behind

    @property
    def done(self) -> bool:
        """Whether there is nothing more just now."""
        return not self.behind_bytes

    @property
    def ahead(self) -> Ahead | None:
        return None if self._frames is None else (self._frames.file.path, self._frames.position)

    def step(self) -> None:
        """Look at the next piece; to open a file is a step of its own."""
        segment, frames = self._segment, self._frames
        if segment is None or frames is None:
            self._open_next()
        elif not frames.done(segment.used_bytes):
            before = frames.position
            frames.step(segment.used_bytes, self._witness.saw)
            reached = segment.used_bytes if frames.lost else frames.position
            self.looked_bytes += reached - before
        elif segment is not self._log.segments[-1]:
            self._expected = None if frames.lost else frames.sequence
            self.close()

    def close(self) -> None:
        if self._frames is not None:
            self._frames.file.close()
            self._frames = None

    def _open_next(self) -> None:
        at = 0 if self._segment is None else self._segment.index
        segment = next((found for found in self._log.segments if found.index > at), None)
        if segment is None or not segment.used_bytes:
            return
        if at and segment.index != at + 1:
            # Those between were deleted before they were read.
            self.vanished, self._expected = True, None
        self._segment = segment
        try:
            file = self._directory.disk.open(segment.path, "read")
        except FileNotFoundError:
            self.vanished, self._expected = True, None
            return
        first, what = self._look_at_head(segment, file)
        if what is not None:
            self._witness.damage(segment.path, 0, what)
        self._frames = Frames(
            file,
            seed_of(self._directory.store_id),
            first,
            segment_head_bytes,
            self._witness,
            # Of what a former run has left nobody has noted where it ends.
            open_ended=segment.used_bytes == file.size(),
        )

    def _look_at_head(self, segment: Segment, file: File) -> tuple[int, str | None]:
        """The sequence it begins with, and what is wrong with its first frame."""
        expected = segment.first if self._expected is None else self._expected
        try:
            head = decode_segment(read(file, 0, segment_head_bytes))
        except Corrupt as error:
            return expected, error.what
        if head is None:
            return expected, "its first frame is bad"
        if head.store_id != self._directory.store_id:
            return head.first, f"it belongs to the store {head.store_id.hex()}"
        if head.size_bytes != file.size():
            return head.first, f"it is {file.size()} bytes long and was made {head.size_bytes}"
        if self._expected is not None and head.first != self._expected:
            return head.first, f"it begins with sequence {head.first}, and {expected} should follow"
        return head.first, None


Check = SnapshotCheck | LogCheck
