"""The nouns around API keys, wired as a user manager wires them, on a real database.

    async with key_desk(database_address) as desk:
        ada = await desk.account()
        key = await desk.make(ada, name="robot")

Over HTTP a bearer token is an account's id, and internal requests are signed. Two desks on one
database are two user managers.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import msgspec
from starlette.applications import Starlette

from services.core.api_key import lookup_hash, lookup_subkey
from services.core.errors import FatalError, FixRequest
from services.core.key_checks import ValidateKey, ValidKey
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.endpoints import Caller, routes
from services.runtime.http import application
from services.runtime.loops import Loops
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database
from services.runtime.probes import Readiness
from services.runtime.signing import SignedAuth, Signer, Verifier
from services.usermanager.api_keys import ApiKeys
from services.usermanager.audit import Audit
from services.usermanager.key_events import KeyEvents
from services.usermanager.key_lookup import KeyLookups
from services.usermanager.key_validation import KeyValidation
from services.usermanager.last_used import LastUsed
from services.usermanager.messages_api_keys import ApiKey, CreatedKey, CreateKey
from services.usermanager.throttle import Throttle

secret = "Lr6tYb9nHc3dZp4vKx8sQm2wFg7jUe5a"
pepper = lookup_subkey("k9XvTq2mWz7bRf4nHs8cYd3gLp6jUe5a")
_numbers = itertools.count(1)


class KeyDesk:
    def __init__(self, address: DatabaseAddress) -> None:
        self.clock = SystemClock()
        self.database = Database(address)
        self.stopped = asyncio.Event()
        self.metrics = Metrics()
        self.audit = Audit(self.database)
        self.events = KeyEvents(self.database, self._until_stopped)
        self.keys = ApiKeys(
            self.database, self.events, self.audit, Throttle(self.database, self.clock), pepper
        )
        self.lookups = KeyLookups(self.database)
        self.last_used = LastUsed(self.database, self.clock)
        self.validation = KeyValidation(self.lookups, self.last_used, pepper)
        for noun in (self.events, self.lookups, self.last_used):
            noun.add_to(self.metrics)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self._app()), base_url="http://desk"
        )

    async def account(self, plan: str = "free") -> int:
        """The id of a new account, which nobody has logged in to."""
        name = f"person-{next(_numbers)}"
        async with self.database.transaction() as connection:
            return int(
                await connection.fetchval(
                    "INSERT INTO users (email, email_folded, username, username_folded,"
                    " password_hash, plan) VALUES ($1, $1, $2, $2, 'none', $3) RETURNING id",
                    f"{name}@example.com",
                    name,
                    plan,
                )
            )

    async def make(self, user_id: int, **members: Any) -> CreatedKey:
        asked = msgspec.convert({"name": "robot", **members}, CreateKey)
        return await self.keys.create(user_id, asked, actor="test", client=None)

    async def rotate(self, user_id: int, key_id: int, overlap_ms: int = 86_400_000) -> CreatedKey:
        return await self.keys.rotate(user_id, key_id, overlap_ms, actor="test", client=None)

    async def revoke(self, user_id: int, key_id: int) -> None:
        await self.keys.revoke(user_id, key_id, actor="test", client=None)

    async def listed(self, user_id: int) -> list[ApiKey]:
        return (await self.keys.page(user_id, 1_000, None)).api_keys

    async def validate(self, key: str) -> ValidKey:
        """As a gateway asks, by the hash."""
        asked = ValidateKey(key_hash=lookup_hash(pepper, key).hex())
        return await self.validation.validate(asked)

    async def is_good(self, key: str) -> bool:
        try:
            return (await self.validate(key)).valid
        except FixRequest as refused:
            if refused.code != "invalid_api_key":
                raise
            return False

    async def read(self, sql: str, *values: object) -> list[Any]:
        async with self.database.connection() as connection:
            return list(await connection.fetch(sql, *values))

    async def execute(self, sql: str, *values: object) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(sql, *values)

    async def as_user(
        self, user_id: int, method: str, path: str, body: object = None
    ) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        headers = {"Authorization": f"Bearer {user_id}", "Content-Type": "application/json"}
        return await self.client.request(method, path, headers=headers, content=content)

    async def as_gateway(self, method: str, path: str, body: object = None) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        auth = SignedAuth(Signer(secret, self.clock))
        return await self.client.request(method, path, headers=headers, auth=auth, content=content)

    async def _until_stopped(self) -> None:
        await self.stopped.wait()

    def _app(self) -> Starlette:
        async def authenticate(token: str) -> Caller:
            return Caller(int(token), session_id=1)

        endpoints = (
            *self.keys.endpoints(),
            *self.validation.endpoints(),
            *self.events.endpoints(),
        )
        return application(
            "usermanager",
            routes(
                endpoints,
                authenticate=authenticate,
                verifier=Verifier(secret, self.clock),
                addresses=ClientAddresses(),
            ),
            metrics=self.metrics,
            readiness=Readiness(),
        )


@asynccontextmanager
async def key_desk(address: DatabaseAddress) -> AsyncIterator[KeyDesk]:
    failures: list[FatalError] = []
    desk = KeyDesk(address)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(desk.database)
        await stack.enter_async_context(desk.client)
        loops = await stack.enter_async_context(Loops(failures.append, desk.clock))
        for name, run in (
            ("key events", desk.events.run),
            ("key lookups", desk.lookups.run),
            ("key uses", desk.last_used.run),
        ):
            loops.start(name, run)
        yield desk
        assert not loops.restarts, "a loop has failed"
    assert not failures
