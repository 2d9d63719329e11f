"""The map on disk: what was kept is read, and nothing else is taken for it."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import google_crc32c
import pytest

from services.core.cluster import ClusterMap, Member, map_bytes_max
from services.core.errors import PeerError
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.kept_map import KeptMap
from tests.integration.link_ends import log_lines

place = Path("/data/nodes/node-1")
known = ClusterMap(
    1, 1, tuple(Member(f"node-{n}", f"{n:032x}", "127.0.0.1", 8000 + n, 9000 + n) for n in (1, 2))
).encode()


class World:
    def __init__(self, seed: int = 1) -> None:
        self.timeline = Timeline()
        self.disk = FakeDisk(random.Random(seed), FakeClock(self.timeline))
        self.disk.make_directory(place)
        self.kept = KeptMap(self.disk, place)

    def keep(self, data: bytes = known) -> list[OSError | None]:
        reports: list[OSError | None] = []
        self.kept.keep_soon(data, reports.append)
        while not reports and self.timeline.step():
            pass
        return reports

    def content(self) -> bytes:
        return self.disk.read(self.kept.path, map_bytes_max)


def test_what_was_kept_is_read_after_a_power_cut() -> None:
    world = World()
    assert world.kept.read() is None
    assert world.kept.read_or_put_aside() is None
    assert world.keep() == [None]
    world.disk.crash()
    assert world.kept.read() == known
    assert world.kept.read_or_put_aside() == known


def test_every_flipped_bit_is_found_put_aside_and_told_once() -> None:
    size = len(known) + 20
    for byte in range(size):
        world = World()
        world.keep()
        world.disk.flip_bit(world.kept.path, byte, byte % 8)
        with pytest.raises(PeerError, match="map is damaged"):
            world.kept.read()
        with log_lines() as lines:
            assert world.kept.read_or_put_aside() is None
            assert world.kept.read_or_put_aside() is None
        assert [line["event"] for line in lines] == ["a kept file is put aside"]
        world.disk.crash()
        assert world.disk.names(place) == ["map.damaged"]
        assert world.keep() == [None]
        assert world.kept.read() == known


def test_a_file_that_was_cut_or_goes_on_is_found_wherever() -> None:
    world = World()
    world.keep()
    whole = world.content()
    for content in (*(whole[:size] for size in range(len(whole))), whole + b"x", known):
        world.disk.replace(world.kept.path, content)
        with pytest.raises(PeerError, match="map is damaged"):
            world.kept.read()


def test_what_has_its_checksum_and_is_no_map_is_not_taken() -> None:
    world = World()
    world.keep(b"{}")
    with pytest.raises(PeerError, match=r"/data/nodes/node-1/map: "):
        world.kept.read()
    world.disk.replace(world.kept.path, b"ydht-map 2 %08x\n" % google_crc32c.value(b"ydht-map 2 "))
    with pytest.raises(PeerError, match="format that this version does not know"):
        world.kept.read()


def test_a_disk_that_fails_is_no_damage() -> None:
    world = World()
    world.keep()
    world.disk.fail("read", errno.EIO)
    with pytest.raises(OSError, match="map"):
        world.kept.read_or_put_aside()
    assert world.kept.read() == known
