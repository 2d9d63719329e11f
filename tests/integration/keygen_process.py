"""A real keygen in a process of its own, and who asks it.

async with keygen_process(tmp_path, database_address) as keygen:
    answer = await keygen.get("/get-key")                    as anybody
    ids = await keygen.ids(tenant=7, count=3)                as the gateway asks
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx

from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.integration.node_process import NodeProcess, secret
from tests.integration.replicator_process import until_told
from tests.integration.usermanager_process import key_pepper
from tests.plain_http import plain_client
from tests.waiting import wait_until

keygen_command: Final = ("-m", "services.keygen")
nobody_there: Final = "http://127.0.0.1:9"

_numbers = itertools.count(1)


class KeygenProcess(NodeProcess):
    """A keygen on a database: started, killed and started again, as a node is."""

    def __init__(self, data_dir: Path, database_url: str, **environment: str) -> None:
        super().__init__(data_dir, f"keygen-{next(_numbers)}")
        self.command = keygen_command
        self.environment = {
            "DATA_DIR": str(data_dir),
            "KEYGEN_PORT": str(self.port),
            "CLUSTER_SECRET": secret,
            "KEY_PEPPER": key_pepper,
            "DATABASE_URL": database_url,
            "USERMANAGER_URL": nobody_there,
            "KEYGEN_ANONYMOUS": "true",
            **environment,
        }

    async def serve(self) -> None:
        """Begin a process, and wait until it answers HTTP."""
        await self.start()

        def listening() -> bool:
            over = self.process.returncode is not None
            assert not over, f"the keygen has ended:\n{self.said}"
            return " listening " in self.said

        await wait_until(listening, f"{self.node_id} listens")

    async def until_leased(self) -> None:
        """Wait until it can reserve ranges."""

        async def look() -> bool | None:
            answer = await self.get("/ready")
            return (
                answer.status_code == 200 and "database" not in answer.json()["reasons"]
            ) or None

        await until_told(look, f"{self.node_id} has a lease")

    async def call(
        self, method: str, target: str, *, api_key: str | None = None, body: object = None
    ) -> httpx.Response:
        headers = {} if api_key is None else {"X-API-Key": api_key}
        async with plain_client(timeout=30) as client:
            return await client.request(method, self.url + target, headers=headers, json=body)

    async def asked_by_service(
        self, target: str, body: object = None, **headers: str
    ) -> httpx.Response:
        """A signed POST, with headers in which `_` stands for `-`."""
        async with plain_client(timeout=30) as client:
            return await client.post(
                self.url + target,
                headers={name.replace("_", "-"): value for name, value in headers.items()},
                auth=SignedAuth(Signer(secret, SystemClock())),
                json=body,
            )

    async def ids(
        self, tenant: int, count: int = 1, size: int = 7, quota: str = "unlimited"
    ) -> list[str]:
        """Keys, as the gateway asks for them."""
        answer = await self.asked_by_service(
            f"/ids?count={count}&size={size}",
            X_Ydht_Tenant=str(tenant),
            X_Ydht_Key_Id="1",
            X_Ydht_Ids_Per_Day=quota,
        )
        assert answer.status_code == 200, answer.text
        found: list[str] = answer.json()["ids"]
        return found

    async def metrics(self) -> dict[str, float]:
        found: dict[str, float] = (await self.get("/metrics")).json()
        return found


@asynccontextmanager
async def keygen_process(
    data_dir: Path, address: DatabaseAddress, **environment: str
) -> AsyncIterator[KeygenProcess]:
    """A keygen that serves and has a lease; whatever process it has in the end is killed."""
    keygen = KeygenProcess(data_dir, address.url(), **environment)
    try:
        await keygen.serve()
        await keygen.until_leased()
        yield keygen
    finally:
        await keygen.clear()
