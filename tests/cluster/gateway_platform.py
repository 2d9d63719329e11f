"""Everything that a gateway stands in front of, in processes of their own, and who asks it.

    async with gateway_platform(tmp_path, database_address) as platform:
        ada = await platform.tenant("developer")
        made = await ada.make_key("read", prefix="mine/")
        robot = platform.caller(made.key)
        answer = await robot.get("/v1/kv/mine/a")

Two gateways ask one cluster: `fast` answers requests about single keys inside the HTTP parser's
callbacks, `application` answers them as a route of the ASGI application. The first allows pages of
`page_origin` to call it, and so does the second.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import asyncpg
import httpx

from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.integration.keygen_process import KeygenProcess, keygen_process
from tests.integration.lane_world import Client
from tests.integration.node_process import NodeProcess, secret
from tests.integration.replicator_process import (
    ClusterProcesses,
    cluster_processes,
    until_metrics,
    until_nothing_is_amiss,
)
from tests.integration.usermanager_process import (
    Person,
    UserManagerProcess,
    key_pepper,
    usermanager_process,
)
from tests.waiting import wait_until

LaneName = Literal["fast", "application"]
lane_names: Final[tuple[LaneName, ...]] = ("fast", "application")
commands: Final[Mapping[LaneName, tuple[str, ...]]] = {
    "fast": ("-m", "services.gateway"),
    "application": ("-m", "tests.integration.programs.gateway_by_application"),
}
page_origin: Final = "https://app.example"
nobody_there: Final = "http://127.0.0.1:9"

_numbers = itertools.count(1)


def new_name(what: str = "name") -> str:
    """A name that no other test has."""
    return f"{what}-{next(_numbers):04d}"


class GatewayProcess(NodeProcess):
    """A gateway: started, killed and started again, as a node is."""

    def __init__(self, data_dir: Path, lane: LaneName, **environment: str) -> None:
        super().__init__(data_dir, f"gateway-{next(_numbers)}")
        self.command = commands[lane]
        self.is_fast = lane == "fast"
        self.environment = {
            "DATA_DIR": str(data_dir),
            "GATEWAY_PORT": str(self.port),
            "CLUSTER_SECRET": secret,
            "KEY_PEPPER": key_pepper,
            "KEYGEN_URL": nobody_there,
            "TRUSTED_PROXIES": "127.0.0.0/8",
            "CORS_ORIGINS": page_origin,
            **environment,
        }

    async def serve(self) -> None:
        """Begin a process, and wait until it answers HTTP."""
        await self.start()

        def listening() -> bool:
            over = self.process.returncode is not None
            assert not over, f"the gateway has ended:\n{self.said}"
            return " listening " in self.said

        await wait_until(listening, f"{self.node_id} listens")

    async def until_whole(self) -> None:
        """Wait until it can ask every node, every replicator and the user manager."""
        await until_nothing_is_amiss(self)

    async def connect(self) -> Client:
        """A connection on which exactly the bytes that a test writes are sent."""
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))


@dataclass(slots=True, frozen=True)
class Caller:
    """Who asks one gateway, with headers that are on each of its requests."""

    http: httpx.AsyncClient
    gateway: GatewayProcess
    headers: Mapping[str, str]

    def saying(self, **headers: str) -> Caller:
        """The same one with more headers, in which `_` stands for `-`."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**self.headers, **more})

    def without(self, header: str) -> Caller:
        kept = {name: value for name, value in self.headers.items() if name != header}
        return replace(self, headers=kept)

    def at(self, gateway: GatewayProcess) -> Caller:
        return replace(self, gateway=gateway)

    async def ask(
        self, method: str, target: str, body: bytes | None = None, **more: Any
    ) -> httpx.Response:
        return await self.http.request(
            method,
            self.gateway.url + target,
            content=body,
            # Characters stand for bytes, as in HTTP itself.
            headers={
                name.encode("ascii"): value.encode("latin-1")
                for name, value in self.headers.items()
            },
            **more,
        )

    async def get(self, target: str) -> httpx.Response:
        return await self.ask("GET", target)

    async def put(self, target: str, body: bytes) -> httpx.Response:
        return await self.ask("PUT", target, body)

    async def delete(self, target: str) -> httpx.Response:
        return await self.ask("DELETE", target)

    async def post(self, target: str, document: object = None) -> httpx.Response:
        if document is None:
            return await self.ask("POST", target)
        return await self.ask("POST", target, json=document)

    @property
    def lines(self) -> list[str]:
        """Its headers, for requests that are written by hand."""
        return [f"{name}: {value}" for name, value in self.headers.items()]


@dataclass(slots=True, frozen=True)
class Tenant:
    """Somebody with an account, and so with keys of their own."""

    platform: Platform
    person: Person

    @property
    def id(self) -> int:
        return self.person.id

    async def make_key(self, *scopes: str, **more: object) -> Made:
        """A new API key; with all scopes if none are named."""
        body = {"name": "robot", "scopes": scopes or ("read", "write", "admin"), **more}
        answer = await self.person.post("/apikeys", body)
        assert answer.status_code == 201, answer.text
        return Made(self, answer.json()["id"], answer.json()["key"])

    async def caller(self, *scopes: str, **more: object) -> Caller:
        """Whoever has a new API key."""
        return self.platform.caller((await self.make_key(*scopes, **more)).key)


@dataclass(slots=True, frozen=True)
class Made:
    """An API key."""

    tenant: Tenant
    id: int
    key: str

    async def revoke(self) -> None:
        answer = await self.tenant.person.delete(f"/apikeys/{self.id}")
        assert answer.status_code == 204, answer.text

    async def end_in(self, seconds: float) -> None:
        """Have it expire so soon, which nobody could ask for."""
        await self.tenant.platform.execute(
            "UPDATE api_keys SET expires_at = now() + make_interval(secs => $1) WHERE id = $2",
            seconds,
            self.id,
        )


class Platform:
    def __init__(
        self,
        path: Path,
        address: DatabaseAddress,
        cluster: ClusterProcesses,
        usermanager: UserManagerProcess,
        http: httpx.AsyncClient,
    ) -> None:
        self.cluster = cluster
        self.usermanager = usermanager
        self.gateways: dict[LaneName, GatewayProcess] = {}
        self._path = path
        self._address = address
        self._http = http

    def gateway(self, lane: LaneName = "fast", **environment: str) -> GatewayProcess:
        """A gateway that does not run yet."""
        return GatewayProcess(
            self._path / "data",
            lane,
            **{
                "USERMANAGER_URL": self.usermanager.url,
                "REPLICATOR_URLS": ",".join(one.url for one in self.cluster.replicators),
                **environment,
            },
        )

    @property
    def fast(self) -> GatewayProcess:
        return self.gateways["fast"]

    async def until_whole(self) -> None:
        """Wait until every part of it is back, has what it missed, and can ask the others."""
        for node in self.cluster.nodes:
            await until_metrics(node, catching_up=0)
        await self.until_connected()

    async def until_connected(self) -> None:
        """Wait until every part of it is back and can ask the others: nodes without room may lack
        what they have no room for."""
        for replicator in self.cluster.replicators:
            await until_nothing_is_amiss(replicator)
        for gateway in self.gateways.values():
            await gateway.until_whole()

    def keygen(self) -> AbstractAsyncContextManager[KeygenProcess]:
        """A keygen on the same database, while entered. No gateway knows of it unless told."""
        return keygen_process(self._path / "data", self._address)

    def caller(self, key: str | None, **headers: str) -> Caller:
        """Whoever has this API key, at the fast gateway."""
        own = {} if key is None else {"X-API-Key": key}
        return Caller(self._http, self.fast, own).saying(**headers)

    @property
    def database(self) -> str:
        """Its name."""
        return self._address.database

    async def tenant(self, plan: str = "developer") -> Tenant:
        person = await self.usermanager.person()
        await self.execute("UPDATE users SET plan = $1 WHERE id = $2", plan, person.id)
        return Tenant(self, person)

    async def execute(self, sql: str, *arguments: object) -> None:
        connection = await asyncpg.connect(**self._address.asyncpg())
        try:
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()

    async def ask_as_console(
        self,
        gateway: GatewayProcess,
        method: str,
        target: str,
        **headers: str,
    ) -> httpx.Response:
        """A request that is signed with the cluster's secret, as the console's are."""
        return await self._http.request(
            method,
            gateway.url + target,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            auth=SignedAuth(Signer(secret, SystemClock())),
        )


@asynccontextmanager
async def served(gateway: GatewayProcess) -> AsyncIterator[GatewayProcess]:
    """A gateway that serves; whatever process it has in the end is killed."""
    try:
        await gateway.serve()
        yield gateway
    finally:
        await gateway.clear()


@asynccontextmanager
async def gateway_platform(
    path: Path, address: DatabaseAddress, *lanes: LaneName
) -> AsyncIterator[Platform]:
    """A platform with these gateways, or with all, in which nothing is amiss."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(cluster_processes(path, address))
        entering = usermanager_process(path / "data", address)
        usermanager, _ = await asyncio.gather(
            stack.enter_async_context(entering), _served_together(cluster)
        )
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False))
        platform = Platform(path, address, cluster, usermanager, http)
        for lane in lanes or lane_names:
            platform.gateways[lane] = platform.gateway(lane)
        gateways = platform.gateways.values()
        await asyncio.gather(*(stack.enter_async_context(served(one)) for one in gateways))
        await cluster.formed()
        await asyncio.gather(*(one.until_whole() for one in gateways))
        yield platform


async def _served_together(cluster: ClusterProcesses) -> None:
    await asyncio.gather(*(one.serve() for one in (*cluster.replicators, *cluster.nodes)))
