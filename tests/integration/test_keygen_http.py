"""A keygen as its clients see it: keys, refusals, quotas and what describes them."""

from __future__ import annotations

from pathlib import Path

from services.runtime.database_url import DatabaseAddress
from tests.integration.keygen_process import keygen_process


async def test_keys_come_one_by_one(tmp_path: Path, database_address: DatabaseAddress) -> None:
    async with keygen_process(tmp_path / "data", database_address) as keygen:
        seen = set()
        for _ in range(50):
            answer = await keygen.get("/get-key")
            assert answer.status_code == 200, answer.text
            assert answer.headers["Content-Type"] == "text/plain"
            assert len(answer.text) == 7
            seen.add(answer.text)
        assert len(seen) == 50
        seen.update(await keygen.ids(7, 500))
        assert len(seen) == 550
        print(await keygen.metrics())
