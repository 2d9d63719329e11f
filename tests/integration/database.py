"""Fixtures: one PostgreSQL for the whole run, and a fresh, migrated database for each test.

`database_address` is a clone of a template that was migrated once. `empty_database_address` has
no schema. Both are dropped afterwards. `postgres_server` is the server they live on; tests that
harm a server start their own.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.migrations import migrate

password = "made up for these tests, and 100% : / @ ?"
template = "template_migrated"
# Starting takes a second; a machine that is busy with other tests takes some more.
start_s_max = 60.0

_numbers = itertools.count(1)


class SharedServer:
    """An embedded server in a thread of its own, so that no test's event loop has to live on."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._up = threading.Event()
        self._down: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Kept, for connecting costs as much as making a database, and every other test wants one.
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shared-postgres")

    @property
    def address(self) -> DatabaseAddress:
        return self._server.address

    def start(self) -> None:
        self._thread.start()
        up = self._up.wait(start_s_max)
        if self._failure is not None:
            raise self._failure
        assert up, f"the shared PostgreSQL did not start within {start_s_max} s"

    def stop(self) -> None:
        if self._loop is not None and self._down is not None:
            self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._up.set()

    async def execute(self, sql: str) -> None:
        """As superuser, outside of any database of a test, and from any loop."""
        assert self._loop is not None, "the server is not running"
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._execute(sql), self._loop))

    async def _execute(self, sql: str) -> None:
        async with self._turn:
            assert self._connection is not None
            await self._connection.execute(sql)

    async def _serve(self) -> None:
        self._loop, self._down = asyncio.get_running_loop(), asyncio.Event()
        async with self._server, as_superuser(self) as self._connection:
            self._up.set()
            await self._down.wait()


@asynccontextmanager
async def as_superuser(server: SharedServer) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the server's own database, from where others are made and dropped."""
    arguments = replace(server.address, database="postgres").asyncpg()
    connection = await asyncpg.connect(**arguments)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def fresh_database(server: SharedServer, source: str) -> AsyncIterator[DatabaseAddress]:
    name = f"test_{next(_numbers)}"
    # Copying files costs less than writing each page to the log, where nothing is synced.
    await server.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}" STRATEGY file_copy')
    try:
        yield replace(server.address, database=name)
    finally:
        await server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    directory = tmp_path_factory.mktemp("postgres")
    with (directory / "postgres.log").open("w", buffering=1) as log:

        def write(line: str) -> None:
            log.write(line + "\n")

        shared = SharedServer(EmbeddedPostgres(directory, password, durable=False, log=write))
        shared.start()
        yield shared
        shared.stop()


@pytest.fixture(scope="session")
def migrated_template(postgres_server: SharedServer) -> str:
    asyncio.run(postgres_server.execute(f'CREATE DATABASE "{template}"'))
    migrate(replace(postgres_server.address, database=template))
    return template


@pytest.fixture
async def database_address(
    postgres_server: SharedServer, migrated_template: str
) -> AsyncIterator[DatabaseAddress]:
    async with fresh_database(postgres_server, migrated_template) as address:
        yield address


@pytest.fixture
async def empty_database_address(postgres_server: SharedServer) -> AsyncIterator[DatabaseAddress]:
    async with fresh_database(postgres_server, "template0") as address:
        yield address
