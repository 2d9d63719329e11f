"""Processor time of processes that are measured, each with all that it has started."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import psutil  # type: ignore[import-untyped]


def cpu_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """By name: what the process with this pid and its descendants have used so far. One that
    descends from several of them counts for the nearest alone."""
    parents: dict[int, int] = {}
    used_s: dict[int, float] = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess), process.oneshot():
            times = process.cpu_times()
            parents[process.pid] = process.ppid()
            used_s[process.pid] = float(times.user + times.system)
    names = {pid: name for name, pid in roots.items()}
    found = dict.fromkeys(roots, 0.0)
    for pid, seconds in used_s.items():
        ancestor = pid
        while ancestor in parents and ancestor not in names:
            ancestor = parents[ancestor]
        if ancestor in names:
            found[names[ancestor]] += seconds
    return found
