"""What only shows once a gateway has waited for long, by both lanes."""

from __future__ import annotations

import asyncio
import json

import pytest

from services.runtime.client_connections import receive_s_max
from tests.cluster.gateway_platform import LaneName, Platform
from tests.integration.lane_world import Client, request

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize(
    ("lane", "what"), [("fast", "head"), ("fast", "body"), ("application", "body")]
)
async def test_who_does_not_go_on_sending_is_told_so_and_left(
    platform: Platform,
    slow_senders: dict[tuple[LaneName, str], Client],
    lane: LaneName,
    what: str,
) -> None:
    client = slow_senders[lane, what]
    async with asyncio.timeout(receive_s_max + 10):
        head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close" in head.lower()
    assert json.loads(body)["code"] == "request_timeout"
    other = await platform.gateways[lane].connect()
    assert (await other.ask(request("GET", "/health"))).status == 200
    await other.close()
