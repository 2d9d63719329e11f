"""The page of one key: what is known of its value, where it can be looked at, changed and deleted;
and the page of a key to be.

The value itself is asked for by the page's script (console_data_values.py), a large one only when
somebody wants to see it.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final

import msgspec
from starlette.responses import Response

from services.core.errors import ClientError, FixRequest
from services.core.record import value_bytes_max
from services.usermanager.pages.console_data_changes import Facts, facts_of, where
from services.usermanager.pages.console_data_curl import Curl
from services.usermanager.pages.console_data_links import (
    here,
    link,
    namespace_default,
    namespace_path,
    shown,
)
from services.usermanager.pages.console_data_listing import Namespace
from services.usermanager.pages.console_data_values import OfKey
from services.usermanager.pages.gateway_calls import (
    PlatformCalls,
    TenantCalls,
    administering,
    check,
    path_of,
    told,
)
from services.usermanager.pages.page import Page, Visit

# Values that are shown at once: more than anybody reads, and nothing to wait for.
shown_bytes_max: Final = 64 * 1024


class OfNew(msgspec.Struct, frozen=True):
    namespace: str = namespace_default
    key: str = ""


class DataKeyPages:
    def __init__(self, calls: PlatformCalls, gateway_url: str) -> None:
        self._calls = calls
        self._gateway_url = gateway_url

    def pages(self) -> list[Page]:
        return [
            Page("GET", f"{here}/key", self.show),
            Page("GET", f"{here}/new", self.new),
        ]

    async def show(self, visit: Visit) -> Response:
        asked = visit.query(OfKey)
        calls = self._calls.of(visit.tenant)
        kind = await _kind_of(calls, asked.namespace)
        # Who edits a value wants to see the newest; caches have no such reads.
        consistency = asked.consistency or ("eventual" if kind == "cache" else "strong")
        facts, refusal = await _facts(calls, asked.namespace, asked.key, consistency)
        status = 200 if refusal is None else refusal.status
        begins = asked.key[: asked.key.rfind("/") + 1]
        return visit.render(
            "console/data_key.html",
            status,
            key=asked.key,
            name=shown(asked.key),
            namespace=asked.namespace,
            namespace_name=shown(asked.namespace),
            kind=kind,
            consistency=consistency,
            facts=facts,
            updated=parsedate_to_datetime(facts.updated) if facts and facts.updated else None,
            refusal=refusal,
            link=link,
            here=link("/key", namespace=asked.namespace, key=asked.key),
            parent=begins,
            metadata=[] if facts is None else list(facts.metadata.items()),
            shown_bytes_max=shown_bytes_max,
            value_bytes_max=value_bytes_max,
            lines=Curl(self._gateway_url, asked.namespace).of_key(asked.key),
        )

    async def new(self, visit: Visit) -> Response:
        asked = visit.query(OfNew)
        kind = await _kind_of(self._calls.of(visit.tenant), asked.namespace)
        return visit.render(
            "console/data_new.html",
            key=asked.key,
            namespace=asked.namespace,
            namespace_name=shown(asked.namespace),
            kind=kind,
            link=link,
            value_bytes_max=value_bytes_max,
        )


async def _kind_of(calls: TenantCalls, namespace: str) -> str:
    """What a namespace is. One that nobody has used yet will be a store; and while nobody can say,
    it is shown as one: what a cache does not do is refused then."""
    try:
        answer = await calls.get(namespace_path(namespace), scopes=administering)
        return told(check(answer), Namespace).kind
    except ClientError as error:
        if error.code == "invalid_namespace":
            raise
        return "store"


async def _facts(
    calls: TenantCalls, namespace: str, key: str, consistency: str
) -> tuple[Facts | None, ClientError | None]:
    """What is known of a value; or why there is nothing to know."""
    answer = await calls.ask("HEAD", path_of(key), headers=where(namespace, consistency))
    if answer.status_code == 200:
        return facts_of(answer), None
    # A HEAD is refused without words; why it is, a GET of nothing much tells.
    if answer.status_code == 404:
        return None, FixRequest("key_not_found", "There is no such key here, or it has expired")
    read = await calls.get(path_of(key), headers=where(namespace, consistency))
    try:
        # It may be there by now.
        return facts_of(check(read)), None
    except ClientError as error:
        return None, error
