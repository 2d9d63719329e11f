"""Thousands of malformed requests at a service of its own: it answers, closes and lives on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.integration.lane_process import lane_process
from tests.integration.lane_world import Client, get
from tests.integration.raw_bytes import Scripts, kinds
from tests.integration.raw_requests import run

count = 3000


def test_the_same_seed_draws_the_same_scripts_of_every_kind() -> None:
    drawn = [Scripts(7).script(number) for number in range(500)]
    assert drawn == [Scripts(7).script(number) for number in range(500)]
    assert drawn != [Scripts(8).script(number) for number in range(500)]
    assert {script.kind for script in drawn} == {kind.__name__ for kind in kinds}


@pytest.mark.parametrize("seed", [1])
async def test_malformed_requests_do_no_harm(tmp_path: Path, seed: int) -> None:
    async with lane_process(tmp_path) as (child, port):
        # What a process takes to be warm is no growth: buffers of megabytes have been there once.
        await run("127.0.0.1", port, Scripts(seed + 1), range(count))
        report = await run(
            "127.0.0.1", port, Scripts(seed), range(count), connections=64, pid=child.pid
        )
        assert not report.wrong, "\n".join(report.lines())
        assert report.growth < 0.1, report
        # It must have been malformed for the most part, and refused in every way there is.
        assert report.statuses[400] > count / 4
        assert {200, 404, 413, 431} <= report.statuses.keys()
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        assert (await client.ask(get("a"))).status == 404
        await client.close()
        assert child.returncode is None
