"""A bug while a node starts ends its process with its traceback said and the right exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from services.core.errors import FatalError, RestartLater
from services.dhtnode.recovery import Recovery
from services.dhtnode.upkeep import Upkeep
from services.runtime.clock import SystemClock
from services.runtime.loops import Loops
from tests.integration.running_node import RunningNode
from tests.waiting import wait_until


async def failure_of(running: RunningNode) -> FatalError | None:
    """What ends the process of a node that is started as its application does it."""
    running.node.open()
    ticking = asyncio.create_task(running.run_disk())
    async with Loops(running.service.fail, SystemClock()) as loops:
        loops.start("start", partial(running.node.start, loops))
        await wait_until(lambda: running.service.failure is not None, "the node gives up")
        await running.node.close()
    ticking.cancel()
    return running.service.failure


async def test_a_bug_in_serving_is_not_said_to_be_one_in_recovering_and_may_pass(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(self: Upkeep) -> None:
        raise ZeroDivisionError("a bug in serving")

    monkeypatch.setattr(Upkeep, "notice", buggy)
    failure = await failure_of(RunningNode())
    assert isinstance(failure, RestartLater)
    assert "node-1 has recovered and then failed to serve" in str(failure)
    assert "a bug in serving" in caplog.text


async def test_a_bug_in_recovering_would_be_met_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(self: Recovery) -> Iterator[None]:
        yield
        raise ZeroDivisionError("a bug in recovering")

    monkeypatch.setattr(Recovery, "steps", buggy)
    failure = await failure_of(RunningNode())
    assert failure is not None
    assert failure.exit_code == FatalError.exit_code
    assert "recovering /data/nodes/node-1 failed" in str(failure)
    assert "a bug in recovering" in caplog.text
