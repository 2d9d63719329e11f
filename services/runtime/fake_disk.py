"""A disk in memory that does to its users all that a real one may do.

It is a function of its seed: the same calls with the same generator end in the same bytes.
"""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from services.runtime.clock import Clock
from services.runtime.disk import (
    DirectoryInUse,
    Disk,
    Done,
    Mode,
    Space,
    background_pending_max,
    disabled,
    failure,
    lock_name,
)
from services.runtime.fake_media import Directory, Inode

Operation = Literal[
    "open",
    "read",
    "write",
    "allocate",
    "truncate",
    "sync",
    "rename",
    "remove",
    "make_directory",
    "sync_directory",
]

# How many steps of an errand a crash lets through: more than a `replace` has.
errand_steps_max = 8


@dataclass(slots=True)
class _Fault:
    operation: Operation
    code: int
    pattern: str
    after: int
    times: int | None


@dataclass(slots=True)
class Counters:
    """What was asked of the disk, failures included."""

    reads: int = 0
    writes: int = 0
    bytes_written: int = 0
    syncs: int = 0
    directory_syncs: int = 0


@dataclass(slots=True)
class _Job:
    """Background work: what happens when a worker takes it up, and when it ends."""

    begin: Callable[[], None]
    end: Callable[[], None]
    done: Done
    error: OSError | None = None
    bug: Exception | None = None

    def report(self) -> None:
        try:
            self.done(self.error)
        finally:
            if self.bug is not None:
                raise self.bug


@dataclass(slots=True)
class _Lane:
    """A worker thread's queue. The first job is under way, or held by a frozen disk."""

    jobs: deque[_Job] = field(default_factory=deque)
    held: bool = False
    disabled: OSError | None = None


class _CutShort(OSError):
    """The process ended in the middle of an errand."""


class FakeDisk(Disk):
    """The disk of one simulated machine. Its names start at "/", which is always there.

    Modelled, as POSIX allows and ext4 or xfs do:

    - content: at a power cut every unsynced write is kept, lost or torn at sectors of 512 bytes,
      in any order, except that a sector arrives with all that was written to it before; zeros
      stand where nothing arrived; an unsynced length may arrive without its data; an unsynced cut
      that is lost takes later changes of the file along;
    - names: of the unsynced changes to a directory the first few survive, each whole; directories
      are independent of each other and of the content of their files, so a file can be there
      empty, or synced and gone;
    - a commit makes durable the sectors that it writes to, and the length they need: what was
      written elsewhere in the file before, or reserved, stays unsynced;
    - background work: at a crash the job under way has happened or not (an errand: any part of
      it), those behind it have not, and no report ever comes; before the end of a sync, what is
      written after its beginning is not covered;
    - a failed sync, also that of a commit: what was written before stays readable and may never
      reach the device, even if a later sync of the same file, by another handle, succeeds.

    Not modelled: sectors torn within, bits that rot by themselves (use `flip_bit`), what a drive
    does that confirms a flush and lies, blocks kept by a removed file that is still open, holes
    that take no space, permissions.

    The clock is the machine's and goes on through crashes; do not stop it with a process.
    `latency_s` is the range from which each background job draws how long it takes.
    """

    def __init__(
        self,
        rng: random.Random,
        clock: Clock,
        *,
        capacity_bytes: int = 1 << 40,
        latency_s: tuple[float, float] = (0.000_1, 0.002),
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.latency_s = latency_s
        self.counters = Counters()
        # Who locks: the simulated process. A restart after a crash is another one.
        self.pid = 1000
        self._rng = rng
        self._clock = clock
        self._root = Directory()
        self._used_bytes = 0
        self._boot = 0
        self._faults: list[_Fault] = []
        self._steps_left: int | None = None
        self._locks: dict[Path, FakeLock] = {}
        self._commits = _Lane()
        self._errands = _Lane()
        self._frozen = False
        self._closed = False

    # What tests do to it.

    def crash(self) -> None:
        """Cut the power and start the machine again."""
        self.kill()
        self._root.crash(self._rng)
        self._used_bytes = self._root.bytes_used()

    def kill(self) -> None:
        """End the process as kill -9 does: unsynced changes stay readable, and unsynced.

        Call it after a clean stop too, before the next process begins.
        """
        self._frozen = False
        for lane in (self._commits, self._errands):
            if lane.jobs and self._rng.random() < 0.5:
                self._steps_left = self._rng.randint(0, errand_steps_max)
                # Nobody is left to tell of an error.
                with suppress(OSError):
                    lane.jobs[0].end()
                self._steps_left = None
            lane.jobs.clear()
            lane.held = False
            lane.disabled = None
        self._boot += 1
        self._locks.clear()
        self._closed = False
        self.pid += 1

    def freeze(self) -> None:
        """Let no background work end. A blocking sync would hang, so it is an error to try."""
        self._frozen = True

    def thaw(self) -> None:
        self._frozen = False
        for lane in (self._commits, self._errands):
            if lane.held:
                lane.held = False
                self._clock.call_later(0.0, partial(self._end, lane, lane.jobs[0]))

    def fail(
        self,
        operation: Operation,
        code: int,
        path: str = "*",
        *,
        after: int = 0,
        times: int | None = 1,
    ) -> None:
        """Let `times` operations (None: all) on paths like `path` fail, after the next `after`."""
        self._faults.append(_Fault(operation, code, path, after, times))

    def heal(self) -> None:
        """Forget every fault asked for. Files whose sync has failed stay failed."""
        self._faults.clear()

    def flip_bit(self, path: Path, byte: int, bit: int) -> None:
        """Rot one bit, on the device and in what reads see."""
        inode = self._inode(path)
        if byte >= inode.live.size:
            raise ValueError(f"{path} has {inode.live.size} bytes, none at {byte}")
        inode.live.flip(byte, bit)
        inode.durable.flip(byte, bit)

    # What its users see.

    def open(self, path: Path, mode: Mode) -> FakeFile:
        self.trip("open", path)
        directory = self._directory(path.parent)
        node = directory.entries.get(path.name)
        if mode == "create":
            if node is not None:
                raise failure(errno.EEXIST, path)
            node = Inode()
            directory.change({path.name: node})
        elif node is None:
            raise failure(errno.ENOENT, path)
        elif isinstance(node, Directory):
            raise failure(errno.EISDIR, path)
        return FakeFile(self, path, node, self._boot, writable=mode != "read")

    def names(self, directory: Path) -> list[str]:
        return sorted(self._directory(directory).entries)

    def exists(self, path: Path) -> bool:
        try:
            return self._node(path) is not None
        except FileNotFoundError:
            return False

    def create_directory(self, path: Path) -> None:
        self.trip("make_directory", path)
        parent = self._directory(path.parent)
        if path.name in parent.entries:
            raise failure(errno.EEXIST, path)
        parent.change({path.name: Directory()})

    def rename(self, source: Path, target: Path) -> None:
        self.trip("rename", target)
        if source.parent != target.parent:
            raise failure(errno.EXDEV, target)
        directory = self._directory(source.parent)
        moved, replaced = directory.entries.get(source.name), directory.entries.get(target.name)
        if moved is None:
            raise failure(errno.ENOENT, source)
        if isinstance(moved, Directory) or isinstance(replaced, Directory):
            raise failure(errno.EISDIR, target)
        if source != target:
            self._unlink(replaced)
            directory.change({source.name: None, target.name: moved})

    def remove(self, path: Path) -> None:
        self.trip("remove", path)
        self._unlink(self._inode(path))
        self._directory(path.parent).change({path.name: None})

    def remove_directory(self, path: Path) -> None:
        self.trip("remove", path)
        if self._directory(path).entries:
            raise failure(errno.ENOTEMPTY, path)
        self._directory(path.parent).change({path.name: None})

    def sync_directory(self, path: Path) -> None:
        self.counters.directory_syncs += 1
        directory = self._directory(path)
        self.refuse_when_frozen()
        self.trip("sync_directory", path)
        directory.sync()

    def space(self, path: Path) -> Space:
        if self._node(path) is None:
            raise failure(errno.ENOENT, path)
        return Space(self.capacity_bytes, max(0, self.capacity_bytes - self._used_bytes))

    def lock(self, directory: Path) -> FakeLock:
        holder = self._locks.get(directory)
        if holder is not None:
            raise DirectoryInUse(directory, holder.pid)
        if lock_name not in self._directory(directory).entries:
            self.open(directory / lock_name, "create").close()
        lock = self._locks[directory] = FakeLock(self._locks, directory, self.pid)
        return lock

    def run_soon(self, errand: Callable[[], None], done: Done) -> None:
        # Whether it happens early or late in its time is for the generator to say; while the
        # disk is frozen, it does not happen.
        job = _Job(_nothing, errand, done)

        def begin() -> None:
            if not self._frozen and self._rng.random() < 0.5:
                job.end = _nothing
                errand()

        job.begin = begin
        self._submit(self._errands, job)

    def close(self) -> None:
        self._closed = True
        for lane in (self._commits, self._errands):
            while lane.jobs:
                self.refuse_when_frozen()
                report = partial(self._report, self._finish(lane), self._boot)
                self._clock.call_later(0.0, report)

    # What its files share with it.

    def commit(self, job: _Job) -> None:
        self._submit(self._commits, job)

    def booted(self, boot: int) -> bool:
        return boot == self._boot

    def stray(self, inode: Inode, mark: int) -> None:
        inode.stray(mark, self._rng)

    def refuse_when_frozen(self) -> None:
        if self._frozen:
            raise RuntimeError("a blocking sync on a frozen disk would never return")

    def trip(self, operation: Operation, path: Path) -> None:
        """Raise what `fail` has asked for, or stop an errand that the crash cuts short."""
        if self._steps_left is not None:
            self._steps_left -= 1
            if self._steps_left < 0:
                raise _CutShort(errno.EIO, "Cut short", str(path))
        for fault in self._faults:
            if fault.operation != operation or not fnmatchcase(str(path), fault.pattern):
                continue
            if fault.after:
                fault.after -= 1
            elif fault.times is None:
                raise failure(fault.code, path)
            elif fault.times:
                fault.times -= 1
                raise failure(fault.code, path)

    def size_allowed(self, inode: Inode, size: int) -> int:
        """As much of `size` as the capacity leaves to this file."""
        free_bytes = max(0, self.capacity_bytes - self._used_bytes)
        return min(size, inode.live.size + free_bytes) if inode.linked else size

    def account(self, inode: Inode, size: int) -> None:
        """The file is about to have this size."""
        if inode.linked:
            self._used_bytes += size - inode.live.size

    def _unlink(self, node: Directory | Inode | None) -> None:
        if isinstance(node, Inode):
            self.account(node, 0)
            node.linked = False

    def _submit(self, lane: _Lane, job: _Job) -> None:
        if self._closed:
            raise OSError(errno.ESHUTDOWN, "The disk is closed")
        if len(lane.jobs) >= background_pending_max:
            raise RuntimeError(f"{len(lane.jobs)} under way and nobody waits for them")
        lane.jobs.append(job)
        if len(lane.jobs) == 1:
            self._begin(lane)

    def _begin(self, lane: _Lane) -> None:
        job = lane.jobs[0]
        self._do(lane, job, job.begin)
        latency_s = self._rng.uniform(*self.latency_s)
        self._clock.call_later(latency_s, partial(self._end, lane, job))

    def _end(self, lane: _Lane, job: _Job) -> None:
        if not lane.jobs or lane.jobs[0] is not job:
            return  # Its process ended, or closing the disk has ended it.
        if self._frozen:
            lane.held = True
            return
        self._finish(lane)
        job.report()

    def _finish(self, lane: _Lane) -> _Job:
        job = lane.jobs.popleft()
        self._do(lane, job, job.end)
        if lane.jobs:
            self._begin(lane)
        return job

    def _do(self, lane: _Lane, job: _Job, half: Callable[[], None]) -> None:
        """One half of a job. A half that fails ends it, and a bug ends the work of its lane."""
        if job.error is not None:
            return
        if lane.disabled is not None:
            job.error = lane.disabled
            return
        try:
            half()
        except OSError as error:
            job.error = error
        except Exception as bug:
            job.error, job.bug = disabled(bug), bug
            lane.disabled = job.error

    def _report(self, job: _Job, boot: int) -> None:
        if self.booted(boot):
            job.report()

    def _directory(self, path: Path) -> Directory:
        node = self._node(path)
        if not isinstance(node, Directory):
            raise failure(errno.ENOENT if node is None else errno.ENOTDIR, path)
        return node

    def _inode(self, path: Path) -> Inode:
        node = self._node(path)
        if not isinstance(node, Inode):
            raise failure(errno.ENOENT if node is None else errno.EISDIR, path)
        return node

    def _node(self, path: Path) -> Directory | Inode | None:
        node: Directory | Inode | None = self._root
        for name in path.parts[1:]:
            if node is None:
                raise failure(errno.ENOENT, path)
            if isinstance(node, Inode):
                raise failure(errno.ENOTDIR, path)
            node = node.entries.get(name)
        return node


def _nothing() -> None:
    """The half of a job in which nothing happens."""


class FakeLock:
    """Held until released, or until the process that holds it ends."""

    def __init__(self, locks: dict[Path, FakeLock], directory: Path, pid: int) -> None:
        self.pid = pid
        self._locks = locks
        self._directory = directory

    def release(self) -> None:
        # After a crash another process may hold it by now.
        if self._locks.get(self._directory) is self:
            del self._locks[self._directory]


class FakeFile:
    """A handle, which dies with the process that opened it."""

    def __init__(
        self, disk: FakeDisk, path: Path, inode: Inode, boot: int, *, writable: bool
    ) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._boot = boot
        self._writable = writable
        self._closed = False
        self._failed: int | None = None

    @property
    def path(self) -> Path:
        return self._path

    def size(self) -> int:
        self._check_open()
        return self._inode.live.size

    def read_at(self, offset: int, length: int) -> bytes:
        self._check_open()
        self._disk.counters.reads += 1
        self._disk.trip("read", self._path)
        if offset < 0 or length < 0:
            raise failure(errno.EINVAL, self._path)
        return self._inode.live.read(offset, length)

    def forget_cached(self, offset: int, length: int) -> None:
        """There is one copy of everything."""
        self._check_open()

    def write_at(self, offset: int, data: bytes) -> None:
        self._check_open()
        self._write(offset, data)

    def _write(self, offset: int, data: bytes) -> None:
        disk = self._disk
        disk.counters.writes += 1
        disk.trip("write", self._path)
        self._check_writable(offset)
        inode = self._inode
        fitting = max(0, disk.size_allowed(inode, offset + len(data)) - offset)
        if fitting:
            disk.account(inode, max(inode.live.size, offset + fitting))
            inode.write(offset, data[:fitting])
            disk.counters.bytes_written += fitting
        if fitting < len(data):
            raise failure(errno.ENOSPC, self._path)

    def allocate(self, size: int, *, zero_fill: bool = False) -> None:
        self._check_open()
        self._disk.trip("allocate", self._path)
        self._check_writable(size)
        if size <= self._inode.live.size:
            return
        if self._disk.size_allowed(self._inode, size) < size:
            raise failure(errno.ENOSPC, self._path)
        self._disk.account(self._inode, size)
        self._inode.resize(size)

    def truncate(self, size: int) -> None:
        self._check_open()
        self._disk.trip("truncate", self._path)
        self._check_writable(size)
        self._disk.account(self._inode, size)
        self._inode.resize(size)

    def sync(self) -> None:
        self._check_open()
        self._disk.refuse_when_frozen()
        self._sync(self._inode.mark(), self._inode.settle)

    def _sync(self, mark: int, settle: Callable[[int], None]) -> None:
        self._refuse_after_failure()
        self._disk.counters.syncs += 1
        try:
            self._disk.trip("sync", self._path)
        except _CutShort:
            raise
        except OSError as error:
            self._failed = error.errno
            self._disk.stray(self._inode, mark)
            raise
        settle(mark)

    def sync_soon(self, done: Done) -> None:
        self._check_open()
        self._hand_over(self._refuse_after_failure, self._inode.settle, done)

    def commit_soon(self, offset: int, data: bytes, done: Done) -> None:
        self._check_open()
        settle = partial(self._inode.settle_range, offset=offset, length=len(data))
        self._hand_over(partial(self._begin_commit, offset, data), settle, done)

    def _begin_commit(self, offset: int, data: bytes) -> None:
        self._refuse_after_failure()
        try:
            self._write(offset, data)
        except OSError as error:
            self._failed = error.errno
            raise

    def _hand_over(
        self, begin: Callable[[], None], settle: Callable[[int], None], done: Done
    ) -> None:
        job = _Job(_nothing, _nothing, done)

        def begin_and_mark() -> None:
            begin()
            job.end = partial(self._sync, self._inode.mark(), settle)

        job.begin = begin_and_mark
        self._disk.commit(job)

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise failure(errno.EBADF, self._path)
        if not self._disk.booted(self._boot):
            raise failure(errno.ESTALE, self._path)

    def _check_writable(self, offset: int) -> None:
        if not self._writable:
            raise failure(errno.EBADF, self._path)
        if offset < 0:
            raise failure(errno.EINVAL, self._path)

    def _refuse_after_failure(self) -> None:
        if self._failed is not None:
            raise failure(self._failed, self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
