"""Quotas of days: one contract, for PostgreSQL and for what stands for it in unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.keygen.memory_ledger import MemoryLedger
from services.keygen.quota_store import QuotaStore, Unspent, block_share
from services.keygen.quotas import QuotaLedger
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database

limit = 1_000


@pytest.fixture(params=["memory", "postgres"])
async def ledger(
    request: pytest.FixtureRequest, database_address: DatabaseAddress
) -> AsyncIterator[QuotaLedger]:
    if request.param == "memory":
        yield MemoryLedger()
        return
    async with Database(database_address) as database:
        yield QuotaStore(database)


async def used(ledger: QuotaLedger, key_id: int = 1) -> int:
    return (await ledger.used(7, key_id))[0]


async def test_a_block_is_a_share_of_what_is_left(ledger: QuotaLedger) -> None:
    block = await ledger.take(7, 1, limit, 1)
    assert (block.count, block.used) == (limit // block_share, limit // block_share)
    assert 0 < block.left_s <= 86_400
    assert await used(ledger) == block.used


async def test_who_needs_more_than_a_share_gets_that_and_no_more(ledger: QuotaLedger) -> None:
    assert (await ledger.take(7, 1, limit, 700)).count == 700


async def test_what_does_not_fit_takes_nothing(ledger: QuotaLedger) -> None:
    await ledger.take(7, 1, limit, 700)
    refused = await ledger.take(7, 1, limit, 301)
    assert (refused.count, refused.used) == (0, 700)
    assert (await ledger.take(7, 1, limit, 300)).count == 300


async def test_those_who_ask_at_once_are_never_given_more_than_the_day_has(
    ledger: QuotaLedger,
) -> None:
    blocks = await asyncio.gather(*(ledger.take(7, 1, limit, 1) for _ in range(300)))
    assert sum(block.count for block in blocks) == await used(ledger) == limit


async def test_the_last_keys_are_set_aside_one_by_one(ledger: QuotaLedger) -> None:
    await ledger.take(7, 1, limit, limit - block_share)
    assert (await ledger.take(7, 1, limit, 1)).count == 1


async def test_what_is_given_back_can_be_taken_again(ledger: QuotaLedger) -> None:
    block = await ledger.take(7, 1, limit, limit)
    await ledger.give_back([Unspent(7, 1, block.day, 10), Unspent(7, 2, block.day, 10)])
    assert await used(ledger) == limit - 10
    assert (await ledger.take(7, 1, limit, 10)).count == 10


async def test_what_has_no_limit_is_added_up(ledger: QuotaLedger) -> None:
    await ledger.count([(7, 1, 5), (7, 2, 1 << 40)])
    await ledger.count([(7, 1, 6)])
    assert (await used(ledger), await used(ledger, 2)) == (11, 1 << 40)


async def test_nobody_has_used_anything_before_they_do(ledger: QuotaLedger) -> None:
    assert await used(ledger, 99) == 0
    await ledger.forget()


async def test_of_a_tenant_each_key_is_told_the_most_first_and_all_of_them_by_days(
    ledger: QuotaLedger,
) -> None:
    await ledger.count([(7, 1, 5), (7, 2, 11), (7, 0, 5), (8, 1, 99)])
    told = await ledger.of_tenant(7)
    assert [(key.key_id, key.used) for key in told.keys] == [(2, 11), (0, 5), (1, 5)]
    assert list(told.days) == [0, 0, 0, 0, 0, 0, 21]
    nobody = await ledger.of_tenant(9)
    assert (list(nobody.keys), sum(nobody.days), len(nobody.days)) == ([], 0, 7)
