"""The pages of a user manager in this process, on a real database, with browsers that are none.

    async with pages_world(database_address) as world:
        ada = world.browser()
        await ada.sign_up("ada")
        answer = await ada.submit("/console/account/password", {...})

A browser keeps cookies, says where its requests come from as real ones do, and sends the token of
the page that it has opened last. What only a real browser can show is in tests/browser.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Final

import httpx

from services.core.api_key import lookup_subkey
from services.runtime.client_address import ClientAddresses
from services.runtime.database_url import DatabaseAddress
from services.runtime.endpoints import Before, nothing_before, routes
from services.runtime.http import application
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness
from services.runtime.settings import load
from services.runtime.signing import Verifier
from services.usermanager.api_keys import ApiKeys
from services.usermanager.cluster_looks import ClusterLooks
from services.usermanager.key_events import KeyEvents
from services.usermanager.key_lookup import KeyLookups
from services.usermanager.key_validation import KeyValidation
from services.usermanager.last_used import LastUsed
from services.usermanager.pages.gateway_calls import PlatformCalls
from services.usermanager.pages.page import Page
from services.usermanager.routes import document
from services.usermanager.settings import UserManagerSettings
from services.usermanager.stored_history import StoredHistory
from services.usermanager.usage_query import UsageReader
from services.usermanager.web import Web
from tests.integration.accounts_world import World, accounts_world, good_password, never

nowhere: Final = "http://127.0.0.1:9"
host: Final = "pages.example"
secrets: Final = {
    "JWT_SECRET": "tests sign their tokens 6d1f0a with this",
    "CLUSTER_SECRET": "tests sign their requests 93bb7e with this",
    "KEY_PEPPER": "tests keep their API keys 52d0c9 under this",
    "DATABASE_URL": "postgres://nobody@nowhere/nothing",
}
_token: Final = re.compile(r'name="(?:_csrf|csrf-token)" (?:value|content)="([^"]+)"')


@dataclass
class Browser:
    """`headers` are on each of its requests, unless one says otherwise."""

    world: PagesWorld
    client: httpx.AsyncClient
    headers: dict[str, str] = field(
        default_factory=lambda: {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
    )
    token: str = ""

    async def get(self, path: str, **headers: str) -> httpx.Response:
        answer = await self.ask("GET", path, data=None, **headers)
        if match := _token.search(answer.text):
            self.token = unescape(match[1])
        return answer

    async def ask(
        self, method: str, path: str, *, data: Mapping[str, str] | None = None, **headers: str
    ) -> httpx.Response:
        """In names of headers `_` stands for `-`; one that is empty is left out."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        said = {name: value for name, value in {**self.headers, **named}.items() if value}
        return await self.client.request(method, path, data=data, headers=said)

    async def submit(self, path: str, fields: Mapping[str, str], **headers: str) -> httpx.Response:
        """Send a form with the token of the page that was opened last."""
        return await self.ask("POST", path, data={"_csrf": self.token, **fields}, **headers)

    async def sign_up(self, name: str) -> None:
        await self.get("/signup")
        known = {"email": f"{name}@example.com", "password": good_password}
        answer = await self.submit("/signup", {**known, "username": name})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/welcome")
        await self.get("/console/account")

    async def log_in(self, name: str, password: str = good_password) -> httpx.Response:
        await self.get("/login")
        return await self.submit("/login", {"email": f"{name}@example.com", "password": password})

    async def is_in(self) -> bool:
        answer = await self.get("/console/account")
        assert answer.status_code in (200, 303), answer.text
        return answer.status_code == 200

    @property
    def cookies(self) -> dict[str, str]:
        return dict(self.client.cookies)


@dataclass
class PagesWorld:
    accounts: World
    web: Web
    app: Any = field(repr=False)
    browsers: list[Browser] = field(default_factory=list)

    def browser(self, url: str = f"http://{host}", address: str = "127.0.0.1") -> Browser:
        transport = httpx.ASGITransport(self.app, client=(address, 1234))
        client = httpx.AsyncClient(transport=transport, base_url=url)
        browser = Browser(self, client)
        self.browsers.append(browser)
        return browser


@asynccontextmanager
async def pages_world(
    address: DatabaseAddress,
    *,
    before: Before = nothing_before,
    more: Sequence[Page] = (),
    keys: type[ApiKeys] = ApiKeys,
    platform: httpx.AsyncBaseTransport | None = None,
    **environment: str,
) -> AsyncIterator[PagesWorld]:
    """The environment is that of a user manager; `before` can keep its database away. `more` are
    pages of a test's own, and `keys` may fail in a way of its own; all other services are at
    `platform`, and without it nowhere."""
    settings = load(
        UserManagerSettings,
        {"DATA_DIR": "/nonexistent", "GATEWAY_URL": nowhere, **secrets, **environment},
    )
    async with accounts_world(address) as accounts:
        addresses = ClientAddresses()
        pepper = lookup_subkey(settings.key_pepper)
        database, clock = accounts.database, accounts.clock
        secret = settings.cluster_secret
        calls = PlatformCalls(nowhere, nowhere, secret, clock, transport=platform)
        cluster = ClusterLooks([nowhere], secret, clock, transport=platform)
        readiness = Readiness()
        lookups = KeyLookups(database)
        looking = asyncio.create_task(lookups.run())
        endpoints = [*accounts.accounts.endpoints(), *accounts.sessions.endpoints()]
        web = Web(
            settings,
            accounts=accounts.accounts,
            sessions=accounts.sessions,
            api_keys=keys(
                database, KeyEvents(database, never), accounts.audit, accounts.throttle, pepper
            ),
            key_validation=KeyValidation(lookups, LastUsed(database, clock), pepper),
            usage=UsageReader(database, clock),
            stored_history=StoredHistory(database, unmeasured),
            calls=calls,
            cluster=cluster,
            document=document(endpoints, settings.public_url),
            readiness=readiness,
            clock=clock,
            addresses=addresses,
            before=before,
        )
        api = routes(
            endpoints,
            authenticate=accounts.sessions.authenticate,
            verifier=Verifier(settings.cluster_secret, clock),
            addresses=addresses,
            before=before,
        )
        app = application(
            "usermanager",
            [*web.routes(), *web.site.routes(more), *api, web.last_route()],
            metrics=Metrics(),
            readiness=readiness,
            refuse=web.refuse,
        )
        world = PagesWorld(accounts, web, app)
        try:
            yield world
        finally:
            for browser in world.browsers:
                await browser.client.aclose()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await calls.close()
            await cluster.close()


async def unmeasured(_: int) -> None:
    """Nobody tells what is stored."""


def form_path(path: str) -> str:
    """A path with something in place of each parameter."""
    return re.sub(r"\{[^}]*\}", "1", path)
