"""Services that refuse for good, or die again and again, while the others are to go on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervised import Supervised, serving, supervised, table
from tests.waiting import wait_until

reason = "my log is damaged at byte 12: replace me"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def nodes(*moods: str) -> list[dict[str, Any]]:
    """A stage of redundant nodes, one for each mood; `-` is none."""
    return [
        serving(f"node-{number}", "NODES", *([] if mood == "-" else [mood]), redundant=True)
        for number, mood in enumerate(moods, start=1)
    ]


def taken(port: int) -> socket.socket | None:
    """A socket that listens on the port, once its service has let go of it."""
    with suppress(OSError):
        return socket.create_server(("127.0.0.1", port))
    return None


async def until_down(up: Supervised, *names: str) -> dict[str, Any]:
    """What up.json says as soon as exactly these are down."""

    def document() -> dict[str, Any] | None:
        found = up.document() if (up.data_dir / "up.json").exists() else {}
        return found if sorted(found.get("down", {"?": ""})) == sorted(names) else None

    return await wait_until(document, f"{names} are down")


async def until_whole(up: Supervised) -> dict[str, Any]:
    def document() -> dict[str, Any] | None:
        found = up.document()
        return None if "down" in found else found

    return await wait_until(document, "all are up")


async def test_one_node_that_refuses_for_good_stays_out_and_the_others_serve(
    data_dir: Path,
) -> None:
    rows = [*nodes("-", "damaged", "-"), serving("gateway", "GATEWAY")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_shown("WARNING: ready, but without node-2.")
        document = up.document()
        log = data_dir / "logs" / "node-2.log"
        assert document["ready"] is True, "two of three are enough"
        assert document["down"] == {"node-2": f"node-2 refuses to run: {reason} (see {log})"}
        assert document["nodes"]["node-2"] == {
            "url": f"http://127.0.0.1:{rows[1]['port']}",
            "pid": None,
        }
        assert set(document["pids"]) == {"node-1", "node-3", "gateway"}
        assert re.search(r"node-2 +- +DOWN\n", up.shown)
        # It was not tried again, and its own last line was quoted, not those before it.
        assert log.read_text().count("looking at my files") == 1
        assert "starting it again" not in up.shown
        assert "looking at my files" not in up.shown.partition("WARNING")[2]
        up.signal(signal.SIGINT)
        assert await up.ended() == 0


async def test_with_one_of_three_nodes_it_goes_on_and_is_not_ready(data_dir: Path) -> None:
    rows = [*nodes("damaged", "-", "damaged"), serving("gateway", "GATEWAY")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_shown("WARNING: not ready, for node-1 and node-3 are down.")
        assert up.document()["ready"] is False
        assert up.document()["pids"].keys() == {"node-2", "gateway"}


@pytest.mark.parametrize("count", [1, 3])
async def test_without_any_node_it_stops_and_says_why_and_that_no_restart_would_help(
    data_dir: Path, count: int
) -> None:
    rows = [*nodes(*["damaged"] * count), serving("gateway", "GATEWAY")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        assert await up.ended() == 78
        last = up.shown.splitlines()[-1]
        assert last.startswith(f"ydht: node-1 refuses to run: {reason} (see ")
        assert last.count(reason) == count
        assert "starting gateway" not in up.shown
        assert not (data_dir / "up.json").exists()


async def test_a_needed_service_that_refuses_for_good_is_tried_once(data_dir: Path) -> None:
    rows = [*nodes("-", "-"), serving("gateway", "GATEWAY", "damaged")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        assert await up.ended() == 78
        log = data_dir / "logs" / "gateway.log"
        assert up.shown.splitlines()[-1] == f"ydht: gateway refuses to run: {reason} (see {log})"
        assert log.read_text().count("looking at my files") == 1


async def test_a_service_that_refuses_later_stays_out_and_up_json_says_that_it_is_missed(
    data_dir: Path,
) -> None:
    rows = [*nodes("-", "fragile", "-"), serving("gateway", "GATEWAY", "fragile")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        pids = (await up.until_up())["pids"]
        os.kill(pids["node-2"], signal.SIGKILL)
        await up.until_shown("node-2 refuses to run")
        assert (await until_down(up, "node-2"))["ready"] is True
        assert up.document()["pids"].keys() == {"node-1", "node-3", "gateway"}, "they go on"
        assert up.shown.count("it stays out until you start everything again") == 1


async def test_when_a_needed_service_refuses_later_all_stop_with_its_words_and_its_code(
    data_dir: Path,
) -> None:
    rows = [*nodes("-", "-", "-"), serving("gateway", "GATEWAY", "fragile")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        os.kill((await up.until_up())["pids"]["gateway"], signal.SIGKILL)
        assert await up.ended() == 78
        log = data_dir / "logs" / "gateway.log"
        assert up.shown.splitlines()[-1] == f"ydht: gateway refuses to run: {reason} (see {log})"
        assert log.read_text().count("looking at my files") == 1, "it was asked once"
        assert "it stays out" not in up.shown
        assert "stopping node-1, node-2, node-3" in up.shown
        assert not (data_dir / "up.json").exists()
        assert up.left() == []


def kill_ready(up: Supervised, name: str) -> None:
    """Kill a service during the start, when no up.json has its pid yet."""
    ready = re.search(rf"{name} +\| \[up\] ready \(pid (\d+)\)", up.shown)
    assert ready is not None
    os.kill(int(ready[1]), signal.SIGKILL)


async def test_a_needed_service_that_refuses_while_a_later_one_gets_ready_ends_the_start_at_once(
    data_dir: Path,
) -> None:
    account = serving("usermanager", "ACCOUNTS", "fragile")
    gateway = serving("gateway", "GATEWAY", "unready", ready_s_max=600.0)
    async with supervised(table([*nodes("-"), account, gateway], data_dir), data_dir) as up:
        await up.until_shown("starting gateway")
        kill_ready(up, "usermanager")
        assert await up.ended() == 78
        log = data_dir / "logs" / "usermanager.log"
        line = up.shown.splitlines()[-1]
        assert line == f"ydht: usermanager refuses to run: {reason} (see {log})"
        assert not (data_dir / "up.json").exists(), "it was never ready"
        assert up.left() == []


async def test_when_the_last_redundant_one_refuses_during_the_start_of_later_ones_it_ends(
    data_dir: Path,
) -> None:
    gateway = serving("gateway", "GATEWAY", "unready", ready_s_max=600.0)
    rows = [*nodes("damaged", "fragile"), gateway]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_shown("starting gateway")
        kill_ready(up, "node-2")
        assert await up.ended() == 78
        assert up.shown.splitlines()[-1].count(reason) == 2


async def test_a_needed_service_that_dies_during_the_start_of_later_ones_does_not_end_it(
    data_dir: Path,
) -> None:
    account = serving("usermanager", "ACCOUNTS")
    gateway = serving("gateway", "GATEWAY", "unready", ready_s_max=600.0)
    async with supervised(table([account, gateway], data_dir), data_dir) as up:
        await up.until_shown("starting gateway")
        kill_ready(up, "usermanager")
        await up.until_shown("usermanager  | [up] ready", times=2)
        assert "stopping" not in up.shown
        up.signal(signal.SIGINT)
        assert await up.ended() == 0


async def test_when_the_last_node_refuses_all_stop(data_dir: Path) -> None:
    rows = [*nodes("damaged", "fragile"), serving("gateway", "GATEWAY")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_shown("WARNING: ready, but without node-1.")
        os.kill(up.document()["pids"]["node-2"], signal.SIGKILL)
        assert await up.ended() == 78
        assert up.shown.splitlines()[-1].count(reason) == 2
        assert "stopping gateway" in up.shown
        assert up.left() == []


async def test_ready_is_true_only_while_every_needed_service_is_up(data_dir: Path) -> None:
    rows = [*nodes("-", "-", "-"), serving("gateway", "GATEWAY", first_s=1.0)]
    async with supervised(table(rows, data_dir), data_dir) as up:
        document = await up.until_up()
        assert "down" not in document
        os.kill(document["pids"]["gateway"], signal.SIGKILL)
        document = await until_down(up, "gateway")
        assert (document["ready"], document["nodes"].keys()) == (
            False,
            {"node-1", "node-2", "node-3"},
        )
        document = await until_whole(up)
        assert document["ready"] is True
        assert "[up] ready again" not in up.shown
        assert "up           | ready again" in up.shown


async def test_a_node_that_dies_soon_after_it_is_ready_is_given_up_in_the_end(
    data_dir: Path,
) -> None:
    rows = [*nodes("-", "sickly", "-"), serving("gateway", "GATEWAY")]
    rows[1]["deaths_max"] = 7
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_shown("is failing (5 deaths in a row); starting it again")
        await up.until_shown("(7 deaths in a row): out of breath")
        document = await until_down(up, "node-2")
        assert document["ready"] is True
        assert document["down"]["node-2"].startswith(
            "node-2 ended with exit code 1 (7 deaths in a row): out of breath"
        )
        log = (data_dir / "logs" / "node-2.log").read_text()
        assert log.count("out of breath") == 7 + 1, "said seven times, and quoted once"
        assert up.process.returncode is None
        up.signal(signal.SIGINT)
        assert await up.ended() == 0


async def test_a_needed_service_that_dies_again_and_again_is_named_and_tried_until_it_works(
    data_dir: Path,
) -> None:
    gateway = serving("gateway", "GATEWAY", deaths_max=6)
    async with supervised(table([*nodes("-"), gateway], data_dir), data_dir) as up:
        pid = (await up.until_up())["pids"]["gateway"]
        os.kill(pid, signal.SIGKILL)
        blocker = await wait_until(lambda: taken(gateway["port"]), "the port is free")
        with blocker:
            # Past the count at which a redundant service would stay out.
            await up.until_shown("is failing (8 deaths in a row); starting it again")
            document = await until_down(up, "gateway")
            assert document["ready"] is False
            assert document["down"]["gateway"].startswith("failing: gateway ended with exit code")
            assert "it stays out" not in up.shown
        assert (await until_whole(up))["ready"] is True
        up.signal(signal.SIGINT)
        assert await up.ended() == 0


async def test_a_redundant_service_that_only_fails_to_start_is_tried_again_later(
    data_dir: Path,
) -> None:
    rows = nodes("-", "-")
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    # Not its own port: that would be refused before anything starts.
    knocking = (
        "import socket, runpy, sys\n"
        f"if not socket.socket().connect_ex(('127.0.0.1', {port})): sys.exit('somebody is there')\n"
        f"sys.argv = {rows[1]['command']!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    rows[1]["command"] = ["-c", knocking]
    async with supervised(table(rows, data_dir), data_dir) as up:
        async with taken:
            await up.until_shown("WARNING: ready, but without node-2.")
            assert "3 times in a row: somebody is there (see " in json.dumps(up.document())
        assert (await until_whole(up))["ready"] is True


async def test_a_node_that_cannot_be_started_any_more_is_given_up_however_well_it_ran(
    data_dir: Path,
) -> None:
    program = data_dir.with_name("program")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o700)
    rows = nodes("-", "-")
    rows[1].update(program=str(program), healthy_s=0.2, deaths_max=6)
    async with supervised(table(rows, data_dir), data_dir) as up:
        pid = (await up.until_up())["pids"]["node-2"]
        await asyncio.sleep(0.5)
        program.unlink()
        os.kill(pid, signal.SIGKILL)
        await up.until_shown("it stays out until you start everything again")
        why = up.document()["down"]["node-2"]
        assert why.startswith("node-2 could not be started: No such file or directory")
        assert "(6 deaths in a row)" in why


async def test_up_json_is_gone_as_soon_as_a_stop_begins(data_dir: Path) -> None:
    rows = [*nodes("-"), serving("gateway", "GATEWAY", "slow")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_up()
        up.signal(signal.SIGINT)
        await up.until_shown("stopping gateway")
        assert not (data_dir / "up.json").exists()
        assert up.process.returncode is None, "the gateway takes 3 s to end"
        assert await up.ended() == 0
