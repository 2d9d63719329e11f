"""Two tenants on every route: whatever one asks for, the other's things are out of reach.

The routes are those of the description that the process itself gives, so that one that is added
without a case here fails by its name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import msgspec
import pytest

from services.runtime.database_url import DatabaseAddress
from tests.integration.usage_desk import fetch, rollup
from tests.integration.usermanager_process import Person, UserManagerProcess, usermanager_process

# Neither is anybody else's, nor part of an id or a time.
ada_password: Final = "only Ada says this"
ada_requests: Final = 918_273_645


@dataclass(slots=True)
class Target:
    """Somebody with one of everything, and what she would be recognised by."""

    person: Person
    key_id: int
    session_id: int
    marks: tuple[str, ...]


@dataclass(slots=True)
class Intruder:
    """Somebody with an account, who says wherever it might be believed to be another."""

    person: Person
    victim: Target

    async def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        answer = await self.person.usermanager.call(
            method,
            path,
            body,
            headers={
                "Authorization": f"Bearer {self.person.access_token}",
                "X-Forwarded-For": self.person.address,
                "X-Ydht-Tenant": str(self.victim.person.id),
                "X-Ydht-Refresh": self.victim.person.refresh_token,
            },
        )
        for mark in self.victim.marks:
            assert mark not in answer.text, (method, path)
        return answer

    async def refused(
        self, method: str, path: str, body: object, status: int, code: str
    ) -> dict[str, Any]:
        answer = await self.call(method, path, body)
        problem: dict[str, Any] = answer.json()
        assert (answer.status_code, problem["code"]) == (status, code), (method, path)
        return problem

    async def told(self, path: str) -> Any:
        answer = await self.call("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def asks_who_it_is(ben: Intruder) -> None:
    assert (await ben.told("/me"))["id"] == ben.person.id
    await ben.refused("GET", f"/me?user_id={ben.victim.person.id}", None, 400, "invalid_query")


async def closes_an_account(ben: Intruder) -> None:
    body = {"password": ada_password}
    await ben.refused("DELETE", "/me", body, 401, "invalid_credentials")
    other = {"password": ben.person.password, "user_id": ben.victim.person.id}
    await ben.refused("DELETE", "/me", other, 400, "invalid_body")
    own = {"password": ben.person.password}
    assert (await ben.call("DELETE", "/me", own)).status_code == 204


async def changes_a_password(ben: Intruder) -> None:
    body = {"current_password": ada_password, "new_password": "Ben has taken over"}
    await ben.refused("POST", "/me/password", body, 401, "invalid_credentials")
    own = {**body, "current_password": ben.person.password}
    assert (await ben.call("POST", "/me/password", own)).status_code == 204


async def lists_api_keys(ben: Intruder) -> None:
    theirs = ben.victim.key_id
    for query in ("", f"?cursor={theirs}", f"?cursor={theirs + 1}", "?limit=1000"):
        assert (await ben.told(f"/apikeys{query}"))["api_keys"] == []


async def makes_an_api_key(ben: Intruder) -> None:
    made = await ben.call("POST", "/apikeys", {"name": "robot"})
    assert made.status_code == 201, made.text
    key = {"key": made.json()["key"]}
    found = await ben.person.usermanager.ask("POST", "/validate-key", key)
    assert found.json()["user_id"] == ben.person.id
    body = {"name": "robot", "user_id": ben.victim.person.id}
    await ben.refused("POST", "/apikeys", body, 400, "invalid_body")


async def revokes_an_api_key(ben: Intruder) -> None:
    theirs = await ben.refused("DELETE", f"/apikeys/{ben.victim.key_id}", None, 404, "not_found")
    nobodys = await ben.refused("DELETE", "/apikeys/999999999", None, 404, "not_found")
    assert same_but_for_ids(theirs, nobodys)


async def rotates_an_api_key(ben: Intruder) -> None:
    body = {"overlap": "0s"}
    path = f"/apikeys/{ben.victim.key_id}/rotate"
    theirs = await ben.refused("POST", path, body, 404, "not_found")
    nobodys = await ben.refused("POST", "/apikeys/999999999/rotate", body, 404, "not_found")
    assert same_but_for_ids(theirs, nobodys)


async def lists_sessions(ben: Intruder) -> None:
    theirs = ben.victim.session_id
    for query in ("", f"?cursor={theirs}", f"?cursor={theirs + 1}", "?limit=100"):
        for session in (await ben.told(f"/sessions{query}"))["sessions"]:
            assert session["current"]


async def ends_a_session(ben: Intruder) -> None:
    path = f"/sessions/{ben.victim.session_id}"
    theirs = await ben.refused("DELETE", path, None, 404, "not_found")
    nobodys = await ben.refused("DELETE", "/sessions/999999999", None, 404, "not_found")
    assert same_but_for_ids(theirs, nobodys)


async def logs_out(ben: Intruder) -> None:
    assert (await ben.call("POST", "/logout")).status_code == 204
    await ben.refused("GET", "/me", None, 401, "unauthorized")


async def reads_usage(ben: Intruder) -> None:
    for step in ("minute", "hour", "day"):
        assert await ben.told(f"/usage?step={step}") == []
    assert await ben.told(f"/usage?key_id={ben.victim.key_id}") == []
    path = f"/usage?user_id={ben.victim.person.id}"
    await ben.refused("GET", path, None, 400, "invalid_query")


async def reads_totals(ben: Intruder) -> None:
    assert (await ben.told("/usage/stats"))["total_requests"] == 0
    path = f"/usage/stats?user_id={ben.victim.person.id}"
    await ben.refused("GET", path, None, 400, "invalid_query")


cases: Final[dict[str, Callable[[Intruder], Awaitable[None]]]] = {
    "GET /me": asks_who_it_is,
    "DELETE /me": closes_an_account,
    "POST /me/password": changes_a_password,
    "GET /apikeys": lists_api_keys,
    "POST /apikeys": makes_an_api_key,
    "DELETE /apikeys/{key_id}": revokes_an_api_key,
    "POST /apikeys/{key_id}/rotate": rotates_an_api_key,
    "GET /sessions": lists_sessions,
    "DELETE /sessions/{session_id}": ends_a_session,
    "POST /logout": logs_out,
    "GET /usage": reads_usage,
    "GET /usage/stats": reads_totals,
}


def same_but_for_ids(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two refusals say the same: what is somebody's is as what is nobody's."""
    return set(one) == set(other) and one["title"] == other["title"]


@pytest.fixture
async def usermanager(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[UserManagerProcess]:
    async with usermanager_process(tmp_path, database_address) as usermanager:
        yield usermanager


async def target(usermanager: UserManagerProcess) -> Target:
    ada = await usermanager.person("ada-herself", address="203.0.113.77", password=ada_password)
    made = (await ada.post("/apikeys", {"name": "her robot's key"})).json()
    (session,) = (await ada.get("/sessions")).json()["sessions"]
    used = msgspec.to_builtins(rollup(user_id=ada.id, key_id=made["id"], requests=ada_requests))
    report = {"sender": "gateway-1", "sequence": 1, "rollups": [used]}
    assert (await usermanager.ask("POST", "/usage", report)).status_code == 200
    marks = (ada.username, ada.email, ada.address, made["name"], made["key"][:16])
    return Target(ada, made["id"], session["id"], (*marks, str(ada_requests)))


async def kept_of(address: DatabaseAddress, victim: Target) -> list[list[asyncpg.Record]]:
    """Everything that is kept of somebody."""
    queries = (
        "SELECT * FROM users WHERE id = $1",
        "SELECT * FROM sessions WHERE user_id = $1 ORDER BY id",
        "SELECT t.* FROM refresh_tokens t JOIN sessions s ON s.id = session_id"
        " WHERE user_id = $1 ORDER BY token_hash",
        "SELECT * FROM api_keys WHERE user_id = $1 ORDER BY id",
        "SELECT * FROM key_events WHERE user_id = $1 ORDER BY id",
        "SELECT * FROM audit_log WHERE user_id = $1 ORDER BY id",
        "SELECT * FROM usage_rollups WHERE user_id = $1 ORDER BY minute, key_id",
        "SELECT * FROM closed_accounts WHERE user_id = $1",
    )
    return [await fetch(address, query, victim.person.id) for query in queries]


async def test_two_tenants_on_every_operation_see_and_change_nothing_of_each_other(
    usermanager: UserManagerProcess, database_address: DatabaseAddress
) -> None:
    document = (await usermanager.get("/openapi.json")).json()
    asked_for = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if any("access_token" in scheme for scheme in operation.get("security", ()))
    }
    assert asked_for == set(cases), "every operation of tenants has a case here, and no other"
    ada = await target(usermanager)
    before = await kept_of(database_address, ada)
    assert [len(rows) > 0 for rows in before] == [True] * 4 + [False, True, True, False]
    for label, case in cases.items():
        await case(Intruder(await usermanager.person(), ada))
        assert await kept_of(database_address, ada) == before, label
    # And she goes on as if nobody had been there.
    assert (await ada.person.get("/me")).json()["id"] == ada.person.id
    await ada.person.login()
