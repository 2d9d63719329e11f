"""The contract of a store of accounts, in PostgreSQL and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
import pytest_asyncio

from services.core.errors import RetryLater, UnknownOutcome
from services.runtime.database_url import DatabaseAddress
from services.runtime.endpoints import Client
from services.runtime.postgres import Database
from services.usermanager.account_store import (
    Account,
    AccountStore,
    NewAccount,
    PostgresAccountStore,
    Taken,
)
from services.usermanager.audit import Audit, Note
from services.usermanager.key_events import KeyEvents
from services.usermanager.memory_account_store import MemoryAccountStore, Rows
from services.usermanager.names import parse_email, parse_username
from tests.integration.accounts_world import never
from tests.integration.test_postgres_pool import Proxy


class World(Protocol):
    """A store, and what else its database then holds."""

    store: AccountStore

    async def begin_session(self, account_id: int) -> int: ...

    async def sessions(self, account_id: int) -> list[int]: ...

    async def audited(self) -> list[tuple[int, str, str]]:
        """Account, action and actor of each entry."""
        ...

    async def told(self) -> list[int]:
        """Accounts that gateways were told of."""
        ...

    async def to_be_deleted(self) -> list[int]: ...

    def go_away(self) -> None: ...

    def come_back(self) -> None: ...

    def lose_a_reply(self) -> None:
        """Have the next commit happen without anybody hearing of it."""
        ...


class MemoryWorld:
    def __init__(self) -> None:
        self.rows = Rows()
        self.store: AccountStore = MemoryAccountStore(self.rows)

    async def begin_session(self, account_id: int) -> int:
        session = len(self.rows.sessions) + 1
        self.rows.sessions[session] = account_id
        return session

    async def sessions(self, account_id: int) -> list[int]:
        return [one for one, owner in self.rows.sessions.items() if owner == account_id]

    async def audited(self) -> list[tuple[int, str, str]]:
        return [(account, note.action, note.actor) for account, note in self.rows.notes]

    async def told(self) -> list[int]:
        return self.rows.told

    async def to_be_deleted(self) -> list[int]:
        return self.rows.closed

    def go_away(self) -> None:
        self.rows.away = True

    def come_back(self) -> None:
        self.rows.away = False

    def lose_a_reply(self) -> None:
        self.rows.replies_to_lose = 1


class PostgresWorld:
    def __init__(self, direct: Database, through: Database, proxy: Proxy) -> None:
        audit = Audit(through)
        self.store: AccountStore = PostgresAccountStore(through, audit, KeyEvents(through, never))
        self._direct = direct
        self._proxy = proxy

    async def begin_session(self, account_id: int) -> int:
        async with self._direct.transaction() as connection:
            return int(
                await connection.fetchval(
                    "INSERT INTO sessions (user_id, expires_at, address, user_agent)"
                    " VALUES ($1, now() + interval '1 day', '', '') RETURNING id",
                    account_id,
                )
            )

    async def sessions(self, account_id: int) -> list[int]:
        return await self._column(
            "SELECT id FROM sessions WHERE user_id = $1 ORDER BY 1", account_id
        )

    async def audited(self) -> list[tuple[int, str, str]]:
        async with self._direct.connection() as connection:
            rows = await connection.fetch(
                "SELECT user_id, action, actor FROM audit_log ORDER BY id"
            )
        return [tuple(row) for row in rows]

    async def told(self) -> list[int]:
        return await self._column("SELECT user_id FROM key_events WHERE key_id IS NULL ORDER BY id")

    async def to_be_deleted(self) -> list[int]:
        return await self._column("SELECT user_id FROM closed_accounts WHERE done_at IS NULL")

    def go_away(self) -> None:
        self._proxy.cut_before = lambda _: True
        self._proxy.cut()

    def come_back(self) -> None:
        self._proxy.cut_before = lambda _: False

    def lose_a_reply(self) -> None:
        def once(chunk: bytes) -> bool:
            if b"COMMIT" not in chunk:
                return False
            self._proxy.cut_after = lambda _: False
            return True

        self._proxy.cut_after = once

    async def _column(self, sql: str, *arguments: Any) -> list[int]:
        async with self._direct.connection() as connection:
            return [row[0] for row in await connection.fetch(sql, *arguments)]


@pytest_asyncio.fixture(params=["memory", "postgres"])
async def world(
    request: pytest.FixtureRequest, database_address: DatabaseAddress, tmp_path: Path
) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    proxy = Proxy(database_address)
    host = await proxy.start(tmp_path)
    async with AsyncExitStack() as stack:
        direct = await stack.enter_async_context(Database(database_address))
        through = await stack.enter_async_context(Database(replace(database_address, host=host)))
        yield PostgresWorld(direct, through, proxy)
    await proxy.stop()


somebody: Final = Client("192.0.2.7", "a test")


def note(action: str = "tested", actor: str = "a test") -> Note:
    return Note(action, actor, somebody, {"why": "to see"})


def new(name: str, email: str | None = None, **more: Any) -> NewAccount:
    return NewAccount(
        parse_email(email or f"{name}@example.com"), parse_username(name), f"hash of {name}", **more
    )


async def test_an_account_is_found_by_its_id_and_its_folded_email_address(world: World) -> None:
    added = await world.store.add(new("Ada", "Ada@Example.com"), note("signup", "nobody"))
    assert (added.email, added.username) == ("Ada@Example.com", "Ada")
    assert (added.plan, added.is_active, added.is_operator) == ("free", True, False)
    assert added.created_at.utcoffset() is not None
    assert await world.store.by_id(added.id) == added
    assert await world.store.by_email("ada@example.com") == added
    assert await world.store.by_email("Ada@Example.com") is None, "a store does not fold"
    assert await world.store.by_email("") is None
    assert await world.store.by_id(added.id + 1) is None
    assert await world.audited() == [(added.id, "signup", "nobody")]
    assert await world.told() == [], "it has no API keys that anybody could have asked about"


async def test_names_are_taken_in_their_folded_form_and_the_answer_tells_which(
    world: World,
) -> None:
    await world.store.add(new("Ada"), note())
    for attempt, members in (
        (new("ADA"), ["email", "username"]),
        (new("ada", "else@example.com"), ["username"]),
        (new("else", "ADA@example.COM"), ["email"]),
    ):
        with pytest.raises(Taken) as refused:
            await world.store.add(attempt, note())
        assert refused.value.members == members
    assert len(await world.store.page(0, 10)) == 1
    assert len(await world.audited()) == 1, "what was refused has left nothing"


async def test_of_many_sign_ups_with_one_email_address_exactly_one_succeeds(world: World) -> None:
    attempts = [new(f"user {number}", "one@example.com") for number in range(20)]
    ends = await asyncio.gather(
        *(world.store.add(attempt, note()) for attempt in attempts), return_exceptions=True
    )
    opened = [end for end in ends if isinstance(end, Account)]
    refused = [end.members for end in ends if isinstance(end, Taken)]
    assert (len(opened), refused) == (1, [["email"]] * 19)
    assert await world.store.by_email("one@example.com") == opened[0]


async def test_pages_of_accounts_are_in_order_and_leave_none_out(world: World) -> None:
    added = [await world.store.add(new(f"user{number}"), note()) for number in range(5)]
    found: list[Account] = []
    while page := await world.store.page(found[-1].id if found else 0, 2):
        assert len(page) <= 2
        found += page
    assert found == added


async def test_a_new_password_ends_all_other_sessions(world: World) -> None:
    ada, eve = [await world.store.add(new(name), note()) for name in ("ada", "eve")]
    kept, lost, others = [await world.begin_session(id_) for id_ in (ada.id, ada.id, eve.id)]
    assert await world.store.set_password(ada, "another hash", note("changed"), kept)
    assert await world.sessions(ada.id) == [kept]
    assert await world.sessions(eve.id) == [others]
    assert lost != kept
    changed = await world.store.by_id(ada.id)
    assert changed is not None
    assert changed.password_hash == "another hash"
    assert changed.password_changed_at > ada.password_changed_at
    assert (await world.audited())[-1] == (ada.id, "changed", "a test")
    assert await world.store.set_password(changed, "a third", note(), None)
    assert await world.sessions(ada.id) == []


async def test_a_password_is_changed_only_if_it_is_still_the_one_that_was_seen(
    world: World,
) -> None:
    account = await world.store.add(new("ada"), note())
    ends = await asyncio.gather(
        *(world.store.set_password(account, f"hash {n}", note(f"{n}"), None) for n in range(8))
    )
    assert sorted(ends) == [False] * 7 + [True]
    winner = ends.index(True)
    found = await world.store.by_id(account.id)
    assert found is not None
    assert found.password_hash == f"hash {winner}"
    assert [action for _, action, _ in await world.audited()] == ["tested", str(winner)]
    assert not await world.store.close(account, note()), "nor is the account closed by the old one"
    assert await world.store.by_id(account.id) == found


async def test_an_account_that_is_disabled_loses_its_sessions_and_gateways_are_told(
    world: World,
) -> None:
    account = await world.store.add(new("ada"), note())
    await world.begin_session(account.id)
    disabled = await world.store.change(account.id, note("disabled"), is_active=False)
    assert disabled == replace(account, is_active=False)
    assert await world.sessions(account.id) == []
    assert await world.told() == [account.id]
    assert await world.store.change(account.id, note("enabled"), is_active=True) == account
    assert await world.told() == [account.id] * 2


async def test_a_change_changes_what_it_names_and_nothing_else(world: World) -> None:
    account = await world.store.add(new("ada", plan="pro", is_operator=True), note())
    session = await world.begin_session(account.id)
    changed = await world.store.change(account.id, note(), plan="developer")
    assert changed == replace(account, plan="developer")
    assert await world.told() == [account.id]
    changed = await world.store.change(account.id, note(), is_operator=False)
    assert changed == replace(account, plan="developer", is_operator=False)
    assert await world.told() == [account.id], "which concerns no API key"
    assert await world.sessions(account.id) == [session]
    assert await world.store.by_id(account.id) == changed
    before = await world.audited()
    assert await world.store.change(account.id + 1, note(), plan="free") is None
    assert await world.audited() == before


async def test_a_closed_account_is_gone_its_data_is_queued_and_its_names_are_free(
    world: World,
) -> None:
    ada, eve = [await world.store.add(new(name), note()) for name in ("ada", "eve")]
    await world.begin_session(ada.id)
    session = await world.begin_session(eve.id)
    assert await world.store.close(ada, note("closed"))
    assert await world.store.by_id(ada.id) is None
    assert await world.store.by_email("ada@example.com") is None
    assert await world.sessions(ada.id) == []
    assert await world.told() == [ada.id]
    assert await world.to_be_deleted() == [ada.id]
    assert (await world.audited())[-1] == (ada.id, "closed", "a test")
    assert not await world.store.close(ada, note()), "it is closed once"
    assert not await world.store.set_password(ada, "hash", note(), None)
    assert await world.store.by_id(eve.id) == eve
    assert await world.sessions(eve.id) == [session]
    again = await world.store.add(new("ada"), note())
    assert again.id > eve.id, "ids are not used again: they name tenants"


async def test_while_the_database_is_away_nothing_is_done_and_afterwards_all_is(
    world: World,
) -> None:
    account = await world.store.add(new("ada"), note())
    world.go_away()
    for refused in (
        world.store.add(new("eve"), note()),
        world.store.by_id(account.id),
        world.store.by_email("ada@example.com"),
        world.store.page(0, 1),
        world.store.set_password(account, "hash", note(), None),
        world.store.change(account.id, note(), plan="pro"),
        world.store.close(account, note()),
    ):
        with pytest.raises(RetryLater) as told:
            await refused
        assert told.value.code == "database_unavailable"
    world.come_back()
    assert await world.store.page(0, 10) == [account]
    assert len(await world.audited()) == 1
    await world.store.add(new("eve"), note())


async def test_a_lost_reply_is_told_as_such_and_the_change_is_whole(world: World) -> None:
    world.lose_a_reply()
    with pytest.raises(UnknownOutcome):
        await world.store.add(new("ada"), note("signup"))
    with pytest.raises(Taken):
        await world.store.add(new("ada"), note())
    account = await world.store.by_email("ada@example.com")
    assert account is not None
    assert await world.audited() == [(account.id, "signup", "a test")]
    await world.begin_session(account.id)
    world.lose_a_reply()
    with pytest.raises(UnknownOutcome):
        await world.store.close(account, note("closed"))
    assert await world.store.by_id(account.id) is None
    assert await world.sessions(account.id) == []
    assert await world.told() == await world.to_be_deleted() == [account.id]
