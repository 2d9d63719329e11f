"""What a node does besides answering: snapshots, freeing what has expired, watching its limits.

Everything is done in slices of a millisecond or two, so that requests hardly notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from services.core.ring import slot_count
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.replica import Replica
from services.dhtnode.rot import RottenSlot
from services.dhtnode.snapshot import SnapshotWriter
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.disk_failure import disk_failure
from services.runtime.log.log import Log

# A pass over all records: an expired value holds its memory at most about this long, and as long
# as it is left to those whose clocks are behind ours. To them a value that is not there any more
# would be an empty one, and a strong change would keep that.
trim_pass_s: Final = 300
trim_after_ms: Final = 60_000
turn_s: Final = 0.1
# About a millisecond of bringing caches and indexes in order.
tend_budget: Final = 2_000
# In a turn an eighth of what lags is tended. A full cache of a million keys with 20,000 puts/s
# makes some 40,000 touches a second, of 7 units each, so that it lags by a few hundred thousand.
tend_share: Final = 8
watch_s: Final = 1.0
# Replay takes some three seconds per million changes. The log behind the newest snapshot is kept
# below this, or below half of the snapshot, so that writing snapshots stays the smaller work.
log_bytes_min: Final = 128 << 20
# After a disk was too full for a snapshot.
snapshot_retry_s: Final = 30.0
# Puts are welcome again when so much of a limit is free, not at the first byte.
relief: Final = 0.98


class Upkeep:
    def __init__(
        self,
        replica: Replica,
        log: Log,
        directory: NodeDirectory,
        clock: Clock,
        *,
        memory_max_bytes: int | None,
        disk_reserve_bytes: int,
    ) -> None:
        self.snapshots = 0
        self.snapshot_failures = 0
        self.snapshot_bytes = 0
        # What earlier runs have logged since their last snapshot.
        self.log_bytes_before = 0
        self._replica = replica
        self._log = log
        self._directory = directory
        self._clock = clock
        self._memory_max_bytes = memory_max_bytes
        self._disk_reserve_bytes = disk_reserve_bytes
        self._said = telemetry.logger("services.dhtnode")
        self._covered_bytes = 0
        self._wanted = asyncio.Event()
        self._writer: SnapshotWriter | None = None
        self._on_rot: Callable[[int], None] | None = None
        self._held: Callable[[], bool] = lambda: False

    # -- snapshots

    def want_snapshot(self) -> None:
        """Have one written soon, however small the log is."""
        self._wanted.set()

    def watch_rot(self, on_rot: Callable[[int], None], held: Callable[[], bool]) -> None:
        """Tell `on_rot` of a slot that cannot be written, and write nothing while it is `held`."""
        self._on_rot, self._held = on_rot, held

    async def keep_log_short(self) -> None:
        """Write a snapshot whenever the log behind the last one has grown long."""
        while True:
            if self._held():
                await asyncio.sleep(watch_s)
                continue
            try:
                async with asyncio.timeout(watch_s):
                    await self._wanted.wait()
            except TimeoutError:
                if self._log_bytes() < max(log_bytes_min, self.snapshot_bytes // 2):
                    continue
            self._wanted.clear()
            if not await self._snapshot():
                await asyncio.sleep(snapshot_retry_s)

    async def _snapshot(self) -> bool:
        """Write one; whether there was room for it. Rot that is in its way is told to who watches
        for that. What else goes wrong is raised: the loop that this is part of is then started
        again, and has another one written."""
        ended: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()

        def finished(_: SnapshotWriter, error: OSError | None) -> None:
            if not ended.done():
                ended.set_result(error)

        def failed(error: Exception) -> None:
            if not ended.done():
                ended.set_exception(error)

        covered = self._log.counters.bytes
        began_s = self._clock.monotonic_s()
        writer = SnapshotWriter(
            self._directory, self._log, self._clock, self._replica.frames(), finished, failed
        )
        writer.start()
        try:
            error = await ended
        except asyncio.CancelledError:
            writer.cancel()
            raise
        except RottenSlot as rotten:
            self._wanted.set()
            if self._on_rot is None:
                raise
            self._on_rot(rotten.slot)
            return True
        except Exception:
            # It was due, and still is.
            self._wanted.set()
            raise
        if error is not None:
            self.snapshot_failures += 1
            self._said.warning("no room for a snapshot", file=error.filename, reason=error.strerror)
            return False
        self.snapshots += 1
        self.snapshot_bytes = writer.bytes
        self._covered_bytes, self.log_bytes_before = covered, 0
        self._said.info(
            "snapshot written",
            records=writer.records,
            bytes=writer.bytes,
            seconds=round(self._clock.monotonic_s() - began_s, 3),
        )
        return True

    def _log_bytes(self) -> int:
        return self.log_bytes_before + self._log.counters.bytes - self._covered_bytes

    # -- memory

    async def free_expired(self) -> None:
        """Go round all slots, dropping values that have expired, and tidy what lags behind."""
        while True:
            await self.tidy()
            await asyncio.sleep(turn_s)

    async def tidy(self) -> None:
        """What is due every `turn_s`."""
        table = self._replica.table
        records = table.total.keys + table.total.tombstones
        self._replica.trim_slice(
            self._clock.wall_ms() - trim_after_ms,
            max(1, int((slot_count + records) * turn_s / trim_pass_s)),
        )
        # The more lags behind the more is tended: it takes memory, and puts bring it quickly.
        left = max(tend_budget, table.index_lag // tend_share)
        while left > 0 and not table.tend_slice(min(left, tend_budget)):
            left -= tend_budget
            # Requests come between two slices.
            await asyncio.sleep(0)

    # -- limits

    async def watch_limits(self) -> None:
        """Refuse puts while memory or disk run short, and welcome them again afterwards."""
        while True:
            self._look()
            await asyncio.sleep(watch_s)

    def notice(self) -> None:
        """Look at what a second of writes can use up, after each batch: what is left of the log
        belongs to deletes as soon as there is no next segment."""
        if self._replica.full is not None:
            return
        memory_max = self._memory_max_bytes
        if self._log.shortage is not None or (
            memory_max is not None and self._replica.memory_bytes > memory_max
        ):
            self._look()

    def _look(self) -> None:
        full = self._shortage()
        if full != self._replica.full:
            if full is None:
                self._said.info("puts are welcome again")
            elif self._replica.full is None:
                self._said.warning("puts are refused", reason=full)
            self._replica.full = full

    def _shortage(self) -> str | None:
        pressing = self._replica.full is not None
        memory_max = self._memory_max_bytes
        if memory_max is not None:
            used = self._replica.memory_bytes
            if used > (memory_max * relief if pressing else memory_max):
                return f"memory: {used >> 20} MiB in use, MEMORY_MAX is {memory_max >> 20} MiB"
        if (shortage := self._log.shortage) is not None:
            return f"disk: the next segment of the log has no room ({shortage.strerror})"
        try:
            free = self._directory.disk.space(self._directory.path).free_bytes
        except OSError as error:
            raise disk_failure(error) from error
        reserve = self._disk_reserve_bytes
        if free < (reserve / relief if pressing else reserve):
            return f"disk: {free >> 20} MiB free, DISK_RESERVE is {reserve >> 20} MiB"
        return None
