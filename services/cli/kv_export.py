"""`ydht kv export`: all keys of a prefix with their values, as lines that can be imported.

A page is listed, its values are read, and it is written whole before the next one: so a break is
between two pages, and the cursor that is told then leads on from there. What was deleted since it
was listed is left out; what is written meanwhile may be in it or not.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from services.cli.endings import NoSuchKeyError, NotAllowedError, NotDoneError
from services.cli.kv_client import Access, KvClient, Refusal, ending, passing, path_of, told
from services.cli.kv_documents import line_of
from services.cli.kv_options import access_options, exit_codes
from services.cli.kv_output import interruptible, write_all, write_line, write_out
from services.cli.kv_position import PositionFile
from services.cli.kv_progress import ProgressBar, say, seconds_in_words
from services.cli.options import json_option, text
from services.core.errors import FatalError
from services.core.value_lines import GotItem, GotItems

page_keys_max: Final = 1000
# An answer has 16 MiB, and a value may take four thirds of itself there, or more as text.
batch_bytes_max: Final = 4 << 20
batch_keys_max: Final = 500
# Of reads one by one, for API keys that may not send batches.
at_once_max: Final = 8


class _Listed(msgspec.Struct, frozen=True):
    key: str
    size: int


class _Page(msgspec.Struct, frozen=True):
    keys: list[_Listed]
    cursor: str | None


class Export:
    """One run. What it tells of itself is true whenever it ends, and however."""

    def __init__(self, prefix: str, cursor: str, write: Callable[[bytes], None]) -> None:
        self.keys = 0
        self.bytes = 0
        # Where the next page begins; all before it is written.
        self.cursor = cursor
        self._prefix = prefix
        self._write = write
        self._one_by_one = False

    async def run(self, access: Access, after_page: Callable[[], None]) -> None:
        async with KvClient(access) as client:
            while True:
                page = await self._listed(client)
                lines: list[bytes] = []
                for keys in _batches(page.keys):
                    lines += await self._lines(client, keys)
                written = b"".join(lines)
                self._write(written)
                self.keys += len(lines)
                self.bytes += len(written)
                if page.cursor is None:
                    return
                self.cursor = page.cursor
                after_page()

    async def _listed(self, client: KvClient) -> _Page:
        params: dict[str, str | int] = {"prefix": self._prefix, "limit": page_keys_max}
        if self.cursor:
            params["cursor"] = self.cursor
        answer = await client.ask("GET", "/v1/kv", params=params, repeatable=True, reads=True)
        return told(answer, _Page)

    async def _lines(self, client: KvClient, keys: Sequence[str]) -> list[bytes]:
        if not self._one_by_one:
            try:
                return await self._read_together(client, keys)
            except NotAllowedError:
                # Batches take the scope `write`, even to read.
                self._one_by_one = True
        found: list[bytes] = []
        for start in range(0, len(keys), at_once_max):
            some = keys[start : start + at_once_max]
            lines = await asyncio.gather(*(self._read_alone(client, key) for key in some))
            found += [line for line in lines if line is not None]
        return found

    async def _read_together(self, client: KvClient, keys: Sequence[str]) -> list[bytes]:
        operations = [{"op": "get", "key": key} for key in keys]
        answer = await client.ask(
            "POST",
            "/v1/batch",
            headers={"Content-Type": "application/json"},
            content=msgspec.json.encode({"operations": operations}),
            repeatable=True,
            reads=True,
        )
        lines: list[bytes] = []
        for got in told(answer, GotItems).results:
            if got.status == 200:
                lines.append(msgspec.json.encode(got.line()) + b"\n")
            elif got.code == "response_too_large" or got.status in passing:
                # Alone it has room, and is asked for again with patience.
                line = await self._read_alone(client, got.key)
                lines += [] if line is None else [line]
            elif got.status != 404:
                raise _unreadable(got)
        return lines

    async def _read_alone(self, client: KvClient, key: str) -> bytes | None:
        try:
            answer = await client.ask("GET", path_of(key), repeatable=True, reads=True)
        except NoSuchKeyError:
            return None
        return msgspec.json.encode(line_of(key, answer)) + b"\n"


@click.command(epilog=" ".join(exit_codes.split()))
@click.argument("prefix", type=text, default="")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file to write to, which a break leaves as far as it is.  [default: stdout]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on after a break where the file of --output ends; its .position says where that is.",
)
@click.option("--cursor", type=text, help="Begin there: as told when it was broken off.")
@json_option
@access_options("2m")
def export(
    access: Access,
    prefix: str,
    *,
    output: Path | None,
    resume: bool,
    cursor: str | None,
    as_json: bool,
) -> None:
    """Write all keys that begin with PREFIX, with their values, one a line in their order.

    With --json and --output, what became of it is told on stdout.
    """
    if output is None and (resume or as_json):
        raise click.UsageError("--resume and --json need --output")
    if resume and cursor is not None:
        raise click.UsageError("--resume and --cursor contradict each other")
    began_s = time.monotonic()
    if output is None:
        run = Export(prefix, cursor or "", write_out)
        _run(run, access, lambda: None, "")
    else:
        run = _to_file(access, prefix, cursor or "", output, resume=resume)
    if as_json:
        write_line(msgspec.json.encode({"keys": run.keys, "bytes": run.bytes}).decode())
    else:
        took_s = time.monotonic() - began_s
        say(f"{run.keys:,} keys, in {seconds_in_words(took_s)}")


def _to_file(access: Access, prefix: str, cursor: str, output: Path, *, resume: bool) -> Export:
    """The position beside it says how much of the file is whole pages."""
    of = {"url": access.url, "namespace": access.namespace or "default", "prefix": prefix}
    kept = PositionFile(output.with_name(f"{output.name}.position"), of)
    position = kept.read() if resume else None
    if resume and position is None and output.exists():
        raise NotDoneError(f"there is no {output.name}.position: {output} is whole, or not ours")
    kept_bytes = int(position["bytes"]) if position else 0
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if os.fstat(descriptor).st_size < kept_bytes:
                raise NotDoneError(f"{output} is shorter than {output.name}.position says")
            os.ftruncate(descriptor, kept_bytes)
            os.lseek(descriptor, kept_bytes, os.SEEK_SET)
            run = Export(
                prefix,
                str(position["cursor"]) if position else cursor,
                lambda data: write_all(descriptor, data),
            )

            def note() -> None:
                # What the position counts on has to be there first.
                os.fsync(descriptor)
                kept.write({"cursor": run.cursor, "bytes": kept_bytes + run.bytes})

            note()
            _run(run, access, note, f"--output {shlex.quote(str(output))} --resume")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise NotDoneError(f"{output} cannot be written: {error.strerror}") from error
    kept.remove()
    return run


def _run(run: Export, access: Access, note: Callable[[], None], again: str) -> None:
    try:
        with ProgressBar("reading") as bar:

            def after_page() -> None:
                note()
                bar.advance(f"{run.keys:,} keys", run.keys)

            interruptible(lambda: run.run(access, after_page))
    except (FatalError, KeyboardInterrupt, SystemExit):
        options = again or (f"--cursor {run.cursor}" if run.cursor else "")
        hint = f" To go on, add {options} to the same command." if options else ""
        say(f"Broken off after {run.keys:,} keys.{hint}")
        raise


def _batches(keys: Sequence[_Listed]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for one in keys:
        if batch and (len(batch) == batch_keys_max or size + one.size > batch_bytes_max):
            yield batch
            batch, size = [], 0
        batch.append(one.key)
        size += one.size
    if batch:
        yield batch


def _unreadable(got: GotItem) -> FatalError:
    """A file that lacks a key must not look like one that has all."""
    why = ending(Refusal(got.code, got.detail, status=got.status), reads=True)
    return type(why)(f"the key {got.key[:80]!r} could not be read: {why}")
