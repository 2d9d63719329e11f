"""A real user manager in a process of its own, and the people and services that call it.

    async with usermanager_process(tmp_path, database_address) as usermanager:
        ada = await usermanager.person()             signed up and logged in
        made = await ada.post("/apikeys", {...})     by her access token
        seen = await usermanager.ask("POST", "/validate-key", {...})

Each person comes from an address of their own (through a proxy that is trusted), so that one test's
attempts are not throttled by another's; `person(address=...)` chooses it.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.integration.node_process import NodeProcess, secret
from tests.plain_http import plain_client
from tests.waiting import wait_until

usermanager_command = ("-m", "services.usermanager")
jwt_secret = "Zp4vKx8sQm2wLr6tYb9nHc3dFg7jUe5a"
key_pepper = "hT6yNb3rWq9mXk5vPd8cJs2fLg4zUa7E"
good_password = "correct horse battery staple"

_numbers = itertools.count(1)


@dataclass(slots=True)
class Person:
    """Somebody with an account. The answers are httpx's, whatever their status."""

    usermanager: UserManagerProcess
    id: int
    email: str
    username: str
    password: str
    address: str
    access_token: str = ""
    refresh_token: str = ""

    async def login(self) -> None:
        """Log in again: from now on with the tokens of another session."""
        answer = await self.usermanager.call(
            "POST",
            "/login",
            {"email": self.email, "password": self.password},
            headers={"X-Forwarded-For": self.address},
        )
        assert answer.status_code == 200, answer.text
        tokens = answer.json()
        self.access_token, self.refresh_token = tokens["access_token"], tokens["refresh_token"]

    async def call(self, method: str, target: str, body: object = None) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {self.access_token}",
            "X-Forwarded-For": self.address,
        }
        return await self.usermanager.call(method, target, body, headers=headers)

    async def get(self, target: str) -> httpx.Response:
        return await self.call("GET", target)

    async def post(self, target: str, body: object = None) -> httpx.Response:
        return await self.call("POST", target, body)

    async def delete(self, target: str, body: object = None) -> httpx.Response:
        return await self.call("DELETE", target, body)


class UserManagerProcess(NodeProcess):
    """A user manager on a database: started, killed and started again, as a node is."""

    def __init__(self, data_dir: Path, database_url: str, **environment: str) -> None:
        super().__init__(data_dir, "usermanager")
        self.command = usermanager_command
        self.environment = {
            "DATA_DIR": str(data_dir),
            "USERMANAGER_PORT": str(self.port),
            "CLUSTER_SECRET": secret,
            "JWT_SECRET": jwt_secret,
            "KEY_PEPPER": key_pepper,
            "DATABASE_URL": database_url,
            "REPLICATOR_URLS": "http://127.0.0.1:9",
            "TRUSTED_PROXIES": "127.0.0.0/8",
            **environment,
        }

    async def serve(self) -> None:
        """Begin a process, and wait until it answers HTTP."""
        await self.start()

        def listening() -> bool:
            over = self.process.returncode is not None
            assert not over, f"the user manager has ended:\n{self.said}"
            return " listening " in self.said

        await wait_until(listening, "the user manager listens")

    async def readiness(self) -> tuple[int, dict[str, str]]:
        """The status of /ready, and its reasons."""
        answer = await self.get("/ready")
        return answer.status_code, answer.json()["reasons"]

    async def call(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        auth: httpx.Auth | None = None,
    ) -> httpx.Response:
        """One request; a body is sent as JSON, unless it is bytes."""
        sent: dict[str, Any] = {"content" if isinstance(body, bytes) else "json": body}
        async with plain_client(timeout=60) as client:
            return await client.request(
                method,
                self.url + target,
                headers=headers,
                auth=auth,
                **({} if body is None else sent),
            )

    async def ask(self, method: str, target: str, body: object = None) -> httpx.Response:
        """A request by a service, which holds the cluster's secret."""
        return await self.call(method, target, body, auth=SignedAuth(Signer(secret, SystemClock())))

    async def person(
        self, name: str | None = None, *, address: str | None = None, password: str = good_password
    ) -> Person:
        """Somebody new, who has signed up and logged in."""
        number = next(_numbers)
        username = name or f"person-{number}"
        email = f"{username}-{number}@example.com" if name else f"{username}@example.com"
        place = address or f"198.18.{number // 250 % 250}.{number % 250 + 1}"
        answer = await self.call(
            "POST",
            "/signup",
            {"email": email, "username": username, "password": password},
            headers={"X-Forwarded-For": place},
        )
        assert answer.status_code == 201, answer.text
        person = Person(self, answer.json()["id"], email, username, password, place)
        await person.login()
        return person


@asynccontextmanager
async def usermanager_process(
    data_dir: Path, address: DatabaseAddress, **environment: str
) -> AsyncIterator[UserManagerProcess]:
    """A user manager that serves; whatever process it has in the end is killed."""
    usermanager = UserManagerProcess(data_dir, address.url(), **environment)
    try:
        await usermanager.serve()
        yield usermanager
    finally:
        await usermanager.clear()
