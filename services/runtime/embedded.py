"""The PostgreSQL that comes with the platform, for those who have not set up one.

A real server from the binaries of a wheel, on a private socket, with a password; a child of the
process that owns it. It ends with its owner, however that ends: the kernel sends it the signal
for a fast shutdown. The next owner waits until everything of the last server is gone, which a
lock shows that all its processes inherit, and only then touches the data.

Not meant for: more than one machine, connections over TCP, or data that outgrows a laptop.
`DATABASE_URL` names a server that is.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import asyncpg

from services.core.errors import FatalError, RestartLater
from services.runtime import embedded_home as home
from services.runtime.database_url import DatabaseAddress
from services.runtime.disk import SystemDisk
from services.runtime.file_lock import FileLock

T = TypeVar("T")

user_name = "ydht"
database_name = "ydht"

# Recovery after a crash replays at most max_wal_size, 1 GB by default: minutes on a slow disk.
start_s_max = 180.0
initdb_s_max = 180.0
# Orphans of a killed server notice within moments; a checkpoint at shutdown may take longer.
previous_s_max = 20.0
# For the checkpoint of a fast shutdown, on a slow disk. `ydht up`, which has 10 s to stop
# everything, hurries it when it must.
fast_shutdown_s = 5.0
immediate_shutdown_s = 1.5
poll_s = 0.05
# Enough of the server's last words to explain why it did not start.
log_lines_kept = 40
log_read_bytes = 64 * 1024

# What an attempt to connect ends in when nobody listens, or stops listening meanwhile.
_NOT_YET = (OSError, TimeoutError, asyncpg.InterfaceError)

# Written into postgresql.conf once, by initdb, and then the operator's to change.
_DEFAULTS = {
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "jit": "off",  # Queries here are short; compiling one costs more than running it.
    "timezone": "UTC",
    "log_timezone": "UTC",
    "synchronous_commit": "on",
}


def embedded_address(data_dir: Path, password: str) -> DatabaseAddress:
    """Where the server of this data directory is, running or not. Reads no file of its.

    FatalError if its socket directory is there and somebody else's: see embedded_home.
    """
    directory = home.runtime_directory(data_dir)
    home.check_runtime_directory(directory, home.server_user())
    return DatabaseAddress(
        host=str(directory), user=user_name, database=database_name, password=password
    )


def embedded_is_up(data_dir: Path) -> bool:
    """Whether the server of this data directory says that it takes connections. Asks nobody."""
    return home.says_it_is_up(home.server_directory(data_dir) / "data")


def refuse_second_owner(data_dir: Path) -> None:
    """FatalError if the server of this data directory has an owner now: who it is."""
    lock = FileLock(home.server_directory(data_dir) / "lock")
    try:
        taken = lock.take()
    except OSError:
        return  # Nobody has run one here, or the directory is unusable, as its owner will find.
    if not taken:
        raise _owned(data_dir, lock)
    lock.release()


class EmbeddedPostgres:
    """One server on one data directory. `start` once, then `stop` once; or `async with`.

    Start it from a thread that lives as long as the server should: the kernel ends the server
    with the thread. `durable=False` gives up fsync, for tests. `log` gets each of the server's
    lines. After `start` the database of `address` exists and answers.
    """

    def __init__(
        self, data_dir: Path, password: str, *, durable: bool = True, log: Callable[[str], None]
    ) -> None:
        self.data_dir = data_dir
        self._password = password
        self._durable = durable
        self._log = log
        self._user = home.server_user()
        self._directory = home.server_directory(data_dir)
        self._runtime = home.runtime_directory(data_dir)
        self._owner_lock = FileLock(self._directory / "lock")
        self._server_lock = FileLock(self._directory / "server.lock")
        self._binaries = Path()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None
        self._last_lines: deque[str] = deque(maxlen=log_lines_kept)

    @property
    def address(self) -> DatabaseAddress:
        return embedded_address(self.data_dir, self._password)

    @property
    def pid(self) -> int | None:
        """The postmaster's, while there is one."""
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Return when the database answers. FatalError says why it cannot; nothing is left."""
        try:
            with _disk_errors(self._directory):
                await self._prepare()
            await self._launch()
            await self._answering()
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> str:
        """Return when the server has ended without being asked to: how, and its last words."""
        code = await self._started().wait()
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=immediate_shutdown_s)
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}: {self._last_words()}"

    async def stop(self) -> None:
        """Stop the server and every process of it, then remove the socket and free the data.

        Bounded: a fast shutdown, then an immediate one, then a kill. Data survives all three;
        after the last two the next start takes longer.
        """
        process, self._process = self._process, None
        if process is not None:
            await self._end(process)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
            self._reader = None
        if not self._owner_lock.held:
            return  # We never owned the directory; what is in it is another's.
        self._server_lock.release()
        if await self._previous_gone(immediate_shutdown_s):
            home.remove_runtime_directory(self._runtime, self._user)
        self._server_lock.release()
        self._owner_lock.release()

    def hurry(self) -> None:
        """While stopping: go on to the next of the three at once."""
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        harsher = (
            (signal.SIGINT, fast_shutdown_s),
            (signal.SIGQUIT, immediate_shutdown_s),
            (signal.SIGKILL, immediate_shutdown_s),
        )
        for number, seconds in harsher:
            if process.returncode is not None:
                return
            process.send_signal(number)
            try:
                async with asyncio.timeout(seconds) as self._patience:
                    await process.wait()
            except TimeoutError:
                continue
            finally:
                self._patience = None

    async def _prepare(self) -> None:
        """Take the locks, the runtime directory and the binaries; make the data if need be."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._owner_lock.take():
            raise _owned(self.data_dir, self._owner_lock)
        self._owner_lock.sign()
        if not await self._previous_gone(previous_s_max):
            raise RestartLater(
                f"processes of an earlier PostgreSQL still hold {self._server_lock.path} after"
                f" {previous_s_max:.0f} s: see `fuser {self._server_lock.path}` and end them"
            )
        await self._find_binaries()
        data = self._directory / "data"
        if not data.exists():
            await self._initialise(data)
        home.check_data_directory(data, self._user)
        home.clear_stale_pid_file(data)

    async def _previous_gone(self, patience_s: float) -> bool:
        """Take the server's lock, which is free once the last process of a server is gone."""
        deadline_s = asyncio.get_running_loop().time() + patience_s
        while not self._server_lock.take():
            if asyncio.get_running_loop().time() > deadline_s:
                return False
            await asyncio.sleep(poll_s)
        return True

    async def _find_binaries(self) -> None:
        """Run the wheel's binaries in place if the server's user can, else copies of them.

        The copies lie in the runtime directory, which is made here and then handed over.
        """
        wheels = home.wheel_directory()
        self._binaries = home.binaries(wheels)
        problem = await self._runnable()
        await _to_its_end(home.make_runtime_directory, self._runtime, self._user)
        if problem is not None and self._user.switch:
            copy = self._runtime / "programs"
            self._binaries = await _to_its_end(home.copy_binaries, wheels, copy)
        home.hand_over(self._runtime, self._user)
        if problem is not None and (problem := await self._runnable()) is not None:
            raise FatalError(
                f"PostgreSQL's programs in {self._binaries} do not run as {self._user.name}:"
                f" {problem}; set DATABASE_URL if they cannot on this machine"
            )

    async def _runnable(self) -> str | None:
        """What is in the way of running them, found by trying; None is nothing."""
        if not self._user.switch and (closed := home.closed_directory(self._binaries)) is not None:
            return f"{closed} is closed to this user"
        for name in ("postgres", "initdb"):
            code, said = await self._run([str(self._binaries / name), "--version"])
            if code != 0:
                return said.strip().replace("\n", "; ") or f"exit code {code}"
        return None

    async def _initialise(self, data: Path) -> None:
        """Make the data directory under another name, so that a kill leaves none half made."""
        draft = data.with_name("data.new")
        await _to_its_end(_remove_tree, draft)
        draft.mkdir(mode=0o700)
        if self._user.switch:
            os.chown(draft, self._user.uid, self._user.gid)
        # In memory: a file would outlive a kill, or lie where the server's user can swap it.
        secret = os.memfd_create("password")
        try:
            os.write(secret, self._password.encode() + b"\n")
            with self._reachable(draft) as (place, directories):
                passed = (secret, *directories)
                command = [str(self._binaries / "initdb"), "-D", place, "-U", user_name]
                command += ["--pwfile", f"/proc/self/fd/{secret}", "--auth=scram-sha-256"]
                # Independent of what the machine's C library makes of locales, and of upgrades
                # of it, which silently break indexes on text.
                command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
                command += ["--builtin-locale=C.UTF-8", "--no-instructions"]
                command += [] if self._durable else ["--no-sync"]
                for name, value in _DEFAULTS.items():
                    command += ["--set", f"{name}={value}"]
                code, said = await self._run(command, passed)
                if code == 0:
                    # Before anyone can connect: whoever asks too early would otherwise find a
                    # server without our database, and its log an error on every first start.
                    code, said = await self._run(
                        [str(self._binaries / "postgres"), "--single", "-D", place, "postgres"],
                        directories,
                        f'CREATE DATABASE "{database_name}"\n'.encode(),
                    )
        finally:
            os.close(secret)
        if code != 0:
            raise RestartLater(f"a new database could not be made in {data}: {_reason(said)}")
        draft.rename(data)
        self._log(f"made a new, empty database in {data}")
        await _to_its_end(SystemDisk().sync_directory, data.parent)

    async def _launch(self) -> None:
        with self._reachable(self._directory / "data") as (place, passed):
            settings = {
                "listen_addresses": "",
                "unix_socket_directories": str(self._runtime),
                "unix_socket_permissions": "0700",
                "logging_collector": "off",
                "log_destination": "stderr",
                "fsync": "on" if self._durable else "off",
            }
            command = [str(self._binaries / "postgres"), "-D", place]
            for name, value in settings.items():
                command += ["-c", f"{name}={value}"]
            self._process = await self._spawn(command, passed, asyncio.subprocess.DEVNULL)
        # From here on the server alone holds this lock: it is free when the last process ends.
        self._server_lock.release()
        if self._process.stdout is not None:
            self._reader = asyncio.create_task(self._read_log(self._process.stdout))

    async def _answering(self) -> None:
        """Wait for the first real connection."""
        process = self._started()
        deadline_s = asyncio.get_running_loop().time() + start_s_max
        while True:
            if process.returncode is not None:
                raise RestartLater(f"PostgreSQL did not start: {await self.wait()}")
            try:
                await self._connect()
            except asyncpg.InvalidPasswordError as error:
                raise FatalError(
                    f"the database in {self._directory} was made with another"
                    " EMBEDDED_DB_PASSWORD: restore the ydht.env it was made with"
                ) from error
            except asyncpg.InvalidCatalogNameError as error:
                raise FatalError(
                    f"PostgreSQL in {self._directory} has no database {database_name!r} any more:"
                    f" restore a backup of {self._directory}, or move it away to begin anew"
                ) from error
            except (*_NOT_YET, asyncpg.PostgresError) as error:
                # Starting, ending (the next turn finds out why), or busy with somebody else.
                if asyncio.get_running_loop().time() > deadline_s:
                    raise RestartLater(
                        f"PostgreSQL let nobody in for {start_s_max:.0f} s"
                        f" ({str(error) or type(error).__name__}): {self._last_words()}"
                    ) from error
                await asyncio.sleep(poll_s)
            else:
                return

    async def _connect(self) -> None:
        """Once, and not before the server says that it is up: each try would stand in its log."""
        if not home.says_it_is_up(self._directory / "data"):
            raise ConnectionRefusedError("it is still starting")
        connection = await asyncpg.connect(**self.address.asyncpg())
        await connection.close()

    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the server is not running: start it first")
        return self._process

    @contextmanager
    def _reachable(self, directory: Path) -> Iterator[tuple[str, Sequence[int]]]:
        """The directory by a name that the server's user can open, and what it must inherit."""
        if not self._user.switch:
            yield str(directory), ()
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{descriptor}", (descriptor,)
        finally:
            os.close(descriptor)

    async def _run(
        self, command: Sequence[str], passed: Sequence[int] = (), told: bytes = b""
    ) -> tuple[int, str]:
        """Run a program to its end on what it is told; its exit code and what it said."""
        # Not through a pipe: who ends without having read one has uvloop fail the write.
        stdin = os.memfd_create("told")
        try:
            os.write(stdin, told)
            os.lseek(stdin, 0, os.SEEK_SET)
            process = await self._spawn(command, passed, stdin)
        finally:
            os.close(stdin)
        try:
            async with asyncio.timeout(initdb_s_max):
                said, _ = await process.communicate()
        except TimeoutError:
            return -1, f"no answer within {initdb_s_max:.0f} s"
        finally:
            if process.returncode is None:
                await self._end(process)
        return process.returncode or 0, said.decode(errors="replace")

    async def _spawn(
        self, command: Sequence[str], passed: Sequence[int], stdin: int
    ) -> asyncio.subprocess.Process:
        user = f"{self._user.uid}:{self._user.gid}" if self._user.switch else "-"
        shim = str(Path(__file__).with_name("embedded_child.py"))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", shim, str(os.getpid()), user, *command),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # None of our environment: it holds secrets that the database has no use for.
            env={"PATH": os.defpath, "LC_ALL": "C"},
            pass_fds=(self._server_lock.descriptor, *passed),
            # A Ctrl-C in the terminal is for us; we then stop the server in our own order.
            start_new_session=True,
        )

    async def _read_log(self, output: asyncio.StreamReader) -> None:
        rest = ""
        while chunk := await output.read(log_read_bytes):
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            for line in lines:
                self._last_lines.append(line)
                self._log(line)
            rest = rest[-log_read_bytes:]

    def _last_words(self) -> str:
        return _reason("\n".join(self._last_lines))


def _owned(data_dir: Path, lock: FileLock) -> FatalError:
    pid = lock.holder()
    holder = "another process" if pid is None else f"process {pid}"
    return FatalError(
        f"the embedded PostgreSQL of {data_dir} is already run by {holder}:"
        " stop that one, or choose another --data-dir"
    )


def _reason(said: str) -> str:
    """The line of a program's output that explains its end, as part of our one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if any("No space left on device" in line for line in lines):
        return "the disk is full: make room, then start again"
    for word in ("PANIC:", "FATAL:", "ERROR:", "error:"):
        for line in reversed(lines):
            if word in line:
                return line[line.index(word) + len(word) :].strip()
    return lines[-1] if lines else "it said nothing"


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: make room, then start again",
            errno.EDQUOT: "the disk quota is used up: make room, then start again",
            errno.EROFS: "the file system is read-only: choose another --data-dir",
            errno.EACCES: "permission denied: start as the user who owns it",
        }.get(error.errno or 0, error.strerror or str(error))
        # What needs its owner's hand is not mended by waiting; room and devices may come back.
        kind = FatalError if error.errno in (errno.EROFS, errno.EACCES) else RestartLater
        raise kind(f"{error.filename or directory}: {advice}") from error


async def _to_its_end(work: Callable[..., T], *arguments: object) -> T:
    """Do it in a thread and wait until it is done, also when cancelled.

    A thread cannot be cancelled, and one that goes on would make anew what `stop` removes.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
