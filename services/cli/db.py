"""`ydht db` runs the embedded PostgreSQL in the foreground; `ydht migrate` brings its schema up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import click

from services.cli.options import data_dir_option
from services.core.errors import FatalError, RestartLater
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.migrations import DatabaseToolSettings, address_from, migrate
from services.runtime.settings import load
from services.runtime.supervised import watch_supervisor


@click.command()
@data_dir_option
def db(data_dir: Path) -> None:
    """Run the embedded PostgreSQL until Ctrl-C, SIGTERM, or the end of `ydht up`."""
    environ = _environ(data_dir)
    asyncio.run(run_server(embedded_server(environ), environ, announce=click.echo))


@click.command(name="migrate")
@data_dir_option
def migrate_command(data_dir: Path) -> None:
    """Bring the database's schema to what this version needs."""
    migrate(address_from(_environ(data_dir)))
    click.echo("The database schema is up to date.")


def embedded_server(environ: Mapping[str, str]) -> EmbeddedPostgres:
    """The embedded server that these variables, and `DATA_DIR/ydht.env`, describe."""
    settings = load(DatabaseToolSettings, environ)
    if settings.database_url is not None:
        raise FatalError(
            "DATABASE_URL is set, so nothing would use the embedded PostgreSQL: unset it first"
        )
    if settings.embedded_db_password is None:
        raise FatalError(
            f"EMBEDDED_DB_PASSWORD is not set, nor is there a ydht.env in {settings.data_dir}:"
            " run `ydht init`"
        )
    return EmbeddedPostgres(
        settings.data_dir,
        settings.embedded_db_password,
        log=lambda line: click.echo(line, err=True),
    )


async def run_server(
    server: EmbeddedPostgres, environ: Mapping[str, str], *, announce: Callable[[str], None]
) -> None:
    """Run the server until a signal or the supervisor's end; FatalError if it ends by itself.

    A further signal hurries the stop.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            server.hurry()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    unwatch = watch_supervisor(stop.set, environ)
    try:
        if not await _unless(stop, server.start()):
            return
        address = server.address
        announce(
            f"PostgreSQL is ready: socket in {address.host}, database {address.database},"
            f" user {address.user}"
        )
        await _unless(stop, _never_ending(server))
    finally:
        await server.stop()
        unwatch()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _never_ending(server: EmbeddedPostgres) -> None:
    raise RestartLater(f"PostgreSQL ended by itself: {await server.wait()}")


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the work ended before the stop did; on a stop it is cancelled and waited for."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.wait([working, stopping])


def _environ(data_dir: Path) -> Mapping[str, str]:
    """The environment, in which the option on the command line has the last word."""
    return {**os.environ, "DATA_DIR": str(data_dir)}
