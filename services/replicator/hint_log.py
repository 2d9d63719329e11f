"""The hints for one node, on disk: writes that it missed, in the order in which they were kept.

A hint is one frame of the segmented log that nodes use as well, with this body:

    kept at u64, milliseconds since 1970  ·  key_len u16  ·  key  ·  record

Hints are kept at one end and taken at the other. What was taken and is still to be delivered is
the taker's; a segment is removed when everything in it was delivered. How far that went is not
written down: after a restart a part of a segment is delivered once more, which changes nothing,
because a record replaces only what is older.

The id of such a log is drawn when its first segment is made, and every segment has it.
"""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from services.replicator.hint_files import HintFiles
from services.replicator.hint_reading import HINT, Hint, Reading, encode_hint
from services.runtime.clock import Clock
from services.runtime.disk import Disk
from services.runtime.log.frame import (
    Corrupt,
    head_bytes,
    piece_bytes,
    store_id_bytes,
)
from services.runtime.log.log import Batch, Log
from services.runtime.log.preparation import passing_errors
from services.runtime.log.scan import Cut
from services.runtime.log.segments import Segment, SegmentDirectory

# A node that is away for a moment costs two of these; making one takes some 10 ms. It holds
# several of the largest records, and at least two commits.
segment_bytes_default: Final = 8 << 20
# Undurable hints are in memory. Past this the disk is slower than the writes that come in.
undurable_bytes_max: Final = 32 << 20
# Taken by the replay in a few requests; the next piece is read meanwhile.
read_ahead_hints: Final = 1_024
retry_s: Final = 1.0


class HintLog:
    """`recover` it, then `append` and `take`.

    `on_ready` hears that there may be more to take, `on_damage` of a segment that cannot be read
    to its end: what was in it is lost, and the log goes on behind it. `on_failure` hears of an
    error after which nobody knows what the disk holds; its owner ends the process.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        clock: Clock,
        draw: random.Random,
        *,
        on_ready: Callable[[], None],
        on_damage: Callable[[Corrupt], None],
        on_failure: Callable[[OSError], None],
        segment_bytes: int = segment_bytes_default,
    ) -> None:
        self.path = path
        # Of all hints that are not known to be delivered.
        self.bytes = 0
        # An unfinished write that was found at the end.
        self.cut: Cut | None = None
        # When the first of these was kept; never later than that. None if there is none.
        self.oldest_ms: int | None = None
        self._disk = disk
        self._clock = clock
        self._draw = draw
        self._on_ready = on_ready
        self._on_damage = on_damage
        self._on_failure = on_failure
        self._segment_bytes = segment_bytes
        self._files = HintFiles(disk, path)
        self._directory = SegmentDirectory(disk, path, b"")
        self._log: Log | None = None
        self._started = False
        # Why there is no directory to keep hints in; the log itself knows of other shortages.
        self._no_directory: OSError | None = None
        self._next_sequence = 1
        self._next_index = 1
        # Batches with somebody waiting, oldest first.
        self._batches: deque[Batch] = deque()
        # Everything up to here was delivered or lost, and ranges behind it that were lost.
        self._done_through = 0
        self._lost: deque[tuple[int, int]] = deque()
        self._damaged: set[int] = set()
        self._reading = Reading()

    # -- keeping

    @property
    def count(self) -> int:
        """How many hints are not known to be delivered, durable or not yet."""
        last = self._next_sequence if self._log is None else self._log.next_sequence
        return last - 1 - self._done_through

    @property
    def idle(self) -> bool:
        """Whether everything kept is durable."""
        return self._log is None or self._log.idle

    def refusal(self, size_bytes: int) -> str | None:
        """Why no hint of this size is taken now; None if it is."""
        log = self._log
        if log is None:
            return None
        if self._no_directory is not None or not log.has_room(size_bytes):
            return "disk_full"
        return "overloaded" if log.undurable_bytes > undurable_bytes_max else None

    def append(
        self, kept_ms: int, key: bytes, record: bytes, kept: Callable[[], None] | None
    ) -> None:
        """Keep a hint; `kept` is called once it is durable."""
        log = self._log
        if log is None or not self._started:
            log = self._begin()
        body = encode_hint(kept_ms, key, record)
        self.bytes += head_bytes + len(body)
        if self.oldest_ms is None:
            self.oldest_ms = kept_ms
        batch = log.append(HINT, body)
        if kept is not None:
            if not batch.replies:
                self._batches.append(batch)
            batch.replies.append(kept)

    def release(self) -> list[Callable[[], None]]:
        """Those who wait for what cannot become durable as long as the disk is full; they wait no
        more. Empty if all goes well."""
        log = self._log
        if log is not None and (
            self._no_directory is not None or (log.starved and log.shortage is not None)
        ):
            return self._let_go()
        return []

    def _let_go(self) -> list[Callable[[], None]]:
        waiting = [kept for batch in self._batches for kept in batch.replies]
        for batch in self._batches:
            batch.replies.clear()
        self._batches.clear()
        return waiting

    def _begin(self) -> Log:
        """Let there be a directory and a segment; what is appended meanwhile waits for them."""
        self._started = True
        log = self._log or self._open([])
        self._make_directory()
        return log

    def _open(self, segments: list[Segment]) -> Log:
        if not self._directory.store_id:
            store_id = self._draw.randbytes(store_id_bytes)
            self._directory = SegmentDirectory(self._disk, self.path, store_id)
        log = self._log = Log(
            self._directory,
            self._clock,
            partial(self._clock.call_later, 0.0),
            next_sequence=self._next_sequence,
            next_index=self._next_index,
            segments=segments,
            on_durable=self._durable,
            on_failure=self._on_failure,
            segment_bytes=self._segment_bytes,
            commit_bytes_max=self._segment_bytes // 2,
        )
        return log

    def _make_directory(self) -> None:
        self._disk.run_soon(partial(self._disk.make_directory, self.path), self._directory_made)

    def _directory_made(self, error: OSError | None) -> None:
        log = self._log
        if log is None or log.closed:
            return
        if error is None:
            self._no_directory = None
            log.start()
        elif error.errno in passing_errors:
            self._no_directory = error
            self._clock.call_later(retry_s, self._make_directory)
        else:
            self._on_failure(error)

    def _durable(self, batch: Batch) -> None:
        if self._batches and self._batches[0] is batch:
            self._batches.popleft()
            for kept in batch.replies:
                kept()
        self._on_ready()

    # -- taking

    def take(self, count_max: int, bytes_max: int) -> list[Hint]:
        """The next hints, each once; at least one if any has been read, whatever its size."""
        taken: list[Hint] = []
        room = bytes_max
        ahead = self._reading.ahead
        while ahead and len(taken) < count_max:
            hint = ahead[0]
            room -= len(hint.key) + len(hint.record)
            if room < 0 and taken:
                break
            taken.append(ahead.popleft())
        self._read_on()
        return taken

    def delivered(self, through: int, oldest_ms: int | None) -> None:
        """All hints up to this one were delivered; the next one taken is as old as this, if it
        is known."""
        self.passed(through)
        if not self.count:
            self.oldest_ms = None
        elif oldest_ms is not None:
            self.oldest_ms = oldest_ms
        elif self._reading.ahead:
            self.oldest_ms = self._reading.ahead[0].kept_ms
        self._retire()

    def passed(self, through: int) -> None:
        """As `delivered`, but every file stays until its owner says otherwise."""
        self._done_through = max(self._done_through, through)
        self._skip_lost()

    def _skip_lost(self) -> None:
        while self._lost and self._lost[0][0] <= self._done_through + 1:
            self._done_through = max(self._done_through, self._lost.popleft()[1])

    def _read_on(self) -> None:
        """Read the next piece in the background, if one is wanted and there."""
        reading, log = self._reading, self._log
        if log is None or reading.busy or len(reading.ahead) >= read_ahead_hints:
            return
        while (segment := self._segment_to_read(log)) is not None:
            # In a segment at hand, what lies behind may be in the middle of being written.
            length = min(piece_bytes, segment.used_bytes - reading.position)
            if length > 0:
                reading.busy = True
                errand = partial(reading.read, self._disk, segment.path, length)
                self._disk.run_soon(errand, partial(self._was_read, reading))
                return
            if reading.sequence > self._last_in(log, segment):
                return
            self._damage(log, segment, "it ends before its last frame")

    def _segment_to_read(self, log: Log) -> Segment | None:
        """The segment in which the next hint lies, the reading being at the right place in it."""
        reading = self._reading
        segments = log.segments
        for place, segment in enumerate(segments):
            if segment.index < reading.index:
                continue
            if segment.index == reading.index:
                behind = place + 1 < len(segments) and reading.sequence >= segments[place + 1].first
                if reading.over or behind:
                    continue
                return segment
            if reading.sequence and segment.first > reading.sequence:
                # Went to a segment that had been given up, since there was no room for another.
                self._lost.append((reading.sequence, segment.first - 1))
                self._skip_lost()
            reading.begin(segment, self._directory.store_id)
            return segment
        return None

    def _last_in(self, log: Log, segment: Segment) -> int:
        """The last sequence in a segment that is durable."""
        behind = log.segments.index(segment) + 1
        if behind < len(log.segments):
            return log.segments[behind].first - 1
        return log.durable_sequence

    def _was_read(self, reading: Reading, error: OSError | None) -> None:
        reading.busy = False
        log = self._log
        if reading is not self._reading or log is None:
            reading.close()
            return
        if error is not None and error.errno in passing_errors:
            self._clock.call_later(retry_s, self._on_ready)
            return
        if error is not None and error.errno != errno.EIO:
            self._on_failure(error)
            return
        segment = next(each for each in log.segments if each.index == reading.index)
        if error is not None:
            self._damage(log, segment, "the device cannot read it")
        elif (wrong := self._feed(log, segment)) is not None:
            self._damage(log, segment, wrong)
        self._on_ready()

    def _feed(self, log: Log, segment: Segment) -> str | None:
        """Take in what was read; says what is wrong with it, if anything is."""
        reading = self._reading
        try:
            reading.feed()
        except Corrupt as corrupt:
            return corrupt.what
        if reading.stopped and reading.sequence <= self._last_in(log, segment):
            return f"frame {reading.sequence} is bad"
        return None

    def _damage(self, log: Log, segment: Segment, what: str) -> None:
        """Give up the rest of this segment, and go on behind it."""
        reading = self._reading
        last = self._last_in(log, segment)
        if segment is log.segments[-1] and segment.index >= self._next_index:
            # It is the one that is written to.
            last = log.rotate() - 1
        damage = Corrupt(segment.path, reading.position, what)
        self._lost.append((reading.sequence, last))
        self._damaged.add(segment.index)
        reading.give_up(last + 1)
        self._skip_lost()
        if not self.count:
            self.oldest_ms = None
        self._on_damage(damage)

    # -- removing

    def _retire(self) -> None:
        """Remove the segments in which everything was delivered."""
        log = self._log
        if log is None:
            return
        gone: list[Segment] = []
        while len(log.segments) > 1 and log.segments[1].first <= self._done_through + 1:
            gone.append(log.segments.pop(0))
        if gone:
            self._measure(log)
            paths = [(segment.path, segment.index in self._damaged) for segment in gone]
            self._disk.run_soon(partial(self._files.remove, paths), self._removed)

    def _measure(self, log: Log) -> None:
        self.bytes = log.used_bytes + log.undurable_bytes

    def clear(self) -> list[Callable[[], None]]:
        """Remove everything, delivered or not. What is kept from now on begins another segment.
        Returns those who waited for what was just being kept."""
        log, waiting = self._log, self._let_go()
        if log is None:
            return waiting
        self._next_sequence = log.next_sequence
        self._next_index = log.segments[-1].index + 1 if log.segments else self._next_index
        self._stop()
        self._done_through = self._next_sequence - 1
        self._lost.clear()
        self.bytes, self.oldest_ms = 0, None
        damaged = frozenset(self._damaged)
        self._disk.run_soon(partial(self._files.remove_all, damaged), self._removed)
        return waiting

    @property
    def on_disk(self) -> bool:
        """Whether there are segments, with hints in them or not."""
        return self._log is not None

    def close(self) -> None:
        """Keep and read no more. Wait for `idle` first to lose nothing that waits."""
        self._let_go()
        self._stop()

    def _stop(self) -> None:
        if self._log is not None:
            self._log.close()
        self._log, self._started, self._no_directory = None, False, None
        reading, self._reading = self._reading, Reading()
        if not reading.busy:
            reading.close()

    def _removed(self, error: OSError | None) -> None:
        if error is not None:
            self._on_failure(error)

    # -- finding again

    def recover(self) -> Iterator[None]:
        """Find the hints that an earlier run has kept. OSError is the end of the disk.

        A log that makes no sense as a whole is put aside, and `on_damage` hears of it.
        """
        try:
            found = yield from self._files.find()
        except Corrupt as corrupt:
            self._files.put_all_aside()
            self._on_damage(corrupt)
            return
        if found is None:
            return
        self.cut = found.cut
        self._directory = SegmentDirectory(self._disk, self.path, found.store_id)
        self._next_sequence, self._next_index = found.next_sequence, found.next_index
        self._done_through = found.segments[0].first - 1
        self._measure(self._open(found.segments))
        yield from self._first_piece()

    def _first_piece(self) -> Iterator[None]:
        """Read so far that the age of the oldest hint is known."""
        reading, log = self._reading, self._log
        while log is not None and not reading.ahead and self.count:
            segment = self._segment_to_read(log)
            if segment is None:
                return
            length = min(piece_bytes, segment.used_bytes - reading.position)
            error = None
            try:
                reading.read(self._disk, segment.path, length)
            except OSError as failed:
                error = failed
            self._was_read(reading, error)
            if error is not None and error.errno != errno.EIO:
                return
            yield
        if reading.ahead:
            self.oldest_ms = reading.ahead[0].kept_ms
