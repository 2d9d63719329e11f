"""Ranges that are closed become few, and what is known of their keys stays what it was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from services.core.permute import Permutation
from services.keygen import history_store
from services.keygen.history_store import HistoryStore, reissues_kept_days
from services.keygen.inspection import Inspection
from services.keygen.marks import Marks
from services.keygen.range_store import Leavings, RangeStore, Wish
from services.keygen.return_store import Name, RangesMergedError, ReturnStore
from services.keygen.watch_store import WatchStore
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database

ada = 7
bob = 8
instance = 1
material = b"m" * 32


@dataclass(slots=True)
class Archive:
    database: Database
    ranges: RangeStore
    returns: ReturnStore
    history: HistoryStore

    async def reserve(self, tenant: int, *, closed: bool = True) -> int:
        """The id of a new range of 20."""
        lot = (await self.ranges.refill(instance, Wish(tenant, 7, 1, 1, 20, 100))).reserved
        assert lot is not None
        if closed:
            await self.ranges.leave(instance, Leavings(ranges=[lot.range_id]))
        return lot.range_id

    async def age(self, time: str = "2026-01-02 12:00Z", after_id: int = 0) -> None:
        await self.execute(
            "UPDATE key_ranges SET reserved_at = $1::text::timestamptz WHERE id > $2",
            time,
            after_id,
        )

    async def execute(self, sql: str, *values: object) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(sql, *values)

    async def merge(self) -> None:
        while await self.history.merge(7):
            continue

    async def rows(self) -> list[tuple[int, int, int]]:
        """First, count and tenant of each."""
        async with self.database.connection() as connection:
            sql = "SELECT first::bigint, count, tenant::int FROM key_ranges ORDER BY first"
            return [tuple(row) for row in await connection.fetch(sql)]


@pytest.fixture
async def archive(database_address: DatabaseAddress) -> AsyncIterator[Archive]:
    async with Database(database_address) as database:
        ranges = RangeStore(database, return_rest_s=0.0)
        await ranges.material(material)
        await ranges.register(instance, "", 600.0, None)
        assert (await WatchStore(database).look(instance, Marks())).is_roll_over
        yield Archive(database, ranges, ReturnStore(database), HistoryStore(database))


async def test_closed_neighbours_of_a_tenant_become_one_row(archive: Archive) -> None:
    for tenant in (ada, ada, ada, bob, ada, ada):
        await archive.reserve(tenant)
    await archive.age()
    await archive.merge()
    assert await archive.rows() == [(0, 60, ada), (60, 20, bob), (80, 40, ada)]
    await archive.reserve(ada)
    await archive.age()
    await archive.merge()
    assert (await archive.rows())[-1] == (80, 60, ada), "and what comes later goes on with it"


async def test_what_is_open_or_new_or_of_another_day_stays_as_it_is(archive: Archive) -> None:
    await archive.reserve(ada)
    await archive.reserve(ada, closed=False)
    last = await archive.reserve(ada)
    await archive.age()
    await archive.reserve(ada)
    await archive.age("2026-01-03 00:00Z", last)
    await archive.reserve(ada)
    await archive.merge()
    assert [count for _, count, _ in await archive.rows()] == [20] * 5


async def test_everybodys_keys_are_still_everybodys(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By chance, with transactions so small that runs go on from one to the next."""
    monkeypatch.setattr(history_store, "ranges_at_once", 7)
    draw = random.Random(3)
    owners: list[int] = []
    for _ in range(60):
        tenant = draw.choice([ada, ada, ada, bob])
        await archive.reserve(tenant, closed=draw.random() < 0.9)
        owners += [tenant] * 20
        if draw.random() < 0.2:
            await archive.age()
            await archive.merge()
    await archive.age()
    await archive.merge()
    rows = await archive.rows()
    assert len(rows) < 40
    assert [owner for _, count, owner in rows for _ in range(count)] == owners
    permutation, inspection = Permutation(material, 7), Inspection(archive.database)
    for index in draw.sample(range(len(owners)), 60):
        fate = await inspection.fate(permutation.key(index).decode())
        assert fate.tenant == owners[index]
        assert fate.reserved_at is not None
        assert fate.reserved_at.isoformat() == "2026-01-02T12:00:00+00:00"


async def test_returned_keys_go_along_and_out_again(archive: Archive) -> None:
    for _ in range(3):
        await archive.reserve(ada)
    names = [Name(7, 3), Name(7, 25), Name(7, 47)]
    await archive.returns.take_back(ada, await archive.returns.look(ada, names))
    await archive.age()
    await archive.merge()
    assert len(await archive.rows()) == 1
    assert all(one.is_returned for one in await archive.returns.look(ada, names))
    claimed = (await archive.ranges.refill(instance, Wish(ada, 7, 1, 1, 20, 100))).claimed
    assert claimed is not None
    assert sorted(index for index, _ in claimed.unused(0)) == [3, 25, 47]


async def test_no_more_returned_keys_than_there_is_time_for_are_moved_at_once(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_store, "moved_at_once", 25)
    monkeypatch.setattr(history_store, "moved_of_range_max", 10)
    for _ in range(9):
        await archive.reserve(ada)
    # Of the fifth too many to be moved, of the others as many as can be.
    names = [
        Name(7, 20 * range_ + key)
        for range_ in range(9)
        for key in range(20 if range_ == 4 else 10)
    ]
    await archive.returns.take_back(ada, await archive.returns.look(ada, names))
    await archive.age()
    seen: list[int] = []
    while await archive.history.merge(7):
        seen.append(len(await archive.rows()))
    assert seen == [7, 6, 4], "a few in each transaction"
    assert await archive.rows() == [(0, 80, ada), (80, 100, ada)]
    assert len(await archive.returns.look(ada, names)) == len(names)
    assert all(one.is_returned for one in await archive.returns.look(ada, names))
    claimed = (await archive.ranges.refill(instance, Wish(ada, 7, 1, 1, 20, 500))).claimed
    assert claimed is not None
    assert sorted(index for index, _ in claimed.unused(0)) == [name.counter for name in names]


async def test_who_returns_what_is_being_merged_looks_again(archive: Archive) -> None:
    for _ in range(3):
        await archive.reserve(ada)
    await archive.age()
    looked_at = await archive.returns.look(ada, [Name(7, 25)])
    await archive.merge()
    with pytest.raises(RangesMergedError):
        await archive.returns.take_back(ada, looked_at)
    again = await archive.returns.look(ada, [Name(7, 25)])
    assert await archive.returns.take_back(ada, again) == ({Name(7, 25)}, {7})


async def test_merging_returning_and_claiming_at_once_lose_nothing(archive: Archive) -> None:
    for _ in range(40):
        await archive.reserve(ada)
    await archive.age()
    names = [Name(7, index) for index in range(0, 800, 5)]
    back: set[Name] = set()

    async def give_back(some: list[Name]) -> None:
        while True:
            try:
                taken, _ = await archive.returns.take_back(
                    ada, await archive.returns.look(ada, some)
                )
            except RangesMergedError:
                continue
            back.update(taken)
            return

    found: list[int] = []

    async def claim() -> None:
        for _ in range(10):
            lot = (await archive.ranges.refill(instance, Wish(ada, 7, 0, 0, 20, 9))).claimed
            if lot is not None:
                found.extend(index for index, _ in lot.unused(0))

    await asyncio.gather(
        *(give_back(names[at::8]) for at in range(8)), archive.merge(), claim(), claim()
    )
    await archive.merge()
    assert back == {*names}
    lot = (await archive.ranges.refill(instance, Wish(ada, 7, 0, 0, 20, 1_000))).claimed
    found += [index for index, _ in lot.unused(0)] if lot is not None else []
    assert sorted(found) == [name.counter for name in names], "each once"


async def test_returns_that_are_long_over_are_forgotten(archive: Archive) -> None:
    sql = (
        "INSERT INTO key_reissues (size, index, returned_at, is_certain, ended_at)"
        " VALUES (7, $1, now(), true, now() - make_interval(days => $2))"
    )
    await archive.execute(sql, 1, reissues_kept_days - 1)
    await archive.execute(sql, 2, reissues_kept_days + 1)
    assert not await archive.history.forget()
    async with archive.database.connection() as connection:
        assert [row["index"] for row in await connection.fetch("SELECT * FROM key_reissues")] == [1]


async def test_what_has_rested_is_found_without_looking_at_what_has_not(archive: Archive) -> None:
    async with archive.database.connection() as connection:
        await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        # As it is asked for in range_store.py.
        plan = await connection.fetch(
            "EXPLAIN SELECT size, index FROM returned_keys WHERE tenant = 7 AND size = 7"
            " AND is_free AND claim_id IS NULL AND era = (SELECT era FROM key_watch)"
            " AND returned_at <= now() - make_interval(secs => 600)"
            " ORDER BY returned_at LIMIT 1000"
        )
    text = "\n".join(row[0] for row in plan)
    assert "returned_keys_free" in text
    assert "returned_at <= " in text[text.index("Index Cond:") :]
    assert "Sort" not in text


async def test_tables_that_grow_are_counted(archive: Archive) -> None:
    assert set(await archive.history.rows()) == {"key_ranges", "returned_keys", "key_reissues"}
