"""Imports and exports that are broken off, or lose their gateway, and go on: nothing lost, nothing
doubled."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.cluster.client.terminal import Terminal, lines
from tests.cluster.gateway_platform import Platform
from tests.integration.ended import ended
from tests.integration.tcp_proxy import TcpProxy
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

unknown, later = 74, 75
strong = ("--consistency", "strong")
count = 6_000


def documents() -> list[dict[str, Any]]:
    """Some of them go alone."""
    found: list[dict[str, Any]] = [
        {"key": f"{number:05}", "value": f"value {number} {'x' * 80}"} for number in range(count)
    ]
    for number in range(0, count, 300):
        found[number]["content_type"] = "text/x"
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "lines"
    file.write_bytes(lines(documents()))
    return file


@pytest_asyncio.fixture(loop_scope="package")
async def slow(platform: Platform) -> AsyncIterator[TcpProxy]:
    """A way to the gateway that takes seconds for what the tests send."""
    async with TcpProxy("127.0.0.1", platform.fast.port) as proxy:
        proxy.to_server.bytes_per_s_max = 40_000
        yield proxy


def at(terminal: Terminal, proxy: TcpProxy) -> Terminal:
    return terminal.at(f"http://127.0.0.1:{proxy.port}")


async def all_there(terminal: Terminal) -> None:
    found = await terminal.done("export")
    assert found.json == documents()


async def begun(position: Path, what: str) -> None:
    """Wait until it has come some way, and is told to be there."""

    def look() -> bool:
        return position.exists() and what not in position.read_text()

    await wait_until(look, f"{position.name} tells of more than {what}")


async def test_a_gateway_that_is_killed_and_comes_back_is_waited_for(
    terminal: Terminal, platform: Platform, source: Path, slow: TcpProxy, tmp_path: Path
) -> None:
    position = tmp_path / "position"
    process = await at(terminal, slow).begin(
        "import", str(source), "--position", str(position), *strong
    )
    await begun(position, '"from_line": 1}')
    await platform.fast.kill()
    slow.reset()
    slow.heal()
    await platform.fast.serve()
    await platform.fast.until_whole()
    found = await ended(process)
    assert found.code == 0, found
    assert found.out.startswith(f"{count:,} put, 0 refused".encode())
    assert not position.exists()
    await all_there(terminal)


async def test_an_import_that_has_no_patience_says_where_it_is_and_goes_on_there(
    terminal: Terminal, platform: Platform, source: Path, slow: TcpProxy, tmp_path: Path
) -> None:
    position = tmp_path / "position"
    words = ("import", str(source), "--position", str(position), "--patience", "300ms", *strong)
    process = await at(terminal, slow).begin(*words)
    await begun(position, '"from_line": 1}')
    slow.refuse = True
    slow.reset()
    found = await ended(process)
    assert found.code in (unknown, later), found
    assert "Broken off: " in found.err
    assert f"add --position {position} to the same command" in found.err
    slow.heal()
    again = await at(terminal, slow).done(*words)
    assert "Going on from line " in again.err
    put = int(again.out.split()[0].replace(b",", b""))
    assert put < count
    assert not position.exists()
    await all_there(terminal)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_import_that_is_ended_tells_the_line_to_go_on_from(
    terminal: Terminal, source: Path, slow: TcpProxy, number: signal.Signals, code: int
) -> None:
    process = await at(terminal, slow).begin("import", str(source), "--json", *strong)
    connected = await wait_until(lambda: slow.connects >= 2, "batches are under way")
    assert connected
    process.send_signal(number)
    found = await ended(process)
    assert found.code == code, found
    [told] = found.json
    assert told["done"] is False
    assert f"add --from-line {told['from_line']} to" in found.err
    # What was settled before that line is there, whether or not more is.
    keys = set(await terminal.keys())
    assert {one["key"] for one in documents()[: told["from_line"] - 1]} <= keys
    await terminal.done("import", str(source), "--from-line", str(told["from_line"]), *strong)
    await all_there(terminal)


async def test_an_export_that_is_ended_goes_on_where_its_file_ends(
    terminal: Terminal, source: Path, slow: TcpProxy, tmp_path: Path
) -> None:
    await terminal.done("import", str(source), *strong)
    slow.heal()
    slow.to_client.bytes_per_s_max = 400_000
    output = tmp_path / "exported"
    position = tmp_path / "exported.position"
    process = await at(terminal, slow).begin("export", "-o", str(output))
    await begun(position, '"cursor": ""')
    process.send_signal(signal.SIGINT)
    found = await ended(process)
    assert found.code == 130, found
    assert f"add --output {output} --resume to the same command" in found.err
    # As after `kill -9` amidst a page.
    with output.open("ab") as file:
        file.write(b'{"key": "half a li')
    other = await terminal.type("export", "0", "-o", str(output), "--resume")
    assert "position of something else" in other.err
    slow.heal()
    [told] = (await at(terminal, slow).done("export", "-o", str(output), "--resume", "--json")).json
    assert 0 < told["keys"] < count
    assert output.read_bytes() == (await terminal.done("export")).out
    assert not position.exists()
    assert (await terminal.type("export", "-o", str(output), "--resume")).code == 1


async def test_an_export_to_a_pipe_tells_the_cursor_to_go_on_from(
    terminal: Terminal, source: Path, slow: TcpProxy
) -> None:
    await terminal.done("import", str(source), *strong)
    process = await at(terminal, slow).begin("export", "--patience", "300ms")
    assert process.stdout is not None
    async with asyncio.timeout(30):
        first = await process.stdout.readline()
    slow.refuse = True
    slow.reset()
    found = await ended(process)
    if found.code:
        assert found.code == later
        cursor = found.err.partition("--cursor ")[2].split()[0]
        rest = await terminal.done("export", "--cursor", cursor)
        whole = first + found.out + rest.out
    else:
        whole = first + found.out
    assert whole == (await terminal.done("export")).out
