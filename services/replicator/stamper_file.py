"""The file in which a replicator keeps who it is to the clocks of others, and its clock's ceiling.

    two copies, 4096 bytes each:  a line  ·  zeros
    the line:                     ydht-stamper 1 replicator-1 7 1767225602000 7bc3b11d
    in words:                     format, replicator id, stamper, ceiling in ms, crc32c of all that

A ceiling is written over the old one, into one copy and then into the other, each synced before
the next. That takes no space once the file is there: on a full disk the clock goes on, and with it
deletes. Whatever cuts it short leaves one copy whole, and a copy that rots later has its like
beside it. Of two whole copies the higher ceiling counts, for it covers the stamps of both. Blank
copies are of a replicator that has no stamper yet.

Not here: file systems that copy on write (btrfs, zfs) want space for every change of a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import google_crc32c

from services.core.errors import FatalError
from services.core.hlc import stamper_max, time_ms_max
from services.runtime import telemetry
from services.runtime.disk import Disk, File

# A page, so that no device writes some of both copies at once.
copy_bytes: Final = 4096
copies: Final = (0, copy_bytes)
file_bytes: Final = 2 * copy_bytes

_copy: Final = re.compile(rb"(ydht-stamper ([0-9]{1,9}) ([ -~]+)) ([0-9a-f]{8})\n\0+")
_fields: Final = re.compile(r"([^ ]+) ([0-9]{1,10}) ([0-9]{1,15})")
_format: Final = 1
_blank: Final = bytes(copy_bytes)


@dataclass(slots=True, frozen=True)
class Kept:
    """What a clock needs to go on in another life: every stamp lies below the ceiling."""

    stamper: int
    ceiling_ms: int


class StamperFile:
    """The open file of one replicator, made if it is not there.

    `FatalError` if it is another replicator's or cannot be read: to guess a ceiling is to stamp
    twice. What is `found` is durable, in both copies; None if nothing was ever kept.
    """

    def __init__(self, disk: Disk, path: Path, replicator_id: str) -> None:
        self.path = path
        self._disk = disk
        self._replicator_id = replicator_id
        if not disk.exists(path):
            disk.replace(path, bytes(file_bytes))
        self._file: File | None = disk.open(path, "write")
        try:
            content = self._file.read_at(0, file_bytes + 1)
            self.found, self._worse = self._judge(content)
            if self.found is not None and content[:copy_bytes] != content[copy_bytes:]:
                self.keep(self.found)
            else:
                # Its last writer may have been killed before it was durable.
                self._file.sync()
        except BaseException:
            self.close()
            raise

    def keep(self, kept: Kept) -> None:
        """Durably keep this instead. Holds the caller: for an errand of the disk.

        After an error either the old or the new is there, and the next call writes all of it
        again.
        """
        line = f"ydht-stamper {_format} {self._replicator_id} {kept.stamper} {kept.ceiling_ms}"
        text = line.encode()
        copy = (b"%s %08x\n" % (text, google_crc32c.value(text))).ljust(copy_bytes, b"\0")
        file, self._file = self._file or self._disk.open(self.path, "write"), None
        try:
            # The worse copy first: until it is whole, nothing may happen to the other one.
            for offset in (self._worse, copy_bytes - self._worse):
                self._worse = offset
                file.write_at(offset, copy)
                file.sync()
        except OSError:
            # A file whose sync has failed once fails for good.
            file.close()
            raise
        self._file = file

    def close(self) -> None:
        """Once the errands of the disk have ended."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _judge(self, content: bytes) -> tuple[Kept | None, int]:
        """What is kept, and where the copy stands that is damaged, blank, or behind."""
        if len(content) != file_bytes:
            raise self._unreadable("is damaged")
        whole: dict[int, Kept] = {}
        damaged = []
        for offset in copies:
            copy = content[offset : offset + copy_bytes]
            match = _copy.fullmatch(copy)
            if match is not None and int(match[4], 16) == google_crc32c.value(match[1]):
                whole[offset] = self._read(int(match[2]), match[3].decode("ascii"))
            elif copy != _blank:
                damaged.append(offset)
        if len(damaged) == len(copies) or len({kept.stamper for kept in whole.values()}) > 1:
            raise self._unreadable("is damaged")
        if damaged:
            telemetry.logger("services.replicator").warning(
                "one of two copies was damaged, or torn by a crash; the other one is used",
                path=str(self.path),
                offset=damaged[0],
            )
        worse = min(copies, key=lambda offset: whole[offset].ceiling_ms if offset in whole else -1)
        return whole.get(copy_bytes - worse), worse

    def _read(self, format_found: int, text: str) -> Kept:
        fields = _fields.fullmatch(text)
        if format_found != _format or fields is None:
            raise self._unreadable("has a format that this version does not know")
        owner, kept = fields[1], Kept(int(fields[2]), int(fields[3]))
        if owner != self._replicator_id:
            raise FatalError(
                f"{self.path.parent} belongs to replicator {owner!r}, and this is "
                f"{self._replicator_id!r}: set REPLICATOR_ID to {owner!r}, or give this replicator "
                "a directory of its own"
            )
        if not (1 <= kept.stamper <= stamper_max and kept.ceiling_ms <= time_ms_max):
            raise self._unreadable("holds numbers that no replicator has written")
        return kept

    def _unreadable(self, why: str) -> FatalError:
        return FatalError(
            f"{self.path} {why}: move that file away and start again; this replicator then gets a "
            "new stamper, which is safe, and keeps its hints"
        )
