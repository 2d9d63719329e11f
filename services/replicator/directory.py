"""A replicator's directory: who it is to the clocks of others, and what it still owes to nodes.

    LOCK        held by the process that runs the replicator
    stamper     one line: format, replicator id, stamper, ceiling of its clock, checksum
    map         the newest cluster map, for a start without PostgreSQL
    hints/      writes kept for nodes that are away
    *.tmp       a file in the making, worth nothing after a restart

Of all this, only hints are worth saving. A replicator that finds no `stamper` is given a new one,
and no promise is broken: versions of two stampers are never the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

import google_crc32c

from services.core.cluster import node_id_pattern
from services.core.errors import FatalError
from services.core.hlc import stamper_max, time_ms_max
from services.runtime.disk import Disk, Done, Lock

stamper_name: Final = "stamper"
hints_name: Final = "hints"
# An id, two numbers and what stands around them. Anything longer is not ours.
stamper_file_bytes_max: Final = 256

_line: Final = re.compile(rb"(ydht-stamper ([0-9]{1,9}) ([ -~]+)) ([0-9a-f]{8})\n")
_fields: Final = re.compile(r"([^ ]+) ([0-9]{1,10}) ([0-9]{1,15})")
_format: Final = 1


@dataclass(slots=True, frozen=True)
class Kept:
    """What a clock needs to go on in another life: every stamp lies below the ceiling."""

    stamper: int
    ceiling_ms: int


class ReplicatorDirectory:
    """An open directory. Nobody else has it until `close`, or until this process ends."""

    def __init__(
        self, disk: Disk, path: Path, lock: Lock, replicator_id: str, found: Kept | None
    ) -> None:
        self.disk = disk
        self.path = path
        self.replicator_id = replicator_id
        # What an earlier run has left; None in a new directory, which wants a new stamper.
        self.found = found
        self._lock = lock

    @classmethod
    def open(cls, disk: Disk, path: Path, replicator_id: str) -> Self:
        """Take the directory, making it if it is not there.

        `FatalError` if another process has it (`DirectoryInUse`), if it belongs to another
        replicator, or if its stamper cannot be read. The names found are durable.
        """
        if not node_id_pattern.fullmatch(replicator_id):
            raise ValueError(f"{replicator_id!r} is no replicator id")
        disk.make_directory(path)
        lock = disk.lock(path)
        try:
            # Whoever named what is here may have been killed before the names were durable.
            disk.sync_directory(path)
            found = read_stamper(disk, path, replicator_id)
        except BaseException:
            lock.release()
            raise
        return cls(disk, path, lock, replicator_id, found)

    @property
    def hints_path(self) -> Path:
        return self.path / hints_name

    def keep_soon(self, kept: Kept, done: Done) -> None:
        """Durably replace what is kept; `done` gets the error, or None.

        Calls take effect in their order. After an error either the old or the new is there.
        """
        line = _encode(self.replicator_id, kept)
        self.disk.run_soon(partial(self.disk.replace, self.path / stamper_name, line), done)

    def close(self) -> None:
        self._lock.release()


def read_stamper(disk: Disk, directory: Path, replicator_id: str) -> Kept | None:
    """What is kept in a directory of this replicator; None if there is nothing.

    `FatalError` if it is another's or cannot be read: to guess a ceiling is to stamp twice.
    """
    path = directory / stamper_name
    if not disk.exists(path):
        return None
    with disk.open(path, "read") as file:
        content = file.read_at(0, stamper_file_bytes_max + 1)
    match = _line.fullmatch(content)
    if match is None or int(match[4], 16) != google_crc32c.value(match[1]):
        raise _unreadable(path, "is damaged")
    fields = _fields.fullmatch(match[3].decode("ascii"))
    if int(match[2]) != _format or fields is None:
        raise _unreadable(path, "has a format that this version does not know")
    owner, kept = fields[1], Kept(int(fields[2]), int(fields[3]))
    if owner != replicator_id:
        raise FatalError(
            f"{directory} belongs to replicator {owner!r}, and this is {replicator_id!r}: set "
            f"REPLICATOR_ID to {owner!r}, or give this replicator a directory of its own"
        )
    if not (1 <= kept.stamper <= stamper_max and kept.ceiling_ms <= time_ms_max):
        raise _unreadable(path, "holds numbers that no replicator has written")
    return kept


def _encode(replicator_id: str, kept: Kept) -> bytes:
    line = f"ydht-stamper {_format} {replicator_id} {kept.stamper} {kept.ceiling_ms}".encode()
    return b"%s %08x\n" % (line, google_crc32c.value(line))


def _unreadable(path: Path, why: str) -> FatalError:
    return FatalError(
        f"{path} {why}: move that file away and start again; this replicator then gets a new "
        "stamper, which is safe, and keeps its hints"
    )
