"""Whether hot modules run compiled, and whether they are what their sources say.

`compile.py`, beside the sources, puts what it compiles next to each of them. Python takes that and
never looks at the source again, so whoever changes one would wonder why nothing changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.core.errors import FatalError


def compiled_modules() -> list[Path]:
    """The files of our modules that are loaded, and not from their sources."""
    return [
        Path(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith("services.")
        and module.__file__ is not None
        and not module.__file__.endswith(".py")
    ]


def check_compiled() -> None:
    """FatalError if a source was changed since it was compiled."""
    for path in compiled_modules():
        source = path.parent / (path.name.partition(".")[0] + ".py")
        if source.exists() and source.stat().st_mtime > path.stat().st_mtime:
            raise FatalError(
                f"{source} was changed since it was compiled, and what was compiled then would "
                "run: make compile, or make pure, with which the sources run as they are"
            )
