"""The wiring of a replicator: settings, disk, database, replicator, metrics and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from starlette.applications import Starlette

from services.replicator.figures import add_figures, health
from services.replicator.map_store import PostgresMapStore
from services.replicator.namespace_store import PostgresNamespaceStore
from services.replicator.readiness import add_conditions
from services.replicator.replicator import Replicator
from services.replicator.routes import routes
from services.replicator.settings import ReplicatorSettings
from services.runtime.disk import SystemDisk
from services.runtime.http import application
from services.runtime.loops import Loops
from services.runtime.migrations import choose_address
from services.runtime.postgres import Database
from services.runtime.service import Service
from services.runtime.signing import Verifier


def build_app(settings: ReplicatorSettings, service: Service) -> Starlette:
    address = choose_address(
        settings.data_dir, settings.database_url, settings.embedded_db_password
    )
    # A replicator asks one thing at a time: the map, for one node that registers, and which
    # namespaces are declared; and what clients declare has one more.
    database = Database(address, connections_max=5)
    database.add_to(service.metrics)
    store = PostgresMapStore(database, settings.cluster_size, settings.replication_factor)
    namespaces = PostgresNamespaceStore(database)
    replicator = Replicator(settings, service, SystemDisk(), store, namespaces)
    add_figures(service.metrics, replicator)
    add_conditions(service.readiness, replicator)
    verifier = Verifier(settings.cluster_secret, service.clock)
    verifier.add_to(service.metrics)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(database)
            stack.push_async_callback(replicator.close)
            replicator.open()
            loops = await stack.enter_async_context(Loops(service.fail, service.clock))
            loops.add_to(service.metrics)
            await replicator.start(loops)
            yield

    return application(
        settings.service,
        routes(replicator, verifier),
        metrics=service.metrics,
        readiness=service.readiness,
        lifespan=lifespan,
        health=partial(health, replicator),
        access_log=settings.access_log,
    )
