"""How far PostgreSQL has confirmed its counters to have come, as whoever has this directory knows.

Counters only grow, unless the database itself is set back: a backup was restored, or a replica
took over that had not heard of everything. Then what was given out would be reserved once more, and
nothing in that database could tell. So each keygen remembers the end of the last range of each size
that it was granted, and the number of the last claim: in memory, and in a file of its directory,
written before anything of a range is given out. A counter that stands before such a mark was set
back (watch_store.py).

    {"installation": "…", "marks": {"0": "3", "7": "12345"}}

by counter: a size, or 0 for claims. Marks mean something with one key material alone, which
`installation` is the fingerprint of. A write costs a range a sync, some milliseconds at worst, and
a key nothing; ranges that are granted meanwhile share the next one.

Fails open: where the file cannot be written any more, keys are given out all the same, for that
takes nothing but this keygen's memory of its own past, and `/ready` says so.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from services.core.errors import FatalError
from services.core.permute import sizes

# Claims are counted beside the sizes of keys, of which none is 0.
claims_counter: Final = 0
_fingerprint_bytes: Final = 16


class MarksFile(Protocol):
    """A directory (home.py), or what stands for it."""

    def read_marks(self) -> bytes:
        """Nothing if there are none."""
        ...

    async def write_marks(self, text: bytes) -> str | None:
        """Durably; why it could not be done, if so."""
        ...

    @property
    def marks_path(self) -> str: ...


@dataclass(slots=True, frozen=True)
class SetBack:
    """A counter that stood at `found` where `known` is known to have been reached."""

    counter: int
    found: int
    known: int

    def __str__(self) -> str:
        what = "claims" if self.counter == claims_counter else f"IDs of {self.counter} characters"
        return f"{what}: at {self.found}, and {self.known} were given out"


def behind(counters: Mapping[int, int], known: Mapping[int, int]) -> list[SetBack]:
    """Those that stand before what is known of them, and was known before they were read."""
    return [
        SetBack(counter, found, known[counter])
        for counter, found in counters.items()
        if found < known.get(counter, 0)
    ]


class _Kept(msgspec.Struct):
    installation: str
    marks: dict[str, str]


class Marks:
    """`open` before anything is asked or raised."""

    def __init__(self, file: MarksFile | None = None) -> None:
        """Without a file: for as long as the process lives."""
        self._file = file
        self._marks: dict[int, int] = {}
        self._installation = ""
        self._is_open = False
        self._writing = asyncio.Lock()
        # Marks that were raised, and how many of these the file has.
        self._raised = self._written = 0
        self.trouble: str | None = None

    def open(self, material: bytes) -> None:
        """Read what is known of the installation that has this key material. FatalError if the file
        is of another one, or is damaged."""
        if self._is_open:
            return
        digest = hashlib.blake2b(material, digest_size=_fingerprint_bytes, person=b"ydht marks")
        self._installation = digest.hexdigest()
        if self._file is not None and (text := self._file.read_marks()):
            self._marks = self._understood(text, self._file.marks_path)
        self._is_open = True

    def of(self, counter: int) -> int:
        """What the counter has reached at least."""
        return self._marks.get(counter, 0)

    def all(self) -> dict[int, int]:
        """What each counter has reached at least, as known now."""
        return dict(self._marks)

    async def reach(self, reached: Mapping[int, int]) -> None:
        """Counters were confirmed to stand here; returns once that is durable."""
        for counter, value in reached.items():
            if value > self.of(counter):
                self._marks[counter] = value
                self._raised += 1
        raised = self._raised
        async with self._writing:
            # Whoever had the turn before may have written it too.
            if self._file is None or self._written >= raised:
                return
            raised = self._raised
            self.trouble = await self._file.write_marks(self._text())
            if self.trouble is None:
                self._written = raised

    def _text(self) -> bytes:
        marks = {str(counter): str(value) for counter, value in sorted(self._marks.items())}
        return msgspec.json.encode(_Kept(self._installation, marks)) + b"\n"

    def _understood(self, text: bytes, path: str) -> dict[int, int]:
        try:
            kept = msgspec.json.decode(text, type=_Kept)
            marks = {int(counter): int(value) for counter, value in kept.marks.items()}
        except (ValueError, msgspec.DecodeError) as error:
            raise FatalError(
                f"{path} is damaged ({error}): it says how far IDs have come. If the database was "
                "never set back to an earlier state, remove the file, and start again"
            ) from error
        if kept.installation != self._installation:
            raise FatalError(
                f"{path} is of another installation than the database: IDs of the two may be the "
                "same. If a backup was restored from before the first ID, restore the row "
                "'keygen permutation' of the table platform; if the database is a new one, remove "
                "the file"
            )
        known = {claims_counter, *sizes}
        return {counter: value for counter, value in marks.items() if counter in known}
