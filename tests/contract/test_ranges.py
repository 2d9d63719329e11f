"""Ranges and claims: one contract, for PostgreSQL and for what stands for it in unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

import pytest

from services.core.errors import FixRequest
from services.core.permute import radix
from services.keygen.lots import ClaimLot, RangeLot
from services.keygen.marks import Marks
from services.keygen.memory_ranges import MemoryRanges
from services.keygen.pools import Ranges
from services.keygen.range_store import Leavings, RangeStore, Wish
from services.keygen.return_store import Name, ReturnStore
from services.keygen.watch_store import WatchStore
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database

ours = Wish(tenant=7, size=7, needed=1, wanted=1, count=20, claim_max=1_000)


class World(Protocol):
    """One installation, and what tests do to it."""

    ranges: Ranges

    async def leave(self, leavings: Leavings) -> None: ...
    async def give_back(self, index: int, tenant: int = 7) -> None: ...
    async def begin_at(self, size: int, counter: int) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._memory = MemoryRanges()
        self.ranges: Ranges = self._memory

    async def leave(self, leavings: Leavings) -> None:
        await self._memory.leave(1, leavings)

    async def give_back(self, index: int, tenant: int = 7) -> None:
        self._memory.give_back(tenant, 7, index)

    async def begin_at(self, size: int, counter: int) -> None:
        self._memory.next[size] = counter


class InPostgres:
    def __init__(self, database: Database) -> None:
        self._store = RangeStore(database, return_rest_s=0.0)
        self.ranges: Ranges = self._store
        self._returns = ReturnStore(database)
        self._database = database

    async def leave(self, leavings: Leavings) -> None:
        await self._store.leave(1, leavings)

    async def give_back(self, index: int, tenant: int = 7) -> None:
        """Of a range that is closed for it: what is free waits for nothing else."""
        (standing,) = await self._returns.look(tenant, [Name(7, index)])
        await self._store.leave(1, Leavings(ranges=[standing.range_id]))
        await self._returns.take_back(tenant, [standing])

    async def begin_at(self, size: int, counter: int) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                "UPDATE key_counters SET next = $2 WHERE size = $1", size, counter
            )


@pytest.fixture(params=["memory", "postgres"])
async def world(
    request: pytest.FixtureRequest, database_address: DatabaseAddress
) -> AsyncIterator[World]:
    if request.param == "memory":
        yield InMemory()
        return
    async with Database(database_address) as database:
        assert (await WatchStore(database).look(1, Marks())).is_roll_over, "nobody else is there"
        yield InPostgres(database)


async def reserved(world: World, wish: Wish = ours, instance_id: int = 1) -> RangeLot:
    refill = await world.ranges.refill(instance_id, wish)
    assert refill.claimed is None
    assert refill.reserved is not None
    return refill.reserved


async def claimed(world: World, wish: Wish = ours, instance_id: int = 1) -> ClaimLot:
    refill = await world.ranges.refill(instance_id, wish)
    assert refill.reserved is None
    assert refill.claimed is not None
    return refill.claimed


def indexes(lot: RangeLot) -> range:
    """What it holds, found out by what it says of each."""
    first = next(index for index in range(radix**3) if lot.holds(index, 0))
    return range(first, first + lot.left)


async def test_ranges_follow_each_other_whoever_asks(world: World) -> None:
    lots = [
        await reserved(world, replace(ours, tenant=tenant), instance_id)
        for tenant, instance_id in ((7, 1), (8, 1), (7, 2), (0, 3))
    ]
    assert [indexes(lot) for lot in lots] == [
        range(20), range(20, 40), range(40, 60), range(60, 80)
    ]  # fmt: skip
    assert len({lot.range_id for lot in lots}) == 4


async def test_those_who_reserve_at_once_never_share_an_index(world: World) -> None:
    lots = await asyncio.gather(
        *(reserved(world, ours, instance_id) for instance_id in range(1, 9) for _ in range(5))
    )
    found = [index for lot in lots for index in indexes(lot)]
    assert sorted(found) == list(range(40 * 20))


async def test_each_size_has_its_own_counter(world: World) -> None:
    assert indexes(await reserved(world)) == range(20)
    assert indexes(await reserved(world, replace(ours, size=16))) == range(20)


async def test_who_needs_more_gets_more(world: World) -> None:
    lot = await reserved(world, replace(ours, needed=500, wanted=500))
    assert lot.left == 500


async def test_who_only_looks_for_returned_keys_reserves_none(world: World) -> None:
    refill = await world.ranges.refill(1, replace(ours, needed=0, wanted=0))
    assert (refill.claimed, refill.reserved) == (None, None)


async def test_a_returned_key_is_claimed_by_one(world: World) -> None:
    await reserved(world)
    await world.give_back(3)
    await world.give_back(5)
    refills = await asyncio.gather(*(world.ranges.refill(one, ours) for one in range(1, 6)))
    found = [
        index
        for refill in refills
        if refill.claimed is not None
        for index, _ in refill.claimed.unused(0)
    ]
    assert sorted(found) == [3, 5]


async def test_only_the_tenant_it_belongs_to_claims_a_key(world: World) -> None:
    await reserved(world)
    await world.give_back(3)
    await reserved(world, replace(ours, tenant=8))
    assert [index for index, _ in (await claimed(world)).unused(0)] == [3]


async def test_with_too_few_returned_keys_new_ones_come_too(world: World) -> None:
    await reserved(world)
    await world.give_back(3)
    refill = await world.ranges.refill(1, replace(ours, needed=10, wanted=10))
    assert refill.claimed is not None
    assert refill.reserved is not None
    assert (refill.claimed.left, refill.reserved.left) == (1, 20)


async def test_what_was_not_given_out_of_a_claim_can_be_claimed_again(world: World) -> None:
    await reserved(world)
    await world.give_back(3)
    await world.give_back(5)
    first = await claimed(world)
    out, unused = first.unused(0)
    await world.leave(Leavings(claims=[first.claim_id], unused=[(first.claim_id, unused[0])]))
    again = await claimed(world)
    assert again.claim_id != first.claim_id
    assert [index for index, _ in again.unused(0)] == [unused[0]], f"and not {out[0]}"


async def test_what_is_told_twice_changes_nothing_the_second_time(world: World) -> None:
    await reserved(world)
    await world.give_back(3)
    first = await claimed(world)
    leavings = Leavings(claims=[first.claim_id], unused=[(first.claim_id, 3)])
    await world.leave(leavings)
    again = await claimed(world)
    await world.leave(leavings)
    refill = await world.ranges.refill(2, replace(ours, needed=0, wanted=0))
    assert refill.claimed is None, "another claim has it"
    await world.leave(Leavings(claims=[again.claim_id]))


async def test_a_claim_that_may_never_have_happened_is_undone(world: World) -> None:
    await reserved(world)
    await world.give_back(3)
    lost = await claimed(world)
    await world.leave(Leavings(void_claims=[lost.claim_id]))
    assert [index for index, _ in (await claimed(world)).unused(0)] == [3]


@pytest.mark.parametrize("size", [6, 16])
async def test_the_last_keys_are_given_and_no_more(world: World, size: int) -> None:
    await world.begin_at(size, radix**size - 30)
    wish = replace(ours, size=size)
    assert (await reserved(world, wish)).left == 20
    with pytest.raises(FixRequest, match="limit_reached"):
        await world.ranges.refill(1, replace(wish, needed=11, wanted=11))
    assert (await reserved(world, replace(wish, wanted=11))).left == 10
    with pytest.raises(FixRequest, match="limit_reached"):
        await world.ranges.refill(1, wish)
