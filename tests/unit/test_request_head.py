"""Heads of requests: what the shortcut of the fast lane reads is what the parser would have."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FixRequest
from services.runtime.request_head import (
    Head,
    block_bytes_max,
    read_target,
    request_line,
)

block = b" HTTP/1.1\r\nHost: x\r\n\r\n"


class Heard:
    """What the parser says of one request."""

    def __init__(self, message: bytes) -> None:
        self.url = b""
        self.complete = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(message)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.complete += 1


def agree(line: bytes) -> bool:
    """Whether the shortcut takes the line; if so, the parser must have taken it alike."""
    found = request_line.fullmatch(line)
    if found is None:
        return False
    heard = Heard(line + block)
    assert heard.complete == 1
    assert heard.fields == [(b"host", b"x")]
    method, path, query = found.groups()
    assert heard.parser.get_method() == method
    assert heard.parser.get_http_version() == "1.1"
    assert heard.parser.should_keep_alive()
    assert not heard.parser.should_upgrade()
    assert read_target(method, heard.url) == (path, query or b"")
    return True


def test_every_byte_at_every_place_of_a_request_line() -> None:
    line = b"GET /v1/kv/a?b=c"
    taken = sum(
        agree(line[:place] + bytes([byte]) + line[place + kept :])
        for place in range(len(line) + 1)
        for byte in range(256)
        for kept in (0, 1)
    )
    assert taken > 1000


@given(st.text(alphabet="GETPUHADLPO /?#%a\t\r\n\x00\x7f:*.\xe9", max_size=30))
def test_any_line_is_read_alike_or_left_to_the_parser(text: str) -> None:
    agree(text.encode("latin-1"))
    agree(b"GET /" + text.encode("latin-1"))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"])
def test_each_common_method_is_taken(method: str) -> None:
    assert agree(f"{method} /v1/kv/a".encode())
    assert not agree(f"{method.lower()} /v1/kv/a".encode())
    assert not agree(f"{method}  /v1/kv/a".encode())
    assert not agree(f"{method}x /v1/kv/a".encode())


def test_a_head_is_kept_only_as_all_that_stood_before_its_body() -> None:
    fields = [(b"host", b"x"), (b"content-length", b"2")]
    sent = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    head = Head(fields, "1.1")
    head.keep(sent + b"ab")
    assert sent.endswith(head.block)
    assert head.block.startswith(b" HTTP/1.1\r\nHost")
    assert head.tail_bytes == len(head.block) + 2
    for other in (b"\r\n" + sent + b"ab", sent + b"a", sent + b"abc", sent.replace(b"1.1", b"1.0")):
        head = Head(fields, "1.1")
        head.keep(other)
        assert not head.block
        assert head.tail_bytes > 1 << 40
    long = b"PUT /a HTTP/1.1\r\nHost: x\r\nA: " + b"a" * block_bytes_max + b"\r\n\r\n"
    head = Head([(b"host", b"x"), (b"a", b"a" * block_bytes_max)], "1.1")
    head.keep(long)
    assert not head.block


@pytest.mark.parametrize("target", [b"/a#b", b"/#", b"/a?b#", b"http://x/a#b", b"http://x#b"])
def test_a_fragment_has_to_be_encoded(target: bytes) -> None:
    assert request_line.fullmatch(b"GET " + target) is None
    with pytest.raises(FixRequest, match="written %23"):
        read_target(b"GET", target)


@pytest.mark.parametrize(
    "host",
    ["", "x", "a.b-c_d~e", "127.0.0.1:8080", "[::1]", "[fe80::1%25eth0]:80", "x:", "%41.example"],
)
def test_what_may_be_a_host(host: str) -> None:
    Head([(b"host", host.encode())], "1.1")


@pytest.mark.parametrize(
    "host", ["a b", "x/y", "x?", "me@x", "x:80:80", "[::1", "::1", "%4", "\xe9", "x:a", "a,b\\"]
)
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(FixRequest, match="Host header"):
        Head([(b"host", host.encode("latin-1"))], "1.1")


def test_an_old_client_needs_no_host_and_frames_no_chunks() -> None:
    assert not Head([], "1.0").chunked
    with pytest.raises(FixRequest, match="0 Host"):
        Head([], "1.1")
    chunked = [(b"transfer-encoding", b"Chunked")]
    assert Head([(b"host", b"x"), *chunked], "1.1").chunked
    with pytest.raises(FixRequest, match=r"HTTP/1\.0"):
        Head(chunked, "1.0")
