"""A user manager in a process of its own, on a PostgreSQL of its own, to be measured."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from bench.node_process import secret
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.migrations import migrate
from tests.free_ports import free_port

# Long and random enough to be let in, and guarding nothing.
jwt_secret = "Wq9mXk5vPd8cJs2fLg4zUa7EhT6yNb3r"  # noqa: S105  It guards nothing.
key_pepper = "Jt5nVb8wKe2xRc7mQz4hGd9sLf3pYa6U"
start_s_max = 60.0
stop_s_max = 15.0


class UserManagerProcess:
    """One user manager; `address` is that of its database."""

    def __init__(self, directory: Path, address: DatabaseAddress) -> None:
        self.address = address
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        environment = {
            **os.environ,
            "DATA_DIR": str(self._directory),
            "USERMANAGER_PORT": str(self.port),
            "CLUSTER_SECRET": secret,
            "JWT_SECRET": jwt_secret,
            "KEY_PEPPER": key_pepper,
            "DATABASE_URL": self.address.url(),
            "REPLICATOR_URLS": "http://127.0.0.1:9",
        }
        log_path = self._directory / "usermanager.log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "services.usermanager"),
                env=environment,
                stdout=log,
                stderr=log,
            )
        began_s = time.perf_counter()
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() - began_s > start_s_max:
                text = log_path.read_text()
                raise RuntimeError(f"the user manager did not become ready:\n{text[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(stop_s_max)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("start the user manager first")
        return self._process.pid

    def metrics(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self._ask("/metrics"))
        return found

    def _is_ready(self) -> bool:
        try:
            self._ask("/ready")
        except OSError:
            return False
        return True

    def _ask(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            content: bytes = answer.read()
        return content


def database_cpu_s() -> float:
    """What the PostgreSQL of this process has used so far, by all of its backends that live."""
    used = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "postgres" in process.name():
                times = process.cpu_times()
                used += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return used


@asynccontextmanager
async def usermanager() -> AsyncIterator[UserManagerProcess]:
    """One that is ready, on directories under TMPDIR that go with it."""
    with tempfile.TemporaryDirectory(prefix="ydht-bench-") as directory:
        path = Path(directory)
        async with EmbeddedPostgres(path, key_pepper, log=lambda _: None) as server:
            await asyncio.to_thread(migrate, server.address)
            process = UserManagerProcess(path, server.address)
            try:
                await asyncio.to_thread(process.start)
                yield process
            finally:
                await asyncio.to_thread(process.stop)
