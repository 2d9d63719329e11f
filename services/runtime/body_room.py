"""Room for large bodies: how much of the memory those that are being worked on may have, together.

A body is in memory from its first byte until its answer is on its way, and so is what is made of
it. What arrives takes its room as it arrives, so that nobody holds any with an announcement; what
finds none is refused.

Nobody may have more than a share, nor more than is then left free: whoever comes when others have
much gets less than they, and leaves as much again. So the room is never taken up whole, and a
value of a megabyte finds some when the largest bodies do not.

`take` and `give_back` may be called from callbacks: nothing here waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from services.core.errors import RetryLater
from services.runtime.metrics import Metrics

# With what is made of them, decoded and sent on, about four times as much. The largest body of all
# is a batch of 16 MiB.
room_bytes_default: Final = 192 << 20
# What 64 connections take that put the largest values at once.
share_bytes_default: Final = 64 << 20
# Smaller ones are in memory unasked: what a connection costs anyway is as much.
small_bytes_max: Final = 64 << 10


class BodyRoom:
    """One for all of a process that takes large bodies."""

    def __init__(
        self,
        bytes_max: int = room_bytes_default,
        share_bytes_max: int = share_bytes_default,
    ) -> None:
        self._bytes_max = bytes_max
        self._share_bytes_max = share_bytes_max
        self._by_owner: Counter[Hashable] = Counter()
        self.taken_bytes = 0
        self.refused = 0

    def add_to(self, metrics: Metrics) -> None:
        metrics.add(
            "large_bodies_bytes",
            "gauge",
            "Bytes of large bodies that are being worked on",
            lambda: self.taken_bytes,
        )
        metrics.add(
            "large_bodies_refused",
            "counter",
            "Large bodies that found no room",
            lambda: self.refused,
        )

    def take(self, size_bytes: int, whose: Hashable = None) -> bool:
        """Whether there is so much more for this owner, who has it then until `give_back`. What
        nobody is known to own shares one share."""
        held = self._by_owner.get(whose, 0) + size_bytes
        taken = self.taken_bytes + size_bytes
        if held > min(self._share_bytes_max, self._bytes_max - taken):
            self.refused += 1
            return False
        self.taken_bytes = taken
        self._by_owner[whose] = held
        return True

    def give_back(self, size_bytes: int, whose: Hashable = None) -> None:
        """To be called with as much as was taken, in whatever pieces."""
        self.taken_bytes -= size_bytes
        self._by_owner[whose] -= size_bytes
        if not self._by_owner[whose]:
            del self._by_owner[whose]

    def refusal(self, size_bytes: int) -> RetryLater:
        """What to say to whom `take` refused so much."""
        return RetryLater(
            "overloaded",
            f"Bodies of {self.taken_bytes} bytes are being worked on; there is no room for "
            f"{size_bytes} more",
        )

    @contextmanager
    def held(self, whose: Hashable = None) -> Iterator[Held]:
        """What the block takes, a body by a body or as one arrives, is given back at its end."""
        held = Held(self, whose)
        try:
            yield held
        finally:
            if held.size_bytes:
                self.give_back(held.size_bytes, whose)


class Held:
    """The room that one request has."""

    def __init__(self, room: BodyRoom, whose: Hashable) -> None:
        self._room = room
        self._whose = whose
        self.size_bytes = 0

    def grow(self, arrived_bytes: int) -> None:
        """Have room for so much in all. RetryLater if there is not so much."""
        more_bytes = arrived_bytes - self.size_bytes
        if arrived_bytes <= small_bytes_max or more_bytes <= 0:
            return
        if not self._room.take(more_bytes, self._whose):
            raise self._room.refusal(more_bytes)
        self.size_bytes = arrived_bytes
