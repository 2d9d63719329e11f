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
from tests.integration.lane_world import Client, request

SlowSenders = dict[tuple[LaneName, str], Client]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def _started(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[tuple[Platform, SlowSenders]]:
    async with (
        fresh_database(postgres_server, migrated_template) as address,
        gateway_platform(tmp_path_factory.mktemp("platform"), address) as platform,
    ):
        senders: SlowSenders = {}
        # Whoever has no API key is refused by the head.
        key = (await (await platform.tenant()).make_key()).key
        head = request("PUT", "/v1/kv/slow", f"X-API-Key: {key}", "Content-Length: 9")
        # Of a head the fast lane alone says what was wrong; without it the connection is closed.
        begun: dict[tuple[LaneName, str], bytes] = {
            ("fast", "head"): head[:-2],
            ("fast", "body"): head + b"part",
            ("application", "body"): head + b"part",
        }
        for (lane, what), sent in begun.items():
            sender = senders[lane, what] = await platform.gateways[lane].connect()
            sender.send(sent)
        yield platform, senders
        for sender in senders.values():
            await sender.close()


@pytest.fixture(scope="package")
def platform(_started: tuple[Platform, SlowSenders]) -> Platform:
    return _started[0]


@pytest.fixture(scope="package")
def slow_senders(_started: tuple[Platform, SlowSenders]) -> SlowSenders:
    """Clients that have begun to send a head or a body, and never go on: by the time that a test
    looks at them, which runs last, a gateway has waited for long."""
    return _started[1]


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
