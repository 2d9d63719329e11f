"""Hints that are kept in memory and outlive their replicator's process, as if on its disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from services.core.messages import BELOW_FLOOR, NEWER, WRITE, WRONG_EPOCH, encode_write, u64
from services.core.wire import OK
from services.replicator.eventual import Epochs
from services.replicator.fleet import Fleet
from services.runtime.clock import FakeClock

sync_s = 0.003
replay_s = 0.1
try_s = 1.0

Owed = dict[str, dict[bytes, bytes]]
"""By node, the newest record that it misses of each key."""


class MemoryHints:
    def __init__(self, owed: Owed, fleet: Fleet, epochs: Epochs, clock: FakeClock) -> None:
        self._owed = owed
        self._fleet = fleet
        self._epochs = epochs
        self._clock = clock
        clock.call_later(replay_s, self._replay)

    def keep(
        self, node_id: str, key: bytes, record: bytes, kept: Callable[[], None] | None = None
    ) -> None:
        def durable() -> None:
            owed = self._owed.setdefault(node_id, {})
            owed[key] = max(record, owed.get(key, b""))
            if kept is not None:
                kept()

        self._clock.call_later(sync_s, durable)

    def _replay(self) -> None:
        for node_id, owed in self._owed.items():
            node = self._fleet.nodes.get(node_id)
            if node is not None and node.live:
                for key, record in owed.items():
                    message = encode_write(self._fleet.epoch, key, record)
                    heard = partial(self._heard, node_id, key, record)
                    node.link.request(WRITE, message, heard, try_s)
        self._clock.call_later(replay_s, self._replay)

    def _heard(self, node_id: str, key: bytes, record: bytes, kind: int, body: bytes) -> None:
        owed = self._owed.get(node_id, {})
        if kind in (OK, NEWER, BELOW_FLOOR) and owed.get(key) == record:
            del owed[key]
        elif kind == WRONG_EPOCH:
            self._epochs.outdated(u64.unpack(body)[0])
