"""The newest of something in a file of its own, for a start without those who would tell it.

    ydht-map 1 7bc3b11d\\n  ·  the content        what it is, format, crc32c of all but itself

Without the checksum a flipped digit in it would be believed, and what is right be refused from then
on. A file that is damaged is put aside: what was in it is told again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import google_crc32c

from services.core.errors import PeerError
from services.runtime import telemetry
from services.runtime.disk import Disk, Done

_head: Final = re.compile(rb"(ydht-([a-z]+) ([0-9]{1,9}) )([0-9a-f]{8})\n")
_format: Final = 1
_head_bytes_max: Final = 64


class KeptFile:
    """The file `name` in the directory of a service. `check` raises PeerError for content that
    makes no sense."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        name: str,
        bytes_max: int,
        check: Callable[[bytes], object],
    ) -> None:
        self.path = directory / name
        self._name = name
        self._bytes_max = bytes_max
        self._check = check
        self._disk = disk

    def read(self) -> bytes | None:
        """The content; None if there is no file. PeerError, naming the file, if it is damaged;
        OSError."""
        if not self._disk.exists(self.path):
            return None
        with self._disk.open(self.path, "read") as file:
            content = file.read_at(0, _head_bytes_max + self._bytes_max + 1)
        head = _head.match(content)
        data = content[head.end() :] if head is not None else b""
        if (
            head is None
            or head[2] != self._name.encode()
            or int(head[4], 16) != google_crc32c.value(head[1] + data)
        ):
            raise PeerError(f"{self.path} is damaged")
        if int(head[3]) != _format:
            raise PeerError(f"{self.path} has a format that this version does not know")
        try:
            self._check(data)
        except PeerError as error:
            raise PeerError(f"{self.path}: {error}") from error
        return data

    def read_or_put_aside(self) -> bytes | None:
        """As `read`, but a damaged file is renamed for a look, with a warning, and not read again;
        whoever knows what was in it will tell it."""
        try:
            return self.read()
        except PeerError as error:
            self._disk.rename(self.path, self.path.with_name(f"{self._name}.damaged"))
            self._disk.sync_directory(self.path.parent)
            telemetry.logger(__name__).warning("a kept file is put aside", reason=str(error))
            return None

    def keep_soon(self, data: bytes, done: Done) -> None:
        """Durably replace it; `done` gets the error, or None."""
        format_known = f"ydht-{self._name} {_format} ".encode()
        head = format_known + b"%08x\n" % google_crc32c.value(format_known + data)
        self._disk.run_soon(partial(self._disk.replace, self.path, head + data), done)
