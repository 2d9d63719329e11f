"""`ydht top`: all services at once, live: rates, latencies, lag, hints, logs and memory."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live

from services.cli.kv_output import interruptible, write_line
from services.cli.options import Duration, data_dir_option, json_option
from services.cli.top_figures import Row, rows_of
from services.cli.top_looks import Seen, Watch
from services.cli.top_tables import document_of, shown, sort_names
from services.core.hlc import rfc3339
from services.runtime.clock import SystemClock

refresh_default: Final = "2s"
# Between the two looks that one answer takes.
once_s: Final = 1.0
refresh_s_min: Final = 0.2
not_well_code: Final = 1
piped_width: Final = 120


@click.command()
@click.option("--once", is_flag=True, help="Look twice, a second apart, tell that, and end.")
@click.option(
    "--every",
    "every_s",
    type=Duration(),
    default=refresh_default,
    show_default=True,
    help="Look so often.",
)
@click.option(
    "--sort",
    "sort",
    type=click.Choice(sort_names),
    default="name",
    show_default=True,
    help="What stands above within each table: the name, or the most of a figure.",
)
@json_option
@data_dir_option
def top(*, once: bool, every_s: float, sort: str, as_json: bool, data_dir: Path) -> None:
    """Watch gateways, keygen, replicators and nodes at work. Ctrl-C ends it.

    Asks the replicators of REPLICATOR_URLS, and what GATEWAY_URL, USERMANAGER_URL and KEYGEN_URL
    name, or all of the `ydht up` that runs on the data directory. Latencies are upper ends of
    buckets, of what was answered since the last look.

    Exit codes: 0 all well, or ended by Ctrl-C; 1 with --once, if something is not well or cannot be
    reached; 75 nothing runs; 78 not set up.
    """
    if every_s < refresh_s_min:
        raise click.BadParameter(f"at least {refresh_s_min:g}s", param_hint="--every")
    watch = Watch.open(data_dir)
    if once:
        rows = interruptible(lambda: _once(watch))
        _tell(rows, sort, as_json=as_json)
        if any(row.reasons for row in rows):
            sys.exit(not_well_code)
        return
    try:
        interruptible(lambda: _for_ever(watch, every_s, sort, as_json=as_json))
    except KeyboardInterrupt:
        return


async def _once(watch: Watch) -> list[Row]:
    async with watch.client() as client:
        before = _by_url(await watch.look(client))
        await asyncio.sleep(once_s)
        return rows_of(before, await watch.look(client))


async def _for_ever(watch: Watch, every_s: float, sort: str, *, as_json: bool) -> None:
    console = Console()
    loop = asyncio.get_running_loop()
    before: dict[str, Seen] = {}
    live = Live(console=console, screen=True, auto_refresh=False)
    on_screen = console.is_terminal and not as_json
    async with watch.client() as client:
        if on_screen:
            live.start()
        try:
            while True:
                next_s = loop.time() + every_s
                now = await watch.look(client)
                rows = rows_of(before, now)
                if on_screen:
                    live.update(_page(rows, sort, every_s), refresh=True)
                else:
                    _tell(rows, sort, as_json=as_json)
                before = _by_url(now)
                await asyncio.sleep(max(0.0, next_s - loop.time()))
        finally:
            live.stop()


def _by_url(looks: Sequence[Seen]) -> dict[str, Seen]:
    return {one.url: one for one in looks}


def _page(rows: Sequence[Row], sort: str, every_s: float) -> RenderableType:
    head = f"{rfc3339(SystemClock().wall_ms())}  every {every_s:g} s, by {sort}; Ctrl-C ends it"
    return Group(head, "", *shown(rows, sort))


def _tell(rows: Sequence[Row], sort: str, *, as_json: bool) -> None:
    now = rfc3339(SystemClock().wall_ms())
    if as_json:
        write_line(json.dumps({"time": now, "services": [document_of(row) for row in rows]}))
        return
    console = Console(width=None if sys.stdout.isatty() else piped_width)
    with console.capture() as capture:
        console.print(f"{now}", highlight=False)
        for part in shown(rows, sort):
            console.print(part)
    write_line(capture.get().rstrip("\n"))
