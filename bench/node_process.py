"""A node in a process of its own, to be measured; and the program that such a process can run.

Usually that is `python -m services.dhtnode` as a user starts it. `python -m bench.node_process`
is the same service with one of two additions, which no setting of a user can bring about:

    --forget-syncs   syncs return without having synced, which breaks every promise of a node
    --heartbeat      `longest_stall_ms` in /metrics: how late the event loop was at the latest
                     since that was last asked, on the wall and as processor time of its thread
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from services.core.wire import Role
from services.dhtnode.app import build_app
from services.dhtnode.settings import NodeSettings
from services.runtime.clock import SystemClock
from services.runtime.opening import Identity
from services.runtime.service import Service, main
from services.runtime.settings import link_port_offset
from services.runtime.signing import Signer, signature_header
from tests.free_ports import free_port

secret = "a secret that is for the benchmark alone"  # noqa: S105  It guards nothing.
identity = Identity(Role.TOOL, "bench", secret)
# What loading a million keys takes, and recovering them, with room for a slow machine.
start_s_max = 120.0
stop_s_max = 15.0
# The least that uvloop waits for; less would be a loop that never rests.
heartbeat_s = 0.001
as_users_do = (sys.executable, "-m", "services.dhtnode")
without_syncs = (sys.executable, "-m", "bench.node_process", "--forget-syncs")
with_heartbeat = (sys.executable, "-m", "bench.node_process", "--heartbeat")


class NodeProcess:
    """One node on a data directory; it can be started again there after it has ended."""

    def __init__(self, data_dir: Path, command: Sequence[str] = as_users_do) -> None:
        self.port = free_port()
        self.started_s = 0.0
        self._data_dir = data_dir
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def link_port(self) -> int:
        return self.port + link_port_offset

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("start the node first")
        return self._process.pid

    @property
    def directory(self) -> Path:
        """Where the node keeps its files."""
        return self._data_dir / "nodes" / "node-1"

    def start(self) -> float:
        """Start it and wait until it is ready; seconds from one to the other."""
        environment = {
            **os.environ,
            "DATA_DIR": str(self._data_dir),
            "DHTNODE_PORT": str(self.port),
            "CLUSTER_SECRET": secret,
            "DISK_RESERVE": "0",
        }
        self.started_s = time.perf_counter()
        with (self._data_dir / "node.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  A command of this module.
                self._command, env=environment, stdout=log, stderr=log
            )
        while not self._is_ready():
            if self._process.poll() is not None or self._age_s() > start_s_max:
                text = (self._data_dir / "node.log").read_text()
                raise RuntimeError(f"the node did not become ready:\n{text[-2000:]}")
            time.sleep(0.005)
        return self._age_s()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(stop_s_max)
            self._process = None

    def snapshots(self) -> set[tuple[str, int]]:
        """Those that lie there now: names, and inodes, as a later one may have the same name."""
        with os.scandir(self.directory) as found:
            return {
                (entry.name, entry.inode())
                for entry in found
                if entry.name.startswith("snapshot-") and not entry.name.endswith(".tmp")
            }

    def metrics(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self._ask("GET", "/metrics", {}))
        return found

    def write_snapshot(self) -> None:
        """Have one written, and return at once."""
        signature = Signer(secret, SystemClock()).sign("POST", "/snapshot", (), b"")
        self._ask("POST", "/snapshot", {signature_header: signature})

    def _age_s(self) -> float:
        return time.perf_counter() - self.started_s

    def _is_ready(self) -> bool:
        try:
            self._ask("GET", "/ready", {})
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method, headers=dict(headers)
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  It says http.
            content: bytes = answer.read()
        return content


class Heartbeat:
    """How long the event loop was held at the longest.

    The processor time of the loop's thread leaves out what other processes took away from it, and
    is at most what the loop was held by its own work.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._longest = {"wall": 0.0, "cpu": 0.0}
        self._asked = False
        self._expect()

    def read(self) -> dict[str, float]:
        """The longest since the last call, in milliseconds. What asking takes is left out."""
        self._asked = True
        return {name: seconds * 1e3 for name, seconds in self._longest.items()}

    def _expect(self) -> None:
        self._due_s = time.perf_counter() + heartbeat_s
        self._cpu_s = time.thread_time()
        self._loop.call_later(heartbeat_s, self._beat)

    def _beat(self) -> None:
        longest = self._longest
        longest["wall"] = max(longest["wall"], time.perf_counter() - self._due_s)
        longest["cpu"] = max(longest["cpu"], time.thread_time() - self._cpu_s)
        if self._asked:
            self._asked = False
            self._longest = dict.fromkeys(longest, 0.0)
        self._expect()


def build_with_heartbeat(settings: NodeSettings, service: Service) -> Starlette:
    heartbeat = Heartbeat(asyncio.get_running_loop())
    service.metrics.add(
        "longest_stall_ms", "gauge", "Since last asked", heartbeat.read, labels=("time",)
    )
    return build_app(settings, service)


def forget_syncs() -> None:
    """Let syncs of this process return at once. Done to the interpreter, because there is no
    such switch in a node that somebody could find."""
    instead = {"fsync": _return_at_once, "fdatasync": _return_at_once, "RWF_DSYNC": 0}
    for name, value in instead.items():
        if hasattr(os, name):
            setattr(os, name, value)


def _return_at_once(descriptor: int) -> None:
    """Sync nothing."""


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forget-syncs", action="store_true")
    parser.add_argument("--heartbeat", action="store_true")
    options = parser.parse_args()
    if options.forget_syncs:
        forget_syncs()
    # They are this program's own: a service refuses any.
    del sys.argv[1:]
    main(NodeSettings, build_with_heartbeat if options.heartbeat else build_app)


if __name__ == "__main__":
    run()
