"""The nonces of signed requests, remembered for as long as their requests would be accepted.

They are known by many small sets, of which the nonce itself says which one, so that no set grows
so large that making room in it holds anybody up; and they are forgotten in the order in which
they came, those of a moment together, for a time with each would take more room than the nonce.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

# A power of two. Some 4,000 nonces in each when there is no room for more.
sets: Final = 64
# A nonce is remembered for up to so much longer than it has to be.
together_s: Final = 0.25
# How many moments one turn forgets: more than come, so that after a pause it catches up, and few
# enough for nobody to wait for.
moments_at_once: Final = 2


@dataclass(slots=True)
class _Moment:
    begun_s: float
    # Of the last one in it.
    forget_s: float
    nonces: list[int] = field(default_factory=list)


class Nonces:
    """At most `capacity` of them, each for `kept_s` after it came. Time is the caller's, and does
    not go back. A nonce is a random number: who could choose it could choose its set."""

    def __init__(self, capacity: int, kept_s: float) -> None:
        self.capacity = capacity
        self._kept_s = kept_s
        self._known: list[set[int]] = [set() for _ in range(sets)]
        self._moments: deque[_Moment] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, nonce: int) -> bool:
        return nonce in self._known[nonce % sets]

    @property
    def is_full(self) -> bool:
        return self._count >= self.capacity

    def room_in_s(self, now_s: float) -> float:
        """How long it takes from now until some are forgotten."""
        return self._moments[0].forget_s - now_s if self._moments else 0.0

    def forget(self, now_s: float) -> None:
        """Drop some of what need not be known any more."""
        for _ in range(moments_at_once):
            if not self._moments or self._moments[0].forget_s >= now_s:
                return
            nonces = self._moments.popleft().nonces
            self._count -= len(nonces)
            for nonce in nonces:
                self._known[nonce % sets].discard(nonce)

    def add(self, nonce: int, now_s: float) -> None:
        """Remember one that is not known, when there is room."""
        if not self._moments or now_s >= self._moments[-1].begun_s + together_s:
            self._moments.append(_Moment(now_s, now_s))
        moment = self._moments[-1]
        moment.forget_s = now_s + self._kept_s
        moment.nonces.append(nonce)
        self._known[nonce % sets].add(nonce)
        self._count += 1
