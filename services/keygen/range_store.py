"""Ranges, claims and instances in PostgreSQL: the statements, and rows as values.

Only what was *confirmed* is used. A reservation whose commit was not answered may or may not have
happened: `Unconfirmed` says what to let go of, and the range is a gap. Indexes of long keys are
numbers of 96 bits, numeric in SQL.

Who locks ranges and returned keys, here or in return_store.py, locks ranges first, and of each in
the order of their keys: so nobody waits for somebody who waits for him.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.core.errors import FatalError, FixRequest, RetryLater, UnknownOutcome
from services.core.permute import material_bytes, radix
from services.keygen.lots import ClaimLot, RangeLot
from services.keygen.marks import Marks, SetBack, claims_counter
from services.keygen.watch_store import (
    WatchStore,
    check_may_reserve,
    era,
    is_halted,
    is_same_server,
)
from services.runtime.postgres import Connection, Database

material_name: Final = "keygen permutation"
# Whose ranges are closed from the beginning.
_no_instance: Final = 0
# A client that has heard nothing of its return repeats it within minutes. Were the key somebody
# else's by then, that would be taken as his return of it.
return_rest_s_default: Final = 600.0

# Nobody may ever make a second one, so never where ranges were given out under a first.
_MAKE_MATERIAL: Final = """
    INSERT INTO platform (key, value) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM key_ranges)
    ON CONFLICT (key) DO NOTHING
"""
_MATERIAL: Final = "SELECT value FROM platform WHERE key = $1"
_REGISTER: Final = """
    INSERT INTO keygen_instances (id, address, lease_until)
    VALUES ($1, $2, now() + make_interval(secs => $3))
"""
_RENEW: Final = """
    UPDATE keygen_instances SET lease_until = now() + make_interval(secs => $2)
    WHERE id = $1 AND lease_until > now() RETURNING id
"""
_LEASE: Final = "SELECT lease_until, address FROM keygen_instances WHERE id = $1"
_END_LEASE: Final = "UPDATE keygen_instances SET lease_until = now() WHERE id = $1"
_BURY: Final = """
    DELETE FROM keygen_instances WHERE id IN (
        SELECT id FROM keygen_instances WHERE lease_until <= now() FOR UPDATE SKIP LOCKED
    ) RETURNING id
"""
# An instance is there before its ranges are: whose is not there, is over.
_CLOSE_OF_DEAD: Final = """
    WITH held AS (
        SELECT id FROM key_ranges
        WHERE closed_at IS NULL AND instance_id NOT IN (SELECT id FROM keygen_instances)
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE key_ranges SET closed_at = now() FROM held WHERE key_ranges.id = held.id
    RETURNING key_ranges.id
"""
# Whether a dead instance had given them out nobody knows: they count as given out.
_FORGET_CLAIMS_OF_DEAD: Final = """
    WITH held AS (
        SELECT size, index FROM returned_keys
        WHERE instance_id IS NOT NULL AND instance_id NOT IN (SELECT id FROM keygen_instances)
        ORDER BY size, index FOR UPDATE
    ), gone AS (
        DELETE FROM returned_keys AS returned USING held
        WHERE (returned.size, returned.index) = (held.size, held.index)
        RETURNING returned.size, returned.index, returned.returned_at, returned.claimed_at
    )
    INSERT INTO key_reissues (size, index, returned_at, claimed_at, is_certain)
    SELECT size, index, returned_at, claimed_at, false FROM gone
"""
_LOCK_COUNTER: Final = f"""
    SELECT next, {is_same_server} AS is_same_server, {is_halted} AS is_halted
    FROM key_counters WHERE size = $1 FOR UPDATE
"""  # noqa: S608  Constants.
_RESERVE: Final = """
    WITH moved AS (UPDATE key_counters SET next = $2::numeric + $3::bigint WHERE size = $1)
    INSERT INTO key_ranges (size, first, count, tenant, instance_id)
    VALUES ($1, $2, $3::bigint, $4, $5)
    RETURNING id, (extract(epoch FROM reserved_at) * 1000)::bigint AS reserved_ms
"""
_CLAIM: Final = f"""
    WITH chosen AS (
        SELECT size, index FROM returned_keys
        WHERE tenant = $1 AND size = $2 AND is_free AND claim_id IS NULL AND era = {era}
            AND returned_at <= now() - make_interval(secs => $5)
            AND {is_same_server} AND NOT {is_halted}
        ORDER BY returned_at LIMIT $3 FOR UPDATE SKIP LOCKED
    ), claim AS MATERIALIZED (SELECT nextval('key_claims') AS id)
    UPDATE returned_keys AS returned SET claim_id = claim.id, instance_id = $4, claimed_at = now()
    FROM chosen, claim, key_ranges AS origin
    WHERE (returned.size, returned.index) = (chosen.size, chosen.index)
        AND origin.id = returned.range_id
    RETURNING claim.id, returned.index,
        (extract(epoch FROM origin.reserved_at) * 1000)::bigint AS reserved_ms
"""  # noqa: S608  Constants.
# Claims are counted, so that it is noticed when one was forgotten.
# Of one that this server has never begun, as it is another one, null: to ask would be an error.
_OUTCOMES: Final = """
    SELECT id::text, CASE WHEN id < pg_current_xact_id() THEN pg_xact_status(id) END AS outcome
    FROM unnest($1::text[]::xid8[]) AS asked (id)
"""
_COUNT_CLAIM: Final = "UPDATE key_watch SET claims = claims + 1 RETURNING claims"
_CLOSE: Final = """
    WITH held AS (
        SELECT id FROM key_ranges
        WHERE id = ANY($1::bigint[]) AND instance_id = $2 AND closed_at IS NULL
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE key_ranges SET closed_at = now() FROM held WHERE key_ranges.id = held.id
    RETURNING key_ranges.id
"""
_FREE: Final = """
    UPDATE returned_keys SET is_free = true WHERE range_id = ANY($1::bigint[]) AND NOT is_free
    RETURNING tenant, size
"""
# Of claims and ranges each keygen ends its own alone: where the database was set back, numbers are
# given to others anew.
_HOLD_CLAIMS: Final = """
    SELECT FROM returned_keys WHERE claim_id = ANY($1::bigint[]) AND instance_id = $2
    ORDER BY size, index FOR UPDATE
"""
# What was claimed and not given out goes back to where it was; the rest of the claim is out.
_UNCLAIM: Final = """
    UPDATE returned_keys AS returned
    SET claim_id = NULL, instance_id = NULL, claimed_at = NULL
    FROM unnest($1::bigint[], $2::numeric[]) AS unused (claim_id, index)
    WHERE (returned.claim_id, returned.index, returned.instance_id)
        = (unused.claim_id, unused.index, $3)
"""
_UNCLAIM_WHOLE: Final = """
    UPDATE returned_keys SET claim_id = NULL, instance_id = NULL, claimed_at = NULL
    WHERE claim_id = ANY($1::bigint[]) AND instance_id = $2
"""
_FINISH_CLAIMS: Final = """
    WITH gone AS (
        DELETE FROM returned_keys WHERE claim_id = ANY($1::bigint[]) AND instance_id = $2
        RETURNING size, index, returned_at, claimed_at
    )
    INSERT INTO key_reissues (size, index, returned_at, claimed_at, is_certain)
    SELECT size, index, returned_at, claimed_at, true FROM gone
"""
_WITH_FREE: Final = f"""
    SELECT asked.tenant, asked.size
    FROM unnest($1::numeric[], $2::smallint[]) AS asked (tenant, size)
    WHERE EXISTS (
        SELECT FROM returned_keys AS returned
        WHERE (returned.tenant, returned.size) = (asked.tenant, asked.size)
            AND returned.is_free AND returned.claim_id IS NULL AND returned.era = {era}
            AND returned.returned_at <= now() - make_interval(secs => $3)
    )
"""  # noqa: S608  A constant.


@dataclass(slots=True, frozen=True)
class Wish:
    """What a pool wants: keys that were returned and, if these are fewer than `wanted`, new ones:
    `count` of them or more, so as to come again less often. Of those `needed` somebody waits for
    them: with fewer the pool is not served."""

    tenant: int
    size: int
    needed: int
    wanted: int
    count: int
    claim_max: int


@dataclass(slots=True, frozen=True)
class Lease:
    until: datetime
    address: str


@dataclass(slots=True, frozen=True)
class Refill:
    claimed: ClaimLot | None
    reserved: RangeLot | None


@dataclass(slots=True, frozen=True)
class Claimed:
    """The lot, and which claim it is since the first of all."""

    number: int
    lot: ClaimLot


@dataclass(slots=True, frozen=True)
class Leavings:
    """What a keygen is done with, each part of which may be told twice."""

    # Ranges that are used up or let go of.
    ranges: Sequence[int] = ()
    # Claims of which nothing is left to give out, once what is `unused` has gone back.
    claims: Sequence[int] = ()
    unused: Sequence[tuple[int, int]] = ()
    # Claims that may never have happened, and of which nothing was given out.
    void_claims: Sequence[int] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges or self.claims or self.unused or self.void_claims)


@dataclass(slots=True, frozen=True)
class Doubt:
    """A transaction that may have happened, or may yet: what to let go of once it has."""

    transaction_id: str
    instance_id: int
    leavings: Leavings


class Unconfirmed(Exception):
    """A reservation that may or may not have happened, and so is used by nobody."""

    def __init__(self, doubt: Doubt, keys: int) -> None:
        super().__init__(f"a reservation of {keys} keys was not confirmed")
        self.doubt = doubt
        self.keys = keys


class WasSetBack(Exception):
    """A counter stands before its mark, so nothing was reserved."""

    def __init__(self, set_back: SetBack) -> None:
        super().__init__(str(set_back))
        self.set_back = set_back


class RangeStore:
    """What was returned is claimed once it has rested for `return_rest_s`. Nothing is reserved that
    is known to `marks`."""

    def __init__(
        self,
        database: Database,
        marks: Marks | None = None,
        return_rest_s: float = return_rest_s_default,
    ) -> None:
        self._database = database
        self._watch = WatchStore(database)
        self._marks = marks or Marks()
        self._return_rest_s = return_rest_s

    async def material(self, drawn: bytes) -> bytes:
        """The key material of this installation: `drawn`, if it had none. FatalError if it is
        lost."""
        async with self._database.transaction() as connection:
            await connection.execute(_MAKE_MATERIAL, material_name, drawn)
            found = await connection.fetchval(_MATERIAL, material_name)
        if found is None or len(found) != material_bytes:
            raise FatalError(
                f"ranges of keys were given out, and the key material {material_name!r} that keys "
                "are made with is not in the table platform: restore that row from a backup, for "
                "with another one keys would come twice"
            )
        return bytes(found)

    async def register(
        self, instance_id: int, address: str, lease_s: float, former: int | None
    ) -> None:
        """A new instance, known to be the successor of `former`, which is over."""
        async with self._database.transaction() as connection:
            if former is not None:
                await connection.execute(_END_LEASE, former)
            await connection.execute(_REGISTER, instance_id, address, lease_s)

    async def renew(self, instance_id: int, lease_s: float) -> bool:
        """False if the lease was over already."""
        async with self._database.transaction() as connection:
            return await connection.fetchval(_RENEW, instance_id, lease_s) is not None

    async def lease(self, instance_id: int) -> Lease | None:
        """None if it is over and gone."""
        async with self._database.connection() as connection:
            row: Any = await connection.fetchrow(_LEASE, instance_id)
        return Lease(row["lease_until"], row["address"]) if row is not None else None

    async def end_lease(self, instance_id: int) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(_END_LEASE, instance_id)

    async def bury(self) -> int:
        """Close what instances had whose leases are over; how many there were."""
        async with self._database.transaction() as connection:
            dead = await connection.fetch(_BURY)
            closed = [row["id"] for row in await connection.fetch(_CLOSE_OF_DEAD)]
            await connection.execute(_FORGET_CLAIMS_OF_DEAD)
            if closed:
                await connection.execute(_FREE, closed)
        return len(dead)

    async def refill(self, instance_id: int, wish: Wish) -> Refill:
        """One transaction. FixRequest `limit_reached` if there are no keys of this size any more;
        RetryLater; Unconfirmed. What it returns this directory remembers."""
        claimed: Claimed | None = None
        reserved: RangeLot | None = None
        reached: dict[int, int] = {}
        try:
            async with self._database.transaction() as connection:
                claimed = await self._claim(connection, instance_id, wish)
                if claimed is not None:
                    reached[claims_counter] = claimed.number
                found = len(claimed.lot) if claimed is not None else 0
                if found < wish.wanted:
                    reserved = await self._reserve(connection, instance_id, wish, found)
                    reached[wish.size] = reserved.end
        except UnknownOutcome as error:
            leavings = Leavings(
                ranges=[reserved.range_id] if reserved else (),
                void_claims=[claimed.lot.claim_id] if claimed else (),
            )
            transaction_id = str(error.members["operation_id"]).removeprefix("xid-")
            doubt = Doubt(transaction_id, instance_id, leavings)
            raise Unconfirmed(doubt, reserved.left if reserved else 0) from error
        except WasSetBack as error:
            sight = await self._watch.look(instance_id, self._marks)
            raise sight.refusal or _moved_on() from error
        await self._marks.reach(reached)
        return Refill(claimed.lot if claimed is not None else None, reserved)

    async def reserve_closed(self, tenant: int, size: int, count: int) -> RangeLot:
        """A range for somebody who hands it out at once, and is no keygen."""
        sight = await self._watch.look(_no_instance, self._marks)
        if sight.refusal is not None:
            raise sight.refusal
        async with self._database.transaction() as connection:
            wish = Wish(tenant, size, count, count, count, 0)
            reserved = await self._reserve(connection, _no_instance, wish, 0)
            await connection.execute(_CLOSE, [reserved.range_id], _no_instance)
        return reserved

    async def leave(self, instance_id: int, leavings: Leavings) -> set[tuple[int, int]]:
        """Note what this instance is done with. Returns tenants and sizes of which keys became free
        by it."""
        claims = [claim_id for claim_id, _ in leavings.unused]
        indexes = [index for _, index in leavings.unused]
        async with self._database.transaction() as connection:
            closed: list[int] = []
            if leavings.ranges:
                rows = await connection.fetch(_CLOSE, leavings.ranges, instance_id)
                closed = [row["id"] for row in rows]
            if every_claim := {*leavings.void_claims, *leavings.claims, *claims}:
                await connection.execute(_HOLD_CLAIMS, list(every_claim), instance_id)
            if leavings.void_claims:
                await connection.execute(_UNCLAIM_WHOLE, leavings.void_claims, instance_id)
            if leavings.unused:
                await connection.execute(_UNCLAIM, claims, indexes, instance_id)
            if leavings.claims:
                await connection.execute(_FINISH_CLAIMS, leavings.claims, instance_id)
            if not closed:
                return set()
            freed = await connection.fetch(_FREE, closed)
        return {(int(row["tenant"]), row["size"]) for row in freed}

    async def under_way(self, transaction_ids: Sequence[str]) -> set[str]:
        """Those of these transactions that may still happen, or not."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_OUTCOMES, transaction_ids)
        return {row["id"] for row in rows if row["outcome"] == "in progress"}

    async def with_free(self, names: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those of these tenants and sizes of which returned keys can be given out."""
        tenants, sizes = [tenant for tenant, _ in names], [size for _, size in names]
        async with self._database.connection() as connection:
            rows = await connection.fetch(_WITH_FREE, tenants, sizes, self._return_rest_s)
        return {(int(row["tenant"]), row["size"]) for row in rows}

    async def _claim(self, connection: Connection, instance_id: int, wish: Wish) -> Claimed | None:
        rows = await connection.fetch(
            _CLAIM, wish.tenant, wish.size, wish.claim_max, instance_id, self._return_rest_s
        )
        if not rows:
            return None
        number = int(await connection.fetchval(_COUNT_CLAIM))
        if number <= (known := self._marks.of(claims_counter)):
            raise WasSetBack(SetBack(claims_counter, number - 1, known))
        returned = [(int(row["index"]), row["reserved_ms"]) for row in rows]
        return Claimed(number, ClaimLot(rows[0]["id"], returned))

    async def _reserve(
        self, connection: Connection, instance_id: int, wish: Wish, claimed: int
    ) -> RangeLot:
        space = radix**wish.size
        counter: Any = await connection.fetchrow(_LOCK_COUNTER, wish.size)
        if counter is None:
            raise RetryLater("database_unavailable", f"There is no counter of size {wish.size}")
        check_may_reserve(counter)
        first = int(counter["next"])
        if first < (known := self._marks.of(wish.size)):
            raise WasSetBack(SetBack(wish.size, first, known))
        left = space - first
        if left < max(wish.needed - claimed, 1):
            raise FixRequest(
                "limit_reached",
                f"All but {left} of the {space} keys of {wish.size} characters have been given "
                "out; ask for longer ones",
            )
        count = min(max(wish.count, wish.wanted - claimed), left)
        row: Any = await connection.fetchrow(
            _RESERVE, wish.size, first, count, wish.tenant, instance_id
        )
        return RangeLot(row["id"], first, first + count, row["reserved_ms"])


def _moved_on() -> RetryLater:
    return RetryLater("database_unavailable", "An operator has moved the counters on just now")
