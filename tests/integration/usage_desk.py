"""Usage on a real database, without HTTP: what tests report, and what the tables then hold."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from services.core.usage_report import Rollup, UsageReport
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.postgres import Database
from services.usermanager.partitions import Partitions
from services.usermanager.usage import Usage
from services.usermanager.usage_query import UsageReader

# What rows are told apart by; and what is added up in them.
Key = tuple[datetime, int, int, str, int]
Sums = dict[Key, tuple[int, int, int, int]]


@dataclass(slots=True)
class Desk:
    """What one user manager has of usage."""

    database: Database
    partitions: Partitions
    usage: Usage
    reader: UsageReader


@asynccontextmanager
async def usage_desk(address: DatabaseAddress, connections_max: int = 10) -> AsyncIterator[Desk]:
    async with Database(address, connections_max=connections_max) as database:
        partitions = Partitions(database)
        usage = Usage(database, partitions)
        yield Desk(database, partitions, usage, UsageReader(database, SystemClock()))


def this_minute() -> datetime:
    return datetime.now(UTC).replace(second=0, microsecond=0)


def rollup(minute: datetime | None = None, **members: Any) -> Rollup:
    usual = {
        "user_id": 1,
        "key_id": 1,
        "operation": "get",
        "status": 200,
        "requests": 1,
        "bytes_in": 10,
        "bytes_out": 100,
        "latency_us": 1000,
    }
    return Rollup(minute=minute or this_minute(), **{**usual, **members})


def report(sequence: int, *rollups: Rollup, sender: str = "gateway-1") -> UsageReport:
    return UsageReport(sender, sequence, list(rollups))


def random_rollups(
    draw: random.Random, count: int, *, minutes: int = 30, users: int = 3
) -> list[Rollup]:
    """Rows of the last minutes, many of which are about the same."""
    now = this_minute()
    return [
        rollup(
            now - timedelta(minutes=draw.randrange(minutes)),
            user_id=draw.randint(1, users),
            key_id=draw.randint(1, 3),
            operation=draw.choice(("get", "put", "batch")),
            status=draw.choice((200, 404, 503)),
            requests=draw.randrange(1000),
            bytes_in=draw.randrange(10**6),
            bytes_out=draw.randrange(10**6),
            latency_us=draw.randrange(10**7),
        )
        for _ in range(count)
    ]


def added_up(rollups: Iterable[Rollup]) -> Sums:
    """The dumb version: one number after the other."""
    counters = tuple[Counter[Key], ...](Counter[Key]() for _ in range(4))
    for row in rollups:
        key = (row.minute, row.user_id, row.key_id, row.operation, row.status)
        numbers = (row.requests, row.bytes_in, row.bytes_out, row.latency_us)
        for counter, number in zip(counters, numbers, strict=True):
            counter[key] += number
    first, second, third, fourth = counters
    return {key: (first[key], second[key], third[key], fourth[key]) for key in first}


async def stored(address: DatabaseAddress) -> Sums:
    """Everything that was counted."""
    rows = await fetch(
        address,
        "SELECT minute, user_id, key_id, operation, status,"
        " requests, bytes_in, bytes_out, latency_us FROM usage_rollups",
    )
    return {tuple(row)[:5]: tuple(row)[5:] for row in rows}


async def fetch(address: DatabaseAddress, sql: str, *args: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(**address.asyncpg())
    try:
        rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
        return rows
    finally:
        await connection.close()
