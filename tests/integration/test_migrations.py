"""The schema: forth and back, once however many ask, wherever the process stands."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from services.core.errors import FatalError, RestartLater
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import embedded_address
from services.runtime.migrations import alembic_config, migrate, scripts_directory

schema_sql = """
    SELECT table_name, column_name, data_type, is_nullable, column_default
    FROM information_schema.columns WHERE table_schema = 'public'
      AND table_name <> 'alembic_version'
    ORDER BY table_name, ordinal_position
"""


async def fetch(address: DatabaseAddress, sql: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(**address.asyncpg())
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


# The script, without the console entry point: it needs no installation to be tested.
ydht_migrate = [sys.executable, "-m", "services.cli", "migrate"]
# As in migrations/env.py, which only alembic can import.
lock_key = 0x79646874


def revisions(address: DatabaseAddress) -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config(address))


async def test_up_down_and_up_again_gives_the_same_schema(
    empty_database_address: DatabaseAddress,
) -> None:
    address = empty_database_address
    await asyncio.to_thread(migrate, address)
    first = await fetch(address, schema_sql)
    assert ("platform", "value", "bytea", "NO", None) in first

    await asyncio.to_thread(command.downgrade, alembic_config(address), "base")
    assert await fetch(address, schema_sql) == []

    await asyncio.to_thread(migrate, address)
    assert await fetch(address, schema_sql) == first


def test_there_is_exactly_one_head() -> None:
    address = DatabaseAddress(host="nowhere", user="nobody", database="none")
    assert len(revisions(address).get_heads()) == 1


def test_every_revision_can_be_taken_back() -> None:
    address = DatabaseAddress(host="nowhere", user="nobody", database="none")
    for revision in revisions(address).walk_revisions():
        assert callable(getattr(revision.module, "downgrade", None)), revision.revision


async def test_the_template_is_at_the_head(database_address: DatabaseAddress) -> None:
    head = revisions(database_address).get_current_head()
    assert await fetch(database_address, "SELECT version_num FROM alembic_version") == [(head,)]


async def test_a_clone_is_its_own(
    database_address: DatabaseAddress, empty_database_address: DatabaseAddress
) -> None:
    await fetch(database_address, "INSERT INTO platform (key, value) VALUES ('a', 'b')")
    assert await fetch(empty_database_address, schema_sql) == []


async def test_processes_that_migrate_at_once_take_turns(
    empty_database_address: DatabaseAddress,
) -> None:
    url = empty_database_address.url()
    started = [
        await asyncio.create_subprocess_exec(
            *ydht_migrate,
            env={**os.environ, "DATABASE_URL": url},
            cwd=scripts_directory().parent,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        for _ in range(4)
    ]
    for process in started:
        said, _ = await process.communicate()
        assert (process.returncode, said) == (0, b"The database schema is up to date.\n")
    assert len(await fetch(empty_database_address, "SELECT * FROM alembic_version")) == 1


async def test_who_migrates_waits_for_the_one_who_holds_the_lock(
    empty_database_address: DatabaseAddress,
) -> None:
    holder = await asyncpg.connect(**empty_database_address.asyncpg())
    await holder.fetchval("SELECT pg_advisory_lock($1)", lock_key)
    migrating = asyncio.create_task(asyncio.to_thread(migrate, empty_database_address))
    refused_sql = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
          AND (query LIKE '%pg_try_advisory_lock%' OR query ILIKE 'ROLLBACK%')
    """
    while not await holder.fetchval(refused_sql):
        await holder.execute("SELECT pg_sleep(0.02)")
    assert await fetch(empty_database_address, schema_sql) == []
    await holder.close()
    await migrating
    assert await fetch(empty_database_address, schema_sql) != []


async def test_a_database_from_a_newer_version_is_refused_by_name(
    database_address: DatabaseAddress,
) -> None:
    await fetch(database_address, "UPDATE alembic_version SET version_num = 'tomorrow'")
    with pytest.raises(FatalError, match=r"tomorrow.*newer version of ydht"):
        await asyncio.to_thread(migrate, database_address)


@pytest.mark.parametrize("host", ["/nonexistent", "127.0.0.1"])
async def test_a_database_that_is_away_is_looked_for_where_its_address_came_from(host: str) -> None:
    address = DatabaseAddress(
        host=host, port=1, user="ada", database="shop", password="not to be shown"
    )
    with pytest.raises(RestartLater, match="check DATABASE_URL: is it running there") as refusal:
        await asyncio.to_thread(migrate, address)
    assert "not to be shown" not in str(refusal.value)
    assert "ydht db" not in str(refusal.value)


async def test_an_embedded_database_that_is_away_is_one_line_of_advice(tmp_path: Path) -> None:
    address = embedded_address(tmp_path, "not to be shown")
    with pytest.raises(RestartLater, match=r"is it running\? `ydht db` starts it$"):
        await asyncio.to_thread(migrate, address)


def test_scripts_are_found_from_the_package() -> None:
    assert (scripts_directory() / "env.py").is_file()
    assert (scripts_directory() / "script.py.mako").is_file()
