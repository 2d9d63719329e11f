"""One platform for all tests of the gateway, started with the first and stopped with the last."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.cluster.gateway_platform import (
    Caller,
    GatewayProcess,
    LaneName,
    Platform,
    Tenant,
    gateway_platform,
    lane_names,
    new_name,
)
from tests.integration.database import SharedServer, fresh_database


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[Platform]:
    async with (
        fresh_database(postgres_server, migrated_template) as address,
        gateway_platform(tmp_path_factory.mktemp("platform"), address) as platform,
    ):
        yield platform


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def ada(platform: Platform) -> Tenant:
    """A tenant whom no rate limit stops."""
    return await platform.tenant()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def _robot(ada: Tenant) -> Caller:
    return await ada.caller()


@pytest.fixture(params=lane_names)
def gateway(request: pytest.FixtureRequest, platform: Platform) -> GatewayProcess:
    """Each test that asks for it is run over both lanes."""
    lane: LaneName = request.param
    return platform.gateways[lane]


@pytest.fixture
def robot(_robot: Caller, gateway: GatewayProcess) -> Caller:
    """Whoever may do everything to Ada's keys, in a namespace of the test's own."""
    return _robot.at(gateway).saying(X_Namespace=new_name("namespace"))
