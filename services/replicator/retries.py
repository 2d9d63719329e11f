"""Writes that a live replica did not take: tried again a few times, then left as hints.

What is tried again was made already: its client has been told, or will be, whatever becomes of
this. So nothing here answers anybody, and what a replica says only decides whether to go on.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Final

from services.core.errors import PeerError, RetryLater
from services.core.hlc import check_version
from services.core.messages import BELOW_FLOOR, NEWER, WRITE, WRONG_EPOCH, encode_write, epoch_of
from services.core.wire import DOWN, LOST, OK
from services.replicator.counters import Counters
from services.replicator.seams import Epochs, Hints
from services.replicator.stamps import Stamps
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet
from services.runtime.peer import SENT

# As long as the first try had.
try_s: Final = 2.0
# The first is for a lost message, the last for a node that restarts.
retry_s: Final[tuple[float, ...]] = (0.1, 0.4, 1.0)
# Each holds a record in memory; past this they become hints.
retrying_max: Final = 20_000


class _Retry:
    """One record that one replica lacks."""

    __slots__ = ("key", "node_id", "record", "tried")

    def __init__(self, node_id: str, key: bytes, record: bytes) -> None:
        self.node_id = node_id
        self.key = key
        self.record = record
        self.tried = 0


class Retries:
    def __init__(
        self,
        fleet: Fleet,
        stamps: Stamps,
        hints: Hints,
        epochs: Epochs,
        clock: Clock,
        counters: Counters,
        draw: random.Random,
    ) -> None:
        self._fleet = fleet
        self._stamps = stamps
        self._hints = hints
        self._epochs = epochs
        self._clock = clock
        self._counters = counters
        self._draw = draw
        # Since when each record has been on its way; oldest first but for a second or two.
        self._behind: dict[_Retry, float] = {}

    @property
    def count(self) -> int:
        """How many replicas are tried again."""
        return len(self._behind)

    @property
    def full(self) -> bool:
        return len(self._behind) >= retrying_max

    @property
    def oldest_s(self) -> float | None:
        """Since when the replica that is tried again for longest has lacked its write."""
        return next(iter(self._behind.values()), None)

    def of(self, node_id: str) -> list[float]:
        """Since when each record has been on its way that this node is to take."""
        return [since_s for retry, since_s in self._behind.items() if retry.node_id == node_id]

    def give_up(self) -> None:
        """Leave all of it as hints, for the end of this process is near."""
        behind, self._behind = self._behind, {}
        for retry in behind:
            self._hints.keep(retry.node_id, retry.key, retry.record)

    def add(self, node_id: str, key: bytes, record: bytes, since_s: float) -> None:
        retry = _Retry(node_id, key, record)
        self._behind[retry] = since_s
        self._later(retry)

    def _later(self, retry: _Retry) -> None:
        delay_s = retry_s[retry.tried] * self._draw.uniform(0.5, 1.0)
        self._clock.call_later(delay_s, partial(self._try, retry))

    def _try(self, retry: _Retry) -> None:
        if retry not in self._behind:
            return
        node = self._fleet.nodes.get(retry.node_id)
        if node is None:
            # No member any more; its slots have other owners, who got their data otherwise.
            del self._behind[retry]
            return
        self._counters.retries += 1
        message = encode_write(self._fleet.epoch, retry.key, retry.record)
        asked = node.link.request(WRITE, message, partial(self._tried, retry), try_s)
        if asked != SENT:
            self._tried(retry, asked, b"")

    def _tried(self, retry: _Retry, kind: int, body: bytes) -> None:
        if retry not in self._behind:
            return
        retry.tried += 1
        if kind in (OK, NEWER, BELOW_FLOOR):
            if kind != OK:
                self._merge(body)
            self._counters.successful_replicas += 1
            del self._behind[retry]
            return
        if kind == WRONG_EPOCH:
            self._counters.wrong_epoch += 1
            self._epochs.outdated(epoch_of(body))
        if kind in (DOWN, LOST) or retry.tried == len(retry_s):
            del self._behind[retry]
            self._hints.keep(retry.node_id, retry.key, retry.record)
        else:
            self._later(retry)

    def _merge(self, body: bytes) -> None:
        try:
            self._stamps.merge(check_version(body))
        except (PeerError, RetryLater):
            # So far ahead that nobody may follow, or no version. What is there replaces this write
            # all the same.
            return
