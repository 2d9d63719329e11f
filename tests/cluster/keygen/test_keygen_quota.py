"""A day's quota over several keygens: never more, and hardly less."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from services.runtime.database_url import DatabaseAddress
from tests.cluster.keygen.installation import running_keygens
from tests.integration.usermanager_process import usermanager_process

clients = 50
limit = 1_000


@pytest.mark.parametrize("target", ["/get-key", "/api/keys/7"])
async def test_fifty_clients_on_three_keygens_are_given_a_day_and_no_more(
    tmp_path: Path, database_address: DatabaseAddress, target: str
) -> None:
    async with (
        usermanager_process(tmp_path / "data", database_address) as usermanager,
        running_keygens(
            tmp_path, database_address.url(), 3, USERMANAGER_URL=usermanager.url
        ) as keygens,
        httpx.AsyncClient(
            timeout=30, trust_env=False, limits=httpx.Limits(max_connections=64)
        ) as http,
    ):
        ada = await usermanager.person()
        made = await ada.post("/apikeys", {"name": "robot"})
        api_key = made.json()["key"]
        given: list[str] = []

        async def client(number: int) -> None:
            url = keygens[number % 3].url + target
            while True:
                answer = await http.get(url, headers={"X-API-Key": api_key})
                if answer.status_code != 200:
                    assert answer.json()["code"] == "quota_exhausted", answer.text
                    return
                if target == "/get-key":
                    given.append(answer.text)
                else:
                    given.extend(told["key"] for told in answer.json())

        await asyncio.gather(*(client(number) for number in range(clients)))
        assert len(set(given)) == len(given)
        assert 990 <= len(given) <= limit
