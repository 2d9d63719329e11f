"""`ydht cluster`: how the cluster is, and having its replicas compared now."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.cli.endings import UnreachableError
from services.cli.options import Duration, data_dir_option, json_option
from services.cli.replicator_desk import ReplicatorDesk
from services.core.cluster_health import Document, Health, Told, age_in_words, health_of
from services.core.ring import slot_count
from services.runtime.clock import SystemClock
from services.runtime.survey import Survey, survey

not_well_code: Final = 1
poll_s: Final = 0.25
# Collecting goes on after all was compared; so long it is waited for while nothing gets less.
stalled_s_max: Final = 30.0
# At the usual rate a replicator sends nine million records in this time.
timeout_default: Final = "1h"


@click.group()
def cluster() -> None:
    """See how the cluster is, and have its replicas compared now.

    Asks the replicators of REPLICATOR_URLS, or those of the `ydht up` that runs on the data
    directory.

    Exit codes: 0 well, or done; 1 something is not well, or was not done; 75 nobody can be asked;
    78 not set up.
    """


@cluster.command()
@json_option
@data_dir_option
def status(*, as_json: bool, data_dir: Path) -> None:
    """Show nodes, repair and collection, and say what is not well."""
    desk = ReplicatorDesk.open(data_dir)
    found = asyncio.run(_looked_at(desk))
    health = health_of(found.told, SystemClock().wall_ms(), found.of_nodes)
    if as_json:
        click.echo(json.dumps(health.document))
    else:
        _show(health)
    if health.reasons:
        sys.exit(not_well_code)


@cluster.command()
@click.option(
    "--slot",
    "slots",
    type=click.IntRange(0, slot_count - 1),
    multiple=True,
    help="Only this slot; may be given several times.  [default: all]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    default=timeout_default,
    show_default=True,
    help="Wait for no longer than this.",
)
@json_option
@data_dir_option
def repair(slots: tuple[int, ...], *, timeout_s: float, as_json: bool, data_dir: Path) -> None:
    """Compare replicas now, send them what they lack, and collect what is deleted.

    Ctrl-C and the timeout end the waiting; the replicators go on.
    """
    desk = ReplicatorDesk.open(data_dir)
    wanted = sorted(set(slots))
    told = asyncio.run(_repaired(desk, wanted, timeout_s))
    result = _result(told, len(wanted) or slot_count)
    if as_json:
        click.echo(json.dumps(result))
    else:
        _tell(result)
    if result["reasons"]:
        sys.exit(not_well_code)


async def _looked_at(desk: ReplicatorDesk) -> Survey:
    async with desk.client() as client:
        found = await survey(client, desk.urls)
    _refuse_silence(found.told)
    return found


def _refuse_silence(told: Sequence[Told]) -> None:
    """UnreachableError unless somebody has answered."""
    if all(one.document is None for one in told):
        reasons = "; ".join(f"{one.url}: {one.trouble}" for one in told)
        raise UnreachableError(f"no replicator answers ({reasons}); is `ydht up` running?")


# What is shown.


def _show(health: Health) -> None:
    document = health.document
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"epoch {document['epoch']}, {document['state']}", highlight=False)
    console.print(_table_of_nodes(document["nodes"]))
    console.print(_table_of_replicators(document["replicators"]))
    repair, collection = document["repair"], document["collection"]
    click.echo(
        f"repair: {repair['slots']:,} slots, half of them compared within "
        f"{age_in_words(repair['median_s'])}, all within {age_in_words(repair['oldest_s'])}; "
        f"{repair['differing_keys']:,} keys differed, {repair['records_sent']:,} records sent"
    )
    click.echo(
        f"collection: {collection['tombstones']:,} tombstones held, "
        f"{collection['collected']:,} collected, {collection['waiting']:,} slots waiting, "
        f"{collection['blocked']:,} blocked"
    )
    if not health.reasons:
        click.echo("Everything is well.")
        return
    click.echo("Not well:")
    for reason in health.reasons:
        click.echo(f"  {reason}")


def _table_of_nodes(nodes: Document) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("node", "state", "since"):
        table.add_column(title)
    for title in ("slots", "hints", "lag"):
        table.add_column(title, justify="right")
    for name, node in nodes.items():
        table.add_row(
            *(name, node["state"], node["since"], f"{node['slots']:,}", f"{node['hints']:,}"),
            age_in_words(node["lag_ms"] / 1000) if node["lag_ms"] else "-",
        )
    return table


def _table_of_replicators(replicators: Document) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("replicator")
    for title in ("slots", "oldest", "differed", "sent", "collecting", "collected"):
        table.add_column(title, justify="right")
    for name, one in replicators.items():
        repair, collection = one["repair"], one["collection"]
        if repair is None or collection is None:
            table.add_row(name, *["-"] * 6)
            continue
        table.add_row(
            *(name, f"{repair['slots']:,}", age_in_words(repair["oldest_s"])),
            *(f"{repair['differing_keys']:,}", f"{repair['records_sent']:,}"),
            f"{collection['waiting'] + collection['under_way']:,}",
            f"{collection['collected']:,}",
        )
    return table


# Repair.


async def _repaired(desk: ReplicatorDesk, slots: Sequence[int], timeout_s: float) -> list[Told]:
    """Order it of all, and look on until all that were asked are done, or the time is over."""
    ordered = await desk.post("/repair", {"slots": list(slots) or None})
    _refuse_silence(ordered)
    numbers = {one.url: one.document["number"] for one in ordered if one.document is not None}
    console = Console(stderr=True)
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + timeout_s
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        comparing = progress.add_task("Comparing", total=None)
        collecting = progress.add_task("Collecting", total=None, visible=False)
        least, stalled_s = None, loop.time()
        while True:
            told = [_of_order(one, numbers) for one in await desk.get("/repair")]
            documents = [one.document for one in told if one.document is not None]
            total = sum(one["slots"] for one in documents)
            left = sum(one["left"] for one in documents)
            progress.update(comparing, total=total, completed=total - left)
            if not any(one["state"] == "running" for one in documents):
                waiting = sum(one["collecting"] for one in documents)
                progress.update(collecting, visible=True, description=f"Collecting {waiting:,}")
                if least is None or waiting < least:
                    least, stalled_s = waiting, loop.time()
                if not waiting or loop.time() - stalled_s > stalled_s_max:
                    return told
            if loop.time() >= ends_s:
                return told
            await asyncio.sleep(poll_s)


def _of_order(one: Told, numbers: dict[str, int]) -> Told:
    """What is told of our order, or of a later one, which does ours along with it."""
    document = one.document
    if document is None:
        return one
    if one.url not in numbers:
        return Told(one.url, None, "it did not take the order")
    if document.get("number", 0) < numbers[one.url]:
        return Told(one.url, None, "it was restarted before it was done")
    return one


def _result(told: Sequence[Told], wanted: int) -> dict[str, Any]:
    documents = [one.document for one in told if one.document is not None]
    result: dict[str, Any] = {
        name: sum(one[name] for one in documents)
        for name in (
            *("slots", "left", "differing_slots", "differing_keys", "records_sent", "bytes_sent"),
            *("collecting", "blocked"),
        )
    }
    reasons = [f"replicator at {one.url}: {one.trouble}" for one in told if one.trouble is not None]
    reasons += [_left(one) for one in documents if one["left"]]
    if result["slots"] < wanted:
        reasons.append(
            f"{wanted - result['slots']} slots were nobody's to compare just now; try again"
        )
    if result["blocked"]:
        reasons.append(f"{result['blocked']} slots cannot be collected while a replica is away")
    if result["collecting"]:
        reasons.append(f"{result['collecting']} slots are still to be collected")
    return {**result, "done": not reasons, "reasons": reasons}


def _left(one: Document) -> str:
    """What became of the slots that one replicator has not compared."""
    name, left, trouble = one["replicator_id"], one["left"], one["trouble"]
    if one["state"] == "running":
        why = f" ({trouble})" if trouble else ""
        return f"{name} has {left} slots still to compare, and goes on{why}"
    return f"{name} could not compare {left} slots with all their owners: {trouble}"


def _tell(result: Document) -> None:
    click.echo(
        f"{result['slots'] - result['left']:,} of {result['slots']:,} slots compared: "
        f"{result['differing_keys']:,} keys differed in {result['differing_slots']:,} of them, "
        f"{result['records_sent']:,} records sent"
    )
    for reason in result["reasons"]:
        click.echo(f"  {reason}")
