"""Proves, by the system calls of a node, that each reply to a write left after its sync.

A node runs under strace while 64 writes at a time are sent to it. In the trace, and nowhere else,
are then found for each write: its request as it was read from the socket; the write to the log
that holds its key and record; and the write to the socket that holds the reply. The log is written
by `pwritev2` with RWF_DSYNC, which syncs what it writes and had to return before the reply was
handed to the kernel. Any other write to it needs a whole `fdatasync` of that file in between, begun
after the write had returned, and returned without an error before the reply left.

The same is done with a node whose syncs are left out, in which every reply must be found guilty:
a check that cannot fail proves nothing. Exit code 0 only if both turn out so.

    python -m bench.strace_replies [--replies N]
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.node import Load, key_count, linked, writes
from bench.node_process import NodeProcess, as_users_do, without_syncs
from bench.report import quiet
from services.core.messages import WRITE
from services.core.wire import OK, Frame, FrameDecoder

in_flight = 64
# What is asked of the node in one read, or answered in one write, is shorter; zeros are not.
shown_bytes = 64 << 10
traced_s_max = 10.0

_line = re.compile(r"(\d+) +(.*)")
_resumed = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_call = re.compile(r"(\w+)\(\d+<(.*?)>(?:, (.*))?\) += (-?\d+)", re.DOTALL)
_string = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_escape = re.compile(r"\\x([0-9a-f]{2})")


@dataclass(slots=True, frozen=True)
class Call:
    """A system call on a descriptor, from one line of the trace to another.

    A call that begins after another has returned stands below it in the trace.
    """

    name: str
    file: str
    data: bytes
    result: int
    began: int
    ended: int
    # Whether it is a write that returns once what it wrote is durable.
    durable: bool


@dataclass(slots=True)
class Proof:
    """What became of the replies that were looked for."""

    syncs: int = 0
    checked: int = 0
    guilty: list[str] = field(default_factory=list)


def read_calls(lines: Sequence[str]) -> Iterator[Call]:
    """The calls in a trace by strace, in the order in which they ended."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        if (match := _line.match(line)) is None:
            continue
        thread, text = match.groups()
        began = number
        if text.endswith(" <unfinished ...>"):
            begun[thread] = (number, text.removesuffix(" <unfinished ...>"))
            continue
        if (rest := _resumed.match(text)) is not None:
            began, text = begun.pop(thread)
            text += rest[1]
        if (call := _call.match(text)) is not None:
            name, file, arguments, result = call.groups()
            file = _escape.sub(lambda code: chr(int(code[1], 16)), file)
            parts = [
                bytes.fromhex(each.replace("\\x", "")) for each in _string.findall(arguments or "")
            ]
            data = b"".join(parts)[: max(int(result), 0)]
            durable = name == "pwritev2" and (arguments or "").endswith(", RWF_DSYNC")
            yield Call(name, file, data, int(result), began, number, durable)


def prove(calls: Sequence[Call], link_port: int) -> Proof:
    """Hold every reply on the node's link port to its write and its sync."""
    proof = Proof()
    ours = f":[127.0.0.1:{link_port}->"
    changes: dict[tuple[str, int], bytes] = {}
    decoders: dict[tuple[str, str], FrameDecoder] = defaultdict(FrameDecoder)
    to_log = [call for call in calls if "/log-" in call.file]
    writes = [call for call in to_log if call.name in ("pwrite64", "pwritev2")]
    syncs = [call for call in to_log if call.name == "fdatasync"]
    proof.syncs = len(syncs) + sum(call.durable for call in writes)

    def frames(call: Call, direction: str) -> list[Frame]:
        return decoders[call.file, direction].feed(call.data)

    for call in calls:
        if ours not in call.file:
            continue
        if call.name in ("read", "recvfrom", "recvmsg"):
            for kind, request_id, body in frames(call, "in"):
                if kind == WRITE:
                    # In the log, the change is the request without the epoch.
                    changes[call.file, request_id] = body[8:]
        else:
            for kind, request_id, _ in frames(call, "out"):
                change = changes.pop((call.file, request_id), None)
                if change is not None and kind == OK:
                    proof.checked += 1
                    if (fault := find_fault(change, call, writes, syncs)) is not None:
                        proof.guilty.append(f"reply {request_id}: {fault}")
    return proof


def find_fault(
    change: bytes, reply: Call, writes: Sequence[Call], syncs: Sequence[Call]
) -> str | None:
    """Why this reply should not have left when it did; None if all was well."""
    written = next((call for call in writes if change in call.data), None)
    if written is None:
        return "its change was never written"
    if written.ended > reply.began:
        return "it left before its change was written"
    if written.durable:
        return None
    for sync in syncs:
        if sync.file == written.file and sync.began > written.ended and not sync.result:
            return None if sync.ended < reply.began else "it left before its sync returned"
    return "its change was never synced"


def trace(command: Sequence[str], replies: int) -> Proof:
    with tempfile.TemporaryDirectory(prefix="ydht-strace-") as directory:
        path = Path(directory, "trace")
        # -D lets the node be our child, and strace watch from the side.
        strace = ("strace", "-D", "-f", "-yy", "-xx", "-s", str(shown_bytes), "-o", str(path))
        named = (
            "trace=read,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,pwritev2,fdatasync"
        )
        node = NodeProcess(Path(directory), (*strace, "-e", named, *command))
        node.start()
        try:
            uvloop.run(send(node, replies))
        finally:
            pid = node.pid
            node.stop()
        lines = read_trace(path, pid)
        return prove(list(read_calls(lines)), node.link_port)


async def send(node: NodeProcess, replies: int) -> None:
    async with linked(node) as link:
        load = Load(link, WRITE, itertools.islice(writes(key_count), replies), 0)
        load.start(in_flight)
        await load.ended.wait()
        await load.stop()


def read_trace(path: Path, pid: int) -> list[str]:
    """The lines, once strace has written that the node ended."""
    deadline_s = time.monotonic() + traced_s_max
    while True:
        lines = path.read_text().splitlines()
        if any(re.match(rf"{pid} +\+\+\+ exited", line) for line in lines[-20:]):
            return lines
        if time.monotonic() > deadline_s:
            raise RuntimeError("strace did not come to an end")
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.strace_replies", description=__doc__)
    parser.add_argument("--replies", type=int, default=1_000)
    replies = parser.parse_args().replies
    quiet()
    if shutil.which("strace") is None:
        print("strace is not installed. On Debian and Ubuntu: apt-get install strace")
        return 1
    found = trace(as_users_do, replies)
    print(f"{found.checked} replies, {found.syncs} syncs: {len(found.guilty)} left too early")
    for fault in found.guilty[:10]:
        print(f"  {fault}")
    control = trace(without_syncs, replies)
    print(f"the same without syncs: {len(control.guilty)} of {control.checked} left too early")
    right = found.checked == len(control.guilty) == control.checked == replies
    return 0 if right and not found.guilty else 1


if __name__ == "__main__":
    sys.exit(main())
