"""Whoever tries API keys is slowed down, by address.

A key cannot be guessed. But each try costs a request to the user manager, and this bounds what one
client can cause of them. Counted are keys that turned out to be none. So that many at once are no
way around it, only a few that came from one address are looked up at the same time, and the others
wait for what becomes of these; as they do who bring many good keys to a process that has just
begun. Whoever has a key that is known goes on beside somebody who guesses.

Of an address of IPv6 two networks are counted: the one that a customer has at least, and, with more
to give, the one that a customer has at most.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from services.core.bucket import Bucket
from services.core.errors import RetryLater
from services.core.plans import Limits
from services.runtime.allowance import retry_after_s
from services.runtime.client_address import network_of, wide_network_of
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics
from services.runtime.shares import ShareLimit, Shares

# Somebody who mixes up the keys of all their projects at once, and then one every two seconds.
# A wrong key that is sent again and again is remembered, and counts as one of twelve a minute.
address_limits: Final = Limits(30, 30)
site_limits: Final = Limits(120, 120)
# Some thousand a second; and so many guesses go through at most after the last that is allowed.
turns: Final = ShareLimit(8, 2_000, 2.5, "rate_limited", "unknown API keys of one address")
# About 4 MB. Who has more addresses than this has no need to come back with one of them.
subjects_max: Final = 10_000


class Guesses:
    """A bucket for each address that has brought a wrong key lately."""

    def __init__(self, clock: Clock, subjects_max: int = subjects_max) -> None:
        self._clock = clock
        self._subjects_max = subjects_max
        # Least recently seen first.
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._turns = Shares(turns)
        self.throttled = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def add_to(self, metrics: Metrics) -> None:
        metrics.add(
            "key_guesses_throttled",
            "counter",
            "Unknown API keys refused for the wrong ones of their address",
            lambda: self.throttled,
        )
        metrics.add(
            "key_guess_addresses",
            "gauge",
            "Addresses that wrong API keys came from",
            lambda: len(self),
        )

    def check(self, address: str) -> None:
        """RetryLater `rate_limited` if too many wrong keys have come from there."""
        now_ns = self._now_ns()
        buckets = (self._buckets.get(name) for name, _ in _subjects(address))
        wait_ns = max(0 if bucket is None else bucket.wait_ns(1, now_ns) for bucket in buckets)
        if wait_ns:
            self.throttled += 1
            raise RetryLater(
                "rate_limited",
                "Too many wrong API keys came from your address: wait, or use one that is good",
                retry_after_s=retry_after_s(wait_ns),
            )

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Let the block look up a key when it is the turn of what has come from there."""
        async with self._turns.of(network_of(address)):
            self.check(address)
            yield

    def count(self, address: str) -> None:
        """One more wrong key."""
        now_ns = self._now_ns()
        for name, limits in _subjects(address):
            bucket = self._buckets.pop(name, None) or Bucket(limits, now_ns)
            bucket.take(1, now_ns)
            self._buckets[name] = bucket
            if len(self._buckets) > self._subjects_max:
                self._buckets.popitem(last=False)

    def _now_ns(self) -> int:
        return int(self._clock.monotonic_s() * 1e9)


def _subjects(address: str) -> list[tuple[str, Limits]]:
    network, site = network_of(address), wide_network_of(address)
    subjects = [(network, address_limits)]
    if site != network:
        subjects.append((site, site_limits))
    return subjects
