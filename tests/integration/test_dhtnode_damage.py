"""Whatever happens to a byte of a node's files, its recovery is exact, or says what is wrong.

The files are checked against a reader of their format that is dumber than the real one. `make
proof` tries every byte; the usual run leaves gaps where the outcome is known to be the same.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from struct import Struct

import pytest

from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.log.frame import Corrupt
from tests.integration.durable_node import DurableNode, path

thorough = os.environ.get("HYPOTHESIS_PROFILE") == "proof"
records = 1_000
flips = 10_000
head = Struct(">IIQQB")
first_frame_bytes = 25 + 33


@dataclass(slots=True, frozen=True)
class Place:
    """Where a frame stands."""

    name: str
    start: int
    stop: int
    batch: int


@dataclass(slots=True)
class Store:
    """The files of a node, what was logged, and where each frame of it is."""

    files: dict[str, bytes]
    frames: list[tuple[int, bytes]]
    places: list[Place]
    states: list[dict[int, int]]

    @property
    def last_batch(self) -> int:
        return self.places[-1].batch

    def segments(self) -> list[str]:
        return [name for name in self.files if name.startswith("log-")]

    def used(self, name: str) -> int:
        return max((place.stop for place in self.places if place.name == name), default=0)

    def recover(self, changed: dict[str, bytes]) -> DurableNode:
        disk = FakeDisk(random.Random(1), FakeClock(Timeline()))
        disk.make_directory(path)
        for name, content in (self.files | changed).items():
            with disk.open(path / name, "create") as file:
                file.write_at(0, content)
        return DurableNode(disk)


@cache
def store(snapshots: int) -> Store:
    """A thousand records in batches of 1 to 20, with snapshots on the way."""
    draw = random.Random(snapshots)
    node = DurableNode().start()
    states = [dict(node.table)]
    frames: list[tuple[int, bytes]] = []
    places: dict[int, Place] = {}
    snapshot_at = {400 + 300 * number for number in range(snapshots)}
    while len(frames) < records:
        for _ in range(min(draw.randint(1, 20), records - len(frames))):
            node.put(len(frames) + 1, filler=draw.randbytes(draw.randrange(4)))
            states.append(dict(node.table))
            frames.append((2, node.log.open.parts[-1]))
            if len(frames) in snapshot_at:
                node.snapshot()
                read_places(node, places)
        node.settle(0.01)
    read_places(node, places)
    assert sorted(places) == list(range(1, records + 1))
    names = [name for name in node.names() if name != "LOCK"]
    files = {name: node.content(name) for name in names}
    return Store(files, frames, [places[number] for number in sorted(places)], states)


def read_places(node: DurableNode, places: dict[int, Place]) -> None:
    """Walk the segments as the format says, without any care."""
    for name in node.names():
        if name.startswith("log-") and any(content := node.content(name)):
            start = first_frame_bytes
            while start + 25 <= len(content) and any(content[start : start + 25]):
                _, length, sequence, batch, _ = head.unpack_from(content, start)
                stop = start + 25 + length
                places[sequence] = Place(name, start, stop, batch)
                start = stop


def recovered(store: Store, changed: dict[str, bytes], name: str, *, at: int) -> str:
    """Recover from changed files; says how it ended, after checking that it is no lie."""
    try:
        node = store.recover(changed)
    except Corrupt as error:
        refused = error
    else:
        return judged(store, node, name, at)
    assert refused.file == str(path / name)
    frame = next((p for p in store.places if p.name == name and p.start <= at < p.stop), None)
    if frame is not None and at < len(changed[name]):
        assert refused.offset == frame.start
    assert f"{path / name} is damaged at byte {refused.offset}" in str(refused)
    return "refused"


def judged(store: Store, node: DurableNode, name: str, at: int) -> str:
    reached = node.found.next_sequence - 1
    assert node.table == store.states[reached]
    assert reached >= store.last_batch - 1, f"{name} at {at}: acknowledged batches are gone"
    if reached < records:
        assert node.found.cut is not None
        assert node.found.cut.path == path / name
        return "cut"
    return "warned" if node.found.warnings else "exact"


def test_a_shortened_file_is_refused_wherever_it_ends() -> None:
    whole = store(0)
    assert len(whole.segments()) > 9
    for name in whole.segments():
        content = whole.files[name]
        for size in range(0, len(content), 1 if thorough else 5):
            outcome = recovered(whole, {name: content[:size]}, name, at=size)
            # The last is a spare one: nothing is missing, whatever its size.
            needed = whole.used(name) or size < first_frame_bytes
            assert outcome == ("refused" if needed else "exact")


def test_a_log_that_ends_at_any_byte_is_recovered_up_to_there() -> None:
    """What a power cut leaves of one that was being written: zeros, and nothing in later files."""
    whole = store(0)
    names = whole.segments()
    count = 0
    for number, name in enumerate(names):
        later = {other: bytes(len(whole.files[other])) for other in names[number + 1 :]}
        before = [place for place in whole.places if place.name < name]
        inside = [place for place in whole.places if place.name == name]
        used = whole.used(name)
        near_the_end = name == whole.places[-1].name
        for end in range(0, used, 1 if thorough or near_the_end else 13):
            count += 1
            content = whole.files[name][:end].ljust(len(whole.files[name]), b"\0")
            node = whole.recover({name: content, **later})
            # A frame that ends in zeros is whole a little before its end.
            kept = [p for p in inside if content[: p.stop] == whole.files[name][: p.stop]]
            assert node.applied == whole.frames[: len(before) + len(kept)]
            begun = content[:first_frame_bytes] == whole.files[name][:first_frame_bytes]
            good = max((p.stop for p in kept), default=first_frame_bytes) if begun else 0
            torn = content[good:].rstrip(b"\0")
            assert (node.found.cut is not None) == bool(torn)
            if node.found.cut is not None:
                assert node.found.cut.bytes == len(torn)
                assert node.found.cut.path == path / name
    assert count > 3_000


def test_a_hole_in_the_middle_of_the_log_is_refused() -> None:
    """One file is zeros from some byte on, and a later one goes on as if nothing were missing."""
    whole = store(0)
    last = whole.places[-1].name
    outcomes = set()
    for name in whole.segments():
        used, size = whole.used(name), len(whole.files[name])
        if not used or name == last:
            continue
        for end in range(0, used - 1, 1 if thorough else 13):
            content = whole.files[name][:end].ljust(size, b"\0")
            # Zeros that were there before are no damage: it begins at the first other byte.
            at = size - len(whole.files[name][end:].lstrip(b"\0"))
            if at < used:
                outcomes.add(recovered(whole, {name: content}, name, at=at))
    assert outcomes == {"refused"}


@pytest.mark.parametrize("snapshots", [0, 2])
def test_no_flipped_bit_goes_unnoticed(snapshots: int) -> None:
    whole = store(snapshots)
    draw = random.Random(17)
    names = [name for name in whole.files if name != "store"]
    outcomes = Counter(
        flipped(whole, name := draw.choice(names), draw.randrange(len(whole.files[name])), draw)
        for _ in range(flips // 2)
    )
    assert outcomes["refused"] > 500
    assert outcomes["warned"] > 100
    # Of the first snapshot and the log between the two, nothing is needed.
    assert (outcomes["exact"] > 100) == bool(snapshots)


@pytest.mark.parametrize("snapshots", [0, 2])
def test_damage_in_the_last_batch_is_cut_and_reported(snapshots: int) -> None:
    whole = store(snapshots)
    draw = random.Random(18)
    last = whole.places[-1]
    start = next(place.start for place in whole.places if place.batch == last.batch)
    outcomes = Counter(
        flipped(whole, last.name, at, draw) for at in range(start, last.stop) for _ in range(3)
    )
    assert outcomes.keys() == {"cut"}


def flipped(store: Store, name: str, at: int, draw: random.Random) -> str:
    content = bytearray(store.files[name])
    content[at] ^= 1 << draw.randrange(8)
    return recovered(store, {name: bytes(content)}, name, at=at)
