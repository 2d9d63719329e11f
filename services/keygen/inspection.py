"""What an operator can do without a keygen: have keys made, and see what became of one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.core.errors import FatalError, FixRequest
from services.core.permute import Permutation, material_bytes, size_max, size_min
from services.keygen.range_store import RangeStore
from services.keygen.watch_store import Halted, era
from services.runtime.postgres import Database

_FIND: Final = f"""
    SELECT counter.next > $2 AS is_forgotten, origin.tenant, origin.reserved_at,
        coalesce(origin.reserved_until, origin.reserved_at) AS reserved_until, origin.closed_at,
        returned.returned_at, returned.claimed_at,
        returned.era < {era} AND returned.claim_id IS NULL AS is_void,
        (SELECT email FROM users WHERE users.id = origin.tenant) AS email
    FROM key_counters AS counter
    LEFT JOIN (
        SELECT * FROM key_ranges WHERE size = $1 AND first <= $2 ORDER BY first DESC LIMIT 1
    ) AS origin ON $2 < origin.first + origin.count
    LEFT JOIN returned_keys AS returned ON (returned.size, returned.index) = ($1, $2)
    WHERE counter.size = $1
"""  # noqa: S608  A constant.
_HISTORY: Final = """
    SELECT returned_at, claimed_at, ended_at, is_certain FROM key_reissues
    WHERE size = $1 AND index = $2 ORDER BY returned_at
"""


@dataclass(slots=True, frozen=True)
class Return:
    """Once that a key was returned."""

    at: datetime
    # Since when it has been in a pool, to be given out again, if it has.
    claimed_at: datetime | None = None
    # When it was out of there again at the latest.
    reissued_by: datetime | None = None
    # Otherwise it was lost with a keygen, before or after that gave it out.
    is_certain: bool = True
    # It is given to nobody, as the database was set back since.
    is_void: bool = False


@dataclass(slots=True, frozen=True)
class Fate:
    """Of one key. `reserved_at` is None if it is in no range: it was never given out, unless the
    database was set back and has forgotten it."""

    key: str
    index: int
    is_forgotten: bool = False
    tenant: int | None = None
    # Of the account, if it is still there.
    email: str | None = None
    # Later only where several ranges have become one row.
    reserved_at: datetime | None = None
    reserved_until: datetime | None = None
    # None: a keygen may still be giving out what is in its range.
    closed_at: datetime | None = None
    # The oldest first, as far back as is remembered.
    returns: Sequence[Return] = ()


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
            past = await connection.fetch(_HISTORY, permutation.size, index)
        if row["reserved_at"] is None:
            return Fate(key, index, row["is_forgotten"])
        returns = [
            Return(one["returned_at"], one["claimed_at"], one["ended_at"], one["is_certain"])
            for one in past
        ]
        if row["returned_at"] is not None:
            void = row["is_void"]
            returns.append(Return(row["returned_at"], row["claimed_at"], is_void=void))
        return Fate(
            key,
            index,
            is_forgotten=False,
            tenant=int(row["tenant"]),
            email=row["email"],
            reserved_at=row["reserved_at"],
            reserved_until=row["reserved_until"],
            closed_at=row["closed_at"],
            returns=returns,
        )

    async def _permutation(self, size: int) -> Permutation:
        if not size_min <= size <= size_max:
            raise ValueError(f"keys have {size_min} to {size_max} characters")
        material = await self._ranges.material(secrets.token_bytes(material_bytes))
        return Permutation(material, size)
