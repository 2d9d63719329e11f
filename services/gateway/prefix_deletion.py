"""Deleting, or counting, all keys with a prefix: DELETE /v1/kv.

A replicator goes through up to 10,000 keys a call, or as many as it can in its time, and says where
to go on. It is asked once to delete: a call of which nobody knows what became is told as that. To
ask again is no harm, but its numbers would be those of what was left.
"""

from __future__ import annotations

from typing import Final

from services.core.deletions import PrefixDeleted, PrefixDeletion, prefix_keys_max
from services.core.errors import FixRequest
from services.core.operations import DELETE_PREFIX
from services.core.packed_bodies import decode_body, encode_body
from services.gateway.cursors import Cursors
from services.gateway.keyspace import checked_prefix, storage_prefix
from services.gateway.messages_keys import Deleted, DeleteQuery, ManyChangesHeaders
from services.gateway.seams import Asking
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.shares import ShareLimit, Shares

# A replicator answers within 5 s, whatever happens.
asked_s: Final = 5.5
# Of four at once that a replicator takes.
deletions_of_tenant: Final = ShareLimit(1, 8, 3.0, "rate_limited", "deletions by prefix")


class PrefixDeletions:
    def __init__(self, replicators: Asking, cursors: Cursors) -> None:
        self._replicators = replicators
        self._cursors = cursors
        self._shares = Shares(deletions_of_tenant)

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "DELETE",
                "/v1/kv",
                "deleteKeys",
                "Delete all keys with a prefix, or count them",
                self._delete,
                access=Access.API_KEY,
                scope="admin",
                counted_as="delete_prefix",
                query_type=DeleteQuery,
                header_type=ManyChangesHeaders,
                bodiless=True,
                answer_type=Deleted,
                errors=(
                    "key_not_allowed",
                    "key_too_long",
                    "no_quorum",
                    "no_replicator",
                    "overloaded",
                    "clock_skew",
                    "cluster_forming",
                    "unknown_outcome",
                ),
                description=f"At most {prefix_keys_max} keys a call; with a cursor there are more. "
                "What is put meanwhile stays.",
                tag="Keys",
            )
        ]

    async def _delete(self, call: Call[None, DeleteQuery, None]) -> Deleted:
        query = call.query
        headers: ManyChangesHeaders = call.headers
        namespace = storage_prefix(call.credential, headers.namespace)
        prefix = checked_prefix(call.credential, query.prefix)
        if not prefix:
            raise FixRequest("invalid_key", "prefix: is empty; say what keys are to begin with")
        asked = (b"delete", namespace, prefix, b"dry run" if query.dry_run else b"")
        start = self._cursors.read(asked, query.cursor)
        request = PrefixDeletion(namespace, prefix, start, dry_run=query.dry_run)
        async with self._shares.of(call.credential.tenant):
            _, body = await self._replicators.ask(
                DELETE_PREFIX, encode_body(request), asked_s, reads=query.dry_run
            )
        deleted = decode_body(body, PrefixDeleted)
        place = deleted.next
        return Deleted(
            deleted.matched,
            deleted.deleted,
            None if place is None else self._cursors.make(asked, place),
        )
