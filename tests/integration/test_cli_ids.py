"""`ydht ids` as an operator types it, on a real database, beside a keygen."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from services.core.permute import Permutation
from services.runtime.database_url import DatabaseAddress
from tests.integration.keygen_process import keygen_process
from tests.integration.keygen_town import Keygen, a_town
from tests.integration.replicator_process import until_told
from tests.integration.shell import Shell, ada, usage_error
from tests.integration.usermanager_process import key_pepper


@pytest.fixture
def shell(tmp_path: Path, database_address: DatabaseAddress) -> Shell:
    return Shell(tmp_path, DATABASE_URL=database_address.url(), KEY_PEPPER=key_pepper)


async def test_ids_are_made_that_no_keygen_gives_out(
    shell: Shell, tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with keygen_process(tmp_path / "data", database_address) as keygen:
        given = set(await keygen.ids(7, 30))
        made = (await shell.done("ids", "new", "--count", "500")).out.split()
        assert {len(one) for one in made} == {7}
        assert len(set(made)) == 500
        given |= set(await keygen.ids(7, 3_000))
        assert not given & set(made)
    long = await shell.done("ids", "new", "--size", "16", "--json")
    assert [len(one["id"]) for one in long.json] == [16]


async def test_it_is_said_what_became_of_an_id(
    shell: Shell, tmp_path: Path, database_address: DatabaseAddress
) -> None:
    account = (await shell.create(ada))["id"]
    own = (await shell.done("ids", "new", "--for", ada)).out.strip()
    (told,) = (await shell.done("ids", "inspect", own, "--json")).json
    assert (told["issued"], told["tenant"], told["email"]) == (True, account, ada)
    assert told["range_closed_at"] is not None
    assert (told["returned_at"], told["reissued"]) == (None, False)
    assert ada in (await shell.done("ids", "inspect", own)).out

    async with keygen_process(tmp_path / "data", database_address) as keygen:
        key = (await keygen.get("/get-key")).text
        (told,) = (await shell.done("ids", "inspect", key, "--json")).json
        assert (told["tenant"], told["range_closed_at"], told["certain"]) == (0, None, False)
        assert "without an API key" in (await shell.done("ids", "inspect", key)).out


async def test_what_was_returned_was_given_out_for_certain(
    shell: Shell, database_address: DatabaseAddress
) -> None:
    key = (await shell.done("ids", "new")).out.strip()
    assert "or never" in (await shell.done("ids", "inspect", key)).out
    connection = await asyncpg.connect(**database_address.asyncpg())
    await connection.execute(
        "INSERT INTO returned_keys (size, index, tenant, range_id, is_free) "
        "SELECT size, first, tenant, id, true FROM key_ranges"
    )
    await connection.close()
    shown = (await shell.done("ids", "inspect", key)).out
    assert "for it was returned" in shown
    assert "or never" not in shown
    (told,) = (await shell.done("ids", "inspect", key, "--json")).json
    assert (told["certain"], told["reissued"]) == (True, False)
    assert told["returned_at"] is not None


async def _remembered(keygen: Keygen, count: int) -> bool | None:
    return await keygen.read("SELECT count(*) FROM key_reissues") == [(count,)] or None


async def test_returns_and_what_followed_are_remembered(
    shell: Shell, tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with a_town(database_address, tmp_path) as town:
        one = await town.keygen("one")
        keys = await one.take(20)
        await one.take(1)

        async def are_free() -> bool | None:
            closed = await one.read("SELECT id FROM key_ranges WHERE closed_at IS NOT NULL")
            return bool(closed) or None

        await until_told(are_free, "their range is closed")
        for _ in range(2):
            assert (await one.give_back(keys[:3])).returned == 3
            assert set(await one.take(3)) == set(keys[:3])
            # What is behind them finishes the claim.
            await one.take(1)
        await until_told(partial(_remembered, one, 6), "both are remembered")
        await one.give_back(keys[:1])
        await one.take(1)
        await one.die()
        one.home.close()
        await town.keygen("heir", home="one")
    (told,) = (await shell.done("ids", "inspect", keys[0], "--json")).json
    assert (told["certain"], told["reissued"], len(told["returns"])) == (True, True, 3)
    for past in told["returns"]:
        assert past["returned_at"] <= past["reissued_after"] <= past["reissued_before"]
    assert [past["certain"] for past in told["returns"]] == [True, True, False]
    shown = (await shell.done("ids", "inspect", keys[0])).out
    assert shown.count("given out again between") == 2
    assert shown.count("lost with its keygen, or given out again before") == 1


async def test_what_a_database_that_was_set_back_has_forgotten_is_said(
    shell: Shell, database_address: DatabaseAddress
) -> None:
    key = (await shell.done("ids", "new")).out.strip()
    connection = await asyncpg.connect(**database_address.asyncpg())
    await connection.execute("DELETE FROM key_ranges")
    await connection.close()
    (told,) = (await shell.done("ids", "inspect", key, "--json")).json
    assert (told["forgotten"], told["certain"], told["tenant"]) == (True, False, None)
    assert "has forgotten whose it is" in (await shell.done("ids", "inspect", key)).out


async def test_what_was_never_given_out_is_told_from_what_is_no_id(shell: Shell) -> None:
    await shell.done("ids", "new")
    for never in ("zzzzzzz", "0" * 16):
        (told,) = (await shell.done("ids", "inspect", never, "--json")).json
        assert (told["issued"], told["certain"], told["tenant"]) == (False, True, None)
        assert "never given out" in (await shell.done("ids", "inspect", never)).out
    for wrong in ("abc", "a" * 17, "abc-def", "äbcdefg", "'; DROP"):
        assert "is no key: " in await shell.refused(os.EX_DATAERR, "ids", "inspect", wrong)


async def test_bounds_and_accounts_are_looked_at(shell: Shell) -> None:
    for words in (["--count", "0"], ["--count", "10001"], ["--size", "5"], ["--size", "17"]):
        assert (await shell.type("ids", "new", *words)).code == usage_error
    assert (await shell.type("ids", "new", "--for", "nobody@example.com")).code == os.EX_NOUSER


async def test_lost_key_material_is_not_made_anew(
    shell: Shell, database_address: DatabaseAddress
) -> None:
    await shell.done("ids", "new")
    connection = await asyncpg.connect(**database_address.asyncpg())
    material = await connection.fetchval(
        "DELETE FROM platform WHERE key = 'keygen permutation' RETURNING value"
    )
    said = await shell.refused(os.EX_CONFIG, "ids", "new")
    assert "restore that row from a backup" in said
    await connection.execute(
        "INSERT INTO platform (key, value) VALUES ('keygen permutation', $1)", material
    )
    await connection.close()
    made = (await shell.done("ids", "new")).out.strip()
    assert Permutation(material, 7).index(made.encode()) == 1
