"""The headline: requests through the gateway, beside webdis over one Redis and etcd.

All services of `ydht up` on this machine, asked with the API key of its demo account; 64
connections, values of 100 bytes, 10,000 keys. The load is the same on all sides (bench/wrk.py),
and so is a sampler beside it, that looks whether answers are right and not only whether they are
there. Runs alternate between ours and the peer, so that a noisy machine disturbs both alike;
medians are printed, and ratios of runs next to each other. A run with an error is no figure.

Strong operations have keys of their own, as have eventual ones: a strong read of a key that was
last written eventually settles that first, which is the cost of mixing and not of reading.

    python -m bench.gateway [--rounds N] [--seconds S] [--profile]

With --profile it measures ours alone, and names for each process what it takes of a request.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

import uvloop

from bench.cpu import cpu_seconds
from bench.http_connection import ConnectionEndedError, HttpConnection, connect, request
from bench.peers import Side, etcd, etcd_commands, missing, webdis, webdis_commands
from bench.platform_process import PlatformProcess, platform
from bench.report import Row, quiet, show
from bench.wrk import Loaded, Requests, connections, installed, load

key_count: Final = 10_000
value_bytes: Final = 100
# Enough to meet what goes wrong often, and a hundredth of the load at most.
sampled_every_s: Final = 0.02
warm_up_s: Final = 1.0


@dataclass(slots=True, frozen=True)
class Work:
    """One kind of request, and the ratio that it is to reach: hoped for, and at the least."""

    name: str
    strong: bool
    writes: bool
    goal: float
    floor: float


eventual_works: Final = (
    Work("eventual GET", strong=False, writes=False, goal=1.2, floor=0.8),
    Work("eventual PUT", strong=False, writes=True, goal=1.0, floor=0.5),
)
strong_works: Final = (
    Work("strong GET", strong=True, writes=False, goal=4.0, floor=1.5),
    Work("strong PUT", strong=True, writes=True, goal=2.0, floor=1.2),
)


@dataclass(slots=True, frozen=True)
class Run:
    loaded: Loaded
    # By process, in microseconds for each request.
    cpu_us: Mapping[str, float]
    sampled: int
    faults: tuple[str, ...]

    @property
    def per_second(self) -> float:
        return self.loaded.requests / self.loaded.seconds


Runs = dict[tuple[str, str], list[Run]]


class Ours:
    """The gateway, asked eventually or strongly."""

    name = "ydht"

    def __init__(self, process: PlatformProcess, *, strong: bool) -> None:
        self.port = process.gateway_port
        self._process = process
        self._headers = f"X-API-Key: {process.api_key}\r\n"
        if strong:
            self._headers += "X-Consistency: strong\r\n"

    def get(self, key: str) -> bytes:
        return request("GET", f"/v1/kv/{key}", self.port, self._headers)

    def put(self, key: str, value: bytes) -> bytes:
        return request("PUT", f"/v1/kv/{key}", self.port, self._headers, value)

    def value(self, body: bytes) -> bytes | None:
        return body

    def pids(self) -> Mapping[str, int]:
        return self._process.pids


# -- keys and values


def keys(work: Work) -> list[str]:
    kind = "s" if work.strong else "e"
    return [f"{kind}{number:011}" for number in range(key_count)]


def value_of(key: str, generation: int) -> bytes:
    """What a key is given by the load of one run: it tells for which key, and by which run."""
    return f"{key}:{generation:08}:".encode().ljust(value_bytes, b"v")


def is_value_of(key: str, found: bytes | None) -> bool:
    """Whether some run has given it to this key."""
    if found is None or len(found) != value_bytes:
        return False
    generation = found[len(key) + 1 : len(key) + 9]
    return generation.isdigit() and found == value_of(key, int(generation))


# -- one run


class Sampler:
    """Asks now and then while a load runs, and looks whether the answers are right."""

    def __init__(self, side: Side, work: Work, seed: int) -> None:
        self.sampled = 0
        self.faults: list[str] = []
        self._side = side
        self._work = work
        self._seed = seed

    async def run(self) -> None:
        """Until cancelled."""
        connection = await connect(self._side.port)
        chosen = random.Random(self._seed)
        every_key = keys(self._work)
        try:
            while True:
                if self._work.writes:
                    await self._write_and_read(connection)
                else:
                    await self._read(connection, chosen.choice(every_key))
                self.sampled += 1
                await asyncio.sleep(sampled_every_s)
        except ConnectionEndedError as error:
            self.faults.append(str(error))
        finally:
            connection.close()

    async def _read(self, connection: HttpConnection, key: str) -> None:
        body = await self._ask(connection, self._side.get(key))
        if body is not None and not is_value_of(key, self._side.value(body)):
            self.faults.append(f"{key} has what it was never given: {body!r}")

    async def _write_and_read(self, connection: HttpConnection) -> None:
        key = f"sampled-{self._work.name[0]}"
        value = value_of(key, self.sampled)
        await self._ask(connection, self._side.put(key, value))
        body = await self._ask(connection, self._side.get(key))
        if body is not None and self._side.value(body) != value:
            self.faults.append(f"{key} was given {value!r} and has {body!r}")

    async def _ask(self, connection: HttpConnection, content: bytes) -> bytes | None:
        answer = await connection.ask(content)
        if answer.status == 200:
            return answer.body
        self.faults.append(f"answered {answer.status}: {answer.body[:300]!r}")
        return None


async def measure(side: Side, work: Work, seconds: float, seed: int) -> Run:
    """One run. Its requests carry the seed as their generation."""
    contents = [
        side.put(key, value_of(key, seed)) if work.writes else side.get(key) for key in keys(work)
    ]
    sampler = Sampler(side, work, seed)
    requests = Requests(contents)
    try:
        before = cpu_seconds(side.pids())
        sampling = asyncio.create_task(sampler.run())
        loaded = await asyncio.to_thread(load, side.port, requests, seconds, seed)
        after = cpu_seconds(side.pids())
        sampling.cancel()
        await asyncio.wait([sampling])
    finally:
        requests.close()
    faults = [*loaded.errors, *sampler.faults]
    if not work.writes and loaded.bytes_per_answer < value_bytes:
        faults.append(f"{loaded.bytes_per_answer:.0f} bytes per answer cannot hold the values")
    if not sampler.sampled:
        faults.append("no answer was looked at")
    return Run(
        loaded=loaded,
        cpu_us={name: (after[name] - before[name]) / loaded.requests * 1e6 for name in after},
        sampled=sampler.sampled,
        faults=tuple(faults),
    )


async def fill(side: Side, work: Work) -> None:
    """Give every key a value. RuntimeError if one is not taken."""
    waiting = iter(keys(work))

    async def put() -> None:
        connection = await connect(side.port)
        for key in waiting:
            answer = await connection.ask(side.put(key, value_of(key, 0)))
            if answer.status != 200:
                raise RuntimeError(f"{side.name} answers {answer.status}: {answer.body[:500]!r}")
        connection.close()

    async with asyncio.TaskGroup() as putting:
        for _ in range(connections):
            putting.create_task(put())


# -- all runs


def alternate(sides: Sequence[Side], works: Sequence[Work], rounds: int, seconds: float) -> Runs:
    """Runs by the names of work and side."""
    for side in sides:
        uvloop.run(fill(side, works[0]))
        for work in works:
            uvloop.run(measure(side, work, warm_up_s, 0))
    runs: Runs = defaultdict(list)
    for number in range(1, rounds + 1):
        for work in works:
            for side in sides:
                run = uvloop.run(measure(side, work, seconds, number))
                runs[work.name, side.name].append(run)
    return runs


@contextmanager
def nobody() -> Iterator[None]:
    yield None


def peer_or_nobody(
    peer: AbstractContextManager[Side], commands: Sequence[str]
) -> AbstractContextManager[Side | None]:
    if lacking := missing(commands):
        print(f"not measured beside {commands[0]}: {' and '.join(lacking)} is not installed")
        return nobody()
    return peer


def rows(rounds: int = 5, seconds: float = 5.0, *, alone: bool = False) -> list[Row]:
    """Of everything; `alone`: without peers, and by process."""
    if not installed():
        print("nothing is measured: wrk, which makes the load, is not installed")
        return []
    found = []
    plan = (
        (eventual_works, webdis, webdis_commands),
        (strong_works, etcd, etcd_commands),
    )
    with platform("--nodes", "3", "--replicators", "1") as process:
        for works, peer, commands in plan:
            ours = Ours(process, strong=works[0].strong)
            with nobody() if alone else peer_or_nobody(peer(), commands) as other:
                sides: list[Side] = [ours] if other is None else [ours, other]
                runs = alternate(sides, works, rounds, seconds)
            for work in works:
                found += work_rows(work, sides, runs)
                found += profile_rows(work, sides, runs) if alone else []
    return found


# -- what they come to


def work_rows(work: Work, sides: Sequence[Side], runs: Runs) -> list[Row]:
    found = []
    for side in sides:
        measured = runs[work.name, side.name]
        good = [run for run in measured if not run.faults]
        name = work.name if side is sides[0] else f"{side.name}, {work.name.split()[1]}"
        if good:
            found.append(Row(name, median(good, "per_second"), "per second", note_of(good)))
        if faults := [fault for run in measured for fault in run.faults]:
            what = f"left out, for errors such as: {faults[0]}"
            found.append(Row(f"{name}: runs", len(measured) - len(good), "", what))
    if len(sides) == 2:
        found += ratio_rows(work, sides[1].name, *(runs[work.name, side.name] for side in sides))
    return found


def ratio_rows(work: Work, peer: str, ours: Sequence[Run], theirs: Sequence[Run]) -> list[Row]:
    ratios = [
        one.per_second / other.per_second
        for one, other in zip(ours, theirs, strict=True)
        if not one.faults and not other.faults
    ]
    if not ratios:
        return []
    note = (
        f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds; "
        f"goal {work.goal:g}, at least {work.floor:g}"
    )
    return [Row(f"{work.name} / {peer}", statistics.median(ratios), "x", note)]


def note_of(good: Sequence[Run]) -> str:
    p50 = statistics.median(run.loaded.p50_ms for run in good)
    p99 = statistics.median(run.loaded.p99_ms for run in good)
    cpu_us = statistics.median(sum(run.cpu_us.values()) for run in good)
    wrk_us = statistics.median(run.loaded.cpu_us for run in good)
    return (
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {cpu_us:.1f} us of CPU each (wrk {wrk_us:.1f}), "
        f"0 errors"
    )


def profile_rows(work: Work, sides: Sequence[Side], runs: Runs) -> list[Row]:
    """What each process takes, the one that takes most first."""
    good = [run for run in runs[work.name, sides[0].name] if not run.faults]
    if not good:
        return []
    per_second = median(good, "per_second")
    taken = {name: statistics.median(run.cpu_us[name] for run in good) for name in good[0].cpu_us}
    taken["wrk"] = statistics.median(run.loaded.cpu_us for run in good)
    return [
        Row(f"  {name}", cpu_us, "us of CPU each", f"{cpu_us * per_second / 1e6:.0%} of a core")
        for name, cpu_us in sorted(taken.items(), key=lambda item: -item[1])
    ]


def median(runs: Sequence[Run], name: str) -> float:
    return statistics.median(float(getattr(run, name)) for run in runs)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    quiet()
    found = rows(options.rounds, options.seconds, alone=options.profile)
    show("gateway", found)
    return 1 if any("left out" in row.note for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
