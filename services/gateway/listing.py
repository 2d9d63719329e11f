"""Listing keys: GET /v1/kv.

    assign ──► a page of each speaker ──► merged ──► enough, or the end ──► answered
       ▲              │                      └─ not yet: ask who is behind
       └── one failed, or the map is another: others speak, from where the listing has come to

Each slot is spoken for by its first live owner, whose copy eventual reads see. If a slot has none,
the listing is refused: it is never told without the keys of some slots. What there is no time for
comes with the next page.
"""

from __future__ import annotations

from typing import Final

from services.core.errors import PeerError
from services.core.hlc import rfc3339, version_ms
from services.core.listings import ListEntry, ListPage
from services.core.listings import ListQuery as NodeQuery
from services.core.messages import LIST
from services.core.packed_bodies import decode_body, encode_body
from services.core.wire import OK
from services.gateway.cursors import Cursors
from services.gateway.keyspace import checked_prefix, storage_prefix
from services.gateway.merge import Merge, Source
from services.gateway.messages_keys import KeyInfo, KeyPage, ListQuery, ManyHeaders
from services.gateway.nodes import Failures, Question, ask_all, told_bytes_max
from services.gateway.seams import Nodes
from services.runtime.clock import Clock
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.speakers import UnspokenError

# Nobody is asked any more after this; most listings take some milliseconds. With the last page a
# client has its answer within the 5 s that are its due.
work_s: Final = 3.0
# A page takes a node a few milliseconds, and others can speak for it.
page_s: Final = 1.0


class Listings:
    def __init__(self, nodes: Nodes, cursors: Cursors, clock: Clock) -> None:
        self._nodes = nodes
        self._cursors = cursors
        self._clock = clock

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                "/v1/kv",
                "listKeys",
                "List keys in order, with a prefix, grouped by a delimiter",
                self._list,
                access=Access.API_KEY,
                scope="read",
                counted_as="list",
                query_type=ListQuery,
                header_type=ManyHeaders,
                answer_type=KeyPage,
                errors=(
                    "key_not_allowed",
                    "key_too_long",
                    "no_quorum",
                    "overloaded",
                    "cluster_forming",
                ),
                description="A key is there at most once, whatever is written meanwhile, and one "
                "that was there throughout is there once. What has expired is not.",
                tag="Keys",
            )
        ]

    async def _list(self, call: Call[None, ListQuery, None]) -> KeyPage:
        query = call.query
        headers: ManyHeaders = call.headers
        credential = call.credential
        namespace = storage_prefix(credential, headers.namespace)
        prefix = checked_prefix(credential, query.prefix)
        delimiter = query.delimiter.encode()
        asked = (b"list", namespace, prefix, delimiter)
        start = self._cursors.read(asked, query.cursor)
        found = await self.page(
            NodeQuery(namespace, prefix, start, query.limit, delimiter),
        )
        told = found.told[: query.limit]
        place = found.place
        return KeyPage(
            [_info(one.entry) for one in told if one.entry is not None],
            [one.key.decode() for one in told if one.entry is None],
            len(told),
            None if place is None else self._cursors.make(asked, place),
        )

    async def page(self, query: NodeQuery) -> Merge:
        """At least all that is asked for, or as much as there is time for. RetryLater if that is
        nothing, or if a slot has no live owner."""
        nodes, clock = self._nodes, self._clock
        if nodes.fleet.map is None:
            raise nodes.absence
        until_s = clock.monotonic_s() + work_s
        merge = Merge(query.prefix, query.start, query.limit)
        failures = Failures(nodes.fleet)
        self._assign(merge, failures)
        while lagging := merge.lagging():
            if clock.monotonic_s() >= until_s:
                if merge.place == query.start:
                    raise failures.refusal(f"Nothing was told within {work_s:g} s")
                break
            by_map = nodes.fleet.map
            failed = await self._ask(merge, lagging, query, failures)
            if failed or nodes.fleet.map is not by_map:
                self._assign(merge, failures)
            else:
                merge.settle()
        return merge

    def _assign(self, merge: Merge, failures: Failures) -> None:
        """Have every slot spoken for, from where the listing has come to."""
        try:
            merge.begin(self._nodes.speakers.assign(failures.by_node.keys()))
        except UnspokenError as error:
            raise failures.refusal(str(error)) from error

    async def _ask(
        self,
        merge: Merge,
        lagging: list[Source],
        query: NodeQuery,
        failures: Failures,
    ) -> bool:
        """Whether somebody failed to tell more."""
        limit = merge.page_limit
        questions = [
            Question(source.node, LIST, encode_body(_question(query, source, limit)))
            for source in lagging
        ]
        failed = False
        for source, (kind, body) in zip(lagging, await ask_all(questions, page_s), strict=True):
            try:
                if kind == OK:
                    merge.take(source, decode_body(body, ListPage))
                    continue
                why = body[:told_bytes_max].decode(errors="replace")
            except PeerError as error:
                why = str(error)
            failures.note(source.node, kind, why)
            failed = True
        return failed


def _question(query: NodeQuery, source: Source, limit: int) -> NodeQuery:
    return NodeQuery(
        query.namespace, query.prefix, source.next or b"", limit, query.delimiter, source.slots
    )


def _info(entry: ListEntry) -> KeyInfo:
    expires_at_ms = entry.expires_at_ms
    return KeyInfo(
        entry.key.decode(),
        entry.size,
        entry.version.hex(),
        rfc3339(entry.created_at_ms),
        rfc3339(version_ms(entry.version)),
        rfc3339(expires_at_ms) if expires_at_ms else None,
        expires_at_ms != 0,
    )
