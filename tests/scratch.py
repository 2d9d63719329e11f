"""Where tests put their files: in memory with `--in-memory`, if it has room, else on disk.

What is written through to a disk takes milliseconds each time, ten of them on a machine that is
busy, and tests do that a hundred thousand times. None of them can tell: they kill processes and
not machines, after which the system has everything that it was given; what a loss of power takes
is tried with disks that are made up. `make proof` and its parts use the real disk.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

memory = Path("/dev/shm")  # noqa: S108  Whoever shares it: pytest makes a directory of our own.
# Several times what a run has at once, for that is not only on this file system but in memory.
free_bytes_min = 8 << 30
temproot_variable = "PYTEST_DEBUG_TEMPROOT"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--in-memory", action="store_true", help="put files of tests in memory, if it has room"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("in_memory") and has_room(memory):
        os.environ.setdefault(temproot_variable, str(memory))


def has_room(directory: Path) -> bool:
    """Whether it can hold a run, programs that tests write included."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    if found.f_flag & (os.ST_NOEXEC | os.ST_RDONLY):
        return False
    free: int = min(found.f_bavail * found.f_frsize, psutil.virtual_memory().available)
    return free >= free_bytes_min
