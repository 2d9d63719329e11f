"""Whether the database was set back, in PostgreSQL: the statements, and rows as values.

A keygen that finds a counter before its mark (marks.py) tells so here, and from then on nobody
reserves anything, nor claims what was returned, until an operator has moved the counters on
(`ydht ids skip`): only he can know of whom nothing is heard any more.

Who knows the most may not be the first to ask. So whenever the server is not the one that it was,
by its start, the database and its tables, the roll is called: nothing is reserved until every
keygen with a row has looked, or `roll_call_s` later. Where a server was only restarted that takes
two seconds, for which pools have keys: keygens look that often, and sooner while they miss it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.core.errors import FixRequest, RetryLater
from services.core.permute import radix
from services.keygen.marks import Marks, SetBack, behind, claims_counter
from services.runtime.postgres import Connection, Database

# Of a keygen that runs, two turns and a connection; after that it is not there.
roll_call_s: Final = 5.0
# In keys of each size, for ranges of whom nobody is left to tell. Of the shortest there is room for
# 5,000 of them.
skip_margin: Final = 10_000_000
halted_retry_s: Final = 30

# The life of a server, and of the tables in it: a backup that is restored into a server that runs
# has other ones.
_SERVER: Final = """(
    extract(epoch FROM pg_postmaster_start_time())::text || '/' || 'key_counters'::regclass::oid
    || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
)"""
# For statements that reserve or claim.
is_same_server: Final = f"(SELECT server = {_SERVER} FROM key_watch)"  # noqa: S608  A constant.
is_halted: Final = "EXISTS (SELECT FROM key_set_backs)"
# Of returned keys: those of an earlier one are void.
era: Final = "(SELECT era FROM key_watch)"

# One statement, and so of one server at one time.
_LOOK: Final = f"""
    SELECT {is_same_server} AS is_same_server, counters, set_backs FROM (
        SELECT array_agg((size, next)) AS counters FROM (
            SELECT size, next FROM key_counters
            UNION ALL SELECT {claims_counter}, claims FROM key_watch
        ) AS every
    ) AS counted, (
        SELECT array_agg((counter, found, known) ORDER BY counter) AS set_backs FROM key_set_backs
    ) AS noticed
"""  # noqa: S608  Constants.
_REPORT: Final = """
    INSERT INTO key_set_backs (counter, known, found, instance_id)
    SELECT counter, known, found, $1
    FROM unnest($2::smallint[], $3::numeric[], $4::numeric[]) AS told (counter, known, found)
    ORDER BY counter
    ON CONFLICT (counter) DO UPDATE
    SET known = excluded.known, instance_id = excluded.instance_id, noticed_at = now()
    WHERE key_set_backs.known < excluded.known
"""
_SET_BACKS: Final = "SELECT counter, found, known FROM key_set_backs ORDER BY counter"
_ROLL: Final = f"""
    SELECT server = {_SERVER} AS is_same, server = '' AS is_first, called = {_SERVER} AS is_called,
        called_at <= now() - make_interval(secs => $1) AS is_over
    FROM key_watch
"""  # noqa: S608  Constants of this module.
_CALL: Final = f"""
    UPDATE key_watch SET called = {_SERVER}, called_at = now()
"""  # noqa: S608  Likewise.
_HEAR: Final = f"""
    UPDATE keygen_instances SET heard = {_SERVER} WHERE id = $1
"""  # noqa: S608  Likewise.
_MISSING: Final = f"""
    SELECT count(*) FROM keygen_instances WHERE id <> $1 AND heard <> {_SERVER}
"""  # noqa: S608  Likewise.
_GO_ON: Final = f"UPDATE key_watch SET server = {_SERVER}"  # noqa: S608  Likewise.
_BEGIN_ERA: Final = """
    UPDATE key_watch SET era = era + 1, claims = greatest(claims, $1)
    RETURNING (
        SELECT count(*) FROM returned_keys
        WHERE era = (SELECT era FROM key_watch) AND claim_id IS NULL
    )
"""
_HOLD_WATCH: Final = "SELECT FROM key_watch FOR UPDATE"
_HOLD_COUNTERS: Final = "SELECT size, next FROM key_counters ORDER BY size FOR UPDATE"
_MOVE: Final = "UPDATE key_counters SET next = $2 WHERE size = $1 AND next < $2"
_MENDED: Final = "DELETE FROM key_set_backs WHERE counter = ANY($1::smallint[])"


class Halted(RetryLater):
    """Nothing is reserved: the database was set back."""

    def __init__(self) -> None:
        super().__init__(
            "database_unavailable",
            "No keys are given out: the database was set back to an earlier state, and they would "
            "come twice. An operator has to see to it, with `ydht ids skip`",
            retry_after_s=halted_retry_s,
        )


class RollCall(RetryLater):
    """Nothing is reserved for some seconds."""

    def __init__(self) -> None:
        super().__init__(
            "database_unavailable",
            "PostgreSQL was started anew, and whether it has forgotten anything is being looked at",
        )


@dataclass(slots=True, frozen=True)
class Move:
    """Of the counter of one size."""

    size: int
    before: int
    after: int


@dataclass(slots=True, frozen=True)
class Skipped:
    """What was done about a database that was set back."""

    moves: Sequence[Move]
    # Returned keys that are given to nobody any more.
    void: int
    # What is still to be seen to.
    set_backs: Sequence[SetBack]


@dataclass(slots=True, frozen=True)
class Sight:
    """What was seen of the database at one time, of one server."""

    # How many indexes of each size are in ranges, and how many claims there were.
    counters: Mapping[int, int]
    # What anybody has noticed, and nobody has mended.
    set_backs: Sequence[SetBack]
    # Whether all keygens have looked at this server.
    is_roll_over: bool

    @property
    def refusal(self) -> RetryLater | None:
        """Why nothing may be reserved: Halted, or RollCall."""
        if self.set_backs:
            return Halted()
        return None if self.is_roll_over else RollCall()


class WatchStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def look(self, instance_id: int, marks: Marks) -> Sight:
        """Compare the counters with what this instance knows. If any stands before its mark
        everybody is halted; and under a server that is not the one before it is noted that this
        instance has looked."""
        # What is confirmed after the counters were read is no reason to think them set back.
        known = marks.all()
        async with self._database.connection() as connection:
            sight = _sight(await connection.fetchrow(_LOOK))
        if sight.is_roll_over and not behind(sight.counters, known):
            return sight
        async with self._database.transaction() as connection:
            # From here on nobody moves counters on, and nobody is told to go on, but we.
            row: Any = await connection.fetchrow(_ROLL + " FOR UPDATE", roll_call_s)
            counters = _sight(await connection.fetchrow(_LOOK)).counters
            if noticed := behind(counters, known):
                await connection.execute(
                    _REPORT,
                    instance_id,
                    [one.counter for one in noticed],
                    [one.known for one in noticed],
                    [one.found for one in noticed],
                )
            if not row["is_same"]:
                await _answer_roll(connection, row, instance_id)
            return _sight(await connection.fetchrow(_LOOK))

    async def skip(self, size: int | None, by: int | None, to: int | None) -> Skipped:
        """Move counters on: of `size`, or of all. By default to where keygens know them to have
        been and `skip_margin` further, which is nowhere if none of them was set back. Never back:
        FixRequest."""
        async with self._database.transaction() as connection:
            # In the order in which reservations take them.
            await connection.execute(_HOLD_WATCH)
            before = {
                row["size"]: int(row["next"]) for row in await connection.fetch(_HOLD_COUNTERS)
            }
            set_backs = await _set_backs(connection)
            known = {one.counter: one.known for one in set_backs}
            if not set_backs and by is None and to is None:
                return Skipped((), 0, ())
            moves = [
                Move(one, next_, _target(one, next_, known.get(one, 0), by, to))
                for one, next_ in before.items()
                if size is None or one == size
            ]
            for move in moves:
                await connection.execute(_MOVE, move.size, move.after)
            void = await connection.fetchval(_BEGIN_ERA, known.get(claims_counter, 0))
            mended = [move.size for move in moves if move.after >= known.get(move.size, 0)]
            await connection.execute(_MENDED, [claims_counter, *mended])
            left = await _set_backs(connection)
        return Skipped([move for move in moves if move.after > move.before], void, left)


def check_may_reserve(row: Mapping[str, Any]) -> None:
    """Of a row with `is_same_server` and `is_halted`: Halted, or RollCall."""
    if row["is_halted"]:
        raise Halted
    if not row["is_same_server"]:
        raise RollCall


async def _answer_roll(connection: Connection, row: Mapping[str, Any], instance_id: int) -> None:
    if not row["is_called"]:
        await connection.execute(_CALL)
    await connection.execute(_HEAR, instance_id)
    is_over = row["is_called"] and row["is_over"]
    if row["is_first"] or is_over or not await connection.fetchval(_MISSING, instance_id):
        await connection.execute(_GO_ON)


def _sight(row: Any) -> Sight:
    return Sight(
        {counter: int(found) for counter, found in row["counters"]},
        [SetBack(one, int(found), int(known)) for one, found, known in row["set_backs"] or ()],
        row["is_same_server"],
    )


async def _set_backs(connection: Connection) -> list[SetBack]:
    return [
        SetBack(row["counter"], int(row["found"]), int(row["known"]))
        for row in await connection.fetch(_SET_BACKS)
    ]


def _target(size: int, before: int, known: int, by: int | None, to: int | None) -> int:
    space: int = radix**size
    if to is not None:
        if to < before:
            raise FixRequest(
                "invalid_query",
                f"the counter of size {size} stands at {before}, and is never moved back to {to}",
            )
        return min(to, space)
    margin = skip_margin if by is None else by
    return min(max(before, known) + margin, space)
