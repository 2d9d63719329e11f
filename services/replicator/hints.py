"""What is kept for nodes that are away: of each write that one missed, a durable hint.

    kept ──► durable: its write may be answered ──► delivered, when the node is back
      │
      └────► dropped: refused or given up; replicas that differ find it by being compared

A hint that cannot be kept, or not for longer, does not fail its write. It is counted by reason,
and it is remembered that hints are not the whole of what the node misses (`overflow.py`):

    disk_full    there is no room for it, or the limit of open files has been reached
    overloaded   the disk is slower than the writes that come in
    bytes        the hints for this node are as large as HINT_BYTES_MAX allows
    window       the node has been away for longer than HINT_WINDOW
    refused      the node says that it is no write
    gone         the node is no member of the cluster any more
    damaged      a log could not be read; counted once for each time, for nobody knows the number

This is on the hot path while a node is away, as every write then leaves a hint. Keeping one takes
about 2 us besides its share of a write to the disk and its sync.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.core.cluster import node_id_pattern
from services.replicator.hint_log import HintLog, segment_bytes_default
from services.replicator.overflow import Overflow
from services.replicator.replay import Counters, Replay
from services.replicator.seams import Epochs
from services.replicator.stamps import Stamps
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.disk import Disk
from services.runtime.fleet import Fleet
from services.runtime.log.frame import Corrupt

# Within this a node that is back is noticed; its own link says nothing to us.
look_s: Final = 0.1
# An empty log is removed when no hint has come for so long: making one takes a few writes.
linger_s: Final = 5.0
# A map that was read back may be older than the hints are.
absent_s_max: Final = 60.0

log = telemetry.logger(__name__)


@dataclass(slots=True)
class Dropped:
    """How many hints were not kept, or not to the end, by reason."""

    disk_full: int = 0
    overloaded: int = 0
    bytes: int = 0
    window: int = 0
    refused: int = 0
    gone: int = 0
    damaged: int = 0


@dataclass(slots=True)
class _Target:
    """A node for which hints are kept, or could be."""

    node_id: str
    hints: HintLog
    overflow: Overflow
    replay: Replay
    # It was away for longer than the window, and nothing is kept until it is back.
    given_up: bool = False
    # Since when there has been nothing to deliver, and since when it is in no map.
    drained_s: float | None = None
    absent_s: float | None = None


@dataclass(slots=True)
class HintCounters(Counters):
    kept: int = 0
    dropped: Dropped = field(default_factory=Dropped)


class Hints:
    """`recover`, then `start`; `keep` from then on. Close it when no write is under way.

    `on_failure` hears of an error of the disk after which nothing may be relied on; the process
    has to end.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        fleet: Fleet,
        stamps: Stamps,
        epochs: Epochs,
        clock: Clock,
        draw: random.Random,
        *,
        bytes_max: int,
        window_ms: int,
        on_failure: Callable[[OSError], None],
        segment_bytes: int = segment_bytes_default,
    ) -> None:
        self.counters = HintCounters()
        # Told of slots in which a node refuses hints, so that only a collection can bring them.
        self.on_below_floor: Callable[[int], None] = lambda slot: None
        self._disk = disk
        self._path = path
        self._fleet = fleet
        self._stamps = stamps
        self._epochs = epochs
        self._clock = clock
        self._draw = draw
        self._bytes_max = bytes_max
        self._window_ms = window_ms
        self._segment_bytes = segment_bytes
        self._on_failure = on_failure
        self._targets: dict[str, _Target] = {}
        self._started = False
        self._closed = False

    def recover(self) -> Iterator[None]:
        """Find what an earlier run has kept; blocks between its yields. OSError is the end of the
        disk. A log that is damaged is put aside, and does not stop us."""
        if not self._disk.exists(self._path):
            return
        for name in self._disk.names(self._path):
            if not node_id_pattern.fullmatch(name):
                continue
            target = self._add(name)
            target.overflow.recover()
            yield from target.hints.recover()
            if target.hints.cut is not None:
                log.warning("recovery of hints", node=name, what=str(target.hints.cut))
            if target.hints.count:
                log.info("hints found", node=name, hints=target.hints.count)

    def start(self) -> None:
        """Look after the nodes from now on."""
        self._started = True
        self._clock.call_later(0.0, self._look)

    def close(self) -> None:
        """Keep and send nothing more. What is not durable yet is not going to be."""
        self._closed = True
        for target in self._targets.values():
            target.replay.close()
            target.hints.close()

    @property
    def idle(self) -> bool:
        """Whether everything kept is durable."""
        return all(target.hints.idle for target in self._targets.values())

    # -- keeping

    def keep(
        self, node_id: str, key: bytes, record: bytes, kept: Callable[[], None] | None = None
    ) -> None:
        """Note that this node misses this record. `kept` hears of it once the note is durable, or
        once it is durable that there is none."""
        self.keep_since(self._clock.wall_ms(), node_id, key, record, kept)

    def keep_since(
        self,
        kept_ms: int,
        node_id: str,
        key: bytes,
        record: bytes,
        kept: Callable[[], None] | None,
    ) -> None:
        """As `keep`, for a hint that another replicator has kept since then."""
        target = self._targets.get(node_id) or self._add(node_id)
        hints = target.hints
        size = len(key) + len(record)
        reason = hints.refusal(size)
        if reason is None and target.given_up:
            reason = "window"
        elif reason is None and hints.bytes + size > self._bytes_max:
            reason = "bytes"
        if reason is None:
            self.counters.kept += 1
            hints.append(kept_ms, key, record, kept)
        else:
            self._drop(target, reason, 1, kept)

    def _drop(
        self, target: _Target, reason: str, count: int, noted: Callable[[], None] | None = None
    ) -> None:
        dropped = self.counters.dropped
        if not target.overflow.mark:
            log.warning(
                "hints are not kept; only comparing replicas brings the node what it misses",
                node=target.node_id,
                reason=reason,
            )
        setattr(dropped, reason, getattr(dropped, reason) + count)
        target.overflow.note(noted)

    def _add(self, node_id: str) -> _Target:
        path = self._path / node_id
        target: _Target

        def whole() -> bool:
            return not target.overflow.mark

        def ready() -> None:
            if self._started:
                target.replay.look()

        def refused(count: int) -> None:
            log.error("a node refuses hints for good", node=node_id, hints=count)
            self._drop(target, "refused", count)

        def below_floor(slot: int) -> None:
            self.on_below_floor(slot)

        def damaged(damage: Corrupt) -> None:
            log.error(
                "hints are damaged and were put aside",
                node=node_id,
                file=damage.file,
                offset=damage.offset,
                what=damage.what,
            )
            self._drop(target, "damaged", 1)

        hints = HintLog(
            self._disk,
            path,
            self._clock,
            self._draw,
            on_ready=ready,
            on_damage=damaged,
            on_failure=self._on_failure,
            segment_bytes=self._segment_bytes,
        )
        replay = Replay(
            node_id,
            hints,
            self._fleet,
            self._stamps,
            self._epochs,
            self._clock,
            self._draw,
            self.counters,
            is_whole=whole,
            on_refused=refused,
            on_below_floor=below_floor,
        )
        overflow = Overflow(self._disk, path, self._on_failure)
        target = self._targets[node_id] = _Target(node_id, hints, overflow, replay)
        return target

    # -- what nodes miss besides

    def lost(self, node_id: str, noted: Callable[[], None] | None = None) -> None:
        """Hints for this node are known to be lost, such as those of a directory that is gone;
        `noted` is called once that is durable, or cannot be."""
        (self._targets.get(node_id) or self._add(node_id)).overflow.note(noted)

    def mark(self, node_id: str) -> int:
        """Take this before a comparison of all that the node has, for `mended`. 0: needs none."""
        target = self._targets.get(node_id)
        return 0 if target is None else target.overflow.mark

    def drained(self, node_id: str) -> bool:
        """Whether no hint waits for the node."""
        target = self._targets.get(node_id)
        return target is None or not target.hints.count

    def mended(self, node_id: str, mark: int) -> None:
        """All slots of the node have been compared since the mark was taken."""
        target = self._targets.get(node_id)
        if target is not None:
            target.overflow.mended(mark)

    # -- figures

    @property
    def waiting(self) -> dict[str, int]:
        """By node, how many hints wait for it."""
        return {name: target.hints.count for name, target in self._targets.items()}

    @property
    def waiting_bytes(self) -> dict[str, int]:
        """By node, what its hints take in their segments until these are removed."""
        return {name: target.hints.bytes for name, target in self._targets.items()}

    @property
    def overflowed(self) -> dict[str, int]:
        """By node, how often something was dropped that it is still to get otherwise."""
        return {name: target.overflow.mark for name, target in self._targets.items()}

    @property
    def oldest_ms(self) -> int:
        """How long the hint that has waited longest has done so; 0 if there is none."""
        return max(map(self.lag_ms, self._targets), default=0)

    def lag_ms(self, node_id: str) -> int:
        """As `oldest_ms`, of the hints for this node."""
        target = self._targets.get(node_id)
        if target is None or target.hints.oldest_ms is None:
            return 0
        return max(0, self._clock.wall_ms() - target.hints.oldest_ms)

    # -- looking after them

    def _look(self) -> None:
        if self._closed:
            return
        for node_id in self._fleet.nodes:
            if node_id not in self._targets:
                self._add(node_id)
        for target in list(self._targets.values()):
            self._look_after(target)
        self._clock.call_later(look_s, self._look)

    def _look_after(self, target: _Target) -> None:
        hints = target.hints
        for kept in hints.release():
            self._drop(target, "disk_full", 1, kept)
        target.overflow.look()
        if self._is_gone(target):
            self._forget(target)
            return
        node = self._fleet.nodes.get(target.node_id)
        if node is not None and node.link.connected:
            target.given_up = False
        elif (
            hints.oldest_ms is not None
            and self._clock.wall_ms() - hints.oldest_ms > self._window_ms
        ):
            target.given_up = True
            self._clear(target, "window")
        target.replay.look()
        self._remove_if_drained(target)

    def _clear(self, target: _Target, reason: str) -> None:
        count = target.hints.count
        target.replay.reset()
        waiting = target.hints.clear()
        self._drop(target, reason, count)
        for kept in waiting:
            target.overflow.note(kept)

    def _remove_if_drained(self, target: _Target) -> None:
        now_s = self._clock.monotonic_s()
        if target.hints.count or not target.hints.on_disk:
            target.drained_s = None
        elif target.drained_s is None:
            target.drained_s = now_s
        elif now_s - target.drained_s > linger_s:
            target.replay.reset()
            target.hints.clear()

    def _is_gone(self, target: _Target) -> bool:
        """Whether no map has had this node for so long that none will bring it back."""
        if self._fleet.map is None or target.node_id in self._fleet.nodes:
            target.absent_s = None
            return False
        now_s = self._clock.monotonic_s()
        if target.absent_s is None:
            target.absent_s = now_s
        return now_s - target.absent_s > absent_s_max

    def _forget(self, target: _Target) -> None:
        """It owns nothing any more: its slots have other owners, who got their data otherwise."""
        self.counters.dropped.gone += target.hints.count
        for kept in target.hints.clear():
            kept()
        target.replay.close()
        target.hints.close()
        target.overflow.forget()
        del self._targets[target.node_id]
