"""The type of the file system that holds a file, as the kernel's table of mounts has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime import file_systems
from services.runtime.file_systems import file_system_of, heeds_synced_writes

table = b"""\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:27 / /shared rw,relatime shared:7 master:1 - 9p host rw,trans=virtio
31 27 0:28 / /shared/fast rw - xfs /dev/vdb rw
32 27 0:29 / /with\\040blank rw - fuse.sshfs there rw
33 27 0:30 / /twice rw - ext4 /dev/vdc rw
34 33 0:31 / /twice rw - fuse there rw
cut short
"""


@pytest.fixture(autouse=True)
def _mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "mountinfo"
    place.write_bytes(table)
    monkeypatch.setattr(file_systems, "mounts", place)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/data/log-1", b"ext4"),
        ("/shared", b"9p"),
        ("/shared/log-1", b"9p"),
        ("/shared/a/../log-1", b"9p"),
        ("/sharedless/log-1", b"ext4"),
        ("/shared/fast/log-1", b"xfs"),
        ("/with blank/log-1", b"fuse.sshfs"),
        ("/twice/log-1", b"fuse"),
    ],
)
def test_a_file_lies_in_the_nearest_mount(path: str, found: bytes) -> None:
    assert file_system_of(Path(path)) == found


@pytest.mark.parametrize(
    ("path", "heeds"),
    [("/data/log-1", True), ("/shared/fast/log-1", True), ("/shared/log-1", False)],
)
def test_only_those_that_are_known_to_heed_it_are_asked_to_sync_what_they_write(
    path: str, heeds: bool
) -> None:
    assert heeds_synced_writes(Path(path)) is heeds


def test_where_nothing_tells_of_mounts_no_file_system_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_systems, "mounts", tmp_path / "missing")
    assert file_system_of(tmp_path) is None
    assert not heeds_synced_writes(tmp_path)


def test_a_link_counts_as_the_place_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to(there)
    line = b"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / %s rw - 9p b rw\n" % bytes(there)
    (tmp_path / "mountinfo").write_bytes(line)
    assert file_system_of(tmp_path / "link" / "log-1") == b"9p"
