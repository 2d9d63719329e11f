"""Keeps numbered hints on the real disk as fast as they become durable, and says which are kept.

python -m tests.integration.programs.keep_hints DIRECTORY
"""

from __future__ import annotations

import asyncio
import random
import sys
from functools import partial
from pathlib import Path

from services.replicator.hint_log import HintLog
from services.runtime.clock import SystemClock
from services.runtime.disk import SystemDisk
from services.runtime.log.frame import Corrupt

under_way_max = 64
segment_bytes = 64 << 10


def record_of(number: int) -> bytes:
    return b"%012d" % number + bytes(number % 700)


def hint_log(disk: SystemDisk, path: Path) -> HintLog:
    return HintLog(
        disk,
        path,
        SystemClock(),
        random.Random(),
        on_ready=lambda: None,
        on_damage=_damaged,
        on_failure=_failed,
        segment_bytes=segment_bytes,
    )


def _damaged(damage: Corrupt) -> None:
    raise damage


def _failed(error: OSError) -> None:
    raise error


async def keep(path: Path) -> None:
    hints = hint_log(SystemDisk(), path)
    for _ in hints.recover():
        pass
    number = hints.count
    room = asyncio.Semaphore(under_way_max)

    def kept(number: int) -> None:
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        room.release()

    while True:
        await room.acquire()
        hints.append(1, b"key-%d" % number, record_of(number), partial(kept, number))
        number += 1


if __name__ == "__main__":
    asyncio.run(keep(Path(sys.argv[1])))
