"""Who a replicator without a directory is: PostgreSQL gives it a stamper, and knows earlier ones.

A stamper is never given twice. So a name that has had one before tells that a directory was lost,
and with it what was kept there for nodes that were away.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Final

from services.core.errors import RetryLater, UnknownOutcome
from services.replicator.map_store import MapStore
from services.runtime import telemetry

# How often a new replicator asks PostgreSQL, while that is away, who it is.
pause_s_min: Final = 0.2
pause_s_max: Final = 5.0

log = telemetry.logger(__name__)


class Allotment:
    def __init__(self, store: MapStore, replicator_id: str, draw: random.Random) -> None:
        # Why PostgreSQL has not given us a stamper yet.
        self.trouble: str | None = None
        # How many replicators of our name have had one before, once we have ours, and the nodes
        # for which one of those may have kept something.
        self.earlier = 0
        self.owed: frozenset[str] = frozenset()
        self._store = store
        self._name = replicator_id
        self._draw = draw

    async def stamper(self) -> int:
        """A new one, however long that takes."""
        pause_s = pause_s_min
        earlier: int | None = None
        while True:
            try:
                if earlier is None:
                    earlier = await self._store.stampers_of(self._name)
                if earlier and (newest := await self._store.newest()) is not None:
                    self.owed = frozenset(newest.nodes)
                stamper = await self._store.allot_stamper(self._name)
            except (RetryLater, UnknownOutcome) as error:
                if self.trouble != error.detail:
                    log.warning("no stamper yet", reason=error.detail)
                self.trouble = error.detail
            else:
                self.trouble = None
                self.earlier = earlier
                return stamper
            await asyncio.sleep(pause_s * self._draw.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, pause_s_max)

    def warn_of_earlier(self, directory: Path) -> None:
        log.warning(
            "this directory is new, and the replicator of this name is not",
            directory=str(directory),
            replicator=self._name,
            earlier_stampers=self.earlier,
            meaning="its directory was lost, and with it the hints there: all replicas are "
            "compared to find what they miss; or another replicator has the same REPLICATOR_ID: "
            "give each its own",
        )
