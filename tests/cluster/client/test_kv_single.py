"""`ydht kv` with one key at a time, as a script uses it: bytes in and out, and exit codes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from tests.cluster.client.terminal import Terminal
from tests.cluster.gateway_platform import Platform, Tenant
from tests.free_ports import free_port
from tests.integration.ended import ended

pytestmark = pytest.mark.asyncio(loop_scope="package")

usage, refused, no_key, condition, unknown, later, not_allowed, not_set_up = (
    2, 65, 66, 73, 74, 75, 77, 78,
)  # fmt: skip
every_byte = bytes(range(256)) * 64 + b"\r\n\n"


async def test_a_value_comes_out_as_it_went_in_to_the_byte(
    terminal: Terminal, tmp_path: Path
) -> None:
    etag = (await terminal.done("put", "bytes", stdin=every_byte)).out.decode().strip()
    assert len(etag) == 24
    assert (await terminal.done("get", "bytes", "--consistency", "strong")).out == every_byte
    file = tmp_path / "value"
    file.write_bytes(every_byte[::-1])
    await terminal.done("put", "file", "--file", str(file), "--consistency", "strong")
    found = await terminal.done("get", "file", "-o", str(file), "--consistency", "strong")
    assert (found.out, file.read_bytes()) == (b"", every_byte[::-1])
    await terminal.done("put", "empty", "--consistency", "strong")
    assert (await terminal.done("get", "empty", "--consistency", "strong")).out == b""


@pytest.mark.parametrize("key", ["..", "a/../b", "a b?c#d%2F", "\u00fc/\u2028", "line\nend", "%"])
async def test_a_key_may_be_anything(terminal: Terminal, key: str) -> None:
    await terminal.done("put", key, f"of {key}", "--consistency", "strong")
    found = await terminal.done("get", key, "--consistency", "strong")
    assert found.out.decode() == f"of {key}"
    [listed] = (await terminal.done("ls", "--json")).json
    assert listed["key"] == key
    await terminal.done("del", key, "--consistency", "strong")
    assert "There is no key" in await terminal.fails(no_key, "get", key, "--consistency", "strong")


async def test_what_is_kept_with_a_value_is_told_as_a_line_that_can_be_imported(
    terminal: Terminal,
) -> None:
    await terminal.done(
        *("put", "page", "<p>", "--content-type", "text/html", "--ttl", "1h"),
        *("--metadata", "Author=Zoë", "--metadata", "n=1", "--consistency", "strong"),
    )
    said = await terminal.done("get", "page", "--json", "--consistency", "strong")
    [line] = said.json
    assert (line["key"], line["value"], line["content_type"]) == ("page", "<p>", "text/html")
    assert line["metadata"] == {"author": "Zoë", "n": "1"}
    assert line["expires_at"].endswith("Z")
    del line["etag"]
    await terminal.done("del", "page", "--consistency", "strong")
    await terminal.done("import", "--consistency", "strong", stdin=json.dumps(line).encode())
    [again] = (await terminal.done("get", "page", "--json", "--consistency", "strong")).json
    assert {name: again[name] for name in line if name != "expires_at"} == {
        name: text for name, text in line.items() if name != "expires_at"
    }


async def test_conditions_hold_or_have_a_code_of_their_own(terminal: Terminal) -> None:
    etag = (await terminal.done("put", "lock", "1", "--if-absent")).out.decode().strip()
    told = await terminal.fails(condition, "put", "lock", "2", "--if-absent")
    assert etag in told
    await terminal.fails(condition, "put", "lock", "2", "--if-match", "0" * 24)
    await terminal.fails(condition, "put", "none", "2", "--if-match", "*")
    await terminal.done("put", "lock", "3", "--if-match", etag)
    await terminal.fails(condition, "del", "lock", "--if-match", etag)
    assert (await terminal.done("get", "lock", "--consistency", "strong")).out == b"3"


async def test_counting_tells_the_sum(terminal: Terminal) -> None:
    assert (await terminal.done("incr", "n")).out == b"1\n"
    assert (await terminal.done("incr", "n", "--by", "-43")).out == b"-42\n"
    assert (await terminal.done("incr", "n", "--json")).json[0]["value"] == -41
    await terminal.done("put", "text", "x", "--consistency", "strong")
    await terminal.fails(refused, "incr", "text")


async def test_keys_are_listed_in_their_order_and_no_further_than_asked(
    terminal: Terminal,
) -> None:
    for key in ("a/1", "a/2", "b", "c\n"):
        await terminal.done("put", key, "v", "--consistency", "strong")
    assert await terminal.keys() == ["a/1", "a/2", "b", "c\\x0a"]
    assert await terminal.keys("a/") == ["a/1", "a/2"]
    assert await terminal.keys("--limit", "2") == ["a/1", "a/2"]
    assert await terminal.keys("--delimiter", "/") == ["a/", "b", "c\\x0a"]
    assert await terminal.keys("nothing") == []
    long = (await terminal.done("ls", "b", "--long")).out.decode().split()
    assert (long[0], long[-2:]) == ("1", ["-", "b"])


async def test_wrong_usage_sends_nothing(terminal: Terminal) -> None:
    for words in (
        ("put", "k", "v", "--file", "/dev/null"),
        ("put", "k", "v", "--if-absent", "--if-match", "x"),
        ("put", "k", "v", "--metadata", "no equals"),
        ("put", "k", "v", "--metadata", "n\u00e4me=x"),
        ("put", "k", "v", "--consistency", "weak"),
        ("get", b"\xff"),
        ("get", "k", "--url", "gopher://x"),
        ("incr", "k", "--by", "one"),
        ("export", "--resume"),
    ):
        assert (await terminal.type(*words)).code == usage, words
    assert await terminal.keys() == []


async def test_what_is_not_allowed_is_refused_in_one_line(terminal: Terminal) -> None:
    assert "larger than 1048576" in await terminal.fails(
        refused, "put", "k", stdin=b"x" * (2 << 20)
    )
    assert "ttl" in await terminal.fails(refused, "put", "k", "v", "--ttl", "0")
    assert "ttl" in await terminal.fails(refused, "put", "k", "v", "--ttl", "soon")
    await terminal.fails(refused, "get", "")
    await terminal.fails(refused, "get", "k" * 1025)
    await terminal.fails(refused, "put", "k", "v", "--metadata", "a=line\nbreak")
    await terminal.fails(refused, "incr", "k", "--by", str(1 << 70))


async def test_an_api_key_is_never_an_option_and_says_what_is_wrong_with_it(
    terminal: Terminal, ada: Tenant, tmp_path: Path
) -> None:
    reader = await ada.make_key("read")
    narrow = await ada.make_key(prefix="mine/")
    assert (await terminal.type("get", "k", "--key", reader.key)).code == usage
    await terminal.fails(not_allowed, "get", "k", "--key-file", str(_key_file(tmp_path, "ydht_x")))
    file = str(_key_file(tmp_path, f"\n {reader.key}\n"))
    await terminal.fails(no_key, "get", "k", "--key-file", file)
    await terminal.fails(not_allowed, "put", "k", "v", "--key-file", file)
    await terminal.with_key(narrow.key).fails(not_allowed, "get", "k")
    await terminal.fails(not_set_up, "get", "k", "--key-file", str(tmp_path / "none"))
    assert "YDHT_API_KEY" in await terminal.with_key("").fails(not_set_up, "get", "k")
    told = await terminal.with_key("two words").fails(not_set_up, "get", "k")
    assert "two words" not in told


def _key_file(path: Path, text: str) -> Path:
    file = path / "key"
    file.write_text(text)
    return file


async def test_who_is_no_gateway_or_not_there_is_told_apart(
    terminal: Terminal, platform: Platform
) -> None:
    absent = f"http://127.0.0.1:{free_port()}"
    told = await terminal.at(absent).fails(later, "get", "k", "--patience", "0")
    assert absent in told
    told = await terminal.at(platform.usermanager.url).fails(not_set_up, "get", "k")
    assert "is YDHT_URL right?" in told


async def test_a_write_whose_answer_is_lost_is_unknown_and_not_tried_again(
    terminal: Terminal,
) -> None:
    asked = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with server:
        told = await terminal.at(url).fails(unknown, "incr", "k")
        assert "may have been done or not" in told
        assert asked == 1
        await terminal.at(url).fails(later, "get", "k", "--patience", "1s")
        assert asked > 2


async def test_nobody_reading_ends_it_as_it_ends_others(terminal: Terminal) -> None:
    await terminal.done("put", "large", "--consistency", "strong", stdin=b"x" * (1 << 20))
    process = await terminal.begin("get", "large", "--consistency", "strong")
    assert process.stdout is not None
    await process.stdout.readexactly(1)
    # What its transport does when it is closed: the other end of the pipe is gone.
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    found = await ended(process)
    assert (found.code, found.err) == (-signal.SIGPIPE, "")


async def test_a_full_disk_and_no_stdout_are_told(terminal: Terminal, tmp_path: Path) -> None:
    await terminal.done("put", "k", "v", "--consistency", "strong")
    for redirection, word in ((">/dev/full", "No space"), (">&-", "no stdout")):
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f'exec "$0" -m services.cli kv get k "$@" {redirection}'),
            *(sys.executable, "--namespace", terminal.namespace, "--consistency", "strong"),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=terminal.environment,
            cwd=Path(__file__).parents[3],
        )
        found = await ended(process)
        assert found.code == 1, found
        assert word in found.err
