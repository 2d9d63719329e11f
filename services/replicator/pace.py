"""How fast replicas are compared and mended: so many records and so many bytes a second, at most.

What is under way costs nodes the time that clients want of them. So each message has a price in
both, and the next one waits until what was spent could have been spent at the lower rates.
"""

from __future__ import annotations

from typing import Final

from services.runtime.clock import Clock

# How far spending may run ahead: what a late timer costs, and one message of the usual size.
burst_s: Final = 0.02


class Pace:
    """`spend` whenever something is sent or heard, and send no more before `wait_s` are over."""

    def __init__(self, clock: Clock, records_per_s: int, bytes_per_s: int) -> None:
        self._clock = clock
        self._record_s = 1 / records_per_s
        self._byte_s = 1 / bytes_per_s
        # By when everything so far would have been spent at the rates.
        self._records_until_s = self._bytes_until_s = 0.0

    def spend(self, records: int, size_bytes: int) -> None:
        now_s = self._clock.monotonic_s()
        self._records_until_s = max(self._records_until_s, now_s) + records * self._record_s
        self._bytes_until_s = max(self._bytes_until_s, now_s) + size_bytes * self._byte_s

    @property
    def wait_s(self) -> float:
        """How long to send nothing; 0 if something may be sent now."""
        ahead_s = max(self._records_until_s, self._bytes_until_s) - self._clock.monotonic_s()
        return ahead_s if ahead_s > burst_s else 0.0
