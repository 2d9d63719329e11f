"""What is dear to find and asked for again and again, kept for some seconds.

Whoever asks for the same meanwhile waits for the first who has asked, so it is found once at a
time however many look.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from services.runtime.clock import Clock

Name = TypeVar("Name", bound=Hashable)
Found = TypeVar("Found")

_never_s: Final = float("-inf")


class _Entry(Generic[Found]):
    __slots__ = ("found", "found_s", "one_asks")

    def __init__(self) -> None:
        self.one_asks = asyncio.Lock()
        self.found: Found | None = None
        self.found_s = _never_s


class Kept(Generic[Name, Found]):
    """Of at most so many names; those that were not asked for the longest are forgotten first."""

    def __init__(self, clock: Clock, kept_s: float, names_max: int) -> None:
        self._clock = clock
        self._kept_s = kept_s
        self._names_max = names_max
        self._entries: OrderedDict[Name, _Entry[Found]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def of(self, name: Name, find: Callable[[], Awaitable[Found]]) -> Found:
        """What was found a moment ago, or is found now. What `find` raises is not kept."""
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry()
            if len(self._entries) > self._names_max:
                self._entries.popitem(last=False)
        self._entries.move_to_end(name)
        async with entry.one_asks:
            if entry.found is None or self._clock.monotonic_s() - entry.found_s > self._kept_s:
                entry.found = await find()
                entry.found_s = self._clock.monotonic_s()
            return entry.found
