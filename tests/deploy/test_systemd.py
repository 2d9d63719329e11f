"""The units of systemd are sound, and leave services little that they could do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.unit_files import (
    common,
    credentials_of,
    folder,
    installed,
    instances,
    started_by,
    units,
)

# Of 10, where 10 is a service that may do anything. That of a typical one is 9.6.
exposure_max = 2.0


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """The units as they are installed, with an installation below the folder of this test."""
    for name in ("python", "ydht"):
        program = tmp_path / "opt" / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.symlink_to(Path(sys.executable).resolve())
    placed = tmp_path / "units"
    shutil.copytree(folder, placed)
    for path in placed.rglob("*.*"):
        if path.is_file():
            text = path.read_text()
            path.write_text(text.replace(installed, f"{tmp_path}/opt/"))
    for template, instance in instances.items():
        (placed / f"{template}.service").rename(placed / f"{template}{instance}.service")
    return placed


def analyze(laid_out: Path, *command: str) -> subprocess.CompletedProcess[str]:
    names = sorted(str(path) for path in laid_out.glob("*.service"))
    return subprocess.run(  # noqa: S603  A fixed command.
        ["systemd-analyze", *command, *names],  # noqa: S607  As a user calls it.
        env={"SYSTEMD_UNIT_PATH": f"{laid_out}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_systemd_understands_them(laid_out: Path) -> None:
    done = analyze(laid_out, "verify", "--man=no", "--recursive-errors=no")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistake_in_what_they_have_in_common_would_be_found(laid_out: Path) -> None:
    dropped = laid_out / common.relative_to(folder)
    dropped.write_text(dropped.read_text().replace("ProtectHome=yes", "ProtectHomes=yes"))
    done = analyze(laid_out, "verify", "--man=no", "--recursive-errors=no")
    assert "ProtectHomes" in done.stderr


def test_what_a_service_could_do_to_its_machine_is_little(laid_out: Path) -> None:
    done = analyze(laid_out, "security", "--offline=true", f"--threshold={exposure_max * 10:.0f}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit.name)
def test_every_secret_that_a_unit_reads_is_handed_to_it_and_no_other(unit: Path) -> None:
    started = started_by(unit)
    told = {**started.shared, **started.environ}
    read = {value.rpartition("/")[2] for name, value in told.items() if name.endswith("_FILE")}
    handed = credentials_of(unit)
    assert read == set(handed)
    assert all(path == f"/etc/ydht/secrets/{name}" for name, path in handed.items())


@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit.name)
def test_state_is_kept_where_the_unit_may_write(unit: Path) -> None:
    state = next(
        line.partition("=")[2]
        for line in unit.read_text().splitlines()
        if "StateDirectory=" in line
    )
    instance = instances.get(unit.stem, "")
    assert started_by(unit).environ["DATA_DIR"] == f"/var/lib/{state.replace('%i', instance)}"
