"""Small promises of the repository: named files, pinned packages, no leftovers."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tidy.tree import modules_under, root, short, tracked

project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
sources = modules_under("services", "tests", "bench", "migrations")
texts = [path for path in tracked() if path.suffix not in (".png", ".ico", ".woff2")]

# Assembled, so that this file does not find itself.
leftovers = re.compile(
    "|".join(rf"\b{a}{b}\b" for a, b in (("TO", "DO"), ("FIX", "ME"), ("XX", "X")))
)
addresses = re.compile(
    "|".join(("--(extra-)?index" + "-url", "files\\.python" + "hosted", "registry\\.npm" + "js"))
)


def package_name(requirement: str) -> str:
    return re.split(r"[\[=<>;~! ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def pins() -> dict[str, str]:
    lines = (root / "requirements.lock").read_text().splitlines()
    return {package_name(line): line for line in lines}


def test_every_package_is_pinned_exactly() -> None:
    for line in pins().values():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!]+", line), line
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    missing = {package_name(each) for each in wanted} - pins().keys()
    assert not missing


def test_every_dependency_has_its_reason_in_the_architecture() -> None:
    architecture = (root / "ARCHITECTURE.md").read_text()
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = package_name(requirement)
        assert re.search(rf"^\| `{re.escape(name)}`", architecture, re.MULTILINE), name


@pytest.mark.parametrize("path", sources, ids=short)
def test_files_are_named_for_their_noun(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "manager", "misc")


@pytest.mark.parametrize("path", sources, ids=short)
def test_every_exemption_from_lint_names_its_rule_and_its_reason(path: Path) -> None:
    lines = path.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if match := re.search(r"#\s*no" + r"qa\b(.*)", line):
            reasoned = re.match(r": [A-Z]+\d+(, [A-Z]+\d+)*[ -]+\S", match.group(1))
            explained = re.match(r": [A-Z]+\d+", match.group(1)) and above.strip().startswith("#")
            assert reasoned or explained, line.strip()


@pytest.mark.parametrize("path", [p for p in sources if "tests" in p.parts], ids=short)
def test_tests_neither_sleep_nor_skip(path: Path) -> None:
    called = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    assert not called & {"time.sleep", "pytest.skip", "pytest.mark.skip", "pytest.mark.xfail"}


def test_nothing_is_left_over_and_nothing_names_this_machine() -> None:
    for path in texts:
        text = path.read_text()
        assert not leftovers.search(text), short(path)
        assert not addresses.search(text), short(path)
        assert str(root) + "/" not in text, short(path)


def test_make_help_lists_every_target() -> None:
    makefile = (root / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert phony == described
    readme = (root / "README.md").read_text()
    assert set(re.findall(r"`make ([a-z-]+)", readme)) <= phony


@pytest.mark.parametrize("python", ["/nonexistent/python3", "/bin/false"])
def test_an_interpreter_that_does_not_run_is_one_line_of_advice(
    tmp_path: Path, python: str
) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "compile.py"):
        shutil.copy(root / name, tmp_path / name)
    result = subprocess.run(  # noqa: S603  Our own Makefile.
        ["make", f"PYTHON={python}", "run"],  # noqa: S607  As a user calls it.
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said, ending = result.stderr.splitlines()
    assert said == (
        f"{python} is not a Python that runs here. Say where one is: make PYTHON=/path/to/python3"
    )
    assert ending.startswith("make")


def test_what_still_runs_is_not_cleaned_away(tmp_path: Path) -> None:
    shutil.copy(root / "Makefile", tmp_path)
    for name in ("services", "tests", "bench", "migrations", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    python = tmp_path / ".venv/bin/python3"
    python.symlink_to(sys.executable)

    def clean() -> subprocess.CompletedProcess[str]:
        command = ["make", "clean"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603  Our own.

    with subprocess.Popen([python, "-c", "input()"], stdin=subprocess.PIPE) as running:  # noqa: S603  Ours.
        refused = clean()
        running.kill()
    assert refused.returncode != 0
    assert f"Still running from .venv: {running.pid}. Stop it first" in refused.stderr
    assert python.exists()
    assert clean().returncode == 0
    assert not python.exists()
