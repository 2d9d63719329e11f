"""API keys as a gateway checks them, at a real user manager: what changes, and what goes away."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.core.api_key import new_key
from services.core.errors import RetryLater
from services.core.plans import developer, free
from services.runtime import key_news
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.guessing import address_limits
from services.runtime.migrations import migrate
from services.runtime.user_manager import validations
from tests.integration.key_checks import KeyChecks, here, key_checks
from tests.integration.link_ends import log_lines
from tests.integration.tcp_proxy import TcpProxy
from tests.integration.usage_desk import fetch
from tests.integration.usermanager_process import (
    Person,
    UserManagerProcess,
    usermanager_process,
)
from tests.waiting import wait_until

# What is promised of a revoked key.
revoked_s_max = 1.0


@pytest.fixture
async def usermanager(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[UserManagerProcess]:
    async with usermanager_process(tmp_path, database_address) as usermanager:
        yield usermanager


async def made(person: Person, **members: object) -> str:
    answer = await person.post("/apikeys", {"name": "robot", **members})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


async def key_id_of(checks: KeyChecks, key: str) -> int:
    return (await checks.find(key)).key_id


def guess() -> str:
    """A key that nobody has made, with a checksum that is right."""
    return new_key(secrets.randbelow)


async def test_a_key_is_whose_it_is_and_may_what_it_was_made_for(
    usermanager: UserManagerProcess,
) -> None:
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        narrow = await made(ada, scopes=["read"], prefix="user:é", rate_limit_per_minute=60)
        credential = await checks.find(narrow)
        assert credential.tenant == ada.id
        assert (credential.may_read, credential.may_write, credential.may_admin) == (1, 0, 0)
        assert credential.key_prefix == "user:é".encode()
        assert b";q=60;w=60" in credential.allowance.lines(0)
        wide = await checks.find(await made(ada, scopes=["write", "admin"]))
        assert (wide.may_read, wide.may_write, wide.may_admin) == (0, 1, 1)
        assert wide.key_prefix == b""
        assert b";q=%d;w=60" % free.requests_per_minute in wide.allowance.lines(0)
        assert checks.cached(narrow) is credential


async def test_a_revoked_key_is_dead_within_a_second(usermanager: UserManagerProcess) -> None:
    loop = asyncio.get_running_loop()
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        other = await made(ada)
        kept = await checks.find(other)
        for _ in range(5):
            key = await made(ada)
            credential = await checks.find(key)
            assert checks.cached(key) is credential
            answer = await ada.delete(f"/apikeys/{credential.key_id}")
            revoked_s = loop.time()
            assert answer.status_code == 204
            await wait_until(lambda: loop.time() >= credential.usable_until_s, "it is dead")  # noqa: B023  Awaited.
            assert loop.time() - revoked_s < revoked_s_max
            assert checks.cached(key) is None
            assert await checks.refusal(key) == "invalid_api_key"
            assert checks.cached(other) is kept


async def test_a_key_just_made_is_good_at_once(usermanager: UserManagerProcess) -> None:
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        for _ in range(10):
            assert await checks.refusal(guess()) == "invalid_api_key"
            assert (await checks.find(await made(ada))).tenant == ada.id


async def test_a_plan_that_changed_and_an_account_that_was_closed_are_in_force_in_a_second(
    usermanager: UserManagerProcess, database_address: DatabaseAddress
) -> None:
    ada, bob = await usermanager.person(), await usermanager.person()
    async with key_checks(usermanager) as checks:
        key, of_bob = await made(ada), await made(bob)
        credential, kept = await checks.find(key), await checks.find(of_bob)
        credential.allowance.take(10, 0)
        await fetch(
            database_address,
            "WITH changed AS (UPDATE users SET plan = 'developer' WHERE id = $1),"
            " counter AS (UPDATE key_event_ids SET last = last + 1 RETURNING last)"
            " INSERT INTO key_events (id, user_id, created_at)"
            " SELECT last, $1, clock_timestamp() FROM counter",
            ada.id,
        )
        await wait_until(
            lambda: checks.cached(key) is None, "the plan is known", seconds=revoked_s_max
        )
        assert await checks.find(key) is credential
        assert b";q=%d;w=60" % developer.requests_per_minute in credential.allowance.lines(0)

        assert (await ada.delete("/me", {"password": ada.password})).status_code in (202, 204)
        await wait_until(
            lambda: checks.cached(key) is None, "the account is gone", seconds=revoked_s_max
        )
        assert await checks.refusal(key) == "invalid_api_key"
        assert checks.cached(of_bob) is kept


async def test_a_rotated_key_is_good_beside_the_new_one_until_its_overlap_is_over(
    usermanager: UserManagerProcess,
) -> None:
    loop = asyncio.get_running_loop()
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        old = await made(ada)
        before = await checks.find(old)
        answer = await ada.post(f"/apikeys/{before.key_id}/rotate", {"overlap": "3s"})
        rotated_s = loop.time()
        new = str(answer.json()["key"])
        await wait_until(lambda: checks.cached(old) is None, "it is known", seconds=revoked_s_max)
        assert await checks.find(old) is before
        assert (await checks.find(new)).tenant == ada.id
        assert before.usable_until_s < rotated_s + 3.2
        await wait_until(lambda: loop.time() >= before.usable_until_s, "the overlap is over")
        assert loop.time() - rotated_s > 2.5
        assert checks.cached(old) is None
        assert await checks.refusal(old) == "invalid_api_key"
        assert checks.cached(new) is not None


async def test_a_thousand_who_bring_one_unknown_key_at_once_are_one_question(
    usermanager: UserManagerProcess,
) -> None:
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        key = await made(ada)
        found = await asyncio.gather(*(checks.find(key) for _ in range(1_000)))
        assert len(set(map(id, found))) == 1
        assert checks.credentials.counters.lookups == 1
        shown = await usermanager.metrics()
        assert (shown["key_lookups.found"], shown["key_lookups.missed"]) == (1, 0)


async def test_many_different_keys_at_once_are_looked_up_with_few_connections(
    usermanager: UserManagerProcess, database_address: DatabaseAddress
) -> None:
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        keys = [await made(ada) for _ in range(90)]
        found = await asyncio.gather(*(checks.find(key) for key in keys))
        assert len({credential.key_id for credential in found}) == 90
        shown = await usermanager.metrics()
        assert shown["http_connections"] <= validations.at_once + 6


async def test_without_a_user_manager_known_keys_go_on_and_unknown_ones_are_not_refused(
    usermanager: UserManagerProcess,
) -> None:
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        known, unknown, gone = await made(ada), await made(ada), await made(ada)
        credential = await checks.find(known)
        await checks.find(gone)
        await usermanager.kill()
        await checks.until_away()
        condition = checks.credentials.news.condition()
        assert condition.level == "degraded"
        assert "known API keys go on" in condition.reason
        # For who runs this; a client is told no more than what it is to do.
        assert f"at {usermanager.url} (USERMANAGER_URL)" in condition.reason
        assert await checks.find(known) is credential
        with pytest.raises(RetryLater) as caught:
            await checks.find(unknown)
        assert caught.value.code == "auth_unavailable"
        assert int(caught.value.headers["Retry-After"]) >= 1
        assert caught.value.detail.endswith("nothing was done: try again")
        for inside in ("USERMANAGER_URL", "user manager", str(usermanager.port)):
            assert inside not in caught.value.detail
        # As when all that is fresh has become stale.
        for one in (known, gone):
            (await checks.find(one)).usable_until_s = 0.0
        assert await checks.find(known) is credential

        await usermanager.serve()
        await ada.login()
        key_id = await key_id_of(checks, gone)
        assert (await ada.delete(f"/apikeys/{key_id}")).status_code == 204
        await checks.until_in_touch()
        await wait_until(lambda: checks.cached(gone) is None, "it is dead", seconds=revoked_s_max)
        assert await checks.refusal(gone) == "invalid_api_key"
        assert await checks.find(known) is credential
        assert (await checks.find(unknown)).tenant == ada.id


async def test_a_key_revoked_while_nobody_could_tell_is_dead_once_somebody_can(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with (
        usermanager_process(tmp_path / "one", database_address) as one,
        usermanager_process(tmp_path / "two", database_address) as two,
        TcpProxy("127.0.0.1", one.port) as proxy,
    ):
        ada = await two.person()
        async with key_checks(one, f"http://127.0.0.1:{proxy.port}") as checks:
            key, other = await made(ada), await made(ada)
            credential = await checks.find(key)
            await checks.find(other)
            proxy.refuse = True
            proxy.reset()
            await checks.until_away()
            assert (await ada.delete(f"/apikeys/{credential.key_id}")).status_code == 204
            assert await checks.find(key) is credential
            proxy.heal()
            await wait_until(lambda: checks.cached(key) is None, "it is told of")
            assert await checks.refusal(key) == "invalid_api_key"
            assert checks.cached(other) is not None


async def test_a_user_manager_that_vanishes_without_a_word_is_noticed(
    usermanager: UserManagerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_news, "poll_wait_s", 2)
    ada = await usermanager.person()
    async with (
        TcpProxy("127.0.0.1", usermanager.port) as proxy,
        key_checks(usermanager, f"http://127.0.0.1:{proxy.port}") as checks,
    ):
        known = await made(ada)
        credential = await checks.find(known)
        proxy.vanish()
        refused = asyncio.create_task(checks.refusal(await made(ada)))
        credential.usable_until_s = 0.0
        # What is known is used while it is asked about.
        assert checks.cached(known) is credential
        assert await refused == "auth_unavailable"
        await checks.until_away()
        proxy.reset()
        proxy.heal()
        await checks.until_in_touch()
        assert await checks.find(known) is credential


async def test_when_events_are_lost_all_keys_are_looked_up_again(
    usermanager: UserManagerProcess, database_address: DatabaseAddress
) -> None:
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        gone, kept = await made(ada), await made(ada)
        for key in (gone, kept):
            await checks.find(key)
        # A restored backup: fewer events than have been told, and a key that is no more.
        await fetch(
            database_address,
            "UPDATE api_keys SET revoked_at = now() WHERE id = $1",
            await key_id_of(checks, gone),
        )
        await fetch(database_address, "UPDATE key_event_ids SET last = last + 2")
        await wait_until(lambda: checks.credentials.news.counters.resets == 1, "events are lost")
        assert checks.cached(gone) is None
        assert checks.cached(kept) is None
        assert await checks.refusal(gone) == "invalid_api_key"
        assert (await checks.find(kept)).tenant == ada.id


async def test_who_tries_keys_is_slowed_down_and_the_user_manager_is_spared(
    usermanager: UserManagerProcess,
) -> None:
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        good = await made(ada)
        await checks.find(good)
        tries = 4 * address_limits.burst
        codes = [await checks.refusal(guess()) for _ in range(tries)]
        assert codes[0] == "invalid_api_key"
        assert codes[-1] == "rate_limited"
        missed = (await usermanager.metrics())["key_lookups.missed"]
        assert address_limits.burst <= missed <= address_limits.burst + 10
        assert await checks.refusal(good) is None
        assert await checks.refusal(await made(ada)) == "rate_limited"
        assert await checks.refusal(await made(ada), "192.0.2.2") is None


async def test_a_user_manager_of_another_cluster_is_no_reason_to_refuse_a_key(
    usermanager: UserManagerProcess,
) -> None:
    ada = await usermanager.person()
    key = await made(ada)
    checks = KeyChecks(usermanager.url, "another cluster's secret, as long as ours")
    async with checks.user_manager, checks.credentials:
        with log_lines() as lines, pytest.raises(RetryLater) as caught:
            await checks.find(key)
        assert caught.value.code == "auth_unavailable"
        assert "CLUSTER_SECRET" not in caught.value.detail
        assert any("CLUSTER_SECRET differs" in line.get("why", "") for line in lines)


@asynccontextmanager
async def stranger(answer: bytes) -> AsyncIterator[str]:
    """Something else that listens where the user manager should."""

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"[" * 65_536,
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (2 << 20),
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 12\r\n\r\nwho are you?",
        b'HTTP/1.1 404 Not Found\r\nContent-Length: 20\r\n\r\n{"code": "not_found"}',
        b'HTTP/1.1 500 Oops\r\nContent-Length: 28\r\n\r\n{"code": "invalid_api_key"  }',
        b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"valid": false}',
    ],
)
async def test_whatever_else_answers_there_never_makes_a_key_a_wrong_one(answer: bytes) -> None:
    async with stranger(answer) as url:
        checks = KeyChecks(url)
        async with checks.user_manager, checks.credentials:
            assert await checks.refusal(guess(), here) == "auth_unavailable"
            assert checks.user_manager.failed == 1


async def test_no_proxy_of_the_environment_is_on_the_way(
    usermanager: UserManagerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ada = await usermanager.person()
    async with key_checks(usermanager) as checks:
        assert await checks.refusal(await made(ada)) is None


async def test_without_postgresql_known_keys_go_on_and_unknown_ones_are_not_refused(
    tmp_path: Path,
) -> None:
    def server() -> EmbeddedPostgres:
        return EmbeddedPostgres(tmp_path / "pg", "made up", durable=False, log=lambda _: None)

    running = server()
    await running.__aenter__()
    await asyncio.to_thread(migrate, running.address)
    async with (
        usermanager_process(tmp_path / "data", running.address) as usermanager,
        key_checks(usermanager) as checks,
    ):
        ada = await usermanager.person()
        known, unknown = await made(ada), await made(ada)
        credential = await checks.find(known)
        await running.__aexit__(None, None, None)
        await checks.until_away()
        credential.usable_until_s = 0.0
        assert await checks.find(known) is credential
        assert await checks.refusal(unknown) == "auth_unavailable"
        async with server():
            await checks.until_in_touch()
            await wait_until(lambda: checks.in_touch, "it is told of keys again")
            assert await checks.refusal(unknown) is None
            assert (await ada.delete(f"/apikeys/{credential.key_id}")).status_code == 204
            await wait_until(
                lambda: checks.cached(known) is None, "it is dead", seconds=revoked_s_max
            )
            assert await checks.refusal(known) == "invalid_api_key"
