"""What is compiled can be, runs where services are started, and not within tests."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest

import compile as compiling
from services.core import wire
from services.core.errors import FatalError
from services.runtime.compiled import check_compiled, compiled_modules
from tests.tidy.tree import modules_under, root, short

compiled = {root / path for path in compiling.modules}
interpreted = [
    path
    for folder in ("services", "tests/simulation", "bench")
    for path in modules_under(folder)
    if path not in compiled
]


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _bases(path: Path) -> set[str]:
    """The modules that classes of this one inherit from."""
    tree = ast.parse(path.read_text())
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = alias.asname or alias.name
                origin[name] = node.module
                origin[f"{name}."] = f"{node.module}.{alias.name}"
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                first, _, rest = ast.unparse(base).partition(".")
                found.add(origin.get(f"{first}." if rest else first, ""))
    return found


def test_every_compiled_module_is_there_and_listed_once_in_order() -> None:
    assert [path for path in compiling.modules if not (root / path).is_file()] == []
    assert list(compiling.modules) == sorted(set(compiling.modules))


def test_every_compiled_module_is_a_part_of_the_repository() -> None:
    # What is listed and was never added is there for nobody else, who then cannot compile at all.
    command = ["git", "ls-files", "--cached", "services"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)  # noqa: S603 - a fixed command
    assert sorted(set(compiling.modules) - set(listed.stdout.splitlines())) == []


@pytest.mark.parametrize("path", interpreted, ids=short)
def test_no_class_inherits_from_one_that_is_compiled_unless_it_is_too(path: Path) -> None:
    assert not _bases(path) & {_dotted(each) for each in compiled}


@pytest.mark.parametrize("path", sorted(compiled), ids=short)
def test_no_compiled_class_has_keywords_behind_its_bases(path: Path) -> None:
    classes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
    assert [each.name for each in classes if each.keywords] == []


def test_tests_run_the_sources() -> None:
    assert Path(wire.__file__).suffix == ".py"
    assert compiled_modules() == []


@pytest.fixture
def module_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A source and what was compiled of it, loaded as a module of services."""
    source, made = tmp_path / "noun.py", tmp_path / f"noun{EXTENSION_SUFFIXES[0]}"
    module = ModuleType("services.core.noun")
    module.__file__ = str(made)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for path in (source, made):
        path.touch()
    return source, made


def test_a_service_does_not_start_on_what_is_older_than_its_source(
    module_of: tuple[Path, Path],
) -> None:
    source, made = module_of
    os.utime(made, (1_000, 1_000))
    os.utime(source, (1_001, 1_001))
    with pytest.raises(
        FatalError, match=r"noun.py was changed since it was compiled.*make compile"
    ):
        check_compiled()


def test_what_is_as_new_as_its_source_runs(module_of: tuple[Path, Path]) -> None:
    source, made = module_of
    os.utime(made, (1_000, 1_000))
    os.utime(source, (1_000, 1_000))
    assert compiled_modules() == [made]
    check_compiled()


def test_where_no_source_is_installed_nothing_is_missed(module_of: tuple[Path, Path]) -> None:
    source, _ = module_of
    source.unlink()
    check_compiled()
