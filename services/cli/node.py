"""`ydht node`: what lies in a node's directory, and is it sound; and the scrub of one that runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.cli.node_scrub import scrub
from services.core.errors import FatalError
from services.dhtnode.inspection import Inspection, Survey, inspect
from services.runtime.disk import SystemDisk

_directory = click.argument(
    "directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path)
)


@click.group()
def node() -> None:
    """Look into the directory of a node, such as ./data/nodes/node-1, or have one scrubbed."""


node.add_command(scrub)


@node.command(name="inspect")
@_directory
def inspect_command(directory: Path) -> None:
    """Show the files of a node: sequences, records, live and dead bytes."""
    found = _inspected(directory)
    table = Table(box=None, pad_edge=False)
    for title in ("file", "kind", "sequences", "frames", "records", "used", "live", "dead"):
        table.add_column(title, justify="left" if title in ("file", "kind") else "right")
    for survey in found.files:
        table.add_row(*_cells(survey))
    click.echo(f"{found.node_id}, store {found.store_id.hex()}, {found.keys:,} keys")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    _report(found)


@node.command()
@_directory
def verify(directory: Path) -> None:
    """Check every checksum of a node's files.

    Exit code 1 if something is damaged, or if the log ends in what the next start would cut: a
    crash may have torn it, or it was damaged later. Stop the node first, for what it is just
    writing looks torn as well.
    """
    found = _inspected(directory)
    frames = sum(survey.frames for survey in found.files)
    files, checked = _counted(len(found.files), "file"), _counted(frames, "frame")
    click.echo(f"{found.node_id}: {files}, {checked} checked")
    _report(found)
    if any(survey.torn_bytes for survey in found.files):
        click.echo("All else is sound.")
        sys.exit(1)
    click.echo("Everything is sound.")


def _inspected(directory: Path) -> Inspection:
    inspector = inspect(SystemDisk(), directory)
    console = Console(stderr=True)
    # Elsewhere than on a terminal nothing can be taken back, and an empty line would be left.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Reading", total=1.0)
        try:
            for share in inspector.steps():
                progress.update(task, completed=share)
        except OSError as error:
            raise FatalError(f"{error.filename}: {error.strerror}") from error
    return inspector.found


def _cells(survey: Survey) -> tuple[str, ...]:
    if survey.kind == "spare segment":
        return survey.path.name, survey.kind, "", "", "", "", "", ""
    return (
        survey.path.name,
        survey.kind,
        f"{survey.first:,} to {survey.last:,}" if survey.kind == "segment" else f"{survey.first:,}",
        f"{survey.frames:,}",
        f"{survey.records:,}",
        _size(survey.used_bytes),
        _size(survey.live_bytes),
        _size(survey.dead_bytes),
    )


def _report(found: Inspection) -> None:
    for survey in found.files:
        if survey.torn_bytes:
            click.echo(
                f"{survey.path.name} ends in {survey.torn_bytes:,} bytes that are no whole frame: "
                "a write that a crash has torn, or damage to the last one; the next start cuts them"
            )
    for damage in found.damage:
        click.echo(f"ydht: {damage}", err=True)
    if found.damage:
        sys.exit(1)


def _counted(count: int, of: str) -> str:
    return f"{count:,} {of}" if count == 1 else f"{count:,} {of}s"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
