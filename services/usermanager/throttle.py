"""Throttles: how often something may be tried in the name of an account, or from an address.

The generic cell rate algorithm. Each subject has one time, `free_at`: the moment by which all it
has taken will have been paid back, one unit in each interval. It may lie ahead by as many
intervals as the burst has units. So a row is the whole state, one statement reads and changes
it, however many user managers there are, and a row whose time is over means nothing.

Times are passed in from our own clock. Several user managers whose clocks differ by a second
throttle each other's clients a second more or less. A time that lies further ahead than a full
burst and any such difference is that of a clock that was wrong; it counts as one of now, so that
nobody is locked out for as long as the clock was ahead.

Of an address of IPv6 two networks are throttled: the one that a customer has at least, and, with
more to give, the one that a customer has at most, or there would be 65,536 ways around. Of IPv4 it
is the address; only where many addresses are counted together, for one account, those that are
rented together count as one.

The table survives a restart of PostgreSQL but not its crash, which forgives everybody, and forgets
the known networks that are kept in it, too (known_networks.py). When PostgreSQL is away so is what
is throttled: it fails closed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from services.core.errors import RetryLater, UnknownOutcome
from services.runtime.client_address import network_of, wide_network_of
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics
from services.runtime.postgres import Connection, Database

# More than clocks that are kept at all differ by.
skew: Final = timedelta(minutes=1)
tidied_at_once: Final = 10_000

# Taken where a whole interval is left below the full burst, or where the time is nonsense. A row
# that does not fit is left as it is, and is then read to say how long to wait.
_TAKE: Final = """
    WITH taken AS (
        INSERT INTO throttles AS t (subject, free_at) VALUES ($1, $2::timestamptz + $3::interval)
        ON CONFLICT (subject) DO UPDATE
            SET free_at = least(greatest(t.free_at, $2) + $3, $2 + $4::interval)
            WHERE t.free_at <= $2 + $4 - $3 OR t.free_at > $2 + $4 + $5::interval
        RETURNING free_at
    )
    SELECT true AS taken, free_at FROM taken
    UNION ALL
    SELECT false, free_at FROM throttles WHERE subject = $1 AND NOT EXISTS (SELECT FROM taken)
"""
_GIVE_BACK: Final = """
    UPDATE throttles SET free_at = free_at - $2::interval WHERE subject = $1
"""
_REMOVE_OVER: Final = """
    DELETE FROM throttles WHERE subject IN (
        SELECT subject FROM throttles WHERE free_at < $1 ORDER BY free_at LIMIT $2
        FOR UPDATE SKIP LOCKED
    )
"""


@dataclass(slots=True, frozen=True)
class Limit:
    """So many at once, and then one in each interval. The name keeps its subjects apart."""

    name: str
    burst: int
    every_s: float
    # What somebody is told who meets it; the rate follows.
    told: str = "Too many attempts"
    # And what there is to do but wait.
    advice: str = ""

    @property
    def interval(self) -> timedelta:
        return timedelta(seconds=self.every_s)

    @property
    def capacity(self) -> timedelta:
        return self.interval * self.burst


# Whom a unit is taken of: a limit, and what it is of.
Subject = tuple[Limit, str]

# Each wrong password of an account from one site: a person who mistypes is not kept waiting, and
# who guesses has 2,900 tries a day, and keeps the owner from logging in only where it sits itself.
login_of_account_from_site: Final = Limit(
    "login of account from site",
    10,
    30,
    "Too many failed logins to this account from your network",
)
# The same of a network that the account has logged in from lately: others cannot use this up.
login_of_account_from_known: Final = Limit(
    "login of account from known network",
    10,
    30,
    "Too many failed logins to this account from your network",
)
# And from all other networks together: 14,400 guesses a day. Ten sites at once use it up, or six in
# twenty minutes; then the owner gets in where it is known, and sessions that there are go on.
login_of_account: Final = Limit(
    "login of account",
    100,
    6,
    "Many failed logins to this account have come from elsewhere",
    "Logging in from where this account has lately done so is still possible, and its open "
    "sessions go on. Whoever runs this service can let your network in: ydht user admit",
)
# Each failed login from an address, behind which there may be an office or a school.
login_from_address: Final = Limit("login from address", 50, 5)
login_from_site: Final = Limit("login from site", 200, 1.25)
# Each login, right or wrong, for that costs the same. Of an account from one site: a program that
# logs in for each thing it does is told to keep its tokens, and writes 4 MB a day at most.
try_of_account_from_site: Final = Limit("try of account from site", 100, 10)
# From an address, with however many accounts: an office in the morning, and then a tenth of a core.
try_from_address: Final = Limit("try from address", 600, 0.5)
# Each sign-up from an address, taken names included: what tells which addresses have accounts.
signup_from_address: Final = Limit("signup from address", 20, 60)
signup_from_site: Final = Limit("signup from site", 80, 15)
# Each wrong password given by who is logged in, perhaps with a stolen token.
password_of_account: Final = Limit("password of account", 10, 30)
# Each refresh leaves a row, for a month. A hundred sessions that refresh every hour stay below
# this; who does it in a loop leaves ten megabytes.
refresh_of_account: Final = Limit("refresh of account", 200, 30)


class Throttle:
    """Takes and gives back units of subjects, which are known by a limit's name and a value."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.refused = 0

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("throttled", "counter", "Requests refused by a throttle", lambda: self.refused)

    async def take(self, limit: Limit, value: str) -> None:
        """Take a unit; `rate_limited` when there is none, with the time until there is."""
        await self.take_all((limit, value))

    async def take_all(self, *subjects: Subject) -> None:
        """Take a unit of each, or of none."""
        now = self._now()
        async with self._transaction() as connection:
            for limit, subject in _in_order(subjects):
                wait_s = await _taken(connection, limit, subject, now)
                if wait_s is not None:
                    self.refused += 1
                    raise RetryLater(
                        "rate_limited", _told(limit), retry_after_s=max(1, math.ceil(wait_s))
                    )

    @asynccontextmanager
    async def failures(
        self, *subjects: Subject, tries: Sequence[Subject] = ()
    ) -> AsyncIterator[None]:
        """Let the block try something that costs a unit of each subject if it fails, and one of
        each of `tries` whatever comes of it.

        All are taken first, so that many attempts at once are no way around a limit. Those of
        the subjects are given back when the block succeeds, and all when it could not be tried
        (RetryLater). What a client breaks off has cost it.
        """
        await self.take_all(*subjects, *tries)
        try:
            yield
        except RetryLater:
            await self._give_back((*subjects, *tries))
            raise
        await self._give_back(subjects)

    async def _give_back(self, subjects: Iterable[Subject]) -> None:
        async with self._transaction() as connection:
            for limit, subject in _in_order(subjects):
                await connection.execute(_GIVE_BACK, subject, limit.interval)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        """Whether a unit was counted may stay unknown. What it was taken for has not begun, or has
        changed nothing yet, so that it may be sent again."""
        try:
            async with self._database.transaction() as connection:
                yield connection
        except UnknownOutcome as error:
            raise RetryLater("database_unavailable", error.detail) from error

    async def tidy(self) -> None:
        """Remove a batch of rows that mean nothing any more."""
        async with self._database.transaction() as connection:
            await connection.execute(_REMOVE_OVER, self._now(), tidied_at_once)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)


def from_address(address: str, near: Limit, far: Limit) -> tuple[Subject, ...]:
    """An address as the subject of a limit of its own, and one of IPv6 of another for all that its
    owner may have."""
    network, site = network_of(address), wide_network_of(address)
    return ((near, network),) if network == site else ((near, network), (far, site))


def _told(limit: Limit) -> str:
    rate = f"{limit.told}: {limit.burst} at once, then one every {limit.every_s:g} s"
    return f"{rate}. {limit.advice}" if limit.advice else rate


async def _taken(
    connection: Connection, limit: Limit, subject: bytes, now: datetime
) -> float | None:
    """None if a unit has been taken, else in how many seconds there will be one."""
    found = await connection.fetchrow(_TAKE, subject, now, limit.interval, limit.capacity, skew)
    # A row that appeared while the statement ran is not seen by its second half.
    if found is None:
        return limit.every_s
    if found["taken"]:
        return None
    wait: timedelta = found["free_at"] + limit.interval - limit.capacity - now
    return wait.total_seconds()


def _in_order(subjects: Iterable[Subject]) -> list[tuple[Limit, bytes]]:
    """One order for everybody, so that no two wait for each other's rows."""
    known = [(limit, subject_of(limit.name, value)) for limit, value in subjects]
    return sorted(known, key=lambda one: one[1])


def subject_of(name: str, value: str) -> bytes:
    """Of one size, whatever a client has sent; and no list of who has failed to log in."""
    return hashlib.sha256(f"{name}\0{value}".encode("utf-8", "surrogatepass")).digest()
