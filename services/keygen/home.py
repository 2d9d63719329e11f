"""The directory of a keygen, by which a start knows that the life before it is over.

    LOCK        held by the process that runs the keygen of this port
    instance    the id of its newest instance, in decimal, and where this directory was then
    marks.json  how far IDs have come, as far as this directory knows (marks.py)

Whoever has the lock knows that the instance named there hands nothing out any more, however it
ended, and can say so at once; without the file its lease has to run out first. That does not hold
for a copy of the directory, whose original may be in use: so the file names the directory too, by
what a copy does not have in common with it, and after a start of the machine nothing is known
either. The marks are what a
database that was set back is found out by: keep them. A keygen that cannot write here goes on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from services.runtime import telemetry
from services.runtime.disk import Disk, Lock
from services.runtime.disk_failure import disk_failure

_instance_name: Final = "instance"
_bytes_max: Final = 256
# Drawn by Linux whenever it starts.
_boot_id: Final = Path("/proc/sys/kernel/random/boot_id")
_marks_name: Final = "marks.json"
_marks_bytes_max: Final = 4096

log = telemetry.logger("services.keygen")


class Home:
    """Usable between `open` and `close`."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._directory = directory
        self._lock: Lock | None = None
        # The newest instance that has had this directory, or what this is a copy of.
        self.former: int | None = None
        # It is known to be over, or is ours.
        self.is_former_over = False

    def open(self) -> None:
        """Take the directory. FatalError if another process has it, or it cannot be made."""
        try:
            self._disk.make_directory(self._directory)
            self._lock = self._disk.lock(self._directory)
            path = self._directory / _instance_name
            if self._disk.exists(path):
                text, _, place = self._disk.read(path, _bytes_max).strip().partition(b" ")
                known = text.isdigit() and int(text) < 1 << 63
                self.former = int(text) if known else None
                self.is_former_over = place == self._place()
        except OSError as error:
            raise disk_failure(error) from error

    async def keep(self, instance_id: int) -> None:
        """Note that this is the newest one, durably unless the disk does not let us."""
        path = self._directory / _instance_name
        try:
            text = b"%d %s\n" % (instance_id, self._place())
            await asyncio.to_thread(self._disk.replace, path, text)
        except OSError as error:
            log.warning("the instance could not be noted", path=str(path), reason=str(error))
        self.former = instance_id
        self.is_former_over = True

    @property
    def instance_path(self) -> str:
        return str(self._directory / _instance_name)

    @property
    def marks_path(self) -> str:
        return str(self._directory / _marks_name)

    def read_marks(self) -> bytes:
        """Nothing if there are none. FatalError if they are there and cannot be read."""
        path = self._directory / _marks_name
        try:
            return self._disk.read(path, _marks_bytes_max) if self._disk.exists(path) else b""
        except OSError as error:
            raise disk_failure(error) from error

    async def write_marks(self, text: bytes) -> str | None:
        """Durably; why it could not be done, if so."""
        path = self._directory / _marks_name
        try:
            await asyncio.to_thread(self._disk.replace, path, text)
        except OSError as error:
            log.warning("how far IDs have come could not be noted", path=str(path), why=str(error))
            return f"{path} cannot be written: {error.strerror}"
        return None

    def _place(self) -> bytes:
        """Of this directory, in this life of the machine."""
        boot = _boot_id.read_bytes().strip() if _boot_id.exists() else b"-"
        status = self._directory.stat()
        return b"%s/%d/%d" % (boot, status.st_dev, status.st_ino)

    def close(self) -> None:
        self._disk.close()
        if self._lock is not None:
            self._lock.release()
