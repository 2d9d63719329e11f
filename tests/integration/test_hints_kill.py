"""Hints on the real disk, kept by a process that is killed."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from services.replicator.hint_log import HintLog
from services.replicator.hint_reading import Hint
from services.runtime.disk import SystemDisk
from tests.integration.programs.keep_hints import hint_log, record_of

rounds = 6


async def keep_until_killed(path: Path, lines: int) -> list[int]:
    """The hints that a process has said to be kept when it was killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.integration.programs.keep_hints", str(path)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    said = [await process.stdout.readline() for _ in range(lines)]
    process.kill()
    said += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    return [int(line) for line in said if line.endswith(b"\n")]


async def read_all(hints: HintLog) -> list[Hint]:
    found: list[Hint] = []
    async with asyncio.timeout(20):
        while len(found) < hints.count:
            found += hints.take(500, 1 << 20)
            await asyncio.sleep(0)
    return found


async def test_no_hint_that_was_said_to_be_kept_is_lost_by_kill_9(tmp_path: Path) -> None:
    draw = random.Random(11)
    path = tmp_path / "hints" / "node-1"
    kept: set[int] = set()
    for _ in range(rounds):
        kept.update(await keep_until_killed(path, draw.randint(1, 800)))
    assert len(kept) > 100
    disk = SystemDisk()
    hints = hint_log(disk, path)
    for _ in hints.recover():
        pass
    found = await read_all(hints)
    assert len(list(path.glob("log-*"))) > 2
    for number, hint in enumerate(found):
        # Also those that nobody was told of, in their order and whole.
        assert (hint.key, hint.record) == (b"key-%d" % number, record_of(number))
    assert kept <= set(range(len(found)))
    hints.delivered(found[-1].sequence, None)
    assert hints.count == 0
    hints.clear()
    disk.close()
    assert list(path.iterdir()) == []
