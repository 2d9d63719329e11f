"""What comparing replicas has found and sent, and how each slot was when it was compared last."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median_low
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

    def ages(self, slots: Iterable[int], now_s: float) -> Ages:
        """Of these slots; zeros if there are none."""
        since_s = [self._compared_s[slot] for slot in slots]
        if not since_s:
            return Ages(0.0, 0.0, 0)
        never = since_s.count(_never)
        ages_s = [now_s - (self.began_s if at_s == _never else at_s) for at_s in since_s]
        return Ages(round(max(ages_s), 3), round(median_low(ages_s), 3), never)
