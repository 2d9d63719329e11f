"""The one way tests wait for what happens elsewhere: until it has, or fail saying what did not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Far more than anything waited for takes on a busy machine; reaching it is a failure. 30 s were
# not enough for a whole platform to start on two cores with ten times as much to do.
patience_s = 60.0
poll_s = 0.02


async def wait_until(
    condition: Callable[[], T | None], what: str, *, seconds: float = patience_s
) -> T:
    """Return the condition's first result that is neither None nor False.

    `what` completes the sentence "waited in vain until ...".
    """
    try:
        async with asyncio.timeout(seconds):
            while (result := condition()) is None or result is False:  # noqa: ASYNC110  Nothing tells.
                await asyncio.sleep(poll_s)
            return result
    except TimeoutError:
        raise AssertionError(f"waited {seconds:g} s in vain until {what}") from None
