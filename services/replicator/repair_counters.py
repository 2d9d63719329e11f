"""What comparing replicas has found and sent, and how each slot was when it was compared last."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.core.ring import slot_count

# Below any time that has passed since a clock began, and yet below zero when it is negated.
_instant_s: Final = 1e-9


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
    """For how long slots have not been compared; those that `never` were, while they are ours."""

    slots: int
    oldest_s: float
    median_s: float
    never: int


class SlotStates:
    """By slot, what the last comparison has told, and when the last with all owners was."""

    def __init__(self, now_s: float) -> None:
        # How much there is to collect.
        self.ended: array[int] = array("I", bytes(4 * slot_count))
        # Whether the pass before found something to collect as well.
        self.had_ended = bytearray(slot_count)
        # When that was; below zero, since when the slot has been ours to compare and was not.
        self._compared_s: array[float] = array("d", bytes(8 * slot_count))
        self.take_over(slice(0, slot_count), now_s)

    def take_over(self, slots: slice, now_s: float) -> None:
        """These are ours from now on; when another has compared them we do not know."""
        count = len(range(*slots.indices(slot_count)))
        self._compared_s[slots] = array("d", [-max(now_s, _instant_s)]) * count

    def compared(self, slot: int, now_s: float) -> None:
        self._compared_s[slot] = now_s

    def ages(self, blocks: Iterable[slice], now_s: float) -> Ages:
        """Of these slots; zeros if there are none. One or two milliseconds for all there are."""
        told_s = array("d")
        for block in blocks:
            told_s.extend(self._compared_s[block])
        if not told_s:
            return Ages(0, 0.0, 0.0, 0)
        never = bisect_left(sorted(told_s), 0.0)
        since_s = sorted(map(abs, told_s))
        oldest_s, median_s = now_s - since_s[0], now_s - since_s[len(since_s) // 2]
        return Ages(len(since_s), round(oldest_s, 3), round(median_s, 3), never)

    def to_collect(self, blocks: Iterable[slice]) -> int:
        """How much there is, in these slots."""
        return sum(sum(self.ended[block]) for block in blocks)
