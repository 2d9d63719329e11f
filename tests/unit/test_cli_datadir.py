from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.datadir import DataDirectory
from services.core.errors import FatalError


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    directory = DataDirectory.open(tmp_path / "new" / "data")
    yield directory
    directory.close()


def test_a_new_directory_is_private(directory: DataDirectory) -> None:
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.logs.stat().st_mode) == 0o700


def test_the_mode_of_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    DataDirectory.open(tmp_path).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_only_one_at_a_time_has_it_and_the_other_is_told_who(directory: DataDirectory) -> None:
    with pytest.raises(FatalError, match=rf"in use by another `ydht up` \(pid {os.getpid()}\)"):
        DataDirectory.open(directory.path)
    directory.publish({"ready": True})
    with pytest.raises(FatalError):
        DataDirectory.open(directory.path)
    assert (directory.path / "up.json").exists(), "a refused start touches nothing"


def test_a_pid_shorter_than_the_last_leaves_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "up.lock").write_text("999999999999\n")
    directory = DataDirectory.open(tmp_path)
    assert (tmp_path / "up.lock").read_text() == f"{os.getpid()}\n"
    directory.close()


def test_what_is_published_is_whole_and_private_and_replaces_the_last(
    directory: DataDirectory,
) -> None:
    path = directory.path / "up.json"
    for number in (1, 2):
        directory.publish({"ready": True, "pids": {"gateway": number}})
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert json.loads(path.read_text())["pids"]["gateway"] == number
    assert list(directory.path.glob(".up.json.*")) == []


def test_what_a_killed_supervisor_published_is_gone_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text("{}")
    (tmp_path / ".up.json.half").write_text("{")
    directory = DataDirectory.open(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "up.lock"]
    directory.close()


def test_closing_takes_the_publication_along(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path)
    directory.publish({})
    directory.close()
    assert not (tmp_path / "up.json").exists()
    DataDirectory.open(tmp_path).close()


async def test_without_leftovers_there_is_nothing_to_wait_for(directory: DataDirectory) -> None:
    said: list[str] = []
    descriptor = await directory.outlast_leftovers(said.append)
    assert said == []
    assert os.fstat(descriptor).st_ino == (directory.path / "children.lock").stat().st_ino


def test_a_directory_where_nothing_can_be_made_is_one_line_with_what_to_do() -> None:
    # Refused to root as well, unlike a mode without write permission.
    with pytest.raises(
        FatalError,
        match=r"data directory /proc/ydht can't be used: [^(]*: choose another --data-dir$",
    ):
        DataDirectory.open(Path("/proc/ydht"))


def test_a_directory_below_a_file_names_the_file_system_s_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FatalError, match=r"Not a directory: choose another --data-dir$"):
        DataDirectory.open(tmp_path / "file" / "data")


def test_a_link_to_nothing_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tmp_path / "gone")
    with pytest.raises(FatalError, match=rf"is a link to {tmp_path}/gone, which is not there: "):
        DataDirectory.open(tmp_path / "data")
