"""Millions of requests, each answer checked, and a summary: does anything get lost or mixed up?

    python -m bench.link_stress [--requests N] [--in-flight N]

Asks a server process over one link; every body is different and must come back as it went.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections import Counter

import uvloop

from bench.link import ECHO, identity, link_server, serve
from bench.report import Row, quiet, show
from services.core.wire import FAILED, LOST, OK, OVERLOADED, TIMEOUT
from services.runtime.link import Link, Station
from services.runtime.link_limits import LinkLimits

names = {LOST: "lost", TIMEOUT: "timed out", OVERLOADED: "overloaded", FAILED: "failed"}
# Every so manieth request is timed: enough for percentiles, too few to slow the rest.
timed_every = 64


class Load:
    """Keeps so many requests under way until so many are answered."""

    def __init__(self, link: Link, requests: int) -> None:
        self.done = asyncio.Event()
        self.outcomes: Counter[str] = Counter()
        self.took_s: list[float] = []
        self._link = link
        self._requests = requests
        self._sent = 0
        self._ended = 0

    def ask(self) -> None:
        if self._sent == self._requests:
            return
        self._sent += 1
        body = b"%020d" % self._sent * 5
        asked_s = time.perf_counter() if self._sent % timed_every == 0 else 0.0

        def on_answer(kind: int, answer: bytes) -> None:
            if asked_s:
                self.took_s.append(time.perf_counter() - asked_s)
            if kind == OK:
                self._end("right" if answer == body else "WRONG")
            else:
                self._end(names.get(kind, f"kind {kind}"))

        if refused := self._link.request(ECHO, body, on_answer, 5.0):
            asyncio.get_running_loop().call_soon(self._end, names.get(refused, "not sent"))

    def _end(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self._ended += 1
        if self._ended == self._requests:
            self.done.set()
        else:
            self.ask()


async def load(port: int, requests: int, in_flight: int) -> Load:
    up = asyncio.Event()
    limits = LinkLimits(pending_max=in_flight)
    link = Link(Station(identity, limits=limits, on_up=lambda peer: up.set()), "127.0.0.1", port)
    link.start()
    await up.wait()
    run = Load(link, requests)
    for _ in range(in_flight):
        run.ask()
    await run.done.wait()
    await link.close(drain_s=1.0)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.link_stress", description=__doc__)
    parser.add_argument("--requests", type=int, default=5_000_000)
    parser.add_argument("--in-flight", type=int, default=256)
    options = parser.parse_args()
    quiet()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(link_server, theirs))
    server.start()
    started_s = time.perf_counter()
    run = uvloop.run(load(ours.recv(), options.requests, options.in_flight))
    took_s = time.perf_counter() - started_s
    ours.send("stop")
    server.join()
    took = sorted(run.took_s)
    rows = [
        Row("requests", options.requests, ""),
        Row("per second", options.requests / took_s, "/s"),
        *(
            Row(f"p{share:g}", took[int(len(took) * share / 100)] * 1e3, "ms")
            for share in (50, 99, 99.9)
            if took
        ),
        *(Row(name, number, "answers") for name, number in sorted(run.outcomes.items())),
    ]
    show("stress: one link", rows)
    return 0 if run.outcomes["right"] == options.requests else 1


if __name__ == "__main__":
    sys.exit(main())
