"""Send malformed requests to a server and tell what came of them.

    python -m tests.integration.raw_requests URL [--count N] [--seed S] [--connections C]
        [--header "X-API-Key: ..."] [--pid PID] [--only NUMBER]

What must not be: a 5xx other than 503, 504 and 507; a connection that is neither answered nor
closed; more answers than there were requests, or one behind an answer that closes; an answer
that is no HTTP. Each is told with its number, which `--only` sends again. Memory is that of the
process `--pid`, from when a tenth has been sent to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import uvloop

from tests.integration.raw_bytes import Script, Scripts

# A server has this long to answer and close once it has everything.
patience_s = 15.0
allowed_5xx = frozenset({503, 504, 507})
# Of each kind of finding so many are kept; there may be as many as scripts.
findings_max = 20


class NoHttpError(Exception):
    """What came is no sequence of HTTP answers."""


@dataclass(slots=True)
class Report:
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    resets: int = 0
    refused_connections: int = 0
    # Numbers of scripts, by what was wrong.
    wrong: dict[str, list[int]] = field(default_factory=dict)
    memory_before: int = 0
    memory_after: int = 0

    def blame(self, what: str, number: int) -> None:
        numbers = self.wrong.setdefault(what, [])
        if len(numbers) < findings_max:
            numbers.append(number)

    @property
    def growth(self) -> float:
        """By what share memory has grown."""
        return self.memory_after / self.memory_before - 1 if self.memory_before else 0.0

    def lines(self) -> Iterator[str]:
        yield f"sent            {self.sent:,}"
        for status, count in sorted(self.statuses.items()):
            yield f"  {status}           {count:,}"
        yield f"unanswered      {self.unanswered:,}"
        yield f"resets          {self.resets:,}"
        yield f"not connected   {self.refused_connections:,}"
        if self.memory_before:
            before, after = self.memory_before / 1e6, self.memory_after / 1e6
            yield f"memory          {before:.1f} MB, then {after:.1f} MB: {self.growth:+.1%}"
        for what, numbers in self.wrong.items():
            yield f"WRONG {what}: {', '.join(map(str, numbers))}"
        yield "nothing wrong" if not self.wrong else "see WRONG"


async def run(
    host: str,
    port: int,
    scripts: Scripts,
    numbers: range,
    *,
    connections: int = 64,
    pid: int | None = None,
) -> Report:
    report = Report()
    waiting = iter(numbers)
    process = psutil.Process(pid) if pid else None
    warm = len(numbers) // 10

    async def work() -> None:
        for number in waiting:
            await _play(host, port, scripts.script(number), number, report)
            if process is not None and report.sent >= warm and not report.memory_before:
                report.memory_before = process.memory_info().rss

    async with asyncio.TaskGroup() as group:
        for _ in range(min(connections, len(numbers))):
            group.create_task(work())
    if process is not None:
        report.memory_after = process.memory_info().rss
    return report


async def _play(host: str, port: int, script: Script, number: int, report: Report) -> None:
    report.sent += 1
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        report.refused_connections += 1
        report.blame("no connection", number)
        return
    received = bytearray()
    try:
        async with asyncio.timeout(patience_s):
            if script.resets:
                await _send_and_reset(writer, script)
            else:
                await _talk(reader, writer, script, received)
    except TimeoutError:
        report.blame("hang", number)
    except ConnectionError:
        report.resets += 1
    finally:
        writer.transport.abort()
    _judge(bytes(received), script, number, report)


async def _send_and_reset(writer: asyncio.StreamWriter, script: Script) -> None:
    for piece in script.pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def _talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    script: Script,
    received: bytearray,
) -> None:
    async def send() -> None:
        # A server that has refused the rest may have closed.
        with suppress(ConnectionError, RuntimeError):
            for piece in script.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            writer.write_eof()

    sending = asyncio.create_task(send())
    try:
        while data := await reader.read(1 << 16):
            received += data
    finally:
        sending.cancel()
        await asyncio.wait((sending,))


def _judge(received: bytes, script: Script, number: int, report: Report) -> None:
    if script.resets:
        return
    closed_by = None
    answers = 0
    try:
        for status, closes in _answers(received):
            if status >= 200:
                answers += 1
                report.statuses[status] += 1
            if status >= 500 and status not in allowed_5xx:
                report.blame(f"status {status}", number)
            if closed_by is not None:
                report.blame("an answer behind one that closes", number)
            closed_by = status if closes else None
    except NoHttpError:
        report.blame("no HTTP", number)
    report.unanswered += not answers
    if answers > script.answers_max:
        report.blame("two answers to one request", number)


def _answers(received: bytes) -> Iterator[tuple[int, bool]]:
    """Status of each answer and whether it closes; the last one may be cut off by a reset."""
    at = 0
    while at < len(received):
        end = received.find(b"\r\n\r\n", at)
        if end < 0:
            raise NoHttpError
        line, *fields = received[at:end].split(b"\r\n")
        words = line.split(b" ", 2)
        if words[0] != b"HTTP/1.1" or len(words) < 2 or not words[1].isdigit():
            raise NoHttpError
        named = {
            name.lower(): value.strip().lower()
            for name, _, value in (one.partition(b":") for one in fields)
        }
        status = int(words[1])
        yield status, named.get(b"connection") == b"close"
        at = end + 4
        if b"transfer-encoding" in named:
            at = _behind_chunks(received, at)
        elif status >= 200 and status not in (204, 304):
            at += int(named.get(b"content-length", b"0"))


def _behind_chunks(received: bytes, at: int) -> int:
    for _ in itertools.count():
        end = received.find(b"\r\n", at)
        if end < 0:
            raise NoHttpError
        size = int(received[at:end], 16)
        at = end + 2 + size + 2
        if not size:
            return at
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.raw_requests")
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--header", action="append", default=[], metavar="LINE")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    options = parser.parse_args()
    url = urlsplit(options.url)
    scripts = Scripts(options.seed, options.header)
    numbers = range(options.count)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
        sys.stdout.write(f"{scripts.script(options.only)!r}\n"[:4000])
    report = uvloop.run(
        run(
            url.hostname or "127.0.0.1",
            url.port or 80,
            scripts,
            numbers,
            connections=options.connections,
            pid=options.pid,
        )
    )
    sys.stdout.write("\n".join(report.lines()) + "\n")
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
