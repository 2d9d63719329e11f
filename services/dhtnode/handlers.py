"""What a node does with each kind of message: the table that its link server is given.

Reads and writes of keys go straight to the replica. What looks at many keys is bounded by the
request, and answered once everything it has seen is durable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from services.core.digest import summary_of
from services.core.errors import PeerError
from services.core.messages import (
    CACHES,
    CAUGHT_UP,
    COUNT,
    DIGESTS,
    EPOCH,
    GET,
    GET_MANY,
    LEAVES,
    LIST,
    MALFORMED,
    SCAN,
    SLOT,
    VERSIONS,
    WRITE,
    WRITE_MANY,
    Cache,
    Count,
    ListEntry,
    ListPage,
    ListQuery,
    Reader,
    ScanPage,
    check_namespace_prefix,
    decode_body,
    decode_list_query,
    encode_body,
    u16,
    u64,
)
from services.core.ring import leaf_count, slot_count
from services.core.wire import OK
from services.dhtnode.listing import Query
from services.dhtnode.membership import Membership
from services.dhtnode.replica import Replica
from services.runtime.clock import Clock
from services.runtime.peer import Handler, Handlers, Peer

# About 2 ms of merging new keys into the order of a namespace; then others have their turn.
index_budget: Final = 8192
# An answer with a piece of a slot: large enough to be worth a round trip, made in a millisecond.
piece_bytes: Final = 256 << 10
versions_max: Final = 4096
# An empty cache takes 19 KB; declaring this many holds the loop for a few milliseconds.
caches_max: Final = 128
# About two milliseconds.
digests_max: Final = 1024
reason_bytes_max: Final = 512

Soon = Callable[[Callable[[], None]], object]


class NodeHandlers:
    """Answers every kind of message, from the replica and what it knows of the cluster."""

    def __init__(self, replica: Replica, membership: Membership, clock: Clock, soon: Soon) -> None:
        self._replica = replica
        self._table = replica.table
        self._membership = membership
        self._clock = clock
        self._soon = soon

    def table(self) -> Handlers:
        replica = self._replica
        answering: dict[int, Handler] = {
            GET: replica.get,
            GET_MANY: replica.get_many,
            WRITE: replica.write,
            WRITE_MANY: replica.write_many,
            LIST: self._list,
            SCAN: self._scan,
            COUNT: self._count,
            DIGESTS: self._digests,
            LEAVES: self._leaves,
            VERSIONS: self._versions,
            SLOT: self._slot,
            EPOCH: self._epoch,
            CACHES: self._caches,
            CAUGHT_UP: self._caught_up,
        }
        return {kind: partial(self._guarded, handler) for kind, handler in answering.items()}

    def _guarded(self, handler: Handler, peer: Peer, request_id: int, body: bytes) -> None:
        """A message that makes no sense is answered as such; anything else that is raised is a
        bug, which the link answers."""
        try:
            handler(peer, request_id, body)
        except PeerError as error:
            self._replica.counters.malformed += 1
            peer.reply(request_id, MALFORMED, str(error).encode()[:reason_bytes_max])

    # -- listings

    def _list(self, peer: Peer, request_id: int, body: bytes) -> None:
        query = decode_list_query(body)
        self._once_ordered(query, lambda: self._answer_list(peer, request_id, query))

    def _scan(self, peer: Peer, request_id: int, body: bytes) -> None:
        query = decode_list_query(body)
        self._once_ordered(query, lambda: self._answer_scan(peer, request_id, query))

    def _once_ordered(self, query: ListQuery, answer: Callable[[], None]) -> None:
        """Merge the keys that are new, some at a time, into the order of the namespace; then
        answer. Keys that come meanwhile are not waited for."""
        mark = self._table.index_mark(query.namespace)

        def merge() -> None:
            if self._table.index_slice(query.namespace, mark, index_budget):
                answer()
            else:
                self._soon(merge)

        merge()

    def _answer_list(self, peer: Peer, request_id: int, query: ListQuery) -> None:
        page = self._table.page(query.namespace, _look_for(query), self._clock.wall_ms())
        entries = [
            ListEntry(
                entry.key,
                entry.value_bytes,
                entry.version,
                entry.expires_at_ms,
                entry.created_at_ms,
            )
            for entry in page.entries
        ]
        answer = encode_body(ListPage(entries, page.groups, page.next))
        self._replica.after_changes(peer, request_id, OK, answer)

    def _answer_scan(self, peer: Peer, request_id: int, query: ListQuery) -> None:
        found = self._table.scan(
            query.namespace,
            _look_for(query),
            self._clock.wall_ms(),
            tombstones=query.tombstones,
        )
        answer = encode_body(ScanPage(found.found, found.next))
        self._replica.after_changes(peer, request_id, OK, answer)

    def _count(self, peer: Peer, request_id: int, body: bytes) -> None:
        if len(body) == 8:
            counts = self._table.tenant(int.from_bytes(body, "big"))
        else:
            counts = self._table.namespace(check_namespace_prefix(body))
        answer = encode_body(Count(counts.keys, counts.bytes, counts.tombstones))
        self._replica.after_changes(peer, request_id, OK, answer)

    # -- slots

    def _digests(self, peer: Peer, request_id: int, body: bytes) -> None:
        reader = Reader(body)
        first, count = reader.slot(), reader.u16()
        reader.end()
        if not 0 < count <= min(digests_max, slot_count - first):
            raise PeerError(f"{count} slots from slot {first} on; {digests_max} go at a time")
        leaves = self._table.leaves
        answer = b"".join(summary_of(leaves(slot)) for slot in range(first, first + count))
        self._replica.after_changes(peer, request_id, OK, answer)

    def _leaves(self, peer: Peer, request_id: int, body: bytes) -> None:
        reader = Reader(body)
        slot = reader.slot()
        reader.end()
        self._replica.after_changes(peer, request_id, OK, self._table.leaves(slot))

    def _versions(self, peer: Peer, request_id: int, body: bytes) -> None:
        reader = Reader(body)
        slot, mask, after = reader.slot(), reader.u64(), reader.rest()
        leaves = [leaf for leaf in range(leaf_count) if mask >> leaf & 1]
        found = sorted(item for item in self._table.versions(slot, leaves) if item[0] > after)
        parts = [b"\1" if len(found) > versions_max else b"\0"]
        for key, version in found[:versions_max]:
            parts += (u16.pack(len(key)), key, version)
        self._replica.after_changes(peer, request_id, OK, b"".join(parts))

    def _slot(self, peer: Peer, request_id: int, body: bytes) -> None:
        reader = Reader(body)
        slot, after = reader.slot(), reader.rest()
        chunk, last = self._table.export_piece(slot, after, piece_bytes)
        self._replica.after_changes(peer, request_id, OK, u16.pack(len(last)) + last + chunk)

    # -- the cluster

    def _epoch(self, peer: Peer, request_id: int, body: bytes) -> None:
        self._membership.adopt(body)
        answer = u64.pack(self._replica.epoch)
        self._replica.after_changes(peer, request_id, OK, answer)

    def _caches(self, peer: Peer, request_id: int, body: bytes) -> None:
        caches = decode_body(body, list[Cache])
        if len(caches) > caches_max:
            raise PeerError(f"{len(caches)} caches; at most {caches_max} are allowed")
        self._replica.declare_caches(
            {check_namespace_prefix(cache.namespace): cache.items_max for cache in caches}
        )
        self._replica.after_changes(peer, request_id, OK, b"")

    def _caught_up(self, peer: Peer, request_id: int, body: bytes) -> None:
        self._membership.caught_up(peer)
        peer.reply(request_id, OK, b"")


def _look_for(query: ListQuery) -> Query:
    return Query(query.prefix, query.start, query.limit, query.delimiter, query.slots)
