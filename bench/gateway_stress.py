"""Millions of requests through the gateway, each answer checked, and a summary.

    python -m bench.gateway_stress [--requests N] [--connections N] [--tenants N] [--processes N]

Starts `ydht up` and loads it with eventual and strong reads and writes, conditional writes,
counters, values that expire, listings, batches and deletions by prefix. Each connection is a client
with keys of its own, of one of the tenants, in one of two namespaces; it knows what they hold
(bench/stress_memory.py). The exit code is 1 if anything failed or was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Final, NamedTuple

import psutil  # type: ignore[import-untyped]
import uvloop

from bench.platform_process import PlatformProcess, metrics, platform
from bench.report import quiet
from bench.stress_client import Identity
from bench.stress_memory import hedge_s
from bench.stress_tally import Tally
from bench.stress_work import Worker
from services.runtime.descriptors import connections_within, raise_descriptor_limit

namespaces: Final = ("default", "stress")
told_every_s: Final = 1.0
# Where nobody looks at a terminal, a log is not to be filled.
logged_every_s: Final = 15.0
# A listing at the end of a load takes the longest, and is far from that.
silent_s_max: Final = 60.0
mebibyte: Final = 1 << 20


class Progress(NamedTuple):
    """So far, in one process."""

    requests: int
    errors: int
    wrong: int


# -- in each process that loads


class Share:
    """What one process does of the whole: its clients take from one number of requests."""

    def __init__(self, identities: Sequence[Identity], requests: int, pipe: Connection) -> None:
        self.tally = Tally()
        self._identities = identities
        self._requests = requests
        self._pipe = pipe

    async def run(self) -> None:
        telling = asyncio.create_task(self._tell())
        deleting = asyncio.Lock()
        async with asyncio.TaskGroup() as working:
            for identity in self._identities:
                worker = Worker(identity, self.tally, deleting)
                working.create_task(worker.run(self._goes_on))
        telling.cancel()
        self._pipe.send(self.tally)

    def _goes_on(self) -> bool:
        return self.tally.requests < self._requests and not self._pipe.poll()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(told_every_s)
            tally = self.tally
            errors, wrong = tally.errors.total(), tally.wrong.total()
            self._pipe.send(Progress(tally.requests, errors, wrong))


def run_share(identities: Sequence[Identity], requests: int, pipe: Connection) -> None:
    """The whole life of a process that loads. Whoever started it says when to stop early."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_descriptor_limit()
    uvloop.run(Share(identities, requests, pipe).run())


# -- in the process that was started


def load(identities: Sequence[Identity], requests: int, processes: int) -> Tally:
    """All shares together. Ctrl-C ends them early, and what they did is counted."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    for number in range(processes):
        ours, theirs = context.Pipe()
        mine = identities[number::processes]
        share = requests * len(mine) // len(identities)
        context.Process(target=run_share, args=(mine, share, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    line = ProgressLine(requests)
    whole = Tally()
    while pipes:
        try:
            told = wait(pipes, silent_s_max)
        except KeyboardInterrupt:
            for pipe in pipes:
                pipe.send("stop")
            continue
        if not told:
            raise RuntimeError(f"those who load have been silent for {silent_s_max:g} s")
        for pipe in [pipe for pipe in pipes if pipe in told]:
            try:
                found = pipe.recv()
            except EOFError:
                raise RuntimeError("a process that loads has died; what it says is above") from None
            if isinstance(found, Tally):
                whole.merge(found)
                pipes.remove(pipe)
            else:
                line.tell(pipe, found)
    line.end()
    return whole


class ProgressLine:
    """One line on a terminal, written anew each second; now and then a line elsewhere."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._latest: dict[Connection, Progress] = {}
        self._began_s = self._shown_s = time.monotonic()
        self._shown_requests = 0
        self._live = sys.stdout.isatty()

    def tell(self, pipe: Connection, progress: Progress) -> None:
        self._latest[pipe] = progress
        now_s = time.monotonic()
        if now_s - self._shown_s < (told_every_s if self._live else logged_every_s):
            return
        requests, errors, wrong = (sum(part) for part in zip(*self._latest.values(), strict=True))
        rate = (requests - self._shown_requests) / (now_s - self._shown_s)
        text = (
            f"{requests:>11,} of {self._requests:,} ({requests / self._requests:.0%}), "
            f"{rate:,.0f} per second, {errors} errors, {wrong} wrong, "
            f"{now_s - self._began_s:.0f} s"
        )
        print(f"\r{text}\x1b[K" if self._live else text, end="" if self._live else "\n", flush=True)
        self._shown_s, self._shown_requests = now_s, requests

    def end(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", flush=True)


def open_tenants(process: PlatformProcess, count: int) -> list[str]:
    """API keys of new accounts whose plan is never met."""

    def cli(*arguments: str, stdin: str = "") -> str:
        command = [sys.executable, "-m", "services.cli", *arguments]
        command += ["--data-dir", str(process.data_dir)]
        ended = subprocess.run(  # noqa: S603  A command of this project.
            command, input=stdin, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {ended.stderr}")
        return ended.stdout

    found = []
    scopes = ("--scope", "read", "--scope", "write", "--scope", "admin")
    for number in range(count):
        email = f"stress-{number}@example.com"
        password = "a password for the load alone\n"  # noqa: S105  It guards nothing.
        cli("user", "create", email, "--plan", "developer", "--password-stdin", stdin=password)
        made = cli("keys", "create", email, "--name", "load", *scopes)
        found.append(made.split()[-1])
    return found


def identities_of(port: int, api_keys: Sequence[str], connections: int) -> list[Identity]:
    """Neighbours differ in tenant and namespace, and share the names of their keys."""
    walls = [(tenant, space) for tenant in range(len(api_keys)) for space in namespaces]
    return [
        Identity(port, api_keys[tenant], tenant, space, number // len(walls))
        for number, (tenant, space) in (
            (number, walls[number % len(walls)]) for number in range(connections)
        )
    ]


def tell_descriptors(soft_before: int, connections: int, processes: int, gateway_max: int) -> None:
    """What there is, and what allows how many connections. SystemExit if they are too few."""
    limit = raise_descriptor_limit()
    mine = connections_within(limit) * processes
    print(
        f"descriptors: the limit was {soft_before:,} and is {limit:,} for each process, the hard "
        f"limit; these {processes} that load can open {mine:,} connections with that, and the "
        f"gateway takes {gateway_max:,}"
    )
    if connections > min(mine, gateway_max):
        sys.exit(
            f"{connections:,} connections do not fit. Raise the hard limit where this is started: "
            f"`ulimit -Hn {connections * 2}` as root, LimitNOFILE= in a unit of systemd, "
            "ulimits: in compose.yaml"
        )


def memory(process: PlatformProcess) -> dict[str, float]:
    """Resident MiB of each service."""
    return {
        name: psutil.Process(pid).memory_info().rss / mebibyte for name, pid in process.pids.items()
    }


def show_summary(
    tally: Tally, took_s: float, before: Mapping[str, float], after: Mapping[str, float]
) -> None:
    print(
        f"{tally.requests:,} requests in {took_s:.0f} s: {tally.requests / took_s:,.0f} per second"
    )
    print(f"  {'':<18}{'answered':>12}{'p50 ms':>10}{'p99 ms':>10}{'p99.9 ms':>10}{'longest':>10}")
    for name, times in sorted(tally.times.items(), key=lambda item: -item[1].count):
        took = [*(times.percentile_ms(share) for share in (50, 99, 99.9)), times.longest_s * 1e3]
        print(f"  {name:<18}{times.count:>12,}" + "".join(f"{ms:>10.1f}" for ms in took))
    show_counts("errors", tally.errors, tally)
    show_counts("wrong answers", tally.wrong, tally)
    print(f"{tally.late:,} eventual reads of an older state after {hedge_s * 1e3:.0f} ms or more,")
    print("  when another replica is asked; nobody is promised otherwise")
    grown = (f"{name} {after[name]:.0f} ({after[name] - before[name]:+.0f})" for name in before)
    print(f"resident MiB at the end, and what they grew by: {', '.join(grown)}")


def show_counts(title: str, counts: Counter[str], tally: Tally) -> None:
    print(f"{counts.total():,} {title}")
    for what, count in counts.most_common():
        print(f"  {count:,} {what}")
        for told in tally.told[what]:
            print(f"    {told}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway_stress", description=__doc__)
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tenants", type=int, default=4)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    if min(vars(options).values()) < 1 or options.connections < options.processes:
        parser.error("all of these are at least 1, and each process has a connection")
    quiet()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with platform("--nodes", "3", "--replicators", "1") as process:
        gateway_max = int(metrics(process.gateway_url)["http_connections_max"])
        tell_descriptors(soft, options.connections, options.processes, gateway_max)
        api_keys = open_tenants(process, options.tenants)
        print(
            f"{options.requests:,} requests of {options.tenants} tenants by "
            f"{options.connections:,} connections of {options.processes} processes"
        )
        identities = identities_of(process.gateway_port, api_keys, options.connections)
        before, began_s = memory(process), time.monotonic()
        tally = load(identities, options.requests, options.processes)
        took_s = time.monotonic() - began_s
        after = memory(process)
    show_summary(tally, took_s, before, after)
    return 1 if tally.errors or tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
