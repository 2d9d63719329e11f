"""The memory of another process, to flip bits in: what a broken module does to a node."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_mapping = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r\w)")


def rot(pid: int, content: bytes, byte: int, bit: int = 0) -> int:
    """Flip a bit wherever the process has these bytes in writable memory; in how many places. As
    its own parent, or as root, one may."""
    found = 0
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for start, piece in _pieces(pid, memory.fileno()):
            position = piece.find(content)
            while position >= 0:
                at = start + position + byte
                os.pwrite(memory.fileno(), bytes((content[byte] ^ 1 << bit,)), at)
                found += 1
                position = piece.find(content, position + 1)
    return found


def _pieces(pid: int, descriptor: int) -> Iterator[tuple[int, bytes]]:
    """The writable mappings of a process."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = _mapping.match(line)
        if match is None or match[3] != "rw":
            continue
        start, end = int(match[1], 16), int(match[2], 16)
        try:
            yield start, os.pread(descriptor, end - start, start)
        except OSError:
            # Some are of devices, and nobody can read them.
            continue
