"""Every contract of links is tried in both worlds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract.link_worlds import FakeWorld, RealWorld, World


@pytest_asyncio.fixture(params=[RealWorld, FakeWorld])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    one: World = request.param()
    yield one
    await one.close()
