"""The newest cluster map in a file of its own, for a start without those who would tell it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from services.core.cluster import ClusterMap, map_bytes_max
from services.runtime.disk import Disk
from services.runtime.kept_file import KeptFile

map_name: Final = "map"


class KeptMap(KeptFile):
    """The file `map` in the directory of a service."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        super().__init__(disk, directory, map_name, map_bytes_max, ClusterMap.decode)
