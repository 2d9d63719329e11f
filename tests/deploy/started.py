"""Processes of ours as deployments start them, and whether the code would take what it is told."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import click

from services.cli.commands import main
from services.core.errors import FatalError
from services.dhtnode.settings import NodeSettings
from services.gateway.settings import GatewaySettings
from services.keygen.settings import KeygenSettings
from services.replicator.settings import ReplicatorSettings
from services.runtime.env_file import generate_env
from services.runtime.migrations import DatabaseToolSettings, address_from
from services.runtime.settings import ServiceSettings, describe, load, variable_of
from services.usermanager.settings import UserManagerSettings
from tests.tidy.tree import root

services: Mapping[str, type[ServiceSettings]] = {
    settings.service: settings
    for settings in (
        GatewaySettings,
        KeygenSettings,
        NodeSettings,
        ReplicatorSettings,
        UserManagerSettings,
    )
}
script = "deploy/image/make_secrets.py"


@dataclass(frozen=True, slots=True)
class Started:
    """One process: what it is told by itself, and what it is told along with all others."""

    where: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> type[ServiceSettings] | type[DatabaseToolSettings] | None:
        """By what it reads its environment; None if it reads none. FatalError for no command."""
        match self.command:
            case ("python", "-m", module) if module.removeprefix("services.") in services:
                return services[module.removeprefix("services.")]
            case ("ydht", "migrate"):
                return DatabaseToolSettings
            case ("python", path, *_) if path == script:
                return None
            case ("ydht", name, *_) if main.get_command(click.Context(main), name) is not None:
                return None
        raise FatalError(f"{self.where}: {' '.join(self.command)} is no command of ours")


def variables(settings: type[ServiceSettings] | type[DatabaseToolSettings]) -> set[str]:
    """All that it reads, in both forms."""
    names = {row.name for row in describe(settings)}
    return names | {f"{name}_FILE" for name in secrets_of(settings)}


def secrets_of(settings: type[ServiceSettings] | type[DatabaseToolSettings]) -> set[str]:
    # `describe` is for people, who need not know; the fields do.
    declared = [each.metadata["setting"] for each in fields(settings)]
    return {each.env for each in declared if each.secret}


def check(started: Started, scratch: Path) -> object:
    """FatalError unless the process would start, as far as settings go; returns what it has read.

    Files with secrets are looked for below `scratch`, where they are made with some content.
    """
    settings = started.settings
    known = set() if settings is None else variables(settings)
    anybodys = set().union(*map(variables, services.values()))
    unknown = (started.environ.keys() - known) | (started.shared.keys() - anybodys)
    # What manifests make other variables of.
    unknown -= {"POD_NAME", "POD_IP"}
    if unknown:
        raise FatalError(f"{started.where}: nobody reads {', '.join(sorted(unknown))}")
    if settings is None:
        return None
    told = {**started.shared, **started.environ}
    for name, value in told.items():
        if name.endswith("_FILE"):
            path = scratch / value.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_secret(path.name))
            told[name] = str(path)
    environ = {**told, "DATA_DIR": str(scratch / "data")}
    return address_from(environ) if settings is DatabaseToolSettings else load(settings, environ)


def _secret(name: str) -> str:
    if name == "database_url":
        return "postgresql://ydht:password@postgres/ydht"
    return generate_env()[name.upper()]


def port_of(settings: type[ServiceSettings]) -> int:
    """Where it listens unless it is told otherwise."""
    variable = variable_of(settings, "port")
    return int(next(row.default for row in describe(settings) if row.name == variable))


def docker_stage(last: bool) -> Iterator[tuple[str, str]]:
    """Instruction and rest of every line of the first or the last stage of the Dockerfile."""
    text = (root / "Dockerfile").read_text().replace("\\\n", " ")
    stages = re.split(r"^(?=FROM )", text, flags=re.M)[1:]
    for line in stages[-1 if last else 0].splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            yield instruction, rest
