"""The log of changes whose outcome is unknown, by the ids that their clients were told.

A link that is lost leaves thousands of them at once, and a line for each, of 40 us, would hold up
everybody else for most of a second. So many are in one line, and a line is in one turn of the loop.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from services.runtime import telemetry
from services.runtime.clock import Clock

# A line of the log is cut after 16 KiB, and an id may have 128 characters.
ids_per_line_max: Final = 64
# As many as can be pending at eight replicators.
waiting_max: Final = 8 * 16_384

log = telemetry.logger("services.gateway")


class UnknownOutcomes:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[str] = deque()
        self._unnamed = 0

    def note(self, operation_id: str) -> None:
        """Log it, with what comes in the same turn of the loop."""
        if len(self._waiting) >= waiting_max:
            self._unnamed += 1
            return
        self._waiting.append(operation_id)
        if len(self._waiting) == 1:
            self._clock.call_later(0.0, self._write_on)

    def close(self) -> None:
        """Log all that waits."""
        while self._waiting:
            self._write_line()

    def _write_on(self) -> None:
        if self._waiting:
            self._write_line()
        if self._waiting:
            self._clock.call_later(0.0, self._write_on)

    def _write_line(self) -> None:
        ids = list(islice(self._waiting, ids_per_line_max))
        for _ in ids:
            self._waiting.popleft()
        unnamed, self._unnamed = self._unnamed, 0
        log.warning("changes have an unknown outcome", operation_ids=" ".join(ids), others=unnamed)
