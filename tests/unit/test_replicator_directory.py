"""A replicator's directory: one owner at a time, and a stamper that is right or refused."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FatalError
from services.core.hlc import stamper_max, time_ms_max
from services.replicator.directory import Kept, ReplicatorDirectory, stamper_name
from services.runtime.clock import FakeClock, Timeline
from services.runtime.disk import DirectoryInUse, SystemDisk, directory_mode
from services.runtime.fake_disk import FakeDisk, Operation

path = Path("/data/replicators/replicator-1")
file = path / stamper_name
kept = Kept(7, 1_767_225_602_000)


class World:
    """A disk that forgets and fails, and one process after the other that uses it."""

    def __init__(self, seed: int = 1) -> None:
        self.timeline = Timeline()
        self.disk = FakeDisk(random.Random(seed), FakeClock(self.timeline))

    def open(self, replicator_id: str = "replicator-1") -> ReplicatorDirectory:
        return ReplicatorDirectory.open(self.disk, path, replicator_id)

    def keep(self, directory: ReplicatorDirectory, what: Kept) -> list[OSError | None]:
        """Keep it, as far as the timeline has to go for that; what was reported."""
        reports: list[OSError | None] = []
        directory.keep_soon(what, reports.append)
        while not reports and self.timeline.step():
            pass
        return reports

    def overwrite(self, content: bytes) -> None:
        if self.disk.exists(file):
            self.disk.remove(file)
        self.disk.replace(file, content)

    def content(self) -> bytes:
        return self.disk.read(file, 1_000)


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


def test_the_file_is_a_line_that_people_can_read() -> None:
    assert kept_once().content() == b"ydht-stamper 1 replicator-1 7 1767225602000 7bc3b11d\n"


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


@given(st.integers(0, 500), st.integers(0, 7))
def test_every_flipped_bit_is_found(byte: int, bit: int) -> None:
    world = kept_once()
    size = len(world.content())
    world.disk.flip_bit(file, byte % size, bit)
    with pytest.raises(FatalError, match=r"stamper is damaged: move that file away"):
        world.open()


def test_a_file_that_was_cut_or_goes_on_is_found_wherever() -> None:
    whole = kept_once().content()
    damaged = [whole[:size] for size in range(len(whole))]
    damaged += [whole + b"\n", whole + whole, whole + b" " * 10_000, bytes(len(whole)), b"\n"]
    for content in damaged:
        world = World()
        world.open().close()
        world.overwrite(content)
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
    world.overwrite(b"%s %08x\n" % (line, google_crc32c.value(line)))
    with pytest.raises(FatalError, match=saying):
        world.open()


def test_once_the_damaged_file_is_moved_away_the_replicator_starts_anew() -> None:
    world = kept_once()
    world.disk.flip_bit(file, 20, 3)
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


@pytest.mark.parametrize("operation", ["open", "write", "sync", "rename", "sync_directory"])
def test_a_failing_disk_is_reported_and_leaves_the_old_or_the_new(operation: Operation) -> None:
    world = kept_once()
    directory = world.open()
    world.disk.fail(operation, errno.EIO)
    newer = Kept(7, kept.ceiling_ms + 1)
    (report,) = world.keep(directory, newer)
    assert report is not None
    assert report.errno == errno.EIO
    world.disk.crash()
    assert world.open().found in (kept, newer)
