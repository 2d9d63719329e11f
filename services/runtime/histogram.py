"""Counts of values by buckets, for metrics; whatever is on a hot path observes in compiled code."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

# Latencies from a memory lookup to past the longest deadline of a request, in milliseconds.
latency_bounds_ms = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)


class Histogram:
    """Counts of values by fixed buckets: `bounds` are the inclusive upper ends."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float] = latency_bounds_ms) -> None:
        if not bounds or list(bounds) != sorted(set(bounds)):
            raise ValueError("the bounds of a histogram ascend")
        self.bounds = tuple(bounds)
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def quantile(self, share: float) -> float:
        """The upper end of the bucket that the share of all values lies below; 0 if there is none.

        The highest bucket has no upper end: its lower one is given.
        """
        rank = share * self.count
        for bound, seen in zip(self.bounds, accumulate(self.buckets), strict=False):
            if seen and seen >= rank:
                return bound
        return self.bounds[-1] if self.count else 0.0
