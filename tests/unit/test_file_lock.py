from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.runtime.file_lock import FileLock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_one_at_a_time_has_it_and_the_file_stays(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.take()
    assert not second.take()
    assert (first.held, second.held) == (True, False)
    first.release()
    assert second.take()
    # Letting go once more must not let go of what is another's by now.
    first.release()
    assert not FileLock(path).take()
    second.release()
    assert path.exists()


def test_the_holder_is_known_once_it_has_signed_and_only_while_it_holds(path: Path) -> None:
    path.write_text("999999999999999\n")
    lock = FileLock(path)
    assert lock.take()
    lock.sign()
    assert FileLock(path).holder() == os.getpid()
    lock.release()
    assert FileLock(path).holder() is None


@pytest.mark.parametrize("said", [b"", b"-1", b"\xff\xfe", b"1 2", b"x" * 10_000])
def test_a_file_that_names_nobody_names_nobody(path: Path, said: bytes) -> None:
    path.write_bytes(said)
    assert FileLock(path).holder() is None


def test_whoever_inherits_it_holds_it_on(path: Path) -> None:
    lock = FileLock(path)
    assert lock.take()
    inherited = os.dup(lock.descriptor)
    lock.release()
    assert not FileLock(path).take()
    os.close(inherited)
    again = FileLock(path)
    assert again.take()
    again.release()


def test_a_symbolic_link_is_not_followed_and_every_error_names_the_file(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(OSError, match=str(path)):
        FileLock(path).take()
    assert not path.with_name("elsewhere").exists()
    with pytest.raises(FileNotFoundError, match=str(path.parent / "missing" / "lock")):
        FileLock(path.parent / "missing" / "lock").take()
