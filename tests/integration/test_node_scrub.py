"""Bit rot in a real node: a record in its memory, a snapshot and a segment on its disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from services.cli.commands import main
from services.cli.endings import UnreachableError
from services.core import messages as m
from services.core.wire import OK
from tests.integration.node_process import (
    NodeClient,
    NodeProcess,
    node_client,
    node_process,
    prefix,
    secret,
)
from tests.integration.process_memory import rot
from tests.waiting import wait_until

content = b"what nobody else has %d" % 0x5EED
keys = 500


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeProcess]:
    async with node_process(tmp_path / "data") as node:
        yield node


@pytest.fixture
async def client(node: NodeProcess) -> AsyncIterator[NodeClient]:
    async with node_client(node) as client:
        for number in range(keys):
            assert await client.put(b"key-%d" % number, content + b"-%d." % number) == (OK, b"")
        yield client


async def scrubbed(node: NodeProcess) -> dict[str, Any]:
    """Have it scrub now; what it tells afterwards."""
    before = (await node.metrics())["scrub_passes"]
    asked = await node.signed("/scrub", tenant=None, method="POST")
    assert asked.status_code == 202
    told: dict[str, Any] = {}
    async with asyncio.timeout(30):
        while not told or told["passes"] == before or told["state"] != "idle":
            await asyncio.sleep(0.05)
            told = (await node.signed("/scrub", tenant=None)).json()
    return told


async def snapshot(node: NodeProcess) -> Path:
    before = (await node.metrics())["snapshots"]
    await node.signed("/snapshot", tenant=None, method="POST")

    async def written() -> bool:
        return bool((await node.metrics())["snapshots"] > before)

    async with asyncio.timeout(20):
        while not await written():  # noqa: ASYNC110  It is asked over HTTP.
            await asyncio.sleep(0.05)
    return max(node.directory.glob("snapshot-*"))


async def value_of(client: NodeClient, number: int) -> bytes:
    kind, record = await client.ask(m.GET, prefix + b"key-%d" % number)
    assert kind == OK
    return record[23:]


def damage(path: Path, what: bytes) -> int:
    """Flip a bit of these bytes in a file; where they are."""
    offset = path.read_bytes().index(what)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes((what[0] ^ 1,)))
    return offset


async def test_a_healthy_node_finds_nothing(node: NodeProcess, client: NodeClient) -> None:
    await snapshot(node)
    told = await scrubbed(node)
    assert told["found_in_memory"] == told["found_on_disk"] == told["mended"] == 0
    figures = await node.metrics()
    assert figures["scrub_passes"] == 1
    assert figures["scrub_records"] == keys
    assert 0 <= figures["scrub_age_seconds"] < 30
    assert "error" not in node.said.lower()


async def test_only_who_has_the_secret_may_ask_for_a_scrub(node: NodeProcess) -> None:
    assert (await node.get("/scrub")).status_code == 401


async def test_a_flipped_bit_in_memory_and_one_in_a_snapshot_are_mended_and_reported(
    node: NodeProcess, client: NodeClient
) -> None:
    path = await snapshot(node)
    assert rot(node.process.pid, content + b"-77.", 0) >= 1
    assert (await value_of(client, 77)) != content + b"-77."
    damage(path, content + b"-123.")
    told = await scrubbed(node)
    assert told["found_in_memory"] == 1
    assert told["found_on_disk"] == 1
    assert told["mended"] == 2
    assert told["damaged_files"] == []
    assert await value_of(client, 77) == content + b"-77."
    assert not path.exists()
    assert "rot in memory was mended from the files" in node.said
    assert f"file={path}" in node.said
    assert content.decode() not in node.said
    figures = await node.metrics()
    assert (figures["scrub_found_in_memory"], figures["scrub_mended"]) == (1, 2)
    # And what it has by now is what a restart has.
    assert await node.terminate() == 0
    await node.serve()
    async with node_client(node) as again:
        for number in (0, 77, 123, keys - 1):
            assert await value_of(again, number) == content + b"-%d." % number
    told = await scrubbed(node)
    assert told["found_in_memory"] == told["found_on_disk"] == 0


async def test_the_command_has_a_node_scrubbed_and_says_what_was_found(
    node: NodeProcess, client: NodeClient, tmp_path: Path
) -> None:
    environment = {"CLUSTER_SECRET": secret, "DATA_DIR": str(tmp_path)}

    async def run(*arguments: str) -> Result:
        runner = CliRunner()
        return await asyncio.to_thread(
            runner.invoke, main, ["node", "scrub", *arguments], env=environment
        )

    well = await run(node.url)
    assert well.output == f"{node.url}: nothing has rotted since the node was started\n"
    assert rot(node.process.pid, content + b"-7.", 1) >= 1
    mended = await run(node.url, "--json")
    assert mended.exit_code == 0, mended.output
    told = json.loads(mended.stdout)
    assert (told["url"], told["found_in_memory"], told["mended"]) == (node.url, 1, 1)
    (tmp_path / "up.json").write_text(
        json.dumps({"nodes": {"node-1": {"url": node.url, "pid": 1}}})
    )
    assert "1 found in memory and 0 on disk, 1 mended" in (await run()).output
    silent = await run(node.url, "http://127.0.0.1:9")
    assert silent.exit_code == 1
    assert "it cannot be asked" in silent.output
    assert (await run("http://127.0.0.1:9")).exit_code == UnreachableError.exit_code
    assert (await run("127.0.0.1")).exit_code == 2


@pytest.mark.parametrize("snapshots", [0, 1])
async def test_a_damaged_segment_does_not_keep_the_node_from_its_next_start(
    node: NodeProcess, client: NodeClient, snapshots: int
) -> None:
    path = min(node.directory.glob("log-*"))
    for _ in range(snapshots):
        await snapshot(node)
    damage(path, content + b"-5.")
    told = await scrubbed(node)
    assert told["found_on_disk"] == told["mended"] == 1
    await wait_until(lambda: not path.exists(), "the damaged segment is removed")
    await node.kill()
    await node.serve()
    async with node_client(node) as again:
        assert await value_of(again, 5) == content + b"-5."


async def test_a_snapshot_that_meets_rot_has_it_mended_first(
    node: NodeProcess, client: NodeClient
) -> None:
    assert rot(node.process.pid, content + b"-9.", 3) >= 1
    await snapshot(node)
    assert await value_of(client, 9) == content + b"-9."
    figures = await node.metrics()
    assert (figures["scrub_found_in_memory"], figures["scrub_mended"]) == (1, 1)
    assert "a slot has rotted in memory" in node.said


async def test_a_scrub_under_writes_loses_none_and_finds_nothing(
    node: NodeProcess, client: NodeClient
) -> None:
    stop = False

    async def write() -> int:
        written = 0
        while not stop:
            await client.put(b"busy-%d" % (written % 300), b"%d" % written)
            written += 1
        return written

    writing = asyncio.create_task(write())
    for _ in range(2):
        told = await scrubbed(node)
    assert told["found_in_memory"] == told["found_on_disk"] == 0
    stop = True
    assert await writing > 100
