"""From the files of a node to its state: the newest good snapshot, then the log behind it.

What is found is judged by these rules:

- A snapshot is checked whole before anything of it is used. If the newest is damaged, it is put
  aside with a warning and the one before is used, as long as the log from there on is complete.
- Segments follow each other without a gap, in numbers and in sequences, and are as long as they
  were made: no crash shortens a file that was synced at its full length.
- A bad frame in a segment that is not the last is damage, since a segment is begun only when
  everything before it is durable.
- In the last segment, a bad frame with nothing behind it, or with frames of its own batch, is a
  write that a crash has torn. It is cut, and the report says how much. With a good frame of a
  later batch behind it, it is damage: that batch was sent when this one was durable.
- The log must reach as far as the snapshot may have seen.

Damage ends in `Corrupt`, which names file and offset. Not noticed is the loss of a whole tail of
the log, neatly cut at the end of a frame, behind the newest snapshot: nothing in what remains
tells it from a log that never went on.

Before the node may serve, what it has read must be durable, also if the process before was
killed, or ended because of a failed sync, in which case the page cache shows as clean what never
reached the device. So the last batch is written again, the cut is filled with zeros, and both
are synced.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.dhtnode.directory import NodeDirectory, Segment
from services.dhtnode.frame import (
    Corrupt,
    Foreign,
    FrameReader,
    SegmentHead,
    Visit,
    bad_frame,
    decode_segment,
    find_later_batch,
    is_zero,
    piece_bytes,
    read,
    read_tail,
    seed_of,
    segment_head_bytes,
)
from services.dhtnode.snapshot import SnapshotReader
from services.runtime.disk import File


@dataclass(slots=True, frozen=True)
class Cut:
    """A torn write that was removed: its file, where it began, and how many bytes it had."""

    path: Path
    offset: int
    bytes: int


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


@dataclass(slots=True)
class _Found:
    """A segment as it lies there; `head` is None if its first frame is bad."""

    index: int
    path: Path
    size_bytes: int
    head: SegmentHead | None


@dataclass(slots=True)
class _Ending:
    """Where the log ends: the last segment, how far its frames are good, and what to cut."""

    found: _Found
    frames: FrameReader
    cut: Cut | None


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
        self._seed = seed_of(directory.store_id)
        self._apply = apply
        # The first sequence to replay, and the one the log must reach.
        self._first = 1
        self._through = 0
        self._snapshot: SnapshotReader | None = None
        self._damaged: list[Path] = []

    def steps(self) -> Iterator[None]:
        """Do everything. `Corrupt` ends it, as does any OSError of the disk; then do not serve."""
        used = yield from self._used_segments()
        chain = yield from self._choose(used)
        yield from self._load_snapshot()
        last = yield from self._replay(chain)
        self._check_reach(last)
        if last is not None:
            self._settle(last)
        self._put_damaged_aside()
        self._list_older(used, chain)
        self.progress.bytes_done = self.progress.bytes_total

    def _used_segments(self) -> Generator[None, None, list[tuple[int, Path]]]:
        """The segments up to the last that holds anything. Those behind it are spare."""
        segments = self._directory.segments()
        self.result.next_index = segments[0][0] if segments else 1
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

    def _choose(self, used: list[tuple[int, Path]]) -> Generator[None, None, list[_Found]]:
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
            chain = self._chain(used)
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

    def _chain(self, used: list[tuple[int, Path]]) -> list[_Found]:
        """The last segments that have everything from `_first` on."""
        chain: list[_Found] = []
        for index, path in reversed(used):
            if chain and index != chain[0].index - 1:
                break
            found = self._look(index, path)
            if found.head is None and chain:
                raise Corrupt(path, 0, "its first frame is bad, and a later segment follows")
            chain.insert(0, found)
            if found.head is not None and found.head.first <= self._first:
                return chain
        if not chain and self._first > 1:
            raise Corrupt(self._directory.path, 0, "it holds a snapshot and no log")
        # A log that never got further than a torn first write has nothing else to show.
        if chain and (chain[0].head is not None or self._first > 1 or chain[0].index > 1):
            if chain[0].index == 1:
                raise Corrupt(chain[0].path, 0, f"it does not begin with sequence {self._first}")
            missing = self._directory.segment_path(chain[0].index - 1)
            raise Corrupt(missing, 0, f"it is missing, and with it sequence {self._first}")
        return chain

    def _look(self, index: int, path: Path) -> _Found:
        with self._disk.open(path, "read") as file:
            size = file.size()
            head = decode_segment(read(file, 0, segment_head_bytes))
        if head is not None and head.store_id != self._directory.store_id:
            raise Foreign(path, head.store_id, self._directory.store_id)
        if head is not None and head.size_bytes != size:
            what = f"it is {size} bytes long and was made {head.size_bytes}"
            raise Corrupt(path, min(size, head.size_bytes), what)
        return _Found(index, path, size, head)

    def _load_snapshot(self) -> Iterator[None]:
        if self._snapshot is not None:
            yield from self._walk_snapshot(self._snapshot, self._apply)
            self.progress.snapshot_records = self._snapshot.records

    def _walk_snapshot(self, snapshot: SnapshotReader, visit: Visit) -> Iterator[None]:
        for size in snapshot.walk(visit):
            self.progress.bytes_done += size
            yield

    def _replay(self, chain: list[_Found]) -> Generator[None, None, _Ending | None]:
        """Apply the log; what it ends with is judged and returned, not yet touched."""
        ending: _Ending | None = None
        sequence = self._first
        if chain and chain[0].head is not None:
            sequence = chain[0].head.first
        for found in chain:
            head = found.head
            if head is not None and head.first != sequence:
                raise _gap(ending, found.path, head.first, sequence)
            with self._disk.open(found.path, "read") as file:
                frames = FrameReader(
                    file,
                    self._seed,
                    sequence,
                    offset=segment_head_bytes if head is not None else 0,
                    visit_from=self._first,
                )
                if head is not None:
                    for size in frames.walk(self._apply):
                        self.progress.bytes_done += size
                        self.progress.log_frames += frames.sequence - sequence
                        sequence = frames.sequence
                        yield
                    used = Segment(found.index, found.path, head.first, frames.offset)
                    self.result.segments.append(used)
                    self.result.next_index = found.index + 1
                tail = yield from self._tail(file, frames.offset)
                if tail and found is not chain[-1]:
                    raise bad_frame(found.path, frames.offset, sequence, None)
                ending = _Ending(found, frames, self._judge(found.path, frames, tail))
        self.result.next_sequence = sequence
        return ending

    def _tail(self, file: File, offset: int) -> Generator[None, None, bytes]:
        for tail in read_tail(file, offset):
            if tail is not None:
                return tail
            yield
        return b""

    def _judge(self, path: Path, frames: FrameReader, tail: bytes) -> Cut | None:
        if not tail:
            return None
        later = find_later_batch(tail, self._seed, frames.sequence)
        if later is not None:
            raise bad_frame(path, frames.offset, frames.sequence, later)
        return Cut(path, frames.offset, len(tail))

    def _check_reach(self, last: _Ending | None) -> None:
        reached = self.result.next_sequence - 1
        if last is not None and reached < self._through:
            what = f"the log ends with sequence {reached}, and the snapshot is of {self._through}"
            raise Corrupt(last.found.path, last.frames.offset, what)

    def _settle(self, last: _Ending) -> None:
        """Make what was read durable, and what was cut gone for good."""
        frames, cut, head = last.frames, last.cut, last.found.head
        with self._disk.open(last.found.path, "write") as file:
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
        if cut is not None:
            self.result.cut = cut
            self.result.warnings.append(
                f"{cut.path}: {cut.bytes} bytes of an unfinished write were cut at byte "
                f"{cut.offset}; nothing of it had been acknowledged"
            )

    def _put_damaged_aside(self) -> None:
        for path in self._damaged:
            self._directory.put_aside(path)
        if self._damaged:
            self._disk.sync_directory(self._directory.path)

    def _list_older(self, used: list[tuple[int, Path]], chain: list[_Found]) -> None:
        """Name the segments that are kept for the snapshot before, so that they go with it.

        Their content is not needed now, so it is not looked at, and damage there is no reason to
        stay down.
        """
        segments = self.result.segments
        for index, path in reversed(used[: len(used) - len(chain)]):
            # Too high a first sequence only lets the segment before it stay longer.
            first = segments[0].first if segments else self.result.next_sequence
            with self._disk.open(path, "read") as file:
                size = file.size()
                head = decode_segment(file.read_at(0, segment_head_bytes))
            if head is not None:
                first = min(first, head.first)
            segments.insert(0, Segment(index, path, first, size))


def _gap(before: _Ending | None, path: Path, first: int, expected: int) -> Corrupt:
    """The complaint that this segment does not begin where the one before it ends."""
    if before is None or first < expected:
        return Corrupt(path, 0, f"it begins with sequence {first}, and {expected} should follow")
    what = f"sequences {expected} to {first - 1} are missing"
    return Corrupt(before.found.path, before.frames.offset, what)


def _ignore(kind: int, body: bytes) -> None:
    """Visits a snapshot that is only being checked."""
