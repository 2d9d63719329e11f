"""A replica whose memory and files can rot, and the scrub that is to find it."""

from __future__ import annotations

import asyncio
import ctypes
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from services.core import ballots
from services.core.ring import slot_of
from services.dhtnode.acceptor import Acceptor
from services.dhtnode.recovery import Recovery
from services.dhtnode.replica import Replica
from services.dhtnode.scrub import Scrub
from services.dhtnode.table import Table
from services.dhtnode.upkeep import Upkeep
from services.runtime.clock import FakeClock, Timeline
from tests.unit.replica_world import World, digest_key

T = TypeVar("T")

# Where the bytes of a `bytes` object begin in memory.
_content = bytes.__basicsize__ - 1
hour_ms = 3_600_000


def rot(content: bytes, byte: int, bit: int = 0) -> None:
    """Flip a bit of these very bytes in memory, under everybody who has them."""
    cell = ctypes.c_ubyte.from_address(id(content) + _content + byte % len(content))
    cell.value ^= 1 << bit


def copy_of(content: bytes) -> bytes:
    """The same bytes elsewhere in memory."""
    return bytes(bytearray(content))


class ScrubWorld(World):
    """Its scrub runs when `scrub` says so, its snapshots when asked for."""

    def __init__(self, *, others: bool = True, segment_bytes: int = 1 << 20) -> None:
        super().__init__(segment_bytes=segment_bytes)
        self.acceptor = Acceptor(self.replica, self.clock)
        self.others = others
        self.upkeep = Upkeep(
            self.replica,
            self.log,
            self.directory,
            self.clock,
            memory_max_bytes=None,
            disk_reserve_bytes=0,
        )
        self.scrubber = self.new_scrub()

    def new_scrub(self, interval_ms: int = 24 * hour_ms, seed: int = 1) -> Scrub:
        return Scrub(
            self.replica,
            self.log,
            self.upkeep,
            self.directory,
            self.clock,
            random.Random(seed),
            interval_ms=interval_ms,
            others=lambda: self.others,
        )

    async def drive(
        self, work: Coroutine[Any, Any, T], during: Callable[[], object] | None = None
    ) -> T:
        """Have time pass until this is done, with snapshots written when they are wanted."""
        snapshots = asyncio.create_task(self.upkeep.keep_log_short())
        task = asyncio.create_task(work)
        while not task.done():
            if during is not None:
                during()
            self.timeline.advance(0.02)
            await asyncio.sleep(0)
        snapshots.cancel()
        return task.result()

    async def scrub(self, during: Callable[[], object] | None = None) -> dict[str, object]:
        """One pass; what it tells."""
        self.settle()
        await self.drive(self.scrubber.scrub(), during)
        return self.scrubber.told()

    async def snapshot(self) -> Path:
        written = self.upkeep.snapshots
        self.upkeep.want_snapshot()

        async def wait() -> None:
            while self.upkeep.snapshots == written:  # noqa: ASYNC110  It has no event.
                await asyncio.sleep(0)

        await self.drive(wait())
        return self.directory.snapshots()[0][1]

    @property
    def found(self) -> tuple[int, int, int]:
        """How much was found in memory and on disk, and how much of it is mended."""
        counters = self.scrubber.counters
        return counters.found_in_memory, counters.found_on_disk, counters.mended

    def record(self, key: bytes) -> bytes:
        """The very object that is in the table."""
        record = self.table.peek(slot_of(key), key)
        assert record is not None
        return record

    def key_object(self, key: bytes) -> bytes:
        """The very object by which the table has this key."""
        return next(found for found, _ in self.table.items(slot_of(key)) if found == key)

    def accept(self, key: bytes, ballot: bytes, record: bytes) -> int:
        self.asked += 1
        body = ballots.encode_accept(0, ballot, ballot, key, record)
        self.acceptor.accept(self.asker, self.asked, body)
        return self.asked

    def promised(self, key: bytes, ballot: bytes) -> int:
        self.asked += 1
        body = ballots.encode_prepare(0, ballot, key, grows=False)
        self.acceptor.prepare(self.asker, self.asked, body)
        return self.asked

    def read(self, key: bytes) -> int:
        self.asked += 1
        self.acceptor.read(self.asker, self.asked, ballots.encode_read(0, key))
        return self.asked

    def learn(self, key: bytes, ballot: bytes) -> None:
        self.asked += 1
        self.acceptor.learn(self.asker, self.asked, ballots.encode_learn(0, ballot, key, b""))

    def damage(self, path: Path, content: bytes, byte: int = 0) -> int:
        """Flip a bit where a file has these bytes the first time; where that is."""
        whole = self.disk.read(path, 1 << 30)
        offset = whole.index(content) + byte
        self.disk.flip_bit(path, offset, 3)
        return offset

    def recovered(self) -> Replica:
        """What the next start would have, of what is durable by now."""
        self.settle()
        replica = Replica(Table(digest_key), FakeClock(Timeline()))
        for _ in Recovery(self.directory, replica.replay).steps():
            pass
        return replica
