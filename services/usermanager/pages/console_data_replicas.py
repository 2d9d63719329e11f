"""Which nodes hold a key, and what each of them has of it just now.

    the map ──a replicator tells──► the owners of the key's slot ──each is asked──► its own copy

Eventual reads are answered by the first owner that is there. Copies may differ for the moment that
a write takes to reach all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from services.core.cluster import ClusterMap, Member
from services.core.errors import ClientError, RetryLater
from services.core.key import check_key, check_namespace, storage_key
from services.core.ring import slot_of
from services.usermanager.pages.console_data_links import here, namespace_default
from services.usermanager.pages.gateway_calls import PlatformCalls, check, told
from services.usermanager.pages.page import Page, Visit

tenant_header: Final = b"X-Ydht-Tenant"
namespace_header: Final = b"X-Ydht-Namespace"


class OfKey(msgspec.Struct, frozen=True):
    key: str
    namespace: str = namespace_default


class Copy(NamedTuple):
    """What one node has of a key. `etag` is empty if it has no value; None if it does not tell."""

    node_id: str
    zone: str
    etag: str | None


class _Node(msgspec.Struct, frozen=True):
    store_id: str
    host: str
    http_port: int
    link_port: int
    zone: str


class _Cluster(msgspec.Struct, frozen=True):
    """What a replicator tells of the cluster, as far as it matters here."""

    state: str
    epoch: int
    replication_factor: int = 0
    nodes: dict[str, _Node] = {}

    def map(self) -> ClusterMap:
        members = tuple(
            Member(node_id, node.store_id, node.host, node.http_port, node.link_port, node.zone)
            for node_id, node in self.nodes.items()
        )
        return ClusterMap(self.epoch, self.replication_factor, members)


class ReplicaPages:
    def __init__(self, calls: PlatformCalls, replicator_urls: Sequence[str]) -> None:
        self._calls = calls
        self._replicator_urls = tuple(replicator_urls)
        # With the placement of every slot, which takes some milliseconds to find.
        self._map: ClusterMap | None = None

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
        """As a replicator has it now; RetryLater if none tells, or the nodes are just changing."""
        document = await self._cluster()
        if document.state != "stable":
            raise RetryLater(
                "cluster_forming",
                "The nodes of the cluster are just changing, and keys move between them: look "
                "again when that is done",
            )
        found = document.map()
        if self._map is None or found != self._map:
            for _ in found.prepare():
                await asyncio.sleep(0)
            self._map = found
        return self._map

    async def _cluster(self) -> _Cluster:
        refusal: ClientError = RetryLater("no_replicator", "No replicator is known")
        for url in self._replicator_urls:
            try:
                answer = check(await self._calls.inside.ask("GET", f"{url.rstrip('/')}/cluster"))
            except ClientError as error:
                refusal = error
                continue
            return told(answer, _Cluster)
        raise RetryLater("no_replicator", refusal.detail)

    async def _copies(
        self, tenant: int, namespace: bytes, key: bytes, known: ClusterMap, slot: int
    ) -> list[Copy]:
        headers = [(tenant_header, str(tenant).encode()), (namespace_header, namespace)]
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
