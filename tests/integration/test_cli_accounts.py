"""`ydht user` and `ydht keys` as an operator types them, on a real database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.cli.endings import RefusedError
from services.runtime.database_url import DatabaseAddress
from services.usermanager.throttle import login_of_account, subject_of
from tests.integration.shell import Shell, ada, usage_error
from tests.integration.usermanager_process import (
    UserManagerProcess,
    good_password,
    key_pepper,
    usermanager_process,
)


@pytest.fixture
def shell(tmp_path: Path, database_address: DatabaseAddress) -> Shell:
    return Shell(tmp_path, DATABASE_URL=database_address.url(), KEY_PEPPER=key_pepper)


@pytest.fixture
async def connection(database_address: DatabaseAddress) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**database_address.asyncpg())
    yield connection
    await connection.close()


@pytest.fixture
async def usermanager(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[UserManagerProcess]:
    async with usermanager_process(tmp_path / "data", database_address) as usermanager:
        yield usermanager


async def login(usermanager: UserManagerProcess, password: str = good_password) -> httpx.Response:
    return await usermanager.call("POST", "/login", {"email": ada, "password": password})


async def me(usermanager: UserManagerProcess, token: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return await usermanager.call("GET", "/me", headers=headers)


async def good(usermanager: UserManagerProcess, key: str) -> bool:
    answer = await usermanager.ask("POST", "/validate-key", {"key": key})
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


@asynccontextmanager
async def heard(usermanager: UserManagerProcess) -> AsyncIterator[list[dict[str, Any]]]:
    """What a gateway that waits is told of, by when it has to know: a second after the block."""
    last = (await usermanager.ask("GET", "/key-events")).json()["last"]
    waiting = asyncio.create_task(usermanager.ask("GET", f"/key-events?after={last}&wait_s=20"))
    events: list[dict[str, Any]] = []
    try:
        yield events
        async with asyncio.timeout(1.0):
            events += (await waiting).json()["events"]
    finally:
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting


# What it does.


async def test_an_account_made_here_is_one_that_logs_in(
    shell: Shell, usermanager: UserManagerProcess
) -> None:
    said = await shell.done(
        *("user", "create", ada, "--username", "Ada L.", "--plan", "pro", "--operator"),
        "--password-stdin",
        stdin=good_password + "\r\nand what else is there\n",
    )
    assert said.out == f"{ada}: opened account 1, plan pro\n"
    tokens = (await login(usermanager)).json()
    shown = (await me(usermanager, tokens["access_token"])).json()
    assert (shown["username"], shown["plan"], shown["is_operator"]) == ("Ada L.", "pro", True)


async def test_a_disabled_account_is_out_at_once_and_back_when_it_is_enabled(
    shell: Shell, usermanager: UserManagerProcess
) -> None:
    account = await shell.create()
    key = (await shell.done("keys", "create", ada, "--name", "robot")).out.splitlines()[-1]
    token = (await login(usermanager)).json()["access_token"]
    assert await good(usermanager, key)
    async with heard(usermanager) as events:
        said = await shell.done("user", "disable", ada)
    assert said.out == f"{ada}: is disabled; all sessions are ended\n"
    assert [(event["user_id"], event["key_id"]) for event in events] == [(account["id"], None)]
    assert not await good(usermanager, key)
    assert (await me(usermanager, token)).status_code == 401
    assert (await login(usermanager)).status_code == 401
    assert "closed or disabled" in await shell.refused(
        RefusedError.exit_code, "keys", "create", ada, "--name", "another"
    )
    async with heard(usermanager) as events:
        await shell.done("user", "enable", ada)
    assert len(events) == 1
    assert await good(usermanager, key)
    assert (await login(usermanager)).status_code == 200
    # Nobody is let back in by that who was thrown out.
    assert (await me(usermanager, token)).status_code == 401


async def test_a_new_password_ends_all_sessions_and_leaves_api_keys_alone(
    shell: Shell, usermanager: UserManagerProcess
) -> None:
    await shell.create()
    key = (await shell.done("keys", "create", ada, "--name", "robot")).out.splitlines()[-1]
    tokens = [(await login(usermanager)).json() for _ in range(2)]
    new = "läng enough, and new"
    said = await shell.done("user", "password", ada, "--password-stdin", stdin=new)
    assert said.out == f"{ada}: has the new password; all sessions are ended\n"
    for pair in tokens:
        assert (await me(usermanager, pair["access_token"])).status_code == 401
        refresh = {"refresh_token": pair["refresh_token"]}
        assert (await usermanager.call("POST", "/refresh", refresh)).status_code == 401
    assert (await login(usermanager)).status_code == 401
    assert (await login(usermanager, new)).status_code == 200
    assert await good(usermanager, key)


async def test_gateways_hear_of_a_new_plan(shell: Shell, usermanager: UserManagerProcess) -> None:
    await shell.create()
    key = (await shell.done("keys", "create", ada, "--name", "robot")).out.splitlines()[-1]
    async with heard(usermanager) as events:
        assert (await shell.done("user", "plan", ada, "developer")).out == (
            f"{ada}: has plan developer\n"
        )
    assert len(events) == 1
    limits = (await usermanager.ask("POST", "/validate-key", {"key": key})).json()
    assert (limits["plan"], limits["requests_per_minute"]) == ("developer", 60_000_000)


async def test_an_operator_is_made_and_unmade(shell: Shell) -> None:
    await shell.create()
    assert (await shell.done("user", "operator", ada, "--json")).json[0]["is_operator"] is True
    said = await shell.done("user", "operator", ada, "--remove")
    assert said.out == f"{ada}: is no operator\n"
    assert (await shell.done("user", "list", "--json")).json[0]["is_operator"] is False


async def test_a_network_is_admitted_in_spite_of_what_is_guessed_elsewhere(
    shell: Shell, usermanager: UserManagerProcess, connection: asyncpg.Connection
) -> None:
    await shell.create()
    # As after ten networks have guessed ten times each, a moment ago.
    spent = subject_of(login_of_account.name, ada)
    await connection.execute(
        "INSERT INTO throttles VALUES ($1, now() + interval '599 seconds')", spent
    )
    refused = await login(usermanager)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert "ydht user admit" in refused.json()["detail"]
    said = await shell.done("user", "admit", "ADA@example.com", "127.0.0.1")
    assert said.out == f"{ada}: can log in from 127.0.0.1\n"
    assert (await login(usermanager)).status_code == 200
    said = await shell.done("user", "admit", ada, "2001:0DB8::17")
    assert said.out == f"{ada}: can log in from 2001:db8::/64\n"
    for wrong in ("home", "fe80::1%eth0", "127.0.0.1/8", ""):
        err = await shell.refused(RefusedError.exit_code, "user", "admit", ada, wrong)
        assert "address: is not an IP address, such as 203.0.113.7" in err
    actions = await connection.fetch(
        "SELECT details FROM audit_log WHERE action = 'network_admitted'"
    )
    assert len(actions) == 2


async def test_a_key_made_here_is_good_until_it_is_revoked_here(
    shell: Shell, usermanager: UserManagerProcess
) -> None:
    account = await shell.create()
    (made,) = (
        await shell.done(
            *("keys", "create", "ADA@example.com", "--name", "робот", "--json"),
            *("--scope", "read", "--scope", "admin", "--prefix", "user:", "--rate-limit", "5"),
            "--no-expiry",
        )
    ).json
    assert (made["scopes"], made["prefix"], made["expires_at"]) == (
        ["read", "admin"],
        "user:",
        None,
    )
    answer = await usermanager.ask("POST", "/validate-key", {"key": made["key"]})
    valid = answer.json()
    assert (valid["user_id"], valid["key_id"]) == (account["id"], made["id"])
    assert (valid["requests_per_minute"], valid["prefix"]) == (5, "user:")
    (listed,) = (await shell.done("keys", "list", ada, "--json")).json
    assert "key" not in listed
    assert (listed["name"], listed["is_active"]) == ("робот", True)
    async with heard(usermanager) as events:
        said = await shell.done("keys", "revoke", ada, str(made["id"]))
    assert said.out == f"API key {made['id']} of {ada} is revoked\n"
    assert [event["key_id"] for event in events] == [made["id"]]
    assert not await good(usermanager, made["key"])
    # To say it once more changes nothing.
    await shell.done("keys", "revoke", ada, str(made["id"]))
    table = (await shell.done("keys", "list", ada)).out.splitlines()
    assert len(table) == 2
    assert "revoked 20" in table[1]
    assert table[1].endswith("робот")


async def test_lists_go_on_to_the_last_page(shell: Shell, connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO users (email, email_folded, username, username_folded, password_hash)"
        " SELECT n || '@e.com', n || '@e.com', 'u' || n, 'u' || n, 'x'"
        " FROM generate_series(1, 2500) AS n"
    )
    listed = (await shell.done("user", "list", "--json")).json
    assert [account["email"] for account in listed] == [f"{n}@e.com" for n in range(1, 2501)]
    assert all("password" not in name for name in listed[0])
    lines = (await shell.done("user", "list")).out.splitlines()
    assert len(lines) == 2_501
    assert lines[-1].split()[0:3] == ["2500", "free", "active"]


async def test_an_empty_list_is_empty_and_no_error(shell: Shell) -> None:
    assert (await shell.done("user", "list", "--json")).out == ""
    assert len((await shell.done("user", "list")).out.splitlines()) == 1


async def test_all_of_it_is_in_the_audit_log_and_no_secret_is(
    shell: Shell, connection: asyncpg.Connection
) -> None:
    await shell.create()
    key = (await shell.done("keys", "create", ada, "--name", "robot")).out.splitlines()[-1]
    await shell.done("user", "plan", ada, "pro")
    await shell.done("user", "password", ada, "--password-stdin", stdin="another secret")
    await shell.done("user", "disable", ada)
    await shell.done("keys", "revoke", ada, "1")
    rows = await connection.fetch("SELECT * FROM audit_log ORDER BY id")
    assert len(rows) == 6
    assert {row["user_id"] for row in rows} == {1}
    (actor,) = {row["actor"] for row in rows}
    assert actor.startswith("operator ")
    text = " ".join(str(dict(row)) for row in rows)
    for secret in (good_password, "another secret", key, key[9:]):
        assert secret not in text


async def test_of_two_who_open_one_account_at_once_one_is_told_that_it_is_taken(
    shell: Shell, connection: asyncpg.Connection
) -> None:
    words = ("user", "create", ada, "--password-stdin")
    both = await asyncio.gather(*(shell.type(*words, stdin=good_password) for _ in range(2)))
    assert sorted(said.code for said in both) == [0, RefusedError.exit_code]
    assert await connection.fetchval("SELECT count(*) FROM users") == 1


# Passwords.


def at_terminal(shell: Shell, *words: str) -> tuple[int, Callable[[], bytes], int]:
    """The command on a terminal of its own: its pid, what reads from there, and where to type."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(Path(__file__).parents[2])
        arguments = [sys.executable, "-m", "services.cli", *words]
        os.execve(sys.executable, arguments, shell.environment)  # noqa: S606  Our own program.

    def read() -> bytes:
        try:
            return os.read(terminal, 4_096)
        except OSError:
            return b""

    return pid, read, terminal


async def test_a_password_is_asked_for_twice_and_never_shown(
    shell: Shell, usermanager: UserManagerProcess
) -> None:
    pid, read, terminal = at_terminal(shell, "user", "create", ada)
    seen = b""

    async def answer(prompt: bytes, text: str) -> None:
        nonlocal seen
        said = b""
        async with asyncio.timeout(30):
            while prompt not in said:
                said += await asyncio.to_thread(read)
        seen += said
        os.write(terminal, text.encode() + b"\n")

    await answer(b"New password:", good_password)
    await answer(b"Repeat for confirmation:", "something else")
    await answer(b"New password:", good_password)
    await answer(b"Repeat for confirmation:", good_password)
    while said := await asyncio.to_thread(read):
        seen += said
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"do not match" in seen
    assert f"{ada}: opened account 1".encode() in seen
    assert good_password.encode() not in seen
    assert b"something else" not in seen
    assert (await login(usermanager)).status_code == 200


async def test_a_password_is_never_an_argument(shell: Shell) -> None:
    for command in ("create", "password"):
        err = await shell.refused(usage_error, "user", command, ada, "--password", good_password)
        assert "No such option" in err
        err = await shell.refused(usage_error, "user", command, ada, good_password)
        assert "unexpected extra argument" in err
        err = await shell.refused(usage_error, "user", command, ada)
        assert "no terminal to ask for the password at: give it by --password-stdin" in err
