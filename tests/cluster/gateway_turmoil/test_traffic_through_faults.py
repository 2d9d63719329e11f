"""Customers go on while replicas and replicators are killed, paused and brought back.

TRAFFIC_SECONDS=30 in the environment runs the full figure (`make traffic`); the latencies are
printed.
"""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from tests.cluster.gateway_platform import Caller, Platform
from tests.cluster.gateway_turmoil.customers import counting_work, customers
from tests.cluster.gateway_turmoil.platform import paused
from tests.integration.node_process import NodeProcess
from tests.integration.replicator_process import until_metrics

pytestmark = pytest.mark.asyncio(loop_scope="package")

seconds = float(os.environ.get("TRAFFIC_SECONDS", "6"))
connections = 64
writes = {"PUT", "strong PUT", "incr"}


async def killed_for(process: NodeProcess, seconds: float) -> None:
    await process.kill()
    await asyncio.sleep(seconds)
    await process.serve()


async def test_no_client_notices_that_a_replica_is_killed_and_another_falls_silent(
    platform: Platform, robot: Caller
) -> None:
    first, second, _ = platform.cluster.nodes
    async with customers(robot, connections) as report:
        await asyncio.sleep(seconds / 6)
        await killed_for(first, seconds / 4)
        await until_metrics(first, catching_up=0)
        async with paused(second):
            await asyncio.sleep(seconds / 4)
        await asyncio.sleep(seconds / 6)
        await until_metrics(second, catching_up=0)
    sys.stdout.write(f"\n{report}\n")
    assert not report.wrong, report.wrong[:3]
    assert not report.errors, report.first_errors
    assert not report.unknown
    assert report.answers > 100 * seconds


async def test_a_replicator_that_dies_takes_no_more_along_than_what_it_was_asked(
    platform: Platform, robot: Caller
) -> None:
    async with customers(robot, connections, counting_work) as report:
        for replicator in platform.cluster.replicators:
            await asyncio.sleep(seconds / 8)
            await killed_for(replicator, seconds / 4)
            await platform.until_whole()
        await asyncio.sleep(seconds / 8)
    sys.stdout.write(f"\n{report}\n")
    assert not report.wrong, report.wrong[:3]
    assert not report.errors, report.first_errors
    assert set(report.unknown) <= writes, "reads have no outcome to be unknown"
    # Each customer has asked for one thing when a replicator dies, and not each of that one.
    assert report.unknown.total() <= 2 * connections
