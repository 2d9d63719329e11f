"""What has to be done now and then for tables to stay small: each noun tidies up its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from services.core.errors import ClientError
from services.runtime import telemetry
from services.runtime.loops import Loops

# Nothing waits for it: what has expired is not looked at any more.
period_s: Final = 60.0

log = telemetry.logger("services.usermanager")

Tidy = Callable[[], Awaitable[None]]
Run = Callable[[], Awaitable[None]]


class Upkeep:
    """Tidies everything once a period. Other user managers do the same.

    Each noun has a loop of its own: whatever is wrong with one, the others stay small.
    """

    def __init__(self, tidies: Mapping[str, Tidy], draw: random.Random | None = None) -> None:
        self._tidies = tidies
        # Only so that several user managers do not meet each time.
        self._draw = draw or random.Random()  # noqa: S311

    def start(self, loops: Loops, once: Callable[[Run], Run]) -> None:
        """Start the loops; `once` makes one begin when there is something to tidy."""
        for name, tidy in self._tidies.items():
            loops.start(f"upkeep of {name}", once(partial(self._run, name, tidy)))

    async def _run(self, name: str, tidy: Tidy) -> None:
        """Go on until cancelled. While PostgreSQL is away, what there is to do waits."""
        while True:
            try:
                await tidy()
            except ClientError as error:
                log.warning("upkeep put off", what=name, why=str(error))
            await asyncio.sleep(period_s * self._draw.uniform(0.5, 1.0))
