"""`ydht node scrub`: have nodes that run compare all they hold with its checksums, now."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import Progress

from services.cli.endings import UnreachableError
from services.cli.options import data_dir_option, json_option
from services.cli.replicator_desk import (
    ClusterToolSettings,
    ReplicatorDesk,
    told_by_up,
    up_name,
)
from services.core.cluster_health import Told
from services.runtime import setting_values as values
from services.runtime.settings import load

poll_s: Final = 0.25
not_well_code: Final = 1
_states: Final = {
    "requested": "waiting",
    "memory": "memory",
    "files": "files",
    "snapshots": "new snapshots",
}


@click.command()
@click.argument("urls", metavar="[URL]...", nargs=-1)
@json_option
@data_dir_option
def scrub(urls: tuple[str, ...], *, as_json: bool, data_dir: Path) -> None:
    """Have nodes compare memory and files with their checksums, and mend what has rotted.

    URL is that of a node's HTTP port; without any, the nodes of the `ydht up` that runs on the data
    directory are asked. Ctrl-C ends the waiting; the nodes go on.

    Exit codes: 0 nothing is wrong any more; 1 something could not be mended, or a node did not
    answer; 75 none can be asked; 78 not set up.
    """
    settings = load(ClusterToolSettings, {**os.environ, "DATA_DIR": str(data_dir)})
    # A desk speaks to whoever has the cluster's secret.
    desk = ReplicatorDesk(_checked(urls) or _urls_of_up(data_dir), settings.cluster_secret)
    told = asyncio.run(_scrubbed(desk))
    for one in told:
        if as_json:
            click.echo(json.dumps({"url": one.url, "trouble": one.trouble, **(one.document or {})}))
        else:
            click.echo(f"{one.url}: {_in_words(one)}")
    if not all(map(_is_well, told)):
        sys.exit(not_well_code)


async def _scrubbed(desk: ReplicatorDesk) -> list[Told]:
    """Ask all, and look on until each is done."""
    begun = await desk.post("/scrub", {})
    passes = {one.url: one.document["passes"] for one in begun if one.document is not None}
    if not passes:
        reasons = "; ".join(f"{one.url}: {one.trouble}" for one in begun)
        raise UnreachableError(f"no node answers ({reasons})")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {url: progress.add_task(url, total=None) for url in passes}
        while True:
            told = await desk.get("/scrub")
            going = [one for one in told if one.url in passes and _is_going(one, passes[one.url])]
            for one in going:
                document = one.document or {}
                progress.update(
                    tasks[one.url],
                    description=f"{one.url} {_states.get(document['state'], '')}",
                    completed=document["done"],
                    total=document["total"] or None,
                )
            if not going:
                return [
                    one if one.url in passes else first
                    for one, first in zip(told, begun, strict=True)
                ]
            await asyncio.sleep(poll_s)


def _is_going(one: Told, passes: int) -> bool:
    """Whether the scrub that was asked for has yet to end. A restarted node counts anew."""
    document = one.document
    return document is not None and document["state"] != "idle" and document["passes"] >= passes


def _is_well(one: Told) -> bool:
    document = one.document
    return document is not None and not (
        document["damaged_files"] or document["waiting_for_others"] or document["unmendable"]
    )


def _in_words(one: Told) -> str:
    found: dict[str, Any] | None = dict(one.document) if one.document is not None else None
    if found is None:
        return str(one.trouble)
    places = found["found_in_memory"] + found["found_on_disk"]
    if not places:
        return "nothing has rotted since the node was started"
    words = (
        f"since the node was started {found['found_in_memory']:,} found in memory and "
        f"{found['found_on_disk']:,} on disk, {found['mended']:,} mended"
    )
    if found["waiting_for_others"]:
        words += f"; {found['waiting_for_others']:,} keys wait for the other replicas"
    if found["unmendable"]:
        words += f"; of {found['unmendable']:,} keys nobody has a sound copy"
    if found["damaged_files"]:
        words += f"; still needed although damaged: {', '.join(found['damaged_files'])}"
    return words


def _checked(urls: Sequence[str]) -> list[str]:
    try:
        return [values.url(url) for url in urls]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None


def _urls_of_up(data_dir: Path) -> list[str]:
    otherwise = "name nodes by the URLs of their HTTP ports"
    told = told_by_up(data_dir, otherwise)
    urls = [node["url"] for node in told.get("nodes", {}).values()]
    if not urls:
        raise UnreachableError(f"{data_dir / up_name} names no node: {otherwise}")
    return urls
