"""Ranges in memory, for tests: one installation, which any number of keygens share.

Behaves as range_store.py does, and fails as it is told to: `away` is PostgreSQL out of reach, and
`lose_replies` has so many reservations happen whose commits are not answered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.core.errors import FixRequest, RetryLater
from services.core.permute import radix
from services.keygen.lots import ClaimLot, RangeLot
from services.keygen.range_store import Doubt, Leavings, Refill, Unconfirmed, Wish

_reserved_ms = 1_700_000_000_000


@dataclass(slots=True)
class KeptRange:
    id: int
    size: int
    first: int
    count: int
    tenant: int
    instance_id: int
    closed: bool = False


@dataclass(slots=True)
class KeptReturn:
    size: int
    index: int
    tenant: int
    claim_id: int | None = None


class MemoryRanges:
    def __init__(self) -> None:
        self.next: dict[int, int] = {}
        self.ranges: list[KeptRange] = []
        # Those that are to be given out again, or were claimed for it.
        self.returned: list[KeptReturn] = []
        self.away = False
        self.lose_replies = 0
        self.refills = 0
        self._claims = 0
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        """Let what is asked wait, until `go_on`."""
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    def give_back(self, tenant: int, size: int, *indexes: int) -> None:
        """Keys are returned, and their ranges are closed."""
        self.returned += [KeptReturn(size, index, tenant) for index in indexes]

    async def refill(self, instance_id: int, wish: Wish) -> Refill:
        self.refills += 1
        await self._open.wait()
        # As a round trip lets others have their turn.
        await asyncio.sleep(0)
        if self.away:
            raise RetryLater("database_unavailable", "PostgreSQL is away")
        claimed = self._claim(wish)
        found = len(claimed) if claimed is not None else 0
        reserved = self._reserve(instance_id, wish, found) if found < wish.wanted else None
        if self.lose_replies:
            self.lose_replies -= 1
            leavings = Leavings(
                ranges=[reserved.range_id] if reserved is not None else (),
                void_claims=[claimed.claim_id] if claimed is not None else (),
            )
            doubt = Doubt(str(self.refills), instance_id, leavings)
            raise Unconfirmed(doubt, reserved.left if reserved is not None else 0)
        return Refill(claimed, reserved)

    async def leave(self, _: int, leavings: Leavings) -> set[tuple[int, int]]:
        for kept in self.returned:
            is_unused = (kept.claim_id, kept.index) in leavings.unused
            if is_unused or kept.claim_id in leavings.void_claims:
                kept.claim_id = None
        self.returned = [one for one in self.returned if one.claim_id not in leavings.claims]
        for one in self.ranges:
            one.closed = one.closed or one.id in leavings.ranges
        return set()

    def _claim(self, wish: Wish) -> ClaimLot | None:
        chosen = [
            one
            for one in self.returned
            if (one.tenant, one.size, one.claim_id) == (wish.tenant, wish.size, None)
        ][: wish.claim_max]
        if not chosen:
            return None
        self._claims += 1
        for one in chosen:
            one.claim_id = self._claims
        return ClaimLot(self._claims, [(one.index, _reserved_ms) for one in chosen])

    def _reserve(self, instance_id: int, wish: Wish, claimed: int) -> RangeLot:
        first = self.next.get(wish.size, 0)
        left = radix**wish.size - first
        if left < max(wish.needed - claimed, 1):
            raise FixRequest("limit_reached", f"There are {left} keys of size {wish.size}")
        count = min(max(wish.count, wish.wanted - claimed), left)
        self.next[wish.size] = first + count
        kept = KeptRange(len(self.ranges) + 1, wish.size, first, count, wish.tenant, instance_id)
        self.ranges.append(kept)
        return RangeLot(kept.id, first, first + count, _reserved_ms)
