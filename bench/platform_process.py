"""The whole platform in processes of its own, as `ydht up` starts it, to be measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.node_process import secret
from services.runtime.settings import link_port_offset
from tests.free_ports import free_port

start_s_max = 90.0
stop_s_max = 30.0


class PlatformProcess:
    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._told: dict[str, Any] = {}

    def start(self, *options: str) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(self._data_dir)]
        command += ["--port-base", str(free_port(20)), *options]
        environment = {**os.environ, "CLUSTER_SECRET": secret, "DISK_RESERVE": "0"}
        with (self._data_dir / "up.log").open("wb") as log:
            # In a session of its own, so that Ctrl-C reaches those who measure, who then stop it.
            self._process = subprocess.Popen(  # noqa: S603  A command of this module.
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        began_s = time.perf_counter()
        while not self._told.get("ready"):
            if self._process.poll() is not None or time.perf_counter() - began_s > start_s_max:
                text = (self._data_dir / "up.log").read_text()
                raise RuntimeError(f"the platform did not become ready:\n{text[-2000:]}")
            time.sleep(0.05)
            up = self._data_dir / "up.json"
            self._told = json.loads(up.read_text()) if up.exists() else {}

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(stop_s_max)

    @property
    def data_dir(self) -> Path:
        return self._data_dir

    @property
    def pids(self) -> dict[str, int]:
        """All its processes, by name; what PostgreSQL starts are children of its own."""
        if self._process is None:
            raise RuntimeError("start the platform first")
        return {**self._told["pids"], "up": self._process.pid}

    @property
    def gateway_url(self) -> str:
        return str(self._told["gateway"])

    @property
    def gateway_port(self) -> int:
        return urlsplit(self.gateway_url).port or 80

    @property
    def api_key(self) -> str:
        """That of the demo account, whose plan is never met by a load."""
        return str(self._told["demo"]["api_key"])

    @property
    def node_urls(self) -> list[str]:
        return [node["url"] for node in self._told["nodes"].values()]

    @property
    def replicator_url(self) -> str:
        return str(self._told["replicator"])

    @property
    def replicator_link_port(self) -> int:
        return (urlsplit(self.replicator_url).port or 80) + link_port_offset


def metrics(url: str) -> Mapping[str, Any]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310  It says http.
        found: Mapping[str, Any] = json.loads(answer.read())
    return found


@contextmanager
def platform(*options: str) -> Iterator[PlatformProcess]:
    """A platform that is ready, on a directory under TMPDIR that goes with it."""
    with tempfile.TemporaryDirectory(prefix="ydht-bench-") as directory:
        process = PlatformProcess(Path(directory))
        try:
            process.start(*options)
            yield process
        finally:
            process.stop()
