"""Which slots a replicator looks after: all of them are divided among the replicators that live.

    blocks of 128 slots   0  1  2  3  4  5 …
    replicators in order  a  b  c  a  b  c …

Who lives, nodes know: each tells the ids of the replicators that are connected to it and have asked
for them, as only those do that can look after slots. All replicators hear the same, and so agree
without a word to each other. For a moment after one has come or gone they may not; a slot is then
looked after twice, or a little later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from services.core.errors import PeerError
from services.core.ring import slot_count
from services.core.sessions import REPLICATORS, decode_replicators
from services.core.wire import OK
from services.runtime import telemetry
from services.runtime.clock import Clock, Timer
from services.runtime.fleet import Fleet
from services.runtime.peer import SENT

# Neighbours, so that one question about a range of slots is not answered for others as well. Few
# enough that a block is compared in a millisecond where there is nothing to find.
block_slots: Final = 128
block_count: Final = slot_count // block_slots
ask_s: Final = 2.0
answer_s_max: Final = 2.0

log = telemetry.logger(__name__)


def sharer(replicators: Sequence[str], slot: int) -> str:
    """Whose slot it is among these replicators, which are in order."""
    return replicators[slot // block_slots % len(replicators)]


class Shares:
    """Keeps asking the nodes from `start` to `stop`."""

    def __init__(self, replicator_id: str, fleet: Fleet, clock: Clock) -> None:
        # All that live, in order; ourselves among them.
        self.replicators: tuple[str, ...] = (replicator_id,)
        # Told once the slots have been divided anew, of all blocks that are ours by then.
        self.on_change: Callable[[list[slice]], None] = lambda blocks: None
        self._own = replicator_id
        self._fleet = fleet
        self._clock = clock
        # By the ids of live nodes, whom each has named.
        self._told: dict[str, frozenset[str]] = {}
        self._timer: Timer | None = None

    def start(self) -> None:
        self._timer = self._clock.call_later(0.0, self._ask)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def has(self, slot: int) -> bool:
        """Whether this slot is ours to look after."""
        return sharer(self.replicators, slot) == self._own

    def blocks(self) -> list[slice]:
        """All slots that are ours, block by block in order."""
        firsts = range(0, slot_count, block_slots)
        return [slice(first, first + block_slots) for first in firsts if self.has(first)]

    def slots(self) -> list[int]:
        """The same one by one."""
        return [slot for block in self.blocks() for slot in range(block.start, block.stop)]

    def _ask(self) -> None:
        nodes = self._fleet.nodes
        for node in nodes.values():
            heard = partial(self._heard, node.node_id)
            if not node.live or node.link.request(REPLICATORS, b"", heard, answer_s_max) != SENT:
                self._told.pop(node.node_id, None)
        for node_id in self._told.keys() - nodes.keys():
            del self._told[node_id]
        self._divide()
        self._timer = self._clock.call_later(ask_s, self._ask)

    def _heard(self, node_id: str, kind: int, body: bytes) -> None:
        if kind != OK:
            return
        try:
            self._told[node_id] = frozenset(decode_replicators(body))
        except PeerError as error:
            log.warning("no list of replicators", node=node_id, reason=str(error))
            return
        self._divide()

    def _divide(self) -> None:
        found = in_order(self._own, self._told.values())
        if found != self.replicators:
            log.info("slots are divided anew", replicators=", ".join(found))
            self.replicators = found
            self.on_change(self.blocks())


def in_order(own: str, told: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Everybody who was named, and this replicator."""
    return tuple(sorted({own, *(name for names in told for name in names)}))
