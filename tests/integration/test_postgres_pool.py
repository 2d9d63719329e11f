"""The pool: what each way of losing PostgreSQL means to a request, and that it comes back.

A proxy stands between the pool and the server where a loss has to happen at a certain moment.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from services.core.errors import RetryLater, UnknownOutcome
from services.runtime import postgres
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database
from tests.integration.database import SharedServer, as_superuser


class Proxy:
    """Passes bytes between the pool and PostgreSQL until told to stop.

    `cut_before` sees each chunk that a client sends; when it says so, the client's connection is
    cut and the chunk is lost. `cut_after` does the same with what the server answers, so the
    server has acted. `frozen` keeps connections open and passes nothing on.
    """

    def __init__(self, address: DatabaseAddress) -> None:
        self._target = f"{address.host}/.s.PGSQL.{address.port}"
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._forgotten: set[asyncio.StreamWriter] = set()
        self.cut_before: Callable[[bytes], bool] = lambda _: False
        self.cut_after: Callable[[bytes], bool] = lambda _: False
        self.thaw = asyncio.Event()
        self.thaw.set()
        self.accepted = 0

    async def start(self, directory: Path) -> str:
        self._server = await asyncio.start_unix_server(
            self._accept, path=directory / ".s.PGSQL.5432"
        )
        return str(directory)

    async def stop(self) -> None:
        self.thaw.set()
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def forget(self) -> None:
        """Drop what the present connections send from now on, without a word to either side."""
        self._forgotten |= self._writers

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        above_reader, above_writer = await asyncio.open_unix_connection(self._target)
        ours = {writer, above_writer}
        self._writers |= ours
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, above_writer, lambda c: self.cut_before(c)))
                both.create_task(self._pass(above_reader, writer, lambda c: self.cut_after(c)))
        finally:
            for one in ours:
                one.transport.abort()
            self._writers -= ours

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        cut: Callable[[bytes], bool],
    ) -> None:
        try:
            while chunk := await reader.read(65536):
                await self.thaw.wait()
                if writer in self._forgotten:
                    continue
                if cut(chunk):
                    break
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.transport.abort()


@pytest.fixture
async def proxy(database_address: DatabaseAddress) -> AsyncIterator[Proxy]:
    proxy = Proxy(database_address)
    yield proxy
    await proxy.stop()


@pytest.fixture
async def database(database_address: DatabaseAddress) -> AsyncIterator[Database]:
    async with Database(database_address, connections_max=3) as database:
        yield database


@pytest.fixture
async def proxied(
    proxy: Proxy, database_address: DatabaseAddress, tmp_path: Path
) -> AsyncIterator[Database]:
    host = await proxy.start(tmp_path)
    async with Database(replace(database_address, host=host), connections_max=3) as database:
        yield database


async def put(database: Database, key: str) -> None:
    async with database.transaction() as c:
        await c.execute("INSERT INTO platform (key, value) VALUES ($1, $2)", key, b"value")


async def keys(database: Database) -> list[str]:
    async with database.connection() as c:
        return [row["key"] for row in await c.fetch("SELECT key FROM platform ORDER BY key")]


async def test_a_block_that_ends_is_committed_and_one_that_raises_is_not(
    database: Database,
) -> None:
    await put(database, "kept")

    async def stumble() -> None:
        async with database.transaction() as c:
            await c.execute("INSERT INTO platform (key, value) VALUES ('dropped', '')")
            raise KeyError("a bug of the block")

    with pytest.raises(KeyError):
        await stumble()
    assert await keys(database) == ["kept"]


async def test_the_pool_shows_its_figures(database: Database) -> None:
    metrics = Metrics()
    database.add_to(metrics)
    async with database.connection(), database.connection():
        shown = metrics.as_json()
    assert shown == {
        "database_acquired": 2,
        "database_unavailable": 0,
        "database_replaced": 0,
        "database_unknown_outcomes": 0,
        "database_connections": 2,
        "database_connections_max": database.connections_max,
        "database_waiting": 0,
    }
    await database.close()
    with pytest.raises(RetryLater):
        await database.ready()
    assert metrics.as_json()["database_connections"] == 0


async def test_a_connection_only_reads_so_that_its_loss_is_always_safe(database: Database) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with database.connection() as c:
            await c.execute("INSERT INTO platform (key, value) VALUES ('a', '')")
    # The same pooled connection writes again as soon as it is asked for a transaction.
    await put(database, "b")
    assert await keys(database) == ["b"]


async def test_what_only_a_store_understands_passes_through(database: Database) -> None:
    await put(database, "a")
    with pytest.raises(asyncpg.UniqueViolationError):
        await put(database, "a")
    assert database.counters.unavailable == 0


async def test_an_oserror_of_the_block_itself_is_not_the_databases(database: Database) -> None:
    with pytest.raises(FileNotFoundError):
        async with database.transaction():
            raise FileNotFoundError("a file of the caller's")
    assert await keys(database) == []


async def test_a_swallowed_failure_is_not_reported_as_committed(database: Database) -> None:
    await put(database, "a")

    async def swallow() -> None:
        async with database.transaction() as c:
            with suppress(asyncpg.UniqueViolationError):
                await c.execute("INSERT INTO platform (key, value) VALUES ('a', '')")

    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await swallow()


async def test_a_savepoint_lets_a_block_go_on_after_a_failure(database: Database) -> None:
    await put(database, "a")
    async with database.transaction() as c:
        try:
            async with c.transaction():
                await c.execute("INSERT INTO platform (key, value) VALUES ('a', '')")
        except asyncpg.UniqueViolationError:
            await c.execute("INSERT INTO platform (key, value) VALUES ('b', '')")
    assert await keys(database) == ["a", "b"]


async def test_a_service_starts_while_postgres_is_away(tmp_path: Path) -> None:
    address = DatabaseAddress(host=str(tmp_path), user="u", database="d", password="not to show")
    async with Database(address) as database:
        with pytest.raises(RetryLater) as error:
            await database.ready()
    assert (error.value.code, error.value.status) == ("database_unavailable", 503)
    assert "not to show" not in repr(error.value)
    assert str(tmp_path) not in error.value.detail


async def test_a_wrong_password_is_unavailable_and_not_the_clients_fault(
    database_address: DatabaseAddress,
) -> None:
    async with Database(replace(database_address, password="wrong")) as database:
        with pytest.raises(RetryLater, match="refuses our credentials"):
            await database.ready()


async def test_a_database_that_does_not_exist_is_unavailable(
    database_address: DatabaseAddress,
) -> None:
    async with Database(replace(database_address, database="elsewhere")) as database:
        with pytest.raises(RetryLater, match="does not have our database"):
            await database.ready()


async def test_a_closed_pool_says_that_the_service_is_shutting_down(database: Database) -> None:
    await database.close()
    with pytest.raises(RetryLater) as error:
        await database.ready()
    assert error.value.code == "shutting_down"


async def test_waiting_for_a_busy_pool_ends_and_says_so(database_address: DatabaseAddress) -> None:
    async with (
        Database(database_address, connections_max=1, acquire_s_max=0.1) as database,
        database.connection(),
    ):
        with pytest.raises(RetryLater, match="All 1 database connections were busy"):
            await database.ready()
        assert database.waiting == 0


async def test_more_waiters_than_the_bound_are_turned_away_at_once(
    database_address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "waiting_max", 5)
    async with Database(database_address, connections_max=1) as database:
        async with database.connection():
            waiters = [asyncio.create_task(database.ready()) for _ in range(5)]
            await asyncio.sleep(0)
            with pytest.raises(RetryLater) as error:
                await database.ready()
            assert error.value.code == "overloaded"
        await asyncio.gather(*waiters)
        assert database.connected == 1


async def test_a_statement_that_takes_too_long_is_given_up(
    database_address: DatabaseAddress,
) -> None:
    async with Database(database_address, connections_max=1, command_s_max=0.1) as database:

        async def dawdle() -> None:
            async with database.transaction() as c:
                await c.execute("INSERT INTO platform (key, value) VALUES ('slow', '')")
                await c.execute("SELECT pg_sleep(60)")

        with pytest.raises(RetryLater, match="took too long"):
            await dawdle()
        assert await keys(database) == []


async def test_a_cancelled_block_gives_its_connection_back(
    database_address: DatabaseAddress,
) -> None:
    async with Database(database_address, connections_max=1) as database:
        for _ in range(5):
            begun = asyncio.Event()

            async def work(begun: asyncio.Event = begun) -> None:
                async with database.transaction() as c:
                    await c.execute("INSERT INTO platform (key, value) VALUES ('gone', '')")
                    begun.set()
                    await c.execute("SELECT pg_sleep(60)")

            working = asyncio.create_task(work())
            await begun.wait()
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
        assert await keys(database) == []


async def test_a_statement_whose_cancellation_got_lost_does_not_hold_its_locks(
    proxied: Database, proxy: Proxy, database: Database
) -> None:
    cancel_request = (80877102).to_bytes(4, "big")
    proxy.cut_before = lambda chunk: cancel_request in chunk
    begun = asyncio.Event()

    async def work() -> None:
        async with proxied.transaction() as c:
            await c.execute("INSERT INTO platform (key, value) VALUES ('a', '')")
            begun.set()
            await c.execute("SELECT pg_sleep(60)")

    working = asyncio.create_task(work())
    await begun.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await put(database, "a")


async def test_a_transaction_that_stands_still_does_not_hold_its_locks(
    database: Database, database_address: DatabaseAddress
) -> None:
    await put(database, "a")
    seize = "SELECT 1 FROM platform WHERE key = 'a' FOR UPDATE"
    standing = asyncio.Event()

    async def stand_still(paused: Database) -> None:
        async with paused.transaction() as c:
            await c.execute(seize)
            standing.set()
            # Its process is stopped, or its machine is gone: nothing is sent any more.
            await over.wait()
            await c.execute(seize)

    over = asyncio.Event()
    async with Database(database_address, connections_max=1, idle_s_max=0.2) as paused:
        task = asyncio.create_task(stand_still(paused))
        await standing.wait()
        async with database.transaction() as c:
            await c.execute(seize)
        over.set()
        with pytest.raises(RetryLater, match="database_unavailable"):
            await task
        await put(paused, "b")
    assert await keys(database) == ["a", "b"]


async def test_too_many_connections_is_told_as_such(
    database: Database, postgres_server: SharedServer
) -> None:
    name = f'"{database.address.database}"'
    async with as_superuser(postgres_server) as c:
        await c.execute("CREATE ROLE modest LOGIN PASSWORD 'pw' CONNECTION LIMIT 0")
        await c.execute(f"GRANT CONNECT ON DATABASE {name} TO modest")
        try:
            modest = replace(database.address, user="modest", password="pw")
            async with Database(modest) as limited:
                with pytest.raises(RetryLater, match="no connection to spare"):
                    await limited.ready()
        finally:
            await c.execute(f"REVOKE CONNECT ON DATABASE {name} FROM modest")
            await c.execute("DROP ROLE modest")


async def terminate_all(server: SharedServer, database: Database) -> None:
    async with as_superuser(server) as c:
        await c.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
            database.address.database,
        )


async def test_a_backend_that_is_ended_in_a_block_means_that_nothing_was_applied(
    database: Database, postgres_server: SharedServer
) -> None:
    async def lose_it_halfway() -> None:
        async with database.transaction() as c:
            await c.execute("INSERT INTO platform (key, value) VALUES ('a', '')")
            await terminate_all(postgres_server, database)
            await c.execute("INSERT INTO platform (key, value) VALUES ('b', '')")

    with pytest.raises(RetryLater) as error:
        await lose_it_halfway()
    assert error.value.code == "database_unavailable"
    assert await keys(database) == []


async def test_connections_that_died_in_the_pool_cost_no_request(
    database: Database, postgres_server: SharedServer
) -> None:
    async with database.connection(), database.connection(), database.connection():
        pass
    await terminate_all(postgres_server, database)
    for number in range(5):
        await put(database, f"{number}")
    assert len(await keys(database)) == 5


async def test_connections_that_went_silent_in_the_pool_are_replaced_by_new_ones(
    proxied: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "probe_s_max", 0.2)
    async with proxied.connection(), proxied.connection(), proxied.connection():
        pass
    old = proxy.accepted
    # Their bytes vanish from here on, as behind a firewall that forgot them; new ones get through.
    proxy.forget()
    await put(proxied, "a")
    assert await keys(proxied) == ["a"]
    assert proxied.counters.replaced == 1
    assert proxy.accepted > old
    proxy.cut()


async def test_how_replaced_connections_end_is_nobodys_failure(
    database_address: DatabaseAddress,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "probe_s_max", 0.2)
    monkeypatch.setattr(postgres, "release_s_max", 0.2)
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    address = replace(database_address, host=await proxy.start(tmp_path))
    async with Database(address, connections_max=3) as database:
        async with database.connection(), database.connection(), database.connection():
            pass
        proxy.forget()
        async with database.connection(), database.connection(), database.connection():
            # The pool closes what these have replaced, and there is nobody to answer.
            await asyncio.sleep(1.0)
        gc.collect()
        await asyncio.sleep(0)
        assert database.counters.replaced
        assert unheard == []
        proxy.cut()


@asynccontextmanager
async def unknown_outcome(database: Database) -> AsyncIterator[None]:
    with pytest.raises(UnknownOutcome) as error:
        yield
    assert error.value.status == 504
    assert error.value.members["operation_id"].startswith("xid-")
    assert database.counters.unknown_outcomes == 1


async def test_a_commit_that_never_arrived_is_unknown(
    proxied: Database, proxy: Proxy, database: Database
) -> None:
    proxy.cut_before = lambda chunk: b"COMMIT;" in chunk
    async with unknown_outcome(proxied):
        await put(proxied, "a")
    assert await keys(database) == []


async def test_a_commit_whose_answer_was_lost_is_unknown_too(
    proxied: Database, proxy: Proxy, database: Database
) -> None:
    proxy.cut_after = lambda chunk: b"COMMIT" in chunk
    async with unknown_outcome(proxied):
        await put(proxied, "a")
    assert await keys(database) == ["a"]


async def test_a_commit_that_is_not_answered_in_time_is_unknown(
    proxy: Proxy, database_address: DatabaseAddress, tmp_path: Path
) -> None:
    host = await proxy.start(tmp_path)

    def freeze(chunk: bytes) -> bool:
        if b"COMMIT;" in chunk:
            proxy.thaw.clear()
        return False

    proxy.cut_after = freeze
    address = replace(database_address, host=host)
    async with Database(address, command_s_max=0.3) as database:
        proxy.cut_before = freeze
        async with unknown_outcome(database):
            await put(database, "a")


async def test_a_lost_commit_of_what_only_read_may_be_repeated(
    proxied: Database, proxy: Proxy
) -> None:
    proxy.cut_before = lambda chunk: b"COMMIT;" in chunk
    with pytest.raises(RetryLater):
        async with proxied.transaction() as c:
            await c.fetch("SELECT key FROM platform")


async def test_a_commit_that_postgres_refuses_is_definite(database: Database) -> None:
    async with database.transaction() as c:
        await c.execute(
            "CREATE TABLE later (a int, CONSTRAINT one UNIQUE (a) DEFERRABLE INITIALLY DEFERRED)"
        )
    with pytest.raises(asyncpg.UniqueViolationError):
        async with database.transaction() as c:
            await c.execute("INSERT INTO later VALUES (1), (1)")
    assert database.counters.unknown_outcomes == 0


async def test_a_loss_after_the_commit_does_not_spoil_it(
    proxied: Database, proxy: Proxy, database: Database
) -> None:
    proxy.cut_before = lambda chunk: b"RESET ALL" in chunk
    await put(proxied, "a")
    proxy.cut_before = lambda _: False
    assert await keys(proxied) == ["a"]
    assert await keys(database) == ["a"]


async def test_requests_recover_by_themselves_when_postgres_restarts(tmp_path: Path) -> None:
    def server() -> EmbeddedPostgres:
        return EmbeddedPostgres(tmp_path, "made up for this test", durable=False, log=print)

    async with server() as first:
        database = Database(first.address, connections_max=3)
        await database.open()
        async with database.transaction() as c:
            await c.execute("CREATE TABLE platform (key text PRIMARY KEY, value bytea)")
        await put(database, "before")
    with pytest.raises(RetryLater):
        await put(database, "away")
    async with server():
        await put(database, "after")
        assert await keys(database) == ["after", "before"]
        await database.close()
