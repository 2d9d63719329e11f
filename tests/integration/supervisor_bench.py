"""A supervisor in this process, for tests that hand it rows of their own making."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.cli.datadir import DataDirectory
from services.cli.demo import DemoNews
from services.cli.rows import Probe, Restarts, Row, Stage
from services.cli.supervisor import no_demo, supervise

# Says its last word only if it is asked to stop and then let alone.
orderly = """
import signal, sys, time
def leave(*_):
    time.sleep(0.3)
    sys.exit(print("left in order"))
signal.signal(signal.SIGTERM, leave)
print("up", flush=True)
signal.pause()
"""


@dataclass
class Bench:
    directory: DataDirectory
    shown: Path

    async def supervise(
        self, *rows: Row, find_demo: Callable[[], Awaitable[DemoNews]] = no_demo
    ) -> None:
        with self.shown.open("wb") as terminal:
            await supervise(
                rows,
                self.directory,
                host="127.0.0.1",
                environment=dict(os.environ),
                find_demo=find_demo,
                terminal_fd=terminal.fileno(),
            )

    def log(self, name: str) -> str:
        path = self.directory.logs / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def says(self, name: str) -> Probe:
        async def probe() -> str | None:
            return None if self.log(name) else "it has said nothing"

        return probe


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    directory = DataDirectory.open(tmp_path / "data")
    yield Bench(directory, tmp_path / "shown")
    directory.close()


def row(
    name: str,
    stage: Stage,
    probe: Probe,
    *,
    ready_s_max: float = 30.0,
    well: Probe | None = None,
) -> Row:
    command = (sys.executable, "-c", orderly)
    return Row(
        name,
        stage,
        command,
        probe=probe,
        well=well,
        ready_s_max=ready_s_max,
        restarts=Restarts(tries=1),
    )
