"""The wiring of a gateway: the cluster it asks, the keys it knows, the lane and the routes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from services.core.api_key import lookup_subkey
from services.core.operations import batch_bytes_max
from services.core.plans import Limits
from services.gateway.answers import Dates
from services.gateway.calls import Places, Platform
from services.gateway.cluster import Cluster, Doors
from services.gateway.console_lane import ConsoleLane, KeyRoute
from services.gateway.cors import Cors, CorsAnswers, Preflights
from services.gateway.json_api import JsonApi, Surroundings
from services.gateway.kv import KeyValue
from services.gateway.readiness import add_conditions, health
from services.gateway.reads import Reads
from services.gateway.settings import GatewaySettings
from services.gateway.unknown_outcomes import UnknownOutcomes
from services.runtime.allowance import Allowances
from services.runtime.body_room import BodyRoom
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import Clock
from services.runtime.console_requests import ConsoleRequests
from services.runtime.credentials import Credentials
from services.runtime.disk import SystemDisk
from services.runtime.edge import RequestCounters
from services.runtime.http import application
from services.runtime.key_access import KeyAccess
from services.runtime.link_tls import tls_files
from services.runtime.loops import Loops
from services.runtime.metering import Meters
from services.runtime.metrics import Metrics
from services.runtime.service import Service
from services.runtime.signing import Verifier
from services.runtime.user_manager import UserManager

# What is under way at nodes and replicators when the last client has its answer: nothing that
# anybody waits for.
drain_s: Final = 0.5
# What people read and change by pages of the console is usage of theirs. What a page asks for by
# itself, to tell how much is stored and where, is not.
counted_of_console: Final = ("/v1/kv", "/v1/batch")


class Gateway:
    """The nouns of one process, each made with what it needs of the others."""

    def __init__(self, settings: GatewaySettings, service: Service) -> None:
        clock = service.clock
        name = f"gateway-{settings.port}"
        self.cluster = Cluster(
            Doors(name, settings.cluster_secret, settings.replicator_urls, tls_files(settings)),
            SystemDisk(),
            settings.data_dir / "gateway" / str(settings.port),
            clock,
        )
        self.user_manager = UserManager(settings.usermanager_url, settings.cluster_secret, clock)
        self.credentials = Credentials(
            self.user_manager,
            lookup_subkey(settings.key_pepper),
            Allowances(),
            clock,
            of_free=Limits(settings.requests_per_minute, settings.burst),
        )
        # A process that starts anew counts anew.
        self.meters = Meters(self.user_manager, clock, f"{name}-{os.urandom(8).hex()}")
        self.verifier = Verifier(settings.cluster_secret, clock)
        self.console = ConsoleRequests(self.verifier, self.credentials, counted_of_console)
        self.cors = Cors(settings.cors_origins)
        self.reads = Reads(self.cluster.fleet, clock)
        platform = Platform(
            self.cluster,
            self.reads,
            self.meters,
            self.cors,
            clock,
            Dates(),
            Places(),
            UnknownOutcomes(clock),
        )
        self.addresses = ClientAddresses(settings.trusted_proxies or ())
        # One budget for large bodies, whichever way they come.
        self.room = BodyRoom()
        self.keys = KeyValue(platform, self.credentials, self.addresses, self.room)
        self.json_api = JsonApi(
            self.cluster,
            Surroundings(settings.cluster_secret, settings.keygen_url, settings.public_url),
            clock,
        )

    def add_to(self, metrics: Metrics) -> None:
        for part in (
            self.cluster,
            self.user_manager,
            self.credentials,
            self.meters,
            self.verifier,
            self.reads,
            self.room,
        ):
            part.add_to(metrics)

    def routes(self, clock: Clock) -> list[BaseRoute]:
        access = KeyAccess(self.credentials, self.console, self.meters, clock)
        return [
            KeyRoute(ConsoleLane(self.keys, self.console)),
            *self.json_api.routes(access, self.verifier, self.addresses, self.room),
        ]

    async def open(self, stack: AsyncExitStack, loops: Loops) -> None:
        await stack.enter_async_context(self.user_manager)
        # Behind the loops, so that nothing is counted any more when the last is reported.
        stack.push_async_callback(self.meters.close)
        self.cluster.open()
        stack.push_async_callback(self.cluster.close, drain_s)
        await stack.enter_async_context(self.credentials)
        stack.push_async_callback(self.keys.close)
        stack.push_async_callback(self.json_api.close)
        await stack.enter_async_context(loops)
        loops.start("cluster map", self.cluster.follow)
        loops.start("API keys", self.credentials.run)
        loops.start("metering", self.meters.run)


def build_app(settings: GatewaySettings, service: Service) -> Starlette:
    gateway = Gateway(settings, service)
    loops = Loops(service.fail, service.clock)
    gateway.add_to(service.metrics)
    loops.add_to(service.metrics)
    add_conditions(service.readiness, gateway.cluster)
    gateway.credentials.watch(service.readiness)
    counters = RequestCounters()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, object]]:
        async with AsyncExitStack() as stack:
            await gateway.open(stack, loops)
            yield {"lane": gateway.keys, "counters": counters, "access_log": settings.access_log}

    app = application(
        settings.service,
        gateway.routes(service.clock),
        metrics=service.metrics,
        readiness=service.readiness,
        lifespan=lifespan,
        health=lambda: health(gateway.cluster),
        middleware=[Middleware(Preflights, cors=gateway.cors)],
        access_log=settings.access_log,
        counters=counters,
        body_bytes_max=batch_bytes_max,
    )
    # Around everything, for a page has to be let read refusals too.
    app.add_middleware(CorsAnswers, cors=gateway.cors)
    return app
