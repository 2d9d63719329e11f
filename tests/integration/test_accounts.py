"""Accounts over HTTP on a real database: opened, looked at, given new passwords, closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.core.errors import FixRequest
from services.runtime.database_url import DatabaseAddress
from services.usermanager.administration import Administration
from tests.integration.accounts_world import World, accounts_world, good_password


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[World]:
    async with accounts_world(database_address) as world:
        yield world


def signup(**changes: object) -> dict[str, object]:
    return {
        "email": "ada@example.com",
        "username": "ada",
        "password": good_password,
        **changes,
    }


def wrong_in(answer: httpx.Response, code: str = "invalid_body", status: int = 400) -> list[str]:
    """The members that an answer names as wrong."""
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(error["detail"] for error in document["errors"])
    return [error["member"] for error in document["errors"]]


async def test_who_signs_up_is_told_of_the_account_and_nothing_secret(world: World) -> None:
    answer = await world.ask("POST", "/signup", json=signup(email=" Ada@Example.com "))
    assert answer.status_code == 201
    document = answer.json()
    assert document == {
        "id": document["id"],
        "email": "Ada@Example.com",
        "username": "ada",
        "is_active": True,
        "created_at": document["created_at"],
        "plan": "free",
        "is_operator": False,
    }
    assert isinstance(document["id"], int)
    assert document["created_at"].endswith("Z")
    datetime.fromisoformat(document["created_at"])
    (row,) = await world.fetch("SELECT * FROM users")
    assert row["password_hash"].startswith("$argon2id$v=19$")
    assert good_password not in str(row)
    assert (row["email_folded"], row["username_folded"]) == ("ada@example.com", "ada")
    assert await world.audited() == [("signed_up", document["id"])]


async def test_every_member_that_is_wrong_is_named(world: World) -> None:
    answer = await world.ask(
        "POST", "/signup", json=signup(email="no address", username=" ada", password="short")
    )
    assert wrong_in(answer) == ["email", "username", "password"]
    assert "8 to 1024" in answer.text
    assert wrong_in(await world.ask("POST", "/signup", json={})) == [
        "email",
        "username",
        "password",
    ]
    wrong_types = signup(email=7, username=None, password=["12345678"], admin=True)
    assert wrong_in(await world.ask("POST", "/signup", json=wrong_types)) == [
        "email",
        "username",
        "password",
        "admin",
    ]
    assert await world.fetch("SELECT FROM users") == []


@pytest.mark.parametrize("password", ["1234567", "", "x" * 1025])
async def test_a_password_of_another_length_is_refused(world: World, password: str) -> None:
    answer = await world.ask("POST", "/signup", json=signup(password=password))
    assert wrong_in(answer) == ["password"]


@pytest.mark.parametrize(
    "password",
    ["12345678", " " * 8, "x" * 1024, "😀" * 1024, "\U0001d160" * 1024, "a\x00b\x00c\x00d\x00"],
)
async def test_any_other_password_is_taken_as_it_is(world: World, password: str) -> None:
    await world.sign_up("ada", password=password)
    await world.log_in("ada", password=password)
    for other in (password.strip(), password + " ", password[:-1]):
        if other != password and len(other) <= 1024:
            answer = await world.try_login("ada@example.com", other)
            assert answer.status_code == 401, ascii(other[:20])


@pytest.mark.parametrize(
    ("email", "username", "taken"),
    [
        ("ADA@EXAMPLE.COM", "eve", ["email"]),
        (" ada@example.com\t", "eve", ["email"]),
        ("\uff41da@example.com", "eve", ["email"]),
        ("eve@example.com", "ADA", ["username"]),
        ("eve@example.com", "\uff21\uff44\uff41", ["username"]),
        ("Ada@example.com", "aDa", ["email", "username"]),
    ],
)
async def test_a_name_that_is_taken_in_another_form_is_taken(
    world: World, email: str, username: str, taken: list[str]
) -> None:
    await world.sign_up("ada")
    answer = await world.ask("POST", "/signup", json=signup(email=email, username=username))
    assert wrong_in(answer, "already_exists", 409) == taken
    assert len(await world.fetch("SELECT FROM users")) == 1


async def test_of_many_who_sign_up_with_one_email_address_exactly_one_succeeds(
    world: World,
) -> None:
    spellings = ["ada@example.com", "ADA@example.com", "Ada@Example.Com", " ada@EXAMPLE.com "]
    answers = await asyncio.gather(
        *(
            world.ask("POST", "/signup", json=signup(email=spellings[n % 4], username=f"ada{n}"))
            for n in range(16)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 15
    assert all(wrong_in(a, "already_exists", 409) == ["email"] for a in answers if a.is_error)
    assert len(await world.fetch("SELECT FROM users")) == 1


async def test_of_many_who_sign_up_with_one_user_name_exactly_one_succeeds(world: World) -> None:
    spellings = ["straße", "STRASSE", "Stra\u1e9ee", "strasse"]
    answers = await asyncio.gather(
        *(
            world.ask(
                "POST", "/signup", json=signup(email=f"{n}@example.com", username=spellings[n % 4])
            )
            for n in range(16)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 15


async def test_a_person_sees_their_own_account(world: World) -> None:
    ada = await world.newcomer("ada")
    answer = await ada.ask("GET", "/me")
    assert answer.status_code == 200
    assert answer.json() == ada.answer["user"]
    assert answer.headers["cache-control"] == "no-store"


async def test_a_new_password_ends_the_other_sessions_and_keeps_this_one(world: World) -> None:
    here = await world.newcomer("ada")
    there = await world.log_in("ada")
    eve = await world.newcomer("eve")
    changed = await here.ask(
        "POST",
        "/me/password",
        json={"current_password": good_password, "new_password": "a new password"},
    )
    assert (changed.status_code, changed.content) == (204, b"")
    assert await here.is_live()
    assert not await there.is_live()
    assert await eve.is_live()
    assert (await world.try_refresh(there.answer["refresh_token"])).status_code == 401
    assert (await world.try_refresh(here.answer["refresh_token"])).status_code == 200
    assert (await world.try_login("ada@example.com")).status_code == 401
    await world.log_in("ada", password="a new password")
    assert ("password_changed", here.user_id) in await world.audited()


async def test_a_password_is_not_changed_without_the_present_one(world: World) -> None:
    ada = await world.newcomer("ada")
    for wrong in ("", "wrong password", good_password + " ", good_password.upper()):
        answer = await ada.ask(
            "POST",
            "/me/password",
            json={"current_password": wrong, "new_password": "a new password"},
        )
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credentials")
    short = {"current_password": good_password, "new_password": "short"}
    assert wrong_in(await ada.ask("POST", "/me/password", json=short)) == ["new_password"]
    await world.log_in("ada")


async def test_of_two_changes_of_one_password_at_once_one_succeeds(world: World) -> None:
    ada = await world.newcomer("ada")
    answers = await asyncio.gather(
        *(
            ada.ask(
                "POST",
                "/me/password",
                json={"current_password": good_password, "new_password": f"password {n}"},
            )
            for n in range(6)
        )
    )
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [204] + [401] * 5
    await world.log_in("ada", password=f"password {statuses.index(204)}")


async def test_a_login_that_races_with_a_new_password_leaves_no_session_of_the_old_one(
    world: World,
) -> None:
    ada = await world.newcomer("ada")
    change = {"current_password": good_password, "new_password": "a new password"}
    answers = await asyncio.gather(
        *(world.try_login("ada@example.com") for _ in range(4)),
        ada.ask("POST", "/me/password", json=change),
        *(world.try_login("ada@example.com") for _ in range(4)),
    )
    assert answers[4].status_code == 204
    assert {answer.status_code for answer in answers} <= {200, 204, 401}
    assert [session["current"] for session in await ada.sessions()] == [True]


async def test_a_closed_account_is_gone_with_all_it_had(world: World) -> None:
    ada, eve = await world.newcomer("ada"), await world.newcomer("eve")
    there = await world.log_in("ada")
    await world.execute(
        "INSERT INTO api_keys (user_id, key_hash, key_prefix, name, scopes)"
        " VALUES ($1, sha256('a'), 'ydht_abc', 'key', '{read}')",
        ada.user_id,
    )
    wrong = await ada.ask("DELETE", "/me", json={"password": "wrong password"})
    assert (wrong.status_code, wrong.json()["code"]) == (401, "invalid_credentials")
    assert (await ada.ask("DELETE", "/me")).status_code in (400, 415)
    assert await ada.is_live()
    closed = await ada.ask("DELETE", "/me", json={"password": good_password})
    assert (closed.status_code, closed.content) == (204, b"")
    for session in (ada, there):
        assert not await session.is_live()
        answer = await world.try_refresh(session.answer["refresh_token"])
        assert answer.status_code == 401
    assert (await world.try_login("ada@example.com")).status_code == 401
    assert await world.fetch("SELECT FROM api_keys") == []
    assert await world.fetch("SELECT user_id, done_at FROM closed_accounts") == [
        {"user_id": ada.user_id, "done_at": None}
    ]
    assert await world.fetch("SELECT user_id, key_id FROM key_events") == [
        {"user_id": ada.user_id, "key_id": None}
    ]
    assert await eve.is_live()
    again = await world.newcomer("ada")
    assert again.user_id > eve.user_id


async def test_an_account_that_is_closed_many_times_at_once_is_closed_once(world: World) -> None:
    ada = await world.newcomer("ada")
    answers = await asyncio.gather(
        *(ada.ask("DELETE", "/me", json={"password": good_password}) for _ in range(6))
    )
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [204] + [401] * 5
    assert len(await world.fetch("SELECT FROM closed_accounts")) == 1
    assert [action for action, _ in await world.audited()].count("account_closed") == 1


async def test_sign_up_is_throttled_by_address_taken_names_included(world: World) -> None:
    await world.sign_up("ada", address="192.0.2.1")
    for _ in range(19):
        answer = await world.ask("POST", "/signup", json=signup(), address="192.0.2.1")
        assert answer.status_code == 409
    answer = await world.ask("POST", "/signup", json=signup(), address="192.0.2.1")
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    bad = await world.ask("POST", "/signup", json={}, address="192.0.2.1")
    assert bad.status_code == 400, "what is wrong anyway is said at any time"
    await world.sign_up("eve", address="192.0.2.2")
    world.timeline.advance(60)
    await world.sign_up("bob", address="192.0.2.1")


class TestOperators:
    @pytest.fixture
    def desk(self, world: World) -> Administration:
        return Administration(world.store, world.passwords, "alice")

    async def told(self, world: World) -> list[Any]:
        return [row["user_id"] for row in await world.fetch("SELECT user_id FROM key_events")]

    async def test_an_operator_opens_accounts(self, world: World, desk: Administration) -> None:
        account = await desk.create(
            "Ada@example.com", "ada", good_password, plan="developer", is_operator=True
        )
        assert (account.plan, account.is_operator) == ("developer", True)
        ada = await world.log_in("ada")
        assert ada.answer["user"]["is_operator"] is True
        with pytest.raises(FixRequest) as taken:
            await desk.create("ada@example.com", "eve", good_password)
        assert taken.value.code == "already_exists"
        with pytest.raises(FixRequest) as wrong:
            await desk.create("no address", "", "short", plan="public")
        members = [error["member"] for error in wrong.value.members["errors"]]
        assert members == ["email", "username", "password", "plan"]
        rows = await world.fetch("SELECT actor, details::text FROM audit_log ORDER BY id LIMIT 1")
        assert rows[0]["actor"] == "operator alice"
        assert "developer" in rows[0]["details"]

    async def test_a_disabled_account_can_do_nothing_until_it_is_enabled(
        self, world: World, desk: Administration
    ) -> None:
        ada = await world.newcomer("ada")
        await desk.set_active("ADA@example.com", is_active=False)
        assert not await ada.is_live()
        assert (await world.try_refresh(ada.answer["refresh_token"])).status_code == 401
        assert (await world.try_login("ada@example.com")).status_code == 401
        assert await self.told(world) == [ada.user_id]
        await desk.set_active("ada@example.com", is_active=True)
        assert not await ada.is_live(), "its sessions have ended for good"
        assert await (await world.log_in("ada")).is_live()
        assert await self.told(world) == [ada.user_id] * 2

    async def test_a_reset_password_ends_every_session(
        self, world: World, desk: Administration
    ) -> None:
        ada = await world.newcomer("ada")
        with pytest.raises(FixRequest, match="8 to 1024"):
            await desk.reset_password("ada@example.com", "short")
        await desk.reset_password("ada@example.com", "a new password")
        assert not await ada.is_live()
        assert (await world.try_login("ada@example.com")).status_code == 401
        await world.log_in("ada", password="a new password")

    async def test_a_plan_is_changed_to_one_that_there_is(
        self, world: World, desk: Administration
    ) -> None:
        ada = await world.newcomer("ada")
        assert (await desk.set_plan("ada@example.com", "pro")).plan == "pro"
        assert (await ada.ask("GET", "/me")).json()["plan"] == "pro"
        assert await self.told(world) == [ada.user_id]
        for wrong in ("public", "gold", ""):
            with pytest.raises(FixRequest, match="free, pro, developer"):
                await desk.set_plan("ada@example.com", wrong)
        await desk.set_operator("ada@example.com", is_operator=True)
        assert (await ada.ask("GET", "/me")).json()["is_operator"] is True

    async def test_whom_nobody_knows_is_told_as_such(self, desk: Administration) -> None:
        for what in (
            desk.find("ada@example.com"),
            desk.set_plan("ada@example.com", "pro"),
            desk.set_active("ada@example.com", is_active=False),
            desk.set_operator("ada@example.com", is_operator=True),
            desk.reset_password("ada@example.com", "a new password"),
        ):
            with pytest.raises(FixRequest) as unknown:
                await what
            assert unknown.value.code == "not_found"
        with pytest.raises(FixRequest, match="not an email address"):
            await desk.find("ada")
