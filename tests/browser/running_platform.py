"""Everything that `ydht up` starts, for its pages to be looked at, and people who have accounts.

    with running_platform(tmp_path) as platform:
        ada = platform.person()                 signed up over the API
        made = platform.api_key(ada)            with an API key that may do all

Each person signs up from an address of their own, by way of a proxy that is trusted, so that one
test is not throttled for another. Tests of browsers are not coroutines: Playwright drives a loop of
its own.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from services.runtime.embedded_home import binaries, wheel_directory
from services.runtime.env_file import env_file_name, read_env
from services.runtime.migrations import choose_address
from tests.free_ports import free_port
from tests.tidy.tree import root

ports_of_up: Final = 10
good_password: Final = "correct horse battery staple"
# A first start makes the database, on a machine that does much else.
start_s_max: Final = 90.0
stop_s_max: Final = 20.0

_numbers = itertools.count(1)


@dataclass(slots=True, frozen=True)
class Person:
    """Somebody with an account."""

    id: int
    email: str
    username: str
    password: str
    # Of their programs: who they are, and where they come from. Their browser is on this machine.
    url: str
    headers: Mapping[str, str] = field(repr=False)

    def ask(self, method: str, target: str, body: object = None) -> httpx.Response:
        """The user manager, by an access token."""
        return _asked(method, self.url + target, self.headers, body)


class RunningPlatform:
    def __init__(self, up: dict[str, Any], data_dir: Path) -> None:
        self.data_dir = data_dir
        self.url: Final[str] = up["usermanager"]
        self.gateway_url: Final[str] = up["gateway"]
        self.keygen_url: Final[str] = up["keygen"]
        self.demo: Final[dict[str, str]] = up["demo"]
        self.pids: Final[dict[str, int]] = up["pids"]
        self.nodes: Final[dict[str, dict[str, Any]]] = up["nodes"]

    def person(self, username: str | None = None) -> Person:
        number = next(_numbers)
        name = username or f"person {number}"
        email, address = f"person-{number}@example.com", f"198.18.0.{number}"
        headers = {"X-Forwarded-For": address}
        known = {"email": email, "password": good_password}
        answer = _asked("POST", f"{self.url}/signup", headers, {**known, "username": name})
        assert answer.status_code == 201, answer.text
        tokens = _asked("POST", f"{self.url}/login", headers, known).json()
        headers["Authorization"] = f"Bearer {tokens['access_token']}"
        return Person(answer.json()["id"], email, name, good_password, self.url, headers)

    def api_key(self, person: Person, **more: object) -> dict[str, Any]:
        asked = {"name": "robot", "scopes": ["read", "write", "admin"], **more}
        answer = person.ask("POST", "/apikeys", asked)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def sql(self, statement: str) -> None:
        """Have the platform's database do so: for a past that nobody can wait for."""
        address = choose_address(
            self.data_dir,
            None,
            read_env(self.data_dir / env_file_name)["EMBEDDED_DB_PASSWORD"],
        )
        names = {"PGHOST": address.host, "PGPORT": str(address.port), "PGUSER": address.user}
        names |= {"PGDATABASE": address.database, "PGPASSWORD": address.password or ""}
        command = [str(binaries(wheel_directory()) / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
        subprocess.run([*command, "-c", statement], env=names, check=True)  # noqa: S603  The wheel's.

    def gateway(self, api_key: str, **headers: str) -> httpx.Client:
        """The data API as a program with this key uses it; to be closed."""
        return httpx.Client(
            base_url=self.gateway_url,
            headers={"X-API-Key": api_key, **headers},
            trust_env=False,
            timeout=30,
        )


@contextmanager
def running_platform(folder: Path, port_base: int | None = None) -> Iterator[RunningPlatform]:
    """A platform with a demo account, in which all services are ready; stopped as by Ctrl-C. Its
    ports are free ones, unless they have to be those."""
    data_dir = folder / "data"
    log = folder / "up.log"
    command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(data_dir)]
    command += ["--port-base", str(port_base or free_port(ports_of_up))]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "TRUSTED_PROXIES": "127.0.0.0/8",
        "DISK_RESERVE": "64MiB",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  Our own.
            command,
            cwd=root,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield RunningPlatform(_until_ready(process, data_dir / "up.json", log), data_dir)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(stop_s_max)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _asked(
    method: str, url: str, headers: Mapping[str, str], body: object = None
) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=30, headers=headers) as client:
        return (
            client.request(method, url) if body is None else client.request(method, url, json=body)
        )


def _until_ready(process: subprocess.Popen[bytes], up_file: Path, log: Path) -> dict[str, Any]:
    for _ in range(int(start_s_max / 0.25)):
        if up_file.exists():
            document: dict[str, Any] = json.loads(up_file.read_text())
            if document["ready"] and document["demo"]:
                return document
        try:
            process.wait(0.25)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"the platform does not start:\n{log.read_text()[-4000:]}")
