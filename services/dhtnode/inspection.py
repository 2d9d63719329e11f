"""Looking into a node's directory without being the node: what is there, and is it sound.

Read-only, and without the directory's lock: a node may run on it meanwhile. What it is just
appending is seen or not, and may look like a torn write; what was durable before is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from services.core.errors import FatalError, PeerError
from services.core.messages import Reader
from services.core.record import version
from services.dhtnode.chunk import decode_chunk, entry_head
from services.dhtnode.directory import read_store, snapshots_in, store_name
from services.dhtnode.frame import PURGED, RECORD, SLOT
from services.dhtnode.purging import Purged, decode_purged
from services.dhtnode.snapshot import SnapshotReader
from services.runtime.disk import Disk
from services.runtime.disk_failure import disk_failure
from services.runtime.kept_map import KeptMap
from services.runtime.log.frame import (
    Corrupt,
    Foreign,
    FrameReader,
    bad_frame,
    check_head,
    decode_segment,
    find_later_batch,
    head_bytes,
    read,
    read_tail,
    seed_of,
    segment_head_bytes,
)
from services.runtime.log.segments import segments_in

# What a record costs in the log besides its key and itself.
change_overhead_bytes: Final = head_bytes + 2


@dataclass(slots=True)
class Survey:
    """One file of a node. Live is what nothing newer replaces; a snapshot drops the rest."""

    path: Path
    kind: Literal["segment", "spare segment", "snapshot"]
    size_bytes: int
    first: int = 0
    last: int = 0
    frames: int = 0
    records: int = 0
    used_bytes: int = 0
    live_bytes: int = 0
    torn_bytes: int = 0
    damage: str | None = None

    @property
    def dead_bytes(self) -> int:
        return self.used_bytes - self.live_bytes


@dataclass(slots=True)
class Inspection:
    """Everything found, in the order in which recovery would read it."""

    node_id: str
    store_id: bytes
    files: list[Survey] = field(default_factory=list)
    keys: int = 0
    map_damage: str | None = None

    @property
    def damage(self) -> list[str]:
        """Each thing that is wrong. A torn write at the end of the log is not."""
        found = [survey.damage for survey in self.files if survey.damage is not None]
        return found if self.map_damage is None else [*found, self.map_damage]


class Inspector:
    """Reads every file once and checks every checksum.

    for share in inspector.steps():
        … show the share that is done, 0 to 1 …
    inspector.found
    """

    def __init__(self, disk: Disk, directory: Path) -> None:
        node_id, store_id = read_store(disk, directory)
        self.found = Inspection(node_id, store_id)
        self._disk = disk
        self._segments = segments_in(disk, directory)
        self._snapshots = snapshots_in(disk, directory)
        self._seed = seed_of(store_id)
        self._map = KeptMap(disk, directory)
        self._newest_segment: Path | None = None
        # By key, its newest version so far, where that lies, and what it takes there.
        self._newest: dict[bytes, tuple[bytes, Survey, int]] = {}

    def steps(self) -> Iterator[float]:
        surveys = [*self._plan()]
        used = [survey.path for survey in surveys if survey.kind == "segment"]
        self._newest_segment = used[-1] if used else None
        total = sum(survey.size_bytes for survey in surveys) or 1
        done = 0
        for survey in surveys:
            self.found.files.append(survey)
            walk = self._snapshot if survey.kind == "snapshot" else self._segment
            try:
                for read_bytes in walk(survey):
                    done += read_bytes
                    yield min(done / total, 1.0)
            except Corrupt as corrupt:
                survey.damage = str(corrupt)
        self.found.keys = len(self._newest)
        try:
            self._map.read()
        except PeerError as error:
            self.found.map_damage = f"{error}; the next start puts it aside, a replicator tells it"

    def _plan(self) -> Iterator[Survey]:
        """Oldest first, each snapshot before the segments that are replayed over it."""
        snapshots = sorted(self._snapshots)
        for _, path in self._segments:
            with self._disk.open(path, "read") as file:
                size, head = file.size(), decode_segment(read(file, 0, segment_head_bytes))
            first = head.first if head is not None else 0
            while snapshots and head is not None and snapshots[0][0] <= first:
                yield self._snapshot_survey(*snapshots.pop(0))
            yield Survey(path, "segment" if head else "spare segment", size, first, first - 1)
        for first, path in snapshots:
            yield self._snapshot_survey(first, path)

    def _snapshot_survey(self, first: int, path: Path) -> Survey:
        with self._disk.open(path, "read") as file:
            return Survey(path, "snapshot", file.size(), first)

    def _snapshot(self, survey: Survey) -> Iterator[int]:
        reader = SnapshotReader(self._disk, survey.path, self.found.store_id, survey.first)
        survey.used_bytes = survey.size_bytes
        yield from reader.walk(lambda kind, body: self._visit(survey, kind, body))
        survey.last = reader.end.through if reader.end is not None else 0

    def _segment(self, survey: Survey) -> Iterator[int]:
        with self._disk.open(survey.path, "read") as file:
            if survey.kind == "spare segment":
                yield from self._empty(survey)
                return
            head = decode_segment(read(file, 0, segment_head_bytes))
            if head is None:
                raise Corrupt(survey.path, 0, "it is not a segment")
            if head.store_id != self.found.store_id:
                raise Foreign(survey.path, head.store_id, self.found.store_id)
            frames = FrameReader(file, self._seed, head.first, offset=segment_head_bytes)
            yield from frames.walk(lambda kind, body: self._visit(survey, kind, body))
            survey.last, survey.used_bytes = frames.sequence - 1, frames.offset
            tail = b""
            for piece in read_tail(file, frames.offset):
                if piece is not None:
                    tail = piece
            later = find_later_batch(tail, self._seed, frames.sequence)
            # Only the last segment may end in a write that a crash has torn.
            if tail and (later is not None or survey.path != self._newest_segment):
                raise bad_frame(survey.path, frames.offset, frames.sequence, later)
            survey.torn_bytes = len(tail)

    def _empty(self, survey: Survey) -> Iterator[int]:
        """A segment without a head was prepared and not used yet, or its first write was torn. As
        in recovery, what was committed later, here or in a later segment, makes it damage."""
        tail = b""
        with self._disk.open(survey.path, "read") as file:
            for piece in read_tail(file, 0):
                if piece is not None:
                    tail = piece
        used = [other for other in self.found.files if other.kind == "segment"]
        expected = used[-1].last + 1 if used else 1
        newest = self._newest_segment
        overtaken = newest is not None and survey.path.name < newest.name
        later = find_later_batch(tail, self._seed, expected)
        if tail and (overtaken or later is not None):
            raise bad_frame(survey.path, 0, expected, later)
        check_head(survey.path, tail)
        survey.torn_bytes = len(tail)
        yield survey.size_bytes

    def _visit(self, survey: Survey, kind: int, body: bytes) -> None:
        survey.frames += 1
        if kind == RECORD:
            reader = Reader(body)
            key = reader.take(reader.u16())
            self._record(survey, key, reader.rest(), change_overhead_bytes)
        elif kind == SLOT:
            _, keys, records = decode_chunk(body)
            for key, record in zip(keys, records, strict=True):
                self._record(survey, key, record, entry_head.size)
        else:
            survey.live_bytes += head_bytes + len(body)
            if kind == PURGED:
                self._purge(decode_purged(body))

    def _purge(self, purged: Purged) -> None:
        """Cells that were collected are live no more, wherever they lie."""
        for key, cell, _ in purged.gone:
            known = self._newest.get(key)
            if cell and known is not None and known[0] <= purged.session:
                known[1].live_bytes -= known[2]
                del self._newest[key]

    def _record(self, survey: Survey, key: bytes, record: bytes, overhead: int) -> None:
        survey.records += 1
        size = overhead + len(key) + len(record)
        known = self._newest.get(key)
        if known is not None:
            if known[0] > version(record):
                return
            known[1].live_bytes -= known[2]
        survey.live_bytes += size
        self._newest[key] = (version(record), survey, size)


def inspect(disk: Disk, directory: Path) -> Inspector:
    """FatalError if the directory is not that of a node."""
    try:
        if not disk.exists(directory / store_name):
            raise FatalError(
                f"{directory} is not the directory of a node (it holds no file {store_name!r}); "
                "nodes have theirs in DATA_DIR/nodes"
            )
        return Inspector(disk, directory)
    except OSError as error:
        raise disk_failure(error) from error
