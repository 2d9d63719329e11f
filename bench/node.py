"""A node straight over one link: requests per second, what syncs cost, restarts, and stalls.

The node is `python -m services.dhtnode` in a process of its own, on a directory under TMPDIR;
this process asks it, 10,000 keys of 28 bytes with values of 100. A second node, whose syncs
return at once, shows what they cost. Runs alternate between all of this, so that a noisy machine
disturbs all alike, and medians are printed; ratios are those of runs next to each other.
What a key takes in memory is measured by `bench.table`.

    python -m bench.node [--rounds N] [--seconds S] [--keys N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.node_process import NodeProcess, as_users_do, identity, with_heartbeat, without_syncs
from bench.report import Row, quiet, show
from services.core.key import namespace_prefix
from services.core.messages import GET, WRITE, WRITE_MANY, encode_write, encode_write_many
from services.core.record import head_bytes, value_body
from services.core.wire import OK
from services.runtime.link import Link, Station

key_count = 10_000
value = bytes(range(100))
record_bytes = head_bytes + len(value)
prefix = namespace_prefix(7, b"default")
timeout_s = 30.0
load_items = 1_000
load_in_flight = 4
many = 64
poll_s = 0.02
Bodies = Iterator[bytes]
Metrics = Mapping[str, Any]


@dataclass(slots=True, frozen=True)
class Run:
    per_second: float
    cpu_us: float
    writes_per_sync: float
    syncs_per_second: float


def keys(count: int) -> list[bytes]:
    """Keys of 28 bytes in no order."""
    return [prefix + b"%012d" % (number * 618_033_988_749 % 10**12) for number in range(count)]


def stamps() -> Iterator[bytes]:
    """Versions that ascend, from now on, also past those of an earlier call."""
    for hlc in itertools.count(time.time_ns() // 10**6 << 16):
        yield hlc.to_bytes(8, "big") + b"\0\0\0\1"


def gets(count: int) -> Bodies:
    """Bodies of GET for all keys, again and again."""
    shuffled = keys(count)
    random.Random(1).shuffle(shuffled)
    return itertools.cycle(shuffled)


def writes(count: int) -> Bodies:
    """Bodies of WRITE for all keys, again and again, each later than the one before."""
    shuffled = keys(count)
    random.Random(2).shuffle(shuffled)
    heads = itertools.cycle([encode_write(0, key, b"") for key in shuffled])
    body = value_body(value)
    return (head + stamp + body for head, stamp in zip(heads, stamps(), strict=False))


class Load:
    """Keeps so many requests under way; each answer asks again."""

    def __init__(
        self, link: Link, kind: int, bodies: Bodies, answer_bytes: int, answer: int = OK
    ) -> None:
        self.answers = 0
        self.ended = asyncio.Event()
        self.fault = ""
        self._link = link
        self._kind = kind
        self._bodies = bodies
        self._answer_bytes = answer_bytes
        self._answer = answer
        self._under_way = 0

    def start(self, in_flight: int) -> None:
        for _ in range(in_flight):
            self._under_way += 1
            self._ask()

    async def stop(self) -> None:
        """Wait for the last answers. RuntimeError if any was not what it should be."""
        self._bodies = iter(())
        await self.ended.wait()
        if self.fault:
            raise RuntimeError(self.fault)

    def _ask(self) -> None:
        for body in self._bodies:
            if self._link.request(self._kind, body, self._answered, timeout_s):
                self._fail("the link is down")
                break
            return
        self._under_way -= 1
        if not self._under_way:
            self.ended.set()

    def _answered(self, kind: int, answer: bytes) -> None:
        if kind != self._answer or len(answer) != self._answer_bytes:
            self._fail(f"answer kind {kind} with {len(answer)} bytes")
        self.answers += 1
        self._ask()

    def _fail(self, fault: str) -> None:
        self.fault = self.fault or fault
        self._bodies = iter(())


@asynccontextmanager
async def linked(node: NodeProcess) -> AsyncIterator[Link]:
    up = asyncio.Event()
    link = Link(Station(identity, on_up=lambda peer: up.set()), "127.0.0.1", node.link_port)
    link.start()
    await up.wait()
    yield link
    await link.close(drain_s=1.0)


@asynccontextmanager
async def under(link: Link, kind: int, in_flight: int, bodies: Bodies) -> AsyncIterator[Load]:
    """Load by these requests for as long as the block runs."""
    load = Load(link, kind, bodies, record_bytes if kind == GET else 0)
    load.start(in_flight)
    yield load
    await load.stop()


async def ask(link: Link, kind: int, body: bytes) -> bytes:
    answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    if link.request(kind, body, lambda *answer: answered.set_result(answer), timeout_s):
        raise RuntimeError("the link is down")
    found, content = await answered
    if found != OK:
        raise RuntimeError(f"the node answers {found}: {content!r}")
    return content


async def fill(node: NodeProcess, count: int) -> None:
    """Store the keys, many in a message."""
    body, stamp = value_body(value), stamps()
    chosen = iter(keys(count))

    async def store(link: Link) -> None:
        while some := list(itertools.islice(chosen, load_items)):
            records = [(key, version + body) for key, version in zip(some, stamp, strict=False)]
            await ask(link, WRITE_MANY, encode_write_many(0, records))

    async with linked(node) as link, asyncio.TaskGroup() as storing:
        for _ in range(load_in_flight):
            storing.create_task(store(link))


# -- requests per second


async def measure(node: NodeProcess, kind: int, in_flight: int, seconds: float) -> Run:
    loop = asyncio.get_running_loop()
    bodies = gets(key_count) if kind == GET else writes(key_count)
    async with linked(node) as link, under(link, kind, in_flight, bodies) as load:
        await asyncio.sleep(seconds / 4)
        before, answers, cpu_s, began_s = node.metrics(), load.answers, own_cpu_s(), loop.time()
        await asyncio.sleep(seconds)
        took_s, done = loop.time() - began_s, load.answers - answers
        cpu_s = own_cpu_s() - cpu_s
        after = node.metrics()

    def grew(name: str) -> float:
        return float(after[name] - before[name])

    syncs = grew("wal_syncs")
    return Run(
        per_second=done / took_s,
        cpu_us=(cpu_s + grew("process_cpu_seconds")) / done * 1e6,
        writes_per_sync=grew("wal_frames") / syncs if syncs else 0.0,
        syncs_per_second=syncs / took_s,
    )


def own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def request_rows(rounds: int, seconds: float) -> list[Row]:
    runs: dict[str, list[Run]] = defaultdict(list)
    with running(as_users_do) as node, running(without_syncs) as unsynced:
        for one in (node, unsynced):
            uvloop.run(fill(one, key_count))
        plan = {
            "GET, 1 in flight": (node, GET, 1),
            f"GET, {many} in flight": (node, GET, many),
            "PUT, 1 in flight": (node, WRITE, 1),
            f"PUT, {many} in flight": (node, WRITE, many),
            f"PUT without syncs, {many} in flight": (unsynced, WRITE, many),
        }
        for _ in range(rounds):
            for name, (one, kind, in_flight) in plan.items():
                runs[name].append(uvloop.run(measure(one, kind, in_flight, seconds)))
    rows = []
    for name, found in runs.items():
        per_second = statistics.median(run.per_second for run in found)
        cpu_us = statistics.median(run.cpu_us for run in found)
        rows.append(Row(name, per_second, "per second", f"{cpu_us:.1f} us of CPU, both ends"))
    synced, rest = runs[f"PUT, {many} in flight"], runs[f"PUT without syncs, {many} in flight"]
    ratios = [one.per_second / other.per_second for one, other in zip(synced, rest, strict=True)]
    syncs = statistics.median(run.syncs_per_second for run in synced)
    per_sync = statistics.median(run.writes_per_sync for run in synced)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {rounds} rounds; goal 0.6"
    return [
        *rows,
        Row(f"syncs, {many} PUTs in flight", syncs, "per second"),
        Row(f"writes made durable by a sync, {many} in flight", per_sync, "", "goal 20"),
        Row("PUT: with syncs / without", statistics.median(ratios), "x", spread),
    ]


# -- restarts and stalls with many keys


async def first_answer(node: NodeProcess, key: bytes) -> float:
    """Seconds from the start of the process to the first value."""
    async with linked(node) as link:
        if len(await ask(link, GET, key)) != record_bytes:
            raise RuntimeError("a key is missing")
        return time.perf_counter() - node.started_s


@dataclass(slots=True, frozen=True)
class Restart:
    """Seconds from the start of the process, and what recovery took of them."""

    ready_s: float
    first_s: float
    recovery_s: float


def restart(node: NodeProcess, key: bytes, count: int) -> Restart:
    """Kill it and start it again; every key must be there."""
    node.stop(signal.SIGKILL)
    ready_s = node.start()
    first_s = uvloop.run(first_answer(node, key))
    found = node.metrics()
    if found["key_count"] != count:
        raise RuntimeError(f"{found['key_count']} of {count} keys came back")
    return Restart(ready_s, first_s, found["recovery_seconds"])


async def snapshot(node: NodeProcess) -> None:
    """Have one written. Asking the node how far it is would hold its loop for milliseconds."""
    before = node.snapshots()
    await asyncio.to_thread(node.write_snapshot)
    while node.snapshots() <= before:  # noqa: ASYNC110  It is another process that writes.
        await asyncio.sleep(poll_s)


@dataclass(slots=True, frozen=True)
class Stalls:
    """The longest, in milliseconds, and over how many seconds."""

    wall_ms: float
    cpu_ms: float
    seconds: float

    @classmethod
    def of(cls, seen: Metrics, seconds: float) -> Stalls:
        return cls(seen["longest_stall_ms.wall"], seen["longest_stall_ms.cpu"], seconds)


async def stalls(node: NodeProcess, count: int, rounds: int) -> tuple[list[Stalls], list[Stalls]]:
    """Stalls under load, without and with a snapshot being written, for equal times."""
    without, during = [], []
    half = many // 2
    # Made before there is a link: with a million keys the peer would not wait for it.
    reading, writing = gets(count), writes(count)
    async with (
        linked(node) as link,
        under(link, GET, half, reading),
        under(link, WRITE, half, writing),
    ):
        for _ in range(rounds):
            await asyncio.to_thread(node.metrics)
            began_s = time.perf_counter()
            await snapshot(node)
            took_s = time.perf_counter() - began_s
            during.append(Stalls.of(await asyncio.to_thread(node.metrics), took_s))
            await asyncio.sleep(took_s)
            without.append(Stalls.of(await asyncio.to_thread(node.metrics), took_s))
    return without, during


def restart_rows(name: str, found: list[Restart], count: int) -> list[Row]:
    speed = count / statistics.median(one.recovery_s for one in found)
    ready_s = statistics.median(one.ready_s for one in found)
    first_s = statistics.median(one.first_s for one in found)
    return [
        Row(f"recovery from {name}", speed, "records/s", f"{count / speed:.2f} s"),
        Row(f"start after kill -9 to ready, from {name}", ready_s, "s"),
        Row(f"start after kill -9 to the first GET, from {name}", first_s, "s"),
    ]


def stall_rows(name: str, found: list[Stalls]) -> list[Row]:
    wall = [one.wall_ms for one in found]
    worst_cpu = max(one.cpu_ms for one in found)
    note = f"{min(wall):.1f} to {max(wall):.1f} in {len(wall)} times {found[0].seconds:.1f} s"
    return [
        Row(f"longest stall under load, {name}", statistics.median(wall), "ms", note),
        Row(f"the same in processor time, {name}", worst_cpu, "ms", "the worst of all"),
    ]


def million_rows(count: int, rounds: int) -> list[Row]:
    """What many keys make of starts and stalls."""
    some_key = keys(count)[-1]
    with running(with_heartbeat) as node:
        empty = node.metrics()["process_resident_memory_bytes"]
        uvloop.run(fill(node, count))
        taken = (node.metrics()["process_resident_memory_bytes"] - empty) / count
        from_log = []
        for _ in range(rounds):
            # Filling may have brought one about; the log is whole until there are two.
            for path in node.directory.glob("snapshot-*"):
                path.unlink()
            from_log.append(restart(node, some_key, count))
        without, during = uvloop.run(stalls(node, count, rounds))
        uvloop.run(snapshot(node))
        from_snapshot = [restart(node, some_key, count) for _ in range(rounds)]
    beyond = taken - len(prefix) - 12 - len(value)
    return [
        Row(f"memory of the process, {count:,} keys", beyond, "bytes per key beyond key and value"),
        *restart_rows("a log", from_log, count),
        *restart_rows("a snapshot", from_snapshot, count),
        *stall_rows("no snapshot", without),
        *stall_rows("while a snapshot is written", during),
    ]


@contextmanager
def running(command: Sequence[str]) -> Iterator[NodeProcess]:
    with tempfile.TemporaryDirectory(prefix="ydht-bench-") as directory:
        node = NodeProcess(Path(directory), command)
        node.start()
        try:
            yield node
        finally:
            node.stop()


def rows(rounds: int = 5, seconds: float = 2.0, keys: int = 1_000_000) -> list[Row]:
    return request_rows(rounds, seconds) + million_rows(keys, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    quiet()
    show("node", rows(options.rounds, options.seconds, options.keys))


if __name__ == "__main__":
    main()
