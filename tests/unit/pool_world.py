"""Pools over ranges in memory, with a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.core.permute import Permutation, sizes
from services.keygen.lots import Drawn
from services.keygen.memory_ranges import MemoryRanges
from services.keygen.pools import Pools
from services.runtime.clock import FakeClock, Timeline

permutations = {size: Permutation(b"m" * 32, size) for size in sizes}
lease_s = 900.0


class PoolWorld:
    """One keygen. Several of them may share the ranges."""

    def __init__(
        self,
        ranges: MemoryRanges,
        *,
        instance_id: int = 1,
        range_size: int = 1_000,
        pools_max: int = 100,
    ) -> None:
        self.instance_id = instance_id
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        self.ranges = ranges
        self.pools = Pools(ranges, range_size, self.clock, pools_max)
        self.pools.begin(instance_id, permutations)
        self.pools.usable_until_s = self.clock.boot_s() + lease_s

    async def take(self, count: int = 1, *, tenant: int = 7, size: int = 7) -> list[str]:
        """The keys, drawn."""
        found: list[str] = []
        for part in await self.pools.take(tenant, size, count):
            drawn = part if isinstance(part, Drawn) else part.draw(permutations[size], count)
            found += [key.decode() for key in drawn.keys]
        assert len(found) == count
        return found

    async def settle(self) -> None:
        """Until what goes on in the background has ended."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def leave(self) -> None:
        """As the keeper does."""
        while self.pools.doubts:
            doubt = self.pools.doubts.pop()
            await self.ranges.leave(doubt.instance_id, doubt.leavings)
        await self.ranges.leave(self.instance_id, self.pools.take_leavings())


@asynccontextmanager
async def pool_world(
    ranges: MemoryRanges | None = None,
    *,
    instance_id: int = 1,
    range_size: int = 1_000,
    pools_max: int = 100,
) -> AsyncIterator[PoolWorld]:
    world = PoolWorld(
        ranges or MemoryRanges(),
        instance_id=instance_id,
        range_size=range_size,
        pools_max=pools_max,
    )
    async with world.pools:
        yield world
