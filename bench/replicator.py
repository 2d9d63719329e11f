"""Operations through one replicator over three nodes, straight over a link to the replicator.

All processes are those of `ydht up`; this one asks as a gateway would, 10,000 keys with values
of 100 bytes. Runs alternate, so that a noisy machine disturbs all alike, and medians are
printed; ratios are those of runs next to each other. Frames are those that the replicator sends
to and gets from nodes; syncs are those of all three.

    python -m bench.replicator [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvloop

from bench.node import Bodies, Load, keys, value
from bench.node_process import secret
from bench.platform_process import PlatformProcess, metrics, platform
from bench.report import Row, quiet, show
from services.core.operations import (
    CHANGE,
    CHANGED,
    FETCH,
    PUT,
    Action,
    ChangeRequest,
    encode_change,
    encode_put,
)
from services.core.record import head_bytes
from services.core.wire import OK, Role
from services.runtime.link import Link, Station
from services.runtime.opening import Identity

key_count = 10_000
in_flight = 64
# A version and an expiry.
changed_bytes = 20
# With the time at which the key came to be.
record_bytes = head_bytes + 10 + len(value)
identity = Identity(Role.GATEWAY, "bench", secret)


@dataclass(slots=True, frozen=True)
class Work:
    """One kind of request: its bodies for all keys, again and again, and what answers it."""

    kind: int
    bodies: Bodies
    answer: int
    answer_bytes: int


@dataclass(slots=True, frozen=True)
class Run:
    per_second: float
    frames: float
    syncs: float
    cpu_us: float


def works() -> dict[str, Work]:
    shuffled = keys(key_count)
    random.Random(3).shuffle(shuffled)
    puts = [encode_put(key, value) for key in shuffled]
    # Strong operations have keys of their own: those of the other half of the namespace.
    strong = [key + b"s" for key in shuffled]
    changes = [encode_change(ChangeRequest(Action.PUT, key, value)) for key in strong]
    return {
        "eventual PUT": Work(PUT, itertools.cycle(puts), CHANGED, changed_bytes),
        "strong PUT": Work(CHANGE, itertools.cycle(changes), CHANGED, changed_bytes),
        "strong GET": Work(FETCH, itertools.cycle(strong), OK, record_bytes),
    }


@asynccontextmanager
async def linked(process: PlatformProcess) -> AsyncIterator[Link]:
    up = asyncio.Event()
    station = Station(identity, on_up=lambda peer: up.set())
    link = Link(station, "127.0.0.1", process.replicator_link_port)
    link.start()
    await up.wait()
    yield link
    await link.close(drain_s=1.0)


class Figures:
    """What the services have counted so far."""

    def __init__(self, process: PlatformProcess) -> None:
        replicator = metrics(process.replicator_url)
        nodes = [metrics(url) for url in process.node_urls]
        self.frames = sum(node["link_frames_received"] + node["link_frames_sent"] for node in nodes)
        self.syncs = sum(node["wal_syncs"] for node in nodes)
        self.cpu_s = sum(one["process_cpu_seconds"] for one in (replicator, *nodes))


async def measure(process: PlatformProcess, work: Work, seconds: float) -> Run:
    loop = asyncio.get_running_loop()
    async with linked(process) as link:
        load = Load(link, work.kind, work.bodies, work.answer_bytes, work.answer)
        load.start(in_flight)
        await asyncio.sleep(seconds / 4)
        before, answers, began_s = Figures(process), load.answers, loop.time()
        await asyncio.sleep(seconds)
        done, took_s, after = load.answers - answers, loop.time() - began_s, Figures(process)
        await load.stop()
    return Run(
        per_second=done / took_s,
        frames=(after.frames - before.frames) / done,
        syncs=(after.syncs - before.syncs) / done,
        cpu_us=(after.cpu_s - before.cpu_s) / done * 1e6,
    )


async def fill(process: PlatformProcess, work: Work) -> None:
    """Every key once."""
    async with linked(process) as link:
        once = itertools.islice(work.bodies, key_count)
        load = Load(link, work.kind, once, work.answer_bytes, work.answer)
        load.start(in_flight)
        await load.ended.wait()
        await load.stop()


def rows(rounds: int = 5, seconds: float = 3.0) -> list[Row]:
    runs: dict[str, list[Run]] = defaultdict(list)
    plan = works()
    with platform("--nodes", "3", "--replicators", "1") as process:
        for name in ("eventual PUT", "strong PUT"):
            uvloop.run(fill(process, plan[name]))
        for _ in range(rounds):
            for name, work in plan.items():
                runs[name].append(uvloop.run(measure(process, work, seconds)))
    found = []
    for name, measured in runs.items():
        frames = statistics.median(run.frames for run in measured)
        syncs = statistics.median(run.syncs for run in measured)
        cpu_us = statistics.median(run.cpu_us for run in measured)
        note = f"{frames:.1f} frames, {syncs:.3f} syncs, {cpu_us:.0f} us of CPU each"
        per_second = statistics.median(run.per_second for run in measured)
        found.append(Row(f"{name}, {in_flight} in flight", per_second, "per second", note))
    for one, other, goal in (
        ("strong PUT", "eventual PUT", 0.4),
        ("strong GET", "strong PUT", 1.5),
    ):
        ratios = [
            first.per_second / second.per_second
            for first, second in zip(runs[one], runs[other], strict=True)
        ]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {rounds} rounds; goal {goal}"
        found.append(Row(f"{one} / {other}", statistics.median(ratios), "x", spread))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    quiet()
    show("replicator", rows(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
