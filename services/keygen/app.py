"""The wiring of a keygen: its ranges and pools, the keys it knows, the lane and the routes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.core.api_key import lookup_subkey
from services.core.errors import FatalError
from services.core.key_checks import scopes_all
from services.core.plans import public
from services.keygen.askers import with_usual_names
from services.keygen.history_store import HistoryStore
from services.keygen.home import Home
from services.keygen.issuing import Issuing
from services.keygen.keeper import Keeper
from services.keygen.key_api import KeyApi, path_of_keys
from services.keygen.lane import KeyLane
from services.keygen.marks import Marks
from services.keygen.owners import Owners
from services.keygen.pools import Pools
from services.keygen.quota_store import QuotaStore
from services.keygen.quotas import Quotas
from services.keygen.range_store import RangeStore
from services.keygen.return_store import ReturnStore
from services.keygen.returns import Returns, return_body_bytes_max
from services.keygen.settings import KeygenSettings
from services.keygen.unbounded import Unbounded
from services.keygen.watch_store import WatchStore
from services.runtime import telemetry
from services.runtime.client_address import ClientAddresses
from services.runtime.console_requests import ConsoleRequests
from services.runtime.credential import Credential
from services.runtime.credentials import Credentials
from services.runtime.disk import SystemDisk
from services.runtime.docs_pages import docs_routes
from services.runtime.edge import RequestCounters
from services.runtime.endpoints import routes
from services.runtime.http import application
from services.runtime.key_access import KeyAccess
from services.runtime.loops import Loops
from services.runtime.metering import Meters
from services.runtime.metrics import Metrics
from services.runtime.migrations import choose_address
from services.runtime.openapi import document_route, openapi_document
from services.runtime.postgres import Database
from services.runtime.service import Service
from services.runtime.signing import Verifier
from services.runtime.user_manager import UserManager

api_version: Final = "1"
# Who comes without an API key, where that is allowed: no account has this id.
public_tenant: Final = 0
# Reservations are short, and clients wait for some of them: a database that does not answer in
# this time is as good as away.
acquire_s_max: Final = 2.0
command_s_max: Final = 2.0

_about: Final = (
    "Keys that are never given out twice, by an API key: as X-API-Key, as API-KEY, or as a bearer "
    "token."
)

log = telemetry.logger("services.keygen")


class Keygen:
    """The nouns of one process, each made with what it needs of the others."""

    def __init__(self, settings: KeygenSettings, service: Service) -> None:
        clock, secret = service.clock, settings.cluster_secret
        name = f"keygen-{settings.port}"
        self.database = Database(
            choose_address(settings.data_dir, settings.database_url, settings.embedded_db_password),
            acquire_s_max=acquire_s_max,
            command_s_max=command_s_max,
        )
        self.home = Home(SystemDisk(), settings.data_dir / "keygen" / str(settings.port))
        marks = Marks(self.home)
        ranges = RangeStore(self.database, marks, settings.return_rest_ms / 1000)
        self.pools = Pools(ranges, settings.range_size, clock)
        self.quotas = Quotas(QuotaStore(self.database), clock)
        self.keeper = Keeper(
            ranges,
            WatchStore(self.database),
            HistoryStore(self.database),
            marks,
            self.pools,
            self.quotas,
            self.home,
            _address(settings),
            clock,
        )
        self.user_manager = UserManager(settings.usermanager_url, secret, clock)
        allowances = Unbounded()
        self.credentials = Credentials(
            self.user_manager, lookup_subkey(settings.key_pepper), allowances, clock
        )
        # A process that starts anew counts anew.
        self.meters = Meters(self.user_manager, clock, f"{name}-{os.urandom(8).hex()}")
        self.verifier = Verifier(secret, clock)
        self.owners = Owners(self.pools, secret, clock)
        self.returns = Returns(ReturnStore(self.database), self.owners, self.pools)
        issuing = Issuing(self.pools, self.quotas)
        self.addresses = ClientAddresses(settings.trusted_proxies or ())
        anybody = _anybody(allowances) if settings.anonymous else None
        self.lane = KeyLane(issuing, self.credentials, self.meters, self.addresses, clock, anybody)
        self.key_api = KeyApi(issuing, clock)
        console = ConsoleRequests(self.verifier, self.credentials)
        self.access = KeyAccess(self.credentials, console, self.meters, clock)

    def add_to(self, metrics: Metrics) -> None:
        for part in (
            self.pools,
            self.keeper,
            self.quotas,
            self.returns,
            self.database,
            self.user_manager,
            self.credentials,
            self.meters,
            self.verifier,
        ):
            part.add_to(metrics)
        metrics.add(
            "slow_requests_waiting",
            "gauge",
            "Requests for one key that wait for something",
            lambda: self.lane.waiting,
        )

    def routes(self) -> list[BaseRoute]:
        endpoints = [
            *self.key_api.endpoints(),
            *self.returns.endpoints(),
            *self.owners.endpoints(),
        ]
        document = openapi_document("ydht keygen", api_version, endpoints, description=_about)
        answering = routes(
            endpoints, verifier=self.verifier, addresses=self.addresses, keys=self.access
        )
        for route in answering:
            if isinstance(route, Route) and route.path == path_of_keys:
                route.methods = {"GET"}
        return [document_route(document), *docs_routes(document), *answering]

    async def open(self, stack: AsyncExitStack, loops: Loops) -> None:
        self.home.open()
        stack.callback(self.home.close)
        await stack.enter_async_context(self.database)
        await stack.enter_async_context(self.user_manager)
        # Behind the loops, so that nothing is counted any more when the last is reported.
        stack.push_async_callback(self.meters.close)
        stack.push_async_callback(self.keeper.close)
        await stack.enter_async_context(self.pools)
        await stack.enter_async_context(self.credentials)
        stack.push_async_callback(self.lane.close)
        stack.push_async_callback(self.owners.close)
        await stack.enter_async_context(loops)
        loops.start("leases", self.keeper.run)
        loops.start("API keys", self.credentials.run)
        loops.start("metering", self.meters.run)


class UsualNames:
    """Middleware that gives the header API-KEY its usual name, X-API-Key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "headers": with_usual_names(scope["headers"])}
        await self._app(scope, receive, send)


def build_app(settings: KeygenSettings, service: Service) -> Starlette:
    keygen = Keygen(settings, service)
    loops = Loops(service.fail, service.clock)
    keygen.add_to(service.metrics)
    loops.add_to(service.metrics)
    keygen.keeper.watch(service.readiness)
    keygen.credentials.watch(service.readiness)
    counters = RequestCounters()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, object]]:
        async with AsyncExitStack() as stack:
            await keygen.open(stack, loops)
            yield {"lane": keygen.lane, "counters": counters, "access_log": settings.access_log}

    return application(
        settings.service,
        keygen.routes(),
        metrics=service.metrics,
        readiness=service.readiness,
        lifespan=lifespan,
        middleware=[Middleware(UsualNames)],
        access_log=settings.access_log,
        counters=counters,
        body_bytes_max=return_body_bytes_max,
    )


def _anybody(allowances: Unbounded) -> Credential:
    """Who comes without an API key. Of its requests nobody keeps count but the quota."""
    credential = Credential(b"", public_tenant, 0, allowances.for_anybody)
    credential.allow(scopes_all)
    credential.ids_per_day = public.ids_per_day
    credential.tally = None
    credential.usable_until_s = float("inf")
    return credential


def _address(settings: KeygenSettings) -> str:
    """Where other keygens reach this one; empty if nobody has said."""
    try:
        host = settings.advertised_host
    except FatalError as error:
        log.warning("other keygens cannot ask this one about returned keys", reason=str(error))
        return ""
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
