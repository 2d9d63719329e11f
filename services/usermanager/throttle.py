"""Throttles: how often something may be tried in the name of an account, or from an address.

The generic cell rate algorithm. Each subject has one time, `free_at`: the moment by which all it
has taken will have been paid back, one unit in each interval. It may lie ahead by as many
intervals as the burst has units. So a row is the whole state, one statement reads and changes
it, however many user managers there are, and a row whose time is over means nothing.

Times are passed in from our own clock. Several user managers whose clocks differ by a second
throttle each other's clients a second more or less. A time that lies further ahead than a full
burst and any such difference is that of a clock that was wrong; it counts as one of now, so that
nobody is locked out for as long as the clock was ahead.

The table survives a restart of PostgreSQL but not its crash, which forgives everybody. When
PostgreSQL is away so is what is throttled: it fails closed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from services.core.errors import RetryLater
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics
from services.runtime.postgres import Database

# What an internet provider gives to one customer, and so the least that costs another one.
ipv6_prefix_bits: Final = 64
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

    @property
    def interval(self) -> timedelta:
        return timedelta(seconds=self.every_s)

    @property
    def capacity(self) -> timedelta:
        return self.interval * self.burst


# Each wrong password of an account: a person who mistypes is not kept waiting, and who guesses
# has 2,900 tries a day, from however many addresses. Whoever does so keeps the owner from logging
# in for as long; sessions that there are go on.
login_of_account: Final = Limit("login of account", 10, 30)
# Each failed login from an address, behind which there may be an office or a school.
login_from_address: Final = Limit("login from address", 50, 5)
# Each sign-up from an address, taken names included: what tells which addresses have accounts.
signup_from_address: Final = Limit("signup from address", 20, 60)
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
        now = self._now()
        async with self._database.transaction() as connection:
            found = await connection.fetchrow(
                _TAKE, _subject(limit, value), now, limit.interval, limit.capacity, skew
            )
        # A row that appeared while the statement ran is not seen by its second half.
        if found is not None and found["taken"]:
            return
        wait_s = limit.every_s
        if found is not None:
            wait_s = (found["free_at"] + limit.interval - limit.capacity - now).total_seconds()
        self.refused += 1
        raise RetryLater(
            "rate_limited",
            f"Too many attempts: {limit.burst} at once, then one every {limit.every_s:g} s",
            retry_after_s=max(1, math.ceil(wait_s)),
        )

    @asynccontextmanager
    async def failures(self, *subjects: tuple[Limit, str]) -> AsyncIterator[None]:
        """Let the block try something that costs a unit of each subject if it fails.

        All are taken first, so that many attempts at once are no way around a limit; those of
        the subjects before one that has none left stay taken. They are given back when the
        block succeeds, or could not be tried (RetryLater). What a client breaks off has cost it.
        """
        for limit, value in subjects:
            await self.take(limit, value)
        try:
            yield
        except RetryLater:
            await self._give_back(subjects)
            raise
        await self._give_back(subjects)

    async def _give_back(self, subjects: Iterable[tuple[Limit, str]]) -> None:
        async with self._database.transaction() as connection:
            for limit, value in subjects:
                await connection.execute(_GIVE_BACK, _subject(limit, value), limit.interval)

    async def tidy(self) -> None:
        """Remove a batch of rows that mean nothing any more."""
        async with self._database.transaction() as connection:
            await connection.execute(_REMOVE_OVER, self._now(), tidied_at_once)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)


def network_of(address: str) -> str:
    """Who is throttled for what comes from an address: itself, or the network around it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, ipv6_prefix_bits), strict=False))


def _subject(limit: Limit, value: str) -> bytes:
    """Of one size, whatever a client has sent; and no list of who has failed to log in."""
    return hashlib.sha256(f"{limit.name}\0{value}".encode("utf-8", "surrogatepass")).digest()
