"""Bytes that are no requests, or hardly: drawn from a seed, for a server to survive.

Each `Script` is what one connection sends. Of some it is known how many answers they may get at
most; of the others no more than there are request lines, and one refusal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

head_bytes_max = 16 * 1024


@dataclass(frozen=True, slots=True)
class Script:
    kind: str
    pieces: tuple[bytes, ...]
    answers_max: int
    # Leave with a reset instead of ending the own side and reading to the end.
    resets: bool = False


class Scripts:
    """Scripts by number, the same ones for the same seed."""

    def __init__(self, seed: int, lines: Sequence[str] = ()) -> None:
        """`lines` are header lines that every good request has, such as a credential."""
        self.seed = seed
        shared = "".join(f"{line}\r\n" for line in ("Host: fuzz", *lines))
        self._shared = shared.encode("latin-1")

    def script(self, number: int) -> Script:
        draw = random.Random(f"{self.seed}:{number}")
        kind = draw.choice(kinds)
        sent, answers_max = kind(self, draw)
        if answers_max is None:
            answers_max = sent.count(b"HTTP/") + 1
        pieces = _cut(sent, draw)
        return Script(kind.__name__, pieces, answers_max, resets=draw.random() < 0.05)

    def good(self, draw: random.Random, *lines: bytes) -> bytes:
        """A request with nothing wrong about it."""
        method, path = draw.choice(good_lines)
        body = draw.randbytes(draw.choice((1, 10, 100, 2000)))
        start = b"%b %b HTTP/1.1\r\n" % (method, path) + self._shared
        start += b"".join(line + b"\r\n" for line in lines)
        if method not in (b"PUT", b"POST"):
            return start + b"\r\n"
        if draw.random() < 0.3:
            size = draw.randint(1, len(body))
            chunks = [body[at : at + size] for at in range(0, len(body), size)][:50]
            framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
            return start + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"
        return start + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def with_lines(self, draw: random.Random, lines: bytes, body: bytes) -> bytes:
        method, path = draw.choice(good_lines)
        return b"%b %b HTTP/1.1\r\n" % (method, path) + self._shared + lines + b"\r\n" + body


good_lines = (
    (b"GET", b"/v1/kv/fuzz"),
    (b"GET", b"/v1/kv/fuzz?a=b"),
    (b"PUT", b"/v1/kv/fuzz"),
    (b"PUT", b"/v1/kv/fuzz?ttl=1h"),
    (b"POST", b"/v1/kv/fuzz/incr?by=1"),
    (b"DELETE", b"/v1/kv/fuzz"),
    (b"GET", b"/health"),
    (b"GET", b"/v1/kv?prefix=f"),
    (b"POST", b"/app/fuzz"),
    (b"POST", b"/v1/batch"),
)
# What a request that was smuggled past the framing would look like.
hidden = b"GET /v1/kv/hidden HTTP/1.1\r\nHost: fuzz\r\n\r\n"

Drawn = tuple[bytes, int | None]


def contradicting_framing(scripts: Scripts, draw: random.Random) -> Drawn:
    lines = draw.choice(
        (
            b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
            b"Content-Length: 4\r\nContent-Length: 5\r\n",
            b"Content-Length: 0\r\nContent-Length: 44\r\n",
            b"Content-Length: 4, 4\r\n",
            b"Content-Length: -4\r\n",
            b"Content-Length: +4\r\n",
            b"Content-Length: 0x4\r\n",
            b"Content-Length: 4 4\r\n",
            b"Content-Length: 4e0\r\n",
            b"Content-Length:\r\n",
            b"Content-Length: " + b"9" * draw.randint(20, 200) + b"\r\n",
            b"Transfer-Encoding: gzip\r\n",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"Transfer-Encoding: chunked, chunked\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            b"Transfer-Encoding: xchunked\r\n",
            b"Transfer-Encoding: \x0bchunked\r\n",
            b"Transfer-Encoding : chunked\r\n",
            b"Content-Length : 4\r\n",
            b"X: y\r\n Content-Length: 4\r\n",
            b"Host: other\r\n",
        )
    )
    return scripts.with_lines(draw, lines, b"0\r\n\r\n" + hidden), 1


def bad_chunks(scripts: Scripts, draw: random.Random) -> Drawn:
    chunks = draw.choice(
        (
            b"x\r\n",
            b"-1\r\n",
            b"0x4\r\nabcd\r\n",
            b"4 \r\nabcd\r\n0\r\n\r\n",
            b"4\nabcd\n0\n\n",
            b"4\r\nabcdefgh\r\n0\r\n\r\n",
            b"f" * 17 + b"\r\n",
            b"4;" + b"e" * draw.randint(1, 40_000) + b"\r\nabcd\r\n",
            b"\r\n4\r\nabcd\r\n",
            b"0\r\n" + b"T: t\r\n" * draw.randint(2800, 9000),
            b"0\r\nno trailer\r\n\r\n",
            b"1\r\na\r\n" * draw.randint(1, 5000) + b"q\r\n",
        )
    )
    return scripts.with_lines(draw, b"Transfer-Encoding: chunked\r\n", chunks + hidden), 2


def bad_line(scripts: Scripts, draw: random.Random) -> Drawn:
    method = draw.choice(
        (b"GET", b"get", b"", b"G\x00T", b"GETT", b"PRI", b"CONNECT", b"\xff", b"*")
    )
    target = draw.choice(
        (
            b"/v1/kv/a",
            b"",
            b"*",
            b"v1",
            b"/a b",
            b"/\x00",
            b"/\xff",
            b"http://",
            b"//",
            b"x:1",
            b"?",
        )
    )
    version = draw.choice(
        (b"HTTP/1.1", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/11", b"http/1.1", b"HTTP", b"")
    )
    space, end = draw.choice((b" ", b"  ", b"\t", b"")), draw.choice((b"\r\n", b"\n", b"\r", b""))
    return space.join((method, target, version)) + end + scripts._shared + b"\r\n", 1


def bad_field(scripts: Scripts, draw: random.Random) -> Drawn:
    byte = bytes([draw.randrange(256)])
    line = (
        draw.choice((b"X%b: y\r\n", b"%bX: y\r\n", b"X: %by\r\n", b"X:%b\r\n", b"X%b\r\n")) % byte
    )
    return scripts.with_lines(draw, line, b""), 1


def huge_head(scripts: Scripts, draw: random.Random) -> Drawn:
    size = draw.choice((head_bytes_max - 100, head_bytes_max + 1, 40_000, 200_000))
    if draw.random() < 0.3:
        return b"GET /v1/kv/" + b"a" * size + b" HTTP/1.1\r\n" + scripts._shared + b"\r\n", 1
    end = draw.choice((b"", b"\r\n"))
    return scripts.with_lines(draw, b"X: " + b"x" * size + end, b""), 1


def flood_of_fields(scripts: Scripts, draw: random.Random) -> Drawn:
    line = draw.choice((b"a:\r\n", b"X-Metadata-%d: y\r\n" % draw.randrange(99), b"Cookie: c\r\n"))
    return scripts.with_lines(draw, line * draw.randint(100, 20_000), b""), 1


def truncated(scripts: Scripts, draw: random.Random) -> Drawn:
    whole = scripts.good(draw)
    return whole[: draw.randrange(len(whole))], 1


def garbage_behind(scripts: Scripts, draw: random.Random) -> Drawn:
    good = [scripts.good(draw) for _ in range(draw.randint(1, 5))]
    garbage = draw.choice(
        (draw.randbytes(draw.randint(1, 300)), b"\x16\x03\x01\x02\x00", b"\r\r\n")
    )
    return b"".join(good) + garbage + scripts.good(draw), len(good) + 2


def flipped_bits(scripts: Scripts, draw: random.Random) -> Drawn:
    sent = bytearray(b"".join(scripts.good(draw) for _ in range(draw.randint(1, 4))))
    for _ in range(draw.randint(1, 8)):
        sent[draw.randrange(min(len(sent), 400))] ^= 1 << draw.randrange(8)
    return bytes(sent), None


def random_bytes(_: Scripts, draw: random.Random) -> Drawn:
    return draw.randbytes(draw.choice((1, 10, 100, 5000, 100_000))), 1


def spliced(scripts: Scripts, draw: random.Random) -> Drawn:
    parts = []
    for _ in range(draw.randint(2, 6)):
        whole = scripts.good(draw)
        start = draw.choice((0, draw.randrange(len(whole))))
        parts.append(whole[start : draw.randint(start, len(whole))])
    return b"".join(parts), None


def strange_target(scripts: Scripts, draw: random.Random) -> Drawn:
    key = draw.choice(
        (
            b"%",
            b"%zz",
            b"%ff%fe",
            b"%00",
            b"%c3%28",
            b"a" * 1025,
            b"%61" * 1025,
            b"..%2f..%2f",
            b"?" * 50,
            b"#",
            b"a?ttl=-1&ttl=x&%",
            b"".join(b"%%%02x" % draw.randrange(256) for _ in range(draw.randint(1, 300))),
            bytes(draw.randrange(0x21, 0x7F) for _ in range(draw.randint(1, 60))),
        )
    )
    method = draw.choice((b"GET", b"PUT", b"DELETE", b"PATCH", b"POST", b"OPTIONS", b"TRACE"))
    line = b"%b /v1/kv/%b HTTP/1.1\r\n" % (method, key)
    return line + scripts._shared + b"\r\n" + scripts.good(draw), 2


def offered_upgrade(scripts: Scripts, draw: random.Random) -> Drawn:
    offer = draw.choice((b"h2c", b"websocket", b"TLS/1.0", b""))
    lines = b"Connection: Upgrade\r\nUpgrade: " + offer + b"\r\n"
    body = draw.choice((b"", hidden))
    if body:
        lines += b"Content-Length: %d\r\n" % len(body)
    return scripts.with_lines(draw, lines, body), 1


def large_body(scripts: Scripts, draw: random.Random) -> Drawn:
    size = 17 * 1024 * 1024
    sent = draw.randbytes(draw.choice((10, 70_000, 1_200_000)))
    if draw.random() < 0.5:
        return scripts.with_lines(draw, b"Content-Length: %d\r\n" % size, sent), 1
    chunks = b"%x\r\n%b\r\n" % (len(sent), sent)
    return scripts.with_lines(draw, b"Transfer-Encoding: chunked\r\n", chunks), 1


kinds: tuple[Callable[[Scripts, random.Random], Drawn], ...] = (
    contradicting_framing,
    contradicting_framing,
    bad_chunks,
    bad_chunks,
    bad_line,
    bad_line,
    bad_field,
    huge_head,
    flood_of_fields,
    truncated,
    truncated,
    garbage_behind,
    garbage_behind,
    flipped_bits,
    flipped_bits,
    flipped_bits,
    random_bytes,
    spliced,
    spliced,
    strange_target,
    offered_upgrade,
    large_body,
)


def _cut(sent: bytes, draw: random.Random) -> tuple[bytes, ...]:
    cuts = sorted(draw.randrange(len(sent) + 1) for _ in range(draw.choice((0, 0, 1, 4))))
    ends = zip([0, *cuts], [*cuts, len(sent)], strict=True)
    return tuple(sent[start:end] for start, end in ends if end > start)
