"""Pages of several nodes put together into one listing, in the order of keys.

Every slot is spoken for by one node, so that no key is told twice; each node tells its keys in
order, and with every page up to where it has got. What lies before the place of the one that is
furthest behind is certain, and is told in order:

    node-1   a  c  f | …          up to g
    node-2   b  d |  …            up to e       ──►  a b c d,  then node-2 is asked again
    node-3   e  z                 to the end

Groups, which stand for all keys with a common beginning, come from each node that has such a key,
and are told once; nobody is asked for the rest of a group that was told.

What was told only ever ascends, so that no key is there twice, whatever is written meanwhile; and
a key that is there all along is there once, as every node goes through all of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import merge as in_order
from itertools import pairwise
from typing import Final, NamedTuple

from services.core.errors import PeerError
from services.core.key import successor
from services.core.listings import ListEntry, ListPage, list_limit_max
from services.runtime.fleet import FleetNode

# Keys are spread over nodes by their hashes: a node rarely has this many standard deviations more
# than its share, so one question to each does for most listings.
_deviations: Final = 4
_spare_keys: Final = 8


class Found(NamedTuple):
    """A key with what is known of it, or with None a group."""

    key: bytes
    entry: ListEntry | None


class Source:
    """A node that speaks for some slots, and how far it has told what they have."""

    __slots__ = ("next", "node", "slots")

    def __init__(self, node: FleetNode, slots: bytes, start: bytes) -> None:
        self.node = node
        self.slots = slots
        # Every key below this that was there has been told; None once all were.
        self.next: bytes | None = start


class Merge:
    """`told` grows up to one more than `limit`: by that it is known whether there is more."""

    def __init__(self, prefix: bytes, start: bytes, limit: int) -> None:
        self.told: list[Found] = []
        self._prefix = prefix
        self._limit = limit
        self._start = start
        # Whatever begins below has been told here. Where a listing goes on within a group, that
        # group has not.
        self._done_below = b""
        self._sources: list[Source] = []
        # Known of in order, and not certain to be next.
        self._pending: list[Found] = []

    def begin(self, speakers: Mapping[FleetNode, bytes]) -> None:
        """Go on with these, from where all that is told ends; whatever else others said is
        forgotten."""
        place = self.place
        self._pending = []
        start = self._start if place is None else place
        self._sources = [Source(node, slots, start) for node, slots in speakers.items()]

    @property
    def full(self) -> bool:
        return len(self.told) > self._limit

    @property
    def place(self) -> bytes | None:
        """Where what is not told begins; None if there is nothing more."""
        if self.full:
            return self.told[self._limit].key
        if not self._sources:
            return self._start
        places = [source.next for source in self._sources if source.next is not None]
        if self._pending:
            places.append(self._pending[0].key)
        return min(places, default=None)

    def lagging(self) -> list[Source]:
        """Whom to ask before anything more is certain; nobody if it is full or at its end."""
        if self.full:
            return []
        first = self._pending[0].key if self._pending else None
        return [
            source
            for source in self._sources
            if source.next is not None and (first is None or source.next <= first)
        ]

    @property
    def page_limit(self) -> int:
        """How many to ask of each."""
        share = (self._limit + 1 - len(self.told)) / max(1, len(self._sources))
        wanted = math.ceil(share + _deviations * math.sqrt(share)) + _spare_keys
        return min(wanted, self._limit + 1, list_limit_max)

    def take(self, source: Source, page: ListPage) -> None:
        """What it has told. PeerError, and nothing of it is taken, if that makes no sense."""
        found = _checked(source, page, self._prefix)
        self._pending = list(in_order(self._pending, found, key=_key))
        source.next = page.next

    def settle(self) -> None:
        """Tell what is certain, now that all who were asked have been heard."""
        bound = min((s.next for s in self._sources if s.next is not None), default=None)
        used = 0
        for found in self._pending:
            # Keys of a group stand next to each other; so it is certain also at its beginning.
            is_group = found.entry is None
            certain = bound is None or found.key < bound or (is_group and found.key == bound)
            if self.full or not certain:
                break
            used += 1
            if found.key < self._done_below:
                # A group that another node has told of.
                continue
            self.told.append(found)
            self._pass(found)
        del self._pending[:used]

    def _pass(self, found: Found) -> None:
        """Nothing up to the end of this is asked for any more."""
        behind = found.key + b"\0" if found.entry is not None else successor(found.key)
        if behind is None:
            # Only what is no UTF-8 could follow.
            for source in self._sources:
                source.next = None
            return
        self._done_below = behind
        if found.entry is None:
            for source in self._sources:
                if source.next is not None and source.next < behind:
                    source.next = behind


def _key(found: Found) -> bytes:
    return found.key


def _checked(source: Source, page: ListPage, prefix: bytes) -> list[Found]:
    """What a page has, in order. PeerError if it is none that was asked for."""
    start = source.next
    if start is None:
        raise PeerError("a page that nobody asked for")
    entries = (Found(entry.key, entry) for entry in page.entries)
    groups = (Found(group, None) for group in page.groups)
    found = list(in_order(entries, groups, key=_key))
    keys = [one.key for one in found]
    if any(not key.startswith(prefix) for key in keys):
        raise PeerError("a key that was not asked for")
    if found and found[0].entry is None and start.startswith(keys[0]):
        # A group, from within which this node went on.
        keys[0] = start
    if page.next is not None:
        keys.append(page.next)
    if any(key >= after for key, after in pairwise(keys)):
        raise PeerError("keys that do not ascend")
    if keys and (keys[0] < start or page.next == start):
        raise PeerError("a page that leads back")
    return found
