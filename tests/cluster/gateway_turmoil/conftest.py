"""One platform for all tests of this package; each leaves it whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.cluster.gateway_platform import Caller, Platform, Tenant, new_name
from tests.cluster.gateway_turmoil.platform import bugs, turmoil_platform
from tests.integration.database import SharedServer, fresh_database


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def _platform(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[Platform]:
    async with (
        fresh_database(postgres_server, migrated_template) as address,
        turmoil_platform(tmp_path_factory.mktemp("turmoil"), address) as platform,
    ):
        yield platform


@pytest_asyncio.fixture(loop_scope="package")
async def platform(_platform: Platform) -> AsyncIterator[Platform]:
    """Whole before the test, and whole after it; whatever it did, no service calls it a bug."""
    yield _platform
    await _platform.until_whole()
    cluster = _platform.cluster
    for process in (_platform.fast, _platform.usermanager, *cluster.replicators, *cluster.nodes):
        assert bugs(process) == [], process.node_id


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def ada(_platform: Platform) -> Tenant:
    """A tenant whom no rate limit stops."""
    return await _platform.tenant()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def _robot(ada: Tenant) -> Caller:
    return await ada.caller()


@pytest.fixture
def robot(_robot: Caller) -> Caller:
    """Whoever may do everything to Ada's keys, in a namespace of the test's own."""
    return _robot.saying(X_Namespace=new_name("turmoil"))
