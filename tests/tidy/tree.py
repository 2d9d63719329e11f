"""The files of this repository, as the tidy tests read them."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

root = Path(__file__).parents[2]


def tracked(*endings: str) -> list[Path]:
    """Every file that is part of the repository, or would be after `git add`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)  # noqa: S603 - a fixed command
    paths = [root / name for name in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.name.endswith(endings or ("",))]


def modules_under(*folders: str) -> list[Path]:
    return [path for path in tracked(".py") if path.relative_to(root).parts[0] in folders]


def imports_of(path: Path) -> list[str]:
    """The dotted names a module imports, wherever in the file it does."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            found.append(node.module)
    return found


def short(path: Path) -> str:
    return str(path.relative_to(root))
