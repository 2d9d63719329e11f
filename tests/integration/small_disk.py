"""A file system of a few megabytes, to be filled to its last page.

Only root may mount one. Others do so as the root of a namespace of their own, in a process that
is started for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


async def succeeds(*command: str) -> bool:
    try:
        process = await asyncio.create_subprocess_exec(*command)
    except FileNotFoundError:
        return False
    return await process.wait() == 0


@asynccontextmanager
async def small_disk(directory: Path, mebibytes: int) -> AsyncIterator[bool]:
    """Mount a file system of this size; False if this process may not."""
    await asyncio.to_thread(directory.mkdir)
    options = f"size={mebibytes}m,mode=0700"
    mounted = await succeeds("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory))
    try:
        yield mounted
    finally:
        if mounted:
            assert await succeeds("umount", "--lazy", str(directory))


async def run_where_mounting_is_allowed(*arguments: str) -> None:
    """Run Python with these arguments, as the root of a namespace of its own."""
    assert "INSIDE_UNSHARE" not in os.environ, "neither this user nor `unshare -Urm` may mount"
    inside = await asyncio.create_subprocess_exec(
        "unshare", "-Urm", sys.executable, *arguments, env={**os.environ, "INSIDE_UNSHARE": "1"}
    )
    assert await inside.wait() == 0, "the test failed inside of `unshare -Urm`"


def use_up(junk: Path) -> None:
    """Fill a file system to its last page."""
    with junk.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
