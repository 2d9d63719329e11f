"""How far a long command has come, on stderr: a bar on a terminal, elsewhere a line at times."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import click

if TYPE_CHECKING:
    from rich.progress import Progress

# For logs: often enough to see that it goes on.
line_every_s: Final = 10.0


class ProgressBar:
    """`advance` as often as you like; `waiting` for what it stands still, if it does."""

    def __init__(self, what: str, total_bytes: int | None = None) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._bar: Progress | None = None
        self._began_s = time.monotonic()
        self._told_s = self._began_s

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = self._begun()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, words: str, count: int, bytes_done: int = 0) -> None:
        """`count` says how much has been done of which `words` tell."""
        now_s = time.monotonic()
        rate = count / max(now_s - self._began_s, 0.001)
        if self._bar is not None:
            of = self._bar.task_ids[0]
            self._bar.update(of, completed=bytes_done, description=f"{words}, {rate:,.0f}/s")
        elif now_s - self._told_s >= line_every_s:
            self._told_s = now_s
            say(f"{words}, {rate:,.0f} a second")

    def _begun(self) -> Progress:
        # Importing it takes longer than most commands do.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.add_task(self._what, total=self._total_bytes)
        bar.start()
        return bar


def say(text: str) -> None:
    """Tell a person. Nobody may be there to read it."""
    try:
        click.echo(text, err=True)
    except OSError:
        return


def seconds_in_words(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
