"""A replicator without a directory learns who it is, and for whom an earlier self kept hints."""

from __future__ import annotations

import asyncio
import random

from services.replicator.allotment import Allotment
from services.replicator.memory_map_store import MemoryMapStore, Rows
from tests.unit.replicator_world import member_of


def allotment(rows: Rows, name: str = "replicator-1") -> Allotment:
    return Allotment(MemoryMapStore(rows, 3, 3), name, random.Random(1))


async def formed() -> Rows:
    rows = Rows()
    store = MemoryMapStore(rows, 3, 3)
    for number in (1, 2, 3):
        await store.register(member_of(number))
    return rows


async def test_the_first_of_its_name_owes_nobody_anything() -> None:
    one = allotment(await formed())
    assert await one.stamper() == 1
    assert (one.earlier, one.owed, one.trouble) == (0, frozenset(), None)


async def test_another_of_the_name_owes_all_nodes_what_the_first_may_have_kept() -> None:
    rows = await formed()
    await allotment(rows).stamper()
    other = allotment(rows)
    assert await other.stamper() == 2
    assert other.earlier == 1
    assert other.owed == {"node-1", "node-2", "node-3"}


async def test_before_there_was_a_cluster_nobody_can_have_missed_anything() -> None:
    rows = Rows()
    await allotment(rows).stamper()
    other = allotment(rows)
    await other.stamper()
    assert (other.earlier, other.owed) == (1, frozenset())


async def test_a_lost_reply_to_its_own_allotment_is_no_earlier_self() -> None:
    rows = await formed()
    rows.replies_to_lose = 2
    one = allotment(rows)
    assert await one.stamper() == 3
    assert (one.earlier, one.owed) == (0, frozenset())


async def test_it_waits_for_a_database_that_is_away_and_says_why() -> None:
    rows = await formed()
    rows.away = True
    one = allotment(rows)
    asking = asyncio.create_task(one.stamper())
    await asyncio.sleep(0.05)
    assert one.trouble == "PostgreSQL cannot be reached"
    rows.away = False
    assert await asking == 1
    assert one.trouble is None
