"""What every test run has in common: the event loop, and how many examples are tried."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import uvloop
from hypothesis import settings

from tests.sources import run_sources

run_sources()

pytest_plugins = [
    "tests.integration.database",
    "tests.integration.supervisor_bench",
    "tests.scratch",
    "tests.side_by_side",
]

# Shared machines stall: an example that took long is no finding. `make proof` tries many more.
# CI draws the same examples for the same code, so that what it says is about the change; whoever
# runs the tests by hand explores.
settings.register_profile(
    "ci", deadline=None, max_examples=100, derandomize=bool(os.environ.get("CI"))
)
settings.register_profile("proof", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Coroutines are tested on the loop that services run on."""
    return {"uvloop": uvloop.new_event_loop}
