"""What a node does with each kind of message: the table that its link server is given.

Reads and writes of one key go straight to the replica, and so do a few small writes that come in
one message. Whatever else is about many keys is bounded by the request, waits for its turn with all
of that kind (`turns.Turns`), and is answered once everything it has seen is durable. Such handlers
are generators, which yield where they may be interrupted; nothing is done for a peer that wants no
answer or has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from services.core.comparison import (
    SlotDigest,
    decode_digests_asked,
    decode_leaves_asked,
    decode_versions_asked,
    encode_digests,
    encode_versions,
    versions_max,
)
from services.core.digest import summary_of
from services.core.errors import PeerError
from services.core.hlc import Version
from services.core.key import check_namespace_prefix
from services.core.listings import ListEntry, ListPage, ListQuery, ScanPage, decode_list_query
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
    NAMESPACES,
    SCAN,
    SLOT,
    VERSIONS,
    WRITE,
    WRITE_MANY,
    Reader,
    is_of_few,
    many_bytes_max,
    u16,
    u64,
)
from services.core.namespaces import (
    Count,
    decode_caches_unchecked,
    decode_edition,
    decode_namespaces_query,
    edition_bytes,
    encode_edition,
)
from services.core.packed_bodies import encode_body
from services.core.wire import FAILED, OK, OVERLOADED
from services.dhtnode import pages
from services.dhtnode.chunk import count_of, encode_chunks
from services.dhtnode.listing import Entry, Query
from services.dhtnode.membership import Membership
from services.dhtnode.replica import Replica
from services.dhtnode.sessions import Sessions
from services.dhtnode.turns import Soon, Turns
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.link_limits import LinkCounters
from services.runtime.peer import Handler, Handlers, Peer, no_answer

# An answer with a piece of a slot: large enough to be worth a round trip, made in a millisecond. Of
# small records it has fewer.
piece_bytes: Final = 256 << 10
piece_records: Final = 2_048
# Of a list of caches; half a millisecond's.
caches_checked: Final = 512
reason_bytes_max: Final = 512

Long = Callable[[Peer, int, bytes], Iterator[None]]


class NodeHandlers:
    """Answers every kind of message, from the replica and what it knows of the cluster."""

    def __init__(
        self,
        replica: Replica,
        membership: Membership,
        clock: Clock,
        soon: Soon,
        counters: LinkCounters,
    ) -> None:
        self._replica = replica
        self._table = replica.table
        self._membership = membership
        self._clock = clock
        self.counters = counters
        self.sessions = Sessions(replica, membership)
        self.turns = Turns(clock, soon)

    def table(self, acceptor: Handlers) -> Handlers:
        """All kinds, also those that the acceptor has handlers for."""
        replica = self._replica
        at_once: dict[int, Handler] = {
            **acceptor,
            **self.sessions.at_once(),
            GET: replica.get,
            WRITE: replica.write,
            COUNT: self._count,
            EPOCH: self._epoch,
            CAUGHT_UP: self._caught_up,
        }
        by_turns: dict[int, Long] = {
            LIST: self._list,
            SCAN: self._scan,
            NAMESPACES: self._namespaces,
            DIGESTS: self._digests,
            LEAVES: self._leaves,
            VERSIONS: self._versions,
            SLOT: self._slot,
            **self.sessions.reading(),
        }
        by_turns_changing = self.sessions.changing()
        return {
            **{kind: partial(self._guarded, handler) for kind, handler in at_once.items()},
            **{kind: partial(self._queued, handler) for kind, handler in by_turns.items()},
            GET_MANY: partial(self._queued, replica.get_many, first=True),
            WRITE_MANY: self._write_many,
            CACHES: partial(self._queued, self._caches, first=True, changes=True),
            **{
                kind: partial(self._queued, handler, changes=True)
                for kind, handler in by_turns_changing.items()
            },
        }

    def _guarded(self, handler: Handler, peer: Peer, request_id: int, body: bytes) -> None:
        """A message that makes no sense is answered as such; anything else that is raised is a
        bug, which the link answers."""
        try:
            handler(peer, request_id, body)
        except PeerError as error:
            self.malformed(peer, request_id, error)

    def _queued(
        self,
        handler: Long,
        peer: Peer,
        request_id: int,
        body: bytes,
        *,
        first: bool = False,
        changes: bool = False,
    ) -> None:
        if request_id == no_answer:
            # A link bounds what waits for an answer; of what wants none it does not know.
            self._replica.counters.malformed += 1
            return
        if len(body) > many_bytes_max:
            why = f"{len(body)} bytes in one message; at most {many_bytes_max} are allowed"
            self.malformed(peer, request_id, PeerError(why))
            return
        taken = self.turns.add(
            _Request(self, peer, request_id),
            handler(peer, request_id, body),
            size_bytes=len(body),
            first=first,
            changes=changes,
        )
        if not taken:
            self.counters.overloaded += 1
            peer.reply(request_id, OVERLOADED, b"")

    def _write_many(self, peer: Peer, request_id: int, body: bytes) -> None:
        if is_of_few(body) and request_id != no_answer:
            self._guarded(self._replica.write_few, peer, request_id, body)
        else:
            write_many = self._replica.write_many
            self._queued(write_many, peer, request_id, body, first=True, changes=True)

    def malformed(self, peer: Peer, request_id: int, error: PeerError) -> None:
        self._replica.counters.malformed += 1
        peer.reply(request_id, MALFORMED, str(error).encode()[:reason_bytes_max])

    # -- listings

    def _list(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        query = decode_list_query(body)
        found = yield from pages.page(
            self._table, query.namespace, _query(query), self._clock.wall_ms
        )
        answer = encode_body(ListPage(list(map(_entry, found.entries)), found.groups, found.next))
        self._replica.after_changes(peer, request_id, OK, answer)

    def _scan(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        query = decode_list_query(body)
        scanned = yield from pages.scan(
            self._table,
            query.namespace,
            _query(query),
            self._clock.wall_ms,
            tombstones=query.tombstones,
        )
        answer = encode_body(ScanPage(scanned.found, scanned.next))
        self._replica.after_changes(peer, request_id, OK, answer)

    def _count(self, peer: Peer, request_id: int, body: bytes) -> None:
        if len(body) == 8:
            counts = self._table.tenant(int.from_bytes(body, "big"))
        else:
            counts = self._table.namespace(check_namespace_prefix(body))
        answer = encode_body(Count(counts.keys, counts.bytes, counts.tombstones))
        self._replica.after_changes(peer, request_id, OK, answer)

    def _namespaces(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        page = yield from pages.namespaces(self._table, decode_namespaces_query(body))
        self._replica.after_changes(peer, request_id, OK, encode_body(page))

    # -- slots

    def _digests(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        table, replica = self._table, self._replica
        digests: list[SlotDigest] = []
        for slot in decode_digests_asked(body):
            ended = table.ended(slot) + replica.promises.ended(slot, replica.caches)
            digests.append(SlotDigest(summary_of(table.leaves(slot)), ended))
            yield
        replica.after_changes(peer, request_id, OK, encode_digests(digests))

    def _leaves(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        slot = decode_leaves_asked(body)
        yield
        self._replica.after_changes(peer, request_id, OK, self._table.leaves(slot))

    def _versions(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        slot, leaves, after = decode_versions_asked(body)
        yield
        found: list[tuple[bytes, Version]] = []
        for keys in self._replica.orders.behind(slot, after):
            found += self._table.versions(slot, leaves, keys)
            if len(found) > versions_max:
                break
            yield
        self._replica.after_changes(peer, request_id, OK, encode_versions(found))

    def _slot(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        reader = Reader(body)
        slot, after = reader.slot(), reader.rest()
        yield
        items: list[tuple[bytes, bytes]] = []
        size = 0
        for keys in self._replica.orders.behind(slot, after):
            for item in self._table.lasting(slot, keys):
                items.append(item)
                size += len(item[1])
            if size >= piece_bytes or len(items) >= piece_records:
                break
            yield
        chunk = next(encode_chunks(slot, items, piece_bytes), b"")
        last = items[count_of(chunk) - 1][0] if chunk else b""
        self._replica.after_changes(peer, request_id, OK, u16.pack(len(last)) + last + chunk)

    # -- the cluster

    def _epoch(self, peer: Peer, request_id: int, body: bytes) -> None:
        self._membership.adopt(body)
        answer = u64.pack(self._replica.epoch)
        self._replica.after_changes(peer, request_id, OK, answer)

    def _caches(self, peer: Peer, request_id: int, body: bytes) -> Iterator[None]:
        replica = self._replica
        edition = decode_edition(body[:edition_bytes])
        # Every replicator tells of each, on either connection.
        if edition > replica.cache_list.edition:
            told = decode_caches_unchecked(body)
            yield
            caches: dict[bytes, int] = {}
            for start in range(0, len(told.caches), caches_checked):
                for cache in told.caches[start : start + caches_checked]:
                    caches[check_namespace_prefix(cache.namespace)] = cache.items_max
                yield
            yield from replica.cache_list.take(edition, caches)
        replica.after_changes(peer, request_id, OK, encode_edition(replica.cache_list.edition))

    def _caught_up(self, peer: Peer, request_id: int, body: bytes) -> None:
        self._membership.caught_up(peer)
        peer.reply(request_id, OK, b"")


class _Request(NamedTuple):
    """A request over a link, while it waits for its turn."""

    handlers: NodeHandlers
    peer: Peer
    request_id: int

    @property
    def waiting(self) -> bool:
        return self.peer.connected

    def dropped(self) -> None:
        self.peer.reply(self.request_id, OVERLOADED, b"")

    def failed(self, error: Exception) -> None:
        """As a link does it."""
        if isinstance(error, PeerError):
            self.handlers.malformed(self.peer, self.request_id, error)
            return
        self.handlers.counters.bugs += 1
        said = telemetry.logger("services.dhtnode")
        said.exception("a request over a link failed", peer=self.peer.hello.id)
        self.peer.reply(self.request_id, FAILED, b"")


def _query(query: ListQuery) -> Query:
    return Query(query.prefix, query.start, query.limit, query.delimiter, query.slots)


def _entry(entry: Entry) -> ListEntry:
    return ListEntry(
        entry.key, entry.value_bytes, entry.version, entry.expires_at_ms, entry.created_at_ms
    )
