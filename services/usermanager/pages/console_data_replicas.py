"""Which nodes hold a key, and what each of them has of it just now.

    the map (cluster_looks.py) ──► the owners of the key's slot ──each is asked──► its own copy

Eventual reads are answered by the first owner that is there. Copies may differ for the moment that
a write takes to reach all of them.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple
from urllib.parse import quote

from starlette.responses import Response

from services.core.cluster import ClusterMap, Member
from services.core.errors import ClientError, RetryLater
from services.core.key import check_key, check_namespace, storage_key
from services.core.ring import slot_of
from services.runtime.console_requests import tenant_header
from services.usermanager.cluster_looks import ClusterLooks
from services.usermanager.pages.console_data_links import here
from services.usermanager.pages.console_data_values import OfKey
from services.usermanager.pages.gateway_calls import PlatformCalls
from services.usermanager.pages.page import Page, Visit

# As nodes take it; clients name a namespace by another header.
_node_namespace_header: Final = "X-Ydht-Namespace"


class Copy(NamedTuple):
    """What one node has of a key. `etag` is empty if it has no value; None if it does not tell."""

    node_id: str
    zone: str
    etag: str | None


class ReplicaPages:
    def __init__(self, calls: PlatformCalls, looks: ClusterLooks) -> None:
        self._calls = calls
        self._looks = looks

    def pages(self) -> list[Page]:
        return [Page("GET", f"{here}/replicas", self.show)]

    async def show(self, visit: Visit) -> Response:
        asked = visit.query(OfKey)
        namespace = check_namespace(asked.namespace.encode())
        key = check_key(asked.key.encode())
        whole = storage_key(visit.tenant, namespace, key)
        copies: list[Copy] = []
        trouble = ""
        try:
            known = await self._known_map()
            copies = await self._copies(visit.tenant, namespace, key, known, slot_of(whole))
        except RetryLater as error:
            trouble = error.detail
        newest = max((copy.etag for copy in copies if copy.etag), default="")
        return visit.render(
            "console/_data_replicas.html",
            slot=slot_of(whole),
            copies=copies,
            newest=newest,
            trouble=trouble,
        )

    async def _known_map(self) -> ClusterMap:
        """RetryLater if nobody has told of one, or the nodes are just changing."""
        look = await self._looks.look()
        documents = [one.document for one in look.found.told if one.document is not None]
        newest = max(documents, key=lambda one: one["epoch"], default=None)
        if newest is None or look.map is None:
            raise RetryLater(
                "no_replicator", "The replicators of the cluster cannot be reached just now"
            )
        if newest["state"] != "stable":
            raise RetryLater(
                "cluster_forming",
                "The nodes of the cluster are just changing, and keys move between them: look "
                "again when that is done",
            )
        return look.map

    async def _copies(
        self, tenant: int, namespace: bytes, key: bytes, known: ClusterMap, slot: int
    ) -> list[Copy]:
        headers = [
            (tenant_header.encode(), str(tenant).encode()),
            (_node_namespace_header.encode(), namespace),
        ]
        path = "/store/" + quote(key, safe="").replace(".", "%2E")
        owners = [known.nodes[node_id] for node_id in known.owners(slot)]
        return await asyncio.gather(*(self._copy(owner, path, headers) for owner in owners))

    async def _copy(self, owner: Member, path: str, headers: list[tuple[bytes, bytes]]) -> Copy:
        host = f"[{owner.host}]" if ":" in owner.host else owner.host
        target = f"http://{host}:{owner.http_port}{path}"
        etag: str | None = None
        try:
            answer = await self._calls.inside.ask("HEAD", target, headers=headers)
        except ClientError:
            return Copy(owner.node_id, owner.zone, None)
        if answer.status_code == 200:
            etag = answer.headers.get("etag", "").strip('"')
        elif answer.status_code == 404:
            etag = ""
        return Copy(owner.node_id, owner.zone, etag)
