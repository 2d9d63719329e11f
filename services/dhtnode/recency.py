"""In which order the keys of a cache namespace were last used.

Exactly least recently used, and without ever holding the loop for long: a dictionary of a million
keys stops the world for 30 ms when it grows, and an OrderedDict for 140, so that the keys are
spread over many small ones. Each use of a key gives it a greater tick and moves it to the end of
its part; so each part is in order, its oldest key first, and a heap over the parts finds the
oldest of all. It costs some 90 bytes a key; of 1.5 million puts into a cache of a million keys
the longest took 0.6 ms.

A key may be pinned: it is known, and neither the oldest nor counted until it is used again.

Parts hold only bytes and integers, which keeps them out of the sight of the cycle collector. As
long as there are few keys they stand in a single part, so that an empty cache takes 0.5 KB.
"""

from __future__ import annotations

from heapq import heappop, heappush

# A part of a cache of a million keys holds 4,000, and grows in 0.1 ms.
_part_count = 256
# To spread so many keys over the parts takes 0.4 ms.
lone_part_keys_max = 1_024


class Recency:
    __slots__ = ("_count", "_mask", "_oldest", "_parts", "_queued", "_tick", "pinned")

    def __init__(self) -> None:
        self._parts: list[dict[bytes, int]] = [{}]
        # Chooses the part of a key from its hash.
        self._mask = 0
        # Of each part at most one (tick, part, key), which is its oldest key or was.
        self._oldest: list[tuple[int, int, bytes]] = []
        self._queued = bytearray(1)
        self._tick = 0
        self._count = 0
        self.pinned: dict[bytes, None] = {}

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: bytes) -> bool:
        return key in self._parts[hash(key) & self._mask] or key in self.pinned

    def orders(self, key: bytes) -> bool:
        """Whether the key is known and not pinned."""
        return key in self._parts[hash(key) & self._mask]

    def touch(self, key: bytes) -> None:
        """Make this key the most recently used one."""
        if self.pinned:
            self.pinned.pop(key, None)
        number = hash(key) & self._mask
        part = self._parts[number]
        if part.pop(key, None) is None:
            self._count += 1
            if self._count > lone_part_keys_max and not self._mask:
                self._spread()
                number = hash(key) & self._mask
                part = self._parts[number]
        tick = self._tick = self._tick + 1
        part[key] = tick
        if not self._queued[number]:
            self._queued[number] = 1
            heappush(self._oldest, (tick, number, key))

    def discard(self, key: bytes) -> None:
        if self._parts[hash(key) & self._mask].pop(key, None) is not None:
            self._count -= 1
        else:
            self.pinned.pop(key, None)

    def pop_oldest(self) -> bytes:
        """Take out the least recently used key. There must be one."""
        while True:
            tick, number, key = heappop(self._oldest)
            part = self._parts[number]
            current = part.get(key) == tick
            if current:
                del part[key]
                self._count -= 1
            following = next(iter(part.items()), None)
            if following is None:
                self._queued[number] = 0
            else:
                heappush(self._oldest, (following[1], number, following[0]))
            if current:
                return key

    def _spread(self) -> None:
        """Go from one part to many, for good. In the order of use, so each part is in order."""
        (lone,) = self._parts
        mask = self._mask = _part_count - 1
        parts: list[dict[bytes, int]] = [{} for _ in range(_part_count)]
        for key, tick in lone.items():
            parts[hash(key) & mask][key] = tick
        self._parts = parts
        oldest = [(number, *next(iter(part.items()))) for number, part in enumerate(parts) if part]
        # In the order of ticks, which is that of a heap.
        self._oldest = sorted((tick, number, key) for number, key, tick in oldest)
        self._queued = bytearray(bool(part) for part in parts)
