"""What services ask of a replicator: who may, how much at once, and who puts it through.

    a request ──admitted──► decoded ──► EventualWrites · StrongOperations · Batch
        └── REFUSED, at once: not ready    PrefixDeletions · NamespaceListings  │
            yet, ending, or too much       Declaring                            │
            under way                                                           │
    peer.reply ◄────────────────────────────────────────────────────────────────┘

Every request is answered once: what makes no sense with MALFORMED, what cannot be taken with
REFUSED, what is strong and would be done to a cache with INVALID, and the rest with what became of
it. Times to live become times here, once, by the wall
clock of this replicator, so that all replicas and all rounds agree on them.

A put passes through here on the platform's hot path: one callback made by `partial`, and bytes
that are cut and joined. It takes about 2 µs until the write begins.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from services.core.change import read
from services.core.deletions import decode_prefix_deletion
from services.core.errors import PeerError, RetryLater
from services.core.key import check_namespace_prefix, check_storage_key
from services.core.messages import MALFORMED, u16
from services.core.namespaces import decode_namespaces_query
from services.core.operations import (
    BATCH,
    CHANGE,
    DECLARE_NAMESPACE,
    DELETE,
    DELETE_NAMESPACE,
    DELETE_PREFIX,
    DESCRIBE_NAMESPACE,
    FETCH,
    LIST_NAMESPACES,
    PUT,
    batch_items_max,
    put_record,
    text_bytes_max,
)
from services.core.record import tombstone_body
from services.core.wire import Role, frame_bytes_max
from services.replicator.answers import Done, refusal, refusal_of
from services.replicator.batch import Batch
from services.replicator.counters import Counters
from services.replicator.declared import Declared
from services.replicator.declaring import Declaring
from services.replicator.eventual import EventualWrites
from services.replicator.items import not_of_caches, strong_of
from services.replicator.namespaces import NamespaceListings
from services.replicator.prefix_delete import PrefixDeletions
from services.replicator.strong import StrongOperations
from services.runtime.clock import Clock
from services.runtime.peer import Handler, Handlers, Peer

# Under way at a time, the items of batches counted singly: more than all the gateways of a busy
# platform have clients, and about 40 MB of what is held for each.
requests_max: Final = 20_000
# What they brought. Each value is held a few times, on its way to its replicas; the last request
# that is admitted may be as large as a frame.
bytes_max: Final = 2 * frame_bytes_max
askers: Final = frozenset({Role.GATEWAY, Role.REPLICATOR, Role.USERMANAGER})

Handle = Callable[[bytes, Done], None]
"""Puts through what the bytes ask for. PeerError, before anything is begun, if they make no
sense."""


class Requests:
    """The handlers of requests. `objection` tells why none can be taken just now, or None; it must
    have one until `serve` was called."""

    def __init__(
        self,
        objection: Callable[[], RetryLater | None],
        declared: Declared,
        declaring: Declaring,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self.under_way = 0
        self.under_way_bytes = 0
        self.malformed = 0
        self._objection = objection
        self._declared = declared
        self._declaring = declaring
        self._clock = clock
        self._counters = counters
        self._writes: EventualWrites
        self._strong: StrongOperations
        self._prefixes: PrefixDeletions
        self._namespaces: NamespaceListings

    def serve(
        self,
        writes: EventualWrites,
        strong: StrongOperations,
        prefixes: PrefixDeletions,
        namespaces: NamespaceListings,
    ) -> None:
        """Put requests through by these from now on."""
        self._writes, self._strong = writes, strong
        self._prefixes, self._namespaces = prefixes, namespaces
        self._declaring.serve(namespaces, prefixes)

    def handlers(self) -> Handlers:
        single: dict[int, Handle] = {
            PUT: self._put,
            DELETE: self._delete,
            FETCH: partial(self._change, FETCH),
            CHANGE: partial(self._change, CHANGE),
            DELETE_PREFIX: self._delete_prefix,
            LIST_NAMESPACES: self._list_namespaces,
            DESCRIBE_NAMESPACE: self._describe_namespace,
            DECLARE_NAMESPACE: self._declaring.declare,
            DELETE_NAMESPACE: self._declaring.delete,
        }
        handlers: dict[int, Handler] = {
            kind: partial(self._handle, handle, 1) for kind, handle in single.items()
        }
        return {**handlers, BATCH: self._handle_batch}

    # -- admission

    def _handle(
        self, handle: Handle, weight: int, peer: Peer, request_id: int, body: bytes
    ) -> None:
        size = len(body)
        if peer.hello.role not in askers:
            self._refuse(peer, request_id, f"a {peer.hello.role.name.lower()} may not ask this")
            return
        if (objection := self._objection()) is not None:
            self._counters.refusals += 1
            peer.reply(request_id, *refusal_of(objection))
            return
        if self.under_way >= requests_max or self.under_way_bytes >= bytes_max:
            self._counters.refusals += 1
            text = f"{self.under_way} requests with {self.under_way_bytes} bytes are under way"
            peer.reply(request_id, *refusal("overloaded", text))
            return
        self.under_way += weight
        self.under_way_bytes += size
        done = partial(self._done, peer, request_id, weight, size)
        try:
            handle(body, done)
        except PeerError as error:
            self.malformed += 1
            done(MALFORMED, str(error).encode()[:text_bytes_max])

    def _done(
        self, peer: Peer, request_id: int, weight: int, size: int, kind: int, body: bytes
    ) -> None:
        self.under_way -= weight
        self.under_way_bytes -= size
        peer.reply(request_id, kind, body)

    def _refuse(self, peer: Peer, request_id: int, text: str) -> None:
        self._counters.refusals += 1
        peer.reply(request_id, *refusal("unauthorized", text))

    def _handle_batch(self, peer: Peer, request_id: int, body: bytes) -> None:
        """A batch weighs as much as its items, by what it says before it is decoded."""
        items = int.from_bytes(body[: u16.size], "big")
        weight = min(max(items, 1), batch_items_max)
        self._handle(self._batch, weight, peer, request_id, body)

    # -- what is asked

    def _put(self, body: bytes, done: Done) -> None:
        self._writes.write_soon(*put_record(body, self._clock.wall_ms()), done)

    def _delete(self, body: bytes, done: Done) -> None:
        self._writes.write_soon(check_storage_key(body), tombstone_body, done)

    def _change(self, kind: int, body: bytes, done: Done) -> None:
        key, change, grows = strong_of(kind, body, self._clock.wall_ms())
        if key[: 9 + key[8]] in self._declared.now.caches:
            done(*not_of_caches)
        elif change is read:
            self._strong.fetch(key, done)
        else:
            self._strong.change(key, change, done, grows=grows)

    def _batch(self, body: bytes, done: Done) -> None:
        caches = self._declared.now.caches
        Batch(body, self._writes, self._strong, caches, self._clock, done).start()

    def _delete_prefix(self, body: bytes, done: Done) -> None:
        self._prefixes.run(decode_prefix_deletion(body), done)

    def _list_namespaces(self, body: bytes, done: Done) -> None:
        self._namespaces.run(decode_namespaces_query(body), done)

    def _describe_namespace(self, body: bytes, done: Done) -> None:
        self._namespaces.describe(check_namespace_prefix(body), done)
