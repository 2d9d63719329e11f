"""What gateways are told of a key, and when it is noted that it was used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.core.api_key import lookup_hash
from services.core.errors import RetryLater
from services.runtime.clock import FakeClock, Timeline
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.migrations import migrate
from services.runtime.postgres import Database
from services.usermanager import key_lookup, last_used
from services.usermanager.last_used import LastUsed
from tests.integration.key_desk import KeyDesk, key_desk, pepper


@pytest.fixture
async def desk(database_address: DatabaseAddress) -> AsyncIterator[KeyDesk]:
    async with key_desk(database_address) as desk:
        yield desk


async def last_used_at(desk: KeyDesk, key_id: int) -> datetime | None:
    (row,) = await desk.read("SELECT last_used_at FROM api_keys WHERE id = $1", key_id)
    found: datetime | None = row["last_used_at"]
    return found


async def test_a_gateway_is_told_whose_a_key_is_and_what_it_may(desk: KeyDesk) -> None:
    ada = await desk.account("pro")
    made = await desk.make(ada, scopes=["read"], prefix="user:", rate_limit_per_minute=50)
    expected = {
        "valid": True,
        "user_id": ada,
        "key_id": made.id,
        "scopes": ["read"],
        "prefix": "user:",
        "plan": "pro",
        "requests_per_minute": 50,
        "burst": 5,
        "held_to": 50,
        "event_id": 0,
    }
    for asked in ({"key_hash": lookup_hash(pepper, made.key).hex()}, {"key": made.key}):
        answer = await desk.as_gateway("POST", "/validate-key", asked)
        assert answer.status_code == 200
        told = answer.json()
        assert made.expires_at is not None
        assert datetime.fromisoformat(told.pop("expires_at")) == made.expires_at
        assert told == expected
        assert made.key not in answer.text


async def test_a_key_has_the_plan_that_its_account_has_now(desk: KeyDesk) -> None:
    ada = await desk.account("free")
    plain = await desk.make(ada, expires_in_days=None)
    limited = await desk.make(ada, rate_limit_per_minute=60)
    limits = {}
    assert [(await desk.validate(key.key)).held_to for key in (plain, limited)] == [None, 60]
    for plan in ("free", "pro", "developer", "of a newer version"):
        await desk.execute("UPDATE users SET plan = $2 WHERE id = $1", ada, plan)
        told = [await desk.validate(key.key) for key in (plain, limited)]
        limits[plan] = [(one.plan, one.requests_per_minute, one.burst) for one in told]
    assert limits == {
        "free": [("free", 100, 10), ("free", 60, 6)],
        "pro": [("pro", 6_000, 600), ("pro", 60, 6)],
        "developer": [("developer", 60_000_000, 1_000_000), ("developer", 60, 6)],
        "of a newer version": [("free", 100, 10), ("free", 60, 6)],
    }


async def test_all_that_is_wrong_with_a_key_has_one_answer(desk: KeyDesk) -> None:
    ada, bob = await desk.account(), await desk.account()
    revoked, expired = await desk.make(ada), await desk.make(ada)
    disabled = await desk.make(bob)
    never = await desk.make(ada)
    await desk.revoke(ada, revoked.id)
    await desk.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", expired.id)
    await desk.execute("DELETE FROM api_keys WHERE id = $1", never.id)
    await desk.execute("UPDATE users SET is_active = false WHERE id = $1", bob)
    asked: list[dict[str, str]] = [{"key": ""}, {"key": "ydht_abc"}, {"key": revoked.key + "x"}]
    for key in (revoked, expired, disabled, never):
        asked += [{"key": key.key}, {"key_hash": lookup_hash(pepper, key.key).hex()}]
    told = set()
    for body in asked:
        answer = await desk.as_gateway("POST", "/validate-key", body)
        assert answer.status_code == 401
        problem = answer.json()
        problem.pop("request_id")
        told.add(str(sorted(problem.items())))
    assert len(told) == 1
    assert "'invalid_api_key'" in next(iter(told))


async def test_a_question_that_is_none_is_refused(desk: KeyDesk) -> None:
    good = lookup_hash(pepper, "some key").hex()
    bodies: tuple[object, ...] = (
        {},
        {"key": None, "key_hash": None},
        {"key": "ydht_abc", "key_hash": good},
        {"key_hash": good.upper()},
        {"key_hash": good[:-1]},
        {"key_hash": good + "0"},
        {"key_hash": good[:-1] + "\n"},
        {"key": "x" * 257},
        {"key_hash": good, "tenant": 1},
        [],
    )
    for body in bodies:
        answer = await desk.as_gateway("POST", "/validate-key", body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body"), body


async def test_only_services_may_ask(desk: KeyDesk) -> None:
    ada = await desk.account()
    made = await desk.make(ada)
    for answer in (
        await desk.as_user(ada, "POST", "/validate-key", {"key": made.key}),
        await desk.client.post("/validate-key", json={"key": made.key}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_who_asks_at_the_same_time_is_answered_together_and_each_rightly(
    desk: KeyDesk,
) -> None:
    accounts = [await desk.account() for _ in range(4)]
    keys = {(await desk.make(accounts[n % 4])).key: accounts[n % 4] for n in range(40)}
    statements = desk.lookups.statements
    asked = [*keys, *(f"unknown {n}" for n in range(40))] * 5
    good = await asyncio.gather(*(desk.is_good(key) for key in asked))
    assert good == [key in keys for key in asked]
    told = await asyncio.gather(*(desk.validate(key) for key in keys))
    assert [one.user_id for one in told] == list(keys.values())
    assert desk.lookups.statements - statements < 10


async def test_an_answer_is_never_older_than_its_question(desk: KeyDesk) -> None:
    ada = await desk.account()
    asking = True

    async def ask(key: str) -> None:
        while asking:
            await desk.is_good(key)

    for _ in range(10):
        made = await desk.make(ada)
        asking = True
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(ask(made.key))
            await desk.validate(made.key)
            await desk.revoke(ada, made.id)
            still_good = await desk.is_good(made.key)
            asking = False
        assert not still_good


async def test_questions_are_bounded_and_one_that_is_given_up_harms_nobody(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_lookup, "pending_max", 3)
    ada = await desk.account()
    made = await desk.make(ada)
    # The first is sent at once, and the next three wait for it.
    hashes = [bytes([n]) * 32 for n in range(4)]
    questions = [asyncio.create_task(desk.lookups.find(one)) for one in hashes[:1]]
    for _ in range(3):
        await asyncio.sleep(0)
    questions += [asyncio.create_task(desk.lookups.find(one)) for one in hashes[1:]]
    await asyncio.sleep(0)
    with pytest.raises(RetryLater, match="overloaded"):
        await desk.lookups.find(lookup_hash(pepper, made.key))
    # Of two with the same question one leaves.
    same = asyncio.create_task(desk.lookups.find(hashes[3]))
    await asyncio.sleep(0)
    questions[3].cancel()
    assert await same is None
    assert await asyncio.gather(*questions[:3]) == [None] * 3
    assert await desk.is_good(made.key)


async def test_without_postgresql_a_key_is_neither_good_nor_bad(tmp_path: Path) -> None:
    password = "made up for this test"

    def server() -> EmbeddedPostgres:
        return EmbeddedPostgres(tmp_path / "pg", password, durable=False, log=lambda _: None)

    running = server()
    await running.__aenter__()
    await asyncio.to_thread(migrate, running.address)
    async with key_desk(running.address) as desk:
        made = await desk.make(await desk.account())
        assert await desk.is_good(made.key)
        await running.__aexit__(None, None, None)
        with pytest.raises(RetryLater, match="database_unavailable"):
            await desk.is_good(made.key)
        # The use of the key is kept until it can be written.
        with pytest.raises(RetryLater):
            await desk.last_used.write()
        assert desk.last_used.marked == 1
        await desk.last_used.close()
        async with server():
            assert await desk.is_good(made.key)
            await desk.last_used.write()
            assert await last_used_at(desk, made.id) is not None


async def test_the_use_of_keys_is_written_in_batches_and_listed(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_used, "batch_max", 3)
    ada = await desk.account()
    keys = [await desk.make(ada) for _ in range(8)]
    for key in keys[1:]:
        await desk.validate(key.key)
    assert all(key.last_used_at is None for key in await desk.listed(ada))
    await desk.last_used.write()
    assert desk.last_used.marked == 0
    *used, unused = await desk.listed(ada)
    assert unused.last_used_at is None
    now = datetime.now(UTC)
    for shown in used:
        assert shown.last_used_at is not None
        assert abs(shown.last_used_at - now) < timedelta(minutes=1)


async def test_a_refused_key_is_not_noted_as_used(desk: KeyDesk) -> None:
    ada = await desk.account()
    made = await desk.make(ada)
    await desk.revoke(ada, made.id)
    assert not await desk.is_good(made.key)
    assert desk.last_used.marked == 0


async def test_the_last_use_never_goes_back_and_is_never_in_the_future(desk: KeyDesk) -> None:
    ada = await desk.account()
    made = await desk.make(ada)
    timeline = Timeline()
    behind = LastUsed(desk.database, FakeClock(timeline))
    behind.mark(made.id)
    await behind.write()
    first = await last_used_at(desk, made.id)
    assert first == datetime.fromtimestamp(FakeClock.epoch_ms / 1000, UTC)
    ahead = LastUsed(desk.database, FakeClock(timeline, skew_ms=10 * 365 * 86_400_000))
    ahead.mark(made.id)
    await ahead.write()
    second = await last_used_at(desk, made.id)
    assert second is not None
    assert first < second < datetime.now(UTC) + timedelta(minutes=1)
    behind.mark(made.id)
    await behind.write()
    assert await last_used_at(desk, made.id) == second


async def test_writing_uses_waits_for_nobody_and_holds_nobody_up(
    desk: KeyDesk, database_address: DatabaseAddress
) -> None:
    ada = await desk.account()
    keys = [await desk.make(ada) for _ in range(4)]
    for key in keys:
        desk.last_used.mark(key.id)
    async with (
        Database(database_address, connections_max=1) as other,
        other.transaction() as connection,
    ):
        await connection.execute("SELECT 1 FROM api_keys WHERE id = $1 FOR UPDATE", keys[0].id)
        await desk.last_used.write()
    written = {key.id for key in await desk.listed(ada) if key.last_used_at is not None}
    assert written == {key.id for key in keys[1:]}


async def test_user_managers_that_write_the_same_keys_at_once_do_not_lock_each_other_out(
    desk: KeyDesk, database_address: DatabaseAddress
) -> None:
    ada = await desk.account()
    keys = [await desk.make(ada) for _ in range(30)]
    async with key_desk(database_address) as other:
        for turn in range(10):
            for noun, order in ((desk, keys), (other, keys[::-1])):
                for key in order:
                    noun.last_used.mark(key.id)
            await asyncio.gather(
                desk.last_used.write(), other.last_used.write(), desk.revoke(ada, keys[turn].id)
            )
    assert all(key.last_used_at is not None for key in await desk.listed(ada))


async def test_uses_in_memory_are_bounded_and_what_is_left_out_is_counted(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_used, "marks_max", 3)
    for key_id in (1, 2, 3, 3, 4, 5, 1):
        desk.last_used.mark(key_id)
    assert (desk.last_used.marked, desk.last_used.dropped) == (3, 2)
    # Keys that are gone by now are no trouble.
    await desk.last_used.write()
    assert desk.last_used.marked == 0
