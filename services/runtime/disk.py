"""The disk, passed in: files, directories and background syncs, and the machine's own disk.

Everything durable goes through a `Disk`, so that a test can hand over one that lies
(`fake_disk.FakeDisk`). What a user may rely on:

- Written is not durable. File content is durable once a sync of that file has ended without an
  error; a name (create, rename, remove) is durable once its directory was synced. Both are
  needed before a new file survives a power cut.
- Every failure is an `OSError` with errno and filename, raised or delivered exactly once. Nothing
  is retried. After a failed sync nobody knows what the device holds, so the file fails every
  later sync alike; its owner ends the process and recovers from what is really there.
- A process that was killed leaves its unsynced writes visible in the page cache. Whoever reads
  them at the next start and relies on them must sync the file first.

Methods block, except those ending in `_soon`. These hand over to a worker thread and return at
once; `done` runs on the event loop that asked, never before the call returned.

What is measured here (two cores, ext4, best of several runs):

- Handing an empty job to a worker and back, asyncio / uvloop: 46 / 38 us with a thread of our own
  (a queue and `call_soon_threadsafe`), 48 / 49 us with a ThreadPoolExecutor and the same, 73 /
  59 us with `run_in_executor`. Hence a thread of our own.
- A batch written on the loop holds the loop for 13 us (10 KB) or 160 us (1 MB); handed over
  together with its fdatasync it costs 6 or 5 us, and is durable just as soon (175 us, 600 us).
  Hence `commit_soon` does both in the worker, whatever the size.
- A 10 KB commit takes 160 us in a file that was only allocated and 95 us in one filled with zeros,
  because the first write to an allocated block is a change of metadata. Hence `zero_fill`.
- A commit of 6 KB takes 122 us of processor time (medians, and cold caches, from here on) in a file
  filled with zeros by 1 MiB a call, 72 us if by 64 KiB, and no less if by 16 KiB: the kernel looks
  through the whole of what one call has put into its cache. Hence `zero_piece_bytes`.
- Of a node under the load of a whole platform, in segments filled by small pieces, a commit of 30
  writes takes 157 us by a write and an fdatasync, and 138 us by a write that syncs its own range.
  Hence what `commit_soon` promises, and what not.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from services.core.errors import RestartLater
from services.runtime.file_lock import FileLock
from services.runtime.file_systems import heeds_synced_writes

Done = Callable[[OSError | None], None]
Mode = Literal["read", "write", "create"]

# Values belong to tenants: nobody but the account that runs the service reads them.
file_mode = 0o600
directory_mode = 0o700
lock_name = "LOCK"
# An owner that groups its commits has one or two under way. More than this is an owner that does
# not wait for its replies, and would fill memory with batches on a slow disk.
background_pending_max = 256
# Large enough that the cost per call vanishes, and the waits for the interpreter between calls:
# 64 MiB take 0.2 to 0.3 s beside a busy loop. What is written by one call the kernel keeps as one
# piece of its cache, and looks through all of it for each small commit to it, so no larger.
zero_piece_bytes = 64 << 10
# What a kernel, a file system or a sandbox answers that cannot write and sync by one call.
unsupported = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM})


@dataclass(slots=True, frozen=True)
class Space:
    """What a file system holds, and what of it this process may still take."""

    total_bytes: int
    free_bytes: int


class DirectoryInUse(RestartLater):
    """Another process holds the lock of a directory, perhaps not for long; `pid` is None if it did
    not say who it is."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"{directory} is in use by {holder}: stop that process, or choose another directory"
        )
        self.directory = directory
        self.pid = pid


class Lock(Protocol):
    def release(self) -> None:
        """Let go. Releasing twice is harmless; the end of the process releases too."""
        ...


class File(Protocol):
    """An open file. Offsets are absolute: there is no position to share or lose."""

    @property
    def path(self) -> Path:
        """The name it was opened by; a later rename does not change it."""
        ...

    def size(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, or fewer if the file ends first; past the end, none."""
        ...

    def forget_cached(self, offset: int, length: int) -> None:
        """Have the next read of this part come from the device, where the system can do that, and
        not from memory. What was not synced yet stays as it is."""
        ...

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of it or raise; what a failed write left behind is undefined.

        A gap between the old end and `offset` reads as zeros.
        """
        ...

    def allocate(self, size: int, *, zero_fill: bool = False) -> None:
        """Make the file at least `size` bytes long, with blocks reserved for them.

        New bytes read as zeros, old ones stay, and it never shrinks. A later write inside cannot
        run out of space. `zero_fill` also writes the zeros: slow (40 ms for 64 MiB, so do it
        off the loop), but it makes every later commit inside cheaper.
        """
        ...

    def truncate(self, size: int) -> None:
        """Cut to `size`, or grow to it with zeros for which no space is reserved."""
        ...

    def sync(self) -> None:
        """Return when everything written before this call is durable. Holds the caller."""
        ...

    def sync_soon(self, done: Done) -> None:
        """As `sync`, in the disk's commit thread; `done` gets the error, or None."""
        ...

    def commit_soon(self, offset: int, data: bytes, done: Done) -> None:
        """Write all of it and make it durable, in the disk's commit thread.

        Durable is then this range, and the length of the file as far as this range needs it, and
        nothing else: what `write_at`, `allocate` or `truncate` have changed elsewhere in the file
        still waits for a `sync`. A file that is committed to is made, filled and synced before.

        Commits and syncs of one disk run, and report, in the order they were asked for. Until
        `done`, a read may or may not see the data. A failed commit fails those behind it of the
        same file, so that no later batch becomes durable behind a hole; other files go on.
        """
        ...

    def close(self) -> None:
        """Close without syncing; commits under way still end and report. Twice is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Disk(Protocol):
    """Files and directories of one machine. What is not here, this code base does not need:

    links, permissions, times, appending mode, renames across directories, walking trees.
    """

    def open(self, path: Path, mode: Mode) -> File:
        """Open an existing file to "read" or to "write" (and read), or "create" a new one."""
        ...

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, sorted."""
        ...

    def exists(self, path: Path) -> bool: ...

    def create_directory(self, path: Path) -> None:
        """Make one directory whose parent exists. Not durable until the parent is synced."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Atomically give a file of the same directory another name, replacing what has it."""
        ...

    def remove(self, path: Path) -> None: ...

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Return when the names in this directory are durable."""
        ...

    def space(self, path: Path) -> Space: ...

    def lock(self, directory: Path) -> Lock:
        """Hold a directory for this process; `DirectoryInUse` if it is held already.

        The lock dies with its process, however that ends, and leaves a file `LOCK` behind.
        """
        ...

    def run_soon(self, errand: Callable[[], None], done: Done) -> None:
        """Run blocking disk work (a `replace`, the sync of a snapshot) off the loop.

        Errands run in order in a thread of their own, so that no commit waits behind a slow
        one. An errand touches the disk and nothing else, and may raise nothing but OSError:
        anything else is a bug, after which its thread does no more work. Its report and all
        later ones are EIO, and the bug itself is raised on the loop.
        A file it uses stays open until it has reported.
        """
        ...

    def close(self) -> None:
        """Wait for the background work already asked for, and end the threads.

        Its reports arrive in later turns of the loop. Open files and locks stay as they are.
        """
        ...

    def read(self, path: Path, bytes_max: int) -> bytes:
        """A whole small file; EFBIG if it is larger than the caller can believe."""
        with self.open(path, "read") as file:
            content = file.read_at(0, bytes_max + 1)
        if len(content) > bytes_max:
            raise OSError(errno.EFBIG, f"File is larger than {bytes_max} bytes", str(path))
        return content

    def replace(self, path: Path, data: bytes) -> None:
        """Durably replace a small file: after a crash it is whole, the old one or the new.

        It needs `<name>.tmp` beside it, so one caller at a time.
        """
        draft = path.with_name(path.name + ".tmp")
        if self.exists(draft):
            self.remove(draft)
        with self.open(draft, "create") as file:
            file.write_at(0, data)
            file.sync()
        self.rename(draft, path)
        self.sync_directory(path.parent)

    def make_directory(self, path: Path) -> None:
        """Durably make a directory and those above it that are missing; one may be there.

        Several processes may do so at once. The name of the lowest one that is there is made
        durable too: whoever made it may have been killed before doing so.
        """
        missing = []
        ancestor = path
        while not self.exists(ancestor):
            missing.append(ancestor)
            ancestor = ancestor.parent
        if not missing:
            self.names(path)  # Refuses a file that has the name.
        # What we may not read is not ours, and so is no place where we made a directory.
        with suppress(PermissionError):
            self.sync_directory(ancestor.parent)
        for directory in reversed(missing):
            try:
                self.create_directory(directory)
            except FileExistsError:
                # Somebody who starts together with us was first.
                self.names(directory)
            self.sync_directory(directory.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of calls that know only a descriptor the name of their file."""
    try:
        yield
    except OSError as error:
        raise failure(error.errno or errno.EIO, path) from error


def failure(code: int, path: Path) -> OSError:
    """The OSError (of the fitting subclass) for an errno and a file."""
    return OSError(code, os.strerror(code), str(path))


def disabled(bug: Exception) -> OSError:
    """What a worker reports of the work in which a bug showed, and of all that comes after it."""
    error = OSError(errno.EIO, f"Disabled by a bug in background work: {bug!r}")
    error.__cause__ = bug
    return error


class _Worker:
    """A thread that runs blocking work in order and reports each result to the loop that asked.

    Started by the first work: a process that only reads has no threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[
            tuple[Callable[[], None], Done, asyncio.AbstractEventLoop] | None
        ] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending = 0
        self._closed = False
        self._disabled: OSError | None = None

    def submit(self, work: Callable[[], None], done: Done) -> None:
        if self._closed:
            raise OSError(errno.ESHUTDOWN, "The disk is closed", self._name)
        if self._pending >= background_pending_max:
            raise RuntimeError(f"{self._name}: {self._pending} under way and nobody waits for them")
        loop = asyncio.get_running_loop()
        if self._thread is None:
            # A daemon, so that a process that fails before closing its disk still ends.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._pending += 1
        self._work.put((work, done, loop))

    def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (entry := self._work.get()) is not None:
            work, done, loop = entry
            error, bug = self._disabled, None
            if error is None:
                error, bug = self._outcome(work)
            try:
                loop.call_soon_threadsafe(self._report, done, error, bug)
            except RuntimeError:
                # With its loop closed, nobody is left who could hear the report.
                if not loop.is_closed():
                    raise

    def _outcome(self, work: Callable[[], None]) -> tuple[OSError | None, Exception | None]:
        """Do it. After a bug nothing more: what is on the disk may not be what its owner thinks."""
        try:
            work()
        except OSError as error:
            return error, None
        except Exception as bug:
            self._disabled = disabled(bug)
            return self._disabled, bug
        return None, None

    def _report(self, done: Done, error: OSError | None, bug: Exception | None) -> None:
        self._pending -= 1
        try:
            done(error)
        finally:
            if bug is not None:
                raise bug


class SystemFile:
    """A file descriptor with its name."""

    def __init__(self, path: Path, descriptor: int, commits: _Worker) -> None:
        self._path = path
        self._descriptor = descriptor
        self._commits = commits
        self._under_way = 0
        self._closing = False
        self._failed: int | None = None
        # Whether a write can carry its sync. None until the first commit has shown it: an error
        # that comes after a success is the device's, whatever its number. That some file systems
        # write, sync nothing and report success no commit would show: see file_systems.py.
        self._write_syncs: bool | None = None if hasattr(os, "RWF_DSYNC") else False

    @property
    def path(self) -> Path:
        return self._path

    def size(self) -> int:
        with naming(self._path):
            return os.fstat(self._open_descriptor()).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        descriptor = self._open_descriptor()
        with naming(self._path):
            content = os.pread(descriptor, length, offset)
            # The kernel may give less than asked for in one call; only nothing means the end.
            while content and len(content) < length:
                more = os.pread(descriptor, length - len(content), offset + len(content))
                if not more:
                    break
                content += more
            return content

    def forget_cached(self, offset: int, length: int) -> None:
        descriptor = self._open_descriptor()
        with naming(self._path):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    def write_at(self, offset: int, data: bytes) -> None:
        self._write(self._open_descriptor(), offset, data)

    def _write(self, descriptor: int, offset: int, data: bytes) -> None:
        with naming(self._path):
            written = os.pwrite(descriptor, data, offset)
            if written < len(data):
                rest = memoryview(data)
                while written < len(data):
                    written += os.pwrite(descriptor, rest[written:], offset + written)

    def allocate(self, size: int, *, zero_fill: bool = False) -> None:
        descriptor = self._open_descriptor()
        end = self.size()
        if size <= end:
            return
        if not zero_fill:
            try:
                os.posix_fallocate(descriptor, end, size - end)
            except OSError as error:
                # File systems that cannot reserve get real zeros instead, which reserves too.
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                    raise failure(error.errno or errno.EIO, self._path) from error
            else:
                return
        zeros = bytes(min(zero_piece_bytes, size - end))
        for offset in range(end, size, zero_piece_bytes):
            self._write(descriptor, offset, zeros[: size - offset])

    def truncate(self, size: int) -> None:
        with naming(self._path):
            os.ftruncate(self._open_descriptor(), size)

    def sync(self) -> None:
        self._open_descriptor()
        self._sync()

    def _sync(self) -> None:
        self._refuse_after_failure()
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failed = error.errno or errno.EIO
            raise failure(self._failed, self._path) from error

    def sync_soon(self, done: Done) -> None:
        self._hand_over(self._sync, done)

    def commit_soon(self, offset: int, data: bytes, done: Done) -> None:
        self._hand_over(partial(self._commit, offset, data), done)

    def _commit(self, offset: int, data: bytes) -> None:
        self._refuse_after_failure()
        if self._write_syncs is not False and self._write_synced(offset, data):
            return
        try:
            self._write(self._descriptor, offset, data)
        except OSError as error:
            self._failed = error.errno
            raise
        self._sync()

    def _write_synced(self, offset: int, data: bytes) -> bool:
        """Write and sync by one call; False, with nothing done, where there is no such call, or
        none to be relied on."""
        if self._write_syncs is None and not heeds_synced_writes(self._path):
            self._write_syncs = False
            return False
        rest = memoryview(data)
        while rest:
            try:
                written = os.pwritev(self._descriptor, (rest,), offset, os.RWF_DSYNC)
            except OSError as error:
                if self._write_syncs is None and error.errno in unsupported:
                    self._write_syncs = False
                    return False
                self._failed = error.errno or errno.EIO
                raise failure(self._failed, self._path) from error
            self._write_syncs = True
            if not written:
                self._failed = errno.EIO
                raise failure(self._failed, self._path)
            # What the kernel cuts short has its own sync, as has the rest.
            rest = rest[written:]
            offset += written
        return True

    def _refuse_after_failure(self) -> None:
        if self._failed is not None:
            raise failure(self._failed, self._path)

    def _hand_over(self, work: Callable[[], None], done: Done) -> None:
        self._open_descriptor()
        self._commits.submit(work, partial(self._handed_back, done))
        self._under_way += 1

    def _handed_back(self, done: Done, error: OSError | None) -> None:
        self._under_way -= 1
        try:
            done(error)
        finally:
            self._release_when_idle()

    def close(self) -> None:
        self._closing = True
        self._release_when_idle()

    def _release_when_idle(self) -> None:
        # A descriptor closed under a queued commit could be another file's by the time the
        # commit runs, so the last report closes it.
        if self._closing and not self._under_way and self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with naming(self._path):
                os.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._closing:
            raise failure(errno.EBADF, self._path)
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class SystemDisk(Disk):
    """The machine's file systems, through Linux system calls."""

    def __init__(self) -> None:
        self._commits = _Worker("disk-commits")
        self._errands = _Worker("disk-errands")

    def open(self, path: Path, mode: Mode) -> SystemFile:
        flags = {
            "read": os.O_RDONLY,
            "write": os.O_RDWR,
            "create": os.O_RDWR | os.O_CREAT | os.O_EXCL,
        }[mode]
        descriptor = os.open(str(path), flags | os.O_CLOEXEC, file_mode)
        return SystemFile(path, descriptor, self._commits)

    def names(self, directory: Path) -> list[str]:
        return sorted(entry.name for entry in directory.iterdir())

    def exists(self, path: Path) -> bool:
        # Path.exists takes some failures for absence.
        try:
            path.stat()
        except FileNotFoundError:
            return False
        return True

    def create_directory(self, path: Path) -> None:
        path.mkdir(mode=directory_mode)

    def rename(self, source: Path, target: Path) -> None:
        if source.parent != target.parent:
            raise failure(errno.EXDEV, target)
        source.rename(target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        path.rmdir()

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with naming(path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def space(self, path: Path) -> Space:
        figures = os.statvfs(str(path))
        return Space(
            total_bytes=figures.f_blocks * figures.f_frsize,
            free_bytes=figures.f_bavail * figures.f_frsize,
        )

    def lock(self, directory: Path) -> FileLock:
        lock = FileLock(directory / lock_name)
        if not lock.take():
            raise DirectoryInUse(directory, lock.holder())
        try:
            lock.sign()
        except OSError as error:
            # On a full disk nobody learns our pid; the lock is ours all the same.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                lock.release()
                raise
        return lock

    def run_soon(self, errand: Callable[[], None], done: Done) -> None:
        self._errands.submit(errand, done)

    def close(self) -> None:
        self._commits.close()
        self._errands.close()
