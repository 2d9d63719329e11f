"""The whole of it, as an operator with the README at hand has it.

Every command that stands there indented is typed, in its order, but for those that are named
below with where else they are looked at. Then what is stored outlives a restart, a killed node,
and a node whose directory is gone.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from tests.cluster.test_first_minute import moved, port_base_told, readme, typed
from tests.cluster.test_up import ports_of_up, up_command
from tests.free_ports import free_port
from tests.integration.replicator_process import until_told
from tests.integration.supervised import Supervised, supervised
from tests.plain_http import plain_client

indented = [
    re.sub(r"\s+# .*$", "", line)
    for line in re.findall(r"^ {4}(\S.*)$", re.sub(r"(?ms)^```.*?^```", "", readme), re.MULTILINE)
]
# What begins like this is looked at elsewhere, or is not for a machine on which tests run.
elsewhere = {
    "make run": "tests/cluster/test_up.py, which starts what it starts",
    "make test": "this",
    "docker compose": "tests/deploy/test_compose.py",
    "cd /opt/ydht": "tests/deploy/test_systemd.py",
    ".venv/bin/python deploy/image/make_secrets.py": "tests/deploy/test_image.py",
    "printf": "it puts an address into a file",
    "systemctl": "tests/deploy/test_systemd.py",
    ".venv/bin/ydht db": "a terminal of its own, below",
    ".venv/bin/python -m services.": "a terminal of its own, below",
    "NODE_ID=": "a terminal of its own, below",
    "REPLICATOR_ID=": "a terminal of its own, below",
    "KEYGEN_PORT=": "a terminal of its own, below",
    "./monitor.sh": "tests/cluster/client/test_top.py: it goes on for ever",
    ".venv/bin/ydht user create bob": "tests/integration/test_cli_accounts.py: it asks a terminal",
    "export YDHT_URL=": "its values are in the environment",
}
looked_at_elsewhere = tuple(elsewhere)
# Without anything behind it, which goes on for ever; as it is meant for scripts it ends.
live = ".venv/bin/ydht top"
tenant = "ada@example.com"


def places(base: int) -> dict[str, str]:
    """What services read to find each other, with the ports that `ydht up` gives."""
    ports = {"GATEWAY": 0, "USERMANAGER": 1, "REPLICATOR": 5, "KEYGEN": 6}
    found = {f"{name}_PORT": str(base + offset) for name, offset in ports.items()}
    urls = {f"{name}_URL": f"http://127.0.0.1:{base + offset}" for name, offset in ports.items()}
    return {**found, **urls, "REPLICATOR_URLS": urls["REPLICATOR_URL"]}


async def until_ready(url: str) -> None:
    async def look() -> bool | None:
        try:
            async with plain_client() as http:
                answer = await http.get(f"{url}/ready")
        except httpx.HTTPError:
            return None
        return (answer.status_code, answer.json()["reasons"]) == (200, {}) or None

    await until_told(look, f"{url} has nothing amiss")


async def an_api_key(data_dir: Path, base: int) -> str:
    """As an operator makes one for somebody."""
    commands = [
        f"echo 'correct horse battery' |"
        f" .venv/bin/ydht user create {tenant} --plan pro --password-stdin",
        f".venv/bin/ydht keys create {tenant} --name robot",
    ]
    environment = {"DATA_DIR": str(data_dir), **places(base)}
    shell = [moved(each, base) for each in commands]
    code, outputs, errors = await typed(shell, environment)
    assert code == 0, errors
    found = re.search(r"ydht_\w+", outputs[-1])
    assert found, outputs
    return found[0]


async def test_every_command_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    commands = [line for line in indented if not line.startswith(looked_at_elsewhere)]
    commands = [line for line in commands if line != live]
    assert all(any(line.startswith(start) for line in indented) for start in elsewhere)
    assert len(commands) > 25
    (tmp_path / "logo.png").write_bytes(bytes(range(256)))
    base, data_dir = free_port(ports_of_up), tmp_path / "data"
    async with supervised(up_command(data_dir, port_base=base), data_dir) as up:
        await up.until_up()
        environment = {
            "DATA_DIR": str(data_dir),
            "YDHT_URL": f"http://127.0.0.1:{base}",
            "YDHT_API_KEY": await an_api_key(data_dir, base),
            **places(base),
        }
        # One by one: the next is typed also after one that says no.
        wrong = {}
        for command in commands:
            code, _, errors = await typed([moved(command, base)], environment, tmp_path)
            if code != 0 or "Traceback" in errors:
                wrong[command] = (code, errors)
        assert wrong == {}
        assert (tmp_path / "logo.png").read_bytes() == bytes(range(256))
        up.signal(signal.SIGINT)
        assert await up.ended() == 0


def process_of(line: str, base: int) -> tuple[list[str], dict[str, str]]:
    """The arguments of Python, and the environment, that stand in a line of the README."""
    words = shlex.split(line)
    given = dict(
        word.split("=", 1) for word in itertools.takewhile(lambda each: "=" in each, words)
    )
    for name, value in given.items():
        if name.endswith("_PORT"):
            port = int(value) - port_base_told
            given[name] = str(base + port if port < ports_of_up else free_port())
    program, *arguments = words[len(given) :]
    return (["-m", "services.cli", *arguments] if program.endswith("/ydht") else arguments), given


async def test_each_service_in_a_terminal_of_its_own_makes_the_same_platform(
    tmp_path: Path,
) -> None:
    base, data_dir = free_port(ports_of_up), tmp_path / "data"
    environment = {"DATA_DIR": str(data_dir), **places(base)}
    # The second time that it is told of: there, everything else follows.
    first = len(indented) - 1 - indented[::-1].index(".venv/bin/ydht init")
    last = next(i for i in range(first, len(indented)) if indented[i].startswith("KEYGEN_PORT="))
    terminals: list[Supervised] = []
    async with AsyncExitStack() as stack:
        for line in indented[first : last + 1]:
            arguments, given = process_of(line, base)
            starting = supervised(arguments, data_dir, {**environment, **given})
            terminal = await stack.enter_async_context(starting)
            if line.endswith(("init", "migrate")):
                assert await terminal.ended() == 0, terminal.shown
            else:
                terminals.append(terminal)
            if line.endswith(" db"):
                await terminal.until_shown("PostgreSQL is ready")
        gateway, keygen = environment["GATEWAY_URL"], environment["KEYGEN_URL"]
        await until_ready(gateway)
        await until_ready(keygen)
        headers = {"X-API-Key": await an_api_key(data_dir, base)}
        async with plain_client(headers=headers, timeout=30) as http:
            for mode in ("eventual", "strong"):
                where, lines = f"{gateway}/v1/kv/{mode}", {"X-Consistency": mode}
                assert (await http.put(where, content=mode, headers=lines)).status_code == 200
                assert (await http.get(where, headers=lines)).text == mode
            assert len((await http.get(f"{keygen}/get-key")).text) == 7
        # Ctrl-C in each, those first that were started last.
        for terminal in reversed(terminals):
            terminal.signal(signal.SIGINT)
            assert await terminal.ended() in (0, 130), terminal.shown
            assert "Traceback" not in terminal.shown


class Store:
    """What somebody keeps at a gateway."""

    def __init__(self, gateway: str, api_key: str) -> None:
        self._gateway = gateway
        self._headers = {"X-API-Key": api_key}
        self._kept: dict[str, str] = {}

    async def put(self, count: int) -> None:
        """So many more, every second one strong."""
        for number in range(len(self._kept), len(self._kept) + count):
            key, value = f"key-{number}", f"value {number}"
            answer = await self._ask("PUT", key, number, value)
            assert answer.status_code == 200, answer.text
            self._kept[key] = value

    async def has_all(self) -> None:
        for number, (key, value) in enumerate(self._kept.items()):
            answer = await self._ask("GET", key, number)
            assert (answer.status_code, answer.text) == (200, value), key

    async def _ask(self, method: str, key: str, number: int, value: str = "") -> httpx.Response:
        headers = {**self._headers, "X-Consistency": "strong" if number % 2 else "eventual"}
        async with plain_client(headers=headers, timeout=30) as http:
            return await http.request(method, f"{self._gateway}/v1/kv/{key}", content=value)


async def test_what_is_stored_outlives_a_restart_a_killed_node_and_a_lost_directory(
    tmp_path: Path,
) -> None:
    base, data_dir = free_port(ports_of_up), tmp_path / "data"
    async with supervised(up_command(data_dir, port_base=base), data_dir) as up:
        gateway = (await up.until_up())["gateway"]
        store = Store(gateway, await an_api_key(data_dir, base))
        await store.put(20)
        up.signal(signal.SIGINT)
        assert await up.ended() == 0

    began_s = time.monotonic()
    async with supervised(up_command(data_dir, port_base=base), data_dir) as up:
        pid = (await up.until_up())["pids"]["node-2"]
        sys.stdout.write(f"the second start took {time.monotonic() - began_s:.1f} s\n")
        await store.has_all()

        # One is killed: nobody notices, and it comes back by itself.
        os.kill(pid, signal.SIGKILL)
        await store.put(20)
        await store.has_all()
        await up.new_pid("node-2", pid)
        await until_ready(gateway)
        up.signal(signal.SIGINT)
        assert await up.ended() == 0

    # Another has lost its disk. With two of three nothing is refused, and why it is away is said.
    shutil.rmtree(data_dir / "nodes" / "node-3")
    async with supervised(up_command(data_dir, port_base=base), data_dir) as up:
        await up.until_shown("WARNING: ready, but without node-3.")
        assert "node-3" in up.document()["down"]
        sys.stdout.write(up.document()["down"]["node-3"])
        await store.has_all()
        await store.put(20)
        await store.has_all()
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
