"""What was measured, kept: `bench/results/` has a file for each whole run, by its day.

It says where the figures come from, for they mean nothing without: the machine, the versions of
what ran, and whether hot modules were compiled.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.report import Row, figure
from services.runtime.compiled import compiled_modules

directory: Final = Path(__file__).with_name("results")
# What says its version, and is in the way of a request or is what one is compared with.
_packages: Final = ("uvloop", "httptools", "starlette", "uvicorn", "asyncpg")
_commands: Final = ("redis-server", "etcd", "wrk")
_answer_s_max: Final = 10.0


def write(measured: Mapping[str, Sequence[Row]]) -> Path:
    """Keep the rows of a whole run; another one of the same day takes its place."""
    today = datetime.now(UTC).date()
    directory.mkdir(exist_ok=True)
    path = directory / f"{today.isoformat()}.md"
    lines = [f"# Measured on {today:%d %B %Y}", "", *(f"- {line}" for line in surroundings()), ""]
    for name, rows in measured.items():
        lines += [f"## {name}", "", "| what | figure | |", "| --- | --- | --- |"]
        lines += [f"| {row.name} | {figure(row)} | {row.note} |" for row in rows]
        lines.append("")
    path.write_text("\n".join(lines))
    return path


def surroundings() -> list[str]:
    """What a figure depends on besides our code."""
    gibibytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    modules = len(compiled_modules())
    found = [
        f"{os.cpu_count()} cores ({processor()}), {gibibytes:.0f} GiB of memory",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}, "
        + (f"{modules} modules compiled" if modules else "nothing compiled"),
        ", ".join(f"{name} {version(name)}" for name in _packages),
    ]
    return found + [said for command in _commands if (said := said_version(command))]


def processor() -> str:
    """Its name, or that of its kind where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def said_version(command: str) -> str:
    """The first line of what it says of itself; nothing if it is not installed."""
    try:
        said = subprocess.run(  # noqa: S603  Commands of this module.
            [command, "--version"], capture_output=True, text=True, timeout=_answer_s_max
        )
    except FileNotFoundError:
        return ""
    # Some say it on the other stream, and one ends with 1.
    lines = (said.stdout or said.stderr).splitlines()
    return lines[0].strip() if lines else ""
