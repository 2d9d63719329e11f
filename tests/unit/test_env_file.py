"""ydht.env: made once, whole, private, and never over another; nothing else is left behind."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.core.errors import FatalError
from services.runtime.env_file import generate_env, read_env, write_env


def test_the_env_file_is_private_and_reads_back(tmp_path: Path) -> None:
    made = generate_env()
    assert set(made) == {"JWT_SECRET", "CLUSTER_SECRET", "KEY_PEPPER", "EMBEDDED_DB_PASSWORD"}
    path = tmp_path / "new" / "ydht.env"
    assert write_env(path, made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_env(path) == made
    assert [entry.name for entry in path.parent.iterdir()] == ["ydht.env"]


def test_an_existing_env_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ydht.env"
    assert write_env(path, {"A": "first"})
    assert not write_env(path, {"A": "second"})
    assert read_env(path) == {"A": "first"}


def test_a_look_at_an_existing_env_file_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ydht.env"
    assert write_env(path, {"A": "first"})
    before_ns = tmp_path.stat().st_mtime_ns
    assert not write_env(path, generate_env())
    assert tmp_path.stat().st_mtime_ns == before_ns


def test_what_a_killed_writer_leaves_is_cleared_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ydht.env"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from services.runtime.env_file import write_env\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_env(Path(sys.argv[1]), {'A': 'cut short, and longer than what comes next'})\n"
    )
    for _ in range(2):
        command = [sys.executable, "-c", script, str(path)]
        killed = subprocess.run(command, check=False)  # noqa: S603  The script above.
        assert killed.returncode == -signal.SIGKILL
        (left,) = tmp_path.iterdir()
        assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert write_env(path, {"A": "whole"})
    assert read_env(path) == {"A": "whole"}
    left.write_text("A=what one leaves that is killed while it waits\n")
    assert not write_env(path, {"A": "third"})
    assert read_env(path) == {"A": "whole"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["ydht.env"]


def test_an_env_file_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert write_env(tmp_path / "ydht.env", {"A": "first"})


def test_an_env_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FatalError, match="No space left"):
        write_env(tmp_path / "ydht.env", {"A": "first"})
    assert list(tmp_path.iterdir()) == []


def test_of_many_writers_at_once_one_wins_and_nobody_reads_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ydht.env"

    def write_and_read(number: int) -> tuple[bool, dict[str, str]]:
        won = write_env(path, {"WRITER": str(number), **generate_env()})
        return won, read_env(path)

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(write_and_read, range(64)))
    assert sum(won for won, _ in outcomes) == 1
    assert all(read == outcomes[0][1] and len(read) == 5 for _, read in outcomes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["ydht.env"]


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FatalError, match=r"cannot write .*ydht\.env"):
        write_env(tmp_path / "file" / "ydht.env", {})
