"""Pages of listings, looked for in pieces between which others have their turn.

Each is a generator that yields where it may be interrupted and returns its page. First the keys
that are new are merged into the order of the namespace; those that come meanwhile are not waited
for. Pages follow each other exactly, so their pieces do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Final

from services.core.namespaces import NamespaceCount, NamespacesPage, NamespacesQuery
from services.dhtnode.listing import Page, Query, Scan, examined_max
from services.dhtnode.table import Table

# About a millisecond of merging new keys into the order of a namespace, a whole turn.
index_budget: Final = 4096
# A page is looked for in pieces of half a millisecond.
page_piece_keys: Final = 256
page_pieces_max: Final = examined_max // page_piece_keys
# Half a millisecond, too. Many may have to be passed over, which have nothing but tombstones.
namespaces_piece: Final = 500
namespaces_pieces_max: Final = 32

WallMs = Callable[[], int]


def page(
    table: Table, namespace: bytes, query: Query, wall_ms: WallMs
) -> Generator[None, None, Page]:
    """As `Table.page`, in pieces."""
    yield from _ordered(table, namespace)
    whole = Page([], [], query.start)
    for _ in range(page_pieces_max):
        room = query.limit - len(whole.entries) - len(whole.groups)
        if whole.next is None or not room:
            break
        piece = table.page(namespace, _piece(query, whole.next, room), wall_ms())
        whole.entries.extend(piece.entries)
        whole.groups.extend(piece.groups)
        whole = whole._replace(next=piece.next)
        yield
    return whole


def scan(
    table: Table, namespace: bytes, query: Query, wall_ms: WallMs, *, tombstones: bool
) -> Generator[None, None, Scan]:
    """As `Table.scan`, in pieces."""
    yield from _ordered(table, namespace)
    whole = Scan([], query.start)
    for _ in range(page_pieces_max):
        room = query.limit - len(whole.found)
        if whole.next is None or not room:
            break
        piece = table.scan(
            namespace, _piece(query, whole.next, room), wall_ms(), tombstones=tombstones
        )
        whole.found.extend(piece.found)
        whole = whole._replace(next=piece.next)
        yield
    return whole


def namespaces(table: Table, query: NamespacesQuery) -> Generator[None, None, NamespacesPage]:
    """Those of a tenant that have keys, by name."""
    found: list[NamespaceCount] = []
    start: bytes | None = query.start
    for _ in range(namespaces_pieces_max):
        if start is None:
            break
        piece = table.namespaces_from(query.tenant, start, namespaces_piece + 1)
        start = piece[namespaces_piece].name if len(piece) > namespaces_piece else None
        for namespace in piece[:namespaces_piece]:
            if not namespace.keys:
                continue
            if len(found) == query.limit:
                return NamespacesPage(found, namespace.name)
            found.append(NamespaceCount(namespace.name, namespace.keys, namespace.bytes))
        yield
    return NamespacesPage(found, start)


def _ordered(table: Table, namespace: bytes) -> Iterator[None]:
    mark = table.index_mark(namespace)
    while not table.index_slice(namespace, mark, index_budget):
        yield


def _piece(query: Query, start: bytes, room: int) -> Query:
    return query._replace(start=start, limit=room, examined_max=page_piece_keys)
