"""Cursors are good for the listing that gave them, and for nothing else."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FixRequest
from services.core.key import key_bytes_max
from services.gateway.cursors import Cursors, cursor_chars_max

cursors = Cursors("kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe")
query = (b"list", b"namespace", b"prefix", b"/")
parts = st.lists(st.binary(max_size=20), min_size=1, max_size=4)


@given(parts, st.binary(max_size=key_bytes_max + 1))
def test_a_place_comes_back_as_it_was(asked: list[bytes], place: bytes) -> None:
    cursor = cursors.make(asked, place)
    assert cursors.read(asked, cursor) == place
    assert len(cursor) <= cursor_chars_max
    assert cursor.isascii()
    assert not set(cursor) & set("+/=&?# %")


def test_without_a_cursor_a_listing_begins_at_the_beginning() -> None:
    assert cursors.read(query, "") == b""


@given(parts, parts, st.binary(max_size=20))
def test_no_other_query_takes_it(asked: list[bytes], other: list[bytes], place: bytes) -> None:
    if asked != other:
        with pytest.raises(FixRequest, match="invalid_cursor"):
            cursors.read(other, cursors.make(asked, place))


def test_nothing_can_move_from_one_part_into_the_next() -> None:
    cursor = cursors.make((b"ab", b"c"), b"d")
    for other in ((b"a", b"bc"), (b"ab", b"cd"), (b"abc",), (b"ab", b"c", b"")):
        with pytest.raises(FixRequest):
            cursors.read(other, cursor)


def test_a_cursor_that_was_changed_anywhere_is_refused() -> None:
    cursor = cursors.make(query, b"place")
    raw = bytearray(base64.urlsafe_b64decode(cursor + "=="[: -len(cursor) % 4]))
    for place in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[place >> 3] ^= 1 << (place & 7)
        forged = base64.urlsafe_b64encode(changed).decode().rstrip("=")
        with pytest.raises(FixRequest):
            cursors.read(query, forged)
    for size in range(1, len(cursor)):
        with pytest.raises(FixRequest):
            cursors.read(query, cursor[:size])


@given(st.text(min_size=1, max_size=200))
def test_no_text_makes_it_fail(text: str) -> None:
    with pytest.raises(FixRequest, match="invalid_cursor"):
        cursors.read(query, text)


def test_every_gateway_takes_the_cursors_of_every_other_of_its_cluster_alone() -> None:
    draw = random.Random(1)
    place = draw.randbytes(30)
    assert (
        Cursors("kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe").read(query, cursors.make(query, place)) == place
    )
    with pytest.raises(FixRequest):
        Cursors("another secret").read(query, cursors.make(query, place))
