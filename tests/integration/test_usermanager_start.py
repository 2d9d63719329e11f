"""Starting and stopping a user manager: wrong settings, and a database that is not there."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from alembic import command

from services.core.errors import FatalError
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.migrations import alembic_config, migrate
from services.runtime.settings import load
from services.usermanager.settings import UserManagerSettings
from tests.integration.lane_world import Client, request
from tests.integration.node_process import secret
from tests.integration.replicator_process import until_told
from tests.integration.usermanager_process import (
    UserManagerProcess,
    jwt_secret,
    key_pepper,
    usermanager_process,
)

nowhere = DatabaseAddress(host="127.0.0.1", port=9, user="ada", database="shop")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"JWT_SECRET": "short"}, "JWT_SECRET is not acceptable: it has 5 characters"),
        ({"JWT_SECRET": "secret-" * 8}, "JWT_SECRET is not acceptable: it repeats itself"),
        ({"JWT_SECRET": ""}, "JWT_SECRET is not set"),
        ({"KEY_PEPPER": "change-me-this-is-the-default-secret"}, "made of well-known words"),
        ({"KEY_PEPPER": ""}, "KEY_PEPPER is not set"),
        ({"KEY_PEPPER": jwt_secret}, "JWT_SECRET and KEY_PEPPER are the same"),
        ({"JWT_SECRET": secret}, "JWT_SECRET and CLUSTER_SECRET are the same"),
        ({"JWT_SECRET_FILE": "/nonexistent"}, "both JWT_SECRET and JWT_SECRET_FILE are set"),
        ({"JWT_EXPIRATION": "5s"}, "JWT_EXPIRATION is '5s': use a duration from 1m to 1d"),
        ({"JWT_EXPIRATION": "soon"}, "JWT_EXPIRATION is 'soon': use a duration such as 90s"),
        ({"TRUSTED_PROXIES": "proxy"}, "TRUSTED_PROXIES is 'proxy': use networks such as"),
        ({"TRUSTED_PROXIES": "10.0.0.1/8"}, "no bits after the prefix"),
        ({"TRUSTED_PROXIES": "10.0.0.0/8,::/0"}, "::/0 is the whole internet"),
        ({"PUBLIC_URL": "ftp://here"}, "PUBLIC_URL is 'ftp://here': use a URL such as"),
        ({"GATEWAY_PUBLIC_URL": "here"}, "GATEWAY_PUBLIC_URL is 'here': use a URL such as"),
        ({"REPLICATOR_URLS": "http://a,http://a"}, "name each URL once"),
        ({"USERMANAGER_PORT": "70000"}, "USERMANAGER_PORT is '70000': use a whole number"),
        ({"DATABASE_URL": ""}, "neither DATABASE_URL nor EMBEDDED_DB_PASSWORD is set"),
        ({"DATABASE_URL": "mysql://db"}, "DATABASE_URL is not acceptable"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    tmp_path: Path, wrong: dict[str, str], told: str
) -> None:
    environment = UserManagerProcess(tmp_path / "data", nowhere.url(), **wrong).environment
    with pytest.raises(FatalError) as refusal:
        load(UserManagerSettings, environment)
    line = str(refusal.value)
    assert told in line
    for value in (jwt_secret, key_pepper, secret, *wrong.values()):
        assert len(value) < 32 or value not in line, "a secret is shown"


@pytest.mark.parametrize("wrong", [{"JWT_SECRET": "short"}, {"KEY_PEPPER": jwt_secret}])
async def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, wrong: dict[str, str]
) -> None:
    usermanager = UserManagerProcess(tmp_path / "data", nowhere.url(), **wrong)
    try:
        await usermanager.start()
        assert await usermanager.ended() == 78
    finally:
        await usermanager.clear()
    (line,) = usermanager.said.splitlines()
    assert line.startswith("ydht usermanager: ")
    assert next(iter(wrong)) in line


async def test_the_database_may_come_later_and_go_and_come_back(tmp_path: Path) -> None:
    password = "made up for this test"
    server = EmbeddedPostgres(tmp_path / "pg", password, durable=False, log=lambda _: None)
    async with usermanager_process(tmp_path / "data", server.address) as usermanager:

        async def unready() -> str | None:
            status, reasons = await usermanager.readiness()
            return reasons.get("database") if status == 503 else None

        async def ready() -> bool | None:
            return (await usermanager.readiness())[0] == 200 or None

        reason = await until_told(unready, "it misses the database")
        assert reason.startswith("accounts and API keys are in PostgreSQL, and ")
        assert (await usermanager.get("/health")).json()["status"] == "healthy"
        assert (await usermanager.get("/openapi.json")).status_code == 200
        errors = await usermanager.get("/docs/errors")
        assert 'id="database_unavailable"' in errors.text
        assert "/apikeys" in (await usermanager.get("/docs/api/usermanager")).text
        answer = await usermanager.call(
            "POST", "/login", {"email": "ada@example.com", "password": "not hers"}
        )
        assert answer.status_code == 503
        assert answer.json()["code"] == "database_unavailable"
        assert int(answer.headers["Retry-After"]) >= 1
        pid = usermanager.process.pid

        for _ in range(2):
            async with server:
                await asyncio.to_thread(migrate, server.address)
                await until_told(ready, "it has found the database")
                await usermanager.person()
            await until_told(unready, "it misses the database again")
        assert usermanager.process.pid == pid
        assert usermanager.process.returncode is None
        metrics = await usermanager.metrics()
        assert metrics["database_unavailable"] > 0
        restarted = [name for name in metrics if name.startswith("loop_restarts")]
        assert restarted == [], "an outage is no failure of a loop"
        assert await usermanager.terminate() == 0
        usermanager.check_no_traceback()
        told = [line for line in usermanager.said.splitlines() if "database is missing" in line]
        assert told
        assert all(f"place={server.address.place}" in line for line in told), told
        assert password not in usermanager.said


async def test_a_database_without_our_tables_is_told_by_the_command_that_makes_them(
    tmp_path: Path, empty_database_address: DatabaseAddress
) -> None:
    async with usermanager_process(tmp_path / "data", empty_database_address) as usermanager:

        async def told() -> str | None:
            reasons = (await usermanager.readiness())[1]
            return reasons.get("database", "") if "ydht migrate" in str(reasons) else None

        assert "its schema is at nothing" in await until_told(told, "it misses its tables")
        login = {"email": "ada@example.com", "password": "not hers"}
        for answer in (
            await usermanager.call("POST", "/login", login),
            await usermanager.call("GET", "/me", headers={"Authorization": "Bearer a.b.c"}),
            await usermanager.ask("GET", "/key-events"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert "not set up" in answer.json()["detail"]
        await asyncio.to_thread(migrate, empty_database_address, "0002")

        async def older() -> bool | None:
            return "its schema is at 0002 and" in str((await usermanager.readiness())[1]) or None

        await until_told(older, "it sees the older schema")
        await asyncio.to_thread(migrate, empty_database_address)

        async def ready() -> bool | None:
            return (await usermanager.readiness())[0] == 200 or None

        await until_told(ready, "it has found its tables")
        await usermanager.person()
        usermanager.check_no_traceback()


async def test_tables_that_are_taken_away_are_missed_as_those_that_never_were(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with usermanager_process(tmp_path / "data", database_address) as usermanager:

        async def status() -> int:
            return (await usermanager.readiness())[0]

        ada = await usermanager.person()
        await asyncio.to_thread(command.downgrade, alembic_config(database_address), "0002")
        await until_told(status_is(status, 503), "it misses its tables")
        login = {"email": ada.email, "password": ada.password}
        for answer in (
            await usermanager.call("POST", "/login", login),
            await ada.get("/me"),
            await usermanager.ask("GET", "/key-events"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert "not set up" in answer.json()["detail"]
        await asyncio.to_thread(migrate, database_address)
        await until_told(status_is(status, 200), "it has found its tables")
        await usermanager.person()


def status_is(
    status: Callable[[], Awaitable[int]], expected: int
) -> Callable[[], Awaitable[bool | None]]:
    async def holds() -> bool | None:
        return await status() == expected or None

    return holds


async def test_sigterm_lets_what_is_under_way_finish(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with usermanager_process(tmp_path / "data", database_address) as usermanager:
        ada = await usermanager.person()
        body = json.dumps({"email": ada.email, "password": ada.password}).encode()
        login = request("POST", "/login", "Content-Type: application/json", body=body)
        # More than are hashed at once; each keeps its last byte until the signal has come.
        clients = [
            Client(*await asyncio.open_connection("127.0.0.1", usermanager.port)) for _ in range(4)
        ]
        for client in clients:
            client.send(login[:-1])

        async def arrived() -> bool | None:
            metrics = await usermanager.metrics()
            return metrics["http_requests_in_flight"] > len(clients) or None

        async def deaf() -> bool | None:
            try:
                await usermanager.get("/health")
            except httpx.ConnectError:
                return True
            return None

        await until_told(arrived, "the logins have arrived")
        usermanager.process.send_signal(signal.SIGTERM)
        await until_told(deaf, "nobody else is let in")
        for client in clients:
            client.send(login[-1:])
        assert [(await client.answer()).status for client in clients] == [200] * 4
        assert [await client.closed() for client in clients] == [True] * 4
        for client in clients:
            await client.close()
        assert await usermanager.ended() == 0


async def test_two_on_one_port_is_one_line(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with usermanager_process(tmp_path / "data", database_address) as usermanager:
        second = UserManagerProcess(
            tmp_path / "other", database_address.url(), USERMANAGER_PORT=str(usermanager.port)
        )
        try:
            await second.start()
            assert await second.ended() == 1
        finally:
            await second.clear()
        (line,) = [line for line in second.said.splitlines() if line.startswith("ydht ")]
        assert f"port {usermanager.port}" in line
        assert "USERMANAGER_PORT" in line


@pytest.mark.parametrize(
    ("proxies", "seen"), [("", "127.0.0.1"), ("127.0.0.1,10.0.0.0/8", "198.51.100.7")]
)
async def test_who_a_client_is_comes_from_a_header_only_behind_trusted_proxies(
    tmp_path: Path, database_address: DatabaseAddress, proxies: str, seen: str
) -> None:
    data_dir = tmp_path / "data"
    async with usermanager_process(
        data_dir, database_address, TRUSTED_PROXIES=proxies
    ) as usermanager:
        # The second proxy is ours too; what stands further left the client made up.
        ada = await usermanager.person(address="192.0.2.1, 198.51.100.7, 10.1.1.1")
        (session,) = (await ada.get("/sessions")).json()["sessions"]
        assert session["address"] == seen
