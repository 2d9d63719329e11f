"""What an operator can do without a keygen: have keys made, and see what became of one."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.core.errors import FatalError, FixRequest
from services.core.permute import Permutation, material_bytes, size_max, size_min
from services.keygen.range_store import RangeStore
from services.keygen.watch_store import Halted
from services.runtime.postgres import Database

_FIND: Final = """
    SELECT origin.tenant, origin.reserved_at, origin.closed_at, returned.returned_at,
        returned.claim_id, (SELECT email FROM users WHERE users.id = origin.tenant) AS email
    FROM (
        SELECT * FROM key_ranges WHERE size = $1 AND first <= $2 ORDER BY first DESC LIMIT 1
    ) AS origin
    LEFT JOIN returned_keys AS returned ON (returned.size, returned.index) = ($1, $2)
    WHERE $2 < origin.first + origin.count
"""


@dataclass(slots=True, frozen=True)
class Fate:
    """Of one key. `reserved_at` is None if it is in no range: it was never given out."""

    key: str
    index: int
    tenant: int | None = None
    # Of the account, if it is still there.
    email: str | None = None
    reserved_at: datetime | None = None
    # None: a keygen may still be giving out what is in its range.
    closed_at: datetime | None = None
    returned_at: datetime | None = None
    # It was returned, and is in a pool or was given out from there.
    claimed: bool = False


class Inspection:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._ranges = RangeStore(database)

    async def make(self, tenant: int, count: int, size: int) -> list[str]:
        """New keys for this tenant, which count against nobody's quota. ValueError if there are
        none of this size; FatalError if the database was set back."""
        permutation = await self._permutation(size)
        try:
            lot = await self._ranges.reserve_closed(tenant, size, count)
        except Halted as error:
            raise FatalError(error.detail) from error
        return [key.decode("ascii") for key in lot.draw(permutation, count).keys]

    async def fate(self, key: str) -> Fate:
        """FixRequest `invalid_key` if it is none."""
        try:
            permutation = await self._permutation(len(key))
            index = permutation.index(key.encode("ascii", "replace"))
        except ValueError as error:
            raise FixRequest("invalid_key", f"{key[:size_max]!r} is no key: {error}") from error
        async with self._database.connection() as connection:
            row: Any = await connection.fetchrow(_FIND, permutation.size, index)
        if row is None:
            return Fate(key, index)
        return Fate(
            key,
            index,
            int(row["tenant"]),
            row["email"],
            row["reserved_at"],
            row["closed_at"],
            row["returned_at"],
            row["claim_id"] is not None,
        )

    async def _permutation(self, size: int) -> Permutation:
        if not size_min <= size <= size_max:
            raise ValueError(f"keys have {size_min} to {size_max} characters")
        material = await self._ranges.material(secrets.token_bytes(material_bytes))
        return Permutation(material, size)
