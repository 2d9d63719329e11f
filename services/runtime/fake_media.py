"""What a fake disk holds: content and names, as read, as durable, and what a power cut leaves.

The rules it follows, and what it leaves out, stand above `fake_disk.FakeDisk`.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

# What devices write whole or not at all.
sector_bytes = 512
page_bytes = 4096

_zero_page = bytes(page_bytes)


class SparseBytes:
    """The content of a file. Only pages that were written take memory."""

    __slots__ = ("_pages", "size")

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self.size = 0

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        content = bytearray(length)
        end = offset + length
        wanted = range(offset // page_bytes, (end + page_bytes - 1) // page_bytes)
        for index in wanted if len(wanted) < len(self._pages) else list(self._pages):
            page = self._pages.get(index)
            if page is None or index not in wanted:
                continue
            start = index * page_bytes
            low, high = max(offset, start), min(end, start + page_bytes)
            content[low - offset : high - offset] = page[low - start : high - start]
        return bytes(content)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        end = offset + len(data)
        position = offset
        while position < end:
            index, start = divmod(position, page_bytes)
            page = self._pages.get(index)
            if page is None:
                page = self._pages[index] = bytearray(_zero_page)
            taken = min(page_bytes - start, end - position)
            page[start : start + taken] = data[position - offset : position - offset + taken]
            position += taken
        if data:
            self.size = max(self.size, end)

    def resize(self, size: int) -> None:
        if size < self.size:
            last, kept = divmod(size, page_bytes)
            for index in [index for index in self._pages if index > last]:
                del self._pages[index]
            if last in self._pages:
                self._pages[last][kept:] = bytes(page_bytes - kept)
        self.size = size

    def flip(self, byte: int, bit: int) -> None:
        if byte < self.size:
            self.write(byte, bytes([self.read(byte, 1)[0] ^ (1 << bit)]))

    def copy(self) -> SparseBytes:
        twin = SparseBytes()
        twin._pages = {index: bytearray(page) for index, page in self._pages.items()}
        twin.size = self.size
        return twin


@dataclass(slots=True, frozen=True)
class Write:
    offset: int
    data: bytes


_no_write = Write(0, b"")


@dataclass(slots=True, frozen=True)
class Resize:
    size: int
    cuts: bool


def _part(write: Write, low: int, high: int) -> Write:
    """What it writes from `low` on and below `high`."""
    start = max(low, write.offset)
    data = write.data[start - write.offset : max(0, high - write.offset)]
    return Write(start, data) if data else _no_write


def _cut(change: Write | Resize, size: int) -> Write | Resize:
    """What is left of it in a file that was cut to this size afterwards."""
    if isinstance(change, Write):
        return _part(change, 0, size)
    return Resize(min(change.size, size), cuts=change.cuts)


class Inode:
    """A file without its name: what reads see, what is durable, and what lies between."""

    __slots__ = ("_changes", "_strayed", "_unsynced", "durable", "linked", "live")

    def __init__(self) -> None:
        self.live = SparseBytes()
        self.durable = SparseBytes()
        self.linked = True
        # Each with its number, in order. What a commit leaves of a write keeps its number.
        self._unsynced: list[tuple[int, Write | Resize]] = []
        self._changes = 0
        self._strayed = False

    def write(self, offset: int, data: bytes) -> None:
        self.live.write(offset, data)
        self._change(Write(offset, data))

    def resize(self, size: int) -> None:
        self._change(Resize(size, cuts=size < self.live.size))
        self.live.resize(size)

    def mark(self) -> int:
        """How many changes this file has seen; a sync covers those before it started."""
        return self._changes

    def _change(self, change: Write | Resize) -> None:
        self._unsynced.append((self._changes, change))
        self._changes += 1

    def _take(self, mark: int) -> list[Write | Resize]:
        taken = [change for number, change in self._unsynced if number < mark]
        self._unsynced = self._unsynced[len(taken) :]
        return taken

    def settle(self, mark: int) -> None:
        """A sync that started at `mark` succeeded."""
        for change in self._take(mark):
            if isinstance(change, Write):
                self.durable.write(change.offset, change.data)
            elif change.cuts:
                self.durable.resize(change.size)
            else:
                # A commit behind it may have made more durable already.
                self.durable.resize(max(self.durable.size, change.size))

    def settle_range(self, mark: int, offset: int, length: int) -> None:
        """A commit of this range succeeded, whose own write was the last before `mark`.

        Sectors arrive whole, with all that was written to them before. Other changes stay
        unsynced, but for cuts: a file that arrives longer than it was cut to has been cut.
        """
        if not length:
            return
        low = offset // sector_bytes * sector_bytes
        high = -(-(offset + length) // sector_bytes) * sector_bytes
        kept: list[tuple[int, Write | Resize]] = []
        for number, change in self._unsynced:
            if number >= mark or (isinstance(change, Resize) and not change.cuts):
                kept.append((number, change))
            elif isinstance(change, Resize):
                self.durable.resize(min(self.durable.size, change.size))
                kept = [(each, _cut(before, change.size)) for each, before in kept]
            else:
                inside = _part(change, low, high)
                self.durable.write(inside.offset, inside.data)
                kept.append((number, _part(change, 0, low)))
                kept.append((number, _part(change, high, sys.maxsize)))
        self._unsynced = [entry for entry in kept if entry[1] != _no_write]

    def stray(self, mark: int, rng: random.Random) -> None:
        """A sync failed: reads go on seeing the changes, no later sync will write them."""
        survive(self.durable, self._take(mark), rng)
        self._strayed = True

    def crash(self, rng: random.Random) -> None:
        if self._unsynced or self._strayed:
            survive(self.durable, self._take(self.mark()), rng)
            self.live = self.durable.copy()
            self._strayed = False


def survive(durable: SparseBytes, changes: list[Write | Resize], rng: random.Random) -> None:
    """Apply what a power cut leaves of changes that no sync has covered.

    A device writes a sector from the page cache as it stands then, so a change that survives in
    a sector brings along the earlier ones to the same sector: these wait in `behind`.
    """
    fate = rng.random()
    if fate < 0.2:
        return
    behind: dict[int, list[Write]] = {}
    for change in changes:
        if isinstance(change, Write):
            kept = _sectors_kept(change, rng) if fate < 0.8 else None
            _survive_write(durable, change, kept, behind)
            end = change.offset + len(change.data)
            if end > durable.size and rng.random() < 0.25:
                # The new length arrived without the data: zeros.
                durable.resize(rng.randint(durable.size, end))
        elif fate < 0.8 and rng.random() < 0.5:
            if change.cuts:
                return
        elif change.cuts:
            for earlier in behind.values():
                for fragment in earlier:
                    durable.write(fragment.offset, fragment.data)
            behind.clear()
            durable.resize(min(durable.size, change.size))
        else:
            durable.resize(max(durable.size, change.size))


def _sectors_kept(change: Write, rng: random.Random) -> set[int] | None:
    """Which sectors of a write reach the device: none, all (None), the first few, or any."""
    sectors = range(
        change.offset // sector_bytes, -(-(change.offset + len(change.data)) // sector_bytes)
    )
    match rng.randrange(4):
        case 0:
            return set()
        case 1:
            return None
        case 2:
            return set(sectors[: rng.randint(0, len(sectors))])
        case _:
            return {sector for sector in sectors if rng.random() < 0.5}


def _survive_write(
    durable: SparseBytes, change: Write, kept: set[int] | None, behind: dict[int, list[Write]]
) -> None:
    if kept is None and not behind:
        durable.write(change.offset, change.data)
        return
    position, end = change.offset, change.offset + len(change.data)
    while position < end:
        sector = position // sector_bytes
        stop = min(end, (sector + 1) * sector_bytes)
        data = change.data[position - change.offset : stop - change.offset]
        if kept is None or sector in kept:
            for earlier in behind.pop(sector, ()):
                durable.write(earlier.offset, earlier.data)
            durable.write(position, data)
        else:
            behind.setdefault(sector, []).append(Write(position, data))
        position = stop


class Directory:
    """Names now, names that are durable, and the changes in between, each a small patch."""

    __slots__ = ("_durable", "_unsynced", "entries")

    def __init__(self) -> None:
        self.entries: dict[str, Directory | Inode] = {}
        self._durable: dict[str, Directory | Inode] = {}
        self._unsynced: list[dict[str, Directory | Inode | None]] = []

    def change(self, patch: dict[str, Directory | Inode | None]) -> None:
        self._apply(self.entries, patch)
        self._unsynced.append(patch)

    def sync(self) -> None:
        for patch in self._unsynced:
            self._apply(self._durable, patch)
        self._unsynced.clear()

    def crash(self, rng: random.Random) -> None:
        """Keep the first few of the unsynced changes, as a journal does."""
        del self._unsynced[rng.randint(0, len(self._unsynced)) :]
        self.sync()
        self.entries = dict(self._durable)
        for node in self.entries.values():
            if isinstance(node, Inode):
                node.linked = True  # A removal that did not survive is undone.
            node.crash(rng)

    @staticmethod
    def _apply(
        entries: dict[str, Directory | Inode], patch: dict[str, Directory | Inode | None]
    ) -> None:
        for name, node in patch.items():
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node

    def bytes_used(self) -> int:
        return sum(
            node.bytes_used() if isinstance(node, Directory) else node.live.size
            for node in self.entries.values()
        )
