"""Runs: keys that were sorted a few thousand at a time, taken together in order.

Putting very many keys in order would hold the loop for long. Sorted as runs, and then taken from
all runs piece by piece, they cost hardly more in sum, and no step takes longer than about 2 ms.

Runs are tuples, because the cycle collector looks at a tuple of bytes once and never again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from itertools import islice

# Sorting a run takes about 1 ms, and so does everything else that is done with as many keys.
run_keys = 4096

# What the steps cost, in units of about 0.15 µs: what sorting a key in a run takes.
_run_look_cost = 3
_run_end_cost = run_keys // 8


def cut(keys: Collection[bytes]) -> Iterator[tuple[bytes, ...]]:
    """All of these keys as runs that have to be sorted yet."""
    rest = iter(keys)
    while run := tuple(islice(rest, run_keys)):
        yield run


def in_order(runs: list[tuple[bytes, ...]]) -> Iterator[list[bytes] | int]:
    """All keys of sorted runs, which it uses up: sorted pieces of about `run_keys` or less, one
    after the other, and in between what it has cost to find them.

    A piece ends at the least of the keys that stand `stride` places ahead in their runs, so it
    takes at most `stride` keys of each. How long a stride gives pieces of the right size depends
    on how the runs overlap, from not at all (keys that came in order) to entirely (random ones);
    it is found by trying, and no order of arrival can make a piece longer than it may be.
    """
    starts = [0] * len(runs)
    stride = max(run_keys // max(len(runs), 1), 1)
    while runs:
        ahead = [
            run[start + stride]
            for run, start in zip(runs, starts, strict=True)
            if start + stride < len(run)
        ]
        bound = min(ahead, default=None)
        ends = [
            len(run)
            if bound is None
            else bisect_left(run, bound, start, min(start + stride, len(run)))
            for run, start in zip(runs, starts, strict=True)
        ]
        size = sum(ends) - sum(starts)
        yield _run_look_cost * len(runs)
        if size > run_keys and stride > 1:
            stride //= 2
            continue
        piece: list[bytes] = []
        for run, start, end in zip(runs, starts, ends, strict=True):
            piece += run[start:end]
        piece.sort()
        yield size
        yield piece
        starts = ends
        # Letting go of a run touches all of its keys, and many runs may end at once.
        for number in reversed(range(len(runs))):
            if starts[number] == len(runs[number]):
                del runs[number], starts[number]
                yield _run_end_cost
        if size < run_keys // 4:
            stride *= 2
