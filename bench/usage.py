"""Usage roll-ups over HTTP: how many a user manager counts in a second.

The user manager is `python -m services.usermanager` in a process of its own, on an embedded
PostgreSQL that syncs its log. This process reports as gateways do: signed, in order, each gateway
waiting for its answer, 500 rows a report. In one run every report is about rows that there are
already, as within a minute; in the other each report is of a minute of its own.

    python -m bench.usage [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import uvloop

from bench.node_process import secret
from bench.report import Row, quiet, show
from bench.usermanager_process import UserManagerProcess, database_cpu_s, usermanager
from services.core.usage_report import Rollup
from services.runtime.clock import SystemClock
from services.runtime.signing import SignedAuth, Signer

gateways = 4
rows_per_report = 500
json_type = {"Content-Type": "application/json"}


@dataclass(slots=True, frozen=True)
class Run:
    reports_per_second: float
    cpu_us: float
    database_cpu_us: float


def rollups(minute: datetime) -> bytes:
    """Rows of fifty tenants with two API keys each, as JSON."""
    return msgspec.json.encode(
        [
            Rollup(
                minute=minute,
                user_id=number // 10,
                key_id=number // 5,
                operation=("get", "put", "delete", "list", "batch")[number % 5],
                status=200,
                requests=137,
                bytes_in=12_345,
                bytes_out=1_234_567,
                latency_us=98_765,
            )
            for number in range(rows_per_report)
        ]
    )


def same_minute() -> Iterator[bytes]:
    return itertools.repeat(rollups(datetime.now(UTC).replace(second=0, microsecond=0)))


def new_minutes() -> Iterator[bytes]:
    """Backwards from midnight, through the days that there are; then through those again."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for number in itertools.count():
        yield rollups(midnight + timedelta(days=3, minutes=-1 - number % (4 * 1440)))


class Load:
    """Gateways that report without a pause."""

    def __init__(self, client: httpx.AsyncClient, sender: str, bodies: Iterator[bytes]) -> None:
        self.answers = 0
        self._client = client
        self._sender = sender
        self._bodies = bodies

    async def report(self, gateway: int) -> None:
        head = f'{{"sender":"{self._sender}-{gateway}","sequence":%d,"rollups":'.encode()
        for sequence in itertools.count():
            body = head % sequence + next(self._bodies) + b"}"
            answer = await self._client.post("/usage", content=body, headers=json_type)
            if answer.json() != {"counted": True, "dropped": 0}:
                raise RuntimeError(f"not counted: {answer.text[:500]}")
            self.answers += 1


async def measure(
    process: UserManagerProcess, sender: str, bodies: Iterator[bytes], seconds: float
) -> Run:
    loop = asyncio.get_running_loop()
    auth = SignedAuth(Signer(secret, SystemClock()))
    url = f"http://127.0.0.1:{process.port}"
    async with (
        httpx.AsyncClient(base_url=url, auth=auth, timeout=60, trust_env=False) as client,
        asyncio.TaskGroup() as tasks,
    ):
        load = Load(client, sender, bodies)
        reporting = [tasks.create_task(load.report(number)) for number in range(gateways)]
        await asyncio.sleep(seconds / 4)
        before = await asyncio.to_thread(process.metrics)
        database_before, answers, began_s = database_cpu_s(), load.answers, loop.time()
        await asyncio.sleep(seconds)
        done, took_s = load.answers - answers, loop.time() - began_s
        database_s = database_cpu_s() - database_before
        after = await asyncio.to_thread(process.metrics)
        for task in reporting:
            task.cancel()
    cpu_s = after["process_cpu_seconds"] - before["process_cpu_seconds"]
    counted = done * rows_per_report
    return Run(done / took_s, cpu_s / counted * 1e6, database_s / counted * 1e6)


async def runs(rounds: int, seconds: float) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    async with usermanager() as process:
        new = new_minutes()
        for number in range(rounds):
            for name, bodies in (("the same minute", same_minute()), ("new minutes", new)):
                sender = f"{name.replace(' ', '-')}-{number}"
                found[name].append(await measure(process, sender, bodies, seconds))
    return found


def rows(rounds: int = 3, seconds: float = 3.0) -> list[Row]:
    shown = []
    for name, measured in uvloop.run(runs(rounds, seconds)).items():
        reports = statistics.median(run.reports_per_second for run in measured)
        cpu_us = statistics.median(run.cpu_us for run in measured)
        database_us = statistics.median(run.database_cpu_us for run in measured)
        note = (
            f"{reports:.0f} reports of {rows_per_report} by {gateways} gateways; "
            f"{cpu_us:.1f} us of CPU each and {database_us:.1f} us in PostgreSQL"
        )
        title = f"roll-ups of usage, {name}"
        shown.append(Row(title, reports * rows_per_report, "per second", note))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    quiet()
    show("usage", rows(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
