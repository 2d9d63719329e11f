"""What `ydht user` and `ydht keys` refuse, and how a script can tell why."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.cli.endings import (
    NotThereError,
    RefusedError,
    UnknownEndError,
    UnreachableError,
)
from services.cli.front_desk import FrontDesk, at_front_desk
from services.core.errors import FatalError, FixRequest, RetryLater, UnknownOutcome
from services.runtime.database_url import DatabaseAddress
from services.usermanager.readiness import revision_needed
from tests.integration.shell import Shell, ada, usage_error
from tests.integration.usermanager_process import good_password, key_pepper


@pytest.fixture
def shell(tmp_path: Path, database_address: DatabaseAddress) -> Shell:
    return Shell(tmp_path, DATABASE_URL=database_address.url(), KEY_PEPPER=key_pepper)


@pytest.fixture
async def connection(database_address: DatabaseAddress) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**database_address.asyncpg())
    yield connection
    await connection.close()


refusals: dict[str, tuple[int, tuple[str | bytes, ...], str]] = {
    "nobody's plan": (
        NotThereError.exit_code,
        ("user", "plan", "bob@example.com", "pro"),
        "No account has the email address bob@example.com",
    ),
    "nobody's password": (
        NotThereError.exit_code,
        ("user", "password", "bob@example.com", "--password-stdin"),
        "No account has the email address bob@example.com",
    ),
    "nobody's keys": (
        NotThereError.exit_code,
        ("keys", "list", "bob@example.com"),
        "No account has the email address bob@example.com",
    ),
    "no such key": (NotThereError.exit_code, ("keys", "revoke", ada, "99"), "API key"),
    "no address": (RefusedError.exit_code, ("user", "disable", "ada"), "email: is not an email"),
    "taken address": (
        RefusedError.exit_code,
        ("user", "create", "ADA@Example.com", "--username", "x", "--password-stdin"),
        "Another account has this email",
    ),
    "taken name": (
        RefusedError.exit_code,
        ("user", "create", "ada@elsewhere.org", "--password-stdin"),
        "Another account has this username",
    ),
    "several at once": (
        RefusedError.exit_code,
        ("user", "create", "nowhere", "--username", " x", "--password-stdin"),
        "email: is not an email address such as name@example.com; username: begins or ends",
    ),
    "no name of a key": (
        RefusedError.exit_code,
        ("keys", "create", ada, "--name", ""),
        "name: ",
    ),
    "a key for longer than ever": (
        RefusedError.exit_code,
        ("keys", "create", ada, "--name", "x", "--expires-in-days", "4000"),
        "expires_in_days: ",
    ),
    "a key above its plan": (
        RefusedError.exit_code,
        ("keys", "create", ada, "--name", "x", "--rate-limit", "101"),
        "rate_limit_per_minute: ",
    ),
    "no such plan": (usage_error, ("user", "plan", ada, "public"), "'public' is not one of"),
    "no such scope": (
        usage_error,
        ("keys", "create", ada, "--name", "x", "--scope", "all"),
        "'all' is not one of",
    ),
    "a contradiction": (
        usage_error,
        ("keys", "create", ada, "--name", "x", "--no-expiry", "--expires-in-days", "3"),
        "contradict each other",
    ),
    "no number": (usage_error, ("keys", "revoke", ada, "abc"), "'abc' is no ID: `ydht keys list`"),
    "no id": (usage_error, ("keys", "revoke", ada, "0"), "'0' is no ID"),
    "no text": (usage_error, ("keys", "create", ada, "--name", b"\xff"), "is not UTF-8"),
    "no text for an address": (usage_error, ("user", "disable", b"a\xff@e.com"), "is not UTF-8"),
}


async def test_what_is_refused_says_why_in_one_line_and_changes_nothing(
    shell: Shell, connection: asyncpg.Connection
) -> None:
    await shell.create()
    for what, (code, words, complaint) in refusals.items():
        assert complaint in await shell.refused(code, *words, stdin=good_password), what
    weak = "password: is not 8 to 1024 characters long"
    opening, changing = ("create", "new@example.com"), ("password", ada)
    for words, password in (
        (opening, ""),
        (opening, "x" * 100_000),
        (changing, "short"),
        (changing, "x" * 1_025),
    ):
        assert weak in await shell.refused(
            RefusedError.exit_code, "user", *words, "--password-stdin", stdin=password
        )
    assert await connection.fetchval("SELECT count(*) FROM users") == 1
    assert await connection.fetchval("SELECT count(*) FROM api_keys") == 0
    assert await connection.fetchval("SELECT count(*) FROM audit_log") == 1


async def test_before_the_schema_is_there_it_says_what_to_run(
    tmp_path: Path, empty_database_address: DatabaseAddress
) -> None:
    shell = Shell(tmp_path, DATABASE_URL=empty_database_address.url(), KEY_PEPPER=key_pepper)
    said = await shell.refused(FatalError.exit_code, "user", "list")
    assert said == (
        "ydht: the database cannot be used: its schema is at nothing and "
        f"{revision_needed} is needed: "
        "run `ydht migrate`\n"
    )


async def test_before_there_are_secrets_it_says_what_to_run(tmp_path: Path) -> None:
    said = await Shell(tmp_path).refused(FatalError.exit_code, "keys", "list", ada)
    assert f"there is no {tmp_path}/ydht.env: name the data directory of your installation" in said
    assert "--data-dir or DATA_DIR" in said
    assert "run `ydht init`" in said
    away = tmp_path / "away"
    said = await Shell(away).refused(FatalError.exit_code, "keys", "list", ada)
    assert f"there is no {away}: name" in said


async def test_without_the_database_of_a_url_it_says_where_it_looked(tmp_path: Path) -> None:
    shell = Shell(
        tmp_path, DATABASE_URL="postgres://ydht:x@127.0.0.1:9/ydht", KEY_PEPPER=key_pepper
    )
    said = await shell.refused(UnreachableError.exit_code, "user", "list")
    assert "nothing was changed: PostgreSQL cannot be reached" in said
    assert "is it running at 127.0.0.1:9, where DATABASE_URL says?" in said


async def test_the_embedded_database_of_a_data_directory_is_used_while_it_is_up(
    tmp_path: Path,
) -> None:
    shell = Shell(tmp_path / "data")
    await shell.done("init")
    said = await shell.refused(UnreachableError.exit_code, "user", "list")
    assert "is it running? `ydht up` or `ydht db` starts it" in said
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "db"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=shell.environment,
        cwd=Path(__file__).parents[2],
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(60):
            while b"PostgreSQL is ready" not in (line := await server.stdout.readline()):
                assert line, "the server has ended"
        assert "run `ydht migrate`" in await shell.refused(FatalError.exit_code, "user", "list")
        await shell.done("migrate")
        await shell.create()
        # And by the option, from wherever else.
        elsewhere = Shell(tmp_path)
        said_there = await elsewhere.done(
            "user", "list", "--json", "--data-dir", f"{tmp_path}/data"
        )
        assert [account["email"] for account in said_there.json] == [ada]
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGTERM)
        await server.communicate()
    assert server.returncode == 0


@pytest.mark.parametrize(
    ("error", "ends_as", "text"),
    [
        (UnknownOutcome("PostgreSQL was lost"), UnknownEndError, "it may have been done or not"),
        (RetryLater("database_unavailable", "busy"), UnreachableError, "nothing was changed: busy"),
        (FixRequest("already_exists", "no"), RefusedError, "no"),
        (FixRequest("not_found", "none"), NotThereError, "none"),
    ],
)
def test_each_end_has_an_exit_code_of_its_own(
    tmp_path: Path,
    database_address: DatabaseAddress,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    ends_as: type[FatalError],
    text: str,
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_address.url())
    monkeypatch.setenv("KEY_PEPPER", key_pepper)

    async def work(desk: FrontDesk) -> None:
        raise error

    with pytest.raises(ends_as, match=text):
        at_front_desk(tmp_path, work)
    codes = (RefusedError, NotThereError, UnknownEndError, UnreachableError, FatalError)
    assert [kind.exit_code for kind in codes] == [65, 67, 74, 75, 78]
