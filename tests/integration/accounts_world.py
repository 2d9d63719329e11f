"""The accounts of a user manager in this process, on a real database, with a client to ask it.

Passwords cost next to nothing here, and the clock of tokens and throttles is a test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from services.runtime.client_address import ClientAddresses
from services.runtime.clock import FakeClock, Timeline
from services.runtime.database_url import DatabaseAddress
from services.runtime.endpoints import routes
from services.runtime.http import application
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database
from services.runtime.probes import Readiness
from services.runtime.signing import Verifier
from services.usermanager.account_store import PostgresAccountStore
from services.usermanager.accounts import Accounts
from services.usermanager.audit import Audit
from services.usermanager.key_events import KeyEvents
from services.usermanager.known_networks import KnownNetworks
from services.usermanager.passwords import Argon2Parameters, Passwords
from services.usermanager.sessions import Sessions
from services.usermanager.throttle import Throttle
from services.usermanager.tokens import Tokens

jwt_secret: Final = "tests sign their tokens 6d1f0a with this"
cluster_secret: Final = "tests sign their requests 93bb7e with this"
cheap: Final = Argon2Parameters(memory_kib=64, passes=1)
expiration_ms: Final = 3_600_000
good_password: Final = "correct horse battery"


@dataclass
class LoggedIn:
    """A client that shows the access token of its session."""

    world: World
    answer: dict[str, Any]
    address: str = "127.0.0.1"

    @property
    def user_id(self) -> int:
        return int(self.answer["user"]["id"])

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.answer['access_token']}"}
        return await self.world.ask(method, path, address=self.address, headers=headers, **more)

    async def sessions(self) -> list[dict[str, Any]]:
        answer = await self.ask("GET", "/sessions")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["sessions"]
        return found

    async def is_live(self) -> bool:
        return (await self.ask("GET", "/me")).status_code == 200


@dataclass
class World:
    database: Database
    passwords: Passwords
    clock: FakeClock
    timeline: Timeline
    store: PostgresAccountStore
    accounts: Accounts
    sessions: Sessions
    tokens: Tokens
    throttle: Throttle
    networks: KnownNetworks
    audit: Audit
    app: Any = field(repr=False)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        address: str = "127.0.0.1",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=(address, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://usermanager") as client:
            return await client.request(method, path, headers=headers, **more)

    async def sign_up(
        self, name: str, *, password: str = good_password, address: str = "127.0.0.1"
    ) -> dict[str, Any]:
        document = {"email": f"{name}@example.com", "username": name, "password": password}
        answer = await self.ask("POST", "/signup", json=document, address=address)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def try_login(
        self, email: str, password: str = good_password, address: str = "127.0.0.1"
    ) -> httpx.Response:
        document = {"email": email, "password": password}
        return await self.ask("POST", "/login", json=document, address=address)

    async def log_in(
        self, name: str, *, password: str = good_password, address: str = "127.0.0.1"
    ) -> LoggedIn:
        answer = await self.try_login(f"{name}@example.com", password, address)
        assert answer.status_code == 200, answer.text
        return LoggedIn(self, answer.json(), address)

    async def newcomer(self, name: str) -> LoggedIn:
        await self.sign_up(name)
        return await self.log_in(name)

    async def try_refresh(self, refresh_token: str) -> httpx.Response:
        return await self.ask("POST", "/refresh", json={"refresh_token": refresh_token})

    async def fetch(self, sql: str, *arguments: Any) -> list[dict[str, Any]]:
        async with self.database.connection() as connection:
            return [dict(row) for row in await connection.fetch(sql, *arguments)]

    async def execute(self, sql: str, *arguments: Any) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(sql, *arguments)

    async def audited(self) -> list[tuple[str, int | None]]:
        """Actions and accounts, in their order."""
        rows = await self.fetch("SELECT action, user_id FROM audit_log ORDER BY id")
        return [(row["action"], row["user_id"]) for row in rows]


def refused(answer: httpx.Response, status: int = 401, code: str = "unauthorized") -> None:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text


async def never() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def accounts_world(
    address: DatabaseAddress, parameters: Argon2Parameters = cheap, **limits: Any
) -> AsyncIterator[World]:
    """Limits are those of Passwords."""
    timeline = Timeline()
    clock = FakeClock(timeline)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(address))
        passwords = Passwords(parameters, **limits)
        stack.callback(passwords.close)
        audit = Audit(database)
        throttle = Throttle(database, clock)
        store = PostgresAccountStore(database, audit, KeyEvents(database, never))
        accounts = Accounts(store, passwords, throttle)
        tokens = Tokens(jwt_secret, expiration_ms, clock)
        networks = KnownNetworks(database, clock, audit)
        sessions = Sessions(database, store, passwords, tokens, throttle, networks, audit)
        app = application(
            "usermanager",
            routes(
                [*accounts.endpoints(), *sessions.endpoints()],
                authenticate=sessions.authenticate,
                verifier=Verifier(cluster_secret, clock),
                addresses=ClientAddresses(),
            ),
            metrics=Metrics(),
            readiness=Readiness(),
        )
        yield World(
            database,
            passwords,
            clock,
            timeline,
            store,
            accounts,
            sessions,
            tokens,
            throttle,
            networks,
            audit,
            app,
        )
