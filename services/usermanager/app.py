"""The wiring of a user manager: settings, database, its nouns, metrics and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette

from services.core.errors import FixRequest
from services.runtime.client_address import ClientAddresses
from services.runtime.endpoints import Caller
from services.runtime.http import application
from services.runtime.loops import Loops
from services.runtime.migrations import choose_address
from services.runtime.postgres import Database
from services.runtime.service import Service
from services.runtime.signing import Verifier
from services.usermanager.readiness import DatabaseWatch
from services.usermanager.routes import every_route
from services.usermanager.settings import UserManagerSettings
from services.usermanager.upkeep import Upkeep


def build_app(settings: UserManagerSettings, service: Service) -> Starlette:
    address = choose_address(
        settings.data_dir, settings.database_url, settings.embedded_db_password
    )
    database = Database(address)
    verifier = Verifier(settings.cluster_secret, service.clock)
    watch = DatabaseWatch(database)
    upkeep = Upkeep({})

    async def authenticate(_: str) -> Caller:
        raise FixRequest("unauthorized", "Nobody has logged in")

    database.add_to(service.metrics)
    verifier.add_to(service.metrics)
    watch.add_to(service.readiness)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(database)
            loops = await stack.enter_async_context(Loops(service.fail, service.clock))
            loops.add_to(service.metrics)
            loops.start("database watch", watch.run)
            loops.start("upkeep", upkeep.run)
            yield

    return application(
        settings.service,
        every_route(
            (),
            authenticate=authenticate,
            verifier=verifier,
            addresses=ClientAddresses(settings.trusted_proxies or ()),
            public_url=settings.public_url,
        ),
        metrics=service.metrics,
        readiness=service.readiness,
        lifespan=lifespan,
        access_log=settings.access_log,
    )
