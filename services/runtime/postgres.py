"""Connections to PostgreSQL, and what their failures mean to a request.

A `Database` is a bounded pool that connects when it is first needed, so a service starts and
serves what it can while PostgreSQL is away, and recovers by itself when it is back:

    async with database.connection() as c        reads only; a loss is RetryLater
    async with database.transaction() as c       all or nothing; a loss is RetryLater, unless
                                                 COMMIT was on its way: then UnknownOutcome

Only what says something about the database itself is translated (unreachable, restarting, full,
too slow). Everything else, such as a unique violation, passes through as asyncpg's own error for
the store that knows its meaning. Serialization failures and deadlocks pass through too.

Needs PostgreSQL 14 or later, directly or through a pooler that pools sessions: settings and
prepared statements are the session's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import asyncpg

from services.core.errors import RetryLater, UnknownOutcome
from services.runtime.database_url import DatabaseAddress
from services.runtime.metrics import Metrics

T = TypeVar("T")
# asyncpg's connections carry no types that mypy could use.
Connection = Any
Isolation = Literal["read_committed", "repeatable_read", "serializable"]

# Services together stay well below PostgreSQL's default of 100 connections.
connections_max_default = 10
# Waiting for a connection is bounded in time and in number: a request that cannot be served
# soon is told so while its client still listens.
acquire_s_max_default = 3.0
waiting_max = 1_000
# A pooled connection whose peer vanished without a word is given up for a new one after this.
probe_s_max = 1.0
# Longer than any statement of ours takes on a sane machine.
command_s_max_default = 10.0
release_s_max = 2.0
# A request to cancel may reach the server before the statement it means, and then does nothing;
# so a rollback does not wait for long, and the server looks by itself whether we are still there.
rollback_s_max = 1.0
client_check_ms = 1_000
# A backstop for what command_s_max, which is kept on our side, did not end on the server's.
server_timeout_extra_s = 1.0
# A process that stands still in a transaction, or has vanished unnoticed, keeps its locks for no
# longer than this. None of ours waits for anything else within one.
idle_s_max_default = 5.0
# Less than a service has to close everything (service.close_s_max).
close_s_max = 2.0

# The server ended the conversation or will not begin one.
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
# The server refused a statement for want of something, and has applied nothing.
_REFUSED = (asyncpg.InsufficientResourcesError, asyncpg.OperatorInterventionError)
# These mean a lost connection only if it is in fact closed; else they are the caller's.
_GONE_IF_CLOSED = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# All that an attempt to connect may end in.
_NO_CONNECTION = (*_GONE_IF_CLOSED, asyncpg.PostgresError)

_READ_ONLY = "SET default_transaction_read_only = on"
# Fails in a transaction that a swallowed error has doomed, which COMMIT would pass over in
# silence; is null when there is nothing to commit; and names the transaction in the server's log.
_TRANSACTION_ID = "SELECT pg_current_xact_id_if_assigned()::text"


@dataclass(slots=True)
class DatabaseCounters:
    """Since the start, for `/metrics`."""

    acquired: int = 0
    unavailable: int = 0  # Requests that were told RetryLater.
    replaced: int = 0  # Stale pooled connections that were given up for a new one.
    unknown_outcomes: int = 0


class _Pooled(asyncpg.Connection):  # type: ignore[misc]  # It has no types either.
    """Closes without failing: a pool that is to replace what it has does so by tasks that nobody
    awaits. What was lost while it was closed is closed."""

    __slots__ = ()

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  asyncpg's.
        try:
            await super().close(timeout=release_s_max if timeout is None else timeout)
        except _NO_CONNECTION:
            # asyncpg has aborted it.
            return


class Database:
    """A pool on one address. Usable between `open` and `close`, from one event loop."""

    def __init__(
        self,
        address: DatabaseAddress,
        *,
        connections_max: int = connections_max_default,
        acquire_s_max: float = acquire_s_max_default,
        command_s_max: float = command_s_max_default,
        idle_s_max: float = idle_s_max_default,
    ) -> None:
        self.address = address
        self.counters = DatabaseCounters()
        self.connections_max = connections_max
        self._acquire_s_max = acquire_s_max
        self._command_s_max = command_s_max
        timeout_ms = round((command_s_max + server_timeout_extra_s) * 1000)
        self._session_sql = (
            f"SET statement_timeout = {timeout_ms};"
            f" SET client_connection_check_interval = {client_check_ms};"
            f" SET idle_in_transaction_session_timeout = {round(idle_s_max * 1000)}"
        )
        self._pool: Any = None
        self._waiting = 0

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> int:
        """Connections that are up."""
        return 0 if self._pool is None else int(self._pool.get_size())

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection right now."""
        return self._waiting

    def add_to(self, metrics: Metrics) -> None:
        """Show the pool and what became of the requests to it."""
        metrics.add_counters("database", "of the database pool", self.counters)
        for name, text, read in (
            ("database_connections", "Connections that are up", lambda: self.connected),
            ("database_connections_max", "Bound on them", lambda: self.connections_max),
            ("database_waiting", "Requests that wait for one", lambda: self.waiting),
        ):
            metrics.add(name, "gauge", text, read)

    async def open(self) -> None:
        """Make the pool. Connects to nothing, so it succeeds while PostgreSQL is away."""
        self._pool = await asyncpg.create_pool(
            **self.address.asyncpg(),
            min_size=0,
            max_size=self.connections_max,
            command_timeout=self._command_s_max,
            connection_class=_Pooled,
            init=self._begin_session,
            reset=self._reset_session,
        )

    async def close(self) -> None:
        """Let requests in flight finish, for a while, then close every connection."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(close_s_max):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    async def ready(self) -> None:
        """Return if the database answers now; else RetryLater says why it does not."""
        async with self.connection():
            pass

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection that can only read: a lost statement is always safe to send again.

        A statement that writes fails with asyncpg's ReadOnlySQLTransactionError.
        """

        async def begin(connection: Connection) -> None:
            await connection.execute(_READ_ONLY)

        pool, connection, _ = await self._acquire(begin)
        try:
            yield connection
        except Exception as error:
            if (detail := _unavailable(error, connection)) is None:
                raise
            raise self._retry_later(detail) from error
        finally:
            await _release(pool, connection)

    @asynccontextmanager
    async def transaction(
        self, isolation: Isolation = "read_committed"
    ) -> AsyncIterator[Connection]:
        """A transaction that is committed when the block ends and rolled back when it raises.

        After UnknownOutcome it is one or the other, and only reading again tells which. A block
        that swallowed a failed statement outside a savepoint gets InFailedSQLTransactionError
        instead of a commit that silently did nothing. Savepoints: `c.transaction()`.
        """

        async def begin(connection: Connection) -> Any:
            transaction = connection.transaction(isolation=isolation)
            await transaction.start()
            return transaction

        pool, connection, transaction = await self._acquire(begin)
        try:
            try:
                yield connection
                transaction_id = await connection.fetchval(_TRANSACTION_ID)
            except BaseException as error:
                # Nothing was committed, and nothing can be after this.
                detail = _unavailable(error, connection)
                await _roll_back(connection, transaction)
                if detail is None:
                    raise
                raise self._retry_later(detail) from error
            await self._commit(connection, transaction, transaction_id)
        finally:
            await _release(pool, connection)

    async def _acquire(
        self, begin: Callable[[Connection], Awaitable[T]]
    ) -> tuple[Any, Connection, T]:
        """The pool, a connection of it on which `begin` has just succeeded, and its result."""
        pool = self._pool
        if pool is None:
            raise RetryLater("shutting_down", "The database connections are closed")
        if self._waiting >= waiting_max:
            self.counters.unavailable += 1
            raise RetryLater("overloaded", f"{waiting_max} requests wait for the database already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._acquire_s_max):
                connection, begun = await self._begun(pool, begin)
        except TimeoutError as error:
            raise self._retry_later(self._why_no_connection(pool)) from error
        except _NO_CONNECTION as error:
            raise self._retry_later(_why_refused(error)) from error
        finally:
            self._waiting -= 1
        self.counters.acquired += 1
        return pool, connection, begun

    async def _begun(
        self, pool: Any, begin: Callable[[Connection], Awaitable[T]]
    ) -> tuple[Connection, T]:
        """Begin on a pooled connection; if that one turns out dead, once more on a new one.

        Repeating is safe here alone: nothing but the beginning can have been sent.
        """
        connection = await pool.acquire()
        try:
            return connection, await _probed(connection, begin)
        except BaseException as error:
            stale = isinstance(error, TimeoutError) or _lost(error, connection)
            _hang_up(connection)
            await _release(pool, connection)
            if not stale:
                raise
        # Where one connection went stale unnoticed, the others of the pool probably did too.
        self.counters.replaced += 1
        await pool.expire_connections()
        connection = await pool.acquire()
        try:
            return connection, await _probed(connection, begin)
        except BaseException:
            _hang_up(connection)
            await _release(pool, connection)
            raise

    async def _commit(
        self, connection: Connection, transaction: Any, transaction_id: str | None
    ) -> None:
        try:
            await transaction.commit()
        except (*_GONE, *_GONE_IF_CLOSED) as error:
            # A command timeout is among them: the server may well be about to succeed.
            _hang_up(connection)
            if transaction_id is None:  # Only read.
                raise self._retry_later("PostgreSQL was lost before it answered") from error
            self.counters.unknown_outcomes += 1
            raise UnknownOutcome(
                "PostgreSQL was lost while it committed", operation_id=f"xid-{transaction_id}"
            ) from error
        except _REFUSED as error:
            raise self._retry_later(_why_refused(error)) from error
        except asyncio.CancelledError:
            _hang_up(connection)  # A reply that nobody awaits must not meet the next user.
            raise

    async def _begin_session(self, connection: Connection) -> None:
        await connection.execute(self._session_sql)

    async def _reset_session(self, connection: Connection) -> None:
        """Undo whatever the last user set, in the one round trip that asyncpg's own reset takes."""
        await connection.execute(f"{connection.get_reset_query()} {self._session_sql}")

    def _retry_later(self, detail: str) -> RetryLater:
        self.counters.unavailable += 1
        return RetryLater("database_unavailable", detail)

    def _why_no_connection(self, pool: Any) -> str:
        busy = pool.get_size() - pool.get_idle_size()
        if busy >= self.connections_max:
            return f"All {busy} database connections were busy for {self._acquire_s_max:g} s"
        return f"PostgreSQL did not answer within {self._acquire_s_max:g} s"


async def _probed(connection: Connection, begin: Callable[[Connection], Awaitable[T]]) -> T:
    """Begin, as the probe of a connection that may have died while it lay in the pool."""
    async with asyncio.timeout(probe_s_max):
        return await begin(connection)


async def _roll_back(connection: Connection, transaction: Any) -> None:
    """Roll back, or hang up: the server then does it. Keeps the error that led here."""
    if _is_closed(connection):
        return
    try:
        async with asyncio.timeout(rollback_s_max):
            await transaction.rollback()
    except _NO_CONNECTION:
        _hang_up(connection)


async def _release(pool: Any, connection: Connection) -> None:
    """Give a connection back. What is done is done: a loss now concerns only the pool."""
    try:
        await pool.release(connection, timeout=release_s_max)
    except _NO_CONNECTION:
        return  # asyncpg has ended the connection, and connects anew when asked for one.


def _unavailable(error: BaseException, connection: Connection) -> str | None:
    """What to say when the error means that the database is out of reach, else None."""
    if isinstance(error, TimeoutError):
        return "A statement took too long and was given up"
    if isinstance(error, (*_GONE, *_REFUSED)):
        return _why_refused(error)
    if _lost(error, connection):
        return "The connection to PostgreSQL was lost"
    return None


def _lost(error: BaseException, connection: Connection) -> bool:
    if isinstance(error, _GONE):
        return True
    return isinstance(error, _NO_CONNECTION) and _is_closed(connection)


def _hang_up(connection: Connection) -> None:
    if not _is_closed(connection):
        connection.terminate()


def _is_closed(connection: Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True  # It was ended and taken back by the pool, and refuses even this question.


def _why_refused(error: BaseException) -> str:
    """In words for a client: no addresses, no names, nothing that only operators should see.

    The error itself goes along as the cause, for the log.
    """
    known: tuple[tuple[type[BaseException], str], ...] = (
        (asyncpg.TooManyConnectionsError, "PostgreSQL has no connection to spare"),
        (asyncpg.DiskFullError, "PostgreSQL's disk is full"),
        (asyncpg.InsufficientResourcesError, "PostgreSQL is short of memory or disk"),
        (asyncpg.CannotConnectNowError, "PostgreSQL is starting or stopping"),
        (asyncpg.AdminShutdownError, "PostgreSQL is stopping"),
        (asyncpg.IdleInTransactionSessionTimeoutError, "The transaction stood still for too long"),
        (asyncpg.CrashShutdownError, "PostgreSQL is recovering from a crash"),
        (asyncpg.QueryCanceledError, "A statement took too long and was given up"),
        (asyncpg.InvalidAuthorizationSpecificationError, "PostgreSQL refuses our credentials"),
        (asyncpg.InvalidCatalogNameError, "PostgreSQL does not have our database"),
    )
    for kind, words in known:
        if isinstance(error, kind):
            return words
    return "PostgreSQL cannot be reached"
