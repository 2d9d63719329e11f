"""`ydht ids`: make IDs without a keygen, see what became of one, and move counters on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import asyncpg
import click
import msgspec

from services.cli.front_desk import FrontDesk, at_front_desk
from services.cli.options import data_dir_option, json_option, text
from services.core.errors import FatalError
from services.core.id_requests import count_max
from services.core.permute import size_max, size_min
from services.keygen.inspection import Fate, Inspection, Return
from services.keygen.watch_store import Skipped, WatchStore, skip_margin

T = TypeVar("T")

# Of `public`: nobody's account.
nobody: Final = 0
size_default: Final = 7


@click.group()
def ids() -> None:
    """Make IDs, see whose one is, and mend counters, directly in the database.

    Exit codes: 0 done, 65 refused or not an ID, 67 no such account, 74 outcome unknown, 75 the
    database cannot be reached, 78 not set up.
    """


@ids.command()
@click.option("--count", type=click.IntRange(1, count_max), default=1, show_default=True)
@click.option(
    "--size",
    type=click.IntRange(size_min, size_max),
    default=size_default,
    show_default=True,
    help="Characters of each.",
)
@click.option("--for", "email", type=text, help="Whose they are.  [default: nobody's]")
@json_option
@data_dir_option
def new(count: int, size: int, email: str | None, *, as_json: bool, data_dir: Path) -> None:
    """Make IDs that nobody else has or will have, one a line."""

    async def work(desk: FrontDesk) -> list[str]:
        tenant = nobody if email is None else (await desk.accounts.find(email)).id
        return await Inspection(desk.database).make(tenant, count, size)

    for key in _done(data_dir, work):
        click.echo(msgspec.json.encode({"id": key}) if as_json else key)


@ids.command()
@click.argument("key", metavar="ID", type=text)
@json_option
@data_dir_option
def inspect(key: str, *, as_json: bool, data_dir: Path) -> None:
    """Say whether an ID was given out, when, to whom, and what became of it.

    To the range that it came from: reserved at a time, or within a day for one that is closed. That
    it was returned and given out again is remembered for three months.
    """

    fate = _done(data_dir, lambda desk: Inspection(desk.database).fate(key))
    click.echo(msgspec.json.encode(_document(fate)) if as_json else "\n".join(_lines(fate)))


@ids.command()
@click.option(
    "--size",
    type=click.IntRange(size_min, size_max),
    help="Move the counter of this size alone.  [default: of every size]",
)
@click.option(
    "--by",
    type=click.IntRange(min=0),
    metavar="COUNT",
    help="Move so far beyond what keygens know of.  "
    f"[default: {skip_margin} where the database was set back, else nowhere]",
)
@click.option(
    "--to", type=click.IntRange(min=0), metavar="INDEX", help="Move to here; needs --size."
)
@json_option
@data_dir_option
def skip(
    size: int | None, by: int | None, to: int | None, *, as_json: bool, data_dir: Path
) -> None:
    """Move counters on after the database was set back, so that no ID comes twice.

    After a backup was restored, or a replica took over that had not heard of everything, keygens
    that know of more IDs than the database refuse to give any out. Start all keygens that there are
    on their DATA_DIR, so that each tells how far it had come, and run this. Counters are moved past
    all that keygens know of, and some more for those that are not there to tell; never back. IDs
    that were returned before are given to nobody any more, for they may be out again. It also may
    be run where no keygen knows of anything, with --by.
    """
    if to is not None and (size is None or by is not None):
        raise click.UsageError("--to needs --size, and stands without --by")
    skipped = _done(data_dir, lambda desk: WatchStore(desk.database).skip(size, by, to))
    click.echo(
        msgspec.json.encode(_skipped_document(skipped)) if as_json else _skipped_text(skipped)
    )


def _skipped_document(skipped: Skipped) -> dict[str, object]:
    return {
        "moved": [
            {"size": move.size, "from": str(move.before), "to": str(move.after)}
            for move in skipped.moves
        ],
        "returned_not_given_again": skipped.void,
        "still_set_back": [one.counter for one in skipped.set_backs],
    }


def _skipped_text(skipped: Skipped) -> str:
    lines = [
        f"IDs of {move.size} characters: moved on from {move.before} to {move.after}"
        for move in skipped.moves
    ]
    if skipped.void:
        lines.append(f"{skipped.void} returned IDs are given to nobody any more")
    lines += [f"still set back: {one}" for one in skipped.set_backs]
    return "\n".join(lines) or "nothing was moved: no counter is behind what keygens know of"


def _done(data_dir: Path, work: Callable[[FrontDesk], Awaitable[T]]) -> T:
    try:
        return at_front_desk(data_dir, work)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise FatalError("the database has no tables for IDs: run `ydht migrate`") from error


def _document(fate: Fate) -> dict[str, object]:
    last = fate.returns[-1] if fate.returns else None
    return {
        "id": fate.key,
        # Beyond what every reader of JSON takes for an integer.
        "index": str(fate.index),
        # Of what is handed out from memory nobody but its keygen keeps count: it is certain of what
        # was returned.
        "issued": fate.reserved_at is not None,
        "certain": not fate.is_forgotten and (fate.reserved_at is None or last is not None),
        "forgotten": fate.is_forgotten,
        "tenant": fate.tenant,
        "email": fate.email,
        "reserved_at": fate.reserved_at,
        "reserved_until": fate.reserved_until,
        "range_closed_at": fate.closed_at,
        "returned_at": None if last is None else last.at,
        "reissued": last is not None and last.claimed_at is not None,
        "returns": [
            {
                "returned_at": one.at,
                "reissued_after": one.claimed_at,
                "reissued_before": one.reissued_by,
                "certain": one.is_certain,
                "void": one.is_void,
            }
            for one in fate.returns
        ],
    }


def _lines(fate: Fate) -> list[str]:
    shown = f"{fate.key}: number {fate.index} of its size"
    if fate.is_forgotten:
        return [shown, "  unknown: the database was set back since, and has forgotten whose it is"]
    if fate.reserved_at is None:
        return [shown, "  never given out: it is in no range"]
    owner = "nobody (without an API key)" if fate.tenant == nobody else f"tenant {fate.tenant}"
    if fate.email is not None:
        owner += f", {fate.email}"
    reserved = _time(fate.reserved_at)
    if fate.reserved_until != fate.reserved_at:
        reserved += f" to {_time(fate.reserved_until)}"
    lines = [shown, f"  to            {owner}", f"  reserved      {reserved}, with its range"]
    if fate.returns:
        lines.append("  given out     since then, for it was returned")
    elif fate.closed_at is None:
        lines.append("  given out     then or since, or still to be: its range is in use")
    else:
        closed = _time(fate.closed_at)
        lines.append(f"  given out     before {closed}, or never: its range is closed")
    lines += [f"  returned      {_time(one.at)}{_sequel(one)}" for one in fate.returns]
    return lines


def _sequel(one: Return) -> str:
    if one.is_void:
        return "; the database was set back since, so it is given to nobody"
    if one.claimed_at is None:
        return ", and not given out since"
    since = _time(one.claimed_at)
    if one.reissued_by is None:
        return f"; in a pool since {since} to be given out again, or out of it already"
    if one.is_certain:
        return f"; given out again between {since} and {_time(one.reissued_by)}"
    return f"; in a pool since {since}, and lost with its keygen, or given out again before"


def _time(time: object) -> str:
    return str(msgspec.to_builtins(time))
