"""Every command and variable that a deployment gives is one that the code takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.core.errors import FatalError
from services.dhtnode.settings import NodeSettings
from services.replicator.settings import ReplicatorSettings
from services.runtime.setting_values import is_any_address
from services.runtime.settings import ServiceSettings
from tests.deploy import compose_file, manifests, unit_files
from tests.deploy.started import Started, check, services


def everything() -> Iterator[Started]:
    for name, container in compose_file.ours().items():
        yield compose_file.started_by(name, container)
    for unit in unit_files.units():
        yield unit_files.started_by(unit)
    for resource, pod in manifests.pods():
        for container in pod["containers"]:
            yield manifests.started_by(resource, container)


processes = list(everything())


def where(started: Started) -> str:
    return started.where


@pytest.mark.parametrize("started", processes, ids=where)
def test_what_a_process_is_told_it_reads_and_lacks_nothing(
    started: Started, tmp_path: Path
) -> None:
    check(started, tmp_path)


@pytest.mark.parametrize("kind", ["compose.yaml", "systemd", "kubernetes"])
def test_all_services_and_the_migration_are_there(kind: str) -> None:
    commands = {each.command for each in processes if each.where.startswith(kind)}
    wanted = {("python", "-m", f"services.{name}") for name in services} | {("ydht", "migrate")}
    assert wanted <= commands


@pytest.mark.parametrize("started", processes, ids=where)
def test_a_variable_that_nobody_reads_is_found(started: Started, tmp_path: Path) -> None:
    wrong = replace(started, environ={**started.environ, "NODE_IDS": "node-1"})
    with pytest.raises(FatalError, match="nobody reads NODE_IDS"):
        check(wrong, tmp_path)


def test_a_variable_that_all_are_told_and_nobody_reads_is_found(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="nobody reads CLUSTERSIZE"):
        check(replace(processes[0], shared={"CLUSTERSIZE": "3"}), tmp_path)


@pytest.mark.parametrize(
    "started", [each for each in processes if "_FILE" in "".join(each.environ)], ids=where
)
def test_a_secret_that_is_not_given_is_missed(started: Started, tmp_path: Path) -> None:
    for name in [name for name in started.environ if name.endswith("_FILE")]:
        environ = {key: value for key, value in started.environ.items() if key != name}
        with pytest.raises(FatalError, match=name.removesuffix("_FILE")):
            check(replace(started, environ=environ), tmp_path)


@pytest.mark.parametrize(
    "command", [("python", "-m", "services.nodes"), ("ydht", "upgrade"), ("sh", "-c", "true"), ()]
)
def test_a_command_that_is_none_is_found(command: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="is no command of ours"):
        check(replace(processes[0], command=command), tmp_path)


@pytest.mark.parametrize("kind", ["compose.yaml", "systemd", "kubernetes"])
def test_nodes_and_replicators_can_be_reached_and_told_apart(kind: str, tmp_path: Path) -> None:
    read = [check(each, tmp_path) for each in processes if each.where.startswith(kind)]
    for settings in read:
        if isinstance(settings, ServiceSettings):
            assert is_any_address(settings.bind_host)
            assert not is_any_address(settings.advertised_host)
    nodes = [each for each in read if isinstance(each, NodeSettings)]
    replicators = [each for each in read if isinstance(each, ReplicatorSettings)]
    assert len({each.replicator_id for each in replicators}) == len(replicators)
    # Where all are started alike, directories tell them apart.
    assert [each.nodes_dir is not None for each in nodes] == [kind == "compose.yaml"]
