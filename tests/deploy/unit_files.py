"""The units of systemd, with what those of one prefix have in common, and specifiers put in."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.deploy.started import Started
from tests.tidy.tree import root

folder = root / "deploy" / "systemd"
common = folder / "ydht-.service.d" / "hardening.conf"
installed = "/opt/ydht/"
# By instance, what a template is tried as.
instances = {"ydht-node@": "node-1", "ydht-replicator@": "replicator-1"}


def units() -> list[Path]:
    return sorted(folder.glob("*.service"))


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Key and value of every setting."""
    for line in path.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            yield key, value


def environment_file() -> dict[str, str]:
    lines = (folder / "ydht.conf").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def started_by(unit: Path) -> Started:
    instance = instances.get(unit.stem, "")
    specifiers = {"%i": instance, "%H": "machine-1", "%S": "/var/lib", "%d": "/run/credentials"}
    environ: dict[str, str] = {}
    shared: dict[str, str] = dict(environment_file())
    command: list[str] = []
    for path in (common, unit):
        for key, value in lines_of(path):
            for short, long in specifiers.items():
                value = value.replace(short, long)
            if key == "Environment":
                told = dict(each.split("=", 1) for each in shlex.split(value))
                (shared if path == common else environ).update(told)
            elif key == "ExecStart":
                command = shlex.split(value.removeprefix(f"{installed}.venv/bin/"))
    return Started(f"systemd: {unit.name}", tuple(command), environ, shared)


def credentials_of(unit: Path) -> dict[str, str]:
    """By name, the file that each credential is read from."""
    found = [value for path in (common, unit) for key, value in lines_of(path)
             if key == "LoadCredential"]  # fmt: skip
    return dict(each.split(":", 1) for each in found)
