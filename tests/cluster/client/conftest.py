"""One platform for all tests of commands that are clients; each leaves it whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.cluster.client.terminal import Terminal
from tests.cluster.gateway_platform import Platform, Tenant, gateway_platform, new_name
from tests.integration.database import SharedServer, fresh_database


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[Platform]:
    async with (
        fresh_database(postgres_server, migrated_template) as address,
        gateway_platform(tmp_path_factory.mktemp("client"), address, "fast") as platform,
    ):
        yield platform


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def ada(platform: Platform) -> Tenant:
    """A tenant whom no rate limit stops."""
    return await platform.tenant()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def _key(ada: Tenant) -> str:
    return (await ada.make_key()).key


@pytest.fixture
def terminal(platform: Platform, _key: str) -> Terminal:
    """Where Ada types commands, in a namespace of the test's own."""
    return Terminal(new_name("client"), YDHT_URL=platform.fast.url, YDHT_API_KEY=_key)
