"""What a tenant has stored, as far as a user manager has to do with it: to see it deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from services.core.deletions import NamespaceDeletion, PrefixDeleted
from services.core.errors import PeerError, RetryLater, UnknownOutcome
from services.core.key import namespace_prefix
from services.core.namespaces import NamespacesPage, NamespacesQuery
from services.core.operations import DELETE_NAMESPACE, LIST_NAMESPACES
from services.core.packed_bodies import decode_body, encode_body
from services.core.wire import OK
from services.runtime.replicators import Replicators

# A replicator answers either within 5 s, and is given a moment more; so are two others after it.
answer_s_max: Final = 18.0
# A replicator takes a few deletions at a time, and clients have theirs done there too: this many
# keys take it some 200 ms.
keys_at_once: Final = 2_000

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Names:
    """A page of the names of namespaces; `next` is where the one behind it starts."""

    names: Sequence[bytes]
    next: bytes | None


class TroubleError(Exception):
    """It cannot be done now; the text says why. It may be tried again, and does no harm then."""


class TenantData:
    """Every call may raise TroubleError, and no other."""

    def __init__(self, replicators: Replicators) -> None:
        self._replicators = replicators

    async def namespaces(self, tenant: int, start: bytes) -> Names:
        """Those that have keys or were declared, in order, from a name on."""
        query = encode_body(NamespacesQuery(tenant, start))
        page = await self._told(LIST_NAMESPACES, query, NamespacesPage)
        if page.next is not None and page.next <= start:
            raise TroubleError("a replicator tells of namespaces in circles")
        return Names([found.name for found in page.found], page.next)

    async def delete(self, tenant: int, namespace: bytes, start: bytes) -> PrefixDeleted:
        """Delete the next keys of a namespace from one on, and with the last what was declared of
        it; `next` tells where to go on."""
        deletion = NamespaceDeletion(namespace_prefix(tenant, namespace), start, keys_at_once)
        told = await self._told(DELETE_NAMESPACE, encode_body(deletion), PrefixDeleted)
        if told.next is not None and told.next <= start and not told.matched:
            raise TroubleError("a replicator looked for keys and got nowhere in its time")
        return told

    async def _told(self, kind: int, body: bytes, of: type[T]) -> T:
        try:
            answer, told = await self._replicators.ask(kind, body, answer_s_max, repeatable=True)
            found = decode_body(told, of) if answer == OK else None
        except (RetryLater, UnknownOutcome, PeerError) as error:
            raise TroubleError(str(error)) from error
        if found is None:
            raise TroubleError(f"a replicator answers a request of kind {kind} with kind {answer}")
        return found
