"""Which namespaces a tenant has, as the nodes that speak for its slots know them.

    assign ──► a page of each speaker ──► all answered: unite ──► answered
       ▲              │
       └── one failed: others speak for its slots

Every slot is spoken for by its first live owner, as when keys are listed: whatever a listing of a
namespace would show, the namespace is shown. If a slot has no live owner, nothing is told.

Nodes know how much a namespace has in all of their slots together, not in each. So its keys are
counted once for each copy, over the nodes that speak, and divided by how many copies of a slot
these have on average. That is exact where all owners speak and are alike: always in a cluster with
as many nodes as replicas, and in any other while no node is away. Else it is an estimate, which is
off by what a node more or less would have of this namespace in particular. Expired values count
until nodes have trimmed them, so that a namespace may be shown in which there is nothing to see.

Namespaces that were declared are told as well, with what they are and whether they have keys or
not, as this replicator knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Final

from services.core.declarations import NamespacesTold, NamespaceTold
from services.core.errors import PeerError
from services.core.key import tenant_prefix
from services.core.messages import NAMESPACES
from services.core.namespaces import NamespacesPage, NamespacesQuery
from services.core.operations import INVALID, refused_answer
from services.core.packed_bodies import decode_body, encode_body
from services.core.ring import slot_count
from services.core.wire import FAILED, OK
from services.replicator.answers import Done, Failures, refusal, senseless
from services.replicator.declared import Declared
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet, FleetNode
from services.runtime.peer import SENT
from services.runtime.speakers import Speakers, UnspokenError

# Nobody is asked any more after this. A gateway gives its client's request 5 s.
work_s: Final = 3.0
# A page takes a node some milliseconds, and others can speak for it.
page_s: Final = 1.0
# Each may hold a page of a thousand names, some 100 KB, from every node.
calls_max: Final = 16

Told = Callable[[NamespacesTold], None]


class NamespaceListings:
    def __init__(self, fleet: Fleet, clock: Clock, declared: Declared) -> None:
        self.under_way = 0
        self.fleet = fleet
        self.speakers = Speakers(fleet)
        self.clock = clock
        self.declared = declared

    def run(self, query: NamespacesQuery, done: Done) -> None:
        """Answer with one page, or a refusal."""
        self._look(query, lambda page: done(OK, encode_body(page)), done)

    def describe(self, prefix: bytes, done: Done) -> None:
        """Answer with the namespace, or a refusal; INVALID if it has no keys and no declaration."""
        name = prefix[9:]

        def told(page: NamespacesTold) -> None:
            if page.found and page.found[0].name == name:
                done(OK, encode_body(page.found[0]))
            else:
                done(INVALID, refused_answer("not_found", "there is no namespace of this name"))

        self._look(NamespacesQuery(int.from_bytes(prefix[:8], "big"), name, 1), told, done)

    def _look(self, query: NamespacesQuery, told: Told, refused: Done) -> None:
        if self.under_way >= calls_max:
            refused(*refusal("overloaded", f"{calls_max} listings of namespaces are under way"))
            return
        self.under_way += 1
        _Call(self, query, told, refused).go_on()


class _Call:
    def __init__(
        self, listings: NamespaceListings, query: NamespacesQuery, told: Told, refused: Done
    ) -> None:
        self._listings = listings
        self._query = query
        self._tell = told
        self._refused = refused
        self._until_s = listings.clock.monotonic_s() + work_s
        self._pages: dict[FleetNode, NamespacesPage] = {}
        self._failures = Failures()
        self._waiting = 0

    def go_on(self) -> None:
        """Ask those who speak and have not been heard yet; answer once there are none."""
        listings, failed = self._listings, self._failures
        try:
            speakers = listings.speakers.assign(failed.by_node.keys())
        except UnspokenError as error:
            self._refuse(f"{error}; {failed}" if failed.by_node else str(error))
            return
        unheard = [node for node in speakers if node not in self._pages]
        if not unheard:
            self._answer(speakers)
            return
        left_s = self._until_s - listings.clock.monotonic_s()
        if left_s <= 0:
            self._refuse(f"no answer within {work_s:g} s: {failed}")
            return
        body = encode_body(self._query)
        self._waiting = len(unheard)
        for node in unheard:
            told = partial(self._told, node)
            asked = node.link.request(NAMESPACES, body, told, min(page_s, left_s))
            if asked != SENT:
                self._told(node, asked, b"")

    def _told(self, node: FleetNode, kind: int, body: bytes) -> None:
        self._waiting -= 1
        if kind == OK:
            try:
                self._pages[node] = self._checked(decode_body(body, NamespacesPage))
            except PeerError as error:
                senseless(node.node_id, kind, str(error))
                kind = FAILED
        if kind != OK:
            self._failures.note(node.node_id, kind)
        if not self._waiting:
            self.go_on()

    def _checked(self, page: NamespacesPage) -> NamespacesPage:
        """The page if it is one: its names ascend, from where it was to begin to where the next
        page does."""
        query, names = self._query, [found.name for found in page.found]
        if page.next is not None:
            names.append(page.next)
        if any(name >= after for name, after in pairwise(names)):
            raise PeerError("names that do not ascend")
        if names and (names[0] < query.start or page.next == query.start):
            raise PeerError("a page that leads back")
        if len(page.found) > query.limit or any(
            not found.name or found.keys < 0 or found.size_bytes < 0 for found in page.found
        ):
            raise PeerError("more than was asked for, or less than nothing")
        return page

    def _answer(self, speakers: Iterable[FleetNode]) -> None:
        """Unite the pages as far as all of them reach."""
        told = [self._pages[node] for node in speakers]
        bound = min((page.next for page in told if page.next is not None), default=None)
        keys: dict[bytes, int] = {}
        size: dict[bytes, int] = {}
        for page in told:
            for found in page.found:
                if bound is None or found.name < bound:
                    keys[found.name] = keys.get(found.name, 0) + found.keys
                    size[found.name] = size.get(found.name, 0) + found.size_bytes
        listings, query = self._listings, self._query
        declared = listings.declared.now
        tenant = tenant_prefix(query.tenant)
        for name in declared.names_from(tenant, query.start):
            if bound is None or name < bound:
                keys.setdefault(name, 0)
        names = sorted(keys)
        if len(names) > query.limit:
            bound = names[query.limit]
        copies = max(1.0, listings.speakers.owned(speakers) / slot_count)
        found_all = [
            NamespaceTold(
                name,
                # One that has any has one at least.
                min(keys[name], max(1, round(keys[name] / copies))),
                round(size.get(name, 0) / copies),
                declared.caches.get(tenant + bytes((len(name),)) + name),
            )
            for name in names[: query.limit]
        ]
        listings.under_way -= 1
        self._tell(NamespacesTold(found_all, bound))

    def _refuse(self, why: str) -> None:
        self._listings.under_way -= 1
        self._refused(*refusal("no_quorum", why))
