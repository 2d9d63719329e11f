"""The wiring of a user manager: settings, database, its nouns, metrics and routes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette

from services.core.api_key import lookup_subkey
from services.core.errors import RetryLater
from services.core.wire import Role
from services.runtime.client_address import ClientAddresses
from services.runtime.endpoints import Endpoint
from services.runtime.http import application
from services.runtime.link import Station
from services.runtime.link_limits import LinkCounters
from services.runtime.link_tls import tls_files
from services.runtime.loops import Loops
from services.runtime.metrics import Metrics
from services.runtime.migrations import choose_address
from services.runtime.opening import Identity
from services.runtime.postgres import Database
from services.runtime.replicators import Replicators, links_to_replicators, only_replicators
from services.runtime.service import Service
from services.runtime.signing import Verifier
from services.usermanager.account_store import PostgresAccountStore
from services.usermanager.accounts import Accounts
from services.usermanager.api_keys import ApiKeys
from services.usermanager.audit import Audit
from services.usermanager.cluster_looks import ClusterLooks
from services.usermanager.deletion import Deletion
from services.usermanager.deletion_store import DeletionStore
from services.usermanager.key_events import KeyEvents
from services.usermanager.key_lookup import KeyLookups
from services.usermanager.key_validation import KeyValidation
from services.usermanager.known_networks import KnownNetworks
from services.usermanager.last_used import LastUsed
from services.usermanager.pages.entrance import described
from services.usermanager.pages.gateway_calls import PlatformCalls
from services.usermanager.pages.stored import stored_by
from services.usermanager.partitions import Partitions
from services.usermanager.passwords import Passwords
from services.usermanager.readiness import DatabaseWatch
from services.usermanager.routes import document, every_route
from services.usermanager.sessions import Sessions
from services.usermanager.settings import UserManagerSettings
from services.usermanager.stored_history import Amount, StoredHistory
from services.usermanager.tenant_data import TenantData
from services.usermanager.throttle import Throttle
from services.usermanager.tokens import Tokens
from services.usermanager.upkeep import Upkeep
from services.usermanager.usage import Usage
from services.usermanager.usage_query import UsageReader
from services.usermanager.web import Web


class UserManager:
    """The nouns of one process, each made with what it needs of the others."""

    def __init__(self, settings: UserManagerSettings, service: Service) -> None:
        clock = service.clock
        address = choose_address(
            settings.data_dir, settings.database_url, settings.embedded_db_password
        )
        self.database = Database(address)
        self.watch = DatabaseWatch(self.database, address.place)
        self.verifier = Verifier(settings.cluster_secret, clock)
        self.passwords = Passwords()
        self.key_events = KeyEvents(self.database, service.until_stopped)
        self.key_lookups = KeyLookups(self.database)
        self.last_used = LastUsed(self.database, clock)
        self.throttle = Throttle(self.database, clock)
        audit = Audit(self.database)
        pepper_subkey = lookup_subkey(settings.key_pepper)
        store = PostgresAccountStore(self.database, audit, self.key_events)
        tokens = Tokens(settings.jwt_secret, settings.jwt_expiration_ms, clock)
        self.accounts = Accounts(store, self.passwords, self.throttle)
        networks = KnownNetworks(self.database, clock, audit)
        self.sessions = Sessions(
            self.database, store, self.passwords, tokens, self.throttle, networks, audit
        )
        self.api_keys = ApiKeys(self.database, self.key_events, audit, self.throttle, pepper_subkey)
        self.key_validation = KeyValidation(self.key_lookups, self.last_used, pepper_subkey)
        self.usage_reader = UsageReader(self.database, clock)
        # Only has to differ between processes.
        draw = random.Random()  # noqa: S311
        self.link_counters = LinkCounters()
        self.replicators = Replicators(
            links_to_replicators(
                settings.replicator_urls, self._station(settings), admit=only_replicators
            ),
            draw,
        )
        self.calls = PlatformCalls(
            settings.gateway_url, settings.keygen_url, settings.cluster_secret, clock
        )
        self.stored_history = StoredHistory(self.database, self._stored_by)
        self.usage = Usage(self.database, Partitions(self.database), self.stored_history.note)
        self.cluster = ClusterLooks(settings.replicator_urls, settings.cluster_secret, clock)
        deletion_store = DeletionStore(self.database, audit)
        self.deletion = Deletion(deletion_store, TenantData(self.replicators), clock, draw)
        self.upkeep = Upkeep(
            {
                "sessions": self.sessions.tidy,
                "throttles": self.throttle.tidy,
                "key events": self.key_events.tidy,
                "audit log": audit.tidy,
                "usage": self.usage.tidy,
                "stored history": self.stored_history.tidy,
                "closed accounts": deletion_store.tidy,
            }
        )

    def add_to(self, metrics: Metrics) -> None:
        for part in (
            self.database,
            self.verifier,
            self.passwords,
            self.throttle,
            self.sessions,
            self.key_events,
            self.key_lookups,
            self.last_used,
            self.usage,
            self.stored_history,
            self.replicators,
            self.deletion,
        ):
            part.add_to(metrics)
        metrics.add_counters("link", "of all links", self.link_counters)

    def endpoints(self) -> list[Endpoint]:
        return [
            *self.accounts.endpoints(),
            *self.sessions.endpoints(),
            *self.api_keys.endpoints(),
            *self.key_validation.endpoints(),
            *self.key_events.endpoints(),
            *self.usage.endpoints(),
            *self.usage_reader.endpoints(),
        ]

    async def open(self, stack: AsyncExitStack, loops: Loops) -> None:
        stack.callback(self.passwords.close)
        await stack.enter_async_context(self.database)
        # Behind the loops, so that nothing is marked any more when the last marks are written.
        stack.push_async_callback(self.last_used.close)
        stack.push_async_callback(self.calls.close)
        stack.push_async_callback(self.cluster.close)
        self.replicators.start()
        stack.push_async_callback(self.replicators.close)
        await stack.enter_async_context(loops)
        loops.start("database watch", self.watch.run)
        self.upkeep.start(loops, self.watch.once_found)
        loops.start("key events", self.key_events.run)
        loops.start("key lookups", self.key_lookups.run)
        loops.start("last used", self.last_used.run)
        loops.start("stored history", self.watch.once_found(self.stored_history.run))
        loops.start("deletion", self.watch.once_found(self.deletion.run))

    def web(
        self,
        settings: UserManagerSettings,
        service: Service,
        addresses: ClientAddresses,
        told: Mapping[str, Any],
    ) -> Web:
        """`told` is the document of the JSON API."""
        return Web(
            settings,
            accounts=self.accounts,
            sessions=self.sessions,
            api_keys=self.api_keys,
            key_validation=self.key_validation,
            usage=self.usage_reader,
            stored_history=self.stored_history,
            calls=self.calls,
            cluster=self.cluster,
            document=told,
            readiness=service.readiness,
            clock=service.clock,
            addresses=addresses,
            before=self.watch.require,
        )

    async def _stored_by(self, user_id: int) -> Amount | None:
        found = await stored_by(self.calls.of(user_id))
        return None if isinstance(found, RetryLater) else Amount(found.keys, found.bytes)

    def _station(self, settings: UserManagerSettings) -> Station:
        identity = Identity(
            Role.USERMANAGER, f"usermanager-{settings.port}", settings.cluster_secret
        )
        return Station(identity, counters=self.link_counters, tls=tls_files(settings))


def build_app(settings: UserManagerSettings, service: Service) -> Starlette:
    manager = UserManager(settings, service)
    loops = Loops(service.fail, service.clock)
    manager.add_to(service.metrics)
    loops.add_to(service.metrics)
    manager.watch.add_to(service.readiness)
    manager.usage.watch(service.readiness)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await manager.open(stack, loops)
            yield

    addresses = ClientAddresses(settings.trusted_proxies or ())
    endpoints = manager.endpoints()
    told = document([*endpoints, *described], settings.public_url)
    web = manager.web(settings, service, addresses, told)
    api = every_route(
        endpoints,
        told,
        before=manager.watch.require,
        authenticate=manager.sessions.authenticate,
        verifier=manager.verifier,
        addresses=addresses,
    )
    return application(
        settings.service,
        [*web.routes(), *api, web.last_route()],
        metrics=service.metrics,
        readiness=service.readiness,
        lifespan=lifespan,
        access_log=settings.access_log,
        body_bytes_max=max(web.body_bytes_max, *(one.body_bytes_max for one in endpoints)),
        refuse=web.refuse,
    )
