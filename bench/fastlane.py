"""What the fast lane costs: CPU of a request, beside a protocol that does nothing but answer.

Each server is a process of its own on uvloop, loaded by wrk over 64 connections; runs take turns,
and ratios are those of runs next to each other. The bare one is httptools on an asyncio protocol:
it keeps method, target and header fields, and writes an answer that was made beforehand. The fast
lane sends the very same bytes, by a lane that answers at once. So what is between the two is all
that the fast lane does: rules of HTTP, order, limits, counters, latency, the exchange itself.

- the same fields again: clients repeat their header lines, which then are not parsed again
- new fields each time: an X-Request-ID of its own in every request, so the parser sees them all

    python -m bench.fastlane [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import httptools
import psutil  # type: ignore[import-untyped]
import uvloop
from starlette.applications import Starlette

from bench import wrk
from bench.report import Row, quiet, show
from services.core.errors import ClientError
from services.runtime.body_room import BodyRoom
from services.runtime.clock import SystemClock
from services.runtime.edge import RequestCounters
from services.runtime.exchange import Exchange, Headers
from services.runtime.fastlane import FastLane
from services.runtime.listener import Listener

path: Final = b"/v1/kv/user:%06d"
value: Final = b"x" * 100
lines: Final = (
    b'Content-Type: application/octet-stream\r\nETag: "0123456789abcdef"\r\n'
    b"X-Node-ID: node-1\r\nX-Content-Type-Options: nosniff\r\n"
    b'RateLimit-Policy: "default";q=100;w=60\r\nRateLimit: "default";r=7;t=2\r\n'
    b"X-Request-ID: 0123456789abcdef0123456789abcdef\r\n"
)
fields: Final = (
    b"Host: 127.0.0.1:8080\r\nUser-Agent: a client/1.0\r\nAccept: */*\r\n"
    b"X-API-Key: ydht_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH\r\n"
)
request_count: Final = 10_000
rounds_default: Final = 5
seconds_default: Final = 3.0


class BareProtocol(asyncio.Protocol):
    """Answers whatever is a request."""

    def __init__(self) -> None:
        length = b"Content-Length: %d\r\n\r\n" % len(value)
        date = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        self.answer = b"HTTP/1.1 200 OK\r\n" + date + lines + length + value
        self.fields: list[tuple[bytes, bytes]] = []
        self.url = b""
        self.body = b""
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.fields = []
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, field: bytes) -> None:
        self.fields.append((name.lower(), field))

    def on_body(self, body: bytes) -> None:
        self.body = body

    def on_message_complete(self) -> None:
        self.method = self.parser.get_method()
        self.keep_alive = self.parser.should_keep_alive()
        self.transport.write(self.answer)


class AnsweringLane:
    """Answers at once."""

    body_bytes_max = 1 << 20

    def __init__(self) -> None:
        self.room = BodyRoom()

    def takes(self, method: bytes, path: bytes, headers: Headers) -> bool:
        return path.startswith(b"/v1/kv/")

    def refusal(self, exchange: Exchange) -> ClientError | None:
        return None

    def whose(self, exchange: Exchange) -> Hashable:
        return None

    def refuse(self, exchange: Exchange, error: ClientError) -> None:
        exchange.reply(error.status, b"", b"")

    def begin(self, exchange: Exchange) -> None:
        exchange.reply(200, lines, value)

    def too_large(self, exchange: Exchange) -> None:
        exchange.reply(413, b"", b"")

    def timed_out(self, exchange: Exchange) -> None:
        exchange.reply(408, b"", b"")


async def serve(kind: str) -> None:
    """Serve until stdin ends; the port is told on stdout."""
    loop = asyncio.get_running_loop()
    if kind == "bare":
        server = await loop.create_server(BareProtocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    else:
        listener = Listener(Starlette(), "127.0.0.1", 0, SystemClock(), FastLane)
        listener.connections.connections_max = 1000
        state = {"lane": AnsweringLane(), "counters": RequestCounters()}
        await listener.bind("PORT")
        port = await listener.listen(dict(state), "PORT")
    print(port, flush=True)
    ended = asyncio.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    await ended.wait()


class Server:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        command = [sys.executable, "-m", "bench.fastlane", "--serve", kind]
        self._child = subprocess.Popen(  # noqa: S603  A command of this module.
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._child.stdout is not None  # noqa: S101  For the type checker.
        self.port = int(self._child.stdout.readline())
        self._process = psutil.Process(self._child.pid)

    def cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        # Its standard input ends with that.
        self._child.communicate()


@dataclass(slots=True, frozen=True)
class Run:
    per_second: float
    cpu_us: float


def gets(*, alike: bool) -> list[bytes]:
    own: Callable[[int], bytes] = (
        (lambda _: b"") if alike else (lambda number: b"X-Request-ID: request-%06d\r\n" % number)
    )
    return [
        b"GET " + path % number + b" HTTP/1.1\r\n" + fields + own(number) + b"\r\n"
        for number in range(request_count)
    ]


def puts() -> list[bytes]:
    length = b"Content-Length: %d\r\n" % len(value)
    return [
        b"PUT " + path % number + b" HTTP/1.1\r\n" + fields + length + b"\r\n" + value
        for number in range(request_count)
    ]


def run(server: Server, requests: wrk.Requests, seconds: float, seed: int) -> Run:
    before_s = server.cpu_s()
    loaded = wrk.load(server.port, requests, seconds, seed)
    cpu_s = server.cpu_s() - before_s
    if loaded.errors:
        raise RuntimeError(f"{server.kind}: {', '.join(loaded.errors)}")
    return Run(loaded.requests / loaded.seconds, cpu_s / loaded.requests * 1e6)


@contextlib.contextmanager
def servers() -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        started = []
        for kind in ("bare", "fast"):
            started.append(server := Server(kind))
            stack.callback(server.close)
        yield started


def measure(rounds: int, seconds: float) -> dict[tuple[str, str], list[Run]]:
    loads = {
        "GET, the same fields again": gets(alike=True),
        "GET, new fields each time": gets(alike=False),
        "PUT, the same fields again": puts(),
    }
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    with servers() as started:
        for name, requests in loads.items():
            file = wrk.Requests(requests)
            try:
                for turn in range(rounds):
                    # Whoever comes first changes, as what comes before may warm or disturb.
                    for server in started if turn % 2 else reversed(started):
                        found[name, server.kind].append(run(server, file, seconds, turn))
            finally:
                file.close()
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def rows(rounds: int = rounds_default, seconds: float = seconds_default) -> list[Row]:
    if not wrk.installed():
        print("nothing is measured: wrk, which makes the load, is not installed")
        return []
    found = measure(rounds, seconds)
    shown = []
    for name in dict.fromkeys(name for name, _ in found):
        bare, fast = found[name, "bare"], found[name, "fast"]
        for kind, runs in (("bare", bare), ("fast lane", fast)):
            cpu_us = statistics.median(one.cpu_us for one in runs)
            note = f"{cpu_us:.2f} us of CPU each"
            rate = statistics.median(one.per_second for one in runs)
            shown.append(Row(f"{name}: {kind}", rate, "per second", note))
        cost = ratio([one.cpu_us for one in fast], [one.cpu_us for one in bare])
        note = f"{len(fast)} pairs of runs of {seconds:g} s"
        shown.append(Row(f"{name}: CPU, to the bare one", cost, "times", note))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=rounds_default)
    parser.add_argument("--seconds", type=float, default=seconds_default)
    parser.add_argument("--serve", choices=("bare", "fast"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.serve:
        uvloop.run(serve(options.serve))
    else:
        show("fastlane", rows(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
