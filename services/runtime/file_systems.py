"""Which file systems heed a write that asks to be synced.

A write may carry its sync (RWF_DSYNC), and the kernel leaves it to the file system to see to that.
Some do not, and say nothing: the write succeeds, and is not durable. Such is 9p, by which virtual
machines share directories of their hosts, and FUSE where it passes the cache by. All of them know
fdatasync. So those are listed here that are known to heed it, and the others get both calls.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

heeding = frozenset(
    {b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"f2fs", b"bcachefs", b"zfs", b"tmpfs"}
    # It asks the one below, which then is one of these nearly always.
    | {b"overlay"}
)
mounts = Path("/proc/self/mountinfo")

_escape = re.compile(rb"\\([0-7]{3})")


def heeds_synced_writes(path: Path) -> bool:
    """Whether what holds this file is known to sync a write that asks for it."""
    return file_system_of(path) in heeding


def file_system_of(path: Path) -> bytes | None:
    """The name of the type of the file system that holds this file; None if nothing tells."""
    try:
        table = mounts.read_bytes()
    except OSError:
        return None
    place = os.path.realpath(os.fsencode(path))
    found, longest = None, b""
    for line in table.splitlines():
        mount, _, device = line.partition(b" - ")
        fields, of_device = mount.split(b" "), device.split(b" ")
        if len(fields) < 5:
            continue
        point = _escape.sub(_unescaped, fields[4])
        # Of two on one place the later one hides the other.
        if len(point) >= len(longest) and _lies_in(place, point):
            found, longest = of_device[0], point
    return found


def _lies_in(place: bytes, point: bytes) -> bool:
    return place == point or place.startswith(point.rstrip(b"/") + b"/")


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 8) & 0xFF])
