"""Round trips over one link beside plain connections that echo, in the same run.

Two processes each: a server that echoes 100-byte messages and a client that keeps 64 of them
under way, once as 64 requests in flight on one link, once as 64 plain uvloop connections with one
message each. The runs alternate, so that a noisy machine disturbs both alike; medians are
printed, with the processor time of both processes per round trip.

    python -m bench.link [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import cast

import uvloop

from bench.report import Row, quiet, show
from services.core.wire import OK, Role, first_request_kind
from services.runtime.link import Link, LinkServer, Station
from services.runtime.opening import Identity
from services.runtime.peer import Peer

in_flight = 64
body = bytes(100)
ECHO = first_request_kind
identity = Identity(Role.TOOL, "bench", "a secret for the benchmark alone")


@dataclass(slots=True, frozen=True)
class Figure:
    per_second: float
    cpu_us: float


def cpu_s() -> float:
    times = os.times()
    return times.user + times.system


# -- one link


def echo(peer: Peer, request_id: int, request: bytes) -> None:
    peer.reply(request_id, OK, request)


async def link_server(pipe: Pipe) -> None:
    server = LinkServer(Station(identity, {ECHO: echo}), "127.0.0.1", 0)
    await server.start()
    pipe.send(server.port)
    await until_told(pipe)
    await server.close()


class LinkClient:
    """Keeps `in_flight` requests under way; each answer asks again."""

    def __init__(self, link: Link) -> None:
        self.answers = 0
        self.stopped = False
        self._link = link

    def start(self) -> None:
        for _ in range(in_flight):
            self._ask()

    def _ask(self) -> None:
        if not self.stopped and self._link.request(ECHO, body, self._answered, 5.0):
            raise RuntimeError("the link is down")

    def _answered(self, kind: int, answer: bytes) -> None:
        if kind != OK or len(answer) != len(body):
            raise RuntimeError(f"answer kind {kind} with {len(answer)} bytes")
        self.answers += 1
        self._ask()


async def link_run(port: int, seconds: float) -> tuple[float, float]:
    up = asyncio.Event()
    link = Link(Station(identity, on_up=lambda peer: up.set()), "127.0.0.1", port)
    link.start()
    await up.wait()
    client = LinkClient(link)
    client.start()
    figures = await measure(lambda: client.answers, seconds)
    client.stopped = True
    await link.close(drain_s=1.0)
    return figures


# -- plain connections


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class PlainClient(Echo):
    """One connection with one message under way. 100 bytes on loopback arrive in one piece."""

    def __init__(self, answers: list[int]) -> None:
        self.answers = answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(body)

    def data_received(self, data: bytes) -> None:
        self.answers[0] += 1
        self.transport.write(data)


async def plain_server(pipe: Pipe) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await until_told(pipe)
    server.close()


async def plain_run(port: int, seconds: float) -> tuple[float, float]:
    loop = asyncio.get_running_loop()
    answers = [0]
    clients = [
        (await loop.create_connection(lambda: PlainClient(answers), "127.0.0.1", port))[0]
        for _ in range(in_flight)
    ]
    figures = await measure(lambda: answers[0], seconds)
    for client in clients:
        client.abort()
    return figures


# -- the run


async def until_told(pipe: Pipe) -> None:
    """Report the processor time used so far at each question; return when told to stop."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def asked() -> None:
        if pipe.recv() == "stop":
            stopped.set()
        else:
            pipe.send(cpu_s())

    loop.add_reader(pipe.fileno(), asked)
    await stopped.wait()
    loop.remove_reader(pipe.fileno())


async def measure(answers: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Round trips per second and this process's CPU seconds per round trip, once warm."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(seconds / 4)
    first, started_s, started_cpu = answers(), loop.time(), cpu_s()
    await asyncio.sleep(seconds)
    count = answers() - first
    return count / (loop.time() - started_s), (cpu_s() - started_cpu) / count


def serve(server: Callable[[Pipe], object], pipe: Pipe) -> None:
    quiet()
    uvloop.run(server(pipe))  # type: ignore[arg-type]


def alternate(rounds: int, seconds: float) -> dict[str, list[Figure]]:
    context = multiprocessing.get_context("spawn")
    kinds = {"link": (link_server, link_run), "plain": (plain_server, plain_run)}
    figures: dict[str, list[Figure]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (server, run) in kinds.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(server, theirs))
            process.start()
            port = ours.recv()
            ours.send("cpu")
            before = ours.recv()
            per_second, client_cpu = uvloop.run(run(port, seconds))
            ours.send("cpu")
            # The server also worked during the warm-up: a quarter more round trips.
            server_cpu = (ours.recv() - before) / (per_second * seconds * 1.25)
            ours.send("stop")
            process.join()
            figures[name].append(Figure(per_second, (client_cpu + server_cpu) * 1e6))
    return figures


def rows(rounds: int = 5, seconds: float = 2.0) -> list[Row]:
    figures = alternate(rounds, seconds)
    ratios = [
        link.per_second / plain.per_second
        for link, plain in zip(figures["link"], figures["plain"], strict=True)
    ]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {rounds} rounds"
    found = []
    for name, label in (("link", "one link"), ("plain", "plain connections that echo")):
        per_second = statistics.median(run.per_second for run in figures[name])
        cpu_us = statistics.median(run.cpu_us for run in figures[name])
        found.append(Row(f"{label}, {in_flight} in flight", per_second, "round trips/s"))
        found.append(Row(f"{label}: CPU of both ends", cpu_us, "us per round trip"))
    found.append(Row("one link / plain connections", statistics.median(ratios), "x", spread))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    quiet()
    show("links", rows(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
