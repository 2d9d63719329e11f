"""Why strangers were turned away, told in a bounded number of log lines.

Anyone who reaches the port can be refused as often as they like, for reasons and under names that
hold words of their own: each is told once in a period, so many of them at most, and the rest
counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from services.runtime import telemetry
from services.runtime.link_limits import LinkCounters

log = telemetry.logger(__name__)

Address: TypeAlias = tuple[str, int] | None

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
        self._told: set[tuple[str, str | None, str | None]] = set()
        self._untold = 0

    def refused(self, reason: str, address: Address = None, peer: str | None = None) -> None:
        """`peer` is who the stranger says it is, if it has come so far: nothing proves it."""
        self._counters.connections_refused += 1
        now_s = self._monotonic_s()
        if now_s - self._period_began_s >= period_s:
            if self._untold:
                log.warning("more links were refused", count=self._untold)
            self._period_began_s = now_s
            self._told.clear()
            self._untold = 0
        host = address[0] if address is not None else None
        # Not by port: every attempt of one stranger has another.
        refusal = reason, peer, host
        if refusal in self._told or len(self._told) >= reasons_max:
            self._untold += 1
        else:
            self._told.add(refusal)
            about = {"peer": peer, "host": host, "port": address[1] if address else None}
            known = {name: value for name, value in about.items() if value is not None}
            log.warning("link refused", reason=reason, **known)


def address_of(transport: asyncio.BaseTransport) -> Address:
    """Where the other end of a connection is, if that is known."""
    found = transport.get_extra_info("peername")
    return (found[0], found[1]) if isinstance(found, tuple) else None
