"""What a pool is filled with: keys that one confirmed transaction has made this instance's to give.

    RangeLot    new ones, a run of indexes
    ClaimLot    ones that were returned, index by index

A lot gives its indexes in their order, each once. Those that were drawn and are not given out yet
are the pool's; `holds` is told how many of the last ones these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.core.permute import Permutation


class Drawn(NamedTuple):
    """Keys in the order in which they go out, and since when they have been reserved."""

    keys: list[bytes]
    reserved_ms: int


class RangeLot:
    __slots__ = ("_end", "_next", "range_id", "reserved_ms")

    def __init__(self, range_id: int, first: int, end: int, reserved_ms: int) -> None:
        self.range_id = range_id
        self.reserved_ms = reserved_ms
        self._next = first
        self._end = end

    @property
    def left(self) -> int:
        return self._end - self._next

    @property
    def end(self) -> int:
        """The first index behind it."""
        return self._end

    def draw(self, permutation: Permutation, count: int) -> Drawn:
        """The next keys, at most so many."""
        first = self._next
        self._next = min(first + count, self._end)
        return Drawn(permutation.keys(first, self._next - first), self.reserved_ms)

    def cut(self, count: int) -> RangeLot:
        """The next indexes, at most so many, as a lot of their own: for whoever draws them soon."""
        first = self._next
        self._next = min(first + count, self._end)
        return RangeLot(self.range_id, first, self._next, self.reserved_ms)

    def put_back(self, drawn: int) -> None:
        """Draw the last keys again later: nobody has seen them."""
        self._next -= drawn

    def holds(self, index: int, drawn: int) -> bool:
        """Whether it may yet be given out, if the last `drawn` keys are still the pool's."""
        return self._next - drawn <= index < self._end


class ClaimLot:
    """Of claims there is one a transaction; each key comes from a range of its own."""

    __slots__ = ("_next", "_returned", "claim_id")

    def __init__(self, claim_id: int, returned: Sequence[tuple[int, int]]) -> None:
        """`returned`: each index, and when it was reserved."""
        self.claim_id = claim_id
        self._returned = returned
        self._next = 0

    def __len__(self) -> int:
        return len(self._returned)

    @property
    def left(self) -> int:
        return len(self._returned) - self._next

    def draw(self, permutation: Permutation, count: int) -> Drawn:
        """The next keys that were reserved at one time, at most so many."""
        start = self._next
        reserved_ms = self._returned[start][1]
        end = start + 1
        while end < min(start + count, len(self._returned)):
            if self._returned[end][1] != reserved_ms:
                break
            end += 1
        self._next = end
        return Drawn(
            [permutation.key(index) for index, _ in self._returned[start:end]], reserved_ms
        )

    def cut(self, count: int) -> ClaimLot:
        part = self._returned[self._next : self._next + count]
        self._next += len(part)
        return ClaimLot(self.claim_id, part)

    def holds(self, index: int, drawn: int) -> bool:
        return index in [one for one, _ in self.unused(drawn)]

    def unused(self, drawn: int) -> Sequence[tuple[int, int]]:
        """What is not given out, if the last `drawn` keys are still the pool's."""
        return self._returned[self._next - drawn :]


Lot = RangeLot | ClaimLot
