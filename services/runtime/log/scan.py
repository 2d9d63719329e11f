"""Reading a log back: from the segments of a directory to its frames, each of them checked.

What is found is judged by these rules:

- Segments follow each other without a gap, in numbers and in sequences, and are as long as they
  were made: no crash shortens a file that was synced at its full length.
- A bad frame in a segment that is not the last is damage, since a segment is begun only when
  everything before it is durable.
- In the last segment, a bad frame with nothing behind it, or with frames of its own batch, is a
  write that a crash has torn. It is cut, and the report says how much. With a good frame of a
  later batch behind it, it is damage: that batch was sent when this one was durable.
- A segment's own frame stands in one sector and is written with what follows: a crash leaves all
  of it or zeros, or else nothing behind it. Anything else there is damage.

Damage ends in `Corrupt`, which names file and offset. Not noticed is the loss of a whole tail of
the log, neatly cut at the end of a frame: nothing in what remains tells it from a log that never
went on.

Before anybody relies on it, what was read must be durable, also if the process before was
killed, or ended because of a failed sync, in which case the page cache shows as clean what never
reached the device. So the last batch is written again, the cut is filled with zeros, and both
are synced: `settle`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.runtime.disk import File
from services.runtime.log.frame import (
    Corrupt,
    Foreign,
    FrameReader,
    SegmentHead,
    Visit,
    bad_frame,
    check_head,
    decode_segment,
    find_later_batch,
    is_zero,
    piece_bytes,
    read,
    read_tail,
    seed_of,
    segment_head_bytes,
)
from services.runtime.log.segments import Segment, SegmentDirectory


@dataclass(slots=True, frozen=True)
class Cut:
    """What the log ended with and was removed: its file, where it began, and how many bytes it had.

    A write that a crash has torn, mostly; nothing tells it from one that was damaged later.
    """

    path: Path
    offset: int
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.bytes} bytes at its end, from byte {self.offset}, were no whole "
            "frame and were cut: a write that a crash has torn, of which nothing had been "
            "acknowledged, or damage to the last one"
        )


@dataclass(slots=True)
class Found:
    """A segment as it lies there; `head` is None if its first frame is bad."""

    index: int
    path: Path
    head: SegmentHead | None


@dataclass(slots=True)
class Ending:
    """Where the log ends: the last segment, how far its frames are good, and what to cut."""

    found: Found
    frames: FrameReader
    cut: Cut | None


class Scan:
    """One look at the log of a directory, in this order: `used`, `chain`, `replay`, `settle`.

    The first and the third go in pieces, between which the loop may live. Afterwards
    `next_sequence`, `next_index` and `segments` are what a `Log` goes on from.
    """

    def __init__(self, directory: SegmentDirectory) -> None:
        self.next_sequence = 1
        self.next_index = 1
        self.segments: list[Segment] = []
        self.ending: Ending | None = None
        self._directory = directory
        self._disk = directory.disk
        self._seed = seed_of(directory.store_id)

    def used(self) -> Generator[None, None, list[tuple[int, Path]]]:
        """The segments up to the last that holds anything. Those behind it are spare."""
        segments = self._directory.segments()
        self.next_index = segments[0][0] if segments else 1
        while segments:
            path = segments[-1][1]
            with self._disk.open(path, "read") as file:
                if file.size() < segment_head_bytes:
                    raise Corrupt(path, file.size(), "it ends here, and no segment is that short")
                offset = 0
                while (piece := read(file, offset, piece_bytes)) and is_zero(piece):
                    offset += len(piece)
                    yield
            if piece:
                break
            segments.pop()
        return segments

    def chain(self, used: list[tuple[int, Path]], first: int) -> list[Found]:
        """The last segments that have everything from the sequence `first` on."""
        chain: list[Found] = []
        for index, path in reversed(used):
            if chain and index != chain[0].index - 1:
                break
            found = self._look(index, path)
            if found.head is None and chain:
                raise Corrupt(path, 0, "its first frame is bad, and a later segment follows")
            chain.insert(0, found)
            if found.head is not None and found.head.first <= first:
                return chain
        if not chain and first > 1:
            raise Corrupt(self._directory.path, 0, "it holds a snapshot and no log")
        # A log that never got further than a torn first write has nothing else to show.
        if chain and (chain[0].head is not None or first > 1 or chain[0].index > 1):
            if chain[0].index == 1:
                raise Corrupt(chain[0].path, 0, f"it does not begin with sequence {first}")
            missing = self._directory.segment_path(chain[0].index - 1)
            raise Corrupt(missing, 0, f"it is missing, and with it sequence {first}")
        return chain

    def replay(self, chain: list[Found], first: int, visit: Visit) -> Iterator[tuple[int, int]]:
        """Visit the frames from the sequence `first` on; yields bytes read and frames found.

        What the log ends with is judged, and not yet touched.
        """
        sequence = first
        if chain and chain[0].head is not None:
            sequence = chain[0].head.first
        for found in chain:
            head = found.head
            if head is not None and head.first != sequence:
                raise _gap(self.ending, found.path, head.first, sequence)
            with self._disk.open(found.path, "read") as file:
                frames = FrameReader(
                    file,
                    self._seed,
                    sequence,
                    offset=segment_head_bytes if head is not None else 0,
                    visit_from=first,
                )
                if head is not None:
                    for size in frames.walk(visit):
                        yield size, frames.sequence - sequence
                        sequence = frames.sequence
                    self.segments.append(
                        Segment(found.index, found.path, head.first, frames.offset)
                    )
                    self.next_index = found.index + 1
                tail = yield from self._tail(file, frames.offset)
                if head is None:
                    check_head(found.path, tail)
                if tail and found is not chain[-1]:
                    raise bad_frame(found.path, frames.offset, sequence, None)
                self.ending = Ending(found, frames, self._judge(found.path, frames, tail))
        self.next_sequence = sequence

    def settle(self) -> Cut | None:
        """Make what was read durable, and what was cut gone for good."""
        if self.ending is None:
            return None
        frames, cut, head = self.ending.frames, self.ending.cut, self.ending.found.head
        with self._disk.open(self.ending.found.path, "write") as file:
            if head is not None:
                # The first batch of a segment was written together with the segment's own frame.
                start = 0 if frames.batch in (0, head.first) else frames.batch_offset
                for offset in range(start, frames.offset, piece_bytes):
                    length = min(piece_bytes, frames.offset - offset)
                    file.write_at(offset, read(file, offset, length))
            if cut is not None:
                for offset in range(cut.offset, cut.offset + cut.bytes, piece_bytes):
                    length = min(piece_bytes, cut.offset + cut.bytes - offset)
                    file.write_at(offset, bytes(length))
            file.sync()
        return cut

    def _look(self, index: int, path: Path) -> Found:
        with self._disk.open(path, "read") as file:
            size = file.size()
            head = decode_segment(read(file, 0, segment_head_bytes))
        if head is not None and head.store_id != self._directory.store_id:
            raise Foreign(path, head.store_id, self._directory.store_id)
        if head is not None and head.size_bytes != size:
            what = f"it is {size} bytes long and was made {head.size_bytes}"
            raise Corrupt(path, min(size, head.size_bytes), what)
        return Found(index, path, head)

    def _tail(self, file: File, offset: int) -> Generator[tuple[int, int], None, bytes]:
        for tail in read_tail(file, offset):
            if tail is not None:
                return tail
            yield 0, 0
        return b""

    def _judge(self, path: Path, frames: FrameReader, tail: bytes) -> Cut | None:
        if not tail:
            return None
        later = find_later_batch(tail, self._seed, frames.sequence)
        if later is not None:
            raise bad_frame(path, frames.offset, frames.sequence, later)
        return Cut(path, frames.offset, len(tail))


def _gap(before: Ending | None, path: Path, first: int, expected: int) -> Corrupt:
    """The complaint that this segment does not begin where the one before it ends."""
    if before is None or first < expected:
        return Corrupt(path, 0, f"it begins with sequence {first}, and {expected} should follow")
    what = f"sequences {expected} to {first - 1} are missing"
    return Corrupt(before.found.path, before.frames.offset, what)
