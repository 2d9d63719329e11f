"""What every user of a disk relies on, asked of the machine's own disk and of the fake one."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from services.core.errors import FatalError
from services.runtime import file_systems
from services.runtime.clock import FakeClock, Timeline
from services.runtime.disk import (
    DirectoryInUse,
    Disk,
    Done,
    File,
    SystemDisk,
    background_pending_max,
)
from services.runtime.fake_disk import FakeDisk

segment_bytes = 64 << 20


class Bench:
    """A disk, an empty directory on it, a full device, and how to wait for its reports."""

    def __init__(self, disk: Disk, root: Path, full: Path, timeline: Timeline | None) -> None:
        self.disk = disk
        self.root = root
        self.full = full
        self._timeline = timeline

    def file(self, name: str = "file", content: bytes = b"") -> File:
        file = self.disk.open(self.root / name, "create")
        file.write_at(0, content)
        return file

    def read(self, name: str) -> bytes:
        return self.disk.read(self.root / name, 1 << 20)

    async def until(self, ready: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not ready():
                if self._timeline is None:
                    await asyncio.sleep(0.000_5)
                else:
                    assert self._timeline.step(), "nothing is left that could report"

    async def outcome(self, ask: Callable[[Done], None]) -> OSError | None:
        reports: list[OSError | None] = []
        ask(reports.append)
        assert reports == [], "a report came before the call returned"
        await self.until(lambda: bool(reports))
        assert len(reports) == 1
        return reports[0]


@pytest.fixture(params=["system", "fake"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "system":
        system = SystemDisk()
        yield Bench(system, tmp_path, Path("/dev/full"), None)
        system.close()
    else:
        timeline = Timeline()
        fake = FakeDisk(random.Random(7), FakeClock(timeline))
        root = Path("/data")
        full = root / "full"
        fake.make_directory(root)
        made = Bench(fake, root, full, timeline)
        if "full" in request.node.name:
            made.file("full").close()
            fake.fail("write", errno.ENOSPC, str(full), times=None)
        yield made
        fake.close()


def assert_names(error: OSError | None, code: int, path: Path) -> None:
    assert error is not None
    assert (error.errno, error.filename) == (code, str(path))


def test_written_bytes_are_read_back_at_their_offset(bench: Bench) -> None:
    file = bench.file(content=b"hello world")
    file.write_at(6, b"there")
    assert file.read_at(0, 11) == b"hello there"
    assert file.read_at(3, 4) == b"lo t"
    assert file.size() == 11
    file.close()


def test_a_read_that_meets_the_end_is_short_and_past_the_end_empty(bench: Bench) -> None:
    file = bench.file(content=b"abc")
    assert file.read_at(1, 100) == b"bc"
    assert file.read_at(3, 1) == b""
    assert file.read_at(10_000, 10) == b""
    assert file.read_at(0, 0) == b""
    file.close()


def test_what_is_forgotten_is_read_again_whether_it_was_synced_or_not(bench: Bench) -> None:
    with bench.file(content=b"synced") as file:
        file.sync()
        file.forget_cached(0, 6)
        assert file.read_at(0, 6) == b"synced"
        file.write_at(6, b" and not")
        file.forget_cached(0, 1 << 20)
        assert file.read_at(0, 100) == b"synced and not"
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.forget_cached(0, 6)


def test_a_gap_reads_as_zeros(bench: Bench) -> None:
    file = bench.file(content=b"x")
    file.write_at(9_000, b"y")
    assert file.read_at(0, 10_000) == b"x" + bytes(8_999) + b"y"
    file.close()


def test_writing_nothing_changes_nothing(bench: Bench) -> None:
    file = bench.file(content=b"x")
    file.write_at(100, b"")
    assert file.size() == 1
    file.close()


def test_random_writes_cuts_and_reads_agree_with_a_bytearray(bench: Bench) -> None:
    rng = random.Random(11)
    file, model = bench.file(), bytearray()
    for _ in range(300):
        offset, length = rng.randrange(20_000), rng.randrange(9_000)
        match rng.randrange(4):
            case 0:
                size = rng.randrange(20_000)
                file.truncate(size)
                model = model[:size].ljust(size, b"\0")
            case 1:
                file.allocate(offset, zero_fill=rng.random() < 0.5)
                model = model.ljust(offset, b"\0")
            case _ if length:
                model = model.ljust(offset + length, b"\0")
                model[offset : offset + length] = data = rng.randbytes(length)
                file.write_at(offset, data)
        start, wanted = rng.randrange(25_000), rng.randrange(25_000)
        assert file.read_at(start, wanted) == model[start : start + wanted]
        assert file.size() == len(model)
    file.close()


@pytest.mark.parametrize("zero_fill", [False, True])
def test_allocated_space_reads_as_zeros_keeps_content_and_never_shrinks(
    bench: Bench, zero_fill: bool
) -> None:
    file = bench.file(content=b"head")
    file.allocate(segment_bytes, zero_fill=zero_fill)
    assert file.size() == segment_bytes
    assert file.read_at(0, 10) == b"head" + bytes(6)
    assert file.read_at(segment_bytes - 5_000, 6_000) == bytes(5_000)
    file.allocate(10)
    assert file.size() == segment_bytes
    file.close()


def test_cut_bytes_are_gone_for_good(bench: Bench) -> None:
    file = bench.file(content=b"x" * 10_000)
    file.truncate(5_000)
    file.truncate(10_000)
    assert file.read_at(0, 10_000) == b"x" * 5_000 + bytes(5_000)
    file.close()


def test_a_missing_file_is_neither_read_nor_written_into_being(bench: Bench) -> None:
    path = bench.root / "missing"
    with pytest.raises(FileNotFoundError) as caught:
        bench.disk.open(path, "read")
    assert_names(caught.value, errno.ENOENT, path)
    with pytest.raises(FileNotFoundError):
        bench.disk.open(path, "write")
    assert not bench.disk.exists(path)


def test_create_refuses_a_name_that_is_taken(bench: Bench) -> None:
    bench.file(content=b"mine").close()
    with pytest.raises(FileExistsError) as caught:
        bench.disk.open(bench.root / "file", "create")
    assert_names(caught.value, errno.EEXIST, bench.root / "file")
    assert bench.read("file") == b"mine"


def test_a_file_opened_to_read_cannot_be_changed(bench: Bench) -> None:
    bench.file(content=b"fixed").close()
    with bench.disk.open(bench.root / "file", "read") as file:
        with pytest.raises(OSError, match=str(bench.root / "file")):
            file.write_at(0, b"other")
        with pytest.raises(OSError, match=str(bench.root / "file")):
            file.truncate(0)
        assert file.read_at(0, 9) == b"fixed"


def test_a_closed_file_refuses_everything_by_name(bench: Bench) -> None:
    file = bench.file(content=b"x")
    file.close()
    file.close()
    calls: list[Callable[[], object]] = [
        file.size,
        file.sync,
        partial(file.read_at, 0, 1),
        partial(file.write_at, 0, b"x"),
        partial(file.allocate, 10),
        partial(file.truncate, 0),
        partial(file.sync_soon, lambda _error: None),
        partial(file.commit_soon, 0, b"x", lambda _error: None),
    ]
    for call in calls:
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            call()
        assert_names(caught.value, errno.EBADF, file.path)


def test_negative_offsets_are_refused(bench: Bench) -> None:
    file = bench.file(content=b"abc")
    for call in (partial(file.read_at, -1, 1), partial(file.write_at, -1, b"x")):
        with pytest.raises(OSError, match="Invalid argument"):
            call()
    assert file.read_at(0, 3) == b"abc"
    file.close()


def test_a_full_device_names_the_file(bench: Bench) -> None:
    with (
        bench.disk.open(bench.full, "write") as file,
        pytest.raises(OSError, match="No space left") as caught,
    ):
        file.write_at(0, b"x" * 1000)
    assert_names(caught.value, errno.ENOSPC, bench.full)


def test_names_are_sorted_and_hold_files_and_directories(bench: Bench) -> None:
    for name in ("b", "a", "c"):
        bench.file(name).close()
    bench.disk.create_directory(bench.root / "aa")
    assert [name for name in bench.disk.names(bench.root) if name != "full"] == [
        "a",
        "aa",
        "b",
        "c",
    ]
    with pytest.raises(FileNotFoundError):
        bench.disk.names(bench.root / "missing")
    with pytest.raises(NotADirectoryError):
        bench.disk.names(bench.root / "a")


def test_directories_are_made_with_those_above_them_and_may_be_there(bench: Bench) -> None:
    deep = bench.root / "nodes" / "node-1" / "log"
    bench.disk.make_directory(deep)
    bench.disk.make_directory(deep)
    assert bench.disk.names(deep) == []
    bench.file("plain").close()
    with pytest.raises(NotADirectoryError):
        bench.disk.make_directory(bench.root / "plain")
    with pytest.raises(FileExistsError):
        bench.disk.create_directory(deep)
    with pytest.raises(FileNotFoundError):
        bench.disk.create_directory(bench.root / "other" / "log")


@pytest.mark.parametrize("overtaken_at", ["nodes", "node-1"])
def test_a_directory_that_somebody_else_makes_in_between_is_as_good_as_our_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, overtaken_at: str
) -> None:
    create = bench.disk.create_directory

    def second(path: Path) -> None:
        if path.name == overtaken_at:
            create(path)
        create(path)

    monkeypatch.setattr(bench.disk, "create_directory", second)
    deep = bench.root / "nodes" / "node-1"
    bench.disk.make_directory(deep)
    assert bench.disk.names(deep) == []


def test_a_file_that_somebody_else_makes_in_between_is_no_directory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = bench.disk.create_directory

    def second(path: Path) -> None:
        bench.file(path.name).close()
        create(path)

    monkeypatch.setattr(bench.disk, "create_directory", second)
    with pytest.raises(NotADirectoryError):
        bench.disk.make_directory(bench.root / "node-1")


def test_only_an_empty_directory_is_removed(bench: Bench) -> None:
    directory = bench.root / "hints"
    bench.disk.make_directory(directory)
    inside = bench.file("hints/1")
    inside.close()
    with pytest.raises(OSError, match="not empty") as caught:
        bench.disk.remove_directory(directory)
    assert_names(caught.value, errno.ENOTEMPTY, directory)
    bench.disk.remove(inside.path)
    bench.disk.remove_directory(directory)
    assert not bench.disk.exists(directory)


def test_a_rename_replaces_what_has_the_name(bench: Bench) -> None:
    bench.file("old", b"old").close()
    bench.file("new", b"new").close()
    bench.disk.rename(bench.root / "new", bench.root / "old")
    assert bench.read("old") == b"new"
    assert not bench.disk.exists(bench.root / "new")
    bench.disk.rename(bench.root / "old", bench.root / "old")
    assert bench.read("old") == b"new"


def test_a_rename_of_nothing_or_across_directories_is_refused(bench: Bench) -> None:
    bench.disk.make_directory(bench.root / "elsewhere")
    bench.file("here").close()
    with pytest.raises(FileNotFoundError):
        bench.disk.rename(bench.root / "missing", bench.root / "here")
    with pytest.raises(OSError, match="cross-device"):
        bench.disk.rename(bench.root / "here", bench.root / "elsewhere" / "here")
    assert bench.disk.exists(bench.root / "here")


def test_a_removed_file_stays_readable_to_those_who_have_it_open(bench: Bench) -> None:
    file = bench.file(content=b"still here")
    bench.disk.remove(file.path)
    assert not bench.disk.exists(file.path)
    assert file.read_at(0, 100) == b"still here"
    bench.file(content=b"another").close()
    assert file.read_at(0, 100) == b"still here"
    file.close()
    with pytest.raises(FileNotFoundError):
        bench.disk.remove(bench.root / "missing")


def test_replace_leaves_the_new_content_and_no_draft(bench: Bench) -> None:
    path = bench.root / "map.json"
    bench.disk.replace(path, b"one" * 5_000)
    bench.disk.replace(path, b"two")
    assert bench.read("map.json") == b"two"
    assert [name for name in bench.disk.names(bench.root) if name != "full"] == ["map.json"]


def test_replace_goes_over_the_draft_of_a_process_that_died(bench: Bench) -> None:
    bench.file("map.json.tmp", b"half of a much longer dra").close()
    bench.disk.replace(bench.root / "map.json", b"whole")
    assert bench.read("map.json") == b"whole"


def test_a_file_larger_than_believable_is_not_read(bench: Bench) -> None:
    bench.file(content=b"12345").close()
    path = bench.root / "file"
    assert bench.disk.read(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes") as caught:
        bench.disk.read(path, 4)
    assert_names(caught.value, errno.EFBIG, path)
    with pytest.raises(IsADirectoryError):
        bench.disk.read(bench.root, 5)


def test_space_is_told_and_missing_paths_are_not(bench: Bench) -> None:
    space = bench.disk.space(bench.root)
    assert 0 < space.free_bytes <= space.total_bytes
    with pytest.raises(FileNotFoundError):
        bench.disk.space(bench.root / "missing" / "deeper")
    with pytest.raises(FileNotFoundError):
        bench.disk.space(bench.root / "missing")


def test_a_directory_is_locked_once_and_the_holder_is_named(bench: Bench) -> None:
    held = bench.disk.lock(bench.root)
    with pytest.raises(DirectoryInUse) as caught:
        bench.disk.lock(bench.root)
    refused = caught.value
    assert isinstance(refused, FatalError)
    assert refused.pid is not None
    assert str(bench.root) in str(refused)
    assert f"process {refused.pid}" in str(refused)
    assert "\n" not in str(refused)
    assert refused.pid == (bench.disk.pid if isinstance(bench.disk, FakeDisk) else os.getpid())
    held.release()
    held.release()
    again = bench.disk.lock(bench.root)
    held.release()
    with pytest.raises(DirectoryInUse):
        bench.disk.lock(bench.root)
    again.release()
    with pytest.raises(FileNotFoundError):
        bench.disk.lock(bench.root / "missing")


async def test_background_work_reports_success_after_the_call(bench: Bench) -> None:
    file = bench.file(content=b"head")
    assert await bench.outcome(partial(file.commit_soon, 4, b"tail")) is None
    assert await bench.outcome(file.sync_soon) is None
    assert file.read_at(0, 100) == b"headtail"
    file.close()


async def test_commits_and_syncs_report_in_the_order_they_were_asked_for(bench: Bench) -> None:
    files = [bench.file(str(number)) for number in range(4)]
    reports: list[int] = []
    for number in range(100):
        file = files[number % 4]

        def done(error: OSError | None, number: int = number) -> None:
            assert error is None
            reports.append(number)

        if number % 3:
            file.commit_soon(number, b"x", done)
        else:
            file.sync_soon(done)
    await bench.until(lambda: len(reports) == 100)
    assert reports == list(range(100))
    for file in files:
        file.close()


async def test_a_report_may_ask_for_the_next_commit(bench: Bench) -> None:
    file = bench.file()
    reports: list[OSError | None] = []

    def next_batch(error: OSError | None) -> None:
        reports.append(error)
        if len(reports) < 50:
            file.commit_soon(len(reports) * 3, b"%03d" % len(reports), next_batch)

    file.commit_soon(0, b"000", next_batch)
    await bench.until(lambda: len(reports) == 50)
    assert set(reports) == {None}
    assert file.read_at(0, 1000) == b"".join(b"%03d" % number for number in range(50))
    file.close()


async def test_an_error_is_delivered_once_and_fails_what_is_behind_it(bench: Bench) -> None:
    bench.file(content=b"fixed").close()
    file = bench.disk.open(bench.root / "file", "read")
    reports: list[OSError | None] = []
    file.commit_soon(0, b"other", reports.append)
    file.commit_soon(5, b"more", reports.append)
    file.sync_soon(reports.append)
    await bench.until(lambda: len(reports) == 3)
    for error in reports:
        assert_names(error, errno.EBADF, file.path)
    with pytest.raises(OSError, match=str(file.path)):
        file.sync()
    file.close()
    assert bench.read("file") == b"fixed"


async def test_a_commit_to_a_full_device_fails_with_its_name(bench: Bench) -> None:
    file = bench.disk.open(bench.full, "write")
    error = await bench.outcome(partial(file.commit_soon, 0, b"x"))
    assert_names(error, errno.ENOSPC, bench.full)
    file.close()


async def test_a_failed_file_does_not_spoil_another(bench: Bench) -> None:
    bench.file("bad").close()
    bad = bench.disk.open(bench.root / "bad", "read")
    good = bench.file("good")
    reports: list[tuple[str, bool]] = []
    bad.commit_soon(0, b"x", lambda error: reports.append(("bad", error is None)))
    good.commit_soon(0, b"x", lambda error: reports.append(("good", error is None)))
    await bench.until(lambda: len(reports) == 2)
    assert reports == [("bad", False), ("good", True)]
    bad.close()
    good.close()


async def test_a_file_closed_under_its_commits_ends_them_first(bench: Bench) -> None:
    file = bench.file()
    reports: list[OSError | None] = []
    for number in range(20):
        file.commit_soon(number * 1000, bytes([number]) * 1000, reports.append)
    file.close()
    # A descriptor that was closed too early would now be this file's.
    other = bench.file("other")
    await bench.until(lambda: len(reports) == 20)
    assert set(reports) == {None}
    assert other.size() == 0
    assert bench.read("file") == b"".join(bytes([number]) * 1000 for number in range(20))
    other.close()


async def test_errands_run_in_order_and_deliver_their_errors(bench: Bench) -> None:
    path = bench.root / "ceiling"
    reports: list[OSError | None] = []
    bench.disk.run_soon(partial(bench.disk.replace, path, b"1"), reports.append)
    bench.disk.run_soon(partial(bench.disk.remove, bench.root / "missing"), reports.append)
    bench.disk.run_soon(partial(bench.disk.replace, path, b"2"), reports.append)
    await bench.until(lambda: len(reports) == 3)
    assert (reports[0], reports[2]) == (None, None)
    assert_names(reports[1], errno.ENOENT, bench.root / "missing")
    assert bench.read("ceiling") == b"2"


@pytest.mark.parametrize("lane", ["commits", "errands"])
async def test_after_a_bug_in_background_work_nothing_more_is_done_and_everybody_is_told(
    bench: Bench, lane: str
) -> None:
    raised: list[BaseException | None] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: raised.append(context.get("exception")))
    bench.file(content=b"kept").close()
    file = bench.disk.open(bench.root / "file", "write")

    def bug() -> None:
        raise ValueError("a bug")

    def ask(done: Done) -> None:
        if lane == "errands":
            bench.disk.run_soon(bug, done)
        else:
            file.commit_soon("no offset", b"x", done)  # type: ignore[arg-type]

    def ask_again(done: Done) -> None:
        if lane == "errands":
            bench.disk.run_soon(partial(bench.disk.remove, bench.root / "file"), done)
        else:
            file.commit_soon(0, b"lost", done)

    reports: list[OSError | None] = []
    ask(reports.append)
    ask_again(reports.append)
    while len(reports) < 2:
        try:
            await bench.until(lambda: len(reports) == 2)
        except (ValueError, TypeError) as bug_of_the_fake:
            raised.append(bug_of_the_fake)  # Its loop is our own call.
    ask_again(reports.append)
    await bench.until(lambda: len(reports) == 3)
    for error in reports:
        assert error is not None
        assert error.errno == errno.EIO
        assert "a bug in background work" in str(error)
    assert len(raised) == 1
    assert isinstance(raised[0], ValueError | TypeError)
    assert bench.read("file") == b"kept"
    file.close()


async def test_an_owner_that_never_waits_is_stopped(bench: Bench) -> None:
    file = bench.file()
    for _ in range(background_pending_max):
        file.commit_soon(0, b"x", lambda _error: None)
    with pytest.raises(RuntimeError, match="nobody waits"):
        file.commit_soon(0, b"x", lambda _error: None)
    file.close()


async def test_closing_the_disk_ends_its_work_and_still_reports(bench: Bench) -> None:
    file = bench.file()
    reports: list[str] = []
    file.commit_soon(0, b"x", lambda error: reports.append(f"commit {error}"))
    bench.disk.run_soon(
        partial(bench.disk.replace, bench.root / "state", b"kept"),
        lambda error: reports.append(f"errand {error}"),
    )
    bench.disk.close()
    assert bench.read("state") == b"kept"
    assert bench.read("file") == b"x"
    with pytest.raises(OSError, match="closed"):
        file.sync_soon(lambda _error: None)
    with pytest.raises(OSError, match="closed"):
        bench.disk.run_soon(lambda: None, lambda _error: None)
    await bench.until(lambda: len(reports) == 2)
    assert set(reports) == {"commit None", "errand None"}
    file.close()


# What only the machine's own disk can show.


def in_child(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter, our own program
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


short_writes = """
import resource, sys
from pathlib import Path
from services.runtime.disk import SystemDisk

file = SystemDisk().open(Path(sys.argv[1]), "create")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    file.write_at(300, b"x" * 1500)
except OSError as error:
    print(error.errno, error.filename, file.size())
"""


def test_a_write_the_kernel_cuts_short_goes_on_until_the_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with in_child(short_writes, str(path)) as child:
        output, _ = child.communicate(timeout=30)
    # The first call wrote 700 bytes without complaint; only the second told why.
    assert output.split() == [str(errno.EFBIG), str(path), "1000"]


hold_lock = """
import sys
from pathlib import Path
from services.runtime.disk import SystemDisk

lock = SystemDisk().lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_names_the_other_process_and_dies_with_it(tmp_path: Path) -> None:
    disk = SystemDisk()
    with in_child(hold_lock, str(tmp_path)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(DirectoryInUse) as caught:
            disk.lock(tmp_path)
        assert caught.value.pid == child.pid
        child.kill()
        child.wait(timeout=30)
        disk.lock(tmp_path).release()


def test_a_lock_whose_holder_did_not_say_who_it_is_is_still_held(tmp_path: Path) -> None:
    held = SystemDisk().lock(tmp_path)
    (tmp_path / "LOCK").write_bytes(b"")
    with pytest.raises(DirectoryInUse, match="in use by another process") as caught:
        SystemDisk().lock(tmp_path)
    assert caught.value.pid is None
    held.release()


def test_a_lock_file_left_by_a_longer_pid_is_overwritten_whole(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_bytes(b"99999999999999\n")
    held = SystemDisk().lock(tmp_path)
    assert (tmp_path / "LOCK").read_bytes() == b"%d\n" % os.getpid()
    held.release()
    assert (tmp_path / "LOCK").read_bytes() == b""


def test_many_who_start_together_make_the_same_directories(tmp_path: Path) -> None:
    starters, rounds = 8, 100
    gate = threading.Barrier(starters)

    def make(number: int) -> None:
        disk = SystemDisk()
        for turn in range(rounds):
            gate.wait(timeout=30)
            disk.make_directory(tmp_path / str(turn) / "nodes" / f"node-{number}")

    with ThreadPoolExecutor(starters) as threads:
        for made in [threads.submit(make, number) for number in range(starters)]:
            made.result()
    for turn in range(rounds):
        assert len(list((tmp_path / str(turn) / "nodes").iterdir())) == starters


def test_files_and_directories_are_private(tmp_path: Path) -> None:
    disk = SystemDisk()
    disk.make_directory(tmp_path / "node")
    disk.replace(tmp_path / "node" / "state", b"secret")
    disk.lock(tmp_path / "node").release()
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "node" / "state").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "node" / "LOCK").stat().st_mode & 0o777 == 0o600


def test_allocation_reserves_blocks(tmp_path: Path) -> None:
    with SystemDisk().open(tmp_path / "segment", "create") as file:
        file.allocate(1 << 20)
    assert (tmp_path / "segment").stat().st_blocks * 512 >= 1 << 20


def test_where_a_file_system_cannot_reserve_allocation_writes_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with SystemDisk().open(tmp_path / "segment", "create") as file:
        file.write_at(0, b"head")
        file.allocate((3 << 20) + 17)
        assert file.size() == (3 << 20) + 17
        assert file.read_at(0, 8) == b"head" + bytes(4)
    assert (tmp_path / "segment").stat().st_blocks * 512 >= 3 << 20


Sync = Callable[[], None]


def let_syncs_be(monkeypatch: pytest.MonkeyPatch, sync: Sync, *, at_once: bool) -> None:
    """Put `sync` in the place of every sync of a file, and its writes before it, by one call or,
    as if the kernel knew no such call, by two."""
    write = os.pwritev

    def write_and_sync(descriptor: int, buffers: list[bytes], offset: int, flags: int) -> int:
        if not at_once:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        assert flags == os.RWF_DSYNC
        written = write(descriptor, buffers, offset)
        sync()
        return written

    monkeypatch.setattr(os, "pwritev", write_and_sync)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: sync())


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_loop_turns_while_a_sync_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    disk = SystemDisk()
    released = asyncio.Event()
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()

    def slow() -> None:
        # The device is as slow as the other end of this pipe.
        loop.call_soon_threadsafe(released.set)
        os.read(read_end, 1)

    let_syncs_be(monkeypatch, slow, at_once=at_once)
    file = disk.open(tmp_path / "file", "create")
    reports: list[OSError | None] = []
    file.commit_soon(0, b"batch", reports.append)
    await asyncio.wait_for(released.wait(), 10)
    assert reports == []
    # An errand does not wait behind the slow commit.
    errands: list[OSError | None] = []
    disk.run_soon(partial(disk.create_directory, tmp_path / "made"), errands.append)
    bench = Bench(disk, tmp_path, tmp_path, None)
    await bench.until(lambda: errands == [None])
    assert reports == []
    os.write(write_end, b"!")
    await bench.until(lambda: reports == [None])
    file.close()
    disk.close()
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_failed_sync_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    calls = []

    def fail_once() -> None:
        calls.append("sync")
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    let_syncs_be(monkeypatch, fail_once, at_once=at_once)
    disk = SystemDisk()
    bench = Bench(disk, tmp_path, tmp_path, None)
    file = bench.file()
    first = await bench.outcome(partial(file.commit_soon, 0, b"x"))
    second = await bench.outcome(partial(file.commit_soon, 1, b"y"))
    third = await bench.outcome(file.sync_soon)
    with pytest.raises(OSError, match="Input/output error"):
        file.sync()
    for error in (first, second, third):
        assert_names(error, errno.EIO, file.path)
    assert len(calls) == 1
    assert file.size() == 1, "a batch was written behind a failed one"
    file.close()
    disk.close()


class Calls:
    """What a disk asks of the kernel to commit, and a kernel that answers as it is told."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file_system: str = "ext4"
    ) -> None:
        mounts = tmp_path / "mountinfo"
        mounts.write_text(f"27 1 0:21 / / rw - {file_system} host rw\n")
        monkeypatch.setattr(file_systems, "mounts", mounts)
        self.made: list[str] = []
        # What the next calls to write and sync at once fail with.
        self.errors: list[int] = []
        self.bytes_at_once = 1 << 30
        self._pwritev, self._fdatasync = os.pwritev, os.fdatasync
        monkeypatch.setattr(os, "pwritev", self.pwritev)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def pwritev(self, descriptor: int, buffers: list[bytes], offset: int, flags: int) -> int:
        self.made.append("both")
        assert flags == os.RWF_DSYNC
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))
        if not self.bytes_at_once:
            # The system's own writes at least a byte, or fails.
            return 0
        cut = [bytes(buffers[0])[: self.bytes_at_once]]
        return self._pwritev(descriptor, cut, offset, flags)

    def fdatasync(self, descriptor: int) -> None:
        self.made.append("sync")
        self._fdatasync(descriptor)


async def test_a_commit_is_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, tmp_path)
    bench = Bench(SystemDisk(), tmp_path, tmp_path, None)
    with bench.file(content=b"head") as file:
        assert await bench.outcome(partial(file.commit_soon, 4, b"tail")) is None
        assert await bench.outcome(partial(file.commit_soon, 8, b"")) is None
        assert calls.made == ["both"]
        assert bench.read("file") == b"headtail"
    bench.disk.close()


@pytest.mark.parametrize(
    "code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM], ids=errno.errorcode.get
)
async def test_where_a_write_cannot_carry_its_sync_the_sync_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    calls = Calls(monkeypatch, tmp_path)
    bench = Bench(SystemDisk(), tmp_path, tmp_path, None)
    with bench.file() as file:
        calls.errors = [code]
        assert await bench.outcome(partial(file.commit_soon, 0, b"one")) is None
        assert await bench.outcome(partial(file.commit_soon, 3, b"two")) is None
        assert calls.made == ["both", "sync", "sync"]
        assert bench.read("file") == b"onetwo"
    bench.disk.close()


async def test_where_a_write_may_pass_over_its_sync_the_sync_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9p reports success of such a write, and has synced nothing."""
    calls = Calls(monkeypatch, tmp_path, "9p")
    bench = Bench(SystemDisk(), tmp_path, tmp_path, None)
    with bench.file() as file:
        assert await bench.outcome(partial(file.commit_soon, 0, b"one")) is None
        assert await bench.outcome(partial(file.commit_soon, 3, b"two")) is None
        assert calls.made == ["sync", "sync"]
        assert bench.read("file") == b"onetwo"
    bench.disk.close()


async def test_where_there_is_no_such_flag_the_sync_follows_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, tmp_path)
    monkeypatch.delattr(os, "RWF_DSYNC")
    bench = Bench(SystemDisk(), tmp_path, tmp_path, None)
    with bench.file() as file:
        assert await bench.outcome(partial(file.commit_soon, 0, b"one")) is None
        assert calls.made == ["sync"]
        assert bench.read("file") == b"one"
    bench.disk.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSPC], ids=errno.errorcode.get)
async def test_after_a_commit_by_one_call_every_error_is_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    calls = Calls(monkeypatch, tmp_path)
    bench = Bench(SystemDisk(), tmp_path, tmp_path, None)
    with bench.file() as file:
        assert await bench.outcome(partial(file.commit_soon, 0, b"one")) is None
        calls.errors = [code]
        for offset in (3, 6):
            error = await bench.outcome(partial(file.commit_soon, offset, b"two"))
            assert_names(error, code, file.path)
        assert calls.made == ["both", "both"], "a sync that failed was tried again"
        assert bench.read("file") == b"one"
    bench.disk.close()


async def test_a_commit_the_kernel_cuts_short_is_whole_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, tmp_path)
    calls.bytes_at_once = 7
    bench = Bench(SystemDisk(), tmp_path, tmp_path, None)
    data = bytes(range(100))
    with bench.file(content=b"head") as file:
        assert await bench.outcome(partial(file.commit_soon, 4, data)) is None
        assert calls.made == ["both"] * 15
        assert bench.read("file") == b"head" + data
    bench.disk.close()


async def test_a_commit_of_which_the_kernel_takes_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, tmp_path)
    calls.bytes_at_once = 0
    bench = Bench(SystemDisk(), tmp_path, tmp_path, None)
    with bench.file() as file:
        error = await bench.outcome(partial(file.commit_soon, 0, b"data"))
        assert_names(error, errno.EIO, file.path)
    bench.disk.close()


short_commits = """
import asyncio, resource, sys
from pathlib import Path
from services.runtime.disk import SystemDisk

async def main():
    told = asyncio.get_running_loop().create_future()
    file = SystemDisk().open(Path(sys.argv[1]), "create")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    file.commit_soon(300, b"x" * 1500, told.set_result)
    error = await told
    print(error.errno, error.filename, file.size())

asyncio.run(main())
"""


def test_a_commit_that_meets_a_limit_half_way_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with in_child(short_commits, str(path)) as child:
        output, _ = child.communicate(timeout=30)
    assert output.split() == [str(errno.EFBIG), str(path), "1000"]


def test_reports_for_a_loop_that_is_closed_are_dropped(tmp_path: Path) -> None:
    disk = SystemDisk()
    file = disk.open(tmp_path / "file", "create")
    reports: list[OSError | None] = []

    async def ask() -> None:
        for number in range(50):
            file.commit_soon(number, b"x", reports.append)

    asyncio.run(ask())
    disk.close()
    assert len((tmp_path / "file").read_bytes()) == 50
    file.close()
