"""Bugs in the supervisor's own code: whatever they are, every service gets its orderly stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import pytest

from services.cli.demo import DemoNews
from services.cli.rows import Restarts, Row, Stage
from tests.integration.supervisor_bench import Bench, row
from tests.waiting import wait_until


async def ready() -> str | None:
    return None


async def test_a_probe_that_is_broken_is_a_reason_not_to_be_ready(bench: Bench) -> None:
    asked = 0

    async def broken() -> str | None:
        nonlocal asked
        asked += 1
        raise ValueError("a bug in a probe")

    node = row("node-1", Stage.NODES, bench.says("node-1"))
    gateway = row("gateway", Stage.GATEWAY, broken, ready_s_max=0.5)
    with pytest.raises(Exception, match=r"not ready within 0\.5 s: its probe failed with Val"):
        await bench.supervise(node, gateway)
    assert "left in order" in bench.log("node-1")
    assert asked > 1
    assert bench.log("gateway").count("Traceback") == 1, "ten times a second would be a flood"


async def test_a_service_whose_probe_recovers_gets_ready(bench: Bench) -> None:
    asked = 0

    async def broken_once() -> str | None:
        nonlocal asked
        asked += 1
        return None if asked > 1 else str(1 // 0)

    supervisor = asyncio.create_task(bench.supervise(row("node-1", Stage.NODES, broken_once)))
    await wait_until(lambda: "[up] ready" in bench.log("node-1"), "it is ready after all")
    await wait_until(lambda: "up" in bench.log("node-1").splitlines(), "it can be asked to stop")
    os.kill(os.getpid(), signal.SIGTERM)
    await supervisor
    assert "left in order" in bench.log("node-1")


async def test_a_bug_in_watching_one_service_stops_all_in_order_and_is_raised(
    bench: Bench,
) -> None:
    node = row("node-1", Stage.NODES, bench.says("node-1"))
    no_number = Restarts(first_s="soon")  # type: ignore[arg-type]
    dying = (sys.executable, "-c", "pass")
    broken = Row("gateway", Stage.GATEWAY, dying, probe=ready, restarts=no_number)
    async with asyncio.timeout(30):
        with pytest.raises(ExceptionGroup) as caught:
            await bench.supervise(node, broken)
    assert [type(bug) for bug in caught.value.exceptions] == [TypeError]
    assert "left in order" in bench.log("node-1")


async def test_a_bug_in_the_demo_account_leaves_everything_up_and_is_told(bench: Bench) -> None:
    async def broken() -> DemoNews:
        raise ValueError("a bug about the demo")

    node = row("node-1", Stage.NODES, bench.says("node-1"))
    supervisor = asyncio.create_task(bench.supervise(node, find_demo=broken))
    document = bench.directory.path / "up.json"
    await wait_until(document.exists, "it is up")
    assert json.loads(document.read_text())["demo"] is None
    os.kill(os.getpid(), signal.SIGTERM)
    await supervisor
    assert "  no demo account: looking for it failed with ValueError(" in bench.shown.read_text()
    assert "Traceback" in bench.log("up")
    assert "left in order" in bench.log("node-1")


async def test_a_stop_does_not_wait_for_the_demo_account(bench: Bench) -> None:
    asked = asyncio.Event()

    async def endless() -> DemoNews:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    node = row("node-1", Stage.NODES, bench.says("node-1"))
    supervisor = asyncio.create_task(bench.supervise(node, find_demo=endless))
    async with asyncio.timeout(30):
        await asked.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await supervisor
    assert "left in order" in bench.log("node-1")
    assert "Everything is ready" not in bench.shown.read_text()


async def test_a_cancelled_supervisor_stops_all_in_order(bench: Bench) -> None:
    node = row("node-1", Stage.NODES, bench.says("node-1"))
    supervisor = asyncio.create_task(bench.supervise(node))
    await wait_until(
        lambda: bench.shown.exists() and "Everything is ready" in bench.shown.read_text(),
        "it is up",
    )
    supervisor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervisor
    assert "left in order" in bench.log("node-1")
