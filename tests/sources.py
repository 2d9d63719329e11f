"""Have this process run the sources, also where compiled modules lie beside them.

Tests put other parts in the place of some, and take rules away to see that others notice; what is
compiled is bound together once, and does not let that happen. That it does the same is shown by
whatever starts services in processes of their own, and by the simulation, whose command runs what
is there.
"""

from __future__ import annotations

import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path

_services = Path(__file__).resolve().parent.parent / "services"
_finder = FileFinder.path_hook((SourceFileLoader, SOURCE_SUFFIXES))


def run_sources() -> None:
    """To be called before anything of `services` is imported."""
    sys.path_hooks.insert(0, _find_sources)
    sys.path_importer_cache.clear()


def _find_sources(path: str) -> FileFinder:
    if not Path(path).is_relative_to(_services):
        raise ImportError(path=path)
    found = _finder(path)
    assert isinstance(found, FileFinder)
    return found
