"""Pools: what goes out, when they are refilled, and what becomes of them."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from services.core.errors import FixRequest, RetryLater
from services.core.permute import radix
from services.keygen.lots import ClaimLot, RangeLot
from services.keygen.memory_ranges import MemoryRanges
from services.keygen.pool import first_range_keys, range_keys_max
from tests.unit.pool_world import lease_s, permutations, pool_world


def key(index: int, size: int = 7) -> str:
    return permutations[size].key(index).decode()


async def test_a_tenant_who_asks_once_costs_a_few_keys() -> None:
    async with pool_world() as world:
        await world.take()
        await world.settle()
        assert [one.count for one in world.ranges.ranges] == [first_range_keys]


async def test_one_large_batch_does_not_reserve_many_more() -> None:
    async with pool_world() as world:
        await world.take(5_000)
        await world.settle()
        assert [one.count for one in world.ranges.ranges] == [5_000, 1_000]


async def test_ranges_grow_with_the_rate_until_they_last_for_minutes() -> None:
    async with pool_world() as world:
        for _ in range(600):
            await world.take(500)
            await world.settle()
            world.timeline.advance(0.1)
        counts = [one.count for one in world.ranges.ranges]
        # 5,000 a second, for two minutes.
        assert 500_000 <= counts[-1] <= 700_000
        assert all(later <= 8 * sooner for sooner, later in itertools.pairwise(counts[1:]))
        assert max(counts) <= range_keys_max


async def test_a_rate_that_falls_makes_the_next_range_small_again() -> None:
    async with pool_world() as world:
        for _ in range(100):
            await world.take(500)
            await world.settle()
            world.timeline.advance(0.1)
        world.timeline.advance(800)
        assert world.pools.pool(7, 7).next_range_keys(world.clock.monotonic_s()) < 20_000


async def test_a_pool_is_refilled_before_it_is_empty_and_nobody_waits() -> None:
    async with pool_world() as world:
        await world.take(1)
        pool = world.pools.pool(7, 7)
        for _ in range(5_000):
            assert pool.ready
            pool.take()
            await world.settle()


async def test_keys_are_made_once_whatever_the_order_of_requests() -> None:
    rng = random.Random(11)
    ranges = MemoryRanges()
    async with pool_world(ranges) as one, pool_world(ranges, instance_id=2) as other:
        found: list[str] = []
        for _ in range(300):
            world = rng.choice([one, other])
            count = rng.choice([1, 1, 1, 2, 127, 128, 129, 1_000])
            found += await world.take(count, tenant=rng.choice([1, 2]))
        assert len(set(found)) == len(found)


async def test_those_who_come_together_wait_for_one_refill() -> None:
    async with pool_world() as world:
        world.ranges.hold()
        waiting = [asyncio.create_task(world.take(10)) for _ in range(64)]
        await world.settle()
        assert world.ranges.refills == 1
        world.ranges.go_on()
        found = [key for keys in await asyncio.gather(*waiting) for key in keys]
        assert len(set(found)) == 640
        # What came with the first turn was reserved for; a few more may have been needed behind.
        assert world.ranges.refills <= 3


async def test_a_crowd_does_not_wait_for_a_visitors_range_first() -> None:
    async with pool_world() as world:
        world.ranges.hold()
        waiting = [asyncio.create_task(world.take()) for _ in range(64)]
        await world.settle()
        world.ranges.go_on()
        await asyncio.gather(*waiting)
        assert world.ranges.refills == 1
        [reserved] = world.ranges.ranges
        pool = world.pools.pool(7, 7)
        assert (reserved.count, pool.left) == (8_000, 8_000 - 64)
        assert pool.low_water == 6_000, "the next one begins sooner"
        await world.take(2_000)
        await world.settle()
        assert world.ranges.refills == 2
        assert pool.low_water == pool.range_keys // 2 > 6_000, "and in time: nobody waited"


async def test_a_batch_is_no_crowd() -> None:
    async with pool_world() as world:
        await world.take(15)
        await world.settle()
        assert world.ranges.ranges[0].count == first_range_keys


async def test_a_client_who_leaves_does_not_take_the_refill_along() -> None:
    async with pool_world() as world:
        world.ranges.hold()
        leaving, staying = (asyncio.create_task(world.take()) for _ in range(2))
        await world.settle()
        leaving.cancel()
        world.ranges.go_on()
        assert len(await staying) == 1
        with pytest.raises(asyncio.CancelledError):
            await leaving


async def test_without_postgresql_the_pool_goes_on_and_then_it_is_said() -> None:
    async with pool_world() as world:
        await world.take()
        world.ranges.away = True
        assert len(await world.take(19)) == 19
        with pytest.raises(RetryLater) as refused:
            await world.take()
        assert refused.value.code == "database_unavailable"
        assert int(refused.value.headers["Retry-After"]) >= 1
        world.ranges.away = False
        world.pools.refill_low()
        await world.settle()
        assert world.pools.pool(7, 7).left >= 20, "refilled by itself"


async def test_a_batch_that_the_pool_cannot_serve_leaves_it_as_it_was() -> None:
    async with pool_world() as world:
        await world.take()
        world.ranges.away = True
        with pytest.raises(RetryLater):
            await world.take(500)
        assert world.pools.pool(7, 7).left == 19


async def test_while_postgresql_is_away_it_is_not_asked_by_every_request() -> None:
    async with pool_world() as world:
        await world.take(1)
        world.ranges.away = True
        pool = world.pools.pool(7, 7)
        before = world.ranges.refills
        for _ in range(15):
            pool.take()
            await world.settle()
        assert world.ranges.refills <= before + 2


async def test_one_that_hangs_is_given_up_in_time() -> None:
    async with pool_world() as world:
        world.ranges.hold()
        with pytest.raises(RetryLater) as refused:
            await world.take()
        assert refused.value.code == "database_unavailable"
        world.ranges.go_on()


async def test_what_was_not_confirmed_is_used_by_nobody() -> None:
    async with pool_world() as world:
        world.ranges.lose_replies = 2
        assert await world.take() == [key(40)]
        assert world.pools.counters.unconfirmed == 2
        assert world.pools.counters.gaps == 40
        await world.leave()
        assert [one.closed for one in world.ranges.ranges] == [True, True, False]


async def test_after_three_lost_replies_it_is_said() -> None:
    async with pool_world() as world:
        world.ranges.lose_replies = 3
        with pytest.raises(RetryLater) as refused:
            await world.take()
        assert refused.value.code == "database_unavailable"
        assert len(await world.take()) == 1


async def test_returned_keys_go_out_before_new_ones() -> None:
    async with pool_world() as world:
        first = await world.take(3)
        await world.settle()
        world.ranges.give_back(7, 7, 0, 2)
        world.pools.give_returned_first([(7, 7)])
        assert set(await world.take(2)) == {first[0], first[2]}
        assert await world.take() == [key(3)], "and nothing is left out"
        assert world.pools.counters.reissued == 2


async def test_returned_keys_of_another_tenant_or_size_stay_where_they_are() -> None:
    async with pool_world() as world:
        world.ranges.give_back(8, 7, 1_000)
        world.ranges.give_back(7, 8, 1_001)
        assert await world.take() == [key(0)]


async def test_a_claim_whose_reply_was_lost_can_be_claimed_again() -> None:
    async with pool_world() as world:
        world.ranges.give_back(7, 7, 900)
        world.ranges.lose_replies = 1
        assert await world.take() != [key(900)]
        await world.leave()
        world.pools.give_returned_first([(7, 7)])
        assert await world.take() == [key(900)]


async def test_a_claim_that_is_all_out_is_finished() -> None:
    async with pool_world() as world:
        world.ranges.give_back(7, 7, 900, 901)
        await world.take(2)
        await world.leave()
        assert world.ranges.returned == []


async def test_it_is_known_which_keys_may_yet_be_given_out() -> None:
    async with pool_world() as world:
        world.ranges.give_back(7, 7, 900, 901)
        taken = await world.take(1)
        pool = world.pools.pool(7, 7)
        held = {index for index in range(1_000) if pool.holds(index)}
        out = {permutations[7].index(one.encode()) for one in taken}
        assert held >= {900, 901} - out
        assert not held & out
        await world.take(30)
        for index in range(3_000):
            if pool.holds(index):
                assert index not in (900, 901)
                break


async def test_what_is_held_is_exactly_what_comes() -> None:
    rng = random.Random(5)
    async with pool_world(range_size=200) as world:
        await world.take()
        pool = world.pools.pool(7, 7)
        for _ in range(60):
            held = {index for index in range(20_000) if pool.holds(index)}
            assert len(held) == pool.left
            for taken in await world.take(rng.choice([1, 3, 50, 200])):
                index = permutations[7].index(taken.encode())
                assert not pool.holds(index)
            world.timeline.advance(1)
            await world.settle()


async def test_nothing_is_given_out_once_the_lease_may_be_over() -> None:
    async with pool_world() as world:
        await world.take()
        world.timeline.advance(lease_s)
        with pytest.raises(RetryLater):
            await world.take()
        assert world.ranges.refills == 1, "nor is anything reserved"


async def test_a_lease_runs_out_while_the_machine_is_suspended() -> None:
    async with pool_world() as world:
        await world.take()
        world.clock.suspend(lease_s)
        with pytest.raises(RetryLater):
            await world.take()
        assert world.ranges.refills == 1, "nor is anything reserved"


async def test_a_lease_that_ends_empties_every_pool_also_for_those_who_still_have_one() -> None:
    async with pool_world() as world:
        await world.take()
        pool = world.pools.pool(7, 7)
        world.pools.end()
        assert (pool.ready, pool.left) == ([], 0)
        assert world.pools.counters.gaps == 19
        with pytest.raises(RetryLater):
            await world.take()
        world.pools.begin(2, permutations)
        world.pools.usable_until_s = world.clock.boot_s() + lease_s
        assert await world.take() == [key(20)]


async def test_what_was_reserved_under_a_lease_that_ended_meanwhile_is_let_go_of() -> None:
    async with pool_world() as world:
        world.ranges.hold()
        waiting = asyncio.create_task(world.take())
        await world.settle()
        world.pools.end()
        world.pools.begin(2, permutations)
        world.pools.usable_until_s = world.clock.boot_s() + lease_s
        world.ranges.go_on()
        with pytest.raises(RetryLater):
            await waiting
        await world.leave()
        assert world.ranges.ranges[0].closed
        assert await world.take() == [key(20)]


async def test_an_idle_pool_makes_room_for_another_tenant() -> None:
    async with pool_world(pools_max=3) as world:
        for tenant in range(1, 4):
            await world.take(tenant=tenant)
        await world.take(tenant=4)
        assert len(world.pools) == 3
        assert world.pools.counters.dropped_pools == 1
        await world.leave()
        assert sum(one.closed for one in world.ranges.ranges) == 1
        found = [one for tenant in range(1, 5) for one in await world.take(5, tenant=tenant)]
        assert len(set(found)) == 20


async def test_a_claim_of_a_dropped_pool_goes_back_on_the_list() -> None:
    async with pool_world(pools_max=1) as world:
        world.ranges.give_back(7, 7, 900, 901)
        (first,) = await world.take()
        await world.take(tenant=8)
        await world.leave()
        assert await world.take() != [first]
        assert {one.index for one in world.ranges.returned} == {900, 901} - {
            permutations[7].index(first.encode())
        }


async def test_the_last_keys_of_a_size_are_given_out_and_then_it_is_said() -> None:
    async with pool_world() as world:
        world.ranges.next[6] = radix**6 - 30
        found = await world.take(20, size=6)
        found += await world.take(10, size=6)
        assert len(set(found)) == 30
        with pytest.raises(FixRequest) as refused:
            await world.take(size=6)
        assert refused.value.code == "limit_reached"
        assert len(await world.take(size=7)) == 1, "of other sizes there are some"


async def test_figures_tell_what_went_out() -> None:
    async with pool_world() as world:
        await world.take(5)
        await world.take(2_000, tenant=8)
        pool = world.pools.pool(7, 7)
        pool.take()
        assert world.pools.issued == 2_006
        world.pools.end()
        assert world.pools.issued == 2_006


def test_lots_give_each_index_once() -> None:
    lot = RangeLot(1, 10, 20, 0)
    part = lot.cut(4)
    assert (part.left, lot.left) == (4, 6)
    assert part.draw(permutations[7], 10).keys == [key(n).encode() for n in range(10, 14)]
    assert lot.draw(permutations[7], 2).keys == [key(14).encode(), key(15).encode()]
    assert [index for index in range(30) if lot.holds(index, 1)] == [15, 16, 17, 18, 19]
    claim = ClaimLot(1, [(3, 100), (9, 100), (4, 200)])
    assert claim.draw(permutations[7], 10) == ([key(3).encode(), key(9).encode()], 100)
    assert claim.unused(1) == [(9, 100), (4, 200)]
