"""What a service lacks while it is up is shown, in words and in up.json, as long as it lasts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.cli import lookout
from services.cli.rows import Row, Stage, http_well
from tests.integration.supervisor_bench import Bench, row
from tests.waiting import wait_until


class Health:
    """What somebody lacks, as its /ready would tell."""

    def __init__(self, lack: str | None = None) -> None:
        self.lack = lack
        self.asked = 0

    async def well(self) -> str | None:
        self.asked += 1
        return self.lack


def document(bench: Bench) -> dict[str, object]:
    found: dict[str, object] = json.loads((bench.directory.path / "up.json").read_text())
    return found


@asynccontextmanager
async def supervised(bench: Bench, *rows: Row) -> AsyncIterator[None]:
    supervisor = asyncio.create_task(bench.supervise(*rows))
    try:
        yield
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await supervisor


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "look_every_s", 0.02)
    monkeypatch.setattr(lookout, "settle_s_max", 0.5)


def shown(bench: Bench) -> str:
    return bench.shown.read_text() if bench.shown.exists() else ""


async def test_who_lacks_something_is_named_until_it_does_not(bench: Bench) -> None:
    node, gateway = Health("puts: the disk is nearly full"), Health()
    rows = (
        row("node-1", Stage.NODES, bench.says("node-1"), well=node.well),
        row("gateway", Stage.GATEWAY, bench.says("gateway"), well=gateway.well),
    )
    async with supervised(bench, *rows):
        await wait_until(lambda: "not all is well with node-1." in shown(bench), "it is announced")
        assert "  node-1: puts: the disk is nearly full" in shown(bench)
        assert "Everything is ready." not in shown(bench)
        assert document(bench)["ready"] is True
        assert document(bench)["lacking"] == {"node-1": "puts: the disk is nearly full"}

        node.lack = None
        await wait_until(lambda: "lacking" not in document(bench), "it is well")
        assert "node-1 is well again" in bench.log("up")

        gateway.lack = "no answer within 2 s"
        await wait_until(lambda: "lacking" in document(bench), "the gateway is not")
        assert bench.log("up").count("gateway is not well: no answer within 2 s") == 1
        asked = gateway.asked
        await wait_until(lambda: gateway.asked > asked + 3, "it is asked again and again")
        assert bench.log("up").count("gateway is not well") == 1


async def test_what_passes_while_everything_starts_is_not_named(bench: Bench) -> None:
    node = Health("cluster: no replicator has taken this node yet")

    async def well() -> str | None:
        node.lack = None if node.asked == 2 else node.lack
        return await node.well()

    async with supervised(bench, row("node-1", Stage.NODES, bench.says("node-1"), well=well)):
        await wait_until(lambda: "Everything is ready." in shown(bench), "all is well")
    assert "is not well" not in bench.log("up")


async def test_a_bug_in_asking_stops_all_in_order_and_is_raised(bench: Bench) -> None:
    async def broken() -> str | None:
        raise ValueError("a bug in asking")

    with pytest.raises(ValueError, match="a bug in asking"):
        await bench.supervise(row("node-1", Stage.NODES, bench.says("node-1"), well=broken))
    assert "left in order" in bench.log("node-1")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b'{"status":"ready","reasons":{}}', None),
        (b'{"status":"degraded","reasons":{"b":"two","a":"one"}}', "a: one; b: two"),
        (b"<html>", "answered something else than its readiness"),
        (b'{"status":"ready"}', "answered something else than its readiness"),
    ],
)
async def test_readiness_is_read_for_reasons(answer: bytes, found: str | None) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        said = await http_well(f"http://127.0.0.1:{port}/ready")()
    assert said is None if found is None else said is not None and said.endswith(found)
