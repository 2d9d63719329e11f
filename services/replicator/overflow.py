"""That a node misses something which no hint here will bring it.

    hints/<node id>/overflow    an empty file: some hint was lost or refused

While that is so, the node is not told by this replicator that it has caught up; it is asked last
for reads until replicas have been compared. Whoever compares them takes `mark` before a pass over
all slots of the node and gives it to `mended` afterwards: what overflowed meanwhile still counts.

The file is made at the first overflow, before anybody is told that it happened, so that no
restart forgets it. On a disk so full that not even an empty file can be made, it is remembered in
memory only, and tried again until it succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from services.runtime.disk import Disk
from services.runtime.log.preparation import passing_errors

overflow_name: Final = "overflow"
# Writes that wait for the file hold their records in memory; past this they wait no more.
waiting_max: Final = 10_000


class Overflow:
    def __init__(self, disk: Disk, path: Path, on_failure: Callable[[OSError], None]) -> None:
        # How often something was lost or refused; 0 once that was mended.
        self.mark = 0
        self._disk = disk
        self._directory = path
        self._on_failure = on_failure
        self._made = False
        self._making = False
        self._waiting: list[Callable[[], None]] = []

    def recover(self) -> None:
        """Look whether an earlier run has overflowed. Blocks."""
        if self._disk.exists(self._file):
            self.mark, self._made = 1, True

    def note(self, noted: Callable[[], None] | None = None) -> None:
        """Something was lost or refused; `noted` is called once that is durable, or cannot be."""
        self.mark += 1
        if not self._made and not self._making:
            self._make()
        if noted is None:
            return
        if self._made or len(self._waiting) >= waiting_max:
            noted()
        else:
            self._waiting.append(noted)

    def look(self) -> None:
        """Try again what a full disk did not allow."""
        if self.mark and not self._made and not self._making:
            self._make()

    def mended(self, mark: int) -> None:
        """Replicas were compared after `mark` was taken."""
        if self.mark == mark and not self._making:
            self.forget()

    def forget(self) -> None:
        """Nothing is owed any more."""
        self.mark = 0
        if self._made:
            self._made = False
            self._disk.run_soon(self._remove, self._removed)

    @property
    def _file(self) -> Path:
        return self._directory / overflow_name

    def _make(self) -> None:
        self._making = True
        self._disk.run_soon(self._create, self._created)

    def _create(self) -> None:
        """Runs as an errand of the disk, as the one below."""
        self._disk.make_directory(self._directory)
        if not self._disk.exists(self._file):
            self._disk.open(self._file, "create").close()
        self._disk.sync_directory(self._directory)

    def _remove(self) -> None:
        if self._disk.exists(self._file):
            self._disk.remove(self._file)
            self._disk.sync_directory(self._directory)

    def _created(self, error: OSError | None) -> None:
        self._making = False
        if error is not None and error.errno not in passing_errors:
            self._on_failure(error)
            return
        self._made = error is None
        waiting, self._waiting = self._waiting, []
        for noted in waiting:
            noted()

    def _removed(self, error: OSError | None) -> None:
        if error is not None:
            self._on_failure(error)
