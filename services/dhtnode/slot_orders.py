"""The keys of slots in order, for whoever goes through a slot by pages.

A slot of a large store has some 300 keys, which are sorted whenever a page is asked for. Who picks
keys by their hash may put a hundred thousand into one slot: to sort these takes 150 ms. They are
sorted once, in steps of a millisecond, and the order is kept for the pages that follow. Measured in
CPython 3.11, all pages of a slot with 100,000 keys take as long as that and 0.5 µs a key, and none
of the steps 4 ms.

A page shows what its keys are by then, so an order only has to have each key that is there all the
time, from the first page to the last. Whoever begins has a new one made, which then serves all who
go through the same slot: it is younger than what they have begun with. One that was dropped is
made anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Generator, Iterator
from typing import Final, NamedTuple

from services.dhtnode.promises import Promises
from services.dhtnode.runs import cut, in_order, run_keys
from services.dhtnode.table import Table

Keys = tuple[bytes, ...]

# So many are sorted in less than half a millisecond.
few_keys: Final = 1_024
# What is done with each key of a page takes 2 µs at most.
page_piece_keys: Final = 256
# Eight MiB of references. One order is kept, however long it is: the slot itself takes much more.
kept_keys_max: Final = 1 << 20


class _Order(NamedTuple):
    """Keys in order, in pieces that are short enough to be let go of."""

    # The later it was begun the greater.
    number: int
    pieces: list[Keys]
    lasts: list[bytes]
    length: int


class SlotOrders:
    """Orders of the slots of one replica: of all keys that have a cell or a promise, or of those
    that have a promise alone."""

    def __init__(self, table: Table, promises: Promises) -> None:
        self._table = table
        self._promises = promises
        # How many were begun, and the number of the next one.
        self.begun = 0
        # By slot, and whether it is one of promises alone; the one that was used last at the end.
        self._kept: dict[tuple[int, bool], _Order] = {}

    def behind(self, slot: int, after: bytes, *, promised: bool = False) -> Iterator[Keys]:
        """Keys of the slot above `after`, some at a time, all in order; none where nothing has
        come of a step yet. Others may have their turn whenever this yields.

        A key that is there from the first page, of which `after` is nothing, to the last one is
        among them. Others may be, or may be there no more.
        """
        which = slot, promised
        order = self._kept.pop(which, None) if after else None
        if order is None:
            order = yield from self._make(which)
        else:
            self._kept[which] = order
        for number in range(bisect_right(order.lasts, after), len(order.pieces)):
            keys = order.pieces[number]
            for at in range(bisect_right(keys, after), len(keys), page_piece_keys):
                yield keys[at : at + page_piece_keys]

    def forget(self, slot: int) -> None:
        """Drop what is kept: those who went through the slot may have gone."""
        if self._kept:
            self._kept.pop((slot, False), None)
            self._kept.pop((slot, True), None)

    @property
    def kept_keys(self) -> int:
        return sum(order.length for order in self._kept.values())

    def _make(self, which: tuple[int, bool]) -> Generator[Keys, None, _Order]:
        """An order as of now, kept unless there are few keys."""
        slot, promised = which
        number = self.begun = self.begun + 1
        sources: list[Collection[bytes]] = [self._promises.keys(slot)]
        if not promised:
            sources.append(self._table.raw_keys(slot))
        if sum(map(len, sources)) <= few_keys:
            return _order(number, [tuple(sorted(set().union(*sources)))])
        runs = [run for source in sources for run in cut(source)]
        for at, run in enumerate(runs):
            yield ()
            runs[at] = tuple(sorted(run))
        pieces: list[Keys] = []
        cost = 0
        for step in in_order(runs):
            if not isinstance(step, int):
                # A key with a cell and a promise is there twice.
                pieces.append(tuple(dict.fromkeys(step)))
                continue
            cost += step
            if cost >= run_keys:
                cost = 0
                yield ()
        order = _order(number, pieces)
        self._keep(which, order)
        return order

    def _keep(self, which: tuple[int, bool], order: _Order) -> None:
        kept = self._kept.get(which)
        if kept is not None and kept.number > order.number:
            # Somebody has begun later, and needs all that was there then.
            return
        self._kept.pop(which, None)
        self._kept[which] = order
        left = self.kept_keys
        for oldest in list(self._kept):
            if left <= kept_keys_max or oldest == which:
                break
            left -= self._kept.pop(oldest).length


def _order(number: int, pieces: list[Keys]) -> _Order:
    found = [keys for keys in pieces if keys]
    return _Order(number, found, [keys[-1] for keys in found], sum(map(len, found)))
