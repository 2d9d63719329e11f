"""Frames, of which segments of a log are made, and files that go with it.

    frame:    crc32c u32  ·  length u32  ·  sequence u64  ·  batch u64  ·  kind u8  ·  body
    segment:  format u8  ·  store id 16  ·  first sequence u64  ·  bytes of the file u64

Integers are big-endian; `length` is that of the body; a head of zeros is no frame. The checksum
covers everything after itself and starts from a seed made of the store id, which no tenant
knows: a value that was written to look like frames is not mistaken for them, and neither are
those of another store. Only the first frame of a file starts from zero, so that it can be read by
whoever wants to know whose file this is.

In a log, `sequence` counts frames over all segments from 1, and `batch` is the sequence of the
first frame that was committed together with this one. The first frame of a segment has the kind
SEGMENT; all other kinds, and their bodies, are the owner's.

The hot path of writing is `Log.append`, that of reading is `FrameReader.take`: 0.55 us a frame
of 150 bytes besides what the visitor does with it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from google_crc32c import extend

from services.core.errors import FatalError, PeerError
from services.runtime.disk import File

# The kind of the first frame of a segment.
SEGMENT = 1

format_version = 1
store_id_bytes = 16
head_bytes = 25
# The largest record with its key is a little over 1 MiB. Nothing larger has been written, so a
# length above this is damage, known without reading that far.
body_bytes_max = 4 << 20
# One turn of a recovery: large enough for the disk, small enough for the event loop (about 3 ms).
piece_bytes = 256 << 10

Visit = Callable[[int, bytes], None]

_head = Struct(">IIQQB")
pack_rest = Struct(">IQQB").pack
_file_head = Struct(">B16sQQ")
segment_head_bytes = head_bytes + _file_head.size
_zeros = bytes(piece_bytes)


class Corrupt(FatalError):
    """A file of a log, or of a snapshot, holds something else than was written to it."""

    def __init__(self, file: object, offset: int, what: str) -> None:
        super().__init__(
            f"{file} is damaged at byte {offset}: {what}; this node does not start on it: put back "
            "an intact copy of the directory; without one it stays out, and the others go on"
        )
        self.file = str(file)
        self.offset = offset
        self.what = what


class Foreign(Corrupt):
    """A sound file of another store than that which the directory says it is."""

    def __init__(self, file: Path, found: bytes, expected: bytes) -> None:
        what = f"it belongs to the store {found.hex()}"
        super().__init__(file, 0, what)
        self.args = (
            f"{file} belongs to the store {found.hex()}, and {file.with_name('store')} names "
            f"{expected.hex()}: these two do not belong together, so this node does not start; "
            "put back the one that was replaced; without it, it stays out, and the others go on",
        )


def bad_frame(file: Path, offset: int, sequence: int, later: int | None) -> Corrupt:
    """The complaint of a frame that cannot be a torn write: `later` bytes behind it stands one
    that was committed after it, or if None, in a later segment."""
    proof = (
        "a later segment follows"
        if later is None
        else f"a frame that was committed after it is intact at byte {offset + later}"
    )
    return Corrupt(file, offset, f"frame {sequence} is bad, and {proof}")


class SegmentHead(NamedTuple):
    """What the first frame of a segment says."""

    store_id: bytes
    first: int
    size_bytes: int


def seed_of(store_id: bytes) -> int:
    """Where the checksums of a store start from."""
    seed: int = extend(0, store_id)
    return seed


def encode(seed: int, sequence: int, batch: int, kind: int, body: bytes) -> bytes:
    rest = pack_rest(len(body), sequence, batch, kind)
    crc: int = extend(extend(seed, rest), body)
    return crc.to_bytes(4, "big") + rest + body


def encode_segment(head: SegmentHead) -> bytes:
    """The first frame of a segment. It has the sequence of the frame behind it."""
    return encode(0, head.first, head.first, SEGMENT, _file_head.pack(format_version, *head))


def decode_segment(data: bytes) -> SegmentHead | None:
    """What a segment's first bytes say, or None if they are no such frame."""
    body = first_body(data, SEGMENT, _file_head.size)
    if body is None:
        return None
    _, *fields = _file_head.unpack(body)
    return SegmentHead(*fields)


def first_body(data: bytes, kind: int, size: int) -> bytes | None:
    """The body of the frame that a file begins with, if it is of this kind, size and format."""
    if len(data) < head_bytes + size:
        return None
    crc, length, _, _, found = _head.unpack_from(data)
    covered = data[4 : head_bytes + size]
    if length != size or found != kind or extend(0, covered) != crc:
        return None
    body = data[head_bytes : head_bytes + size]
    return body if body[0] == format_version else None


class FrameReader:
    """Takes frames off a file, in order, up to the first that is missing or bad.

    `offset` is where that one begins or would begin, and `sequence` the number it should have.
    `batch` and `batch_offset` tell where the batch of the last good frame begins. Frames below
    `visit_from` are checked and not visited. A visitor that raises `PeerError` says that a frame
    with a good checksum makes no sense; that is damage as well.
    """

    def __init__(
        self, file: File, seed: int, sequence: int, *, offset: int, visit_from: int = 0
    ) -> None:
        self.offset = offset
        self.sequence = sequence
        self.batch = 0
        self.batch_offset = offset
        self._file = file
        self._size = file.size()
        self._seed = seed
        self._visit_from = visit_from
        self._stopped = False
        self._rest = b""

    @property
    def position(self) -> int:
        """Where the next piece of the file is to be read."""
        return self.offset + len(self._rest)

    @property
    def stopped(self) -> bool:
        """Whether something was found that is not the next frame."""
        return self._stopped

    def walk(self, visit: Visit) -> Iterator[int]:
        """Visit the frames. Yields once per piece of the file, with its bytes."""
        while not self._stopped:
            piece = read(self._file, self.position, piece_bytes)
            if not piece:
                return
            self.feed(piece, visit)
            yield len(piece)

    def feed(self, piece: bytes, visit: Visit) -> None:
        """Visit the frames that end in this piece, which was read at `position`."""
        data = self._rest + piece if self._rest else piece
        taken = self.take(data, visit)
        self._rest = data[taken:]
        self.offset += taken

    def take(self, data: bytes, visit: Visit) -> int:
        """Visit the good frames that `data` begins with; returns how many bytes they are."""
        unpack_from, seed, visit_from = _head.unpack_from, self._seed, self._visit_from
        sequence, batch, size = self.sequence, self.batch, len(data)
        position = 0
        try:
            while (body := position + head_bytes) <= size:
                crc, length, found, found_batch, kind = unpack_from(data, position)
                stop = body + length
                if found != sequence or length > body_bytes_max:
                    self._stopped = True
                    break
                if stop > size:
                    break
                if extend(seed, data[position + 4 : stop]) != crc:
                    self._stopped = True
                    break
                if sequence >= visit_from:
                    visit(kind, data[body:stop])
                if found_batch != batch:
                    batch = found_batch
                    self.batch_offset = self.offset + position
                sequence += 1
                position = stop
        except PeerError as error:
            raise Corrupt(self._file.path, self.offset + position, str(error)) from error
        self.sequence, self.batch = sequence, batch
        return position

    def pass_over(self, end: int) -> tuple[int, bytes] | None:
        """Go on behind the frame at which it has stopped, for whoever wants to know what else is
        there: its kind and body, neither of which can be trusted. None, and nothing changes, if
        what stands there has another sequence, or a length that leads beyond `end`."""
        head = read(self._file, self.offset, head_bytes)
        if len(head) < head_bytes:
            return None
        _, length, found, _, kind = _head.unpack(head)
        start = self.offset + head_bytes
        if found != self.sequence or length > body_bytes_max or start + length > end:
            return None
        body = read(self._file, start, length)
        self.offset, self.sequence = start + length, self.sequence + 1
        self._rest, self._stopped = b"", False
        return kind, body


def read(file: File, offset: int, length: int) -> bytes:
    """As `File.read_at`; what the device cannot read is damage like any other."""
    try:
        return file.read_at(offset, length)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Corrupt(file.path, offset, "the device cannot read it") from error


def is_zero(piece: bytes) -> bool:
    """Whether nothing was written here. Comparing is ten times as fast as stripping."""
    return piece == _zeros or not piece.strip(b"\0")


def check_head(file: Path, content: bytes) -> None:
    """`Corrupt` if a segment without a good frame of its own, whose bytes up to the last that is
    not zero these are, cannot have been left like this by a crash."""
    if len(content) > segment_head_bytes and not is_zero(content[:segment_head_bytes]):
        raise Corrupt(file, 0, "its first frame is bad, and what was written with it is there")


def read_tail(file: File, offset: int) -> Iterator[bytes | None]:
    """What stands from `offset` on, without the zeros at the end.

    Yields None once per piece of the file, then the bytes.
    """
    pieces: list[bytes] = []
    used = 0
    while piece := read(file, offset, piece_bytes):
        offset += len(piece)
        if is_zero(piece):
            # A segment is mostly zeros: hold them once.
            pieces.append(_zeros if len(piece) == piece_bytes else piece)
        else:
            pieces.append(piece)
            used = len(pieces)
        yield None
    yield b"".join(pieces[:used]).rstrip(b"\0")


def find_later_batch(tail: bytes, seed: int, sequence: int) -> int | None:
    """Where in `tail` a good frame stands that was committed after the frame `sequence`.

    Any such frame proves that what stood before it was durable once: batches are committed one
    after another. The bad frame's length cannot be trusted, so every byte may begin a frame.
    Takes 1 to 4 s for a whole segment of 64 MiB, and no time for what a crash really leaves.
    """
    # Frames behind have sequences and batches of little more than this one: their upper five
    # bytes can have two values at most, and a regular expression finds these fast.
    last = sequence + len(tail) // head_bytes
    upper = b"|".join({re.escape((number >> 24).to_bytes(5, "big")) for number in (sequence, last)})
    likely = re.compile(b"(?=(?:%b).{3}(?:%b).{3}[^\\0])" % (upper, upper), re.DOTALL)
    for match in likely.finditer(tail, 8):
        start = match.start() - 8
        crc, length, found, batch, _ = _head.unpack_from(tail, start)
        if sequence < batch <= found <= last and length <= body_bytes_max:
            stop = start + head_bytes + length
            # A body that ends in zeros lost them with the zeros behind it.
            covered = tail[start + 4 : stop].ljust(stop - start - 4, b"\0")
            if extend(seed, covered) == crc:
                return start
    return None
