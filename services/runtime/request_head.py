"""What the head of a request says about the message, judged once it has been parsed.

The parser (llhttp, strict) has refused by then what is malformed as such: bad characters, blanks
before a colon, folded lines, two lengths, a length beside a transfer coding. Here is what it
leaves to a server, by RFC 9110 and 9112: hosts, codings, expectations and forms of targets.
Pure: no connection, no parser.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import Final

from services.core.errors import FixRequest
from services.runtime.exchange import Headers

# A registered name, an IPv4 address or a bracketed literal, and perhaps a port; it may be empty.
_host: Final = re.compile(
    rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*|\[[0-9A-Za-z:.%_~-]+\])(?::[0-9]*)?"
)
# The fields that are looked at here.
_telling: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_absolute: Final = re.compile(rb"https?://", re.IGNORECASE)

# A request line up to the version, for which the parser says exactly what is read here. It takes
# more than this: other methods, repeated blanks, other forms of targets, and fragments,
# which are refused.
request_line: Final = re.compile(
    rb"(GET|PUT|POST|DELETE|PATCH|HEAD) (/[!\"$->@-~]*)(?:\?([!\"$-~]*))?"
)
version_text: Final = b" HTTP/1.1"
# No longer than the header lines of most clients that are programs.
block_bytes_max: Final = 2048


class Head:
    """The header fields of a request and what they mean for its message."""

    __slots__ = (
        "block",
        "chunked",
        "expects",
        "headers",
        "length",
        "method",
        "path",
        "query",
        "sent",
        "tail_bytes",
        "version",
        "whole",
    )

    def __init__(self, sent: list[tuple[bytes, bytes]], version: str) -> None:
        """Raises FixRequest if they contradict each other or ask for what is not to be had."""
        # The fields as they were sent, to compare the next ones with.
        self.sent = sent
        fields = [(name.lower(), value.rstrip(b" \t")) for name, value in sent]
        self.headers = Headers(fields)
        self.version = version
        # Of the body, in bytes; 0 where there is none and where it is chunked.
        self.length = 0
        self.chunked = False
        # Whether the client waits to be told that its body is wanted.
        self.expects = False
        # As it was sent, from the version on, and how long that and the body are: see `keep`.
        self.block = b""
        self.tail_bytes = sys.maxsize
        # The last request that came with it again and had no body, and what its target was: a
        # client may ask for the same thing over and over.
        self.whole = b""
        self.method = self.path = self.query = b""
        hosts = 0
        for name, value in fields:
            if name not in _telling:
                continue
            if name == b"host":
                hosts += 1
                if not _is_host(value):
                    raise _wrong("The Host header is not a host with an optional port")
            elif name == b"content-length":
                self.length = int(value)
            elif name == b"transfer-encoding":
                self._take_coding(value)
            else:
                self._take_expectation(value)
        if version not in ("1.1", "1.0"):
            raise _wrong("This is HTTP/1.1; other versions are not spoken here")
        if hosts > 1 or (not hosts and version == "1.1"):
            raise _wrong(f"There are {hosts} Host headers; send exactly one")

    def _take_coding(self, value: bytes) -> None:
        if value.lower() != b"chunked":
            raise _wrong("Transfer-Encoding: chunked, and nothing else, is understood here")
        if self.version != "1.1":
            # Whatever stands between may have framed it otherwise.
            raise _wrong("Transfer-Encoding does not belong in a request of HTTP/1.0")
        self.chunked = True

    def _take_expectation(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            raise _wrong("Expect: 100-continue, and nothing else, can be met here")
        # A client of HTTP/1.0 does not know what to make of it.
        self.expects = self.version == "1.1"

    def keep(self, message: bytes) -> None:
        """Remember how it was sent, in a message that was nothing but one request with it."""
        line_end = message.find(b"\r\n")
        start = line_end - len(version_text)
        end = message.find(b"\r\n\r\n", line_end) + 4
        plain = not self.chunked and not self.expects and len(message) - end == self.length
        if not plain or start <= 0 or end - start > block_bytes_max:
            return
        if message.startswith(version_text, start):
            self.block = message[start:end]
            self.tail_bytes = len(message) - start

    @property
    def size(self) -> int:
        """Bytes of the whole head, but for method and target, as heads are usually sent."""
        lines = sum(len(name) + len(value) + 4 for name, value in self.headers.fields)
        return len("  HTTP/1.1\r\n\r\n") + lines


@lru_cache(maxsize=256)
def _is_host(value: bytes) -> bool:
    return _host.fullmatch(value) is not None


def read_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a target in origin form or in absolute form; FixRequest for any other."""
    if method == b"CONNECT":
        raise _wrong("This is no proxy: CONNECT has no meaning here")
    if not target.startswith(b"/"):
        if not _absolute.match(target):
            raise _wrong("The target of the request must be a path")
        target = _after_authority(target)
    check_no_fragment(target)
    path, _, query = target.partition(b"?")
    return path, query


def check_no_fragment(target: bytes) -> None:
    """FixRequest for a target with a fragment. They are not sent: what looks like one is a part of
    a key that was not encoded, and without it another key would be read or changed."""
    if b"#" in target:
        raise _wrong("A # in the target of the request has to be written %23")


def _after_authority(target: bytes) -> bytes:
    """What follows the authority of an absolute target; the authority itself is not looked at
    beyond its form, as all hosts are one here."""
    authority = target.partition(b"://")[2]
    end = re.search(rb"[/?#]", authority)
    host, rest = (authority[: end.start()], authority[end.start() :]) if end else (authority, b"")
    if not host or host.startswith(b":") or not _host.fullmatch(host):
        raise _wrong("The target of the request names no host")
    return rest if rest.startswith(b"/") else b"/" + rest


def _wrong(detail: str) -> FixRequest:
    return FixRequest("invalid_header", detail)
