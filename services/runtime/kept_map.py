"""The newest cluster map in a file of its own, for a start without those who would tell it.

    ydht-map 1 7bc3b11d\\n  ·  the map        format, crc32c of the map

Without the checksum a flipped digit in it would be believed, and the right map, which cannot follow
the wrong one, refused from then on. A file that is damaged is put aside: the map is told again.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Final

import google_crc32c

from services.core.cluster import ClusterMap, map_bytes_max
from services.core.errors import PeerError
from services.runtime import telemetry
from services.runtime.disk import Disk, Done

map_name: Final = "map"
damaged_name: Final = "map.damaged"
_head: Final = re.compile(rb"(ydht-map ([0-9]{1,9}) )([0-9a-f]{8})\n")
_format: Final = 1
_head_bytes_max: Final = 32


class KeptMap:
    """The file `map` in the directory of a service."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self.path = directory / map_name
        self._disk = disk

    def read(self) -> bytes | None:
        """The bytes of a map that can be decoded; None if there is none. PeerError, naming the
        file, if it is damaged; OSError."""
        if not self._disk.exists(self.path):
            return None
        with self._disk.open(self.path, "read") as file:
            content = file.read_at(0, _head_bytes_max + map_bytes_max + 1)
        head = _head.match(content)
        data = content[head.end() :] if head is not None else b""
        if head is None or int(head[3], 16) != google_crc32c.value(head[1] + data):
            raise PeerError(f"{self.path} is damaged")
        if int(head[2]) != _format:
            raise PeerError(f"{self.path} has a format that this version does not know")
        try:
            ClusterMap.decode(data)
        except PeerError as error:
            raise PeerError(f"{self.path}: {error}") from error
        return data

    def read_or_put_aside(self) -> bytes | None:
        """As `read`, but a damaged file is renamed for a look, with a warning, and not read again;
        whoever knows the map will tell it."""
        try:
            return self.read()
        except PeerError as error:
            self._disk.rename(self.path, self.path.with_name(damaged_name))
            self._disk.sync_directory(self.path.parent)
            telemetry.logger(__name__).warning("the kept map is put aside", reason=str(error))
            return None

    def keep_soon(self, data: bytes, done: Done) -> None:
        """Durably replace it; `done` gets the error, or None."""
        format_known = b"ydht-map %d " % _format
        head = format_known + b"%08x\n" % google_crc32c.value(format_known + data)
        self._disk.run_soon(partial(self._disk.replace, self.path, head + data), done)
