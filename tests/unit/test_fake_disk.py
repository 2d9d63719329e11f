"""The lying disk lies as much as it may, and never about what was synced."""

from __future__ import annotations

import errno
import random
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from services.runtime.clock import FakeClock, Timeline
from services.runtime.disk import DirectoryInUse, File
from services.runtime.fake_disk import FakeDisk, Operation

root = Path("/data")
segment_bytes = 64 << 20


class Machine:
    """A disk with its timeline and one durable, empty directory."""

    def __init__(self, seed: int, capacity_bytes: int = 1 << 40) -> None:
        self.timeline = Timeline()
        self.rng = random.Random(f"script {seed}")
        self.disk = FakeDisk(
            random.Random(seed), FakeClock(self.timeline), capacity_bytes=capacity_bytes
        )
        self.disk.make_directory(root)

    def file(self, content: bytes = b"", name: str = "file") -> File:
        """A durable file."""
        file = self.disk.open(root / name, "create")
        file.write_at(0, content)
        file.sync()
        self.disk.sync_directory(root)
        return file

    def after_crash(self, name: str = "file") -> bytes:
        self.disk.crash()
        return self.disk.read(root / name, 1 << 30)


def machines(count: int, capacity_bytes: int = 1 << 40) -> Iterator[Machine]:
    for seed in range(count):
        yield Machine(seed, capacity_bytes)


def test_an_unsynced_write_is_kept_lost_torn_as_a_prefix_and_torn_anywhere() -> None:
    seen = set()
    for machine in machines(200):
        file = machine.file(bytes(4096))
        file.write_at(0, b"x" * 4096)
        content = machine.after_crash()
        assert len(content) == 4096
        sectors = [content[start : start + 512] for start in range(0, 4096, 512)]
        assert all(sector in (bytes(512), b"x" * 512) for sector in sectors), "torn in a sector"
        there = [sector[0] != 0 for sector in sectors]
        prefix = there == sorted(there, reverse=True)
        seen.add("kept" if all(there) else "lost" if not any(there) else prefix)
    assert seen == {"kept", "lost", True, False}


def test_later_writes_survive_without_earlier_ones_but_not_within_a_sector() -> None:
    alone = 0
    for machine in machines(200):
        file = machine.file(bytes(2048))
        file.write_at(0, b"a" * 512)
        file.write_at(1024, b"b" * 512)
        file.write_at(1536, b"c" * 100)
        file.write_at(1636, b"d" * 100)
        content = machine.after_crash()
        alone += content[0] == 0 and content[1024:1025] == b"b"
        if content[1636:1637] == b"d":
            assert content[1536:1636] == b"c" * 100, "a sector forgot what was in it"
    assert alone


def test_an_unsynced_length_may_arrive_without_data_and_the_gap_is_zeros() -> None:
    seen = set()
    for machine in machines(300):
        file = machine.file(b"head")
        file.write_at(4, b"x" * 3000)
        content = machine.after_crash()
        assert content[:4] == b"head"
        assert set(content[4:]) <= set(b"x\0")
        seen.add(("x" if b"x" in content else "") + ("0" if b"\0" in content else ""))
    assert seen == {"", "x", "0", "x0"}


def test_an_overwritten_place_holds_old_or_new_bytes() -> None:
    seen = set()
    for machine in machines(100):
        machine.file(b"old" * 1000).write_at(0, b"new" * 1000)
        content = machine.after_crash()
        assert len(content) == 3000
        seen.add(content[:3])
    assert seen == {b"old", b"new"}


def test_an_unsynced_allocation_may_be_gone() -> None:
    sizes = set()
    for machine in machines(50):
        machine.file(b"head").allocate(segment_bytes)
        machine.disk.crash()
        with machine.disk.open(root / "file", "read") as file:
            sizes.add(file.size())
            assert file.read_at(0, 8).rstrip(b"\0") == b"head"
    assert sizes == {4, segment_bytes}


def test_an_unsynced_cut_that_is_lost_brings_the_old_bytes_back() -> None:
    seen = set()
    for machine in machines(100):
        file = machine.file(b"old" * 400)
        file.truncate(0)
        file.write_at(0, b"new")
        seen.add(machine.after_crash().rstrip(b"\0")[:6])
    assert {b"oldold", b"new", b""} <= seen <= {b"oldold", b"new", b"", b"n", b"ne"}


def test_what_a_cut_took_away_does_not_return_under_later_writes() -> None:
    later = 0
    for machine in machines(300):
        file = machine.file()
        file.write_at(0, b"a" * 400)
        file.truncate(0)
        file.write_at(0, b"b" * 100)
        content = machine.after_crash()
        later += b"b" in content
        assert not (b"b" in content and b"a" in content)
    assert later


def test_what_was_synced_survives_every_crash() -> None:
    for machine in machines(300):
        rng, file = machine.rng, machine.file()
        synced = b""
        for _ in range(rng.randrange(1, 12)):
            file.write_at(len(synced), data := rng.randbytes(rng.randrange(1, 2000)))
            file.sync()
            synced += data
        file.write_at(len(synced), b"unsynced" * 100)
        assert machine.after_crash()[: len(synced)] == synced
        assert machine.after_crash()[: len(synced)] == synced


def test_after_a_crash_reads_show_what_the_device_holds() -> None:
    for machine in machines(100):
        machine.file(bytes(2000)).write_at(0, b"x" * 2000)
        first = machine.after_crash()
        assert machine.after_crash() == first


def test_a_new_name_may_be_lost_though_its_content_was_synced() -> None:
    seen = set()
    for machine in machines(50):
        with machine.disk.open(root / "new", "create") as file:
            file.write_at(0, b"synced")
            file.sync()
        machine.disk.crash()
        seen.add(machine.disk.exists(root / "new"))
        if machine.disk.exists(root / "new"):
            assert machine.disk.read(root / "new", 10) == b"synced"
    assert seen == {True, False}


def test_a_durable_name_may_hold_an_empty_file() -> None:
    seen = set()
    for machine in machines(50):
        machine.disk.open(root / "new", "create").write_at(0, b"unsynced")
        machine.disk.sync_directory(root)
        seen.add(machine.after_crash("new"))
    assert {b"", b"unsynced"} <= seen


def test_a_rename_or_removal_without_a_sync_of_the_directory_may_be_undone() -> None:
    seen = set()
    for machine in machines(100):
        machine.file(b"old", "state")
        machine.file(b"new", "state.tmp")
        machine.file(b"gone", "segment")
        machine.disk.rename(root / "state.tmp", root / "state")
        machine.disk.remove(root / "segment")
        machine.disk.crash()
        names = machine.disk.names(root)
        seen.add((machine.disk.read(root / "state", 10), *names))
    # The first few of the changes, never the second without the first.
    assert seen == {
        (b"old", "segment", "state", "state.tmp"),
        (b"new", "segment", "state"),
        (b"new", "state"),
    }


def test_a_directory_whose_parent_was_not_synced_may_vanish_with_all_in_it() -> None:
    seen = set()
    for machine in machines(50):
        machine.disk.create_directory(root / "node")
        machine.disk.replace(root / "node" / "state", b"synced")
        machine.disk.crash()
        seen.add(machine.disk.exists(root / "node" / "state"))
    assert seen == {True, False}


def test_making_a_directory_that_a_killed_process_left_makes_it_durable() -> None:
    for machine in machines(20):
        machine.disk.create_directory(root / "node")
        machine.disk.kill()
        machine.disk.make_directory(root / "node")
        machine.disk.crash()
        assert machine.disk.exists(root / "node")


def test_making_a_directory_makes_those_above_it_durable_that_a_killed_process_left() -> None:
    for machine in machines(50):
        machine.disk.create_directory(root / "nodes")
        machine.disk.kill()
        machine.disk.make_directory(root / "nodes" / "node-1")
        machine.disk.crash()
        assert machine.disk.exists(root / "nodes" / "node-1")


def test_a_directory_that_somebody_else_makes_in_between_is_made_durable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for machine in machines(20):
        create = machine.disk.create_directory

        def second(path: Path, create: Callable[[Path], None] = create) -> None:
            create(path)
            create(path)

        monkeypatch.setattr(machine.disk, "create_directory", second)
        machine.disk.make_directory(root / "nodes" / "node-1")
        machine.disk.crash()
        assert machine.disk.exists(root / "nodes" / "node-1")


def test_a_synced_directory_keeps_its_names_and_its_removals() -> None:
    for machine in machines(100):
        machine.file(b"1", "kept")
        machine.file(b"2", "removed")
        machine.disk.remove(root / "removed")
        machine.disk.make_directory(root / "deep" / "deeper")
        machine.disk.sync_directory(root)
        machine.disk.crash()
        assert machine.disk.names(root) == ["deep", "kept"]
        assert machine.disk.names(root / "deep") == ["deeper"]


def test_replace_is_whole_whenever_the_power_goes() -> None:
    seen = set()
    for machine in machines(400):
        disk = machine.disk
        old, new = b"old" * 700, b"new" * 900
        disk.replace(root / "state", old)
        disk.run_soon(partial(disk.replace, root / "state", new), lambda _error: None)
        content = machine.after_crash("state")
        assert content in (old, new)
        seen.add((content == new, disk.exists(root / "state.tmp")))
        disk.replace(root / "state", b"next")
        assert machine.after_crash("state") == b"next"
    assert seen == {(False, False), (False, True), (True, False)}


def test_a_commit_under_way_at_a_crash_has_happened_or_not_and_never_reports() -> None:
    seen = set()
    for machine in machines(200):
        file = machine.file()
        reports: list[OSError | None] = []
        file.commit_soon(0, b"first", reports.append)
        file.commit_soon(5, b"second", reports.append)
        content = machine.after_crash()
        machine.timeline.advance(60)
        assert reports == []
        assert b"s" not in content[5:], "work behind the one under way has begun"
        seen.add(content.rstrip(b"\0"))
    assert {b"", b"first"} <= seen


def test_a_reported_commit_is_durable_and_what_came_after_its_start_is_not_covered() -> None:
    lost = 0
    for machine in machines(100):
        file = machine.file(bytes(1024))
        reports: list[OSError | None] = []
        file.commit_soon(0, b"a" * 512, reports.append)
        file.write_at(512, b"b" * 512)
        machine.timeline.advance(1)
        assert reports == [None]
        assert file.read_at(0, 1024) == b"a" * 512 + b"b" * 512
        content = machine.after_crash()
        assert content[:512] == b"a" * 512
        lost += content[512:] == bytes(512)
    assert lost


def test_a_commit_makes_its_own_range_durable_and_no_earlier_write_elsewhere() -> None:
    """Whoever writes plainly, commits behind it and calls both durable loses the first."""
    fates = set()
    for machine in machines(100):
        file = machine.file(bytes(4096))
        reports: list[OSError | None] = []
        file.write_at(0, b"a" * 512)
        file.write_at(3584, b"c" * 512)
        file.commit_soon(1000, b"b" * 1000, reports.append)
        machine.timeline.advance(1)
        assert reports == [None]
        content = machine.after_crash()
        assert content[1000:2000] == b"b" * 1000
        fates |= {("a", content[:512] == b"a" * 512), ("c", content[3584:] == b"c" * 512)}
    assert fates == {("a", True), ("a", False), ("c", True), ("c", False)}


def test_a_commit_brings_along_what_its_sectors_held_and_nothing_older_undoes_it() -> None:
    for machine in machines(200):
        file = machine.file(bytes(2048))
        file.write_at(0, b"old" * 600)
        file.commit_soon(700, b"new", lambda _error: None)
        machine.timeline.advance(1)
        content = machine.after_crash()
        old = b"old" * 600
        assert content[512:1024] == old[512:700] + b"new" + old[703:1024]


def test_a_commit_makes_the_length_durable_that_it_needs_and_no_more() -> None:
    sizes = set()
    for machine in machines(200):
        file = machine.file(b"head")
        file.allocate(8192)
        file.commit_soon(1024, b"tail", lambda _error: None)
        machine.timeline.advance(1)
        content = machine.after_crash()
        assert content[:1028] == b"head" + bytes(1020) + b"tail"
        sizes.add(len(content))
    assert {1028, 8192} <= sizes


def test_a_commit_behind_a_cut_brings_the_cut_along_and_keeps_nothing_beyond_it() -> None:
    for machine in machines(200):
        file = machine.file(b"x" * 4096)
        file.write_at(0, b"y" * 4096)
        file.truncate(100)
        file.commit_soon(2048, b"z" * 10, lambda _error: None)
        machine.timeline.advance(1)
        content = machine.after_crash()
        assert len(content) == 2058
        assert set(content[:100]) <= set(b"xy")
        assert content[100:] == bytes(1948) + b"z" * 10


def test_a_sync_after_a_commit_covers_what_the_commit_left() -> None:
    for machine in machines(100):
        file = machine.file(bytes(4096))
        file.write_at(0, b"a" * 2048)
        file.commit_soon(600, b"b", lambda _error: None)
        machine.timeline.advance(1)
        file.write_at(1, b"c")
        file.sync()
        content = machine.after_crash()
        assert content == b"ac" + b"a" * 598 + b"b" + b"a" * 1447 + bytes(2048)


def test_a_sync_of_an_earlier_growth_takes_nothing_from_a_commit_beyond_it() -> None:
    for machine in machines(20):
        file = machine.file(b"head")
        file.allocate(8192)
        file.commit_soon(10_000, b"tail", lambda _error: None)
        machine.timeline.advance(1)
        file.sync()
        # What is read is looked up on the device only if something was not synced.
        file.write_at(0, b"x")
        assert machine.after_crash()[1:] == b"ead" + bytes(9996) + b"tail"


def test_commits_writes_and_syncs_in_any_order_keep_what_they_promised() -> None:
    """Against a dumb model: by byte, what is durable for certain and all that may be there."""
    for seed in range(300):
        machine = Machine(seed)
        rng, file = machine.rng, machine.file(bytes(3000))
        live = bytearray(3000)
        possible = [{0} for _ in range(3000)]
        for _ in range(rng.randint(1, 12)):
            offset = rng.randrange(2900)
            data = bytes([rng.randrange(256)]) * rng.randint(1, 3000 - offset)
            covered = range(offset, offset + len(data))
            live[offset : offset + len(data)] = data
            for byte in covered:
                possible[byte].add(live[byte])
            if rng.random() < 0.5:
                file.write_at(offset, data)
                continue
            file.commit_soon(offset, data, lambda _error: None)
            machine.timeline.advance(1)
            if rng.random() < 0.3:
                file.sync()
                covered = range(3000)
            for byte in covered:
                possible[byte] = {live[byte]}
        content = machine.after_crash()
        assert len(content) == 3000
        wrong = [byte for byte in range(3000) if content[byte] not in possible[byte]]
        assert not wrong, f"seed {seed}: byte {wrong[0]} is {content[wrong[0]]}"


def test_killing_the_process_keeps_its_writes_readable_and_undurable() -> None:
    lost = 0
    for machine in machines(100):
        file = machine.file(b"old")
        file.write_at(0, b"new")
        machine.disk.open(root / "made", "create").close()
        machine.disk.kill()
        assert machine.disk.read(root / "file", 10) == b"new"
        assert machine.disk.exists(root / "made")
        lost += machine.after_crash() == b"old"
    assert lost


def test_killing_a_process_in_its_sync_is_no_failed_sync() -> None:
    for machine in machines(100):
        file = machine.file(b"old")
        file.write_at(0, b"new")
        machine.disk.run_soon(file.sync, lambda _error: None)
        machine.disk.kill()
        with machine.disk.open(root / "file", "write") as again:
            again.sync()
        assert machine.after_crash() == b"new"


def test_a_new_process_makes_durable_what_a_killed_one_left() -> None:
    for machine in machines(50):
        machine.file(b"old").write_at(0, b"new")
        machine.disk.kill()
        with machine.disk.open(root / "file", "write") as file:
            file.sync()
        assert machine.after_crash() == b"new"


def test_handles_locks_and_reports_die_with_their_process() -> None:
    machine = Machine(1)
    file = machine.file(b"x")
    stale_lock = machine.disk.lock(root)
    with pytest.raises(DirectoryInUse, match="process 1000"):
        machine.disk.lock(root)
    machine.disk.crash()
    for call in (file.size, file.sync, partial(file.read_at, 0, 1), partial(file.write_at, 0, b"")):
        with pytest.raises(OSError, match="Stale") as caught:
            call()
        assert caught.value.errno == errno.ESTALE
    machine.disk.lock(root)
    stale_lock.release()
    with pytest.raises(DirectoryInUse, match="process 1001"):
        machine.disk.lock(root)


def test_a_failed_sync_loses_writes_that_stay_readable_and_a_later_sync_does_not_help() -> None:
    lost = 0
    for machine in machines(100):
        file = machine.file(b"old")
        file.write_at(0, b"new")
        machine.disk.fail("sync", errno.EIO, "*/file")
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output") as caught:
                file.sync()
            assert caught.value.filename == "/data/file"
        assert file.read_at(0, 3) == b"new"
        with machine.disk.open(root / "file", "write") as again:
            again.sync()
        lost += machine.after_crash() == b"old"
    assert lost


def test_a_background_sync_error_arrives_once() -> None:
    machine = Machine(1)
    file = machine.file()
    machine.disk.fail("sync", errno.EIO)
    reports: list[OSError | None] = []
    file.commit_soon(0, b"x", reports.append)
    file.commit_soon(1, b"y", reports.append)
    machine.timeline.advance(1)
    assert [error and (error.errno, error.filename) for error in reports] == [
        (errno.EIO, "/data/file"),
        (errno.EIO, "/data/file"),
    ]
    assert file.read_at(0, 2) == b"x", "a batch was written behind a failed one"


def test_faults_hit_the_operation_the_path_and_the_count_they_were_asked_for() -> None:
    machine = Machine(1)
    disk = machine.disk
    one, two = machine.file(b"1", "one"), machine.file(b"2", "two")
    disk.fail("write", errno.EIO, "*/one", after=1, times=2)
    one.write_at(0, b"a")
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            one.write_at(0, b"b")
        two.write_at(0, b"b")
    one.write_at(0, b"c")
    assert one.read_at(0, 1) == b"c"
    disk.fail("read", errno.EIO, times=None)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            two.read_at(0, 1)
    disk.heal()
    assert two.read_at(0, 1) == b"b"


@pytest.mark.parametrize("operation", ["open", "write", "sync", "rename"])
def test_a_replace_that_fails_before_its_rename_leaves_the_old_content(
    operation: Operation,
) -> None:
    for machine in machines(20):
        machine.disk.replace(root / "state", b"old")
        machine.disk.fail(operation, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            machine.disk.replace(root / "state", b"new")
        assert machine.disk.read(root / "state", 10) == b"old"
        assert machine.after_crash("state") == b"old"


def test_a_replace_whose_directory_was_not_synced_says_so_and_is_old_or_new() -> None:
    seen = set()
    for machine in machines(50):
        machine.disk.replace(root / "state", b"old")
        machine.disk.fail("sync_directory", errno.EIO)
        with pytest.raises(OSError, match="Input/output") as caught:
            machine.disk.replace(root / "state", b"new")
        assert caught.value.filename == "/data"
        seen.add(machine.after_crash("state"))
    assert seen == {b"old", b"new"}


def test_a_full_disk_takes_what_fits_and_lets_go_on_removal() -> None:
    machine = Machine(1, capacity_bytes=10_000)
    disk = machine.disk
    file = machine.file(b"x" * 4_000)
    with pytest.raises(OSError, match="No space") as caught:
        file.allocate(10_001)
    assert caught.value.filename == "/data/file"
    assert file.size() == 4_000
    file.allocate(9_000)
    assert disk.space(root).free_bytes == 1_000
    file.write_at(4_000, b"y" * 5_000)
    with pytest.raises(OSError, match="No space"):
        machine.file(b"z" * 1_001, "other")
    assert disk.read(root / "other", 2_000) == b"z" * 1_000
    disk.remove(root / "other")
    disk.remove(root / "file")
    file.write_at(9_000, b"unlinked")
    assert disk.space(root).free_bytes == 10_000


def test_a_file_whose_removal_a_crash_undid_takes_space_as_before() -> None:
    undone = 0
    for machine in machines(20, capacity_bytes=10_000):
        machine.file(b"x" * 1_000)
        machine.disk.remove(root / "file")
        machine.disk.crash()
        if machine.disk.exists(root / "file"):
            undone += 1
            with (
                machine.disk.open(root / "file", "write") as file,
                pytest.raises(OSError, match="No space"),
            ):
                file.write_at(0, b"y" * 10_001)
            assert machine.disk.space(root).free_bytes == 0
    assert undone


def test_space_is_right_after_every_crash() -> None:
    for machine in machines(50, capacity_bytes=1 << 20):
        file = machine.file(b"x" * 1000)
        file.write_at(1000, b"y" * 5000)
        machine.disk.remove(root / "file")
        machine.disk.crash()
        sizes = 0
        for name in machine.disk.names(root):
            with machine.disk.open(root / name, "read") as survivor:
                sizes += survivor.size()
        assert machine.disk.space(root).free_bytes == (1 << 20) - sizes


def test_a_flipped_bit_is_read_at_once_and_after_a_crash() -> None:
    machine = Machine(1)
    file = machine.file(b"\x00" * 10)
    machine.disk.flip_bit(root / "file", 3, 7)
    assert file.read_at(3, 1) == b"\x80"
    assert machine.after_crash() == b"\x00\x00\x00\x80" + bytes(6)
    with pytest.raises(ValueError, match="none at 10"):
        machine.disk.flip_bit(root / "file", 10, 0)


def test_a_frozen_disk_reports_nothing_until_it_thaws() -> None:
    for machine in machines(20):
        disk, file = machine.disk, machine.file()
        reports: list[OSError | None] = []
        disk.freeze()
        file.commit_soon(0, b"x", reports.append)
        disk.run_soon(partial(disk.replace, root / "state", b""), reports.append)
        machine.timeline.advance(3600)
        assert reports == []
        assert not disk.exists(root / "state")
        with pytest.raises(RuntimeError, match="never return"):
            file.sync()
        disk.thaw()
        machine.timeline.advance(1)
        assert reports == [None, None]
        assert disk.exists(root / "state")
        assert machine.after_crash() == b"x"


def test_a_closed_disk_does_not_report_to_a_process_that_ended() -> None:
    machine = Machine(1)
    reports: list[OSError | None] = []
    machine.file().commit_soon(0, b"x", reports.append)
    machine.disk.close()
    machine.disk.kill()
    machine.timeline.advance(1)
    assert reports == []
    assert machine.after_crash() == b"x"


def test_a_crash_thaws_and_the_next_process_works() -> None:
    for machine in machines(20):
        file = machine.file()
        machine.disk.freeze()
        file.commit_soon(0, b"x", lambda _error: None)
        machine.timeline.advance(1)
        machine.disk.crash()
        reports: list[OSError | None] = []
        machine.disk.open(root / "file", "write").commit_soon(0, b"next", reports.append)
        machine.timeline.advance(1)
        assert reports == [None]
        assert machine.after_crash() == b"next"


def test_background_work_takes_the_time_it_was_given() -> None:
    machine = Machine(1)
    machine.disk.latency_s = (0.25, 0.25)
    file = machine.file()
    at: list[float] = []
    for _ in range(3):
        file.sync_soon(lambda _error: at.append(machine.timeline.now_s))
    machine.timeline.advance(10)
    assert at == [0.25, 0.5, 0.75]


def test_counters_tell_what_was_asked() -> None:
    machine = Machine(1)
    before = machine.disk.counters
    assert (before.writes, before.syncs, before.directory_syncs) == (0, 0, 2)
    file = machine.file(b"12345")
    file.commit_soon(5, b"678", lambda _error: None)
    machine.timeline.advance(1)
    file.read_at(0, 1)
    counters = machine.disk.counters
    assert (counters.writes, counters.bytes_written) == (2, 8)
    assert (counters.syncs, counters.directory_syncs, counters.reads) == (2, 3, 1)


def test_an_allocated_segment_takes_no_memory_and_a_small_write_costs_a_page() -> None:
    machine = Machine(1)
    tracemalloc.start()
    try:
        for number in range(20):
            file = machine.file(name=f"{number}")
            file.allocate(segment_bytes, zero_fill=True)
            file.write_at(segment_bytes // 2, b"x")
            file.sync()
        machine.disk.crash()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def run_log(seed: int) -> tuple[list[bytes], int]:
    """A log that appends numbered entries; what its file holds after a crash, and what it acked."""
    machine = Machine(seed)
    rng, file = machine.rng, machine.file()
    file.allocate(1 << 16)
    acked = 0
    offset = 0
    entry_bytes = rng.choice((16, 100, 512, 700))

    def append(number: int) -> None:
        nonlocal offset

        def done(error: OSError | None) -> None:
            nonlocal acked
            assert error is None
            acked = number
            append(number + 1)

        file.commit_soon(offset, b"%08d" % number + b"." * (entry_bytes - 8), done)
        offset += entry_bytes

    append(1)
    machine.timeline.advance(rng.uniform(0, 0.03))
    content = machine.after_crash()
    return [content[at : at + entry_bytes] for at in range(0, offset, entry_bytes)], acked


def test_a_log_keeps_every_entry_it_acknowledged_over_thousands_of_seeds() -> None:
    torn = unacknowledged = 0
    for seed in range(2_000):
        entries, acked = run_log(seed)
        whole = [
            entry == b"%08d" % number + b"." * (len(entries[0]) - 8)
            for number, entry in enumerate(entries, 1)
        ]
        assert all(whole[:acked]), f"seed {seed} lost an acknowledged entry"
        assert len(entries) <= acked + 1
        unacknowledged += all(whole) and len(entries) > acked
        torn += any(any(entry) for entry in entries[acked:]) and not all(whole)
    assert torn > 20, "no crash tore an entry"
    assert unacknowledged > 200, "no entry survived unacknowledged"


def test_the_same_seed_ends_in_the_same_bytes() -> None:
    assert [run_log(seed) for seed in range(50)] == [run_log(seed) for seed in range(50)]
