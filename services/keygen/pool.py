"""The keys of one tenant and one size that can be given out at once.

    lots ──128 at a time──► ready, as the bytes that are sent ──► take

Taking one is a hot path: 110 ns, and every 128th time what it takes to make as many, some 0.15 ms
(CPython 3.11, 2.1 GHz). What was returned goes out before what is new.

How much is to be reserved next follows from how fast the pool has emptied: a range should last for
minutes, and one that was used once costs a few keys. Where a crowd waits the first one is not that
small, and the next refill begins sooner: what clients wait for at the start of a burst makes the
slowest hundredth of it, so that is one transaction and not three.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from services.core.permute import Permutation
from services.keygen.lots import ClaimLot, Drawn, Lot, RangeLot

# So many are made in 0.2 ms, and take 6 KB until they are given out.
ready_keys: Final = 128
# What somebody gets who may never come again.
first_range_keys: Final = 20
range_lasts_s: Final = 120.0
# One burst does not tell what comes next: a range is at most so many times the one before.
growth_max: Final = 8
# 80,000 a second for those two minutes. A pool that is killed loses one and a half of them, which
# the shortest keys have room for 30,000 times.
range_keys_max: Final = 10_000_000
# No rate can be told from less: what comes in bursts counts as if it came slowly.
_measured_s_min: Final = 5.0


class Pool:
    """Filled by `add`. `low` is called by whatever takes it below its low-water mark, and
    `finished` with each lot once its last key is out."""

    __slots__ = (
        "_finished",
        "_left_then",
        "_lots",
        "_low",
        "_permutation",
        "_range_size",
        "_refilled_s",
        "keys_wanted",
        "left",
        "left_at_last_look",
        "left_when_last_listed",
        "low_water",
        "range_keys",
        "ready",
        "refilling",
        "requests_waiting",
        "reserved_ms",
        "retry_at_s",
        "returned_first",
        "size",
        "tenant",
    )

    def __init__(
        self,
        tenant: int,
        permutation: Permutation,
        range_size: int,
        low: Callable[[Pool], None],
        finished: Callable[[Lot], None],
    ) -> None:
        self.tenant = tenant
        self.size = permutation.size
        self._permutation = permutation
        self._range_size = range_size
        self._low = low
        self._finished = finished
        # The first is the one that `ready` was drawn from.
        self._lots: deque[Lot] = deque()
        # The next one is the last. Empty only if nothing is left at all.
        self.ready: list[bytes] = []
        # When those were reserved.
        self.reserved_ms = 0
        self.left = 0
        # Of the last range, as planned.
        self.range_keys = 0
        self.low_water = 0
        # Whether keys may have been returned, which are to go out before those that are here.
        self.returned_first = False
        # Keys that are waited for, and by how many requests; the refill that is under way; when
        # another may be tried.
        self.keys_wanted = self.requests_waiting = 0
        self.refilling: asyncio.Task[object] | None = None
        self.retry_at_s = float("-inf")
        # What was left when somebody last looked whether this pool is in use.
        self.left_at_last_look = -1
        # The same, of whether anything has gone out since it was last asked for returned keys.
        self.left_when_last_listed = 0
        self._refilled_s = 0.0
        self._left_then = 0

    @property
    def is_crowded(self) -> bool:
        """Whether more wait than somebody who tries it out would send."""
        return self.requests_waiting > first_range_keys

    def take(self) -> bytes:
        """The next key, of which there must be one: `ready` is not empty."""
        key = self.ready.pop()
        left = self.left = self.left - 1
        if not self.ready:
            self._make_ready()
        if left <= self.low_water:
            self._low(self)
        return key

    def take_many(self, count: int) -> list[Lot | Drawn]:
        """So many keys, or indexes of keys that the caller has to draw; they must be there."""
        parts: list[Lot | Drawn] = []
        wanted = count
        while wanted:
            if self.ready:
                keys = self.ready[: -wanted - 1 : -1]
                del self.ready[-wanted:]
                parts.append(Drawn(keys, self.reserved_ms))
                wanted -= len(keys)
                continue
            lot = self._lots[0]
            if not lot.left:
                self._finished(self._lots.popleft())
                continue
            part = lot.cut(wanted)
            parts.append(part)
            wanted -= part.left
        self.left -= count
        if not self.ready:
            self._make_ready()
        if self.left <= self.low_water:
            self._low(self)
        return parts

    def add(
        self, claimed: ClaimLot | None, reserved: RangeLot | None, planned: int, now_s: float
    ) -> None:
        """`planned` is what `next_range_keys` was: a batch that needs more says little about what
        comes after it."""
        if claimed is not None:
            self._put_in_front(claimed)
            self.left += claimed.left
            self._left_then += claimed.left
        if reserved is not None:
            self._lots.append(reserved)
            self.left += reserved.left
            self.range_keys = planned
            self.low_water = planned - planned // 4 if self.is_crowded else planned // 2
            self._refilled_s = now_s
            self._left_then = self.left
        if not self.ready:
            self._make_ready()

    def next_range_keys(self, now_s: float) -> int:
        """How many to reserve, judged by what has become of those before."""
        if self.is_crowded and self.range_keys <= self._range_size:
            return min(growth_max * self._range_size, range_keys_max)
        if not self.range_keys:
            return min(first_range_keys, self._range_size)
        measured_s = max(now_s - self._refilled_s, _measured_s_min)
        lasting = int((self._left_then - self.left) / measured_s * range_lasts_s)
        most = min(growth_max * self.range_keys, range_keys_max)
        return max(self._range_size, min(lasting, most))

    def holds(self, index: int) -> bool:
        """Whether this key may yet be given out."""
        drawn = len(self.ready)
        for lot in self._lots:
            if lot.holds(index, drawn):
                return True
            drawn = 0
        return False

    def empty(self) -> Iterator[tuple[Lot, int]]:
        """Give nothing out any more. Each lot, with how many of its drawn keys were not."""
        drawn = len(self.ready)
        lots, self._lots, self.ready, self.left = self._lots, deque(), [], 0
        for lot in lots:
            yield lot, drawn
            drawn = 0

    def _put_in_front(self, claimed: ClaimLot) -> None:
        """Before all that is new, and behind what else was returned."""
        first = self._lots[0] if self._lots else None
        if isinstance(first, RangeLot):
            first.put_back(len(self.ready))
            self.ready = []
        before = 0
        while before < len(self._lots) and isinstance(self._lots[before], ClaimLot):
            before += 1
        self._lots.insert(before, claimed)

    def _make_ready(self) -> None:
        lots = self._lots
        while lots:
            if lots[0].left:
                drawn = lots[0].draw(self._permutation, ready_keys)
                drawn.keys.reverse()
                self.ready, self.reserved_ms = drawn.keys, drawn.reserved_ms
                return
            self._finished(lots.popleft())
