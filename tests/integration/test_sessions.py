"""Sessions over HTTP on a real database: begun, refreshed, listed, ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest_asyncio

from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database
from services.usermanager.sessions import sessions_max
from tests.integration.accounts_world import World, accounts_world, cheap, good_password
from tests.integration.test_postgres_pool import Proxy


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[World]:
    async with accounts_world(database_address) as world:
        yield world


@asynccontextmanager
async def behind_a_proxy(
    address: DatabaseAddress, directory: Path
) -> AsyncIterator[tuple[World, Proxy]]:
    """Another user manager, whose connections to PostgreSQL can be cut."""
    proxy = Proxy(address)
    host = await proxy.start(directory)
    try:
        async with accounts_world(replace(address, host=host)) as world:
            yield world, proxy
    finally:
        await proxy.stop()


async def test_a_login_gives_two_tokens_and_tells_whose_they_are(world: World) -> None:
    account = await world.sign_up("ada")
    answer = await world.try_login("  ADA@example.com ")
    assert answer.status_code == 200
    document = answer.json()
    assert sorted(document) == ["access_token", "expires_in", "refresh_token", "token_type", "user"]
    assert (document["token_type"], document["expires_in"]) == ("Bearer", 3600)
    assert document["user"] == account
    caller = world.tokens.check(document["access_token"])
    assert caller.user_id == account["id"]
    stored = await world.fetch("SELECT * FROM refresh_tokens")
    assert document["refresh_token"] not in str(stored)
    assert len(stored) == 1


async def test_an_access_token_is_good_for_an_hour_and_is_refreshed(world: World) -> None:
    ada = await world.newcomer("ada")
    world.timeline.advance(3599)
    assert await ada.is_live()
    world.timeline.advance(1)
    answer = await ada.ask("GET", "/me")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert "expired" in answer.json()["detail"]
    assert answer.headers["www-authenticate"].startswith("Bearer")
    refreshed = await world.try_refresh(ada.answer["refresh_token"])
    assert refreshed.status_code == 200
    document = refreshed.json()
    assert document["user"] == ada.answer["user"]
    assert document["refresh_token"] != ada.answer["refresh_token"]
    assert await replace(ada, answer=document).is_live()
    assert len(await replace(ada, answer=document).sessions()) == 1, "it is the same session"


async def test_tokens_are_rotated_one_after_the_other(world: World) -> None:
    ada = await world.newcomer("ada")
    seen = {ada.answer["refresh_token"]}
    token = ada.answer["refresh_token"]
    for _ in range(10):
        answer = await world.try_refresh(token)
        assert answer.status_code == 200
        token = answer.json()["refresh_token"]
        seen.add(token)
    assert len(seen) == 11
    rows = await world.fetch("SELECT used_at FROM refresh_tokens")
    assert sorted(row["used_at"] is None for row in rows) == [False] * 10 + [True]


async def test_a_refresh_prolongs_a_session_but_not_beyond_half_a_year(world: World) -> None:
    ada = await world.newcomer("ada")
    await world.execute(
        "UPDATE sessions SET created_at = now() - interval '179 days',"
        " expires_at = now() + interval '1 hour'"
    )
    answer = await world.try_refresh(ada.answer["refresh_token"])
    assert answer.status_code == 200
    (row,) = await world.fetch("SELECT expires_at - created_at AS lasts FROM sessions")
    assert row["lasts"].days == 180
    await world.execute("UPDATE sessions SET created_at = now(), expires_at = now() + '1 hour'")
    assert (await world.try_refresh(answer.json()["refresh_token"])).status_code == 200
    (row,) = await world.fetch("SELECT expires_at - now() > interval '29 days' AS ok FROM sessions")
    assert row["ok"]


async def test_a_session_that_has_expired_is_over_before_it_is_removed(world: World) -> None:
    ada = await world.newcomer("ada")
    other = await world.log_in("ada")
    await world.execute(
        "UPDATE sessions SET expires_at = now() WHERE id = (SELECT min(id) FROM sessions)"
    )
    assert not await ada.is_live()
    assert (await world.try_refresh(ada.answer["refresh_token"])).status_code == 401
    assert len(await other.sessions()) == 1
    await world.sessions.tidy()
    assert len(await world.fetch("SELECT FROM sessions")) == 1
    assert len(await world.fetch("SELECT FROM refresh_tokens")) == 1
    assert await other.is_live()


async def test_a_refresh_token_that_is_used_again_ends_the_session(world: World) -> None:
    ada = await world.newcomer("ada")
    elsewhere = await world.log_in("ada")
    first = ada.answer["refresh_token"]
    second = (await world.try_refresh(first)).json()["refresh_token"]
    third = (await world.try_refresh(second)).json()
    assert (await world.try_refresh(first)).status_code == 401
    assert not await ada.is_live(), "nor is any access token of it good"
    assert not await replace(ada, answer=third).is_live()
    for token in (first, second, third["refresh_token"]):
        answer = await world.try_refresh(token)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert await elsewhere.is_live()
    assert ("refresh_token_reused", ada.user_id) in await world.audited()
    assert world.sessions.counters.refresh_tokens_reused == 1


async def test_of_many_refreshes_with_one_token_at_most_one_succeeds(world: World) -> None:
    for round_ in range(5):
        ada = await world.newcomer(f"ada{round_}")
        answers = await asyncio.gather(
            *(world.try_refresh(ada.answer["refresh_token"]) for _ in range(8))
        )
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] + [401] * 7
        won = next(answer for answer in answers if answer.status_code == 200)
        # The others have shown that the token is in several hands.
        assert not await replace(ada, answer=won.json()).is_live()
        assert (await world.try_refresh(won.json()["refresh_token"])).status_code == 401
    assert await world.fetch("SELECT FROM sessions") == []


async def test_a_refresh_that_races_with_logging_out_leaves_nothing(world: World) -> None:
    for round_ in range(5):
        ada = await world.newcomer(f"ada{round_}")
        refreshed, out = await asyncio.gather(
            world.try_refresh(ada.answer["refresh_token"]), ada.ask("POST", "/logout")
        )
        assert out.status_code == 204
        assert refreshed.status_code in (200, 401)
        if refreshed.status_code == 200:
            assert not await replace(ada, answer=refreshed.json()).is_live()
    assert await world.fetch("SELECT FROM refresh_tokens") == []


async def test_what_is_no_refresh_token_is_refused_without_a_word_more(world: World) -> None:
    ada = await world.newcomer("ada")
    told = set()
    for token in ("", "x", "a" * 43, ada.answer["access_token"], "'; --", "\x00" * 43, "é" * 43):
        answer = await world.try_refresh(token)
        assert answer.status_code == 401
        told.add(answer.json()["detail"])
    spent = ada.answer["refresh_token"]
    await world.try_refresh(spent)
    told.add((await world.try_refresh(spent)).json()["detail"])
    assert len(told) == 1
    too_long = await world.try_refresh("a" * 1025)
    assert (too_long.status_code, too_long.json()["member"]) == (400, "refresh_token")


async def test_a_refresh_whose_answer_was_lost_can_be_sent_again_at_the_price_of_a_login(
    world: World, database_address: DatabaseAddress, tmp_path: Path
) -> None:
    """PostgreSQL is lost before the rotation is committed, and then after it."""
    ada = await world.newcomer("ada")
    async with behind_a_proxy(database_address, tmp_path) as (cut_off, proxy):
        proxy.cut_before = lambda chunk: b"used_at = now()" in chunk
        answer = await cut_off.try_refresh(ada.answer["refresh_token"])
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        proxy.cut_before = lambda _: False
        answer = await cut_off.try_refresh(ada.answer["refresh_token"])
        assert answer.status_code == 200, "nothing was applied: the same token is still good"
        ada.answer = answer.json()

        commits = 0

        def after_the_second(chunk: bytes) -> bool:
            """The first is the throttle's."""
            nonlocal commits
            commits += b"COMMIT" in chunk
            return commits == 2

        proxy.cut_after = after_the_second
        answer = await cut_off.try_refresh(ada.answer["refresh_token"])
        assert (answer.status_code, answer.json()["code"]) == (504, "unknown_outcome")
        proxy.cut_after = lambda _: False
        assert await ada.is_live(), "until the next attempt nobody has been hurt"
        answer = await cut_off.try_refresh(ada.answer["refresh_token"])
        assert answer.status_code == 401
        assert not await ada.is_live()


async def test_logging_out_ends_this_session_at_once_and_no_other(world: World) -> None:
    ada = await world.newcomer("ada")
    elsewhere = await world.log_in("ada")
    answer = await ada.ask("POST", "/logout")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not await ada.is_live()
    assert (await ada.ask("POST", "/logout")).status_code == 401
    assert (await world.try_refresh(ada.answer["refresh_token"])).status_code == 401
    assert await elsewhere.is_live()


async def test_sessions_are_listed_in_pages_newest_first(world: World) -> None:
    await world.sign_up("ada")
    all_of_them = [await world.log_in("ada", address=f"192.0.2.{n}") for n in range(7)]
    ada = all_of_them[3]
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        query = {"limit": "3", **({"cursor": cursor} if cursor else {})}
        answer = await ada.ask("GET", "/sessions", params=query)
        document = answer.json()
        assert document["count"] == len(document["sessions"]) <= 3
        found += document["sessions"]
        cursor, pages = document["cursor"], pages + 1
    assert pages == 3
    assert [session["id"] for session in found] == sorted({s["id"] for s in found}, reverse=True)
    assert [session["address"] for session in found] == [f"192.0.2.{n}" for n in range(6, -1, -1)]
    assert [session["current"] for session in found].index(True) == 3
    assert sum(session["current"] for session in found) == 1
    assert found[0]["user_agent"].startswith("python-httpx/")
    assert all(
        session[name].endswith("Z") for session in found for name in ("created_at", "expires_at")
    )
    assert len(await ada.sessions()) == 7


async def test_a_page_that_cannot_be_is_refused(world: World) -> None:
    ada = await world.newcomer("ada")
    for cursor in ("x", "-1", "0", "1.5", "1" * 20, "9" * 19, "٣", "' OR 1=1 --", "\x00"):
        answer = await ada.ask("GET", "/sessions", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor"), cursor
    for limit in ("0", "101", "-1", "x", "", "1e1", "99999999999999999999"):
        answer = await ada.ask("GET", "/sessions", params={"limit": limit})
        assert (answer.status_code, answer.json()["member"]) == (400, "limit"), limit


async def test_a_session_elsewhere_is_ended_once(world: World) -> None:
    ada = await world.newcomer("ada")
    elsewhere = await world.log_in("ada")
    newest = (await ada.sessions())[0]
    assert not newest["current"]
    assert (await ada.ask("DELETE", f"/sessions/{newest['id']}")).status_code == 204
    assert not await elsewhere.is_live()
    assert (await ada.ask("DELETE", f"/sessions/{newest['id']}")).status_code == 404
    (own,) = await ada.sessions()
    assert (await ada.ask("DELETE", f"/sessions/{own['id']}")).status_code == 204
    assert not await ada.is_live()


async def test_a_session_that_cannot_be_is_not_found(world: World) -> None:
    ada = await world.newcomer("ada")
    for id_ in ("0", "-1", "x", "1.0", "9223372036854775808", "9" * 40, "%00", "1'--", "12345678"):
        answer = await ada.ask("DELETE", f"/sessions/{id_}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), id_


async def test_an_account_has_at_most_a_hundred_sessions_those_used_last(world: World) -> None:
    ada = await world.newcomer("ada")
    for _ in range(2):
        await world.execute(
            "INSERT INTO sessions (user_id, expires_at, last_used_at, address, user_agent)"
            " SELECT $1, now() + '1 day', now() - n * interval '1 minute', '', ''"
            " FROM generate_series(1, $2) AS n",
            ada.user_id,
            sessions_max,
        )
    answers = await asyncio.gather(*(world.try_login("ada@example.com") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    newest = await world.log_in("ada")
    rows = await world.fetch("SELECT user_agent FROM sessions")
    assert len(rows) == sessions_max
    assert sum(row["user_agent"] != "" for row in rows) == 10
    assert await ada.is_live()
    assert await newest.is_live()


async def test_a_refresh_token_used_long_ago_is_forgotten(world: World) -> None:
    ada = await world.newcomer("ada")
    answer = await world.try_refresh(ada.answer["refresh_token"])
    await world.execute(
        "UPDATE refresh_tokens SET used_at = now() - interval '31 days' WHERE used_at IS NOT NULL"
    )
    answer = await world.try_refresh(answer.json()["refresh_token"])
    assert len(await world.fetch("SELECT FROM refresh_tokens")) == 2
    assert (await world.try_refresh(ada.answer["refresh_token"])).status_code == 401
    assert await replace(ada, answer=answer.json()).is_live()


async def test_refreshing_in_a_loop_is_throttled_and_the_token_stays_good(world: World) -> None:
    ada = await world.newcomer("ada")
    token = ada.answer["refresh_token"]
    for _ in range(200):
        answer = await world.try_refresh(token)
        assert answer.status_code == 200
        token = answer.json()["refresh_token"]
    answer = await world.try_refresh(token)
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    world.timeline.advance(30)
    assert (await world.try_refresh(token)).status_code == 200


async def test_a_login_makes_a_hash_of_old_parameters_a_new_one_and_it_still_is_the_password(
    world: World, database_address: DatabaseAddress
) -> None:
    ada = await world.newcomer("ada")
    (before,) = await world.fetch("SELECT password_hash, password_changed_at FROM users")
    async with accounts_world(database_address, replace(cheap, passes=2)) as later:
        answers = await asyncio.gather(*(later.try_login("ada@example.com") for _ in range(6)))
        assert {answer.status_code for answer in answers} == {200}, "none loses to another's hash"
        (after,) = await later.fetch("SELECT password_hash, password_changed_at FROM users")
        assert before["password_hash"].startswith("$argon2id$v=19$m=64,t=1,")
        assert after["password_hash"].startswith("$argon2id$v=19$m=64,t=2,")
        assert after["password_changed_at"] == before["password_changed_at"]
        hashed = later.passwords.counters.hashed
        await later.log_in("ada")
        assert later.passwords.counters.hashed == hashed, "once is enough"
        wrong = await later.try_login("ada@example.com", "wrong password")
        assert wrong.status_code == 401
    assert await ada.is_live()


async def test_two_user_managers_know_of_each_others_sessions(
    world: World, database_address: DatabaseAddress
) -> None:
    ada = await world.newcomer("ada")
    async with accounts_world(database_address) as other:
        there = replace(ada, world=other)
        assert await there.is_live()
        assert (await there.ask("POST", "/logout")).status_code == 204
    assert not await ada.is_live()


async def test_while_postgresql_is_away_nobody_is_taken_for_logged_out(
    world: World, database_address: DatabaseAddress, tmp_path: Path
) -> None:
    ada = await world.newcomer("ada")
    async with behind_a_proxy(database_address, tmp_path) as (cut_off, proxy):
        there = replace(ada, world=cut_off)
        assert await there.is_live()
        proxy.cut_before = lambda _: True
        proxy.cut()
        for answer in (
            await there.ask("GET", "/me"),
            await cut_off.try_login("ada@example.com"),
            await cut_off.try_refresh(ada.answer["refresh_token"]),
            await there.ask("POST", "/logout"),
            await there.ask("DELETE", "/me", json={"password": good_password}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert "retry-after" in answer.headers
        proxy.cut_before = lambda _: False
        assert await there.is_live()
    assert (await world.try_refresh(ada.answer["refresh_token"])).status_code == 200


async def test_the_audit_log_is_kept_for_a_year_and_who_came_and_went_for_a_month(
    world: World, database_address: DatabaseAddress
) -> None:
    ada = await world.newcomer("ada")
    await ada.ask("POST", "/logout")
    await world.try_login("ada@example.com", "not this one")
    everything = ["signed_up", "logged_in", "logged_out", "login_refused"]
    for days, left in ((29, everything), (31, everything[:1]), (364, everything[:1]), (366, [])):
        await world.execute("UPDATE audit_log SET at = now() - $1 * interval '1 day'", days)
        await world.audit.tidy()
        assert [action for action, _ in await world.audited()] == left
    async with Database(database_address) as database, database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM users") == 1
