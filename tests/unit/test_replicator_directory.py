"""A replicator's directory: one owner at a time, and a stamper that is right or refused."""

from __future__ import annotations

import errno
import os
import random
from contextlib import suppress
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FatalError
from services.core.hlc import stamper_max, time_ms_max
from services.replicator.directory import ReplicatorDirectory, stamper_name
from services.replicator.stamper_file import Kept, copy_bytes, file_bytes
from services.runtime.clock import FakeClock, Timeline
from services.runtime.disk import DirectoryInUse, SystemDisk, directory_mode
from services.runtime.disk_failure import disk_failure
from services.runtime.fake_disk import FakeDisk, Operation

path = Path("/data/replicators/replicator-1")
file = path / stamper_name
kept = Kept(7, 1_767_225_602_000)
newer = Kept(7, kept.ceiling_ms + 1)


class World:
    """A disk that forgets and fails, and one process after the other that uses it."""

    def __init__(self, seed: int = 1) -> None:
        self.timeline = Timeline()
        self.disk = FakeDisk(random.Random(seed), FakeClock(self.timeline))

    def open(self, replicator_id: str = "replicator-1") -> ReplicatorDirectory:
        return ReplicatorDirectory.open(self.disk, path, replicator_id)

    def open_again(self) -> ReplicatorDirectory:
        """In another process, after this one has been killed."""
        self.disk.kill()
        return self.open()

    def keep(self, directory: ReplicatorDirectory, what: Kept) -> list[OSError | None]:
        """Keep it, as far as the timeline has to go for that; what was reported."""
        reports: list[OSError | None] = []
        directory.keep_soon(what, reports.append)
        while not reports and self.timeline.step():
            pass
        return reports

    def overwrite(self, content: bytes) -> None:
        self.disk.replace(file, content)

    def content(self) -> bytes:
        return self.disk.read(file, file_bytes)


def kept_once(what: Kept = kept) -> World:
    """A world in which a replicator has kept this, and then ended."""
    world = World()
    assert world.keep(world.open(), what) == [None]
    world.disk.crash()
    return world


def test_a_new_directory_has_no_stamper() -> None:
    world = World()
    directory = world.open()
    assert directory.found is None
    assert directory.hints_path == path / "hints"
    world.disk.crash()
    assert world.open().found is None


@pytest.mark.parametrize(
    "what", [kept, Kept(1, 0), Kept(stamper_max, time_ms_max), Kept(1, time_ms_max)]
)
def test_what_was_kept_survives_a_power_cut(what: Kept) -> None:
    assert kept_once(what).open().found == what


def test_the_longest_id_fits() -> None:
    world = World()
    name = "r" + "._-" * 21
    world.keep(world.open(name), Kept(stamper_max, time_ms_max))
    world.disk.kill()
    assert world.open(name).found == Kept(stamper_max, time_ms_max)


def test_the_file_is_a_line_that_people_can_read_twice() -> None:
    line = b"ydht-stamper 1 replicator-1 7 1767225602000 7bc3b11d\n"
    assert kept_once().content() == line.ljust(copy_bytes, b"\0") * 2


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\n", "x" * 65])
def test_an_id_that_is_none_is_refused_before_anything_is_made(name: str) -> None:
    world = World()
    with pytest.raises(ValueError, match="no replicator id"):
        world.open(name)
    assert world.disk.names(Path("/")) == []


def test_another_process_has_it_until_it_closes_or_ends() -> None:
    world = World()
    first = world.open()
    with pytest.raises(DirectoryInUse, match=f"in use by process {world.disk.pid}"):
        world.open()
    first.close()
    first.close()
    world.open()
    world.disk.kill()
    world.open()


def test_on_a_real_disk_too_the_process_that_has_it_is_named(tmp_path: Path) -> None:
    disk = SystemDisk()
    place = tmp_path / "replicators" / "replicator-1"
    directory = ReplicatorDirectory.open(disk, place, "replicator-1")
    with pytest.raises(FatalError, match=f"{place} is in use by process {os.getpid()}: stop"):
        ReplicatorDirectory.open(disk, place, "replicator-1")
    assert place.stat().st_mode & 0o777 == directory_mode
    directory.close()
    ReplicatorDirectory.open(disk, place, "replicator-1").close()
    disk.close()


def test_a_directory_of_another_replicator_is_refused_and_let_go() -> None:
    world = kept_once()
    with pytest.raises(FatalError, match=r"belongs to .*'replicator-1'.* REPLICATOR_ID"):
        world.open("replicator-2")
    assert world.open().found == kept


def test_a_directory_that_cannot_be_read_is_let_go() -> None:
    world = kept_once()
    world.disk.fail("read", errno.EIO, str(file))
    with pytest.raises(OSError, match="stamper"):
        world.open()
    assert world.open().found == kept


@given(st.integers(0, file_bytes - 1), st.integers(0, 7))
def test_every_flipped_bit_is_found_and_the_other_copy_is_right(byte: int, bit: int) -> None:
    world = kept_once()
    world.disk.flip_bit(file, byte, bit)
    assert world.open().found == kept
    # Both are whole again.
    other = (byte + copy_bytes) % file_bytes
    world.disk.flip_bit(file, other, bit)
    assert world.open_again().found == kept
    for place in (byte, other):
        world.disk.flip_bit(file, place, bit)
    with pytest.raises(FatalError, match=r"stamper is damaged: move that file away"):
        world.open_again()


def test_a_damaged_copy_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    world = kept_once()
    world.disk.flip_bit(file, copy_bytes, 0)
    world.open()
    assert "one of two copies was damaged" in caplog.text
    assert f"'offset': {copy_bytes}" in caplog.text
    caplog.clear()
    world.open_again()
    assert not caplog.text


def test_a_line_that_was_torn_anywhere_leaves_what_was_kept_before_or_after_it() -> None:
    old, new = kept_once().content()[:copy_bytes], kept_once(newer).content()[:copy_bytes]
    for size in range(len(old.rstrip(b"\0")) + 1):
        torn = new[:size] + old[size:]
        # The first copy is on its way, or the second once the first is there.
        for content, wanted in ((torn + old, kept), (new + torn, newer)):
            world = World()
            world.open().close()
            world.overwrite(content)
            found = world.open().found
            assert found == (newer if torn == new else wanted)


@pytest.mark.parametrize("offset", [0, copy_bytes])
def test_a_damaged_copy_is_mended_before_the_good_one_is_touched(offset: int) -> None:
    for after in range(2):
        world = kept_once()
        world.disk.flip_bit(file, offset + 20, 3)
        world.disk.fail("write", errno.EIO, after=after)
        with pytest.raises(OSError, match="stamper"):
            world.open()
        # What was being written when it failed.
        torn = world.disk.open(file, "write")
        torn.write_at((offset + copy_bytes * after) % file_bytes, b"torn")
        assert world.open_again().found == kept


@pytest.mark.parametrize("after", [0, 1])
def test_after_an_error_the_copy_that_it_left_behind_is_the_first_to_be_written(after: int) -> None:
    world = kept_once()
    directory = world.open()
    world.disk.fail("sync", errno.ENOSPC, after=after)
    assert world.keep(directory, newer) != [None]
    newest = Kept(7, newer.ceiling_ms + 1)
    world.disk.fail("write", errno.ENOSPC, after=1)
    assert world.keep(directory, newest) != [None]
    world.disk.heal()
    # The other one is on its way when the power goes.
    world.disk.open(file, "write").write_at(copy_bytes * (1 - after), b"torn")
    assert world.open_again().found == newest


def test_a_file_that_was_cut_or_goes_on_is_found_wherever() -> None:
    whole = kept_once().content()
    damaged = [whole[:size] for size in (*range(0, len(whole), 97), len(whole) - 1)]
    damaged += [whole + b"\n", whole + whole, b"\n", b"x" * file_bytes]
    for content in damaged:
        world = World()
        world.open().close()
        world.overwrite(content)
        with pytest.raises(FatalError, match="is damaged"):
            world.open()


def test_copies_of_two_stampers_are_not_chosen_from() -> None:
    world = kept_once()
    world.overwrite(world.content()[:copy_bytes] + kept_once(Kept(8, 5)).content()[copy_bytes:])
    with pytest.raises(FatalError, match="is damaged"):
        world.open()


@pytest.mark.parametrize(
    ("line", "saying"),
    [
        (b"ydht-stamper 2 replicator-1 7 1767225602000 more", "format that this version"),
        (b"ydht-stamper 1 replicator-1 7", "format that this version"),
        (b"ydht-stamper 1 replicator-1 -7 5", "format that this version"),
        (b"ydht-stamper 1 replicator-1 0 5", "numbers that no replicator"),
        (b"ydht-stamper 1 replicator-1 4294967296 5", "numbers that no replicator"),
        (b"ydht-stamper 1 replicator-1 7 281474976710656", "numbers that no replicator"),
    ],
)
def test_a_line_whose_checksum_is_right_is_still_read_with_care(line: bytes, saying: str) -> None:
    world = World()
    world.open().close()
    copy = b"%s %08x\n" % (line, google_crc32c.value(line))
    world.overwrite(copy.ljust(copy_bytes, b"\0") * 2)
    with pytest.raises(FatalError, match=saying):
        world.open()


def test_once_the_damaged_file_is_moved_away_the_replicator_starts_anew() -> None:
    world = kept_once()
    world.disk.flip_bit(file, 20, 3)
    world.disk.flip_bit(file, copy_bytes + 20, 3)
    with pytest.raises(FatalError):
        world.open()
    world.disk.rename(file, file.with_name("stamper.damaged"))
    assert world.open().found is None


@pytest.mark.parametrize("seed", range(200))
def test_a_power_cut_at_any_moment_leaves_the_old_or_the_new(seed: int) -> None:
    world = World(seed)
    draw = random.Random(-seed)
    durable: Kept | None = None
    for number in range(1, 12):
        if durable is not None and draw.random() < 0.3:
            world.disk.flip_bit(file, draw.randrange(file_bytes), draw.randrange(8))
        directory = world.open()
        assert directory.found == durable
        reports: list[OSError | None] = []
        wanted = Kept(7, number * 1_000)
        directory.keep_soon(wanted, reports.append)
        world.timeline.advance(draw.uniform(0, 0.003))
        if draw.random() < 0.5:
            world.disk.crash()
        else:
            world.disk.kill()
        found = world.open().found
        assert found == wanted if reports else found in (durable, wanted)
        durable = found
        # What a killed process has left readable becomes durable with the next opening.
        world.disk.crash()


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_failing_disk_is_reported_and_leaves_the_old_or_the_new(
    operation: Operation, after: int
) -> None:
    world = kept_once()
    directory = world.open()
    world.disk.fail(operation, errno.EIO, after=after)
    (report,) = world.keep(directory, newer)
    assert report is not None
    assert report.errno == errno.EIO
    world.disk.crash()
    assert world.open().found in (kept, newer)


@pytest.mark.parametrize("operation", ["open", "write", "sync", "rename", "sync_directory"])
def test_a_disk_that_fails_while_the_file_is_made_leaves_nothing_that_is_wrong(
    operation: Operation,
) -> None:
    for after in range(3):
        world = World()
        world.disk.fail(operation, errno.ENOSPC, after=after)
        with suppress(OSError):
            assert world.open().found is None
        world.disk.crash()
        world.disk.heal()
        directory = world.open()
        assert directory.found is None
        assert world.keep(directory, kept) == [None]


def test_on_a_disk_without_any_space_it_is_opened_and_kept_as_ever() -> None:
    world = kept_once()
    world.disk.capacity_bytes = 0
    directory = world.open()
    assert world.keep(directory, newer) == [None]
    world.disk.crash()
    assert world.open().found == newer


def test_without_space_the_first_opening_says_where_it_is_missing() -> None:
    world = World()
    world.disk.capacity_bytes = 0
    with pytest.raises(OSError, match="No space left") as caught:
        world.open()
    told = str(disk_failure(caught.value))
    assert told.startswith(f"{path}/stamper.tmp cannot be written (No space left on device): free")
    world.disk.capacity_bytes = 1 << 20
    assert world.open().found is None
