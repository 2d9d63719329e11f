"""Returned keys: whose they are, when they go out again, and that nobody has one twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.permute import digits, sizes
from services.keygen.inspection import Inspection
from services.keygen.messages import Returned
from services.keygen.range_store import RangeStore
from services.keygen.returns import in_use, made_by_operator, twice, unknown
from services.runtime.database_url import DatabaseAddress
from tests.integration.keygen_town import Keygen, Town, a_town, ada, bob
from tests.waiting import wait_until


@pytest.fixture
async def town(database_address: DatabaseAddress, tmp_path: Path) -> AsyncIterator[Town]:
    async with a_town(database_address, tmp_path) as town:
        yield town


async def until_closed(keygen: Keygen, ranges: int) -> None:
    """Until so many ranges are closed."""
    async with asyncio.timeout(20):
        while True:
            closed = await keygen.read("SELECT id FROM key_ranges WHERE closed_at IS NOT NULL")
            if len(closed) >= ranges:
                return
            await asyncio.sleep(0.02)


async def test_a_returned_key_goes_out_again_once_its_range_is_closed(town: Town) -> None:
    keygen = await town.keygen("one")
    keys = await keygen.take(5)
    assert (await keygen.give_back(keys[:2])) == Returned(2, [])
    following = await keygen.take(15)
    assert not set(following) & set(keys), "its range was still open"
    await until_closed(keygen, 1)
    await wait_until(lambda: keygen.pools.pool(ada, 7).returned_first, "it is told of them")
    assert set(await keygen.take(2)) == set(keys[:2])
    assert not set(await keygen.take(50)) & {*keys, *following}


async def test_a_returned_key_rests_for_as_long_as_its_return_may_be_repeated(town: Town) -> None:
    keygen = await town.keygen("one", return_rest_s=600.0)
    keys = await keygen.take(20)
    await until_closed(keygen, 1)
    assert (await keygen.give_back(keys[:2])).returned == 2
    assert not set(await keygen.take(50)) & set(keys)
    assert await keygen.reasons(keys[:2]) == dict.fromkeys(keys[:2], twice)
    async with keygen.database.transaction() as connection:
        await connection.execute("UPDATE returned_keys SET returned_at = now() - interval '540 s'")
    keygen.pools.give_returned_first([(ada, 7)])
    assert not set(await keygen.take(50)) & set(keys)
    async with keygen.database.transaction() as connection:
        await connection.execute("UPDATE returned_keys SET returned_at = now() - interval '600 s'")
    assert await RangeStore(keygen.database).with_free([(ada, 7), (bob, 7)]) == {(ada, 7)}
    keygen.pools.give_returned_first([(ada, 7)])
    assert set(await keygen.take(2)) == set(keys[:2])


async def test_each_key_is_returned_once(town: Town) -> None:
    keygen = await town.keygen("one")
    (key,) = await keygen.take()
    answer = await keygen.give_back([key, key])
    assert (answer.returned, [one.reason for one in answer.rejected]) == (1, [twice])
    assert await keygen.reasons([key]) == {key: twice}


async def test_a_key_that_is_still_in_a_pool_is_not_taken_back(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    await one.take()
    held = [one.permutation().key(index).decode() for index in range(1, 20)]
    assert await one.reasons(held) == dict.fromkeys(held, unknown)
    assert await other.reasons(held) == dict.fromkeys(held, unknown), "it asks the one that knows"
    assert await one.take(19) == held


async def test_a_key_is_taken_back_by_a_keygen_that_has_not_given_it_out(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    keys = await one.take(7)
    assert (await other.give_back(keys)).returned == 7
    assert await one.reasons(keys) == dict.fromkeys(keys, twice)


async def test_what_nobody_can_be_asked_about_is_rejected_for_now(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    keys = await one.take(3)
    town.network.cut_off.add("one")
    assert await other.reasons(keys) == dict.fromkeys(keys, in_use)
    town.network.cut_off.clear()
    assert (await other.give_back(keys)).returned == 3


async def test_keys_of_another_account_are_rejected(town: Town) -> None:
    keygen = await town.keygen("one")
    keys = await keygen.take(3)
    assert await keygen.reasons(keys, tenant=bob) == dict.fromkeys(keys, unknown)


async def test_whatever_is_no_key_is_rejected_with_a_reason(town: Town) -> None:
    keygen = await town.keygen("one")
    await keygen.take(3)
    rng = random.Random(2)
    made_up = ["".join(rng.choices(digits, k=size)) for size in sizes for _ in range(20)]
    hostile = ["", "a", "a" * 17, "a" * 64, "z" * 16, "0" * 16, "abc-def", "äöüßabc", "abcdef\0",
               "abc def", "\N{FULLWIDTH DIGIT ONE}" * 7, "'; DROP"]  # fmt: skip
    reasons = await keygen.reasons([*made_up, *hostile])
    assert set(reasons) == {*made_up, *hostile}
    given = [key for key in (*made_up, "z" * 16, "0" * 16) if len(key) > 6]
    assert {reasons[key] for key in given} == {unknown}
    assert all(reasons.values())


async def test_what_nobody_could_be_given_again_is_not_taken_back(town: Town) -> None:
    keygen = await town.keygen("one")
    made = await Inspection(keygen.database).make(ada, 3, 6)
    assert await keygen.reasons(made) == dict.fromkeys(made, made_by_operator)
    assert await keygen.read("SELECT * FROM returned_keys") == []


async def test_a_claimed_key_is_in_the_pool_and_not_on_the_list(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    keys = await one.take(20)
    await until_closed(one, 1)
    await one.give_back(keys[:5])
    again = await one.take(1)
    waiting = sorted({*keys[:5]} - {*again})
    for keygen in (one, other):
        assert await keygen.reasons(waiting) == dict.fromkeys(waiting, twice)
    assert (await other.give_back(again)).returned == 1, "that one is out, and comes back"
    assert sorted(await one.take(4)) == waiting
    await one.take(1)
    assert (await other.give_back(waiting)).returned == 4


async def test_a_keygen_that_stops_in_order_leaves_its_claims_to_others(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    keys = await one.take(20)
    await until_closed(one, 1)
    await one.give_back(keys)
    again = await one.take(3)
    await one.stop()
    assert sorted(await other.take(17)) == sorted({*keys} - {*again})
    assert (await other.give_back(again)).returned == 3


async def test_who_starts_again_knows_that_the_former_one_is_over(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    keys = await one.take(3)
    await one.die()
    assert await other.reasons(keys) == dict.fromkeys(keys, in_use)
    successor = await town.keygen("successor", home="another")
    assert await successor.reasons(keys) == dict.fromkeys(keys, in_use), "not of that directory"
    one.home.close()
    heir = await town.keygen("heir", home="one")
    assert (await heir.give_back(keys)).returned == 3
    assert sorted(await heir.take(3)) == sorted(keys), "and they are free at once"


async def test_a_lease_that_ran_out_is_ended_by_whoever_notices(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    keys = await one.take(3)
    await one.die()
    async with other.database.transaction() as connection:
        await connection.execute("UPDATE keygen_instances SET lease_until = now()")
    await RangeStore(other.database).bury()
    assert (await other.give_back(keys)).returned == 3


async def test_who_has_lost_its_lease_goes_on_under_another_id(town: Town) -> None:
    one = await town.keygen("one")
    before = await one.take(3)
    instance_id = one.pools.instance_id
    async with one.database.transaction() as connection:
        await connection.execute("DELETE FROM keygen_instances")
    await wait_until(lambda: one.pools.instance_id not in (instance_id, None), "it notices")
    after = await one.take(3)
    assert [one.permutation().index(key.encode()) for key in after] == [20, 21, 22]
    assert not set(before) & set(after)


async def test_an_answer_of_another_instance_is_none(town: Town) -> None:
    one, other = await town.keygen("one"), await town.keygen("other")
    assert await other.owners.held_there("http://one", 12345, ada, []) is None
    known = one.pools.instance_id
    assert known is not None
    assert await other.owners.held_there("http://one", known, ada, []) == []


async def test_returned_keys_are_live_at_most_once_whatever_happens_at_once(town: Town) -> None:
    """Clients of three keygens take and return, each key named twice: one that somebody has is
    never given to somebody else."""
    keygens = [await town.keygen(f"k{number}", range_size=50) for number in range(3)]
    live: set[str] = set()
    given = reissued = 0
    seen: set[str] = set()

    async def client(seed: int) -> None:
        nonlocal given, reissued
        rng = random.Random(seed)
        mine: list[str] = []
        for _ in range(40):
            keygen = rng.choice(keygens)
            if rng.random() < 0.5:
                for key in await keygen.take(rng.choice([1, 1, 5, 40])):
                    assert key not in live, "two have it"
                    live.add(key)
                    mine.append(key)
                    given += 1
                    reissued += key in seen
                    seen.add(key)
            elif mine:
                rng.shuffle(mine)
                some = [mine.pop() for _ in range(min(len(mine), rng.choice([1, 20])))]
                # From here on somebody else may be given them.
                live.difference_update(some)
                answer = await keygen.give_back([*some, *some])
                assert answer.returned == len(some)
                assert {one.reason for one in answer.rejected} == {twice}

    await asyncio.gather(*(client(seed) for seed in range(12)))
    assert given > 1_000
    assert reissued > 100
