"""The scrub: once a week, everything that a node holds is compared with what it should be.

    memory    each slot with its sum and its digests, which were kept as records changed
    files     each frame of snapshots and log with its checksum, read from the device
    mending   of slots that have rotted: from the files, or else by the other replicas (rot.py)
              of files: memory is whole, so snapshots are written until no damaged file is needed

It cannot be wrong by chance: a slot is compared in one turn of the loop with what that slot is by
then, and of files only what is durable is read. It goes at a pace that clients do not notice. What
it finds is logged as an error, without keys or values, counted in /metrics, and told by GET /scrub.

A damaged file is never removed before a snapshot is durable that makes it unnecessary, and nothing
is read from it meanwhile that its checksums do not prove.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Literal

from services.core.errors import PeerError
from services.core.hlc import rfc3339
from services.core.key import split_storage_key
from services.core.ring import slot_count, slot_of
from services.dhtnode.damaged_files import DamagedFiles
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import ACCEPTED
from services.dhtnode.promises import decode_accepted
from services.dhtnode.replica import Replica
from services.dhtnode.rot import Copies, Mended, Mender
from services.dhtnode.scrub_counters import ScrubCounters
from services.dhtnode.scrub_reading import Check, LogCheck, SnapshotCheck, step_bytes
from services.dhtnode.upkeep import Upkeep
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.disk import Disk
from services.runtime.kept_file import KeptFile
from services.runtime.log.log import Log

# A record takes 2.2 µs, so that a slot of a large store has two thirds of a millisecond. With these
# rests it takes a twentieth of a core, and four minutes for 5 million keys.
slice_s: Final = 0.001
rest_s: Final = 0.02
# Four minutes for a snapshot of 2 GiB, at 3 % of a core.
bytes_per_s: Final = 8 << 20
# Of so many slots at a time all records are gathered, some 300 of each in a large store. More than
# one that has rotted is rare.
slots_at_once: Final = 64
# What has become durable since the files were read is read in the turn of the mending: a
# millisecond or two.
tail_bytes_max: Final = 2 * step_bytes
# Where a log grows as fast as it can be read, that turn takes longer.
catch_up_s_max: Final = 10.0
# How often files are read once more because a snapshot has removed some of them meanwhile.
readings_max: Final = 4
snapshot_poll_s: Final = 0.2
snapshot_wait_s_max: Final = 600.0
# A node that was down when it should have scrubbed does so soon, though not together with others.
overdue_s: Final = 3600.0
look_s: Final = 60.0
_kept_bytes_max: Final = 20

State = Literal["idle", "memory", "files", "snapshots"]


class Scrub:
    """The scrub of one node. `run` is its loop; `request` has a pass begin at once.

    `others` tells whether other replicas could bring back what is taken out here. `draw` only has
    to differ between nodes.
    """

    def __init__(
        self,
        replica: Replica,
        log: Log,
        upkeep: Upkeep,
        directory: NodeDirectory,
        clock: Clock,
        draw: random.Random,
        *,
        interval_ms: int,
        others: Callable[[], bool],
    ) -> None:
        self.counters = ScrubCounters()
        self.state: State = "idle"
        # How many slots in memory, or bytes in files, are done, and how many there are.
        self.done = 0
        self.total = 0
        self.ended_ms: int | None = None
        self._replica = replica
        self._log = log
        self._upkeep = upkeep
        self._directory = directory
        self._clock = clock
        self._draw = draw
        self._interval_ms = interval_ms
        self._others = others
        self._kept = KeptFile(
            directory.disk, directory.path, "scrub", _kept_bytes_max, _ended_ms_of
        )
        self._said = telemetry.logger("services.dhtnode")
        self._requested = asyncio.Event()
        # Whether a snapshot was given up because of a slot that has rotted.
        self._rotten = False
        # Keys that were taken out, which the other replicas have not brought back yet.
        self._waiting: set[bytes] = set()
        self.damaged = DamagedFiles(replica, log, upkeep, directory, self.counters)
        upkeep.watch_rot(self._slot_rotted, lambda: self.holds_snapshots)

    # -- what others see of it

    def request(self) -> None:
        """Have a pass begin now, or after the one that is under way."""
        self._requested.set()

    @property
    def running(self) -> bool:
        return self.state != "idle" or self._requested.is_set()

    @property
    def waiting(self) -> int:
        """How many keys the other replicas have yet to bring back."""
        replica = self._replica
        back = [key for key in self._waiting if replica.table.peek(slot_of(key), key) is not None]
        self._waiting.difference_update(back)
        return len(self._waiting | replica.promises.doubtful)

    @property
    def holds_snapshots(self) -> bool:
        """Whether what is in memory is not to be written to a file just now."""
        return self._rotten or bool(self._replica.promises.doubtful)

    @property
    def age_s(self) -> float:
        """How long ago the last pass ended; -1 if there was none."""
        if self.ended_ms is None:
            return -1.0
        return max(0.0, (self._clock.wall_ms() - self.ended_ms) / 1000)

    def told(self) -> dict[str, object]:
        """How it stands, for people."""
        counters = self.counters
        return {
            "state": self.state if self.state != "idle" or not self.running else "requested",
            "done": self.done,
            "total": self.total,
            "last_ended": None if self.ended_ms is None else rfc3339(self.ended_ms),
            "passes": counters.passes,
            "found_in_memory": counters.found_in_memory,
            "found_on_disk": counters.found_on_disk,
            "mended": counters.mended,
            "unmendable": counters.unmendable,
            "waiting_for_others": self.waiting,
            "damaged_files": self.damaged.names(),
        }

    # -- when

    async def run(self) -> None:
        """The loop: a pass whenever one is due or asked for."""
        due_ms = self._first_due_ms()
        while True:
            left_s = (due_ms - self._clock.wall_ms()) / 1000
            if left_s > 0 and not self._requested.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, look_s)):
                        await self._requested.wait()
                continue
            await self.scrub()
            due_ms = self._clock.wall_ms() + self._interval_ms

    def _first_due_ms(self) -> int:
        now_ms, interval_ms = self._clock.wall_ms(), self._interval_ms
        kept = self._kept.read_or_put_aside()
        if kept is not None and _ended_ms_of(kept) <= now_ms:
            self.ended_ms = _ended_ms_of(kept)
            soon_ms = int(self._draw.uniform(0, min(overdue_s * 1000, interval_ms)))
            return max(self.ended_ms + interval_ms, now_ms + soon_ms)
        return now_ms + int(self._draw.uniform(0, interval_ms))

    async def scrub(self) -> None:
        """One pass."""
        self._requested.clear()
        self._said.info("scrub begins")
        began_s = self._clock.monotonic_s()
        try:
            suspects = await self._look_at_memory()
            await self._look_at_files(suspects)
            self._rotten = False
            self.state = "snapshots"
            await self.damaged.renew(self._is_written)
        except Exception:
            # It was due, and still is.
            self._requested.set()
            raise
        finally:
            self.state, self.done, self.total = "idle", 0, 0
        self.counters.passes += 1
        self.ended_ms = self._clock.wall_ms()
        self._kept.keep_soon(b"%d" % self.ended_ms, self._remembered)
        self._said.info(
            "scrub ended",
            seconds=round(self._clock.monotonic_s() - began_s, 3),
            waiting_for_others=self.waiting,
            damaged_files=len(self.damaged.names()),
        )

    def _remembered(self, error: OSError | None) -> None:
        if error is not None:
            # The next start scrubs at another time than it would have, and nothing else.
            self._said.warning("could not keep the time of a scrub", reason=error.strerror)

    async def _is_written(self, snapshots: int) -> bool:
        """Wait until there was one more than so many snapshots; whether there was. There may be no
        room for it, or rot in its way."""
        until_s = self._clock.monotonic_s() + snapshot_wait_s_max
        while self._upkeep.snapshots == snapshots:
            if self._clock.monotonic_s() >= until_s or self._rotten:
                return False
            await self._rest(snapshot_poll_s)
        return True

    # -- memory

    def _slot_rotted(self, slot: int) -> None:
        """A snapshot has come upon this slot."""
        self._said.error("a slot has rotted in memory, and a snapshot waits for a scrub", slot=slot)
        self._rotten = True
        self.request()

    async def _look_at_memory(self) -> list[int]:
        """The slots that are not as they should be."""
        self.state, self.total = "memory", slot_count
        table, monotonic_s = self._replica.table, self._clock.monotonic_s
        suspects: list[int] = []
        until_s = monotonic_s() + slice_s
        for slot in range(slot_count):
            if not table.sound(slot) or table.wrong_leaves(slot):
                suspects.append(slot)
            self.counters.records += table.count(slot)
            self.done = slot + 1
            if monotonic_s() >= until_s:
                await self._rest(rest_s)
                until_s = monotonic_s() + slice_s
        return suspects

    # -- files

    async def _look_at_files(self, suspects: list[int]) -> None:
        """Check all files, and mend these slots with what is in them."""
        left = suspects
        while True:
            slots, left = left[:slots_at_once], left[slots_at_once:]
            for _ in range(readings_max):
                if await self._read_and_mend(frozenset(slots)):
                    break
            else:
                self._said.error("files went while they were read", slots=len(slots))
            if not left:
                return

    async def _read_and_mend(self, slots: frozenset[int]) -> bool:
        """Whether all files that there were could be read, where that matters."""
        self.state, self.done = "files", 0
        seen = _Seen(self, self._replica, Copies(slots))
        snapshots = self._directory.snapshots()[::-1]
        log = LogCheck(self._directory, self._log, seen)
        self.total = log.behind_bytes
        with closing(log):
            for first, path in snapshots:
                try:
                    snapshot = SnapshotCheck(self._directory, path, first, seen)
                except FileNotFoundError:
                    log.vanished = True
                    continue
                with closing(snapshot):
                    self.total += snapshot.size
                    while not snapshot.done:
                        await self._step(snapshot)
                        await self._rest(step_bytes / bytes_per_s)
            # What comes meanwhile is left: a log may grow faster than this reads.
            there_bytes = log.behind_bytes
            while not log.done and log.looked_bytes < there_bytes:
                await self._step(log)
                await self._rest(step_bytes / bytes_per_s)
            if slots and log.vanished:
                return False
            await self._mend(slots, seen.copies, log)
        return True

    async def _step(self, check: Check) -> None:
        if (ahead := check.ahead) is not None:
            await self._fetch(*ahead)
        check.step()
        self.done += step_bytes
        self.counters.file_bytes += step_bytes

    async def _catch_up(self, log: LogCheck) -> None:
        """Read what has become durable, without a rest, until little of that is left."""
        until_s = self._clock.monotonic_s() + catch_up_s_max
        while log.behind_bytes > tail_bytes_max and self._clock.monotonic_s() < until_s:
            await self._step(log)
            await self._rest(0.0)

    async def _fetch(self, path: Path, offset: int) -> None:
        """Have the next piece of a file in memory, as it is on the device."""
        fetched: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def read() -> None:
            # What is wrong with it is found by who reads it next.
            with suppress(OSError), self._disk.open(path, "read") as file:
                file.forget_cached(offset, step_bytes)
                file.read_at(offset, step_bytes)

        def done(_: OSError | None) -> None:
            if not fetched.done():
                fetched.set_result(None)

        self._disk.run_soon(read, done)
        await fetched

    async def _mend(self, slots: frozenset[int], copies: Copies, log: LogCheck) -> None:
        replica = self._replica
        mender = Mender(
            replica.table,
            replica.promises,
            copies,
            lambda key: replica.changing(key) is not None,
            self._others,
        )
        for slot in sorted(slots):
            await self._catch_up(log)
            # From here on in one turn: nothing becomes durable that was not read.
            while not log.done:
                log.step()
            self._report(mender.mend(slot))
            await self._rest(rest_s)

    def _report(self, mended: Mended) -> None:
        counters, error = self.counters, self._said.error
        counters.found_in_memory += max(mended.found, 1)
        counters.mended += mended.found - len(mended.lost) - mended.kept
        counters.unmendable += mended.kept
        for key in mended.keys:
            error("rot in memory was mended from the files", slot=mended.slot, **_place(key))
        for key in mended.lost:
            # A key that has rotted itself has left its slot, and will not come back as it is.
            if slot_of(key) == mended.slot:
                self._waiting.add(key)
            error(
                "rot in memory, and no sound copy in the files: taken out, for the other replicas "
                "to bring it back",
                slot=mended.slot,
                **_place(key),
            )
        if mended.kept:
            error(
                "rot in memory, and nobody has a sound copy: it is one of these keys",
                slot=mended.slot,
                keys=mended.kept,
            )
        if mended.leaves:
            error("digests have rotted and were rebuilt", slot=mended.slot, leaves=mended.leaves)
        if not mended.found:
            counters.mended += 1
            error("rot in memory that has been replaced since", slot=mended.slot)

    def mend_promise(self, key: bytes) -> None:
        self.counters.found_in_memory += 1
        self.counters.mended += 1
        self._said.error(
            "rot in what was accepted was mended from the log", slot=slot_of(key), **_place(key)
        )

    async def _rest(self, seconds: float) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        timer = self._clock.call_later(seconds, end)
        try:
            await over
        finally:
            timer.cancel()

    @property
    def _disk(self) -> Disk:
        return self._directory.disk


class _Seen:
    """What one reading of the files has shown."""

    def __init__(self, scrub: Scrub, replica: Replica, copies: Copies) -> None:
        self.copies = copies
        self.damage = scrub.damaged.report
        self._scrub = scrub
        self._replica = replica

    def saw(self, kind: int, body: bytes) -> None:
        if self.copies.slots:
            self.copies.add(kind, body)
        if kind == ACCEPTED:
            self._look_at_promise(body)

    def saw_damaged(self, kind: int, body: bytes) -> None:
        if self.copies.slots:
            self.copies.add(kind, body, damaged=True)

    def _look_at_promise(self, body: bytes) -> None:
        """What was accepted and is in no cell has no sum; the log has it as it came. One ballot has
        one record."""
        replica = self._replica
        key, found = decode_accepted(body)
        slot = slot_of(key)
        held = replica.promises.get(slot, key)
        if (
            held.ballot == found.ballot
            and held.record != found.record
            and held.record is not replica.table.peek(slot, key)
        ):
            replica.promises.put(slot, key, held._replace(record=found.record))
            self._scrub.mend_promise(key)


def _ended_ms_of(kept: bytes) -> int:
    if not kept.isdigit():
        raise PeerError("it does not say when the last scrub has ended")
    return int(kept)


def _place(key: bytes) -> dict[str, object]:
    """Whose key it is, for a log: neither the key nor its value."""
    try:
        parts = split_storage_key(key)
    except PeerError:
        return {"tenant": None, "namespace": None}
    return {"tenant": parts.tenant, "namespace": parts.namespace.decode(errors="backslashreplace")}
