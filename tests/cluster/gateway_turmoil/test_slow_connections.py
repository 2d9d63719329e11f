"""A thousand clients that send a byte a second cost those who do not next to nothing.

TRAFFIC_SECONDS=30 in the environment runs the full figure (`make traffic`); the figures are
printed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from statistics import median

import pytest

from tests.cluster.gateway_platform import Caller, GatewayProcess, Platform, served
from tests.cluster.gateway_turmoil.platform import connected, descriptors, resident_mib
from tests.cluster.gateway_turmoil.slow_crowd import slow_crowd
from tests.integration.lane_world import Client, request
from tests.integration.replicator_process import until_metrics

pytestmark = pytest.mark.asyncio(loop_scope="package")

seconds = float(os.environ.get("TRAFFIC_SECONDS", "6"))
slow_clients = 1_000
# Each way, in turn.
rounds = 5
round_s = seconds / rounds / 2
customers = 16
# What a customer does when it has its answer: more than nothing, so that no core is always busy.
pause_s = 0.01
# Of a connection in the middle of a request: the protocol, its transport, the parser, its buffers.
connection_kib_max = 40


async def p99_ms(clients: list[Client], get: bytes, put: bytes) -> float:
    """Of reads and writes by all of these, for as long as a round takes."""
    took_s: list[float] = []
    until_s = time.monotonic() + round_s

    async def ask(client: Client) -> None:
        turn = 0
        while time.monotonic() < until_s:
            turn += 1
            began_s = time.perf_counter()
            answer = await client.ask(put if turn % 4 == 0 else get)
            took_s.append(time.perf_counter() - began_s)
            assert answer.status == 200
            await asyncio.sleep(pause_s)

    await asyncio.gather(*map(ask, clients))
    took_s.sort()
    return took_s[len(took_s) * 99 // 100] * 1e3


@pytest.mark.alone
async def test_a_thousand_slow_senders_do_not_make_others_wait(
    platform: Platform, robot: Caller
) -> None:
    get = request("GET", "/v1/kv/a", *robot.lines)
    put = request("PUT", "/v1/kv/a", *robot.lines, body=b"v" * 100)
    without: list[float] = []
    beside: list[float] = []
    async with (
        served(platform.gateway()) as gateway,
        connected(gateway, customers) as clients,
        slow_crowd(gateway.port, slow_clients, robot.lines) as slow,
    ):
        await gateway.until_whole()
        assert (await clients[0].ask(put)).status == 200
        await p99_ms(clients, get, put)
        open_before, mib_before = descriptors(gateway), resident_mib(gateway)
        mib_beside = open_beside = 0.0
        for _ in range(rounds):
            without.append(await p99_ms(clients, get, put))
            async with slow.present():
                await until_connections(gateway, slow_clients + customers)
                beside.append(await p99_ms(clients, get, put))
                mib_beside = max(mib_beside, resident_mib(gateway))
                open_beside = max(open_beside, descriptors(gateway))
            await until_connections(gateway, customers)
        open_after = descriptors(gateway)
        sys.stdout.write(
            f"\np99 without them {told(without)}; beside {slow_clients:,} slow ones "
            f"{told(beside)}: x{median(beside) / median(without):.2f}\n"
            f"memory {mib_before:.1f} MiB, then {mib_beside:.1f}; descriptors {open_before}, then "
            f"{open_beside:.0f}, then {open_after}\n"
        )
    assert median(beside) < 2 * median(without)
    assert mib_beside - mib_before < slow_clients * connection_kib_max / 1024
    assert open_beside <= open_before + slow_clients + 2
    assert open_after <= open_before + 2


def told(p99s_ms: list[float]) -> str:
    return f"{median(p99s_ms):.2f} ms ({min(p99s_ms):.2f} to {max(p99s_ms):.2f})"


async def until_connections(gateway: GatewayProcess, count: int) -> None:
    # And whoever asks for metrics.
    await until_metrics(gateway, http_connections=count + 1)
