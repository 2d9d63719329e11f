"""`ydht kv`: values of a gateway, for whoever has an API key. A client as any other."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import httpx
import msgspec

from services.cli.endings import NotDoneError, RefusedError
from services.cli.kv_client import Access, KvClient, path_of, told
from services.cli.kv_documents import line_of
from services.cli.kv_export import export
from services.cli.kv_import import import_command
from services.cli.kv_options import access_options, consistency_option, exit_codes
from services.cli.kv_output import write_line, write_out
from services.cli.options import json_option, text
from services.core.listings import list_limit_max
from services.core.record import value_bytes_max

patience_default: Final = "10s"
_name: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_control: Final = re.compile(r"[\x00-\x1f\x7f\\]")


@click.group(epilog=" ".join(exit_codes.split()))
def kv() -> None:
    """Get, put and list values through a gateway, one by one or by the file.

    The gateway is that of YDHT_URL, and YDHT_API_KEY, or the file that YDHT_API_KEY_FILE names, has
    the API key.
    """


kv.add_command(import_command)
kv.add_command(export)

key_argument = click.argument("key", metavar="KEY", type=text)
if_match_option = click.option(
    "--if-match", metavar="ETAG", type=text, help="Only if this is the version that is there."
)


@kv.command()
@key_argument
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file to write the value to; it is not touched if there is no value.",
)
@consistency_option
@json_option
@access_options(patience_default)
def get(
    access: Access, key: str, *, output: Path | None, consistency: str | None, as_json: bool
) -> None:
    """Write a value to stdout: its bytes and nothing else."""
    if output is not None and as_json:
        raise click.UsageError("--output and --json contradict each other")
    headers = {"X-Consistency": consistency} if consistency else None
    answer = _asked(access, "GET", path_of(key), headers=headers, reads=True)
    if as_json:
        write_out(msgspec.json.encode(_document(key, answer)) + b"\n")
    elif output is None:
        write_out(answer.content)
    else:
        try:
            output.write_bytes(answer.content)
        except OSError as error:
            raise NotDoneError(f"{output} cannot be written: {error.strerror}") from error


@kv.command()
@key_argument
@click.argument("value", type=text, required=False)
@click.option(
    "--file",
    "file",
    type=click.File("rb"),
    help="A file with the value; without it and VALUE, stdin.",
)
@click.option("--ttl", type=text, help="When it ends by itself, such as 90s, 1h30m or 7d.")
@click.option("--content-type", type=text, help="Kept with the value, as image/png.")
@click.option(
    "--metadata",
    "metadata",
    type=text,
    multiple=True,
    metavar="NAME=TEXT",
    help="Kept with the value; may be given several times.",
)
@click.option("--if-absent", is_flag=True, help="Only if there is no value.")
@if_match_option
@consistency_option
@json_option
@access_options(patience_default)
def put(
    access: Access,
    key: str,
    value: str | None,
    *,
    file: BinaryIO | None,
    ttl: str | None,
    content_type: str | None,
    metadata: tuple[str, ...],
    if_absent: bool,
    if_match: str | None,
    consistency: str | None,
    as_json: bool,
) -> None:
    """Store a value, and tell its etag. The value is VALUE, a file, or what stdin has."""
    if value is not None and file is not None:
        raise click.UsageError("VALUE and --file contradict each other")
    if if_absent and if_match is not None:
        raise click.UsageError("--if-absent and --if-match contradict each other")
    headers = dict(_metadata_header(one) for one in metadata)
    headers |= _conditions(if_match, consistency)
    if if_absent:
        headers["If-None-Match"] = "*"
    if content_type:
        headers["Content-Type"] = content_type
    content = value.encode() if value is not None else _read(file)
    answer = _asked(
        access,
        "PUT",
        path_of(key),
        params={"ttl": ttl} if ttl is not None else None,
        headers=headers,
        content=content,
    )
    _tell_change(answer, as_json=as_json)


@kv.command(name="del")
@key_argument
@if_match_option
@consistency_option
@json_option
@access_options(patience_default)
def delete(
    access: Access, key: str, *, if_match: str | None, consistency: str | None, as_json: bool
) -> None:
    """Delete a key. To delete what is not there is done, too."""
    headers = _conditions(if_match, consistency)
    answer = _asked(access, "DELETE", path_of(key), headers=headers)
    if as_json:
        _tell_change(answer, as_json=True)


@kv.command()
@key_argument
@click.option("--by", type=int, default=1, show_default=True, help="May be negative.")
@if_match_option
@json_option
@access_options(patience_default)
def incr(access: Access, key: str, *, by: int, if_match: str | None, as_json: bool) -> None:
    """Add to a whole number, and tell the sum. A key that is not there counts as 0."""
    answer = _asked(
        access,
        "POST",
        path_of(key) + "/incr",
        params={"by": by},
        headers=_conditions(if_match, None),
    )
    found = told(answer, dict[str, Any])
    write_line(answer.text.strip() if as_json else str(found.get("value")))


class _Listed(msgspec.Struct, frozen=True):
    key: str
    size: int
    updated_at: str
    expires_at: str | None


class _Page(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]
    prefixes: list[str]
    cursor: str | None


@kv.command()
@click.argument("prefix", type=text, default="")
@click.option("--delimiter", type=text, help="Tell keys that go on behind it as one prefix.")
@click.option("--limit", type=click.IntRange(1), help="Not more than so many.  [default: all]")
@click.option("--long", "-l", "is_long", is_flag=True, help="With size, time and expiry.")
@json_option
@access_options("1m")
def ls(
    access: Access,
    prefix: str,
    *,
    delimiter: str | None,
    limit: int | None,
    is_long: bool,
    as_json: bool,
) -> None:
    """List keys in their order, one a line.

    Control characters in them, and backslashes, are shown as \\xNN; --json has keys as they are.
    """
    params: dict[str, str | int] = {"prefix": prefix}
    if delimiter is not None:
        params["delimiter"] = delimiter

    async def listed() -> None:
        left = limit
        async with KvClient(access) as client:
            while left is None or left > 0:
                params["limit"] = min(left or list_limit_max, list_limit_max)
                answer = await client.ask(
                    "GET", "/v1/kv", params=params, repeatable=True, reads=True
                )
                page = told(answer, _Page)
                write_out(b"".join(_lines(page, is_long=is_long, as_json=as_json)))
                if page.cursor is None:
                    return
                params["cursor"] = page.cursor
                if left is not None:
                    left -= len(page.keys) + len(page.prefixes)

    asyncio.run(listed())


def _asked(access: Access, method: str, path: str, **more: Any) -> httpx.Response:
    reads = more.pop("reads", False)

    async def asked() -> httpx.Response:
        async with KvClient(access) as client:
            # A write that may have been done is the user's to look after.
            return await client.ask(method, path, repeatable=reads, reads=reads, **more)

    return asyncio.run(asked())


def _conditions(if_match: str | None, consistency: str | None) -> dict[str, str]:
    headers = {}
    if if_match is not None:
        bare = if_match.strip('"')
        headers["If-Match"] = bare if bare == "*" else f'"{bare}"'
    if consistency is not None:
        headers["X-Consistency"] = consistency
    return headers


def _metadata_header(given: str) -> tuple[str, str]:
    name, equals, content = given.partition("=")
    if not equals or not _name.fullmatch(name):
        raise click.UsageError(f"--metadata {given!r} is not NAME=TEXT, with a name in ASCII")
    return f"X-Metadata-{name}", content


def _read(file: BinaryIO | None) -> bytes:
    """The value, unless it is larger than any may be: that is told before it is sent."""
    if file is None and sys.stdin is None:
        raise NotDoneError("there is no stdin to read the value from")
    try:
        # One more than is allowed, and no more than that.
        content = (file or sys.stdin.buffer).read(value_bytes_max + 1)
    except OSError as error:
        raise NotDoneError(f"the value cannot be read: {error.strerror}") from error
    if len(content) > value_bytes_max:
        raise RefusedError(f"the value is larger than {value_bytes_max} bytes, which are allowed")
    return content


def _tell_change(answer: httpx.Response, *, as_json: bool) -> None:
    found = told(answer, dict[str, Any])
    write_line(answer.text.strip() if as_json else str(found.get("etag")))


def _document(key: str, answer: httpx.Response) -> dict[str, Any]:
    """A value as a line, with what else is told of it."""
    document: dict[str, Any] = msgspec.to_builtins(line_of(key, answer))
    document["etag"] = answer.headers.get("ETag", "").strip('"')
    return document


def _lines(page: _Page, *, is_long: bool, as_json: bool) -> list[bytes]:
    """Keys and prefixes are each in their order, and told together in it."""
    found: list[tuple[bytes, bytes]] = []
    for raw in page.keys:
        key = msgspec.json.decode(raw, type=_Listed)
        line = bytes(raw) if as_json else _shown(key, is_long=is_long).encode()
        found.append((key.key.encode(), line))
    for prefix in page.prefixes:
        shown = f"{'-':>9}  {'-':<24}  {'-':<24}  " if is_long else ""
        plain = (shown + _escaped(prefix)).encode()
        line = msgspec.json.encode({"prefix": prefix}) if as_json else plain
        found.append((prefix.encode(), line))
    return [line + b"\n" for _, line in sorted(found)]


def _shown(key: _Listed, *, is_long: bool) -> str:
    if not is_long:
        return _escaped(key.key)
    return f"{key.size:>9}  {key.updated_at:<24}  {key.expires_at or '-':<24}  {_escaped(key.key)}"


def _escaped(key: str) -> str:
    return _control.sub(lambda match: f"\\x{ord(match[0]):02x}", key)
