"""What comparing the replicas of a slot means for its tombstones: which record to bring to whom,
and which keys are over for good.

    replicas ──pages, in the order of keys──► Round ──► lacks    a replica holds less than another
                                                │
                                                └─────► over     keys to purge, once the whole round
                                                                 has shown no lack at all

All replicas have been frozen at one floor, the *session*: nothing at or below it is written any
more but by repair in this very session. So of each key the greatest record that any replica has at
or below the floor is what all of them have to hold before anything is dropped. What is above the
floor is none of this: it is later than all that can be dropped, and wins wherever it arrives.

Before the freeze, the keys with promises that may be over were *settled*: all replicas accepted,
at one ballot, that there is a tombstone or nothing. A settled tombstone counts as held, whether or
not a cell has learned it yet.

A key is over when every replica has promised nothing above the session and accepted nothing but at
the ballot of its settling, when all cells hold the greatest record or are above the session, and
when that record has ended; or if there is no such record, and promises alone are to be dropped.

A round is not a moment: pages are read one after the other. That is enough, because what it decides
of a key depends on this key alone, and at or below the session nothing but repair happens to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from services.core.errors import PeerError
from services.core.hlc import Version, version_bytes, version_zero
from services.core.record import is_tombstone
from services.core.sessions import Compared, ComparedPage, ended, no_cell

# With its ballot each takes about 200 bytes until the end of the round, in several slots at once.
# What is over beyond that is left to the next attempt.
over_max: Final = 16_384


class Settled(NamedTuple):
    """What all replicas have accepted at this ballot: a tombstone, or nothing (`b""`)."""

    ballot: Version
    record: bytes


def settled_end(ballot: Version, record: bytes) -> Settled | None:
    """What was chosen, if it is the end of a key; None for one that lives."""
    return None if record and not is_tombstone(record) else Settled(ballot, record)


class Lack(NamedTuple):
    """Some replicas are to be brought a record, in this version."""

    key: bytes
    version: Version
    # Who has it, as a bit; 0 if it is the settled tombstone, which no cell shows.
    holder: int
    # Who lacks it, as bits.
    lacking: int


class Over(NamedTuple):
    """A key that is over, and the ballot at which it was settled, or `version_zero`."""

    key: bytes
    ballot: Version


class Verdict(NamedTuple):
    """Of one key: what is lacking, or that it is over. Neither, if it is to be left alone."""

    lack: Lack | None = None
    over: Over | None = None
    # Whether the key that is over has a tombstone in some cell, and a promise of some replica.
    tombstone: bool = False
    promise: bool = False


nothing_to_do: Final = Verdict()


def judge(
    key: bytes,
    shown: Sequence[Compared | None],
    session: Version,
    settled: Settled | None,
) -> Verdict:
    """What to do with a key of which the replicas have shown this: each in its place, None where
    there is neither a cell nor a promise."""
    target = version_zero
    ballot = version_zero
    if settled is not None:
        ballot = settled.ballot
        target = settled.record[:version_bytes] or version_zero
    for entry in shown:
        if entry is not None and target < entry.version <= session:
            target = entry.version
    holder = lacking = 0
    over, tombstone, promise = True, False, False
    bit = 1
    for entry in shown:
        if entry is None:
            if target != version_zero:
                lacking |= bit
        else:
            if entry.version < target:
                lacking |= bit
            elif entry.version == target and entry.cell != no_cell:
                holder = holder or bit
                # Where replicas disagree about the end of one version, it lives.
                tombstone = True
                over = over and entry.cell == ended
            if entry.promised > session or entry.ballot not in (version_zero, ballot):
                over = False
            promise = promise or entry.promised != version_zero
        bit <<= 1
    if lacking:
        return Verdict(Lack(key, target, holder, lacking))
    if over and (tombstone or promise):
        return Verdict(None, Over(key, ballot), tombstone, promise)
    return nothing_to_do


class Round:
    """All replicas of a slot compared once, whatever the slot holds: no more than a page of each
    is kept, besides the keys that turn out to be over.

        while not round.ended:
            for place, after in round.wanted():  ask that replica, and give its `page`
            bring what `advance` returns to those that lack it

    Nothing may be purged unless the round has ended and is `clean`.
    """

    def __init__(self, replicas: int, session: Version, settled: Mapping[bytes, Settled]) -> None:
        # Whether all replicas hold the same so far, at or below the session.
        self.clean = True
        self.ended = False
        self.over: list[Over] = []
        # Of those: how many have a tombstone in some cell, and how many a promise somewhere.
        self.tombstones = self.promises = 0
        # Whether there was more that is over than one attempt takes.
        self.overflowed = False
        self._session = session
        self._settled = settled
        # By replica: what comes next, what is left of its page, its last key, and whether more
        # pages follow. Before the first page nothing has come and more follows.
        self._heads: list[Compared | None] = [None] * replicas
        self._rests: list[Iterator[Compared]] = [iter(()) for _ in range(replicas)]
        self._lasts = [b""] * replicas
        self._more = [True] * replicas

    def wanted(self) -> list[tuple[int, bytes]]:
        """Who is to be asked for its next page before anything goes on, and behind which key."""
        return [
            (place, self._lasts[place])
            for place, head in enumerate(self._heads)
            if head is None and self._more[place]
        ]

    def page(self, place: int, page: ComparedPage) -> None:
        """What a replica has answered. PeerError if it does not lead on."""
        if page.entries:
            if page.entries[0].key <= self._lasts[place]:
                raise PeerError("a page of a comparison begins before the one before it ended")
            self._lasts[place] = page.entries[-1].key
        self._more[place] = page.more
        self._rests[place] = iter(page.entries)
        self._heads[place] = next(self._rests[place], None)

    def advance(self, keys_max: int) -> list[Lack]:
        """Judge so many keys, or as many as the pages that are here allow."""
        heads, rests, lacks = self._heads, self._rests, list[Lack]()
        for _ in range(keys_max):
            if any(more and head is None for head, more in zip(heads, self._more, strict=True)):
                break
            key = min((head.key for head in heads if head is not None), default=None)
            if key is None:
                self.ended = True
                break
            shown = [head if head is not None and head.key == key else None for head in heads]
            for place, entry in enumerate(shown):
                if entry is not None:
                    heads[place] = next(rests[place], None)
            verdict = judge(key, shown, self._session, self._settled.get(key))
            if verdict.lack is not None:
                lacks.append(verdict.lack)
            elif verdict.over is not None:
                self._note(verdict, verdict.over)
        if lacks:
            self.clean = False
            self.over.clear()
        return lacks

    def _note(self, verdict: Verdict, over: Over) -> None:
        if not self.clean:
            return
        if len(self.over) == over_max:
            self.overflowed = True
            return
        self.over.append(over)
        self.tombstones += verdict.tombstone
        self.promises += verdict.promise
