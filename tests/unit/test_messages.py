"""What nodes are asked survives the wire, and no bytes make a decoder raise anything odd."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import PeerError
from services.core.key import namespace_prefix
from services.core.messages import (
    AHEAD,
    NEWER,
    Reader,
    decode_get_many,
    decode_records,
    decode_registered,
    decode_state,
    decode_statuses,
    decode_write_many,
    encode_get_many,
    encode_records,
    encode_registered,
    encode_state,
    encode_statuses,
    encode_write_many,
    epoch_of,
    items_max,
    many_bytes_max,
)
from services.core.wire import OK

keys = st.binary(min_size=1, max_size=40)
records = st.binary(max_size=80)
namespace = namespace_prefix(7, b"default")

decoders: list[Callable[[bytes], object]] = [
    decode_get_many,
    decode_records,
    decode_statuses,
    decode_write_many,
    decode_registered,
    decode_state,
]


@given(st.integers(0, 256), st.binary(max_size=50), st.booleans())
def test_what_nodes_say_of_themselves_and_hear_survives(
    missing: int, data: bytes, catching_up: bool
) -> None:
    assert decode_registered(encode_registered(missing, data)) == (missing, data)
    assert decode_state(encode_state(catching_up=catching_up)) is catching_up


@given(st.lists(keys, max_size=20))
def test_keys_survive(some: list[bytes]) -> None:
    assert decode_get_many(encode_get_many(some)) == some


@given(st.lists(records, max_size=20))
def test_records_survive(some: list[bytes]) -> None:
    assert decode_records(encode_records(some)) == some


@given(st.integers(0, 2**64 - 1), st.lists(st.tuples(keys, records), max_size=20))
def test_writes_survive(epoch: int, items: list[tuple[bytes, bytes]]) -> None:
    assert decode_write_many(encode_write_many(epoch, items)) == (epoch, items)


@given(st.lists(st.tuples(st.sampled_from([OK, NEWER, AHEAD]), st.binary(max_size=255))))
def test_statuses_survive(some: list[tuple[int, bytes]]) -> None:
    assert decode_statuses(encode_statuses(some)) == some


@given(st.binary(max_size=200))
def test_no_bytes_make_a_decoder_crash(body: bytes) -> None:
    for decode in decoders:
        with contextlib.suppress(PeerError):
            decode(body)


@given(st.lists(st.tuples(keys, records), min_size=1, max_size=4), st.data())
def test_a_message_that_is_cut_or_has_more_behind_is_refused(
    items: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    body = encode_write_many(3, items)
    end = data.draw(st.integers(0, len(body) - 1))
    for wrong in (body[:end], body + b"x"):
        with pytest.raises(PeerError):
            decode_write_many(wrong)


def test_records_that_do_not_fit_one_answer_are_marked_and_the_rest_arrives() -> None:
    large = bytes(1 << 20)
    answer = encode_records([b"a", *[large] * 40, b"z"])
    assert len(answer) <= many_bytes_max
    found = decode_records(answer)
    assert len(found) == 42
    assert (found[0], found[-1]) == (b"a", b"z")
    assert found[1] == large
    assert found[40] is None


@given(st.binary(max_size=20))
def test_an_epoch_to_use_is_read_whatever_the_bytes(body: bytes) -> None:
    assert epoch_of(body) == (int.from_bytes(body, "big") if len(body) == 8 else 0)


def test_too_many_items_are_refused() -> None:
    with pytest.raises(PeerError, match=f"at most {items_max}"):
        decode_get_many(encode_get_many([b"k"] * (items_max + 1)))


def test_a_reader_stops_at_the_end() -> None:
    reader = Reader(b"\x40\x00ab")
    with pytest.raises(PeerError, match="slot 16384; there are 16384"):
        reader.slot()
    assert reader.take(1) == b"a"
    with pytest.raises(PeerError, match="ends inside of a field"):
        reader.u16()
    assert reader.rest() == b"b"
    reader.end()
