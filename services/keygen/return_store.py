"""Returned keys in PostgreSQL: the statements, and rows as values. Rules stand in `returns`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.keygen.watch_store import era
from services.runtime.postgres import Connection, Database

_LOOK: Final = """
    SELECT asked.number, origin.id AS range_id, origin.closed_at IS NOT NULL AS is_closed,
        origin.instance_id, returned.size IS NOT NULL AS is_returned, returned.claim_id,
        returned.instance_id AS claimed_by
    FROM unnest($2::smallint[], $3::numeric[]) WITH ORDINALITY AS asked (size, index, number)
    JOIN LATERAL (
        SELECT * FROM key_ranges WHERE size = asked.size AND first <= asked.index
        ORDER BY first DESC LIMIT 1
    ) AS origin ON asked.index < origin.first + origin.count AND origin.tenant = $1
    LEFT JOIN returned_keys AS returned
        ON (returned.size, returned.index) = (asked.size, asked.index)
"""
_ADDRESSES: Final = "SELECT id, address FROM keygen_instances WHERE id = ANY($1::bigint[])"
# Whoever closes the range waits for us, or we see that it is closed.
_HOLD_RANGES: Final = """
    SELECT id FROM key_ranges WHERE id = ANY($1::bigint[]) ORDER BY id FOR SHARE
"""
_GIVE_BACK_CLAIMED: Final = """
    WITH held AS (
        SELECT returned.size, returned.index, returned.returned_at, returned.claimed_at
        FROM returned_keys AS returned
        JOIN unnest($1::smallint[], $2::numeric[], $3::bigint[]) AS given (size, index, claim_id)
            ON (returned.size, returned.index, returned.claim_id)
                = (given.size, given.index, given.claim_id)
        ORDER BY returned.size, returned.index FOR UPDATE OF returned
    ), reissued AS (
        INSERT INTO key_reissues (size, index, returned_at, claimed_at, is_certain)
        SELECT size, index, returned_at, claimed_at, true FROM held
    )
    UPDATE returned_keys AS returned
    SET claim_id = NULL, instance_id = NULL, claimed_at = NULL, returned_at = now()
    FROM held WHERE (returned.size, returned.index) = (held.size, held.index)
    RETURNING returned.size, returned.index
"""
_INSERT: Final = f"""
    INSERT INTO returned_keys (size, index, tenant, range_id, is_free, era)
    SELECT given.size, given.index, $1, origin.id, origin.closed_at IS NOT NULL, {era}
    FROM unnest($2::smallint[], $3::numeric[], $4::bigint[]) AS given (size, index, range_id)
    JOIN key_ranges AS origin ON origin.id = given.range_id
    ORDER BY given.size, given.index
    ON CONFLICT DO NOTHING RETURNING size, index, is_free
"""  # noqa: S608  A constant.


class Name(NamedTuple):
    """A key, as everybody can decode it."""

    size: int
    counter: int


@dataclass(slots=True, frozen=True)
class Standing:
    """What is known of a key that was given to this tenant, or may be yet."""

    name: Name
    range_id: int
    is_closed: bool
    # Whose range it is.
    instance_id: int
    is_returned: bool
    # It was returned, and claimed to be given out again.
    claim_id: int | None
    claimed_by: int | None

    @property
    def holder(self) -> int | None:
        """Which instance alone knows whether it has given the key out; None if it is known."""
        if self.claim_id is not None:
            return self.claimed_by
        return None if self.is_closed or self.is_returned else self.instance_id


class RangesMergedError(Exception):
    """A range that was looked at is part of another row by now (history_store.py)."""


class ReturnStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def look(self, tenant: int, names: Sequence[Name]) -> list[Standing]:
        """Those of the keys that are in a range of this tenant."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _LOOK, tenant, [name.size for name in names], [name.counter for name in names]
            )
        return [
            Standing(
                names[row["number"] - 1],
                row["range_id"],
                row["is_closed"],
                row["instance_id"],
                row["is_returned"],
                row["claim_id"],
                row["claimed_by"],
            )
            for row in rows
        ]

    async def addresses(self, instance_ids: Collection[int]) -> dict[int, str]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(_ADDRESSES, list(instance_ids))
        return {row["id"]: row["address"] for row in rows}

    async def take_back(
        self, tenant: int, standings: Sequence[Standing]
    ) -> tuple[set[Name], set[int]]:
        """Put keys that are known to be out on the list. Returns those that it was new for; and
        of which sizes there are now some to be given out again. RangesMergedError: look again."""
        ordered = sorted(standings, key=lambda standing: standing.name)
        claimed = [standing for standing in ordered if standing.claim_id is not None]
        async with self._database.transaction() as connection:
            range_ids = sorted({standing.range_id for standing in ordered})
            if len(await connection.fetch(_HOLD_RANGES, range_ids)) < len(range_ids):
                raise RangesMergedError
            taken = await _give_back_claimed(connection, claimed)
            free = {name.size for name in taken}
            # A claim that is all out by now has left no row.
            others = [standing for standing in ordered if standing.name not in taken]
            rows = await connection.fetch(
                _INSERT,
                tenant,
                [standing.name.size for standing in others],
                [standing.name.counter for standing in others],
                [standing.range_id for standing in others],
            )
        for row in rows:
            taken.add(Name(row["size"], int(row["index"])))
            if row["is_free"]:
                free.add(row["size"])
        return taken, free


async def _give_back_claimed(connection: Connection, claimed: Sequence[Standing]) -> set[Name]:
    if not claimed:
        return set()
    rows = await connection.fetch(
        _GIVE_BACK_CLAIMED,
        [standing.name.size for standing in claimed],
        [standing.name.counter for standing in claimed],
        [standing.claim_id for standing in claimed],
    )
    return {Name(row["size"], int(row["index"])) for row in rows}
