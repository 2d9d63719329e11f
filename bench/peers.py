"""What the gateway is measured beside: webdis over one Redis, and three nodes of etcd.

They are child processes on 127.0.0.1, on ports found free and in directories under TMPDIR, and
are stopped by pid. Each is set up to do its best on this machine while it promises what is
compared: a write is on disk before it is answered.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from bench.http_connection import request
from tests.free_ports import free_port

start_s_max: Final = 30.0
stop_s_max: Final = 15.0
poll_s: Final = 0.05


class Side(Protocol):
    """A store of keys and values over HTTP, as a load sees it."""

    name: str
    port: int

    def get(self, key: str) -> bytes:
        """The request that reads a key, whole."""
        ...

    def put(self, key: str, value: bytes) -> bytes: ...

    def value(self, body: bytes) -> bytes | None:
        """What the body of an answer to `get` says that the value is; None: there is none."""
        ...

    def pids(self) -> Mapping[str, int]:
        """All its processes, by name."""
        ...


class Children:
    """Processes in one temporary directory, which stop together and leave nothing."""

    def __init__(self, stack: ExitStack) -> None:
        self.directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ydht-bench-peer-"))
        )
        self.pids: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(self._stop)

    def start(self, name: str, *command: str | Path) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603  Commands of this module.
                [str(part) for part in command],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes[name] = process
        self.pids[name] = process.pid

    def until(self, url: str, body: bytes | None = None) -> dict[str, Any]:
        """The first answer of this URL. RuntimeError if a process ends before, or none comes."""
        began_s = time.perf_counter()
        while True:
            try:
                return _ask(url, body)
            except (OSError, ValueError) as error:
                ended = [name for name, one in self._processes.items() if one.poll() is not None]
                if ended or time.perf_counter() - began_s > start_s_max:
                    logs = "\n".join(
                        f"{path.name}: {path.read_text(errors='replace')[-1000:]}"
                        for path in self.directory.glob("*.log")
                    )
                    what = f"{', '.join(ended)} ended" if ended else f"no answer from {url}"
                    raise RuntimeError(f"{what}: {error}\n{logs}") from error
            time.sleep(poll_s)

    def _stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(stop_s_max)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ask(url: str, body: bytes | None) -> dict[str, Any]:
    with urllib.request.urlopen(url, data=body, timeout=5) as answer:  # noqa: S310  It says http.
        found: dict[str, Any] = json.loads(answer.read())
    return found


def missing(commands: Sequence[str]) -> list[str]:
    """Those of the commands that are not installed."""
    return [command for command in commands if shutil.which(command) is None]


# -- webdis over one Redis

webdis_commands: Final = ("webdis", "redis-server")
# One for each core: of 1 to 4, two answered most on two cores, by reads and by writes.
webdis_threads: Final = os.cpu_count() or 2
# To Redis, by each thread: its default, and enough for all of 64 clients not to wait for one.
webdis_connections_per_thread: Final = 20


class Webdis:
    """Asked for values as plain text, which costs it a quarter less than its JSON."""

    name = "webdis"

    def __init__(self, children: Children, port: int) -> None:
        self.port = port
        self._children = children

    def get(self, key: str) -> bytes:
        return request("GET", f"/GET/{key}.txt", self.port)

    def put(self, key: str, value: bytes) -> bytes:
        return request("PUT", f"/SET/{key}", self.port, body=value)

    def value(self, body: bytes) -> bytes | None:
        return body

    def pids(self) -> Mapping[str, int]:
        return self._children.pids


@contextmanager
def webdis() -> Iterator[Webdis]:
    with ExitStack() as stack:
        children = Children(stack)
        yield start_webdis(children, webdis_threads)


def start_webdis(children: Children, threads: int) -> Webdis:
    directory = children.directory
    redis_port, port = free_port(), free_port()
    children.start(
        "redis", "redis-server",
        "--bind", "127.0.0.1", "--port", str(redis_port), "--dir", directory,
        # Durable before it is answered, as a write of ours is. No snapshots, which would add to
        # what the log does already.
        "--appendonly", "yes", "--appendfsync", "always", "--save", "",
        # Rewriting the log in the middle of a run would be noise to its disadvantage.
        "--auto-aof-rewrite-percentage", "0",
    )  # fmt: skip
    settings = {
        # By TCP, as services of ours speak to each other: over a socket in a file, which ties the
        # two to one machine, it answers about a seventh more.
        "redis_host": "127.0.0.1",
        "redis_port": redis_port,
        "http_host": "127.0.0.1",
        "http_port": port,
        "threads": threads,
        "pool_size": webdis_connections_per_thread,
        "daemonize": False,
        "database": 0,
        # Errors alone: what it logs of each request is cost that ours has not.
        "verbosity": 0,
        "logfile": str(directory / "requests.log"),
    }
    config = directory / "webdis.json"
    config.write_text(json.dumps(settings))
    children.start("webdis", "webdis", config)
    side = Webdis(children, port)
    while children.until(f"http://127.0.0.1:{port}/PING") != {"PING": [True, "PONG"]}:
        time.sleep(poll_s)
    return side


# -- etcd, three nodes

etcd_commands: Final = ("etcd",)
etcd_nodes: Final = 3
etcd_quota_bytes: Final = 8 << 30


class Etcd:
    """Asked through its leader, where a request takes the fewest hops; the others only follow."""

    name = "etcd"

    def __init__(self, children: Children, port: int) -> None:
        self.port = port
        self._children = children

    def get(self, key: str) -> bytes:
        # Linearizable, which is what it does unless told otherwise.
        return self._post("range", {"key": _base64(key.encode())})

    def put(self, key: str, value: bytes) -> bytes:
        return self._post("put", {"key": _base64(key.encode()), "value": _base64(value)})

    def value(self, body: bytes) -> bytes | None:
        found = json.loads(body).get("kvs", [])
        return base64.b64decode(found[0]["value"]) if found else None

    def pids(self) -> Mapping[str, int]:
        return self._children.pids

    def _post(self, what: str, document: object) -> bytes:
        body = json.dumps(document, separators=(",", ":")).encode()
        json_line = "Content-Type: application/json\r\n"
        return request("POST", f"/v3/kv/{what}", self.port, json_line, body)


@contextmanager
def etcd() -> Iterator[Etcd]:
    with ExitStack() as stack:
        children = Children(stack)
        client_ports = [free_port() for _ in range(etcd_nodes)]
        peers = {
            f"etcd-{number}": f"http://127.0.0.1:{free_port()}" for number in range(etcd_nodes)
        }
        cluster = ",".join(f"{name}={url}" for name, url in peers.items())
        for port, (name, peer_url) in zip(client_ports, peers.items(), strict=True):
            url = f"http://127.0.0.1:{port}"
            children.start(
                name, "etcd", "--name", name, "--data-dir", children.directory / name,
                "--listen-client-urls", url, "--advertise-client-urls", url,
                "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
                "--initial-cluster", cluster, "--initial-cluster-state", "new",
                "--initial-cluster-token", children.directory.name,
                # Errors alone, as of the others.
                "--logger", "zap", "--log-level", "error",
                # It keeps all versions of a key; running out of room is not what is measured.
                "--quota-backend-bytes", str(etcd_quota_bytes),
            )  # fmt: skip
        yield Etcd(children, _leader(children, client_ports))


def _leader(children: Children, ports: Sequence[int]) -> int:
    """The port of the node that leads, once there is one."""
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < start_s_max:
        for port in ports:
            status = children.until(f"http://127.0.0.1:{port}/v3/maintenance/status", b"{}")
            if status.get("leader") == status["header"]["member_id"]:
                return port
        time.sleep(poll_s)
    raise RuntimeError(f"the nodes of etcd found no leader within {start_s_max:g} s")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
