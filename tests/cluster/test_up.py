"""`ydht up` as a user starts it, with the embedded PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from click.testing import CliRunner

from services.cli.init import init
from services.runtime.env_file import env_file_name, read_env
from services.runtime.migrations import choose_address
from tests.free_ports import free_port
from tests.integration.supervised import supervised
from tests.plain_http import plain_get
from tests.waiting import wait_until

# Some start the platform five times over, each of which may take as long as anybody has patience.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Deeper than a socket's path may be long."""
    parent = tmp_path / ("deep-" * 20) / "below"
    parent.mkdir(parents=True)
    return parent / "data"


# Everything from the gateway to the replicators, as ports go up from one base.
ports_of_up = 10


def up_command(data_dir: Path, *options: str, port_base: int | None = None) -> list[str]:
    command = ["-m", "services.cli", "up", "--data-dir", str(data_dir)]
    return [*command, "--port-base", str(port_base or free_port(ports_of_up)), *options]


async def connect(data_dir: Path) -> asyncpg.Connection:
    password = read_env(data_dir / env_file_name)["EMBEDDED_DB_PASSWORD"]
    return await asyncpg.connect(**choose_address(data_dir, None, password).asyncpg())


async def write(data_dir: Path, text: str) -> None:
    connection = await connect(data_dir)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (text text)")
    await connection.execute("INSERT INTO kept VALUES ($1)", text)
    await connection.close()


async def written(data_dir: Path) -> list[str]:
    connection = await connect(data_dir)
    rows = await connection.fetch("SELECT text FROM kept ORDER BY text")
    await connection.close()
    return [row["text"] for row in rows]


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "pg" / "data" / "postmaster.pid").read_text().split()[0])


def servers_of(data_dir: Path) -> list[int]:
    """Every process of PostgreSQL on this data: they stand in their data directory."""
    place = data_dir / "pg" / "data"
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                if (process / "cwd").samefile(place):
                    found.append(int(process.name))
    return found


def readiness(url: str) -> dict[str, Any]:
    found: dict[str, Any] = plain_get(f"{url}/ready").json()
    return found


def a_key(url: str) -> str:
    """As anybody on this machine is given one."""
    return plain_get(f"{url}/get-key").text


async def test_the_first_up_makes_everything_and_the_next_has_it_all_back(data_dir: Path) -> None:
    parents = {path: path.stat().st_mode for path in data_dir.parents}
    async with supervised(up_command(data_dir), data_dir) as up:
        document = await up.until_up()
        secrets = (data_dir / "ydht.env").read_text()
        assert stat.S_IMODE((data_dir / "ydht.env").stat().st_mode) == 0o600
        names = ["postgres", "node-1", "node-2", "node-3", "replicator", "usermanager"]
        names += ["keygen", "gateway"]
        assert list(document["pids"]) == names
        for name in ("usermanager", "keygen", "gateway"):
            ready = {"status": "ready", "service": name, "reasons": dict[str, str]()}
            assert readiness(document[name]) == ready
        assert "The database schema is up to date." in up.shown
        assert len(a_key(document["keygen"])) == 7
        await write(data_dir, "first")
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
        assert up.left() == []
        assert servers_of(data_dir) == []
        assert "database system is shut down" in up.shown
        assert not (data_dir / "up.json").exists()
    async with supervised(up_command(data_dir), data_dir) as up:
        await up.until_up()
        assert await written(data_dir) == ["first"]
        assert (data_dir / "ydht.env").read_text() == secrets
        assert "database system was shut down at" in up.shown, "cleanly, the last time"
        up.signal(signal.SIGTERM)
        assert await up.ended() == 0
    assert {path: path.stat().st_mode for path in data_dir.parents} == parents


def account_of(document: dict[str, Any]) -> dict[str, Any]:
    """What the demo is shown of itself when it logs in."""
    asked = {name: document["demo"][name] for name in ("email", "password")}
    answer = httpx.post(f"{document['usermanager']}/login", json=asked, trust_env=False)
    found: dict[str, Any] = answer.json()["user"]
    return found


def lines_to_paste(shown: str) -> list[str]:
    return [line.strip() for line in shown.splitlines() if line.startswith("    curl ")]


async def pasted(line: str) -> str:
    """What a shell shows for it."""
    shell = await asyncio.create_subprocess_shell(line, stdout=asyncio.subprocess.PIPE)
    output, _ = await shell.communicate()
    assert shell.returncode == 0, line
    return output.decode()


def said_in_logs(data_dir: Path) -> str:
    return "".join(path.read_text() for path in (data_dir / "logs").iterdir())


async def test_the_demo_account_is_shown_and_kept_and_left_out_when_nobody_wants_it(
    data_dir: Path,
) -> None:
    async with supervised(up_command(data_dir, "--no-demo"), data_dir) as up:
        assert (await up.until_up())["demo"] is None
        assert "demo account" not in up.shown
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
    assert not (data_dir / "demo.json").exists()
    demo: dict[str, str] = {}
    for stop in (signal.SIGKILL, signal.SIGINT):
        async with supervised(up_command(data_dir), data_dir) as up:
            document = await up.until_up()
            demo = demo or document["demo"]
            assert document["demo"] == demo
            assert document["demo"].keys() == {"email", "password", "api_key"}
            assert json.loads((data_dir / "demo.json").read_text()) == demo
            for name in ("demo.json", "up.json"):
                assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600
            assert all(text in up.shown for text in demo.values())
            assert "--no-demo" in up.shown
            assert f"`ydht user disable {demo['email']} --data-dir {data_dir}` ends" in up.shown
            assert demo["password"] not in said_in_logs(data_dir)
            assert demo["api_key"] not in said_in_logs(data_dir)
            assert account_of(document)["plan"] == "developer"
            stored, read, given = [await pasted(line) for line in lines_to_paste(up.shown)]
            assert json.loads(stored)["success"] is True
            assert read == "hello"
            assert len(given) == 7
            assert given.isalnum()
            up.signal(stop)
            await up.ended()
            await up.until_none_left()
    async with supervised(up_command(data_dir, "--no-demo"), data_dir) as up:
        assert (await up.until_up())["demo"] is None
        assert "of an earlier start is still good: `ydht user disable" in up.shown
        assert demo["password"] not in up.shown
        assert demo["api_key"] not in up.shown
        up.signal(signal.SIGINT)
        assert await up.ended() == 0


async def until_epoch(replicator: str, epoch: int) -> dict[str, Any]:
    """What a replicator tells of the cluster once that is in this epoch."""

    def cluster() -> dict[str, Any] | None:
        found: dict[str, Any] = plain_get(f"{replicator}/cluster").json()
        return found if found["epoch"] == epoch else None

    return await wait_until(cluster, f"{replicator} is in epoch {epoch}")


async def test_two_replicators_and_three_nodes_are_a_cluster_and_are_it_again_elsewhere(
    data_dir: Path,
) -> None:
    first_base = free_port(ports_of_up + 1)
    stores: dict[str, str] = {}
    # One port up, where each node finds its address taken by the one before, is the hardest.
    for port_base, epoch in ((first_base, 1), (first_base, 1), (first_base + 1, 7)):
        command = up_command(data_dir, "--replicators", "2", port_base=port_base)
        async with supervised(command, data_dir) as up:
            document = await up.until_up()
            for number, name in enumerate(("replicator", "replicator-2"), start=1):
                found = await until_epoch(document[name], epoch)
                assert found["replicator_id"] == f"replicator-{number}"
                nodes = found["nodes"]
                stores = stores or {node_id: node["store_id"] for node_id, node in nodes.items()}
                for offset, (node_id, node) in enumerate(nodes.items(), start=2):
                    assert node["store_id"] == stores[node_id]
                    assert node["http_port"] == port_base + offset
            up.signal(signal.SIGINT)
            assert await up.ended() == 0
            assert up.left() == []
            shown = up.shown
            order = (
                "stopping gateway",
                "stopping usermanager",
                "stopping replicator, replicator-2",
                "stopping node-1",
            )
            places = [shown.index(said) for said in order]
            assert places == sorted(places)


async def test_a_cluster_of_three_does_not_become_one_of_four_by_an_option(data_dir: Path) -> None:
    async with supervised(up_command(data_dir), data_dir) as up:
        await up.until_up()
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
    async with supervised(up_command(data_dir, "--nodes", "4"), data_dir) as up:
        assert await up.ended() == 78
        assert "the cluster has formed of 3 nodes (node-1, node-2, node-3)" in up.shown
        assert "`ydht up --nodes 3`" in up.shown
        assert up.left() == []
    assert not (data_dir / "nodes" / "node-4").exists()


async def test_kill_9_of_the_supervisor_leaves_no_process_and_no_row_is_lost(
    data_dir: Path,
) -> None:
    async with supervised(up_command(data_dir), data_dir) as up:
        await up.until_up()
        await write(data_dir, "before the kill")
        assert servers_of(data_dir) != []
        up.signal(signal.SIGKILL)
        await up.until_none_left()
        await wait_until(lambda: not servers_of(data_dir), "no PostgreSQL is left")
    async with supervised(up_command(data_dir), data_dir) as up:
        await up.until_up()
        assert await written(data_dir) == ["before the kill"]
        # Once more, and the next start does not even wait for the end of the last.
        up.signal(signal.SIGKILL)
        async with supervised(up_command(data_dir), data_dir) as again:
            await again.until_up()
            assert await written(data_dir) == ["before the kill"]
            assert up.left() == []
            again.signal(signal.SIGINT)
            assert await again.ended() == 0
    assert servers_of(data_dir) == []


@pytest.mark.parametrize("victim", ["the server", "its owner"])
async def test_a_killed_database_is_started_again_and_no_row_is_lost(
    data_dir: Path, victim: str
) -> None:
    async with supervised(up_command(data_dir), data_dir) as up:
        before = (await up.until_up())["pids"]["postgres"]
        await write(data_dir, "before the kill")
        old_server = postmaster(data_dir)
        os.kill(old_server if victim == "the server" else before, signal.SIGKILL)
        after = await up.new_pid("postgres", before)
        await up.until_shown(f"ready (pid {after})")
        assert "[up] postgres " in up.shown
        assert await written(data_dir) == ["before the kill"]
        assert postmaster(data_dir) != old_server
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
        assert up.left() == []
        assert servers_of(data_dir) == []


async def test_one_damaged_node_stays_out_and_everything_else_is_up(data_dir: Path) -> None:
    async with supervised(up_command(data_dir), data_dir) as up:
        await up.until_up()
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
    store = data_dir / "nodes" / "node-2" / "store"
    store.write_text(store.read_text().replace("node-2", "node-7"))
    async with supervised(up_command(data_dir), data_dir) as up:
        await up.until_shown("WARNING: ready, but without node-2.")
        document = up.document()
        assert document["ready"] is True
        assert list(document["down"]) == ["node-2"]
        assert "belongs to node 'node-7', and this is 'node-2'" in document["down"]["node-2"]
        assert {"postgres", "node-1", "node-3"} <= document["pids"].keys()
        assert up.shown.count("starting it again") == 0
        up.signal(signal.SIGINT)
        assert await up.ended() == 0


async def test_beside_a_database_that_somebody_else_runs_nothing_is_started(data_dir: Path) -> None:
    db = ["-m", "services.cli", "db", "--data-dir", str(data_dir)]
    assert CliRunner().invoke(init, ["--data-dir", str(data_dir)]).exit_code == 0
    async with supervised(db, data_dir) as other:
        await other.until_shown("PostgreSQL is ready")
        async with supervised(up_command(data_dir), data_dir) as up:
            assert await up.ended() == 78
            assert "starting" not in up.shown
            owner = f"is already run by process {other.process.pid}: stop that one"
            assert owner in up.shown.splitlines()[-1]
        assert await written_nothing(data_dir), "it goes on"
        other.signal(signal.SIGTERM)
        assert await other.ended() == 0


async def written_nothing(data_dir: Path) -> bool:
    connection = await connect(data_dir)
    found = await connection.fetchval("SELECT to_regclass('kept') IS NULL")
    await connection.close()
    return bool(found)
