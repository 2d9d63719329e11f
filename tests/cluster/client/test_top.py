"""`ydht top` and monitor.sh, on services that work, and on some that do not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.client.terminal import Terminal, lines
from tests.cluster.gateway_platform import Platform
from tests.free_ports import free_port
from tests.integration.ended import Ended, ended
from tests.integration.node_process import secret

pytestmark = pytest.mark.asyncio(loop_scope="package")

root = Path(__file__).parents[3]
nothing_runs, not_set_up = 75, 78


@pytest.fixture
def environment(platform: Platform, tmp_path: Path) -> dict[str, str]:
    """Of an operator whose services have each been started by themselves."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/",
        "DATA_DIR": str(tmp_path),
        "CLUSTER_SECRET": secret,
        "REPLICATOR_URLS": ",".join(one.url for one in platform.cluster.replicators),
        "GATEWAY_URL": platform.fast.url,
        "USERMANAGER_URL": platform.usermanager.url,
        "COLUMNS": "80",
    }


async def begin(environment: dict[str, str], *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "top", *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        cwd=root,
    )


async def top(environment: dict[str, str], *words: str) -> Ended:
    return await ended(await begin(environment, *words))


def by_name(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in told["services"]}


async def test_one_look_tells_rates_and_figures_of_every_service(
    environment: dict[str, str], terminal: Terminal
) -> None:
    process = await begin(environment, "--json", "--every", "500ms")
    stdout = process.stdout
    assert stdout is not None
    looks: list[dict[str, dict[str, Any]]] = []

    async def look() -> None:
        looks.append(by_name(json.loads(await stdout.readline())))

    documents = [{"key": f"{number}", "value": "x"} for number in range(3000)]
    async with asyncio.timeout(60):
        # From before the writing until after it: the last of these looks began when it was over.
        await look()
        writing = asyncio.create_task(terminal.done("import", stdin=lines(documents)))
        while not writing.done():
            await look()
        for _ in range(3):
            await look()
        # Whoever has much to do may not answer each look in its time.
        while any(one["state"] != "ready" for one in looks[-1].values()):
            await look()
    await writing
    process.send_signal(signal.SIGINT)
    found = await ended(process)
    assert (found.code, found.err) == (0, "")
    assert set(looks[-1]) == {
        "gateway", "usermanager", "replicator-1", "node-1", "node-2", "node-3"
    }  # fmt: skip
    assert looks[0]["gateway"].get("per_s") is None
    for name in ("gateway", "replicator-1", "node-1", "node-2", "node-3"):
        assert max(look[name].get("per_s") or 0 for look in looks) > 0, name
        assert looks[-1][name]["memory_bytes"] > 1 << 20
        assert looks[-1][name]["state"] == "ready", looks[-1][name]
    assert max(look["gateway"].get("p99_ms") or 0 for look in looks) > 0
    assert max(look["replicator-1"].get("p50_ms") or 0 for look in looks) > 0
    assert looks[-1]["node-1"]["keys"] >= 3000
    assert looks[-1]["node-1"]["log_bytes"] > 0
    assert looks[-1]["node-1"]["hints"] == 0


async def test_tables_fit_eighty_columns_and_are_sorted(environment: dict[str, str]) -> None:
    found = await top(environment, "--once", "--sort", "memory")
    assert found.code == 0, found
    shown = found.out.decode().splitlines()
    assert max(len(line.rstrip()) for line in shown) <= 80, found.out.decode()
    names = [line.split()[0] for line in shown if line]
    assert {"gateway", "usermanager", "replicator-1", "node-1", "node-2", "node-3"} < set(names)
    assert "…" not in found.out.decode()
    by_default = [
        line.split()[0]
        for line in (await top(environment, "--once")).out.decode().splitlines()
        if line.startswith("node-")
    ]
    assert by_default == ["node-1", "node-2", "node-3"]


async def test_who_is_away_is_told_with_the_reason_and_nobody_is_waited_for(
    environment: dict[str, str], platform: Platform
) -> None:
    environment["KEYGEN_URL"] = f"http://127.0.0.1:{free_port()}"
    node = platform.cluster.nodes[1]
    node.process.send_signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        found = await top(environment, "--once", "--json")
        # Two looks, of two questions each, a second apart; and what a busy machine takes.
        assert time.monotonic() - began_s < 30
    finally:
        node.process.send_signal(signal.SIGCONT)
    assert found.code == 1
    services = by_name(found.json[0])
    assert services["keygen"]["state"] == services["node-2"]["state"] == "away"
    assert "connection attempts failed" in services["keygen"]["reasons"][0]
    assert services["node-2"]["reasons"] == ["no answer within 1.5 s"]
    assert services["node-1"]["keys"] is not None


async def test_where_nothing_runs_it_says_so(environment: dict[str, str]) -> None:
    del environment["REPLICATOR_URLS"]
    found = await top(environment, "--once")
    assert (found.code, found.out) == (nothing_runs, b"")
    assert "nothing runs on " in found.err
    del environment["CLUSTER_SECRET"]
    assert (await top(environment, "--once")).code == not_set_up


async def monitor(environment: dict[str, str], *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(str(root / "monitor.sh"), *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


async def test_the_monitoring_script_has_a_line_for_every_service(
    environment: dict[str, str], platform: Platform, tmp_path: Path
) -> None:
    cluster = platform.cluster
    document = {
        "ready": True,
        "gateway": platform.fast.url,
        "replicator": cluster.replicators[0].url,
        "postgres": "postgresql://x@/y?host=/z",
        "nodes": {one.node_id: {"url": one.url, "pid": 1} for one in cluster.nodes},
        "demo": None,
    }
    (tmp_path / "up.json").write_text(json.dumps(document))
    found = await ended(await monitor(environment, "--once"))
    assert (found.code, found.err) == (0, "")
    _, *told = found.out.decode().splitlines()
    words = {line.split()[0]: line for line in told}
    assert set(words) == {"gateway", "replicator", "node-1", "node-2", "node-3"}
    assert " requests " in words["gateway"]
    assert " p99 " in words["gateway"]
    assert " hints 0 " in words["replicator"]
    assert " keys " in words["node-1"]


async def test_the_monitoring_script_says_who_is_away_and_ends_by_ctrl_c(
    environment: dict[str, str], platform: Platform
) -> None:
    absent = f"http://127.0.0.1:{free_port()}"
    environment["SERVICES"] = f"gateway={platform.fast.url} keygen={absent}"
    found = await ended(await monitor(environment, "--once"))
    assert (found.code, found.err) == (1, "")
    _, gateway, keygen = found.out.decode().splitlines()
    assert gateway.startswith("gateway ")
    assert "AWAY" not in gateway
    assert keygen.split()[:2] == ["keygen", "AWAY"]
    running = await monitor(environment, "--every", "1")
    assert running.stdout is not None
    async with asyncio.timeout(60):
        while (await running.stdout.readline()).strip():
            pass
    # As a terminal does: to the whole group.
    os.killpg(running.pid, signal.SIGINT)
    assert (await ended(running)).code == 130
    assert (await ended(await monitor(environment, "--every", "0"))).code == 2
