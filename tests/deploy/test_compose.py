"""compose.yaml holds together, and gives nobody more than it needs."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any
from urllib.parse import urlsplit

import pytest

from services.core.cluster import members_max
from services.runtime.settings import variable_of
from tests.deploy.compose_file import compose, containers, ours, started_by
from tests.deploy.started import docker_stage, port_of, script, services
from tests.tidy.tree import root

one_shots = {"secrets", "migrate"}


def ports_of(name: str) -> set[int]:
    """The ports that a container of ours listens on, by what it runs."""
    return {port_of(services[ours()[name]["command"][-1].removeprefix("services.")])}


def config(*profiles: str, **variables: str) -> subprocess.CompletedProcess[str]:
    options = [f"--profile={profile}" for profile in profiles]
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(  # noqa: S603  A fixed command.
        ["docker-compose", "--file=compose.yaml", *options, "config"],  # noqa: S607  As a user calls it.
        cwd=root,
        env={**environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_docker_compose_understands_it() -> None:
    done = config("tracing", CLUSTER_SIZE="5", PUBLISH_HOST="10.0.0.1")
    assert done.returncode == 0, done.stderr
    assert "replicas: 5" in done.stdout
    assert "jaeger:" in done.stdout
    assert not done.stderr


def test_tracing_is_there_only_for_who_asks() -> None:
    assert containers()["jaeger"]["profiles"] == ["tracing"]
    assert all("profiles" not in each for name, each in containers().items() if name != "jaeger")


@pytest.mark.parametrize("name", sorted(containers()))
def test_a_container_can_do_no_more_than_it_needs(name: str) -> None:
    container = containers()[name]
    assert container["read_only"]
    assert container["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in container["security_opt"]
    assert not container.keys() & {"privileged", "cap_add", "pid", "ipc", "devices"}
    assert "root" not in str(container.get("user", "")).split(":")
    # A tag that moves is another image tomorrow.
    assert re.fullmatch(r"[a-z/]+:v?[0-9][0-9a-z.-]*", container["image"])
    if name not in one_shots | {"jaeger"}:
        assert container["healthcheck"]["test"][0] == "CMD"
        assert container["restart"] == "unless-stopped"


def test_the_image_is_run_by_nobody_in_particular() -> None:
    last = list(docker_stage(last=True))
    assert ("USER", "10001:10001") in last
    assert last[0][1] == next(docker_stage(last=False))[1].removesuffix(" AS build")
    assert not any("apt-get" in rest for _, rest in last)


def test_no_secret_stands_in_it() -> None:
    for name, container in containers().items():
        for variable, value in container.get("environment", {}).items():
            if re.search("SECRET|PEPPER|PASSWORD|DATABASE_URL", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert str(value).startswith("/secrets/")


@pytest.mark.parametrize("name", sorted(containers()))
def test_what_a_container_reads_from_files_is_made_and_mounted(name: str) -> None:
    made = {"/secrets/ydht/cluster_secret", "/secrets/ydht/jwt_secret", "/secrets/ydht/key_pepper",
            "/secrets/ydht/database_url", "/secrets/postgres/password",
            "/secrets/grafana/password"}  # fmt: skip
    container = containers()[name]
    mounted = {mount.split(":")[1] for mount in container.get("volumes", [])}
    for variable, value in container.get("environment", {}).items():
        if variable.endswith("_FILE"):
            assert value in made
            assert value.rpartition("/")[0] in mounted


def test_secrets_are_written_by_one_and_read_by_all_others() -> None:
    for name, container in containers().items():
        for mount in container.get("volumes", []):
            source, _, rest = mount.partition(":")
            if source.endswith("secrets"):
                assert rest.endswith(":ro") == (name != "secrets"), f"{name}: {mount}"
    assert script in containers()["secrets"]["command"]


def test_a_volume_is_written_by_one_service_and_nodes_share_theirs() -> None:
    writers: dict[str, list[str]] = {}
    for name, container in containers().items():
        for mount in container.get("volumes", []):
            source = mount.partition(":")[0]
            if not mount.endswith(":ro"):
                writers.setdefault(source, []).append(name)
    assert writers.keys() == compose()["volumes"].keys()
    assert all(len(names) == 1 for names in writers.values())
    assert writers["nodes"] == ["dhtnode"]
    assert writers["replicator-1"] == ["replicator-1"]
    assert writers["replicator-2"] == ["replicator-2"]


@pytest.mark.parametrize("name", sorted(set(ours()) - one_shots))
def test_services_are_told_of_services_that_are_there(name: str) -> None:
    public = {"PUBLIC_URL", "GATEWAY_PUBLIC_URL", "CORS_ORIGINS"}
    environ = started_by(name, ours()[name]).environ
    for variable, value in environ.items():
        if variable.endswith(("_URL", "_URLS")) and variable not in public:
            for url in value.split(","):
                parts = urlsplit(url)
                assert str(parts.port) in {str(port) for port in ports_of(parts.hostname or "")}


@pytest.mark.parametrize("name", sorted(set(ours()) - one_shots))
def test_health_is_asked_for_where_the_service_listens(name: str) -> None:
    container = ours()[name]
    *probe, port = container["healthcheck"]["test"]
    assert probe == ["CMD", "deploy/image/probe.sh"]
    assert {int(port)} == ports_of(name)
    settings = services[container["command"][-1].removeprefix("services.")]
    assert variable_of(settings, "port") not in container["environment"]


def test_only_doors_are_open_and_only_to_this_machine() -> None:
    published: dict[str, Any] = {
        name: container["ports"] for name, container in containers().items() if "ports" in container
    }
    assert not published.keys() & {"postgres", "dhtnode", "replicator-1", "replicator-2"}
    for mappings in published.values():
        assert all(each.startswith("127.0.0.1:") for each in mappings)


def test_as_many_nodes_are_started_as_the_cluster_is_to_have() -> None:
    done = config(CLUSTER_SIZE="7")
    assert len(re.findall(r"CLUSTER_SIZE: '7'", done.stdout)) == 2
    assert "replicas: 7" in done.stdout
    assert int(containers()["dhtnode"]["deploy"]["replicas"]) <= members_max
