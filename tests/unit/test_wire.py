"""Frames survive any cutting of the stream, and no bytes make the decoder raise anything odd."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import PeerError
from services.core.wire import (
    Frame,
    FrameDecoder,
    Hello,
    Role,
    client_proof,
    decode_hello,
    encode_frame,
    frame_bytes_max,
    header_bytes,
    is_proof,
    link_key,
    opening_frame_bytes_max,
    server_proof,
    split_challenge,
)

frames = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=200)),
    max_size=12,
)
hello = Hello(Role.NODE, "node-1", 7, bytes(range(32)), bytes(range(16)), bytes(range(8)))


def encoded(some: list[Frame]) -> bytes:
    return b"".join(encode_frame(*frame) for frame in some)


def fed_in_pieces(data: bytes, cuts: list[int], decoder: FrameDecoder) -> list[Frame]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found: list[Frame] = []
    for start, end in itertools.pairwise(edges):
        found += decoder.feed(data[start:end])
    return found


@given(frames)
def test_what_is_encoded_is_decoded(some: list[Frame]) -> None:
    assert FrameDecoder().feed(encoded(some)) == some


@given(frames)
def test_byte_by_byte_is_as_good_as_whole(some: list[Frame]) -> None:
    decoder = FrameDecoder()
    found = [frame for byte in encoded(some) for frame in decoder.feed(bytes([byte]))]
    assert found == some
    assert decoder.held_bytes == 0


@given(frames, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_cutting_gives_the_same_frames(some: list[Frame], cuts: list[int]) -> None:
    assert fed_in_pieces(encoded(some), cuts, FrameDecoder()) == some


@given(frames, st.binary(min_size=1, max_size=header_bytes - 1))
def test_trailing_bytes_wait_for_more(some: list[Frame], trailing: bytes) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(encoded(some) + trailing) == some
    assert decoder.held_bytes == len(trailing)


@given(st.binary(max_size=400), st.lists(st.integers(0, 10_000), max_size=8))
def test_garbage_is_refused_or_awaited_but_never_crashes(data: bytes, cuts: list[int]) -> None:
    decoder = FrameDecoder(opening_frame_bytes_max)
    try:
        fed_in_pieces(data, cuts, decoder)
    except PeerError:
        return
    assert decoder.held_bytes <= len(data)


@pytest.mark.parametrize("length", [0, 1, 4, frame_bytes_max - 3, 2**31, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_as_soon_as_it_is_read(length: int) -> None:
    head = struct.pack(">IBI", length, 16, 1)
    with pytest.raises(PeerError, match=f"{length} bytes long"):
        FrameDecoder().feed(head)


def test_the_longest_frame_passes_and_one_byte_more_does_not() -> None:
    body = bytes(frame_bytes_max - header_bytes)
    data = encode_frame(16, 1, body)
    decoder = FrameDecoder()
    chunk = 1 << 18
    found = [
        frame
        for start in range(0, len(data), chunk)
        for frame in decoder.feed(data[start : start + chunk])
    ]
    assert found == [(16, 1, body)]
    with pytest.raises(ValueError, match="does not fit"):
        encode_frame(16, 1, body + b"x")


def test_a_stranger_can_make_the_decoder_hold_little() -> None:
    decoder = FrameDecoder(opening_frame_bytes_max)
    with pytest.raises(PeerError):
        decoder.feed(struct.pack(">IBI", opening_frame_bytes_max, 1, 0))


@given(
    st.sampled_from(Role),
    st.text(min_size=1, max_size=60),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=8, max_size=8),
)
def test_a_hello_survives_the_wire(
    role: Role, name: str, epoch: int, nonce: bytes, store_id: bytes, life: bytes
) -> None:
    try:
        one = Hello(role, name, epoch, nonce, store_id, life)
        body = one.encode()
    except (UnicodeEncodeError, ValueError):
        return  # A lone surrogate or a control character cannot be part of an id at all.
    assert decode_hello(body) == one


def test_a_hello_cut_anywhere_or_with_more_behind_is_refused() -> None:
    body = hello.encode()
    for end in range(len(body)):
        with pytest.raises(PeerError):
            decode_hello(body[:end])
    with pytest.raises(PeerError):
        decode_hello(body + b"x")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_hello_with_any_byte_changed_is_another_hello_or_refused(at: int, change: int) -> None:
    body = bytearray(hello.encode())
    body[at % len(body)] ^= change
    with contextlib.suppress(PeerError):
        assert decode_hello(bytes(body)) != hello


@given(st.binary(max_size=120))
def test_no_bytes_make_a_message_of_the_opening_crash(data: bytes) -> None:
    for decode in (decode_hello, split_challenge):
        with contextlib.suppress(PeerError):
            decode(data)


def test_another_protocol_version_is_named() -> None:
    body = bytearray(hello.encode())
    body[4:6] = (9).to_bytes(2, "big")
    with pytest.raises(PeerError, match="speaks link protocol 9, this one 1"):
        decode_hello(bytes(body))


def test_a_hello_that_does_not_fit_its_fields_is_not_sent() -> None:
    with pytest.raises(ValueError, match="is no id: 1 to 255"):
        Hello(Role.NODE, "x" * 256, 0, bytes(32)).encode()
    with pytest.raises(ValueError, match="is no id: 1 to 255"):
        Hello(Role.NODE, "", 0, bytes(32)).encode()
    with pytest.raises(ValueError, match="is no id"):
        Hello(Role.NODE, "\x1b[2J", 0, bytes(32)).encode()
    with pytest.raises(ValueError, match="nonce"):
        Hello(Role.NODE, "n", 0, bytes(31)).encode()
    with pytest.raises(ValueError, match="a life 8"):
        Hello(Role.NODE, "n", 0, bytes(32), life=bytes(7)).encode()


def test_a_proof_holds_for_one_secret_one_side_and_one_pair_of_hellos() -> None:
    key, other_key = link_key("secret"), link_key("other")
    ours, theirs = b"client hello", b"server hello"
    proof = server_proof(key, ours, theirs)
    assert is_proof(proof, server_proof(key, ours, theirs))
    for wrong in (
        server_proof(other_key, ours, theirs),
        server_proof(key, theirs, ours),
        client_proof(key, ours, theirs),
        proof[:-1],
        b"",
    ):
        assert not is_proof(wrong, proof)
