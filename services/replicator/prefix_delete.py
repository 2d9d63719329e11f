"""Deleting, or counting, the keys of a namespace that begin with a prefix.

    look ──► keys of all slots, in order ──► delete some ──► look further ──► …  ──► answered
     ▲ │                                        │
     │ └─ a node fails: others speak for it     └─ not all were deleted: stop there
     └────────────────────────────────────────────

Each slot is spoken for by its first live owner; if one has none, nothing is counted or deleted.
What is found is deleted by eventual tombstones that are later than the version seen. A put that
comes meanwhile is later still, and survives.

One call goes through so many keys, or as many as it can in `work_s`, and says where to go on. Its
numbers are exact: each key was seen and, when it is counted as deleted, has a durable tombstone.
When something fails midway

- what was deleted until then is answered, with the key to go on from: the first that was not
  deleted. The next call meets the cause, if it is still there, and is refused with it;
- if nothing was deleted yet, or it was only counted, the call is refused;
- if the outcome of some delete is unknown, so is that of the call. To repeat it is harmless.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Final

from services.core.deletions import PrefixDeleted, PrefixDeletion
from services.core.errors import PeerError, RetryLater
from services.core.hlc import Version, check_version
from services.core.listings import ListQuery, ScanPage, list_limit_max
from services.core.messages import SCAN
from services.core.operations import CHANGED, UNKNOWN
from services.core.packed_bodies import decode_body, encode_body
from services.core.paxos import Answer
from services.core.record import tombstone_body
from services.core.wire import FAILED, OK
from services.replicator.answers import Done, Failures, refusal, refusal_of, senseless
from services.replicator.eventual import EventualWrites
from services.replicator.stamps import Stamps
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet, FleetNode
from services.runtime.peer import SENT
from services.runtime.speakers import Speakers, UnspokenError

# No step is begun after this, and the longest step is a write's: with its 2 s the answer is there
# before the 5 s are over that a gateway gives its client's request. 10,000 deletes take the
# replicator and three nodes about a second of work, all together.
work_s: Final = 3.0
# A page takes a node some milliseconds, and others can speak for it.
scan_s: Final = 1.0
# As many as one message to a node may bring, and a turn of the loop may prepare.
deletes_at_once: Final = 1_000
# Each keeps a message under way to every node, in front of which other writes wait.
calls_max: Final = 4


class PrefixDeletions:
    def __init__(self, fleet: Fleet, stamps: Stamps, writes: EventualWrites, clock: Clock) -> None:
        self.under_way = 0
        self.speakers = Speakers(fleet)
        self.stamps = stamps
        self.writes = writes
        self.clock = clock

    def run(self, request: PrefixDeletion, done: Done) -> None:
        if self.under_way >= calls_max:
            done(*refusal("overloaded", f"{calls_max} deletions by prefix are under way"))
            return
        self.under_way += 1
        _Call(self, request, partial(self._done, done)).begin()

    def _done(self, done: Done, kind: int, body: bytes) -> None:
        self.under_way -= 1
        done(kind, body)


class _Source:
    """A node that speaks for some slots, and how far it has told what they have."""

    __slots__ = ("next", "node", "slots")

    def __init__(self, node: FleetNode, slots: bytes, start: bytes) -> None:
        self.node = node
        self.slots = slots
        # Every key below this that was there has been told; None once all were.
        self.next: bytes | None = start


class _Call:
    def __init__(self, deletions: PrefixDeletions, request: PrefixDeletion, done: Done) -> None:
        self._deletions = deletions
        self._request = request
        self._done = done
        self._until_s = deletions.clock.monotonic_s() + work_s
        self._matched = self._deleted = 0
        self._sources: list[_Source] = []
        # Told, in order, and not yet dealt with.
        self._found: deque[tuple[bytes, Version]] = deque()
        self._failures = Failures()
        # Answers of nodes, or of deletes, that are waited for.
        self._waiting = 0

    def begin(self) -> None:
        if self._assign(self._request.start):
            self._go_on()

    def _assign(self, start: bytes) -> bool:
        """Have every slot spoken for from there on; if that cannot be, end."""
        try:
            speakers = self._deletions.speakers.assign(self._failures.by_node.keys())
        except UnspokenError as error:
            why = f"{error}; {self._failures}" if self._failures.by_node else str(error)
            self._fail(start, refusal("no_quorum", why))
            return False
        self._found.clear()
        self._sources = [_Source(node, slots, start) for node, slots in speakers.items()]
        return True

    def _go_on(self) -> None:
        """Take the next step, or answer."""
        request = self._request
        while True:
            lagging = self._lagging()
            left = request.limit - self._matched
            if not left or (not self._found and not lagging) or self._late:
                self._answer(self._place)
                return
            if lagging:
                self._look(lagging, left)
                return
            keys = self._take(min(left, deletes_at_once))
            if not request.dry_run:
                self._delete(keys)
                return
            self._matched += len(keys)

    @property
    def _late(self) -> bool:
        return self._deletions.clock.monotonic_s() >= self._until_s

    # -- looking

    def _lagging(self) -> list[_Source]:
        """Who might know of a key before the first that was found."""
        first = self._found[0][0] if self._found else None
        return [
            source
            for source in self._sources
            if source.next is not None and (first is None or source.next <= first)
        ]

    @property
    def _place(self) -> bytes | None:
        """The first key that may be there and was not dealt with; None if there is none."""
        places = [source.next for source in self._sources if source.next is not None]
        if self._found:
            places.append(self._found[0][0])
        return min(places, default=None)

    def _look(self, sources: list[_Source], limit: int) -> None:
        request = self._request
        self._waiting = len(sources)
        for source in sources:
            query = ListQuery(
                request.namespace,
                request.prefix,
                source.next or b"",
                min(limit, list_limit_max),
                slots=source.slots,
            )
            told = partial(self._told, source)
            asked = source.node.link.request(SCAN, encode_body(query), told, scan_s)
            if asked != SENT:
                self._told(source, asked, b"")

    def _told(self, source: _Source, kind: int, body: bytes) -> None:
        self._waiting -= 1
        if kind == OK:
            try:
                self._take_page(source, decode_body(body, ScanPage))
            except PeerError as error:
                senseless(source.node.node_id, kind, str(error))
                kind = FAILED
        if kind != OK:
            self._failures.note(source.node.node_id, kind)
        if self._waiting:
            return
        self._found = deque(sorted(self._found))
        place = self._place
        lost = any(source.node.node_id in self._failures.by_node for source in self._sources)
        # Others speak for the slots of a node that is lost, from where all have come to.
        if lost and place is not None and not self._assign(place):
            return
        self._go_on()

    def _take_page(self, source: _Source, page: ScanPage) -> None:
        for key, version in page.found:
            check_version(version)
            if not key.startswith(self._request.prefix):
                raise PeerError("a key that was not asked for")
        if page.next is not None and source.next is not None and page.next < source.next:
            raise PeerError("a page that leads back")
        self._found.extend(page.found)
        source.next = page.next

    def _take(self, count: int) -> list[tuple[bytes, Version]]:
        """Keys of which it is sure that none is missing in between, in order."""
        bound = min((s.next for s in self._sources if s.next is not None), default=None)
        taken: list[tuple[bytes, Version]] = []
        found = self._found
        while found and len(taken) < count and (bound is None or found[0][0] < bound):
            taken.append(found.popleft())
        return taken

    # -- deleting

    def _delete(self, keys: list[tuple[bytes, Version]]) -> None:
        deletions, namespace = self._deletions, self._request.namespace
        try:
            # So that each tombstone is later than what was seen.
            deletions.stamps.merge(max(version for _, version in keys))
        except RetryLater as error:
            self._fail(keys[0][0], refusal_of(error))
            return
        self._waiting = len(keys)
        # Of the deletes that were not made, by their places in `keys`.
        failed: dict[int, Answer] = {}
        deletions.writes.write_many(
            (
                (namespace + key, tombstone_body, partial(self._ended, keys, failed, index))
                for index, (key, _) in enumerate(keys)
            ),
            yields=True,
        )

    def _ended(
        self,
        keys: list[tuple[bytes, Version]],
        failed: dict[int, Answer],
        index: int,
        kind: int,
        body: bytes,
    ) -> None:
        self._waiting -= 1
        if kind != CHANGED:
            failed[index] = kind, body
        if self._waiting:
            return
        self._deleted += len(keys) - len(failed)
        self._matched = self._deleted
        unknown = next((answer for answer in failed.values() if answer[0] == UNKNOWN), None)
        if unknown is not None:
            self._done(*unknown)
        elif failed:
            first = min(failed)
            self._fail(keys[first][0], failed[first])
        else:
            self._go_on()

    # -- ending

    def _fail(self, place: bytes, answer: Answer) -> None:
        """It cannot go on from there."""
        if self._deleted:
            self._answer(place)
        else:
            self._done(*answer)

    def _answer(self, place: bytes | None) -> None:
        self._done(OK, encode_body(PrefixDeleted(self._matched, self._deleted, place)))
