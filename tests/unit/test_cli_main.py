from __future__ import annotations

import logging
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from services.cli import commands as cli
from services.core.errors import FatalError, RestartLater
from services.runtime.env_file import read_env


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.main, words)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_exists_and_explains_itself(name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert out.startswith(f"Usage: main {name} ")


def test_help_names_every_command_without_importing_any() -> None:
    script = (
        "import sys\n"
        "from services.cli.commands import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "sys.exit(str([m for m in sys.modules if m in ('asyncpg', 'httpx', 'services.cli.up')]))"
    )
    result = subprocess.run(  # noqa: S603  The script above.
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.stderr.strip() == "[]"
    for name in cli.commands:
        assert f"  {name} " in result.stdout


def test_the_version_is_the_distributions() -> None:
    assert run("--version")[1].split()[0] == "ydht"


def test_an_unknown_command_is_refused_by_name() -> None:
    code, _, err = run("fly")
    assert code == 2
    assert "No such command 'fly'" in err


@pytest.mark.parametrize(
    ("kind", "code"), [(FatalError, 78), (RestartLater, 1)], ids=["for good", "passing"]
)
def test_a_fatal_error_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, kind: type[FatalError], code: int
) -> None:
    @click.command()
    def fail() -> None:
        raise kind("the disk\nis full")

    monkeypatch.setattr(sys.modules[__name__], "fail", fail, raising=False)
    lazy = cli.LazyCommand(__name__, "fail", "Fails.")
    monkeypatch.setitem(cli.commands, "fail", lazy)
    assert run("fail") == (code, "", "ydht: the disk is full\n")


def test_what_goes_wrong_inside_a_command_shows_no_local_variables() -> None:
    script = (
        "import sys, click\n"
        "from services.cli import commands as cli\n"
        "from services.runtime import telemetry\n"
        "@click.command()\n"
        "def fail():\n"
        "    drawer = 'hunter' + '2'\n"
        "    try:\n"
        "        raise ValueError('no change')\n"
        "    except ValueError:\n"
        "        telemetry.logger('shop').exception('jammed')\n"
        "    raise RuntimeError('on strike')\n"
        "cli.commands['fail'] = cli.LazyCommand('__main__', 'fail', 'Fails.')\n"
        "cli.main(['fail'])\n"
    )
    result = subprocess.run(  # noqa: S603  The script above.
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert "ydht" in result.stderr.splitlines()[0]
    assert "jammed" in result.stderr.splitlines()[0]
    for reason in ("ValueError: no change", "RuntimeError: on strike"):
        assert reason in result.stderr
    assert "hunter2" not in result.stderr


def test_init_makes_secrets_once_readable_by_their_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    path = data_dir / "ydht.env"
    code, out, _ = run("init", "--data-dir", str(data_dir))
    assert (code, out) == (0, f"Wrote {path} with new secrets, readable by you only.\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made = read_env(path)
    assert {"JWT_SECRET", "CLUSTER_SECRET", "KEY_PEPPER"} <= made.keys()

    code, out, _ = run("init", "--data-dir", str(data_dir))
    assert (code, out) == (0, f"{path} is already there and stays as it is.\n")
    assert read_env(path) == made


def test_a_tilde_in_data_dir_means_to_commands_what_it_means_to_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA_DIR", "~/data")
    assert run("init")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home" / "data" / "ydht.env").exists()
    # What is named on the command line stands above the environment.
    assert run("init", "--data-dir", "other")[0] == 0
    assert (tmp_path / "other" / "ydht.env").exists()
    code, _, err = run("db", "--data-dir", "~no-such-user/data")
    assert (code, "~no-such-user" in err) == (2, True)


@pytest.mark.parametrize("command", ["init", "up", "db", "migrate"])
def test_a_data_directory_that_is_a_file_is_one_line(tmp_path: Path, command: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = run(command, "--data-dir", str(file))
    assert code == 78
    expected = f"data directory {file} is not a directory: choose another --data-dir"
    assert err == f"ydht: {expected}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nodes", "0"), "0 is not in the range"),
        (("--nodes", "many"), "'many' is not a valid integer"),
        (("--replicators", "9"), "9 is not in the range"),
        (("--port-base", "64536"), "64536 is not in the range"),
        (("--port-base", "64530"), "links of keygen would be at 65536"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_runs(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = run("up", "--data-dir", str(tmp_path / "data"), *words)
    assert code != 0
    assert message in err


@pytest.mark.parametrize("command", ["init", "up", "db", "migrate"])
@pytest.mark.parametrize(
    ("name", "message"),
    [("", "it is empty; name a directory"), (os.fsdecode(b"D\xff"), "is not UTF-8; choose")],
)
def test_a_data_directory_without_a_proper_name_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(command, "--data-dir", name)
    assert code == 2
    assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["init", "up"])
@pytest.mark.parametrize("data", ["pg/data", "nodes/node-1"])
def test_lost_secrets_of_existing_data_are_asked_for_and_not_replaced(
    tmp_path: Path, command: str, data: str
) -> None:
    (tmp_path / data).mkdir(parents=True)
    code, _, err = run(command, "--data-dir", str(tmp_path))
    assert code == 78
    assert err.startswith(f"ydht: {tmp_path}/ydht.env is missing, and ")
    assert "bring the file back" in err
    assert not (tmp_path / "ydht.env").exists()


def test_a_directory_that_others_write_in_is_warned_of_and_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code, _, err = run("init", "--data-dir", str(tmp_path))
    assert code == 0
    holds = f"{tmp_path} holds secrets, and everybody (mode 0777) can replace them"
    assert err == f"warning: {holds}\n"
    tmp_path.chmod(0o755)
    assert run("init", "--data-dir", str(tmp_path))[2] == ""


@pytest.mark.parametrize("command", ["init", "up", "db"])
def test_too_few_open_files_are_one_line(tmp_path: Path, command: str) -> None:
    line = [sys.executable, "-m", "services.cli", command, "--data-dir", str(tmp_path / "data")]
    result = subprocess.run(  # noqa: S603  The command above.
        line,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.startswith("ydht: at most 16 files may be open at once, and 64 are ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("ours", [True, False])
def test_ctrl_c_during_the_imports_is_silent(*, ours: bool) -> None:
    # The moment is made certain: it comes when the commands, or the first module that is not ours,
    # are looked for.
    moment = "name == 'services.cli.commands'" if ours else "not name.startswith('services')"
    script = (
        "import os, sys\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if {moment}:\n"
        "            os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, CtrlC())\n"
        "from services.cli.__main__ import main\n"
        "main()\n"
    )
    result = subprocess.run(  # noqa: S603  The script above.
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    # Of which a shell makes 130.
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_inside_a_command_says_nothing_and_leaves_what_it_has_entered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = []

    @click.command()
    def wait() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            left.append("in order")

    monkeypatch.setattr(sys.modules[__name__], "wait", wait, raising=False)
    monkeypatch.setitem(cli.commands, "wait", cli.LazyCommand(__name__, "wait", "Waits."))
    assert run("wait") == (130, "", "")
    assert left == ["in order"]
