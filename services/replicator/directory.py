"""A replicator's directory: who it is to the clocks of others, and what it still owes to nodes.

    LOCK        held by the process that runs the replicator
    stamper     its stamper and the ceiling of its clock, in two copies (stamper_file.py)
    map         the newest cluster map, for a start without PostgreSQL
    hints/      writes kept for nodes that are away
    *.tmp       a file in the making, worth nothing after a restart

Of all this, only hints are worth saving. A replicator that finds no stamper is given a new one,
and no promise is broken: versions of two stampers are never the same.

Space is needed to make the directory, and for hints. Without any a replicator starts and goes on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, Self

from services.core.cluster import node_id_pattern
from services.replicator.stamper_file import Kept, StamperFile
from services.runtime.disk import Disk, Done, Lock

stamper_name: Final = "stamper"
hints_name: Final = "hints"


class ReplicatorDirectory:
    """An open directory. Nobody else has it until `close`, or until this process ends."""

    def __init__(
        self, disk: Disk, path: Path, lock: Lock, replicator_id: str, stamper: StamperFile
    ) -> None:
        self.disk = disk
        self.path = path
        self.replicator_id = replicator_id
        # What an earlier run has left; None in a new directory, which wants a new stamper.
        self.found: Kept | None = stamper.found
        self._stamper = stamper
        self._lock = lock

    @classmethod
    def open(cls, disk: Disk, path: Path, replicator_id: str) -> Self:
        """Take the directory, making it if it is not there.

        `FatalError` if another process has it (`DirectoryInUse`), if it belongs to another
        replicator, or if its stamper cannot be read. What is found is durable.
        """
        if not node_id_pattern.fullmatch(replicator_id):
            raise ValueError(f"{replicator_id!r} is no replicator id")
        disk.make_directory(path)
        lock = disk.lock(path)
        try:
            # Whoever named what is here may have been killed before the names were durable.
            disk.sync_directory(path)
            stamper = StamperFile(disk, path / stamper_name, replicator_id)
        except BaseException:
            lock.release()
            raise
        return cls(disk, path, lock, replicator_id, stamper)

    @property
    def hints_path(self) -> Path:
        return self.path / hints_name

    def keep_soon(self, kept: Kept, done: Done) -> None:
        """Durably replace what is kept; `done` gets the error, or None.

        It takes no space. Calls take effect in their order. After an error either the old or the
        new is there.
        """
        self.disk.run_soon(partial(self._stamper.keep, kept), done)

    def close(self) -> None:
        """Give it back, once the disk has done what it was asked for."""
        self._stamper.close()
        self._lock.release()
