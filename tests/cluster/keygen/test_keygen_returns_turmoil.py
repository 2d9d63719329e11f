"""Keys that are returned while keygens stop and are killed: each is somebody's at most once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.database_url import DatabaseAddress
from tests.cluster.keygen.returning import Lives, returning

keys = 2_000


@pytest.mark.timeout(240)
async def test_what_somebody_has_is_given_to_nobody_else(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    lives = await returning(tmp_path, database_address, keys)
    assert lives.twice == [], str(lives)
    assert min(lives.returned, lives.reissued) >= keys


def test_a_key_that_two_have_would_be_noticed() -> None:
    lives = Lives()
    lives.begin(["a", "b"])
    lives.live.discard("a")
    lives.begin(["a", "b"])
    assert (lives.twice, lives.reissued) == (["b"], 2)
