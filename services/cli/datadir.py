"""The data directory of one `ydht up`: whose it is, and what it tells other programs.

    up.lock         locked by the running supervisor; holds its pid
    children.lock   locked as long as any process of any supervisor of this directory lives
    up.json         where everything is, while everything is up
    logs/           what the services said

Two locks, because they answer two questions: is another `up` running (refuse), and are
processes of one that was killed still on their way out (wait for them).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from services.core.errors import FatalError, RestartLater
from services.runtime.file_lock import FileLock

# Processes whose supervisor was killed end like on SIGTERM, which may take them 10 s.
leftovers_s_max = 15.0
leftovers_poll_s = 0.05


class DataDirectory:
    """A data directory that this process owns, from `open` until `close` (or its end)."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self.logs = path / "logs"
        self._lock = lock
        self._children_lock = FileLock(path / "children.lock")

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """Create it if need be and take it, or FatalError: unusable, or in use by whom."""
        path = path.absolute()
        lock = FileLock(path / "up.lock")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            taken = lock.take()
        except OSError as error:
            raise unusable(path, error) from error
        if not taken:
            raise FatalError(
                f"{path} is in use by another `ydht up` (pid {lock.holder() or 'unknown'}): "
                "stop that one, or give this one its own --data-dir"
            )
        directory = cls(path, lock)
        try:
            lock.sign()
            directory.forget()
            directory.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            directory.close()
            raise unusable(path, error) from error
        return directory

    async def outlast_leftovers(self, say: Callable[[str], None]) -> int:
        """Wait until no process of an earlier supervisor is left, and return the children's lock.

        Every child must inherit this descriptor: the kernel then knows when the last is gone.
        """
        lock = self._children_lock
        try:
            if lock.take():
                return lock.descriptor
            say("waiting for the processes of an earlier run to end")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(leftovers_s_max):
                    while not lock.take():  # noqa: ASYNC110  Nobody tells when a lock is free.
                        await asyncio.sleep(leftovers_poll_s)
                    return lock.descriptor
        except OSError as error:
            raise unusable(self.path, error) from error
        raise RestartLater(
            f"{self._leftovers()} of an earlier `ydht up` in {self.path} "
            "did not end by itself: end it, then try again"
        )

    def publish(self, document: Mapping[str, Any]) -> None:
        """Put `up.json` in place, whole and readable by its owner only. OSError if it can't be."""
        text = json.dumps(document, indent=2) + "\n"
        # mkstemp's files are 0600 from the start.
        descriptor, temporary = tempfile.mkstemp(prefix=".up.json.", dir=self.path)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            Path(temporary).replace(self.path / "up.json")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def forget(self) -> None:
        """Remove `up.json`, and what a publication cut short by kill -9 left."""
        (self.path / "up.json").unlink(missing_ok=True)
        for temporary in self.path.glob(".up.json.*"):
            temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the directory. The lock files stay: removing one would let two hold it."""
        with contextlib.suppress(OSError):
            self.forget()
        self._children_lock.release()
        # What is on the disk does not matter to the lock itself.
        with contextlib.suppress(OSError):
            self._lock.release()

    def _leftovers(self) -> str:
        """The processes that still hold the children's lock, as far as this user can see them."""
        path = str(self.path / "children.lock")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(
                    file.path == path for file in process.open_files()
                ):
                    found.append(f"{process.pid} ({process.name()})")
        return f"process {', '.join(found)}" if found else "a process that this user can't see"


def unusable(path: Path, error: OSError) -> FatalError:
    """Why a data directory cannot be used, and what to do about it."""
    # Not Path.exists(), which itself fails below a directory that is closed to us.
    if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112
        return FatalError(f"data directory {path} is not a directory: choose another --data-dir")
    if isinstance(error, FileExistsError) and path.is_symlink():
        return FatalError(
            f"data directory {path} is a link to {path.readlink()}, which is not there: "
            "make that directory, or choose another --data-dir"
        )
    where = "" if str(error.filename) in ("None", str(path)) else f" ({error.filename})"
    remedy = {
        errno.ENOSPC: "make room, or ",
        errno.EDQUOT: "make room, or ",
        errno.EACCES: "start as the user who owns it, or ",
    }.get(error.errno or 0, "")
    kind = RestartLater if error.errno in (errno.ENOSPC, errno.EDQUOT) else FatalError
    return kind(
        f"data directory {path} can't be used: {error.strerror}{where}: "
        f"{remedy}choose another --data-dir"
    )
