"""What a load has met: how many requests of each kind, how long they took, and what was wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

# Of times up to this many microseconds each has a bucket of its own, and from there on each
# doubling has this many: percentiles are right to 3 %, and a kind of request takes a few KiB
# however many there are.
buckets_per_doubling: Final = 32
_bucket_bits: Final = buckets_per_doubling.bit_length() - 1
_buckets: Final = buckets_per_doubling * 40
# Of each thing that goes wrong so many are told in full; all are counted.
told_max: Final = 3


class Times:
    """A histogram of durations."""

    __slots__ = ("_counts", "count", "longest_s")

    def __init__(self) -> None:
        self.count = 0
        self.longest_s = 0.0
        self._counts = [0] * _buckets

    def add(self, seconds: float) -> None:
        self.count += 1
        self.longest_s = max(self.longest_s, seconds)
        self._counts[_bucket(int(seconds * 1e6))] += 1

    def merge(self, other: Times) -> None:
        self.count += other.count
        self.longest_s = max(self.longest_s, other.longest_s)
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]

    def percentile_ms(self, percent: float) -> float:
        """At least so many percent took at most this; 0 without any."""
        wanted = self.count * percent / 100
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_upper_us(bucket) / 1e3, self.longest_s * 1e3)
        return 0.0


def _bucket(us: int) -> int:
    doublings = max(0, us.bit_length() - _bucket_bits - 1)
    return min(doublings * buckets_per_doubling + (us >> doublings), _buckets - 1)


def _upper_us(bucket: int) -> int:
    """The first time, in microseconds, that belongs to a later bucket."""
    doublings = max(0, bucket // buckets_per_doubling - 1)
    return (bucket - doublings * buckets_per_doubling + 1) << doublings


@dataclass(slots=True)
class Tally:
    """Of one client, of one process, or of all: they add up."""

    times: defaultdict[str, Times] = field(default_factory=lambda: defaultdict(Times))
    # Answers that say that something did not work, by status and code; lost connections too.
    errors: Counter[str] = field(default_factory=Counter)
    # Answers that are not true, by what is wrong with them.
    wrong: Counter[str] = field(default_factory=Counter)
    # Eventual reads that took so long that they were asked of a further replica, and were of
    # an older state: nobody promised otherwise.
    late: int = 0
    told: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def requests(self) -> int:
        return sum(times.count for times in self.times.values())

    def error(self, what: str, told: str) -> None:
        self.errors[what] += 1
        self._tell(what, told)

    def is_wrong(self, what: str, told: str) -> None:
        self.wrong[what] += 1
        self._tell(what, told)

    def merge(self, other: Tally) -> None:
        for name, times in other.times.items():
            self.times[name].merge(times)
        self.errors += other.errors
        self.wrong += other.wrong
        self.late += other.late
        for what, texts in other.told.items():
            for text in texts:
                self._tell(what, text)

    def _tell(self, what: str, text: str) -> None:
        told = self.told[what]
        if len(told) < told_max:
            told.append(text)
