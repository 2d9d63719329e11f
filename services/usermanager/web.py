"""The wiring of the pages: each noun that has some, and what all of them share.

A noun of pages joins by one line in `every_page`, and by one in pages/navigation.py if the console
is to lead there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from services.core.errors import ClientError
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import Clock
from services.runtime.endpoints import Before
from services.runtime.probes import Readiness
from services.runtime.setting_values import origin
from services.usermanager.accounts import Accounts
from services.usermanager.api_keys import ApiKeys
from services.usermanager.cluster_looks import ClusterLooks
from services.usermanager.key_validation import KeyValidation
from services.usermanager.pages.account import AccountPages
from services.usermanager.pages.assets import Assets, web_directory
from services.usermanager.pages.browser_session import BrowserSessions
from services.usermanager.pages.console_cluster import ClusterPages
from services.usermanager.pages.console_data_pages import data_pages
from services.usermanager.pages.console_ids import IdPages
from services.usermanager.pages.console_keys import KeyPages
from services.usermanager.pages.console_overview import OverviewPages
from services.usermanager.pages.console_usage import UsagePages
from services.usermanager.pages.cookies import Cookies
from services.usermanager.pages.csrf import Csrf
from services.usermanager.pages.demo_key import DemoKey, names_this_machine
from services.usermanager.pages.docs import DocsPages
from services.usermanager.pages.docs_references import References
from services.usermanager.pages.entrance import Entrance
from services.usermanager.pages.gateway_calls import PlatformCalls
from services.usermanager.pages.landing import Landing
from services.usermanager.pages.page import Page
from services.usermanager.pages.platform_status import PlatformStatus
from services.usermanager.pages.render import Place, Templates
from services.usermanager.pages.security_headers import security_headers
from services.usermanager.pages.site import Site
from services.usermanager.pages.welcome import Welcome
from services.usermanager.sessions import Sessions
from services.usermanager.settings import UserManagerSettings
from services.usermanager.stored_history import StoredHistory
from services.usermanager.usage_query import UsageReader


class Web:
    """All pages of a user manager. What they ask of others is asked by `calls`."""

    def __init__(
        self,
        settings: UserManagerSettings,
        *,
        accounts: Accounts,
        sessions: Sessions,
        api_keys: ApiKeys,
        key_validation: KeyValidation,
        usage: UsageReader,
        stored_history: StoredHistory,
        calls: PlatformCalls,
        cluster: ClusterLooks,
        document: Mapping[str, Any],
        readiness: Readiness,
        clock: Clock,
        addresses: ClientAddresses,
        before: Before,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._api_keys = api_keys
        self._usage = usage
        self._stored_history = stored_history
        self._calls = calls
        self._clock = clock
        self._cluster = cluster
        gateway_url = settings.clients_gateway_url
        accounts_url = settings.public_url or _beside(gateway_url, settings.port)
        self._docs = DocsPages(References(document, calls, clock), accounts_url)
        self._status = PlatformStatus(calls, readiness, clock)
        self._demo = DemoKey(
            settings.data_dir,
            key_validation,
            is_shown=settings.demo_shown,
            public_url=settings.public_url,
        )
        directory = web_directory()
        self._assets = Assets(directory / "static")
        self._data = data_pages(calls, clock, gateway_url=gateway_url, cluster=cluster)
        cookies = Cookies(is_https=settings.is_https)
        public_origin = None if settings.public_url is None else origin(settings.public_url)
        self.site = Site(
            templates=Templates(directory / "templates", self._assets, Place(gateway_url)),
            sessions=BrowserSessions(sessions, accounts, cookies),
            cookies=cookies,
            forms=Csrf(settings.jwt_secret, public_origin),
            headers=security_headers(gateway_url, is_https=settings.is_https),
            addresses=addresses,
            before=before,
        )

    def every_page(self) -> list[Page]:
        return [
            *Landing(self._demo).pages(),
            *self._status.pages(),
            *self._docs.pages(),
            *Entrance(self._accounts, self._sessions).pages(),
            *Welcome(self._api_keys).pages(),
            *ClusterPages(self._cluster).pages(),
            *self._data,
            *OverviewPages(
                self._usage, self._api_keys, self._calls, self._stored_history, self._clock
            ).pages(),
            *KeyPages(self._api_keys, self._clock).pages(),
            *UsagePages(self._usage, self._api_keys).pages(),
            *IdPages(self._calls, self._api_keys).pages(),
            *AccountPages(self._accounts, self._sessions).pages(),
        ]

    @property
    def body_bytes_max(self) -> int:
        """The largest body that any page takes."""
        return max(page.body_bytes_max for page in self.every_page())

    def routes(self) -> list[BaseRoute]:
        """To stand before the routes of the JSON API, which take what is no form."""
        return [*self._assets.routes(), *self.site.routes(self.every_page())]

    def last_route(self) -> BaseRoute:
        """To stand behind all others."""
        return self.site.nothing_here()

    def refuse(self, request: Request, error: ClientError) -> Response:
        """An error of any route of the service."""
        return self.site.refuse(request, error)


def _beside(gateway_url: str, port: int) -> str:
    """Where the user manager is as far as nobody has said: on this machine, which has one name in
    all examples."""
    host = urlsplit(gateway_url).hostname if names_this_machine(gateway_url) else None
    shown = f"[{host}]" if host and ":" in host else host
    return f"http://{shown or 'localhost'}:{port}"
