"""Snapshots: all of a replica in one file, so that the log before it can go.

    snapshot:  START  ·  frames of the owner (SLOT, LEAVES, EPOCH, …)  ·  END

A snapshot is written while the replica changes. It contains every change below the sequence it
is named for, and of the later ones whatever had happened when their part was written; replaying
the log from that sequence on makes it exact. It gets its name only when the log is durable as
far as the snapshot may have seen, so it never knows more than the log.

The previous snapshot stays, with the segments behind it: should the newest rot, recovery can
fall back and lose nothing. Until there are two, the whole log stays.

This is no incremental format, and no archive: it is read whole, by the node that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from services.core.errors import PeerError
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import (
    END,
    SnapshotEnd,
    decode_end,
    decode_start,
    encode_end,
    encode_start,
    records_in,
    start_bytes,
)
from services.runtime.clock import Clock, Timer
from services.runtime.disk import Disk, File
from services.runtime.log.frame import Corrupt, FrameReader, Visit, encode, read, seed_of
from services.runtime.log.log import Log
from services.runtime.log.preparation import passing_errors
from services.runtime.log.segments import draft_suffix

# The loop serves requests between two slices, and as long as a slice takes.
slice_s = 0.002
rest_s = 0.002
# How often to look whether the log has become durable as far as the snapshot has seen.
poll_s = 0.005
# One write to the file. Two may be under way: one in the disk's hands, one behind it.
write_bytes = 512 << 10
writes_max = 2
snapshots_kept = 2

Finished = Callable[["SnapshotWriter", OSError | None], None]


class SnapshotWriter:
    """Writes one snapshot, in slices between which the loop is free.

    `source` yields the frames of the owner, each quick to make, and is asked for the next one
    only when it can be taken: it may look at the live table every time.

    `on_finished` hears once that the snapshot is durable (None), or that there was no space for
    it and nothing is left of it (the error); try again later then. Any other error of the disk
    goes to the log's `fail`, and `on_finished` is not called. Neither is it when `source` raises:
    that is a bug, of which `on_bug` hears when nothing is left of the snapshot.
    """

    def __init__(
        self,
        directory: NodeDirectory,
        log: Log,
        clock: Clock,
        source: Iterator[tuple[int, bytes]],
        on_finished: Finished,
        on_bug: Callable[[Exception], None] | None = None,
    ) -> None:
        self.frames = 0
        self.records = 0
        self.bytes = 0
        self.first = 0
        self._directory = directory
        self._disk = directory.disk
        self._log = log
        self._clock = clock
        self._source = source
        self._on_finished = on_finished
        self._on_bug = on_bug
        self._seed = seed_of(directory.store_id)
        self._file: File | None = None
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._handed_over = 0
        self._writes = 0
        self._exhausted = False
        self._through = 0
        self._oldest = 0
        self._naming = False
        self._ended = False
        self._timer: Timer | None = None

    def start(self) -> None:
        """Fix the sequence this snapshot is for, and begin."""
        self.first = self._log.rotate()
        self._add(encode_start(self._directory.store_id, self.first))
        self._disk.run_soon(self._create, self._written)
        self._writes += 1

    def cancel(self) -> None:
        """Stop, for the end of the process. What was written is removed at the next start."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _slice(self) -> None:
        """Take frames until time or buffer are used up."""
        self._timer = None
        try:
            self._take_frames()
        except Exception as error:
            # Nobody awaits a timer: its owner has to be told.
            if self._on_bug is None:
                raise
            self._give_up(partial(self._on_bug, error))
            return
        if self._buffered >= write_bytes:
            self._hand_over()
        self._go_on(rest_s)

    def _take_frames(self) -> None:
        until_s = self._clock.monotonic_s() + slice_s
        for kind, body in self._source:
            self._add(encode(self._seed, self.frames + 1, self.first, kind, body))
            self.records += records_in(kind, body)
            if self._buffered >= write_bytes or self._clock.monotonic_s() >= until_s:
                break
        else:
            self._exhausted = True
            # What the table held had been appended, if not yet made durable.
            self._through = self._log.next_sequence - 1

    def _go_on(self, delay_s: float) -> None:
        """Choose what comes next, unless a write has to end first: that calls again."""
        if self._over or self._timer is not None:
            return
        if not self._exhausted:
            if self._writes < writes_max:
                self._timer = self._clock.call_later(delay_s, self._slice)
        elif not self._writes:
            if self._log.durable_sequence >= self._through:
                self._finish()
            else:
                self._timer = self._clock.call_later(poll_s, self._poll)

    def _poll(self) -> None:
        self._timer = None
        self._go_on(0.0)

    def _finish(self) -> None:
        end = SnapshotEnd(self.frames + 1, self.records, self._through)
        self._add(encode_end(self._seed, self.first, end))
        data, offset = self._take_buffer()

        def name() -> None:
            file = self._opened()
            file.write_at(offset, data)
            file.sync()
            file.close()
            self._disk.rename(self._draft, self._directory.snapshot_path(self.first))
            self._naming = True
            self._disk.sync_directory(self._directory.path)

        self._disk.run_soon(name, self._named)

    def _add(self, frame: bytes) -> None:
        self.frames += 1
        self.bytes += len(frame)
        self._buffer.append(frame)
        self._buffered += len(frame)

    def _take_buffer(self) -> tuple[bytes, int]:
        data, offset = b"".join(self._buffer), self._handed_over
        self._handed_over += len(data)
        self._buffer.clear()
        self._buffered = 0
        return data, offset

    def _hand_over(self) -> None:
        data, offset = self._take_buffer()
        self._writes += 1
        self._disk.run_soon(lambda: self._opened().write_at(offset, data), self._written)

    def _create(self) -> None:
        if self._disk.exists(self._draft):
            self._disk.remove(self._draft)
        self._file = self._disk.open(self._draft, "create")

    def _written(self, error: OSError | None) -> None:
        self._writes -= 1
        if error is not None:
            self._fail(error)
        else:
            self._go_on(0.0)

    def _named(self, error: OSError | None) -> None:
        if error is not None:
            self._fail(error)
        elif not self._over:
            self._disk.run_soon(self._prune, self._pruned)

    def _prune(self) -> None:
        """Remove the snapshots that the newest two make unnecessary, and damaged ones."""
        unneeded = [path for _, path in self._directory.snapshots()[snapshots_kept:]]
        for path in unneeded + self._directory.damaged():
            self._disk.remove(path)
        kept = self._directory.snapshots()
        self._oldest = kept[-1][0] if len(kept) == snapshots_kept else 0

    def _pruned(self, error: OSError | None) -> None:
        if error is not None:
            self._fail(error)
        elif not self._over:
            self._ended = True
            self._log.delete_segments_below(self._oldest)
            self._on_finished(self, None)

    def _fail(self, error: OSError) -> None:
        if self._over:
            return
        if self._naming or error.errno not in passing_errors:
            self.cancel()
            self._log.fail(error)
        else:
            self._give_up(partial(self._on_finished, self, error))

    def _give_up(self, tell: Callable[[], None]) -> None:
        """Leave nothing behind, then tell."""
        self.cancel()

        def give_up() -> None:
            if self._file is not None:
                self._file.close()
            with suppress(FileNotFoundError):
                self._disk.remove(self._draft)

        def gave_up(trouble: OSError | None) -> None:
            if trouble is not None:
                self._log.fail(trouble)
            elif self._log.failure is None:
                tell()

        self._disk.run_soon(give_up, gave_up)

    def _opened(self) -> File:
        assert self._file is not None  # noqa: S101 - errands run in order, and the first opens it.
        return self._file

    @property
    def _over(self) -> bool:
        return self._ended or self._log.failure is not None

    @property
    def _draft(self) -> Path:
        path = self._directory.snapshot_path(self.first)
        return path.with_name(path.name + draft_suffix)


class SnapshotReader:
    """Reads one snapshot, checking everything. `Corrupt` names the first thing that is wrong."""

    def __init__(self, disk: Disk, path: Path, store_id: bytes, first: int) -> None:
        self.path = path
        self.end: SnapshotEnd | None = None
        self.records = 0
        self._disk = disk
        self._store_id = store_id
        self._first = first

    def walk(self, visit: Visit) -> Iterator[int]:
        """Visit the frames between START and END. Yields once per piece, with its bytes."""
        self.end = None
        self.records = 0

        def look(kind: int, body: bytes) -> None:
            if self.end is not None:
                raise PeerError("something follows the end of the snapshot")
            if kind == END:
                self.end = decode_end(body)
            else:
                self.records += records_in(kind, body)
                visit(kind, body)

        with self._disk.open(self.path, "read") as file:
            if decode_start(read(file, 0, start_bytes)) != (self._store_id, self._first):
                raise Corrupt(self.path, 0, "it does not begin as this snapshot of this node")
            frames = FrameReader(file, seed_of(self._store_id), 2, offset=start_bytes)
            yield from frames.walk(look)
            if frames.offset != file.size():
                raise Corrupt(self.path, frames.offset, f"frame {frames.sequence} is bad")
            if self.end is None:
                raise Corrupt(self.path, frames.offset, "its end is missing")
            if (self.end.frames, self.end.records) != (frames.sequence - 1, self.records):
                raise Corrupt(self.path, frames.offset, "its end counts other frames than it has")
