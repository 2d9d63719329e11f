"""Which namespaces are caches, as one replica knows it, and how it takes another list of them.

The table has each cache with its keys; here is what was declared, and logged. A list is taken
change by change, and its edition when all of it is. So a replica that has an edition has all of its
list, and one that was interrupted is told the list once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from services.core.messages import u64
from services.core.namespaces import Edition, encode_edition, no_edition
from services.dhtnode import frame
from services.dhtnode.table import Table

# Declaring so many, each logged, takes half a millisecond.
caches_in_a_piece: Final = 64


class CacheList:
    """`log` makes a change durable, or raises PeerError if it has no room."""

    def __init__(self, table: Table, log: Callable[[int, bytes], None]) -> None:
        # By the prefix of a namespace that is a cache, how many keys it may have here.
        self.caches: dict[bytes, int] = {}
        # Of which list these are all, and which one is just being taken.
        self.edition = no_edition
        self._taking = no_edition
        # How often anything of it has changed.
        self.changes = 0
        # How many snapshots are being written. What was put into a cache would be replayed into
        # the store that came after it, so none is forgotten meanwhile.
        self.snapshots = 0
        self._table = table
        self._log = log

    def take(self, edition: Edition, caches: dict[bytes, int]) -> Iterator[None]:
        """Have exactly these namespaces be caches, unless a newer list is known, and log what
        changes. It yields where others may have their turn; a newer list that comes then goes on
        in its place. What is in the list is taken and the edition is not, so that whoever tells
        it has to tell it once more: if the log has no room, which is a PeerError; and while a
        snapshot is written, if a cache is to be forgotten."""
        if edition <= max(self.edition, self._taking):
            return
        self._taking = edition
        try:
            yield from self._take(edition, caches)
        finally:
            if self._taking == edition:
                self._taking = no_edition

    def _take(self, edition: Edition, caches: dict[bytes, int]) -> Iterator[None]:
        complete = True
        for count, (prefix, items_max) in enumerate(changed_caches(self.caches, caches), 1):
            if self._taking != edition:
                return
            if not items_max and self.snapshots:
                complete = False
                continue
            self._log(frame.CACHE, u64.pack(items_max) + prefix)
            self.declare(prefix, items_max)
            if not count % caches_in_a_piece:
                yield
        if self._taking == edition and complete:
            self._log(frame.EDITION, encode_edition(edition))
            self.edition = edition

    def declare(self, prefix: bytes, items_max: int) -> None:
        """Have this namespace be a cache, or with 0 a store again."""
        self.changes += 1
        if items_max:
            self.caches[prefix] = items_max
            self._table.declare_cache(prefix, items_max)
        else:
            self.caches.pop(prefix, None)
            self._table.forget_cache(prefix)


def changed_caches(old: dict[bytes, int], new: dict[bytes, int]) -> list[tuple[bytes, int]]:
    """What leads from these caches to those: namespaces with their limits, 0 for one that is a
    store again."""
    gone = dict.fromkeys(old.keys() - new.keys(), 0)
    return [
        (prefix, items_max)
        for prefix, items_max in sorted({**new, **gone}.items())
        if old.get(prefix, 0) != items_max
    ]
