"""A supervisor in a process of its own, as tests see it: what it shows, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.free_ports import free_port
from tests.waiting import wait_until

programs = Path(__file__).with_name("programs")
service = str(programs / "service.py")


@dataclass
class Supervised:
    """A running supervisor. Its marker is in the environment of every process it leads to."""

    process: asyncio.subprocess.Process
    data_dir: Path
    marker: str
    output: Path

    @property
    def shown(self) -> str:
        return self.output.read_text()

    async def until_shown(self, text: str, times: int = 1) -> None:
        def condition() -> bool:
            over = self.process.returncode is not None
            found = self.shown.count(text) >= times
            assert found or not over, f"it ended without showing {text!r}:\n{self.shown}"
            return found

        await wait_until(condition, f"it shows {text!r} in {self.output}")

    async def until_up(self) -> dict[str, Any]:
        await self.until_shown("Everything is ready.")
        return self.document()

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / "up.json").read_text())
        return found

    async def new_pid(self, name: str, old: int) -> int:
        """The pid of a service once it is another one."""

        def condition() -> int | None:
            pid = self.document()["pids"].get(name)
            return pid if isinstance(pid, int) and pid != old else None

        return await wait_until(condition, f"{name} has another pid than {old}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()

    def left(self) -> list[int]:
        """Every process with our marker in its environment, the supervisor's own included."""
        return processes_with(self.marker)

    async def until_none_left(self) -> None:
        await wait_until(lambda: not self.left(), "no process is left")


def processes_with(marker: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                if marker.encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
    return found


@asynccontextmanager
async def supervised(
    command: Sequence[str], data_dir: Path, environment: dict[str, str] | None = None
) -> AsyncIterator[Supervised]:
    """Start a supervisor with these arguments of Python, and leave nothing of it behind."""
    marker = f"marker-{uuid.uuid4().hex}"
    output = data_dir.with_name(f"{marker}.out")
    with output.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {}), "TEST_MARKER": marker},
            start_new_session=True,
        )
    supervisor = Supervised(process, data_dir, marker, output)
    try:
        yield supervisor
        assert "never retrieved" not in supervisor.shown
    finally:
        for pid in supervisor.left():
            with suppress(psutil.Error):
                psutil.Process(pid).kill()
        await process.wait()


def table(rows: Sequence[dict[str, Any]], data_dir: Path) -> list[str]:
    """The arguments that run a table."""
    return [str(programs / "run_table.py"), str(data_dir), json.dumps(list(rows))]


def serving(name: str, stage: str, *moods: str, **more: Any) -> dict[str, Any]:
    """The row of one example service."""
    port = free_port()
    command = [service, str(port), *moods]
    return {"name": name, "stage": stage, "command": command, "port": port, **more}
