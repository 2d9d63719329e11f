"""The next segment of the log, always made before it is needed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.runtime.clock import Clock, Timer
from services.runtime.disk import File
from services.runtime.log.segments import SegmentDirectory, draft_suffix

# What passes when somebody frees space or descriptors; anything else is the end of the disk.
passing_errors = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})
# Space comes back when an operator or a snapshot makes some; asking costs a failed allocation.
retry_first_s = 0.1
retry_longest_s = 5.0


@dataclass(slots=True, frozen=True)
class EmptySegment:
    index: int
    path: Path
    file: File


class Preparation:
    """Keeps one empty segment ready: its blocks written and synced, its name durable.

    A full disk thus shows while the current segment still has room. `shortage` is then the error
    of the last attempt, and attempts go on, at growing intervals, until one succeeds.
    `on_attempted` hears of the end of each. All other errors go to `on_failure`, and nothing is
    attempted after that.

    An empty segment that an earlier process has left is used, so that a node that starts on a
    full disk has somewhere to log deletes. Recovery has seen that it holds nothing but zeros.
    """

    def __init__(
        self,
        directory: SegmentDirectory,
        clock: Clock,
        *,
        first_index: int,
        segment_bytes: int,
        on_attempted: Callable[[], None],
        on_failure: Callable[[OSError], None],
    ) -> None:
        self.shortage: OSError | None = None
        self._directory = directory
        self._clock = clock
        self._index = first_index
        self._segment_bytes = segment_bytes
        self._on_attempted = on_attempted
        self._on_failure = on_failure
        self._ready: EmptySegment | None = None
        self._made: EmptySegment | None = None
        self._naming = False
        self._retry_s = retry_first_s
        self._retry: Timer | None = None
        self._closed = False

    @property
    def ready(self) -> bool:
        return self._ready is not None

    def start(self) -> None:
        self._retry = None
        self._directory.disk.run_soon(self._make, self._attempted)

    def take(self) -> EmptySegment | None:
        """The segment that is ready, if one is; the next is then begun."""
        taken, self._ready = self._ready, None
        if taken is not None:
            self._index += 1
            self.start()
        return taken

    def close(self) -> None:
        """Begin nothing more. A segment that is being made is left for the next start."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._ready is not None:
            self._ready.file.close()
            self._ready = None

    def _make(self) -> None:
        """Runs as an errand of the disk."""
        disk = self._directory.disk
        path = self._directory.segment_path(self._index)
        draft = path.with_name(path.name + draft_suffix)
        self._naming = False
        try:
            if self._adopt(path):
                return
            if disk.exists(draft):
                disk.remove(draft)
            with disk.open(draft, "create") as file:
                file.allocate(self._segment_bytes, zero_fill=True)
                file.sync()
            disk.rename(draft, path)
            self._naming = True
            disk.sync_directory(path.parent)
            self._naming = False
            self._made = EmptySegment(self._index, path, disk.open(path, "write"))
        except OSError:
            # Gives back what space it took. If this fails too, the next attempt begins with it.
            with suppress(OSError):
                disk.remove(draft)
            raise

    def _adopt(self, path: Path) -> bool:
        if not self._directory.disk.exists(path):
            return False
        file = self._directory.disk.open(path, "write")
        if file.size() != self._segment_bytes:
            file.close()
            return False
        self._made = EmptySegment(self._index, path, file)
        return True

    def _attempted(self, error: OSError | None) -> None:
        made, self._made = self._made, None
        if self._closed:
            if made is not None:
                made.file.close()
        elif error is None:
            self._ready, self.shortage = made, None
            self._retry_s = retry_first_s
            self._on_attempted()
        elif self._naming or error.errno not in passing_errors:
            # After a failed sync of the directory nobody knows which names it has.
            self._on_failure(error)
        else:
            self.shortage = error
            self._retry = self._clock.call_later(self._retry_s, self.start)
            self._retry_s = min(self._retry_s * 2, retry_longest_s)
            self._on_attempted()
