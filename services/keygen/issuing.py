"""Giving out keys: what a day's quota allows, from the pool; and both or neither.

What is given out counts, whether or not the client hears of it: its answer may have been lost.
"""

from __future__ import annotations

import asyncio
from typing import Final

from services.keygen.lots import Drawn
from services.keygen.pools import Pools
from services.keygen.quotas import Account, Quotas

# Made before others have their turn: less than a millisecond.
drawn_at_once: Final = 512


class Issuing:
    def __init__(self, pools: Pools, quotas: Quotas) -> None:
        self.pools = pools
        self.quotas = quotas

    async def issue(self, tenant: int, account: Account, size: int, count: int) -> list[Drawn]:
        """So many keys. RetryLater `quota_exhausted`, or as of `Pools.take`: then none are."""
        await self.quotas.take(account, count)
        day = account.day
        try:
            parts = await self.pools.take(tenant, size, count)
        except BaseException:
            self.quotas.refund(account, count, day)
            raise
        permutation = self.pools.permutations[size]
        drawn: list[Drawn] = []
        for part in parts:
            if isinstance(part, Drawn):
                drawn.append(part)
                continue
            while part.left:
                drawn.append(part.draw(permutation, drawn_at_once))
                if part.left:
                    await asyncio.sleep(0)
        return drawn
