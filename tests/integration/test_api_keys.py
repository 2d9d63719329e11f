"""API keys as their owners have them: made, listed, revoked, rotated, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from services.core.api_key import lookup_hash, well_formed
from services.core.errors import FixRequest
from services.runtime.database_url import DatabaseAddress
from services.usermanager import api_keys
from services.usermanager.api_keys import overlap_ms_max
from services.usermanager.throttle import Limit
from tests.integration.key_desk import KeyDesk, key_desk, pepper

day = timedelta(days=1)
# Statements take less, and so do the clocks of this machine and its PostgreSQL.
about = timedelta(minutes=1)


@pytest.fixture
async def desk(database_address: DatabaseAddress) -> AsyncIterator[KeyDesk]:
    async with key_desk(database_address) as desk:
        yield desk


def time_of(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


async def test_a_key_is_made_shown_once_and_listed_without_itself(desk: KeyDesk) -> None:
    ada = await desk.account()
    answer = await desk.as_user(ada, "POST", "/apikeys", {"name": "robot"})
    assert answer.status_code == 201
    made = answer.json()
    key = made.pop("key")
    assert well_formed(key)
    assert made["key_prefix"] == key[:8]
    assert (made["name"], made["scopes"]) == ("robot", ["read", "write"])
    assert (made["is_active"], made["prefix"], made["rate_limit_per_minute"]) == (True, None, None)
    created, expires = time_of(made["created_at"]), time_of(made["expires_at"])
    assert abs(created - datetime.now(UTC)) < about
    assert expires - created == 90 * day
    listed = await desk.as_user(ada, "GET", "/apikeys")
    assert listed.json() == {"api_keys": [made], "count": 1, "cursor": None}
    assert key not in listed.text


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"expires_in_days": None}, {"expires_at": None}),
        ({"scopes": ["admin", "read", "read"]}, {"scopes": ["read", "admin"]}),
        ({"prefix": "user:é/\0"}, {"prefix": "user:é/\0"}),
        ({"prefix": "é" * 512}, {"prefix": "é" * 512}),
        ({"prefix": None, "rate_limit_per_minute": None}, {"prefix": None}),
        ({"rate_limit_per_minute": 100}, {"rate_limit_per_minute": 100}),
        ({"name": "⚙ " * 49 + "⚙⚙"}, {"name": "⚙ " * 49 + "⚙⚙"}),
        ({"name": "cafe\u0301 \uff11"}, {"name": "cafe\u0301 \uff11"}),
    ],
)
async def test_a_key_is_as_it_was_asked_for(
    desk: KeyDesk, members: dict[str, Any], expected: dict[str, Any]
) -> None:
    ada = await desk.account()
    made = (await desk.as_user(ada, "POST", "/apikeys", {"name": "robot", **members})).json()
    (listed,) = (await desk.as_user(ada, "GET", "/apikeys")).json()["api_keys"]
    for name, value in expected.items():
        assert made[name] == listed[name] == value


async def test_a_rate_is_shown_as_the_plan_of_today_allows_it(desk: KeyDesk) -> None:
    ada = await desk.account("pro")
    await desk.make(ada, rate_limit_per_minute=5_000)
    await desk.make(ada, rate_limit_per_minute=50)
    await desk.make(ada)
    for plan, shown in (("free", [None, 50, 100]), ("pro", [None, 50, 5_000])):
        await desk.execute("UPDATE users SET plan = $2 WHERE id = $1", ada, plan)
        assert [key.rate_limit_per_minute for key in await desk.listed(ada)] == shown


wrong_members: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"name": "n" * 101}, "name"),
    ({"name": "a\0b"}, "name"),
    ({"name": "line\n"}, "name"),
    ({"name": " "}, "name"),
    ({"name": "robot "}, "name"),
    # A terminal would go on in red; pages and terminals would show the rest from right to left.
    ({"name": "\x9b31mred"}, "name"),
    ({"name": "\u202eevil"}, "name"),
    ({"name": "\u200b"}, "name"),
    ({"name": "a\u2028b"}, "name"),
    ({"name": None}, "name"),
    ({"scopes": []}, "scopes"),
    ({"scopes": ["read", "root"]}, "scopes[1]"),
    ({"scopes": ["read"] * 4}, "scopes"),
    ({"scopes": None}, "scopes"),
    ({"expires_in_days": 0}, "expires_in_days"),
    ({"expires_in_days": 3_651}, "expires_in_days"),
    ({"expires_in_days": 1.5}, "expires_in_days"),
    ({"expires_in_days": "90"}, "expires_in_days"),
    ({"prefix": ""}, "prefix"),
    ({"prefix": "p" * 1_025}, "prefix"),
    ({"prefix": "é" * 513}, "prefix"),
    ({"rate_limit_per_minute": 0}, "rate_limit_per_minute"),
    ({"rate_limit_per_minute": 101}, "rate_limit_per_minute"),
    ({"rate_limit_per_minute": 1 << 31}, "rate_limit_per_minute"),
    ({"rate_limit_per_minute": 1 << 70}, "rate_limit_per_minute"),
    ({"is_operator": True}, "is_operator"),
]


async def test_a_wrong_member_is_named_and_no_key_is_made(desk: KeyDesk) -> None:
    ada = await desk.account("free")
    for members, member in wrong_members:
        answer = await desk.as_user(ada, "POST", "/apikeys", {"name": "robot", **members})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body"), members
        assert [wrong["member"] for wrong in answer.json()["errors"]] == [member]
    assert await desk.listed(ada) == []


hostile = [
    "'; DROP TABLE api_keys; --",
    '" OR 1=1 --',
    "$1",
    "\\'; SELECT pg_sleep(9); --",
    "%_%",
    "{read,admin}",
    "NULL",
    "{{7*7}}<script>alert(1)</script>",
]


async def test_sql_in_any_member_is_text_like_any_other(desk: KeyDesk) -> None:
    for text in hostile:
        await check_that_it_is_only_text(desk, text)


async def check_that_it_is_only_text(desk: KeyDesk, text: str) -> None:
    ada = await desk.account()
    made = await desk.as_user(ada, "POST", "/apikeys", {"name": text, "prefix": text})
    assert made.status_code == 201
    assert (made.json()["name"], made.json()["prefix"]) == (text, text)
    for method, path, body in (
        ("POST", "/apikeys", {"name": "robot", "scopes": [text]}),
        ("POST", "/apikeys", {"name": "robot", "expires_in_days": text}),
        ("POST", f"/apikeys/{made.json()['id']}/rotate", {"overlap": text}),
        ("GET", "/apikeys?cursor=" + "".join(f"%{byte:02x}" for byte in text.encode()), None),
        ("GET", "/apikeys?limit=" + "".join(f"%{byte:02x}" for byte in text.encode()), None),
    ):
        answer = await desk.as_user(ada, method, path, body)
        assert answer.status_code == 400, answer.text
    path = "".join(f"%{byte:02x}" for byte in text.encode())
    assert (await desk.as_user(ada, "DELETE", f"/apikeys/{path}")).status_code == 404
    for asked in ({"key": text}, {"key_hash": text}):
        refused = await desk.as_gateway("POST", "/validate-key", asked)
        assert refused.status_code == (401 if "key" in asked else 400)
    for query in ("after", "wait_s"):
        assert (await desk.as_gateway("GET", f"/key-events?{query}={path}")).status_code == 400
    assert [key.name for key in await desk.listed(ada)] == [text]


async def test_a_member_of_a_megabyte_is_refused_and_nothing_is_made(desk: KeyDesk) -> None:
    ada = await desk.account()
    huge = "x" * 1_000_000
    for member in ("name", "prefix", "scopes", "key", "key_hash", "overlap"):
        answers = [
            await ask(path, {member: text})
            # And one that is let in for its size.
            for text in (huge, huge[:60_000])
            for ask, path in (
                (partial(desk.as_user, ada, "POST"), "/apikeys"),
                (partial(desk.as_user, ada, "POST"), "/apikeys/1/rotate"),
                (partial(desk.as_gateway, "POST"), "/validate-key"),
            )
        ]
        assert [answer.status_code for answer in answers] == [413] * 3 + [400] * 3, member
    assert await desk.listed(ada) == []


async def test_pages_have_every_key_once_the_newest_first(desk: KeyDesk) -> None:
    ada, bob = await desk.account(), await desk.account()
    made = []
    for number in range(7):
        made.append((await desk.make(ada, name=f"robot {number}")).id)
        await desk.make(bob)
    found: list[int] = []
    query = "/apikeys?limit=3"
    sizes = []
    while True:
        page = (await desk.as_user(ada, "GET", query)).json()
        found += [key["id"] for key in page["api_keys"]]
        sizes.append(page["count"])
        if page["cursor"] is None:
            break
        # A key that is made meanwhile moves none of the others.
        await desk.make(ada, name="another")
        query = f"/apikeys?limit=3&cursor={page['cursor']}"
    assert found == sorted(made, reverse=True)
    assert sizes == [3, 3, 1]


async def test_a_cursor_that_no_page_gave_is_refused_or_finds_what_is_there(desk: KeyDesk) -> None:
    ada = await desk.account()
    key = await desk.make(ada)
    for cursor in ("", "0", "-1", "x", "01", "9" * 19, "1e3", "%D9%A3"):
        answer = await desk.as_user(ada, "GET", f"/apikeys?cursor={cursor}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor"), cursor
    answer = await desk.as_user(ada, "GET", f"/apikeys?cursor={'1' * 19}")
    assert [one["id"] for one in answer.json()["api_keys"]] == [key.id]


async def test_a_revoked_key_is_no_longer_good_and_stays_in_the_list(desk: KeyDesk) -> None:
    ada = await desk.account()
    made, other = await desk.make(ada), await desk.make(ada)
    assert await desk.is_good(made.key)
    for _ in range(2):
        assert (await desk.as_user(ada, "DELETE", f"/apikeys/{made.id}")).status_code == 204
    assert not await desk.is_good(made.key)
    assert await desk.is_good(other.key)
    first, second = await desk.listed(ada)
    assert (first.is_active, second.is_active) == (True, False)
    assert second.revoked_at is not None
    assert len(await desk.read("SELECT 1 FROM key_events")) == 1
    actions = await desk.read("SELECT action FROM audit_log ORDER BY id")
    assert [row["action"] for row in actions] == ["key_created", "key_created", "key_revoked"]


async def test_racing_revokes_end_the_key_once(desk: KeyDesk) -> None:
    ada = await desk.account()
    made = await desk.make(ada)
    await asyncio.gather(*(desk.revoke(ada, made.id) for _ in range(20)))
    assert not await desk.is_good(made.key)
    assert len(await desk.read("SELECT 1 FROM key_events")) == 1
    assert len(await desk.read("SELECT 1 FROM audit_log WHERE action = 'key_revoked'")) == 1


async def test_a_rotated_key_has_a_successor_like_it_and_ends_with_the_overlap(
    desk: KeyDesk,
) -> None:
    ada = await desk.account()
    old = await desk.make(
        ada, scopes=["read"], prefix="user:", rate_limit_per_minute=7, expires_in_days=30
    )
    answer = await desk.as_user(ada, "POST", f"/apikeys/{old.id}/rotate", {"overlap": "24h"})
    assert answer.status_code == 201
    new = answer.json()
    assert new["key"] != old.key
    assert well_formed(new["key"])
    for name in ("name", "scopes", "prefix", "rate_limit_per_minute"):
        assert new[name] == getattr(old, name)
    assert time_of(new["expires_at"]) - time_of(new["created_at"]) == 30 * day
    assert await desk.is_good(old.key)
    assert await desk.is_good(new["key"])
    shown_new, shown_old = await desk.listed(ada)
    assert (shown_old.replaced_by, shown_new.replaced_by) == (new["id"], None)
    assert shown_old.expires_at == time_of(new["created_at"]) + day
    assert [row["key_id"] for row in await desk.read("SELECT key_id FROM key_events")] == [old.id]


async def test_an_overlap_of_nothing_ends_the_old_key_at_once(desk: KeyDesk) -> None:
    ada = await desk.account()
    for overlap in ("0s", "0", "0.0h"):
        old = await desk.make(ada)
        answer = await desk.as_user(ada, "POST", f"/apikeys/{old.id}/rotate", {"overlap": overlap})
        assert not await desk.is_good(old.key)
        assert await desk.is_good(answer.json()["key"])


async def test_an_overlap_is_a_day_when_nobody_says_otherwise(desk: KeyDesk) -> None:
    ada = await desk.account()
    bodies: tuple[object, ...] = (None, {})
    for body in bodies:
        old = await desk.make(ada, expires_in_days=None)
        answer = await desk.as_user(ada, "POST", f"/apikeys/{old.id}/rotate", body)
        assert answer.json()["expires_at"] is None
        shown = next(key for key in await desk.listed(ada) if key.id == old.id)
        assert shown.expires_at == time_of(answer.json()["created_at"]) + day


async def test_an_overlap_cannot_prolong_a_key(desk: KeyDesk) -> None:
    ada = await desk.account()
    old = await desk.make(ada, expires_in_days=1)
    await desk.rotate(ada, old.id, 30 * 86_400_000)
    _, shown = await desk.listed(ada)
    assert shown.expires_at == old.expires_at


async def test_an_overlap_that_is_none_changes_nothing(desk: KeyDesk) -> None:
    ada = await desk.account()
    old = await desk.make(ada)
    for overlap in ("", "-1h", "soon", "31d", "720h1ms", "9" * 64, "1h" * 40):
        answer = await desk.as_user(ada, "POST", f"/apikeys/{old.id}/rotate", {"overlap": overlap})
        assert (answer.status_code, answer.json()["member"]) == (400, "overlap"), overlap
    (shown,) = await desk.listed(ada)
    assert shown.expires_at == old.expires_at


async def test_of_racing_rotations_one_makes_a_key_and_the_others_are_told_which(
    desk: KeyDesk,
) -> None:
    ada = await desk.account()
    old = await desk.make(ada)
    answers = await asyncio.gather(
        *(desk.as_user(ada, "POST", f"/apikeys/{old.id}/rotate", {}) for _ in range(12))
    )
    (made,) = [answer.json() for answer in answers if answer.status_code == 201]
    refused = [answer.json() for answer in answers if answer.status_code == 409]
    assert [answer["replaced_by"] for answer in refused] == [made["id"]] * 11
    assert len(await desk.listed(ada)) == 2
    assert len(await desk.read("SELECT 1 FROM key_events")) == 1


async def test_a_rotation_that_races_a_revocation_leaves_the_old_key_dead(desk: KeyDesk) -> None:
    ada = await desk.account()
    for _ in range(10):
        old = await desk.make(ada)
        rotated, _ = await asyncio.gather(
            desk.as_user(ada, "POST", f"/apikeys/{old.id}/rotate", {}), desk.revoke(ada, old.id)
        )
        assert rotated.status_code in (201, 404)
        assert not await desk.is_good(old.key)
        if rotated.status_code == 201:
            assert await desk.is_good(rotated.json()["key"])


async def test_a_dead_key_is_not_rotated_back_to_life(desk: KeyDesk) -> None:
    ada = await desk.account()
    revoked, expired = await desk.make(ada), await desk.make(ada)
    await desk.revoke(ada, revoked.id)
    await desk.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", expired.id)
    for key in (revoked, expired):
        answer = await desk.as_user(ada, "POST", f"/apikeys/{key.id}/rotate", {})
        assert answer.status_code == 404
    assert len(await desk.listed(ada)) == 2


async def test_two_tenants_see_and_change_nothing_of_each_others_keys(desk: KeyDesk) -> None:
    ada, bob = await desk.account(), await desk.account()
    made = await desk.make(ada, name="ada's")
    for method, path in (
        ("DELETE", f"/apikeys/{made.id}"),
        ("POST", f"/apikeys/{made.id}/rotate"),
    ):
        answer = await desk.as_user(bob, method, path)
        nothing = await desk.as_user(bob, method, path.replace(str(made.id), "999999"))
        assert answer.status_code == nothing.status_code == 404
        # Not even that there is one can be told from the answer.
        told = answer.json()["detail"].replace(str(made.id), "999999")
        assert told == nothing.json()["detail"]
    assert (await desk.as_user(bob, "GET", "/apikeys")).json()["api_keys"] == []
    answer = await desk.as_user(bob, "GET", f"/apikeys?cursor={made.id + 1}")
    assert answer.json()["api_keys"] == []
    (shown,) = await desk.listed(ada)
    assert shown.is_active
    assert (await desk.validate(made.key)).user_id == ada
    assert await desk.read("SELECT 1 FROM audit_log WHERE user_id = $1", bob) == []
    assert await desk.read("SELECT 1 FROM key_events") == []


async def test_live_keys_are_bounded_also_when_many_are_made_at_once(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "live_keys_max", 5)
    ada, bob = await desk.account(), await desk.account()
    answers = await asyncio.gather(
        *(desk.as_user(ada, "POST", "/apikeys", {"name": "robot"}) for _ in range(12))
    )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [201] * 5 + [409] * 7
    assert {answer.json()["code"] for answer in answers if answer.is_error} == {"limit_reached"}
    assert (await desk.as_user(bob, "POST", "/apikeys", {"name": "robot"})).status_code == 201
    # Who has all there may be can still rotate, and revoking the old and the new one makes room.
    first = (await desk.listed(ada))[0]
    rotated = await desk.rotate(ada, first.id)
    for key_id in (first.id, rotated.id):
        with pytest.raises(FixRequest, match="revoke one"):
            await desk.make(ada)
        await desk.revoke(ada, key_id)
    await desk.make(ada)


async def good_keys(desk: KeyDesk, user_id: int) -> int:
    return [key.is_active for key in await desk.listed(user_id)].count(True)


async def test_rotating_is_no_way_around_the_bound_on_keys_that_are_good(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "live_keys_max", 3)
    monkeypatch.setattr(api_keys, "overlapping_keys_max", 2)
    ada = await desk.account()
    keys = [await desk.make(ada) for _ in range(3)]
    newest = keys[-1]
    for _ in range(2):
        newest = await desk.rotate(ada, newest.id, overlap_ms_max)
    answer = await desk.as_user(ada, "POST", f"/apikeys/{newest.id}/rotate", {"overlap": "30d"})
    assert (answer.status_code, answer.json()["code"]) == (409, "limit_reached")
    assert "rotate with an overlap of 0s, or revoke one" in answer.json()["detail"]
    assert await good_keys(desk, ada) == 5
    # Without an overlap there is no key more; and a revoked one makes room for one with.
    newest = await desk.rotate(ada, newest.id, 0)
    assert await good_keys(desk, ada) == 5
    await desk.revoke(ada, keys[0].id)
    await desk.rotate(ada, newest.id)
    assert await good_keys(desk, ada) == 5


async def test_rotating_many_keys_at_once_stays_within_the_bound_too(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "live_keys_max", 8)
    monkeypatch.setattr(api_keys, "overlapping_keys_max", 2)
    ada = await desk.account()
    keys = [await desk.make(ada) for _ in range(7)]
    answers = await asyncio.gather(
        *(desk.as_user(ada, "POST", f"/apikeys/{key.id}/rotate", {}) for key in keys),
        *(desk.as_user(ada, "POST", "/apikeys", {"name": "robot"}) for _ in range(3)),
    )
    assert await good_keys(desk, ada) == 10
    assert {answer.json()["code"] for answer in answers if answer.is_error} == {"limit_reached"}


async def test_of_dead_keys_only_the_newest_are_kept(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "dead_keys_max", 4)
    ada, bob = await desk.account(), await desk.account()
    living = await desk.make(ada)
    others = await desk.make(bob)
    await desk.revoke(bob, others.id)
    dead = []
    for _ in range(10):
        made = await desk.make(ada)
        await desk.revoke(ada, made.id)
        dead.append(made.id)
    newest = await desk.make(ada)
    shown = [key.id for key in await desk.listed(ada)]
    assert shown == [newest.id, *reversed(dead[-4:]), living.id]
    assert len(await desk.listed(bob)) == 1


async def test_keys_are_made_no_faster_than_the_audit_log_can_bear_and_revoked_at_any_rate(
    desk: KeyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "keys_made", Limit("keys made", 5, 60))
    ada, bob = await desk.account(), await desk.account()
    made = []
    for _ in range(4):
        answer = await desk.as_user(ada, "POST", "/apikeys", {"name": "robot"})
        made.append(answer.json()["id"])
    rotated = await desk.as_user(ada, "POST", f"/apikeys/{made[-1]}/rotate")
    assert rotated.status_code == 201
    again = f"/apikeys/{rotated.json()['id']}/rotate"
    for path, body in (("/apikeys", {"name": "robot"}), (again, {})):
        refused = await desk.as_user(ada, "POST", path, body)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
    for key_id in (*made, rotated.json()["id"]):
        assert (await desk.as_user(ada, "DELETE", f"/apikeys/{key_id}")).status_code == 204
    # Of ten entries at most, however often it is tried.
    assert len(await desk.read("SELECT 1 FROM audit_log WHERE user_id = $1", ada)) == 10
    assert (await desk.as_user(bob, "POST", "/apikeys", {"name": "robot"})).status_code == 201


async def test_a_closed_or_disabled_account_makes_and_rotates_no_keys(desk: KeyDesk) -> None:
    ada, bob = await desk.account(), await desk.account()
    made = [await desk.make(user_id) for user_id in (ada, bob)]
    await desk.execute("UPDATE users SET is_active = false WHERE id = $1", ada)
    await desk.execute("DELETE FROM users WHERE id = $1", bob)
    for user_id, key in zip((ada, bob), made, strict=True):
        answers = (
            await desk.as_user(user_id, "POST", "/apikeys", {"name": "robot"}),
            await desk.as_user(user_id, "POST", f"/apikeys/{key.id}/rotate"),
        )
        assert [answer.json()["code"] for answer in answers] == ["unauthorized"] * 2
        assert not await desk.is_good(key.key)


async def test_neither_keys_nor_guessable_hashes_are_stored(desk: KeyDesk) -> None:
    ada = await desk.account()
    made = await desk.make(ada)
    rotated = await desk.rotate(ada, made.id)
    await desk.revoke(ada, made.id)
    text = ""
    for table in ("api_keys", "audit_log", "key_events", "users"):
        rows = await desk.read(f"SELECT row_to_json({table}.*)::text AS text FROM {table}")  # noqa: S608  Ours.
        text += " ".join(row["text"] for row in rows)
    assert lookup_hash(pepper, made.key).hex() in text
    for key in (made.key, rotated.key):
        assert key not in text
        assert key[8:] not in text
    assert "key_rotated" in text
