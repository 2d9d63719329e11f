"""A node on a device that fails: `python -m tests.integration.failing_disk`.

Runs `services.dhtnode` unchanged, in an interpreter whose syncs fail with EIO as two variables
say: SYNC_FAILS, a pattern for the path of what is synced, and SYNC_FAILS_AFTER, how many such
syncs succeed before. From then on every sync fails, and what was written to the file since its
last good sync is taken back: a device that cannot keep what it was given. Every path that is
synced is appended to the file SYNC_LOG.
"""

from __future__ import annotations

import errno
import os
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path


class Device:
    """Stands between a process and the system calls that write and sync."""

    def __init__(self, pattern: str, after: int, log: Path) -> None:
        self._pattern = re.compile(pattern)
        self._left = after
        self._failed = False
        self._log = log
        # By descriptor, what stood before where something was written and not synced.
        self._unsynced: dict[int, list[tuple[int, bytes]]] = {}
        self._pwrite = os.pwrite
        self._pwritev = os.pwritev

    def install(self) -> None:
        # mypy knows that these take more kinds of arguments; the node's disk does not use them.
        os.pwrite = self.pwrite  # type: ignore[assignment]
        os.pwritev = self.pwritev  # type: ignore[assignment]
        os.fsync = self.syncing(os.fsync)  # type: ignore[assignment]
        os.fdatasync = self.syncing(os.fdatasync)  # type: ignore[assignment]

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        before = os.pread(descriptor, len(data), offset)
        self._unsynced.setdefault(descriptor, []).append((offset, before))
        return self._pwrite(descriptor, data, offset)

    def pwritev(self, descriptor: int, buffers: Sequence[bytes], offset: int, flags: int) -> int:
        """A write with its sync, which is for nothing else that was written."""
        if flags != os.RWF_DSYNC:
            raise RuntimeError(f"a node that writes with flags {flags:#x} is not known here")
        before = os.pread(descriptor, sum(len(buffer) for buffer in buffers), offset)
        written = self._pwritev(descriptor, buffers, offset, flags)
        self._pass(descriptor, [(offset, before)])
        return written

    def syncing(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def synced(descriptor: int) -> None:
            self._pass(descriptor, self._unsynced.pop(descriptor, []))
            sync(descriptor)

        return synced

    def _pass(self, descriptor: int, unsynced: list[tuple[int, bytes]]) -> None:
        """Let a sync go on, or fail and take back what it is for."""
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        with self._log.open("a") as log:
            log.write(f"{path}\n")
        if not self._failed and self._pattern.search(path):
            self._failed, self._left = self._left == 0, self._left - 1
        if self._failed:
            for offset, before in reversed(unsynced):
                self._pwrite(descriptor, before, offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))


if __name__ == "__main__":
    Device(
        os.environ["SYNC_FAILS"], int(os.environ["SYNC_FAILS_AFTER"]), Path(os.environ["SYNC_LOG"])
    ).install()
    runpy.run_module("services.dhtnode", run_name="__main__", alter_sys=True)
