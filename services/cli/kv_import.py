"""`ydht kv import`: put what lines of JSON say, and go on after a break where it was."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final

import click
import msgspec

from services.cli.endings import NotDoneError
from services.cli.kv_client import Access, KvClient
from services.cli.kv_lines import put_of
from services.cli.kv_options import access_options, consistency_option, exit_codes
from services.cli.kv_output import interruptible, write_line
from services.cli.kv_position import PositionFile
from services.cli.kv_progress import ProgressBar, say, seconds_in_words
from services.cli.kv_reading import Chunks, Line, Splitter
from services.cli.kv_sending import Sender
from services.cli.options import json_option
from services.core.errors import FatalError
from services.runtime.clock import SystemClock

# To people; --json names all.
refused_shown_max: Final = 50
not_all_code: Final = 1


class Import:
    """One run. What it tells of itself is true whenever it ends, and however."""

    def __init__(self, from_line: int, position: PositionFile | None, *, as_json: bool) -> None:
        self.refused = 0
        self.expired = 0
        self._from_line = from_line
        self._file = position
        self._as_json = as_json
        self._clock = SystemClock()
        self._sender: Sender | None = None

    @property
    def put(self) -> int:
        return 0 if self._sender is None else self._sender.put

    @property
    def position(self) -> int:
        return self._from_line if self._sender is None else self._sender.position

    @property
    def words(self) -> str:
        words = f"{self.put:,} put, {self.refused:,} refused"
        return f"{words}, {self.expired:,} expired already" if self.expired else words

    async def run(
        self, access: Access, consistency: str | None, source: BinaryIO, bar: ProgressBar
    ) -> None:
        chunks, splitter = Chunks(source.fileno()), Splitter()

        def progress() -> None:
            bar.advance(self.words, self.put, chunks.read_bytes)
            if self._file is not None and self._file.is_due():
                self.note()

        async with KvClient(access) as client:
            sender = Sender(client, consistency, self._from_line, self._refuse, progress)
            self._sender = sender
            async with sender:
                async for chunk in chunks:
                    for line in splitter.feed(chunk):
                        await self._take(line, sender)
                    # What is piped in may pause for long.
                    await sender.flush()
                for line in splitter.end():
                    await self._take(line, sender)
                await sender.flush()

    def note(self) -> None:
        if self._file is not None:
            self._file.write({"from_line": self.position})

    async def _take(self, line: Line, sender: Sender) -> None:
        if line.number < self._from_line:
            return
        if line.text != b"":
            try:
                put = put_of(line, self._clock.wall_ms())
            except ValueError as error:
                self._refuse(line.number, "", str(error))
            else:
                if put is None:
                    self.expired += 1
                else:
                    await sender.add(put)
        sender.passed(line.number)

    def _refuse(self, number: int, key: str, why: str) -> None:
        self.refused += 1
        if self._as_json:
            write_line(msgspec.json.encode({"line": number, "key": key, "refused": why}).decode())
        elif self.refused <= refused_shown_max:
            say(f"line {number}{f', {key[:80]!r}' if key else ''}: {why}")
        elif self.refused == refused_shown_max + 1:
            say("More lines are refused; --json names all of them.")


@click.command(name="import", epilog=" ".join(exit_codes.split()))
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--from-line",
    type=click.IntRange(1),
    help="Leave out the lines before: as told when it was broken off.",
)
@click.option(
    "--position",
    "position_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep in this file how far it is, and go on from there; it is removed at the end.",
)
@consistency_option
@json_option
@access_options("2m")
def import_command(
    access: Access,
    file: BinaryIO,
    *,
    from_line: int | None,
    position_path: Path | None,
    consistency: str | None,
    as_json: bool,
) -> None:
    """Put what lines of JSON say: one key and its value a line, as `ydht kv export` writes them.

    \b
    {"key": "a", "value": "text", "ttl": "1h"}
    {"key": "b", "value_base64": "AAEC", "content_type": "image/png"}

    Of a key that is there twice the last line wins. Lines that are wrong are named and left out.
    A break loses nothing: to go on from the line that is told then puts some lines once more.
    """
    if from_line is not None and position_path is not None:
        raise click.UsageError("--from-line and --position contradict each other")
    kept = None
    if position_path is not None:
        name = str(Path(file.name).resolve()) if isinstance(file.name, str) else "stdin"
        kept = PositionFile(position_path, {"import": name})
        from_line = _line_of(kept, position_path)
    run = Import(from_line or 1, kept, as_json=as_json)
    began_s = time.monotonic()
    try:
        with ProgressBar("reading", _size_of(file)) as bar:
            interruptible(lambda: run.run(access, consistency, file, bar))
    except (FatalError, KeyboardInterrupt, SystemExit):
        run.note()
        _tell_break(run, position_path, as_json=as_json)
        raise
    if kept is not None:
        kept.remove()
    _tell_end(run, time.monotonic() - began_s, as_json=as_json)
    if run.refused:
        sys.exit(not_all_code)


def _line_of(kept: PositionFile, path: Path) -> int | None:
    position = kept.read()
    if position is None:
        return None
    found = position.get("from_line")
    if not isinstance(found, int) or found < 1:
        raise NotDoneError(f"{path} names no line: remove it")
    say(f"Going on from line {found:,}.")
    return found


def _size_of(file: BinaryIO) -> int | None:
    """None of what is piped in."""
    return (
        Path(file.name).stat().st_size if isinstance(file.name, str) and file.seekable() else None
    )


def _tell_break(run: Import, position_path: Path | None, *, as_json: bool) -> None:
    if as_json:
        _tell_json(run, done=False)
    option = f"--from-line {run.position}"
    if position_path is not None:
        option = f"--position {shlex.quote(str(position_path))}"
    say(f"Broken off: {run.words}. To go on, add {option} to the same command.")


def _tell_end(run: Import, took_s: float, *, as_json: bool) -> None:
    if as_json:
        _tell_json(run, done=True)
    else:
        rate = run.put / max(took_s, 0.001)
        write_line(f"{run.words}, in {seconds_in_words(took_s)} ({rate:,.0f} a second)")


def _tell_json(run: Import, *, done: bool) -> None:
    found = {"put": run.put, "refused": run.refused, "expired": run.expired, "done": done}
    if not done:
        found["from_line"] = run.position
    write_line(msgspec.json.encode(found).decode())
