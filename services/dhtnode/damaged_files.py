"""Files of a node that are damaged, until nothing of them is needed any more.

Memory is whole, and so is what is written next. So snapshots are written until a recovery would
read no damaged file. None is removed before that: what is unnecessary goes with the snapshots, and
where the disk has no room for these a damaged file stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from services.core.messages import u64
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import EPOCH
from services.dhtnode.replica import Replica
from services.dhtnode.scrub_counters import ScrubCounters
from services.dhtnode.upkeep import Upkeep
from services.runtime import telemetry
from services.runtime.log.log import Log

# Two snapshots make all that was there before unnecessary; one of them may find no room.
snapshots_max: Final = 3
# Of a file that is damaged all over.
reports_per_file_max: Final = 16


class DamagedFiles:
    def __init__(
        self,
        replica: Replica,
        log: Log,
        upkeep: Upkeep,
        directory: NodeDirectory,
        counters: ScrubCounters,
    ) -> None:
        self._replica = replica
        self._log = log
        self._upkeep = upkeep
        self._directory = directory
        self._counters = counters
        self._said = telemetry.logger("services.dhtnode")
        # By damaged file, how much of it was reported.
        self._damaged: dict[Path, set[int]] = {}

    def names(self) -> list[str]:
        return sorted(path.name for path in self._damaged)

    def report(self, path: Path, offset: int, what: str) -> None:
        """A file is damaged there. Each place is counted once, however often it is read."""
        reported = self._damaged.setdefault(path, set())
        if offset not in reported and len(reported) < reports_per_file_max:
            reported.add(offset)
            self._counters.found_on_disk += 1
            self._said.error("a file is damaged", file=str(path), offset=offset, what=what)

    async def renew(self, is_written: Callable[[int], Awaitable[bool]]) -> None:
        """Have snapshots written until nothing that is damaged would be needed by a recovery.
        `is_written` waits for one more than there were so many of, and tells whether it came."""
        for _ in range(snapshots_max):
            self._forget_unneeded()
            if not self._damaged:
                break
            written = self._upkeep.snapshots
            self._go_on_in_log()
            self._upkeep.want_snapshot()
            if not await is_written(written):
                break
            # A segment without damage begins behind the snapshot.
            self._go_on_in_log()
        self._forget_unneeded()
        for path in self._damaged:
            self._said.error(
                "a damaged file is still needed: no snapshot could be written in its place",
                file=str(path),
            )

    def _forget_unneeded(self) -> None:
        needed = {segment.path for segment in self._log.segments}
        needed |= {path for _, path in self._directory.snapshots()}
        for path in [path for path in self._damaged if path not in needed]:
            self._counters.mended += len(self._damaged.pop(path))
            self._said.info("a damaged file has been replaced", file=str(path))

    def _go_on_in_log(self) -> None:
        """Log something that changes nothing. Without a change a snapshot would be for the same
        sequence as the one before, and what lies behind it in the same segment."""
        body = u64.pack(self._replica.epoch)
        if self._log.has_room(len(body)):
            self._log.append(EPOCH, body)
