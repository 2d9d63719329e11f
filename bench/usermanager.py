"""A user manager over HTTP: how many API keys a second it tells gateways about.

The user manager is `python -m services.usermanager` in a process of its own, on an embedded
PostgreSQL. This process asks as gateways do: signed requests, one after another on each of 64
connections, for 1,000 keys of ten accounts. A gateway remembers what it was told, so this is the
rate of keys that it does not know, or has not asked about for a minute.

Whoever verifies signatures remembers 100,000 of them for a minute and refuses more, so the runs
together stay below that.

    python -m bench.usermanager [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import uvloop

from bench.node_process import secret
from bench.report import Row, quiet, show
from bench.usermanager_process import (
    UserManagerProcess,
    database_cpu_s,
    key_pepper,
    usermanager,
)
from services.core.api_key import lookup_hash, lookup_subkey
from services.runtime.clock import SystemClock
from services.runtime.postgres import Database
from services.runtime.signing import Signer, signature_header
from services.usermanager.api_keys import ApiKeys
from services.usermanager.audit import Audit
from services.usermanager.key_events import KeyEvents
from services.usermanager.messages_api_keys import CreateKey
from services.usermanager.throttle import Throttle

accounts = 10
keys_per_account = 100
in_flight = 64
signer = Signer(secret, SystemClock())

_head_end = b"\r\n\r\n"
_length = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ADD_ACCOUNT = (
    "INSERT INTO users (email, email_folded, username, username_folded, password_hash, plan)"
    " VALUES ($1, $1, $1, $1, 'none', 'pro') RETURNING id"
)


@dataclass(slots=True, frozen=True)
class Run:
    per_second: float
    cpu_us: float
    database_cpu_us: float
    keys_per_statement: float


class Asking(asyncio.Protocol):
    """One connection that always has one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.WriteTransport | None = None
        self._arrived = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        head, end, body = self._arrived.partition(_head_end)
        length = _length.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        self._arrived = b""
        self._load.answered(head + body, good=head.startswith(b"HTTP/1.1 200 "))
        if self._transport is not None and not self._load.over:
            self._transport.write(self._load.next_request())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._load.over:
            self._load.fail(f"a connection was lost: {exc}")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Load:
    """Asks about one key after another, on all connections."""

    def __init__(self, port: int, bodies: Iterator[bytes]) -> None:
        self.answers = 0
        self.over = False
        self.fault = ""
        self._port = port
        self._bodies = bodies
        self._connections: list[Asking] = []

    async def start(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, asking = await loop.create_connection(lambda: Asking(self), "127.0.0.1", self._port)
            self._connections.append(asking)

    def stop(self) -> None:
        """RuntimeError if any answer was not what it should be."""
        self.over = True
        for connection in self._connections:
            connection.close()
        if self.fault:
            raise RuntimeError(self.fault)

    def next_request(self) -> bytes:
        body = next(self._bodies)
        signature = signer.sign("POST", "/validate-key", (), body)
        head = (
            f"POST /validate-key HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"{signature_header}: {signature}\r\n\r\n"
        )
        return head.encode() + body

    def answered(self, answer: bytes, *, good: bool) -> None:
        self.answers += 1
        if not good:
            self.fail(f"refused: {answer[:500]!r}")

    def fail(self, fault: str) -> None:
        self.fault = self.fault or fault
        self.over = True


async def fill(process: UserManagerProcess) -> list[bytes]:
    """Bodies that ask about each of the keys that it makes."""
    bodies = []
    pepper = lookup_subkey(key_pepper)
    stopped = asyncio.Event()

    async def until_stopped() -> None:
        await stopped.wait()

    async with Database(process.address) as database:
        keys = ApiKeys(
            database,
            KeyEvents(database, until_stopped),
            Audit(database),
            Throttle(database, SystemClock()),
            pepper,
        )
        for number in range(accounts):
            async with database.transaction() as connection:
                user_id = int(await connection.fetchval(_ADD_ACCOUNT, f"person-{number}"))
            for _ in range(keys_per_account):
                made = await keys.create(user_id, CreateKey("bench"), actor="bench", client=None)
                bodies.append(b'{"key_hash":"%s"}' % lookup_hash(pepper, made.key).hex().encode())
    return bodies


async def measure(process: UserManagerProcess, bodies: Iterator[bytes], seconds: float) -> Run:
    loop = asyncio.get_running_loop()
    load = Load(process.port, bodies)
    await load.start(in_flight)
    await asyncio.sleep(seconds / 4)
    before = await asyncio.to_thread(process.metrics)
    database_before, answers, began_s = database_cpu_s(), load.answers, loop.time()
    await asyncio.sleep(seconds)
    done, took_s, database_after = load.answers - answers, loop.time() - began_s, database_cpu_s()
    after = await asyncio.to_thread(process.metrics)
    load.stop()

    def grown(name: str) -> float:
        return float(after[name] - before[name])

    return Run(
        per_second=done / took_s,
        cpu_us=grown("process_cpu_seconds") / done * 1e6,
        database_cpu_us=(database_after - database_before) / done * 1e6,
        keys_per_statement=done / grown("key_lookup_statements"),
    )


async def runs(rounds: int, seconds: float) -> list[Run]:
    async with usermanager() as process:
        bodies = itertools.cycle(await fill(process))
        return [await measure(process, bodies, seconds) for _ in range(rounds)]


def rows(rounds: int = 3, seconds: float = 3.0) -> list[Row]:
    measured = uvloop.run(runs(rounds, seconds))
    per_second = statistics.median(run.per_second for run in measured)
    cpu_us = statistics.median(run.cpu_us for run in measured)
    database_cpu_us = statistics.median(run.database_cpu_us for run in measured)
    together = statistics.median(run.keys_per_statement for run in measured)
    note = (
        f"{cpu_us:.0f} us of CPU each and {database_cpu_us:.0f} us in PostgreSQL; "
        f"{together:.0f} keys per statement"
    )
    return [Row(f"/validate-key, {in_flight} in flight", per_second, "per second", note)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    quiet()
    show("user manager", rows(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
