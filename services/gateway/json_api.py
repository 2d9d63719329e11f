"""The part of the API that is not about one key, as routes: made once from its nouns, with the
document and the pages that describe all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.routing import BaseRoute

from services.gateway.api_document import api_document
from services.gateway.batching import Batches
from services.gateway.cursors import Cursors
from services.gateway.ids import IdSource
from services.gateway.listing import Listings
from services.gateway.namespaces import Namespaces
from services.gateway.prefix_deletion import PrefixDeletions
from services.gateway.seams import WholeCluster
from services.runtime.body_room import BodyRoom
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import Clock
from services.runtime.docs_pages import docs_routes
from services.runtime.endpoints import routes
from services.runtime.key_access import KeyAccess
from services.runtime.openapi import document_route
from services.runtime.signing import Verifier


@dataclass(slots=True, frozen=True)
class Surroundings:
    """What is told by settings."""

    cluster_secret: str = field(repr=False)
    keygen_url: str
    # Where clients reach this gateway, for its document.
    public_url: str | None


class JsonApi:
    """`routes` answer between its start and `close`, as long as the cluster is open."""

    def __init__(self, cluster: WholeCluster, surroundings: Surroundings, clock: Clock) -> None:
        cursors = Cursors(surroundings.cluster_secret)
        self.ids = IdSource(surroundings.keygen_url, surroundings.cluster_secret, clock)
        self.endpoints = [
            *Listings(cluster, cursors, clock).endpoints(),
            *PrefixDeletions(cluster.replicators, cursors).endpoints(),
            *Batches(cluster, clock).endpoints(),
            *Namespaces(cluster.replicators, cursors).endpoints(),
            *self.ids.endpoints(),
        ]
        self.document = api_document(self.endpoints, surroundings.public_url)

    def routes(
        self,
        keys: KeyAccess,
        verifier: Verifier,
        addresses: ClientAddresses,
        room: BodyRoom | None = None,
    ) -> list[BaseRoute]:
        return [
            document_route(self.document),
            *docs_routes(self.document),
            *routes(self.endpoints, verifier=verifier, addresses=addresses, keys=keys, room=room),
        ]

    async def close(self) -> None:
        await self.ids.close()
