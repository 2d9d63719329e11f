"""Several processes share a run: which tests stay together, and which run while no other does.

`make test` hands tests to two processes, for most of them wait: for a lease to end, for a killed
service to start. A file of tests is run by one process, and so is a package with a conftest of
its own, whose tests share what is dear to start. They are begun in the order in which they are
collected, in which the long ones come first, so that the end finds both at work.

A test marked `alone` compares how long something takes. It waits until the other processes have
come to the end of their tests, and those wait for it. That is no part of the time it may take.
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

directory_key = pytest.StashKey[Path]()


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out files and packages, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

        self._shared: dict[Path, bool] = {}

    def _split_scope(self, nodeid: str) -> str:
        """The name of what is handed out as one. Asked several times of each test."""
        file = Path(nodeid.partition("::")[0])
        package = file.parent
        if package not in self._shared:
            has_own = (self.config.rootpath / package / "conftest.py").exists()
            self._shared[package] = has_own and package.name != "tests"
        return str(package if self._shared[package] else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the process that hands out tests, for each of those that run them."""
    node.workerinput["turns"] = str(node.config.stash[directory_key])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: compares times, so no other test runs meanwhile")
    given: dict[str, str] | None = getattr(config, "workerinput", None)
    if given is not None:
        config.stash[directory_key] = Path(given["turns"])
    elif config.getoption("numprocesses", None):
        directory = TemporaryDirectory(prefix="ydht-turns-")
        config.add_cleanup(directory.cleanup)
        config.stash[directory_key] = Path(directory.name)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Outside of everything else, and so of the timeout."""
    directory = item.config.stash.get(directory_key, None)
    if directory is None:
        return (yield)
    with turn(directory, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def turn(directory: Path, *, alone: bool) -> Iterator[None]:
    """Together with others, or alone. Nobody begins any more while one waits to be alone."""
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with ExitStack() as inside:
        with (directory / "door").open("w") as door:
            fcntl.flock(door, how)
            room = inside.enter_context((directory / "room").open("w"))
            fcntl.flock(room, how)
        yield
