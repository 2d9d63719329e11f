"""Keys, outside of the service that gave them, and whether any of them is there twice.

Each takes as many bytes as it has characters, so ten million of them fit anywhere: those of one
length that begin alike lie one behind the other, and are compared in the end, a part at a time.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator


class Collected:
    def __init__(self) -> None:
        # By length and first two characters.
        self._parts: defaultdict[tuple[int, str], bytearray] = defaultdict(bytearray)
        self.total = 0

    def add(self, keys: Iterable[str]) -> None:
        parts = self._parts
        for key in keys:
            parts[len(key), key[:2]] += key.encode("ascii")
            self.total += 1

    @property
    def memory_bytes(self) -> int:
        return sum(map(sys.getsizeof, self._parts.values()))

    def duplicates(self) -> Iterator[str]:
        """Each key that is there once more than once, once for each time that it is too many."""
        for (size, _), part in self._parts.items():
            keys = [bytes(part[at : at + size]) for at in range(0, len(part), size)]
            if len(set(keys)) < len(keys):
                for key, times in Counter(keys).items():
                    yield from [key.decode("ascii")] * (times - 1)
