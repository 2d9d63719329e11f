"""Keygens in this process, on one database, with a network between them that a test may cut.

    async with a_town(database_address, tmp_path) as town:
        one, other = await town.keygen("one"), await town.keygen("other")
        keys = await one.take(5)
        await other.give_back(keys)

The nouns are wired as a keygen wires them, but for the lane, which these do without.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.core.permute import Permutation
from services.keygen.app import acquire_s_max, command_s_max
from services.keygen.history_store import HistoryStore
from services.keygen.home import Home
from services.keygen.keeper import Keeper
from services.keygen.lots import Drawn
from services.keygen.marks import Marks
from services.keygen.messages import Returned
from services.keygen.owners import Owners
from services.keygen.pools import Pools
from services.keygen.quota_store import QuotaStore
from services.keygen.quotas import Quotas
from services.keygen.range_store import RangeStore
from services.keygen.return_store import ReturnStore
from services.keygen.returns import Returns
from services.keygen.watch_store import WatchStore
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.disk import SystemDisk
from services.runtime.endpoints import routes
from services.runtime.http import application
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database
from services.runtime.probes import Readiness
from services.runtime.signing import Verifier
from tests.waiting import wait_until

secret = "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe"
ada = 7
bob = 8


class Network(httpx.AsyncBaseTransport):
    """From each keygen to every other; a test may cut one off."""

    def __init__(self) -> None:
        self.keygens: dict[str, httpx.ASGITransport] = {}
        self.cut_off: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host in self.cut_off or host not in self.keygens:
            raise httpx.ConnectError("nobody is there")
        return await self.keygens[host].handle_async_request(request)


@dataclass(slots=True)
class Keygen:
    """The nouns around pools, wired as a keygen wires them."""

    name: str
    database: Database
    pools: Pools
    quotas: Quotas
    keeper: Keeper
    returns: Returns
    owners: Owners
    home: Home
    marks: Marks
    network: Network
    running: asyncio.Task[None] | None = None

    async def take(self, count: int = 1, *, tenant: int = ada, size: int = 7) -> list[str]:
        found: list[str] = []
        for part in await self.pools.take(tenant, size, count):
            whole = part if isinstance(part, Drawn) else part.draw(self.permutation(size), count)
            found += [key.decode() for key in whole.keys]
        return found

    def permutation(self, size: int = 7) -> Permutation:
        return self.pools.permutations[size]

    async def give_back(self, keys: Sequence[str], *, tenant: int = ada) -> Returned:
        return await self.returns.take_back(tenant, keys)

    async def reasons(self, keys: Sequence[str], *, tenant: int = ada) -> dict[str, str]:
        answer = await self.give_back(keys, tenant=tenant)
        assert answer.returned == 0
        return {one.key: one.reason for one in answer.rejected}

    async def stop(self) -> None:
        """In order."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait((self.running,))
            self.running = None
        await self.keeper.close()

    async def die(self) -> None:
        """At once, and without a word."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait((self.running,))
            self.running = None
        self.network.cut_off.add(self.name)

    async def read(self, sql: str) -> list[tuple[object, ...]]:
        async with self.database.connection() as connection:
            return [tuple(row) for row in await connection.fetch(sql)]


class Town:
    """Keygens on one database."""

    def __init__(self, stack: AsyncExitStack, address: DatabaseAddress, path: Path) -> None:
        self._stack = stack
        self._address = address
        self._path = path
        self.network = Network()
        self.clock = SystemClock()

    async def keygen(
        self,
        name: str,
        *,
        home: str | None = None,
        range_size: int = 1_000,
        return_rest_s: float = 0.0,
        at_ease: bool = True,
    ) -> Keygen:
        """One that has a lease and misses nothing, unless it is not waited for."""
        database = await self._stack.enter_async_context(
            Database(self._address, acquire_s_max=acquire_s_max, command_s_max=command_s_max)
        )
        at_home = Home(SystemDisk(), self._path / (home or name))
        at_home.open()
        self._stack.callback(at_home.close)
        marks = Marks(at_home)
        store = RangeStore(database, marks, return_rest_s)
        pools = await self._stack.enter_async_context(Pools(store, range_size, self.clock))
        quotas = Quotas(QuotaStore(database), self.clock)
        watch, address = WatchStore(database), f"http://{name}"
        keeper = Keeper(
            store, watch, HistoryStore(database), marks, pools, quotas, at_home, address, self.clock
        )
        owners = Owners(pools, secret, self.clock, transport=self.network)
        self._stack.push_async_callback(owners.close)
        returns = Returns(ReturnStore(database), owners, pools)
        app = application(
            "keygen",
            routes(
                owners.endpoints(),
                verifier=Verifier(secret, self.clock),
                addresses=ClientAddresses(),
            ),
            metrics=Metrics(),
            readiness=Readiness(),
        )
        self.network.keygens[name] = httpx.ASGITransport(app)
        self.network.cut_off.discard(name)
        found = Keygen(
            name, database, pools, quotas, keeper, returns, owners, at_home, marks, self.network
        )
        found.running = asyncio.create_task(keeper.run())
        self._stack.push_async_callback(found.die)
        if at_ease:
            await wait_until(lambda: keeper.trouble is None, f"{name} has a lease")
        return found


@asynccontextmanager
async def a_town(address: DatabaseAddress, path: Path) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        yield Town(stack, address, path)
