"""What the image is made of is there, and the scripts that it runs do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.dhtnode.settings import NodeSettings
from services.runtime.database_url import parse_database_url
from services.runtime.settings import load
from services.usermanager.settings import UserManagerSettings
from tests.deploy.started import docker_stage, script
from tests.integration.node_process import node_process
from tests.tidy.tree import root

scripts = root / "deploy" / "image"


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  Scripts of ours.
        command,
        cwd=root,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def copied() -> list[str]:
    """What the Dockerfile copies from here."""
    lines = [rest for instruction, rest in docker_stage(last=False) if instruction == "COPY"]
    return [name for line in lines for name in line.split()[:-1]]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (root / ".dockerignore").read_text().splitlines()
    taken = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert set(copied()) == taken
    assert all((root / name).exists() for name in copied())


def test_every_package_of_ours_is_in_it() -> None:
    packages = {path.parent.name for path in root.glob("*/__init__.py")} - {"tests", "bench"}
    assert packages <= set(copied())


def test_its_scripts_can_be_run() -> None:
    for path in (*scripts.glob("*.sh"), root / "deploy" / "try_image.sh"):
        assert os.access(path, os.X_OK), path
        assert run("bash", "-n", path).returncode == 0


def make_secrets(folder: Path) -> subprocess.CompletedProcess[str]:
    options = [f"--{name}={folder / name}" for name in ("postgres", "grafana")]
    return run(sys.executable, root / script, folder / "ydht", *options, PYTHONPATH=str(root))


def test_secrets_are_made_once_and_are_what_services_take(tmp_path: Path) -> None:
    assert make_secrets(tmp_path).returncode == 0
    made = {path: path.read_text() for path in tmp_path.glob("*/*")}
    assert {str(path.relative_to(tmp_path)) for path in made} == {
        "ydht/cluster_secret", "ydht/jwt_secret", "ydht/key_pepper", "ydht/database_url",
        "postgres/password", "grafana/password",
    }  # fmt: skip
    assert len(set(made.values())) == len(made)
    again = make_secrets(tmp_path)
    assert (again.returncode, again.stdout) == (0, "")
    assert {path: path.read_text() for path in tmp_path.glob("*/*")} == made
    names = ("cluster_secret", "jwt_secret", "key_pepper", "database_url")
    files = {f"{name.upper()}_FILE": str(tmp_path / "ydht" / name) for name in names}
    settings = load(UserManagerSettings, {**files, "DATA_DIR": str(tmp_path)})
    address = parse_database_url(settings.database_url or "")
    assert address.password == (tmp_path / "postgres" / "password").read_text().strip()
    assert (address.host, address.user, address.database) == ("postgres", "ydht", "ydht")


def test_each_secret_can_be_read_by_those_who_need_it_only(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    for path in tmp_path.glob("*/*"):
        # PostgreSQL and Grafana run as other users, and are shown nothing but their own.
        wanted = 0o400 if path.parent.name == "ydht" else 0o444
        assert path.stat().st_mode & 0o777 == wanted, path


def test_a_secret_that_was_cut_off_in_the_making_is_made_anew(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    lost = tmp_path / "ydht" / "database_url"
    held = lost.read_text()
    lost.unlink()
    (lost.parent / f".{lost.name}.1.draft").write_text("half of")
    make_secrets(tmp_path)
    assert lost.read_text() == held


def test_where_secrets_cannot_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "ydht").write_text("a file")
    done = make_secrets(tmp_path)
    assert done.returncode == 78
    assert done.stderr.startswith(f"ydht: cannot write {tmp_path}/ydht")


@pytest.mark.parametrize(
    ("host", "told"), [("0123456789ab", "0123456789ab"), ("012345678901", "10.0.0.7")]
)
def test_a_container_says_where_it_is_by_a_name_that_is_one(
    tmp_path: Path, host: str, told: str
) -> None:
    stand_in = tmp_path / "hostname"
    stand_in.write_text(f'#!/bin/sh\n[ -n "$1" ] && echo 10.0.0.7 fd00::7 || echo {host}\n')
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run(scripts / "entry.sh", "printenv", "ADVERTISE_HOST", PATH=path)
    assert done.stdout.strip() == told
    secret = "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe"
    environ = {"CLUSTER_SECRET": secret, "BIND_HOST": "::", "ADVERTISE_HOST": told}
    assert load(NodeSettings, environ).advertised_host == told


def test_what_was_told_of_where_it_is_stays() -> None:
    done = run(scripts / "entry.sh", "printenv", "ADVERTISE_HOST", ADVERTISE_HOST="node-1.internal")
    assert done.stdout.strip() == "node-1.internal"


def test_a_container_ends_as_what_it_runs_ends() -> None:
    assert run(scripts / "entry.sh", "sh", "-c", "exit 78").returncode == 78


async def test_health_is_what_the_service_says(tmp_path: Path) -> None:
    async with node_process(tmp_path / "data") as node:
        well = run(scripts / "probe.sh", str(node.port))
        assert well.returncode == 0
        assert '"service":"dhtnode"' in well.stdout
        await node.kill()
        assert run(scripts / "probe.sh", str(node.port)).returncode != 0
