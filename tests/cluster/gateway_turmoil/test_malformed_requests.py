"""Malformed requests at a real gateway, with an API key and without: it answers and lives on.

FUZZ_REQUESTS=200000 in the environment runs the full figure (`make fuzz`); the report is printed.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.cluster.gateway.answers import put, raw
from tests.cluster.gateway_platform import Caller, Platform, served
from tests.cluster.gateway_turmoil.platform import bugs, descriptors, resident_mib
from tests.integration.raw_bytes import Script, Scripts
from tests.integration.raw_requests import run
from tests.integration.replicator_process import until_metrics

pytestmark = pytest.mark.asyncio(loop_scope="package")

count = int(os.environ.get("FUZZ_REQUESTS", "4000"))
connections = 64
# A heap is as large as the most that was in it at once: of 64 connections that send bodies of
# up to a megabyte, more and more at the same moment, the longer one waits for it. At 320,000
# requests it had not grown since 180,000, and at 60,000 it was 5 % smaller.
warming = max(3_000, count // 4)
parts = min(4, -(-count // 4_000))
# That of who asks for the metrics, and the caller's.
own_connections = 2


class ByAnybody(Scripts):
    """Two of three come with an API key; one is a stranger."""

    def __init__(self, seed: int, lines: Sequence[str]) -> None:
        super().__init__(seed, lines)
        self._strangers = Scripts(seed)

    def script(self, number: int) -> Script:
        return self._strangers.script(number) if number % 3 == 0 else super().script(number)


async def test_malformed_requests_do_a_gateway_no_harm(platform: Platform, robot: Caller) -> None:
    strong = robot.saying(X_Consistency="strong")
    async with served(platform.gateway()) as gateway:
        await gateway.until_whole()
        caller = strong.at(gateway)
        await put(caller, "/v1/kv/spared", b"as it was")
        host, port = "127.0.0.1", gateway.port
        scripts = ByAnybody(2, robot.lines)
        await run(host, port, scripts, range(warming), connections=connections)
        await at_rest(caller)
        open_before, memory_mib = descriptors(gateway), [resident_mib(gateway)]
        statuses: Counter[int] = Counter()
        scripts = ByAnybody(1, robot.lines)
        for part in range(parts):
            numbers = range(part * count // parts, (part + 1) * count // parts)
            report = await run(host, port, scripts, numbers, connections=connections)
            sys.stdout.write("\n" + "\n".join(report.lines()) + "\n")
            assert not report.wrong, report
            statuses += report.statuses
            await at_rest(caller)
            memory_mib.append(resident_mib(gateway))
        told = " ".join(f"{mib:.1f}" for mib in memory_mib)
        sys.stdout.write(f"memory in MiB when warm, and after each of {parts} parts: {told}\n")
        assert max(memory_mib) < 1.1 * memory_mib[0], told
        assert descriptors(gateway) <= open_before + 2
        assert bugs(gateway) == []
        # It must have been malformed for the most part, and refused in every way there is; but in
        # part it got through to what it was about.
        assert statuses[400] > count / 4
        assert {200, 401, 404, 409, 413, 431} <= statuses.keys()
        assert statuses[200] > count / 20
        assert await gateway.terminate() == 0


async def at_rest(caller: Caller) -> None:
    """Until nothing is under way. Those whose answer must not be overtaken by a reset are kept for
    a moment. What was there before all this is as it was."""
    assert raw(await caller.get("/v1/kv/spared")) == b"as it was"
    await until_metrics(caller.gateway, http_connections=own_connections, http_requests_in_flight=1)
