"""Namespaces: /v1/namespaces and /v1/namespaces/{name}.

A namespace springs up with its first key and is a store. One that was declared is there without
any key, too, and may be a cache. Replicators know of all of them; nothing is kept here.
"""

from __future__ import annotations

from typing import Any, Final

from services.core.declarations import Declaration, DeclaredAnswer, NamespacesTold, NamespaceTold
from services.core.deletions import NamespaceDeletion, PrefixDeleted, prefix_keys_max
from services.core.errors import PeerError
from services.core.key import check_namespace, namespace_prefix, tenant_prefix
from services.core.namespaces import NamespacesQuery as ReplicatorQuery
from services.core.operations import (
    DECLARE_NAMESPACE,
    DELETE_NAMESPACE,
    DESCRIBE_NAMESPACE,
    INVALID,
    LIST_NAMESPACES,
)
from services.core.packed_bodies import decode_body, encode_body
from services.core.wire import OK
from services.gateway.cursors import Cursors
from services.gateway.keyspace import check_unlimited
from services.gateway.messages_keys import Deleted, UnconditionalHeaders
from services.gateway.messages_namespaces import (
    CursorQuery,
    Declare,
    Declared,
    Kind,
    NamespaceInfo,
    NamespacePage,
    NamespacePath,
    NamespacesQuery,
)
from services.gateway.seams import Asking
from services.runtime.credential import Credential
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.replicators import fault_told
from services.runtime.request_body import invalid_members
from services.runtime.shares import ShareLimit, Shares

# A replicator answers within 5 s, whatever happens.
asked_s: Final = 5.5
# Of eight at once that a replicator takes.
changes_of_tenant: Final = ShareLimit(2, 8, 3.0, "rate_limited", "changes of namespaces")
_path: Final = "/v1/namespaces/{name:path}"
_errors: Final = ("key_not_allowed", "no_quorum", "no_replicator", "overloaded", "cluster_forming")


class Namespaces:
    def __init__(self, replicators: Asking, cursors: Cursors) -> None:
        self._replicators = replicators
        self._cursors = cursors
        self._shares = Shares(changes_of_tenant)

    def endpoints(self) -> list[Endpoint]:
        shared: dict[str, Any] = {
            "access": Access.API_KEY,
            "scope": "admin",
            "counted_as": "namespaces",
            "tag": "Namespaces",
        }
        of_one = {**shared, "path_type": NamespacePath}
        named = (*_errors, "invalid_namespace", "not_found")
        changing = (*named, "unknown_outcome", "database_unavailable")
        return [
            Endpoint(
                "GET",
                "/v1/namespaces",
                "listNamespaces",
                "List namespaces, with how much is in each",
                self._list,
                query_type=NamespacesQuery,
                answer_type=NamespacePage,
                errors=_errors,
                **shared,
            ),
            Endpoint(
                "GET",
                _path,
                "getNamespace",
                "Tell of one namespace",
                self._describe,
                answer_type=NamespaceInfo,
                errors=named,
                **of_one,
            ),
            Endpoint(
                "PUT",
                _path,
                "declareNamespace",
                "Say what a namespace is to be: a store or a cache",
                self._declare,
                header_type=UnconditionalHeaders,
                body_type=Declare,
                answer_type=Declared,
                errors=(*changing, "already_exists", "limit_reached", "storage_full"),
                description="A cache is declared before it is used, and may become larger or "
                "smaller later.",
                **of_one,
            ),
            Endpoint(
                "DELETE",
                _path,
                "deleteNamespace",
                "Empty a namespace and forget that it was declared",
                self._delete,
                query_type=CursorQuery,
                header_type=UnconditionalHeaders,
                bodiless=True,
                answer_type=Deleted,
                errors=(*changing, "clock_skew"),
                description=f"At most {prefix_keys_max} keys a call; with a cursor there are more.",
                **of_one,
            ),
        ]

    async def _list(self, call: Call[None, NamespacesQuery, None]) -> NamespacePage:
        credential, query = call.credential, call.query
        check_unlimited(credential)
        asked = (b"namespaces", tenant_prefix(credential.tenant))
        start = self._cursors.read(asked, query.cursor)
        body = await self._ask(
            LIST_NAMESPACES,
            encode_body(ReplicatorQuery(credential.tenant, start, query.limit)),
            reads=True,
        )
        page = decode_body(body, NamespacesTold)
        place = page.next
        return NamespacePage(
            [_info(told) for told in page.found],
            len(page.found),
            None if place is None else self._cursors.make(asked, place),
        )

    async def _describe(self, call: Call[NamespacePath, None, None]) -> NamespaceInfo:
        prefix = _prefix_of(call.credential, call.path.name)
        body = await self._ask(DESCRIBE_NAMESPACE, prefix, reads=True)
        return _info(decode_body(body, NamespaceTold))

    async def _declare(self, call: Call[NamespacePath, None, Declare]) -> Declared:
        name, wanted = call.path.name, call.body
        prefix = _prefix_of(call.credential, name)
        if (wanted.kind == "cache") != (wanted.max_items is not None):
            problem = "is missing" if wanted.kind == "cache" else "is of caches alone"
            raise invalid_members([("max_items", problem)])
        # To declare again what it is changes nothing.
        caches_max = call.credential.caches_max
        declaration = encode_body(Declaration(prefix, wanted.max_items, caches_max))
        async with self._shares.of(call.credential.tenant):
            body = await self._ask(DECLARE_NAMESPACE, declaration, repeatable=True)
        told = decode_body(body, DeclaredAnswer)
        return Declared(name, wanted.kind, wanted.max_items, told.changed, told.untold)

    async def _delete(self, call: Call[NamespacePath, CursorQuery, None]) -> Deleted:
        prefix = _prefix_of(call.credential, call.path.name)
        asked = (b"delete namespace", prefix)
        start = self._cursors.read(asked, call.query.cursor)
        # It is no harm to ask twice, but the numbers would be those of what was left.
        async with self._shares.of(call.credential.tenant):
            body = await self._ask(DELETE_NAMESPACE, encode_body(NamespaceDeletion(prefix, start)))
        deleted = decode_body(body, PrefixDeleted)
        place = deleted.next
        return Deleted(
            deleted.matched,
            deleted.deleted,
            None if place is None else self._cursors.make(asked, place),
        )

    async def _ask(
        self, kind: int, body: bytes, *, repeatable: bool = False, reads: bool = False
    ) -> bytes:
        told, answer = await self._replicators.ask(
            kind, body, asked_s, repeatable=repeatable, reads=reads
        )
        if told == OK:
            return answer
        if told == INVALID:
            raise fault_told(answer)
        raise PeerError(f"a replicator answered kind {kind} with kind {told}")


def _prefix_of(credential: Credential, name: str) -> bytes:
    check_unlimited(credential)
    return namespace_prefix(credential.tenant, check_namespace(name.encode()))


def _info(told: NamespaceTold) -> NamespaceInfo:
    kind: Kind = "store" if told.max_items is None else "cache"
    return NamespaceInfo(told.name.decode(), kind, told.max_items, told.keys, told.size_bytes)
