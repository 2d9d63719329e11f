"""Giving out keys: what a day's quota allows, from the pool; and both or neither.

What is given out counts, whether or not the client hears of it: its answer may have been lost.
"""

from __future__ import annotations

import asyncio
from typing import Final

from services.core.errors import RetryLater
from services.keygen.lots import Drawn, Lot
from services.keygen.pools import Pools
from services.keygen.quotas import Account, Quotas

# Made before others have their turn: less than a millisecond.
drawn_at_once: Final = 512
# For the quota and the pool together: less than the gateway and other clients wait.
issue_s_max: Final = 4.5


class Issuing:
    def __init__(self, pools: Pools, quotas: Quotas) -> None:
        self.pools = pools
        self.quotas = quotas

    async def issue(self, tenant: int, account: Account, size: int, count: int) -> list[Drawn]:
        """So many keys. RetryLater or FixRequest, as of `Quotas.take` and
        `Pools.take`, within `issue_s_max`: then none are."""
        try:
            async with asyncio.timeout(issue_s_max):
                parts = await self._take(tenant, account, size, count)
        except TimeoutError:
            raise RetryLater(
                "database_unavailable", f"No keys were reserved within {issue_s_max:g} s"
            ) from None
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

    async def _take(
        self, tenant: int, account: Account, size: int, count: int
    ) -> list[Lot | Drawn]:
        await self.quotas.take(account, count)
        day = account.day
        try:
            return await self.pools.take(tenant, size, count)
        except BaseException:
            self.quotas.refund(account, count, day)
            raise
