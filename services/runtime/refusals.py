"""Why strangers were turned away, told in a bounded number of log lines.

Anyone who reaches the port can be refused as often as they like, for reasons that hold words of
their own: each reason is told once in a period, so many reasons at most, and the rest counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from services.runtime import telemetry
from services.runtime.link_limits import LinkCounters

log = telemetry.logger(__name__)

# Often enough to see that it goes on.
period_s: Final = 60.0
# A cluster that is set up wrongly is refused for a handful of reasons.
reasons_max: Final = 16


class Refusals:
    def __init__(
        self, counters: LinkCounters, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._counters = counters
        self._monotonic_s = monotonic_s
        self._period_began_s = -period_s
        self._told: set[str] = set()
        self._untold = 0

    def refused(self, reason: str) -> None:
        self._counters.connections_refused += 1
        now_s = self._monotonic_s()
        if now_s - self._period_began_s >= period_s:
            if self._untold:
                log.warning("more links were refused", count=self._untold)
            self._period_began_s = now_s
            self._told.clear()
            self._untold = 0
        if reason in self._told or len(self._told) >= reasons_max:
            self._untold += 1
        else:
            self._told.add(reason)
            log.warning("link refused", reason=reason)
