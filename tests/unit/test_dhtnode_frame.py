"""Frames read back as they were written, or not at all."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import PeerError
from services.dhtnode.frame import (
    END,
    RECORD,
    SLOT,
    SnapshotEnd,
    decode_end,
    decode_start,
    encode_end,
    encode_start,
    records_in,
    start_bytes,
)
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk, FakeFile
from services.runtime.log.frame import (
    Corrupt,
    FrameReader,
    SegmentHead,
    body_bytes_max,
    decode_segment,
    encode,
    encode_segment,
    find_later_batch,
    head_bytes,
    piece_bytes,
    read_tail,
    seed_of,
    segment_head_bytes,
)

store_id = bytes(range(16))
seed = seed_of(store_id)
place = Path("/frames")


def file_of(content: bytes) -> tuple[FakeDisk, FakeFile]:
    disk = FakeDisk(random.Random(1), FakeClock(Timeline()))
    file = disk.open(place, "create")
    file.write_at(0, content)
    return disk, file


def frames_of(content: bytes, sequence: int = 1) -> tuple[FrameReader, list[tuple[int, bytes]]]:
    _, file = file_of(content)
    reader = FrameReader(file, seed, sequence, offset=0)
    seen: list[tuple[int, bytes]] = []
    assert sum(reader.walk(lambda *frame: seen.append(frame))) <= len(content)
    return reader, seen


def encoded(bodies: list[bytes], first: int = 1) -> bytes:
    return b"".join(
        encode(seed, sequence, first, RECORD, body) for sequence, body in enumerate(bodies, first)
    )


def test_a_frame_is_laid_out_as_documented() -> None:
    frame = encode(0, 5, 3, RECORD, b"123456789")
    assert (
        frame[4:] == bytes.fromhex("00000009 0000000000000005 0000000000000003 02") + b"123456789"
    )
    assert head_bytes == 25
    # The check value of CRC-32C, and that a frame's covers all behind it and starts from the seed.
    assert seed_of(b"123456789") == 0xE3069283
    assert frame[:4] == seed_of(frame[4:]).to_bytes(4, "big")
    assert encode(seed_of(b"12"), 5, 3, RECORD, b"")[:4] == seed_of(
        b"12" + encode(0, 5, 3, RECORD, b"")[4:]
    ).to_bytes(4, "big")


@given(bodies=st.lists(st.binary(max_size=60), max_size=20), zeros=st.integers(0, 60))
def test_frames_read_back_up_to_the_zeros_behind_them(bodies: list[bytes], zeros: int) -> None:
    content = encoded(bodies)
    reader, seen = frames_of(content + bytes(zeros))
    assert [body for _, body in seen] == bodies
    assert (reader.offset, reader.sequence) == (len(content), 1 + len(bodies))


@pytest.mark.parametrize("size", [100, 60_000, piece_bytes - 25, piece_bytes, 1_100_000])
def test_frames_that_lie_across_the_pieces_of_a_file_read_back(size: int) -> None:
    draw = random.Random(size)
    bodies = [draw.randbytes(size + number % 7) for number in range(3 + 600_000 // size)]
    reader, seen = frames_of(encoded(bodies))
    assert [body for _, body in seen] == bodies
    assert reader.offset == len(encoded(bodies))


@given(
    bodies=st.lists(st.binary(max_size=30), min_size=1, max_size=8),
    at=st.integers(0, 10_000),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_hides_its_frame_and_those_behind_it(
    bodies: list[bytes], at: int, bit: int
) -> None:
    content = bytearray(encoded(bodies))
    at %= len(content)
    content[at] ^= 1 << bit
    intact = 0
    while len(encoded(bodies[: intact + 1])) <= at:
        intact += 1
    reader, seen = frames_of(bytes(content))
    assert [body for _, body in seen] == bodies[:intact]
    assert reader.offset == len(encoded(bodies[:intact]))


def test_a_frame_of_another_store_or_out_of_sequence_is_none() -> None:
    assert frames_of(encode(seed_of(bytes(16)), 1, 1, RECORD, b"x"))[1] == []
    assert frames_of(encode(seed, 2, 1, RECORD, b"x"))[1] == []
    assert frames_of(encode(seed, 2, 1, RECORD, b"x"), sequence=2)[1] == [(RECORD, b"x")]


def test_a_length_that_nothing_has_is_bad_without_reading_on() -> None:
    content = encode(seed, 1, 1, RECORD, bytes(body_bytes_max + 1))
    disk, file = file_of(content)
    for _ in FrameReader(file, seed, 1, offset=0).walk(lambda *_: None):
        pass
    assert disk.counters.reads == 1
    whole = encode(seed, 1, 1, RECORD, bytes(body_bytes_max))
    assert len(frames_of(whole)[1]) == 1


def test_the_reader_knows_where_the_last_batch_begins() -> None:
    content = encoded([b"a", b"b"]) + encoded([b"c", b"d"], first=3)
    reader, _ = frames_of(content)
    assert (reader.batch, reader.batch_offset) == (3, 2 * (head_bytes + 1))


def test_frames_below_the_wanted_one_are_checked_and_not_visited() -> None:
    content = encoded([b"a", b"b", b"c"])
    seen: list[bytes] = []
    reader = FrameReader(file_of(content)[1], seed, 1, offset=0, visit_from=3)
    for _ in reader.walk(lambda _, body: seen.append(body)):
        pass
    assert seen == [b"c"]
    assert reader.sequence == 4


def test_a_body_that_makes_no_sense_is_damage_at_its_frame() -> None:
    def refuse(_: int, body: bytes) -> None:
        if body == b"nonsense":
            raise PeerError("a record is at least 23 bytes, not 8")

    reader = FrameReader(file_of(encoded([b"sense", b"nonsense"]))[1], seed, 1, offset=0)
    with pytest.raises(
        Corrupt, match="/frames is damaged at byte 30: a record is at least"
    ) as told:
        list(reader.walk(refuse))
    assert (told.value.file, told.value.offset) == ("/frames", head_bytes + 5)


def test_what_the_device_cannot_read_is_damage_and_other_errors_are_not() -> None:
    disk, file = file_of(encoded([b"a"]))
    disk.fail("read", errno.EIO)
    with pytest.raises(Corrupt, match="cannot read"):
        list(FrameReader(file, seed, 1, offset=0).walk(lambda *_: None))
    disk.fail("read", errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        list(FrameReader(file, seed, 1, offset=0).walk(lambda *_: None))


def test_the_first_frames_of_files_read_back_and_anything_else_is_none() -> None:
    head = SegmentHead(store_id, 77, 4096)
    segment = encode_segment(head)
    assert len(segment) == segment_head_bytes
    assert decode_segment(segment + b"more") == head
    start = encode_start(store_id, 78)
    assert len(start) == start_bytes
    assert decode_start(start) == (store_id, 78)
    for size in range(len(segment)):
        assert decode_segment(segment[:size]) is None
    for size in range(len(start)):
        assert decode_start(start[:size]) is None
    for at in range(len(segment)):
        flipped = bytearray(segment)
        flipped[at] ^= 4
        assert decode_segment(bytes(flipped)) is None
    assert decode_start(segment) is None
    assert decode_segment(start) is None


def test_the_end_of_a_snapshot_reads_back() -> None:
    end = SnapshotEnd(frames=5, records=1_000, through=99)
    frame = encode_end(seed, 42, end)
    assert frames_of(frame, sequence=5)[1] == [(END, frame[head_bytes:])]
    assert decode_end(frame[head_bytes:]) == end
    with pytest.raises(PeerError, match="24 bytes, not 3"):
        decode_end(b"end")


def test_records_are_counted_in_the_chunks_of_a_snapshot_only() -> None:
    assert records_in(SLOT, bytes.fromhex("3fff 0102") + b"...") == 258
    assert records_in(RECORD, bytes.fromhex("3fff 0102")) == 0


def test_the_tail_of_a_file_comes_without_the_zeros_at_its_end() -> None:
    for content in (b"", bytes(10), b"abc" + bytes(3 * piece_bytes), b"a" + bytes(700_000) + b"b"):
        _, file = file_of(content)
        *pauses, tail = read_tail(file, 0)
        assert tail == content.rstrip(b"\0")
        assert len(pauses) == -(-len(content) // piece_bytes)


def later_batch_anywhere(tail: bytes, sequence: int) -> int | None:
    """The dumb version: write what a frame at each byte would be, and compare."""
    padded = tail + bytes(1_000)
    for start in range(len(tail)):
        length, found, batch = (
            int.from_bytes(padded[start + low : start + high], "big")
            for low, high in ((4, 8), (8, 16), (16, 24))
        )
        whole = padded[start : start + head_bytes + length]
        frame = encode(seed, found, batch, whole[24], whole[head_bytes:])
        if batch > sequence and length < 900 and whole == frame:
            return start
    return None


@given(data=st.data(), sequence=st.sampled_from([1, 7, 255, (1 << 24) - 3, (1 << 24) - 1, 1 << 40]))
def test_a_later_batch_is_found_behind_whatever_is_in_between(
    data: st.DataObject, sequence: int
) -> None:
    pieces = data.draw(
        st.lists(
            st.one_of(
                st.binary(max_size=12),
                st.integers(0, 40).map(bytes),
                st.tuples(st.integers(0, 9), st.integers(0, 9), st.binary(max_size=9)).map(
                    lambda frame: encode(
                        seed,
                        sequence + frame[0] + frame[1],
                        sequence - 1 + frame[0],
                        RECORD,
                        frame[2] + bytes(frame[1]),
                    )
                ),
            ),
            max_size=9,
        )
    )
    # Enough behind it that sequences this far ahead are believed.
    tail = b"".join(pieces) + b"\x01" * 600
    assert find_later_batch(tail, seed, sequence) == later_batch_anywhere(tail, sequence)


def test_a_later_frame_that_ends_in_zeros_is_found_although_they_were_stripped() -> None:
    frame = encode(seed, 3, 3, RECORD, b"abc" + bytes(50))
    assert find_later_batch(b"\xff" * 90 + frame.rstrip(b"\0"), seed, 2) == 90


def test_a_value_that_pretends_to_be_a_later_batch_is_not_believed() -> None:
    forged = encode(0, 3, 3, RECORD, b"x") + encode(seed_of(bytes(16)), 3, 3, RECORD, b"x")
    assert find_later_batch(b"\xff" + forged, seed, 2) is None


def test_megabytes_of_zeros_in_values_do_not_hide_a_later_batch() -> None:
    tail = b"\1" + bytes(2 << 20) + encode(seed, 9, 9, RECORD, b"x")
    assert find_later_batch(tail, seed, 5) == 1 + (2 << 20)
