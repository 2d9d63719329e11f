"""Hints of replicators that are gone, taken over by those that live.

A replicator that does not come back leaves its hints in its directory, beside ours. They are
copied into our own, which bounds and replays them, and then removed there. The directory is
locked for as long as a look takes, and not while a node is away: its owner may start at any time
in between, and finds what was not taken. It is looked into only when it was found without an
owner for a while, so that one that merely restarts is left alone.

Whatever fails before the removal leaves hints in both places; to deliver one twice changes
nothing. What is remembered of overflows is taken over too, before it is forgotten there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from services.core.cluster import node_id_pattern
from services.replicator.directory import hints_name
from services.replicator.hint_log import HintLog
from services.replicator.hints import Hints
from services.replicator.overflow import overflow_name
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.disk import DirectoryInUse, Disk, Lock
from services.runtime.log.frame import Corrupt

look_s: Final = 5.0
# A supervisor starts what has died within seconds; a person, when they have read the log.
orphaned_s: Final = 60.0
# Of a turn of the loop, and how often it has one while there is something to copy.
turn_hints: Final = 500
turn_bytes: Final = 1 << 20
turn_s: Final = 0.005
# What is copied is in memory until it is durable here.
copying_max: Final = 10_000

log = telemetry.logger(__name__)


class Adoption:
    """Looks into the directories beside `own`; `start` it once our own hints were recovered."""

    def __init__(
        self, disk: Disk, own: Path, hints: Hints, clock: Clock, draw: random.Random
    ) -> None:
        self.adopted = 0
        self._disk = disk
        self._own = own
        self._hints = hints
        self._clock = clock
        self._draw = draw
        # Since when each directory has been found without an owner.
        self._orphaned_s: dict[Path, float] = {}
        self._lock: Lock | None = None
        self._steps: Iterator[None] | None = None
        # Hints copied, or overflows noted, that are not durable here yet.
        self._copying = 0
        self._closed = False

    def start(self) -> None:
        self._clock.call_later(look_s, self._look)

    def close(self) -> None:
        self._closed = True
        self._let_go()

    def _look(self) -> None:
        """Begin with one directory that has been without its owner for long enough."""
        if self._closed:
            return
        try:
            path = self._take_orphan()
        except OSError as error:
            self._failed(error)
            return
        if path is None:
            self._clock.call_later(look_s, self._look)
        else:
            self._steps = self._take_over(path)
            self._go_on()

    def _take_orphan(self) -> Path | None:
        """Lock a directory that has been without an owner for long enough, if there is one."""
        now_s = self._clock.monotonic_s()
        orphans = [path for path in self._others() if self._is_orphan(path)]
        self._orphaned_s = {path: self._orphaned_s.get(path, now_s) for path in orphans}
        for path, since_s in self._orphaned_s.items():
            if now_s - since_s >= orphaned_s:
                with suppress(DirectoryInUse):
                    self._lock = self._disk.lock(path)
                    return path
        return None

    def _others(self) -> list[Path]:
        """The directories beside ours that hold hints, or remember an overflow."""
        beside = self._own.parent
        found = []
        for name in self._disk.names(beside):
            path = beside / name
            if path != self._own and node_id_pattern.fullmatch(name) and self._targets(path):
                found.append(path)
        return found

    def _targets(self, replicator: Path) -> list[Path]:
        path = replicator / hints_name
        if not self._disk.exists(path):
            return []
        nodes = [path / name for name in self._disk.names(path) if node_id_pattern.fullmatch(name)]
        return [
            node
            for node in nodes
            if any(name.startswith(("log-", overflow_name)) for name in self._disk.names(node))
        ]

    def _is_orphan(self, path: Path) -> bool:
        try:
            self._disk.lock(path).release()
        except DirectoryInUse:
            return False
        return True

    def _go_on(self) -> None:
        """A turn of the copying; the last one lets the directory go."""
        if self._closed or self._steps is None:
            return
        try:
            next(self._steps)
        except StopIteration:
            self._let_go()
            self._clock.call_later(look_s, self._look)
        except OSError as error:
            self._failed(error)
        else:
            self._clock.call_later(turn_s, self._go_on)

    def _failed(self, error: OSError) -> None:
        """What is another's may be beyond reading, or not be ours to read. Our own disk is judged
        by our own log."""
        log.warning("hints could not be taken over", file=error.filename, reason=error.strerror)
        self._let_go()
        self._orphaned_s.clear()
        self._clock.call_later(orphaned_s, self._look)

    def _let_go(self) -> None:
        lock, self._lock, self._steps = self._lock, None, None
        if lock is not None:
            lock.release()

    def _take_over(self, replicator: Path) -> Iterator[None]:
        for path in self._targets(replicator):
            node_id = path.name
            before = self.adopted
            yield from self._copy(path, node_id)
            log.warning(
                "took over the hints of a replicator that is gone",
                replicator=replicator.name,
                node=node_id,
                hints=self.adopted - before,
            )
            yield from self._remove(path)

    def _copy(self, path: Path, node_id: str) -> Iterator[None]:
        """Keep all that is there, and wait until it is durable here."""
        failures: list[OSError] = []

        def damaged(damage: Corrupt) -> None:
            log.error("hints to be taken over are damaged", node=node_id, what=str(damage.what))
            self._lost(node_id)

        theirs = HintLog(
            self._disk,
            path,
            self._clock,
            self._draw,
            on_ready=_ignore,
            on_damage=damaged,
            on_failure=failures.append,
        )
        yield from theirs.recover()
        if self._disk.exists(path / overflow_name):
            self._lost(node_id)
        try:
            while theirs.count or self._copying:
                if failures:
                    raise failures[0]
                if self._copying < copying_max:
                    self._keep_some(theirs, node_id)
                yield
        finally:
            theirs.close()

    def _keep_some(self, theirs: HintLog, node_id: str) -> None:
        taken = theirs.take(turn_hints, turn_bytes)
        for hint in taken:
            self._copying += 1
            self._hints.keep_since(hint.kept_ms, node_id, hint.key, hint.record, self._copied)
        self.adopted += len(taken)
        if taken:
            # Nothing is removed there before all of it is durable here.
            theirs.passed(taken[-1].sequence)

    def _lost(self, node_id: str) -> None:
        self._copying += 1
        self._hints.lost(node_id, self._copied)

    def _copied(self) -> None:
        self._copying -= 1

    def _remove(self, path: Path) -> Iterator[None]:
        ended: list[OSError | None] = []
        self._disk.run_soon(partial(self._empty, path), ended.append)
        while not ended:
            yield
        if ended[0] is not None:
            raise ended[0]

    def _empty(self, path: Path) -> None:
        """Runs as an errand of the disk. The first segments go first: what a power cut leaves is
        a log that begins later, and what is remembered of an overflow goes last."""
        for name in sorted(self._disk.names(path), key=lambda name: (name == overflow_name, name)):
            self._disk.remove(path / name)
        self._disk.sync_directory(path)
        self._disk.remove_directory(path)
        self._disk.sync_directory(path.parent)


def _ignore() -> None:
    """Copying looks for itself whether there is more."""
