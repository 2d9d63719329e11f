"""Quotas of a day: counted in blocks, by several keygens, and never past the limit."""

from __future__ import annotations

import asyncio
import random

import pytest

from services.core.errors import RetryLater
from services.keygen.memory_ledger import MemoryLedger
from services.keygen.quotas import Quotas, block_idle_s, failure_known_s
from services.runtime.clock import FakeClock, Timeline


class Day:
    """Some keygens over one ledger."""

    def __init__(self, keygens: int = 1, accounts_max: int = 100) -> None:
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        self.ledger = MemoryLedger()
        # What the last one that was refused was told.
        self.wait_s = 0
        self.detail = ""
        self.keygens = [Quotas(self.ledger, self.clock, accounts_max) for _ in range(keygens)]

    async def take(
        self, count: int = 1, *, at: int = 0, limit: int | None = 1_000, key_id: int = 1
    ) -> bool:
        """Whether it was given."""
        quotas = self.keygens[at]
        try:
            await quotas.take(quotas.account(7, key_id, limit), count)
        except RetryLater as refused:
            if refused.code != "quota_exhausted":
                raise
            self.wait_s = refused.retry_after_s
            self.detail = refused.detail
            return False
        return True

    async def used(self, *, at: int = 0, limit: int | None = 1_000) -> int:
        quotas = self.keygens[at]
        return (await quotas.quota(quotas.account(7, 1, limit))).used

    def after(self, seconds: float) -> None:
        self.timeline.advance(seconds)


async def test_exactly_the_limit_is_given_by_one_keygen() -> None:
    day = Day()
    given = 0
    while await day.take():
        given += 1
    assert given == 1_000
    assert day.ledger.taken < 200, "in blocks"
    assert day.wait_s == day.ledger.left_s, "until midnight"
    assert await day.used() == 1_000


@pytest.mark.parametrize("seed", range(5))
async def test_several_keygens_never_give_more_and_hardly_less(seed: int) -> None:
    day, rng = Day(keygens=3), random.Random(seed)
    given = 0

    async def client() -> None:
        nonlocal given
        at = rng.randrange(3)
        # Each ends with the first refusal, as a client does.
        while await day.take(at=at):
            given += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(client() for _ in range(50)))
    assert 990 <= given <= 1_000


async def test_counts_of_all_sizes_never_pass_the_limit() -> None:
    day, rng = Day(keygens=3), random.Random(3)
    given = 0
    for _ in range(2_000):
        count = rng.choice([1, 1, 2, 17, 100, 400])
        given += count if await day.take(count, at=rng.randrange(3)) else 0
        if rng.random() < 0.01:
            day.after(block_idle_s)
            for quotas in day.keygens:
                await quotas.flush()
    assert 990 <= given <= 1_000


async def test_a_count_that_fits_only_partly_is_refused_whole() -> None:
    day = Day()
    assert await day.take(600)
    assert not await day.take(401)
    assert await day.take(400)
    assert not await day.take(1)
    assert await day.used() == 1_000


async def test_more_than_a_day_has_is_refused_from_the_beginning() -> None:
    day = Day()
    assert not await day.take(1_001)
    assert "1001 at once" in day.detail
    assert "has 1000 keys" in day.detail
    assert "midnight" not in day.detail, "which would change nothing"
    assert await day.take(1_000)
    assert not await day.take(1)
    assert "midnight" in day.detail


async def test_a_new_day_begins_by_its_date_alone() -> None:
    day = Day()
    day.ledger.left_s = 10.0
    while await day.take():
        pass
    day.after(11)
    day.ledger.next_day()
    assert await day.used() == 0
    assert await day.take(1_000)


async def test_what_was_set_aside_yesterday_is_not_spent_today() -> None:
    day = Day()
    day.ledger.left_s = 10.0
    assert await day.take()
    day.after(10)
    day.ledger.next_day()
    given = 0
    while await day.take():
        given += 1
    assert given == 1_000


async def test_blocks_that_nobody_spends_from_are_given_back() -> None:
    day = Day(keygens=2)
    assert await day.take(at=0)
    assert await day.used(at=1) == 31, "of which others know only that it is set aside"
    assert await day.used(at=0) == 1
    for _ in range(2):
        day.after(block_idle_s)
        await day.keygens[0].flush()
    assert await day.used(at=1) == 1
    assert await day.take(999, at=1)
    assert not await day.take(at=0)


async def test_without_postgresql_nothing_is_given_beyond_the_block() -> None:
    day = Day()
    assert await day.take()
    day.ledger.away = True
    for _ in range(30):
        assert await day.take()
    with pytest.raises(RetryLater) as refused:
        await day.take()
    assert refused.value.code == "database_unavailable"
    day.ledger.away = False
    day.after(failure_known_s)
    assert await day.take()
    assert await day.used() == 32


async def test_who_waits_for_a_block_shares_its_failure_and_is_not_the_next_to_wait() -> None:
    day = Day()
    day.ledger.open.clear()
    waiting = [asyncio.create_task(day.take()) for _ in range(12)]
    await asyncio.sleep(0)
    day.ledger.away = True
    day.ledger.open.set()
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(end, RetryLater) for end in ends)
    assert {end.code for end in ends if isinstance(end, RetryLater)} == {"database_unavailable"}
    assert day.ledger.asked == 1
    day.ledger.away = False
    with pytest.raises(RetryLater):
        await day.take()
    assert day.ledger.asked == 1, "and for a moment nobody asks again"
    day.after(failure_known_s)
    assert await day.take()


async def test_what_has_no_limit_is_counted_all_the_same() -> None:
    day = Day()
    day.ledger.away = True
    assert await day.take(10_000, limit=None), "and needs nobody for it"
    day.ledger.away = False
    assert await day.used(limit=None) == 10_000
    day.after(block_idle_s)
    await day.keygens[0].flush()
    assert await day.used(limit=None) == 10_000
    await day.take(1, limit=None)
    assert await day.used(limit=None) == 10_001


async def test_what_is_refunded_after_it_was_counted_is_taken_off_what_comes_next() -> None:
    day = Day()
    quotas = day.keygens[0]
    account = quotas.account(7, 1, None)
    await quotas.take(account, 40)
    day.after(block_idle_s)
    await quotas.flush()
    quotas.refund(account, 40, account.day)
    await day.take(5, limit=None, key_id=2)
    day.after(block_idle_s)
    await quotas.flush()
    told = await quotas.of_tenant(7)
    assert {key.key_id: key.used for key in told.keys} == {1: 0, 2: 5}
    await quotas.take(account, 41)
    day.after(block_idle_s)
    await quotas.flush()
    assert await day.used(limit=None) == 41


async def test_a_smaller_plan_holds_from_the_next_lookup_on() -> None:
    day = Day()
    quotas = day.keygens[0]
    former = quotas.account(7, 1, None)
    await quotas.take(former, 900)
    assert await day.take(100)
    assert former.left == 0, "whoever still has it gets nothing from it"
    await quotas.flush()
    given = 0
    while await day.take():
        given += 1
    assert given == 0, "900 were given before"


async def test_what_was_not_given_out_is_not_counted() -> None:
    day = Day()
    quotas = day.keygens[0]
    account = quotas.account(7, 1, 1_000)
    await quotas.take(account, 1_000)
    quotas.refund(account, 1_000, account.day)
    assert await day.take(1_000)


async def test_what_was_taken_yesterday_is_not_refunded_today() -> None:
    day = Day()
    day.ledger.left_s = 10.0
    quotas = day.keygens[0]
    account = quotas.account(7, 1, 1_000)
    await quotas.take(account, 500)
    taken_on = account.day
    day.after(11)
    day.ledger.next_day()
    assert await day.take(900)
    quotas.refund(account, 500, taken_on)
    assert not await day.take(101)
    assert await day.take(100)


async def test_a_count_that_fits_is_given_though_others_spend_meanwhile() -> None:
    day = Day()
    assert await day.take()
    day.ledger.open.clear()
    many = asyncio.create_task(day.take(100))
    await asyncio.sleep(0)
    for _ in range(30):
        assert await day.take(), "from the block that is there"
    day.ledger.open.set()
    assert await many
    assert await day.take(1_000 - 131)
    assert not await day.take()


async def test_what_could_not_be_counted_is_counted_once_that_can_be_done_again() -> None:
    day = Day()
    quotas = day.keygens[0]
    assert await day.take(limit=1_000, key_id=2)
    day.ledger.away = True
    for _ in range(3):
        await day.take(5, limit=None)
        day.after(block_idle_s)
        with pytest.raises(RetryLater):
            await quotas.flush()
    day.ledger.away = False
    day.after(block_idle_s)
    await quotas.flush()
    assert await day.used(limit=None) == 15
    assert await day.take(999, key_id=2)


async def test_an_account_that_made_room_while_its_quota_was_asked_for_tells_a_true_one() -> None:
    day = Day(accounts_max=1)
    await day.take(5, limit=None)
    quotas = day.keygens[0]
    former = quotas.account(7, 1, None)
    await day.take(key_id=2)
    assert (await quotas.quota(former)).used <= 5


async def test_each_api_key_has_its_own_day() -> None:
    day = Day()
    assert await day.take(1_000, key_id=1)
    assert await day.take(1_000, key_id=2)


async def test_accounts_make_room_and_lose_nothing_by_it() -> None:
    day = Day(accounts_max=3)
    for key_id in range(20):
        assert await day.take(key_id=key_id)
    assert len(day.keygens[0]) == 3
    await day.keygens[0].flush()
    for key_id in range(20):
        assert await day.take(900, key_id=key_id)
        assert not await day.take(100, key_id=key_id)


async def test_many_who_come_together_take_one_block_at_a_time() -> None:
    day = Day()
    given = await asyncio.gather(*(day.take() for _ in range(100)))
    assert all(given)
    assert day.ledger.taken <= 5


async def test_a_block_that_was_not_confirmed_is_spent_by_nobody() -> None:
    day = Day()
    day.ledger.lose_replies = 1
    with pytest.raises(RetryLater) as refused:
        await day.take()
    assert refused.value.code == "database_unavailable", "nothing was given out"
    day.after(failure_known_s)
    given = 0
    while await day.take():
        given += 1
    assert given == 1_000 - 31


async def test_of_a_tenant_all_keys_and_days_are_told_without_what_is_only_set_aside() -> None:
    day = Day()
    await day.take(40, key_id=1)
    day.ledger.next_day()
    await day.take(3, key_id=1)
    await day.take(2, key_id=2)
    await day.take(7, key_id=3, limit=None)
    (quotas,) = day.keygens
    await quotas.flush(everything=True)
    await day.take(1, key_id=2)
    told = await quotas.of_tenant(7)
    assert {key.key_id: key.used for key in told.keys} == {1: 3, 2: 3, 3: 7}
    assert list(told.days) == [0, 0, 0, 0, 0, 40, 13]
    assert (await quotas.of_tenant(8)).days == [0] * 7
