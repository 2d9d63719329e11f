"""A token bucket in exact integers: it admits what arithmetic says, however requests arrive.

A bucket holds up to `burst` tokens and gains `requests_per_minute` of them in a minute, evenly.
Time is a number of nanoseconds of any clock, and a token is as many units of credit as a minute
has nanoseconds. So in each nanosecond a bucket gains `requests_per_minute` units, and nothing is
ever rounded; that it is looked at often or seldom makes no difference.

    take(1, now_ns) == 0        it was taken
    take(1, now_ns) == 600_000  it was not: it would be in so many nanoseconds, if nobody else came

- When time stands still or goes back, nothing is gained until it is past where it was, and nothing
  is lost either.
- Who asks for more than the bucket can hold is let in when it is full, and leaves it in debt for
  the rest: such a request is as rare as its tokens say, rather than impossible.
- New limits take effect from that moment on. Tokens that are there stay, as far as there is room;
  none are given.

Nobody is served twice at the same moment here: it is not for use by several threads.
"""

from __future__ import annotations

from typing import Final

from services.core.plans import Limits

# Of credit, in a token: the nanoseconds of a minute.
token_units: Final = 60_000_000_000
_s_ns: Final = 1_000_000_000


class Bucket:
    """Full at first. Tokens are asked for in whole numbers from 0 on."""

    __slots__ = ("_at_ns", "_capacity", "_level", "_rate", "limits")

    def __init__(self, limits: Limits, now_ns: int) -> None:
        self._at_ns = now_ns
        self._set(limits)
        self._level = self._capacity

    def take(self, tokens: int, now_ns: int) -> int:
        """0 if these have been taken, else in how many nanoseconds they could be."""
        level = self._level
        elapsed_ns = now_ns - self._at_ns
        if elapsed_ns > 0:
            level += elapsed_ns * self._rate
            if level > self._capacity:
                level = self._capacity
            self._at_ns = now_ns
            self._level = level
        cost = tokens * token_units
        if level >= cost:
            self._level = level - cost
            return 0
        wait_ns = self._wait_ns(cost, level, now_ns)
        if not wait_ns:
            self._level = level - cost
        return wait_ns

    def give_back(self, tokens: int) -> None:
        """Undo a `take` that was not for anything after all."""
        self._level = min(self._level + tokens * token_units, self._capacity)

    def wait_ns(self, tokens: int, now_ns: int) -> int:
        """What `take` would return, without taking any."""
        return self._wait_ns(tokens * token_units, self.level(now_ns), now_ns)

    def level(self, now_ns: int) -> int:
        """The credit that is there, in units of which a token has `token_units`; below 0 in
        debt."""
        elapsed_ns = now_ns - self._at_ns
        if elapsed_ns <= 0:
            return self._level
        return min(self._level + elapsed_ns * self._rate, self._capacity)

    def shown(self, now_ns: int) -> tuple[int, int]:
        """For people: whole tokens left, and whole seconds until the bucket is full, rounded up."""
        level = self.level(now_ns)
        missing = self._capacity - level
        left = level // token_units if level > 0 else 0
        return left, -(-missing // (self._rate * _s_ns))

    def is_full(self, now_ns: int) -> bool:
        return self.level(now_ns) == self._capacity

    def limit(self, limits: Limits, now_ns: int) -> None:
        """Go on with these limits from now on."""
        self._level = self.level(now_ns)
        self._at_ns = max(self._at_ns, now_ns)
        self._set(limits)
        self._level = min(self._level, self._capacity)

    def lower(self, level: int) -> None:
        """Keep no more credit than this."""
        self._level = min(self._level, level)

    def _set(self, limits: Limits) -> None:
        if limits.requests_per_minute < 1 or limits.burst < 1:
            raise ValueError(f"a bucket gains and holds something: {limits}")
        self.limits = limits
        self._rate = limits.requests_per_minute
        self._capacity = limits.burst * token_units

    def _wait_ns(self, cost: int, level: int, now_ns: int) -> int:
        missing = min(cost, self._capacity) - level
        if missing <= 0:
            return 0
        # Time that has gone back gains nothing until it is where it was.
        behind_ns = max(0, self._at_ns - now_ns)
        return behind_ns - (-missing // self._rate)
