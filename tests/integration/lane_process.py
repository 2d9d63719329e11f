"""The example lane as a service of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

repository = Path(__file__).parents[2]


@asynccontextmanager
async def lane_process(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The example lane as a service of its own, and its port."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.example_lane",
        cwd=repository,
        env={
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(data_dir),
            "CLUSTER_SECRET": "Vb8rJ2mQx0LkTz5WnYc7PdSg1HfUe4Ao",
            "LOG_FORMAT": "json",
        },
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        yield child, json.loads(await child.stdout.readline())["port"]
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()
