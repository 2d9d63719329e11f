"""A PostgreSQL that can be killed, and keygens on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.runtime.migrations import migrate
from tests.cluster.test_database_kills import Postgres
from tests.integration.keygen_process import KeygenProcess


@asynccontextmanager
async def running_postgres(path: Path) -> AsyncIterator[Postgres]:
    postgres = Postgres(path / "postgres")
    try:
        await postgres.serve()
        await asyncio.to_thread(migrate, postgres.address)
        yield postgres
    finally:
        await postgres.clear()


@asynccontextmanager
async def running_keygens(
    path: Path, url: str, count: int, **environment: str
) -> AsyncIterator[list[KeygenProcess]]:
    keygens = [KeygenProcess(path / "data", url, **environment) for _ in range(count)]
    try:
        await asyncio.gather(*(keygen.serve() for keygen in keygens))
        await asyncio.gather(*(keygen.until_leased() for keygen in keygens))
        yield keygens
    finally:
        for keygen in keygens:
            await keygen.clear()
