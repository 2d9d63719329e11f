"""What comparing replicas has found and sent, and how each slot was when it was compared last."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from services.core.ring import slot_count

# A slot that was never compared by this process.
_never: Final = -1.0


@dataclass(slots=True)
class RepairCounters:
    """Plain integers that `/metrics` reads. Whatever is found or sent counts each time."""

    passes: int = 0
    slots_compared: int = 0
    # Not with all their owners, or not to the end.
    slots_unfinished: int = 0
    slots_differing: int = 0
    leaves_differing: int = 0
    keys_differing: int = 0
    # Newer than what is compared: on their way already.
    keys_young: int = 0
    # Records that a replica has taken, with their keys.
    records_sent: int = 0
    bytes_sent: int = 0
    # Records that a replica had no use for, having a newer one by then.
    records_newer: int = 0
    # Those refused at or below the floor, which only a session can bring.
    below_floor: int = 0
    # And those refused for whatever else.
    records_refused: int = 0
    # Questions that were not answered, or not with sense.
    unanswered: int = 0


@dataclass(slots=True, frozen=True)
class Ages:
    """For how long slots have not been compared; those never compared, since the start."""

    slots: int
    oldest_s: float
    median_s: float
    never: int


@dataclass(slots=True)
class SlotStates:
    """By slot, what the last comparison with all owners has told."""

    began_s: float
    # How much there is to collect.
    ended: array[int] = field(default_factory=lambda: array("I", bytes(4 * slot_count)))
    # Whether the pass before found something to collect as well.
    had_ended: bytearray = field(default_factory=lambda: bytearray(slot_count))
    _compared_s: array[float] = field(default_factory=lambda: array("d", [_never]) * slot_count)

    def compared(self, slot: int, now_s: float, ended: int) -> None:
        self._compared_s[slot] = now_s
        self.ended[slot] = ended

    def ages(self, blocks: Iterable[slice], now_s: float) -> Ages:
        """Of these slots; zeros if there are none. About a millisecond for all there are."""
        since_s = array("d")
        for block in blocks:
            since_s.extend(self._compared_s[block])
        if not since_s:
            return Ages(0, 0.0, 0.0, 0)
        never = since_s.count(_never)
        # Those never compared are the first in order, and as old as we are.
        ordered = sorted(since_s)
        oldest_s, median_s = ordered[0], ordered[len(ordered) // 2]
        return Ages(len(ordered), self._age_s(oldest_s, now_s), self._age_s(median_s, now_s), never)

    def to_collect(self, blocks: Iterable[slice]) -> int:
        """How much there is, in these slots."""
        return sum(sum(self.ended[block]) for block in blocks)

    def _age_s(self, since_s: float, now_s: float) -> float:
        return round(now_s - (self.began_s if since_s == _never else since_s), 3)
