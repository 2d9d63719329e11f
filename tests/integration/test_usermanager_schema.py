"""The schema that is committed for people to read is the one that databases have."""

from __future__ import annotations

import asyncio

from alembic import command
from alembic.script import ScriptDirectory

from services.runtime.database_url import DatabaseAddress
from services.runtime.migrations import alembic_config, migrate
from services.usermanager.readiness import revision_needed
from tests.integration.schema_file import dumped, heading, schema_file
from tests.integration.test_migrations import fetch

tables_sql = """
    SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename
"""


async def test_the_committed_schema_is_the_one_at_the_head(
    database_address: DatabaseAddress,
) -> None:
    found = await asyncio.to_thread(dumped, database_address)
    assert found == schema_file.read_text(), "run: make schema"


async def test_it_is_the_same_after_downgrading_to_nothing_and_upgrading_again(
    empty_database_address: DatabaseAddress,
) -> None:
    address = empty_database_address
    await asyncio.to_thread(migrate, address)
    await asyncio.to_thread(command.downgrade, alembic_config(address), "base")
    assert await fetch(address, tables_sql) == [("alembic_version",)]
    nothing = await asyncio.to_thread(dumped, address)
    assert nothing.count("CREATE ") == 1, "what is left is alembic's own table"
    await asyncio.to_thread(migrate, address)
    assert await asyncio.to_thread(dumped, address) == schema_file.read_text()


async def test_it_is_the_same_after_each_revision_was_taken_back_and_made_again(
    database_address: DatabaseAddress,
) -> None:
    """Which a downgrade of several at once could hide."""
    config = alembic_config(database_address)
    revisions = ScriptDirectory.from_config(config).walk_revisions()
    seen = {}
    for revision in revisions:
        seen[revision.revision] = await asyncio.to_thread(dumped, database_address)
        await asyncio.to_thread(command.downgrade, config, "-1")
    for name, schema in sorted(seen.items()):
        await asyncio.to_thread(migrate, database_address, name)
        assert await asyncio.to_thread(dumped, database_address) == schema, name


async def test_tables_with_rows_in_them_are_taken_back_too(
    database_address: DatabaseAddress,
) -> None:
    await fetch(
        database_address,
        "INSERT INTO users (email, email_folded, username, username_folded, password_hash)"
        " VALUES ('a@b', 'a@b', 'a', 'a', '')",
    )
    await fetch(
        database_address,
        "INSERT INTO api_keys (user_id, key_hash, key_prefix, name, scopes)"
        " SELECT id, sha256('a'), 'ydht_abc', 'mine', '{read}' FROM users",
    )
    await fetch(
        database_address,
        "CREATE TABLE usage_20260101 PARTITION OF usage_rollups"
        " FOR VALUES FROM ('2026-01-01') TO ('2026-01-02')",
    )
    await asyncio.to_thread(command.downgrade, alembic_config(database_address), "base")
    assert await fetch(database_address, tables_sql) == [("alembic_version",)]


def test_the_schema_that_a_user_manager_needs_is_one_there_is() -> None:
    address = DatabaseAddress(host="nowhere", user="nobody", database="none")
    known = ScriptDirectory.from_config(alembic_config(address)).walk_revisions()
    revisions = [revision.revision for revision in known]
    assert revision_needed in revisions
    # It compares them as texts.
    assert revisions == sorted(revisions, reverse=True)
    assert {len(revision) for revision in revisions} == {4}


def test_the_committed_schema_says_how_it_is_made() -> None:
    assert schema_file.read_text().startswith(heading)
