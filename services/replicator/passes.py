"""A pass: some slots, each of which is to be compared once from now on.

A pass takes the slots block by block. What could not be compared stays to be done: the passes of
nodes and of operators come back to it, the regular one leaves it to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.core.ring import slot_count
from services.replicator.comparing import Outcome
from services.replicator.slot_shares import block_count, block_slots
from services.runtime.fleet import FleetNode

_all_slots: Final = range(slot_count)


@dataclass(slots=True)
class Found:
    """What a pass has found and sent so far."""

    slots: int = 0
    keys: int = 0
    records: int = 0
    bytes: int = 0


class Pass:
    """If it is for a node, that one has to be compared with enough others for a majority: what it
    misses of all that was acknowledged as strong, one of them has; and what lies below a floor has
    to be brought by a collection first. Otherwise all owners of a slot have to be compared."""

    def __init__(
        self, began_s: float, slots: Iterable[int] = _all_slots, *, node_id: str | None = None
    ) -> None:
        self.began_s = began_s
        self.found = Found()
        # Why the last slot that could not be compared could not.
        self.trouble: str | None = None
        # The block whose turn it is, and how often all have had theirs.
        self.block = 0
        self.rounds = 0
        # Until when to rest.
        self.resume_s = began_s
        self._node_id = node_id
        self._todo = bytearray(slot_count)
        for slot in slots:
            self._todo[slot] = 1
        self.total = self.left = sum(self._todo)

    def concerns(self, owners: Sequence[FleetNode]) -> bool:
        """Whether a slot that has these owners is any of its business."""
        return self._node_id is None or any(node.node_id == self._node_id for node in owners)

    def wants(self, slot: int) -> bool:
        """Whether this slot is still to be done."""
        return bool(self._todo[slot])

    def wanted(self, block: int) -> list[int]:
        """What is still to be done of this block."""
        first = block * block_slots
        return [slot for slot in range(first, first + block_slots) if self._todo[slot]]

    def unsettled(self) -> list[int]:
        """All that is still to be done."""
        return [slot for slot in _all_slots if self._todo[slot]]

    def advance(self) -> bool:
        """Go on to the next block; whether all have had their turn."""
        self.block = (self.block + 1) % block_count
        self.rounds += not self.block
        return not self.block

    def drop(self, slot: int) -> None:
        """Nothing is to be done of this slot any more."""
        self.left -= self._todo[slot]
        self._todo[slot] = 0

    def settle(self, outcome: Outcome) -> None:
        """Take note of what a comparison came to that began after this pass, of a slot that it
        wants."""
        if outcome.keys:
            self.found.slots += 1
            self.found.keys += outcome.keys
        if self._is_enough(outcome):
            self.drop(outcome.slot)
        else:
            self.trouble = outcome.trouble or "what is below a floor waits for a collection"

    def _is_enough(self, outcome: Outcome) -> bool:
        if self._node_id is None:
            return outcome.by_all
        compared = outcome.by_majority and self._node_id in outcome.compared
        return compared and not outcome.below_floor
