"""What comparing replicas costs where there is nothing to find, and how fast they become equal.

Three nodes and one replicator, as `ydht up` starts them. Replicas are filled, made to differ and
given tombstones directly, by the messages that a replicator sends; then `POST /repair` has it all
compared, and this process looks on. Once without a limit, to see what the parts can do, and once
at the default rates with clients beside it: 1,000 eventual PUTs a second.

    python -m bench.repair [--keys N] [--missed N] [--tombstones N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.cpu import cpu_seconds
from bench.node import ask, keys, prefix, value
from bench.node_process import identity, secret
from bench.platform_process import PlatformProcess, metrics, platform
from bench.replicator import linked as linked_to_replicator
from bench.report import Row, quiet, show
from services.core.messages import WRITE_MANY, encode_write_many
from services.core.operations import CHANGED, PUT, encode_put
from services.core.record import tombstone_body, value_body
from services.runtime.clock import SystemClock
from services.runtime.link import Link, Station
from services.runtime.peer import SENT, Peer
from services.runtime.settings import link_port_offset
from services.runtime.signing import Signer, signature_header

key_count = 1_000_000
missed_count = 50_000
tombstone_count = 50_000
message_items = 1_000
# Older than anything on its way, and yet not from before the first key.
age_ms = 60_000
puts_per_s = 1_000
turn_s = 0.01
before_s = 5.0
idle_s = 10.0
repair_s_max = 600.0
poll_s = 0.05
no_limit = {"REPAIR_RECORDS_PER_S": "10000000", "REPAIR_BYTES_PER_S": "100GiB"}

Items = Iterator[tuple[bytes, bytes]]
Document = Mapping[str, Any]


@dataclass(slots=True, frozen=True)
class Cost:
    """What all processes of the platform have used, or used in between."""

    cpu_s: float
    bytes: float

    @classmethod
    def of(cls, process: PlatformProcess) -> Cost:
        nodes = {name: pid for name, pid in process.pids.items() if name.startswith("node-")}
        roots = {**nodes, "replicator": process.pids["replicator"]}
        shown = metrics(process.replicator_url)
        return cls(
            sum(cpu_seconds(roots).values()),
            shown["link_bytes_sent"] + shown["link_bytes_received"],
        )

    def since(self, before: Cost) -> Cost:
        return Cost(self.cpu_s - before.cpu_s, self.bytes - before.bytes)


# -- what is stored


def records(chosen: Sequence[bytes], body: bytes) -> Items:
    """These keys with that contents, each at a version of its own."""
    first = (time.time_ns() // 10**6 - age_ms) << 16
    for number, key in enumerate(chosen):
        yield key, (first + number).to_bytes(8, "big") + b"\0\0\0\1" + body


@asynccontextmanager
async def node_links(process: PlatformProcess) -> AsyncIterator[list[Link]]:
    links = []
    for url in process.node_urls:
        up = asyncio.Event()
        station = Station(identity, on_up=partial(_arrived, up))
        links.append(Link(station, "127.0.0.1", (urlsplit(url).port or 80) + link_port_offset))
        links[-1].start()
        await up.wait()
    yield links
    for link in links:
        await link.close(drain_s=1.0)


def _arrived(up: asyncio.Event, peer: Peer) -> None:
    up.set()


async def store(process: PlatformProcess, items: Items, nodes: Sequence[int]) -> None:
    """Have these nodes hold the records."""
    async with node_links(process) as links:
        while some := list(itertools.islice(items, message_items)):
            body = encode_write_many(1, some)
            async with asyncio.TaskGroup() as storing:
                for node in nodes:
                    storing.create_task(ask(links[node], WRITE_MANY, body))


# -- repair


def order(process: PlatformProcess) -> None:
    body = b'{"slots": null}'
    content = {"Content-Type": "application/json"}
    signature = Signer(secret, SystemClock()).sign("POST", "/repair", content.items(), body)
    headers = {**content, signature_header: signature}
    request = urllib.request.Request(f"{process.replicator_url}/repair", body, headers)  # noqa: S310  It says http.
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310  As above.
        pass


def told(process: PlatformProcess) -> Document:
    with urllib.request.urlopen(f"{process.replicator_url}/repair", timeout=10) as answer:  # noqa: S310  As above.
        found: Document = json.loads(answer.read())
    return found


async def repaired(process: PlatformProcess, *, collected: bool = False) -> float:
    """Order it, and wait; the seconds that it took."""
    began_s = time.perf_counter()
    await asyncio.to_thread(order, process)
    while True:
        found = await asyncio.to_thread(told, process)
        took_s = time.perf_counter() - began_s
        if found["state"] == "done" and not (collected and found["collecting"]):
            break
        if took_s > repair_s_max:
            raise RuntimeError(f"repair does not come to an end: {found}")
        await asyncio.sleep(poll_s)
    if found["left"]:
        raise RuntimeError(f"not all was compared: {found}")
    return took_s


def refuse_fewer(process: PlatformProcess, records: int) -> None:
    """Regular passes may have sent some of them before the order did."""
    sent = metrics(process.replicator_url)["repair_records_sent"]
    if sent < records:
        raise RuntimeError(f"{records} records were missed, and {sent} were sent")


# -- clients


class Clients:
    """So many PUTs a second, whatever becomes of them; how long each took."""

    def __init__(self, link: Link) -> None:
        self.took_s: list[float] = []
        self._link = link
        self._bodies = itertools.cycle([encode_put(key, value) for key in keys(10_000)])
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            for _ in range(round(puts_per_s * turn_s)):
                answered = partial(self._answered, loop.time())
                if self._link.request(PUT, next(self._bodies), answered, 10.0) != SENT:
                    raise RuntimeError("the link is down")
            due_s += turn_s
            await asyncio.sleep(max(0.0, due_s - loop.time()))

    def _answered(self, sent_s: float, kind: int, body: bytes) -> None:
        if kind != CHANGED:
            raise RuntimeError(f"a PUT is answered {kind}")
        self.took_s.append(asyncio.get_running_loop().time() - sent_s)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def p99_ms(took_s: Sequence[float]) -> float:
    return statistics.quantiles(took_s, n=100)[98] * 1000


# -- rows


@contextmanager
def limited(settings: Mapping[str, str]) -> Iterator[PlatformProcess]:
    """A platform with these settings; it inherits the environment."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        with platform("--nodes", "3", "--replicators", "1", "--no-demo") as process:
            yield process
    finally:
        os.environ.clear()
        os.environ.update(before)


async def without_limit(key_count: int, missed: int, buried: int) -> list[Row]:
    everyone, chosen = (0, 1, 2), keys(key_count)
    lost = [prefix + b"missed-%d" % number for number in range(missed)]
    dead = [prefix + b"dead-%d" % number for number in range(buried)]
    with limited(no_limit) as process:
        await store(process, records(chosen, value_body(value)), everyone)
        idle = Cost.of(process)
        await asyncio.sleep(idle_s)
        idle = Cost.of(process).since(idle)
        before = Cost.of(process)
        took_s = await repaired(process)
        quiet_pass = Cost.of(process).since(before)
        cpu_s = quiet_pass.cpu_s - idle.cpu_s * took_s / idle_s
        sent = quiet_pass.bytes - idle.bytes * took_s / idle_s
        await store(process, records(lost, value_body(value)), (0, 1))
        before = Cost.of(process)
        repair_s = await repaired(process)
        repair = Cost.of(process).since(before)
        refuse_fewer(process, missed)
        await store(process, records(dead, tombstone_body), everyone)
        collect_s = await repaired(process, collected=True)
        collected = metrics(process.replicator_url)["collection_tombstones"]
    each_us = repair.cpu_s / missed * 1e6
    return [
        Row(
            f"quiet pass over {key_count:,} keys",
            cpu_s,
            "s of CPU",
            f"of three nodes and a replicator, beyond idling; done in {took_s:.1f} s",
        ),
        Row("the same, on links", sent / 1e6, "MB", "both ways, all three nodes"),
        Row(
            "records repaired, no limit",
            missed / repair_s,
            "per second",
            f"{missed:,} that one node misses; {each_us:.0f} us of CPU each",
        ),
        Row(
            "tombstones collected",
            collected / collect_s,
            "per second",
            f"{collected:,} of {buried:,} on three nodes in {collect_s:.1f} s",
        ),
    ]


async def beside_clients(missed: int) -> list[Row]:
    lost = [prefix + b"missed-%d" % number for number in range(missed)]
    with limited({}) as process:
        await store(process, records(lost, value_body(value)), (0, 1))
        async with linked_to_replicator(process) as link:
            clients = Clients(link)
            await asyncio.sleep(before_s)
            before_ms = p99_ms(clients.took_s)
            clients.took_s.clear()
            took_s = await repaired(process)
            during_ms = p99_ms(clients.took_s)
            await clients.stop()
        refuse_fewer(process, missed)
    text = f"goal 60; {missed:,} records that one node misses"
    return [
        Row("equal again, at the default rates", took_s, "s", text),
        Row(
            "p99 of PUTs during that / before",
            during_ms / before_ms,
            "x",
            f"goal at most 2; {during_ms:.2f} ms and {before_ms:.2f} ms at {puts_per_s:,} a second",
        ),
    ]


def rows(
    key_count: int = key_count, missed: int = missed_count, buried: int = tombstone_count
) -> list[Row]:
    return [
        *uvloop.run(without_limit(key_count, missed, buried)),
        *uvloop.run(beside_clients(missed)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=key_count)
    parser.add_argument("--missed", type=int, default=missed_count)
    parser.add_argument("--tombstones", type=int, default=tombstone_count)
    options = parser.parse_args()
    quiet()
    show("repair", rows(options.keys, options.missed, options.tombstones))


if __name__ == "__main__":
    main()
