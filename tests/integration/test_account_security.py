"""Attacks on accounts and sessions over HTTP: forged tokens, other tenants, hostile members."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import jwt
import pytest_asyncio

from services.runtime.database_url import DatabaseAddress
from services.usermanager.administration import Administration
from tests.integration.accounts_world import (
    LoggedIn,
    World,
    accounts_world,
    cluster_secret,
    good_password,
    jwt_secret,
    refused,
)

# What has meaning in SQL, in patterns of LIKE, in JSON, to a shell, a template or a terminal.
metacharacters: Final = (
    "'",
    "''; DROP TABLE users; --",
    "' OR '1'='1",
    '" OR ""="',
    "\\'; SELECT pg_sleep(10); --",
    "$1",
    "%s %(email)s {0} ${HOME} `id`",
    "%_",
    "/* */ ; COMMIT; --",
    "$$; DELETE FROM users; $$",
    "1; SELECT * FROM users",
    "\\x00\\000\\",
    "\x00",
    "\x1b[2J\r\n",
    "{{7*7}}<script>alert(1)</script>",
    "\ufeff\u202e\u0000",
)


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[World]:
    async with accounts_world(database_address) as world:
        yield world


async def with_token(world: World, token: str) -> httpx.Response:
    return await world.ask("GET", "/me", headers={"Authorization": f"Bearer {token}"})


def claims_of(session: LoggedIn) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(
        session.answer["access_token"], options={"verify_signature": False}
    )
    return found


async def test_token_with_alg_none(world: World) -> None:
    ada = await world.newcomer("ada")
    _, claims, signature = ada.answer["access_token"].split(".")
    for algorithm in ("none", "None", "NONE"):
        header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).decode()
        for end in ("", signature):
            refused(await with_token(world, f"{header.rstrip('=')}.{claims}.{end}"))
    assert await ada.is_live()


async def test_token_with_wrong_key(world: World) -> None:
    ada = await world.newcomer("ada")
    for key in (cluster_secret, "x" * 64, jwt_secret.upper()):
        refused(await with_token(world, jwt.encode(claims_of(ada), key, "HS256")))


async def test_token_with_wrong_audience(world: World) -> None:
    ada = await world.newcomer("ada")
    for audience in ("ydht gateway", ["ydht usermanager"], ""):
        forged = jwt.encode({**claims_of(ada), "aud": audience}, jwt_secret, "HS256")
        refused(await with_token(world, forged))


async def test_expired_token(world: World) -> None:
    ada = await world.newcomer("ada")
    world.timeline.advance(3600)
    refused(await with_token(world, ada.answer["access_token"]))
    forged = jwt.encode({**claims_of(ada), "exp": 2**40}, cluster_secret, "HS256")
    refused(await with_token(world, forged))


async def test_token_of_another_kind_or_of_a_session_that_is_not_there(world: World) -> None:
    ada, eve = await world.newcomer("ada"), await world.newcomer("eve")
    own = claims_of(ada)
    for changes in (
        {"typ": "refresh"},
        {"sid": "999999"},
        {"sid": claims_of(eve)["sid"]},
        {"sub": claims_of(eve)["sub"]},
        {"sub": str(2**63)},
        {"sub": "1 OR 1=1"},
    ):
        refused(await with_token(world, jwt.encode({**own, **changes}, jwt_secret, "HS256")))
    refused(await with_token(world, ada.answer["refresh_token"]))
    answer = await with_token(world, jwt.encode(own, jwt_secret, "HS256"))
    assert (answer.status_code, answer.json()["id"]) == (200, ada.user_id)


async def test_refresh_reuse(world: World) -> None:
    ada = await world.newcomer("ada")
    stolen = ada.answer["refresh_token"]
    thief = await world.try_refresh(stolen)
    assert thief.status_code == 200
    refused(await world.try_refresh(stolen))
    refused(await world.try_refresh(thief.json()["refresh_token"]))
    refused(await with_token(world, thief.json()["access_token"]))
    refused(await with_token(world, ada.answer["access_token"]))
    assert await world.fetch("SELECT FROM sessions") == []


async def test_two_tenants_on_every_route_see_nothing_of_each_other(world: World) -> None:
    ada, eve = await world.newcomer("ada"), await world.newcomer("eve")
    second = await world.log_in("ada")
    hers = await ada.sessions()
    before = await state_of(world, ada)
    seen = [await eve.ask("GET", path) for path in ("/me", "/sessions")]
    for session in hers:
        refused(await eve.ask("DELETE", f"/sessions/{session['id']}"), 404, "not_found")
        seen.append(await eve.ask("GET", "/sessions", params={"cursor": str(session["id"] + 1)}))
        seen.append(await eve.ask("GET", "/sessions", params={"cursor": str(session["id"])}))
    assert {answer.status_code for answer in seen} == {200}
    for answer in seen:
        assert "ada" not in answer.text
        shown = {session["id"] for session in answer.json().get("sessions", ())}
        assert not shown & {session["id"] for session in hers}
    change = {"current_password": good_password, "new_password": "a new password"}
    assert (await eve.ask("POST", "/me/password", json=change)).status_code == 204
    assert (await eve.ask("POST", "/logout")).status_code == 204
    eve = await world.log_in("eve", password="a new password")
    assert (await eve.ask("DELETE", "/me", json={"password": "a new password"})).status_code == 204
    assert await state_of(world, ada) == before
    assert await ada.is_live()
    assert await second.is_live()
    await world.log_in("ada")


async def state_of(world: World, person: LoggedIn) -> list[dict[str, Any]]:
    """Everything that is kept of somebody."""
    return [
        row
        for sql in (
            "SELECT * FROM users WHERE id = $1",
            "SELECT * FROM sessions WHERE user_id = $1 ORDER BY id",
            "SELECT t.* FROM refresh_tokens t JOIN sessions s ON s.id = session_id"
            " WHERE user_id = $1 ORDER BY token_hash",
            "SELECT * FROM audit_log WHERE user_id = $1 ORDER BY id",
            "SELECT * FROM key_events WHERE user_id = $1",
        )
        for row in await world.fetch(sql, person.user_id)
    ]


async def test_sql_metacharacters_in_every_field(world: World) -> None:
    ada = await world.newcomer("ada")
    before = await world.fetch("SELECT * FROM users")
    for number, text in enumerate(metacharacters):
        # Each from an address of its own: it is not throttling that is to answer here.
        address = f"198.51.100.{number}"
        answers = [
            await world.ask(method, path, json=body, address=address)
            for method, path, body in (
                ("POST", "/signup", {"email": text, "username": "a", "password": "x" * 8}),
                ("POST", "/signup", {"email": "a@b", "username": text, "password": "x" * 7}),
                ("POST", "/signup", {"email": text, "username": text, "password": text}),
                ("POST", "/signup", {text: text}),
                ("POST", "/login", {"email": text, "password": text}),
                ("POST", "/login", {"email": "ada@example.com" + text, "password": text}),
                ("POST", "/refresh", {"refresh_token": text}),
                ("POST", "/refresh", {"refresh_token": text * 43}),
            )
        ]
        answers += [
            await ada.ask("GET", "/sessions", params={"cursor": text}),
            await ada.ask("GET", "/sessions", params={"limit": text}),
            await ada.ask("GET", "/sessions", params={text: text}),
            await ada.ask("DELETE", f"/sessions/{httpx.QueryParams({'x': text})}"[:200]),
            await ada.ask("DELETE", "/me", json={"password": text, text: 1}),
            await ada.ask("POST", "/me/password", json={"current_password": text}),
        ]
        for answer in answers:
            assert 400 <= answer.status_code < 500, (text, answer.text)
            assert answer.json()["code"] != "rate_limited"
            assert not any(
                word in answer.text for word in ("asyncpg", "syntax error", "SELECT FROM")
            )
    assert await world.fetch("SELECT * FROM users") == before
    assert await ada.is_live()


async def test_sql_metacharacters_that_are_good_names_and_passwords(world: World) -> None:
    """What may be in a field comes back as it was."""
    for number, text in enumerate(("Robert'); DROP TABLE users;--", "o'neill", "100%_$1", "\\\\")):
        password = f"{text}{metacharacters[number]}{'x' * 8}"
        document = {
            "email": f"o'neill+{number}@example.com",
            "username": text,
            "password": password,
        }
        answer = await world.ask("POST", "/signup", json=document)
        assert (answer.status_code, answer.json().get("username")) == (201, text)
        answer = await world.try_login(str(document["email"]), password)
        assert answer.status_code == 200
        assert answer.json()["user"]["email"] == document["email"]
    headers = {"User-Agent": "'); DROP TABLE sessions; --"}
    answer = await world.ask(
        "POST",
        "/login",
        json={"email": document["email"], "password": password},
        headers=headers,
    )
    (shown, _) = await LoggedIn(world, answer.json()).sessions()
    assert shown["user_agent"] == headers["User-Agent"]
    assert len(await world.fetch("SELECT FROM users")) == 4


async def test_1_mb_fields(world: World) -> None:
    ada = await world.newcomer("ada")
    for size, status in ((1 << 20, 413), (60 << 10, 400)):
        text = "x" * size
        heap = "a" + "\u0315" * (size // 6) + "\u0316" * (size // 6)
        good = {"email": "a@b.c", "username": "a", "password": "x" * 8}
        answers = [
            *[await world.ask("POST", "/signup", json={**good, name: text}) for name in good],
            # What takes time as its square to put in order.
            *[await world.ask("POST", "/signup", json={**good, name: heap}) for name in good],
            await world.ask("POST", "/signup", json={**good, text: 1}),
            await world.ask("POST", "/login", json={"email": text, "password": "x" * 8}),
            await world.ask("POST", "/login", json={"email": "a@b.c", "password": text}),
            await world.ask("POST", "/refresh", json={"refresh_token": text}),
            await ada.ask("DELETE", "/me", json={"password": text}),
            await ada.ask(
                "POST", "/me/password", json={"current_password": text, "new_password": "x" * 8}
            ),
            await ada.ask(
                "POST",
                "/me/password",
                json={"current_password": good_password, "new_password": text},
            ),
        ]
        for answer in answers:
            assert answer.status_code == status, answer.text[:200]
            assert len(answer.content) < 2_000, "nobody is sent their megabyte back"
        assert world.passwords.counters.hashed == 1, "nothing of that size is ever hashed"
    refused(await with_token(world, "x" * (1 << 20)))
    answer = await ada.ask("GET", "/sessions", params={"cursor": "1" * 60_000})
    assert answer.status_code == 400
    answer = await ada.ask("DELETE", "/sessions/" + "1" * 60_000)
    assert answer.status_code == 404


async def test_an_unknown_user_costs_exactly_one_verification_with_the_same_parameters(
    world: World, database_address: DatabaseAddress
) -> None:
    await world.sign_up("ada")
    await world.sign_up("gone")
    desk = Administration(world.store, world.passwords, "alice")
    await desk.set_active("gone@example.com", is_active=False)
    counters = world.passwords.counters
    answers = []
    statements = []
    for email, password in (
        ("ada@example.com", "wrong password"),
        ("unknown@example.com", good_password),
        ("gone@example.com", "wrong password"),
        ("no address", good_password),
        ("\x00", good_password),
        ("", ""),
    ):
        before = counters.verified, counters.hashed
        acquired = world.database.counters.acquired
        answer = await world.try_login(email, password)
        refused(answer, code="invalid_credentials")
        assert (counters.verified, counters.hashed) == (before[0] + 1, before[1]), email
        statements.append(world.database.counters.acquired - acquired)
        answers.append({**answer.json(), "request_id": ""})
        assert set(answer.headers) == {
            "cache-control",
            "content-type",
            "content-length",
            "x-request-id",
        }
    assert all(answer == answers[0] for answer in answers), "nor does any word differ"
    assert len(set(statements)) == 1, "nor what PostgreSQL is asked"
    assert [action for action, _ in await world.audited()].count("login_refused") == 6
    (unknown,) = {user for action, user in await world.audited() if action == "login_refused"} - {
        row["id"] for row in await world.fetch("SELECT id FROM users")
    }
    assert unknown is None


async def test_who_has_the_password_of_a_disabled_account_is_told_so_and_at_the_same_cost(
    world: World,
) -> None:
    await world.sign_up("gone")
    desk = Administration(world.store, world.passwords, "alice")
    await desk.set_active("gone@example.com", is_active=False)
    spent = []
    for password, told in ((good_password, "disabled"), ("wrong password", "No account has")):
        verified, acquired = world.passwords.counters.verified, world.database.counters.acquired
        answer = await world.try_login("gone@example.com", password)
        refused(answer, code="invalid_credentials")
        assert told in answer.json()["detail"]
        spent.append(
            (
                world.passwords.counters.verified - verified,
                world.database.counters.acquired - acquired,
            )
        )
    assert spent[0] == spent[1]
    # As a wrong one it is counted, so that nobody goes on for ever.
    for _ in range(8):
        refused(await world.try_login("gone@example.com"), code="invalid_credentials")
    refused(await world.try_login("gone@example.com"), 429, "rate_limited")
    await desk.set_active("gone@example.com", is_active=True)
    world.timeline.advance(30)
    await world.log_in("gone")
