"""Malformed requests at a real gateway, with an API key and without: it answers and lives on.

FUZZ_REQUESTS=200000 in the environment runs the full figure (`make fuzz`); the report is printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import pytest

from tests.cluster.gateway.answers import put, raw
from tests.cluster.gateway_platform import Caller, Platform, served
from tests.cluster.gateway_turmoil.platform import bugs, descriptors
from tests.integration.raw_bytes import Script, Scripts
from tests.integration.raw_requests import run
from tests.integration.replicator_process import until_metrics

pytestmark = pytest.mark.asyncio(loop_scope="package")

count = int(os.environ.get("FUZZ_REQUESTS", "4000"))
connections = 64
# With these, what every process takes to be warm has been there once.
warming = max(3_000, count // 10)

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
        host, port, pid = "127.0.0.1", gateway.port, gateway.process.pid
        await run(host, port, ByAnybody(2, robot.lines), range(warming), connections=connections)
        await until_metrics(gateway, http_connections=own_connections)
        open_before = descriptors(gateway)
        report = await run(
            host, port, ByAnybody(1, robot.lines), range(count), connections=connections, pid=pid
        )
        lines = "\n".join(report.lines())
        sys.stdout.write(f"\n{lines}\n")
        assert not report.wrong, lines
        assert report.growth < 0.1, lines
        # Those whose answer must not be overtaken by a reset are kept for a moment.
        await until_metrics(gateway, http_connections=own_connections)
        assert descriptors(gateway) <= open_before + 2
        assert bugs(gateway) == []
        # It must have been malformed for the most part, and refused in every way there is; but in
        # part it got through to what it was about.
        assert report.statuses[400] > count / 4
        assert {200, 401, 404, 409, 413, 431} <= report.statuses.keys()
        assert report.statuses[200] > count / 20
        assert raw(await caller.get("/v1/kv/spared")) == b"as it was"
        metrics = await gateway.metrics()
        assert metrics["http_requests_in_flight"] == 1
        assert await gateway.terminate() == 0
