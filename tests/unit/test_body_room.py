"""Large bodies have so much room together, and nobody has all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import RetryLater
from services.runtime.body_room import BodyRoom, room_bytes_default, small_bytes_max

largest_bytes = 16 << 20


def test_what_finds_no_room_is_refused_until_there_is_some() -> None:
    room = BodyRoom(100)
    assert room.take(40, "ada")
    assert not room.take(31, "bob")
    assert room.take(30, "bob")
    room.give_back(40, "ada")
    assert room.take(20, "bob")
    assert (room.taken_bytes, room.refused) == (50, 1)


def test_one_alone_can_have_a_share_in_whatever_pieces() -> None:
    room = BodyRoom(100, 30)
    assert all(room.take(10, "ada") for _ in range(3))
    assert not room.take(1, "ada")
    assert room.take(30, "bob")
    assert room.take(20, "eve")
    assert not room.take(1, "eve")


def test_three_who_take_all_they_can_leave_room_for_the_largest_body() -> None:
    room = BodyRoom()
    for number in range(3):
        while room.take(64 << 10, number):
            pass
    assert room.take(largest_bytes, "another")


def test_however_many_take_all_they_can_the_largest_value_finds_room() -> None:
    room = BodyRoom()
    for number in range(6):
        while room.take(64 << 10, number):
            pass
    assert room.take(1 << 20, "another")
    assert room.taken_bytes < room_bytes_default


def test_what_nobody_owns_shares_one_share() -> None:
    room = BodyRoom(100)
    assert room.take(50)
    assert not room.take(1)
    assert room.take(25, "ada")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), max_size=60))
def test_nobody_holds_more_than_is_free_and_all_of_it_comes_back(
    asked: list[tuple[int, int]],
) -> None:
    room = BodyRoom(200)
    taken: list[tuple[int, int]] = []
    for whose, size in asked:
        if room.take(size, whose):
            taken.append((whose, size))
            mine = sum(size for owner, size in taken if owner == whose)
            assert mine <= 200 - room.taken_bytes
        assert room.taken_bytes == sum(size for _, size in taken)
    for whose, size in taken:
        room.give_back(size, whose)
    assert room.taken_bytes == 0
    assert not room._by_owner


def test_room_is_given_back_whatever_happens_and_nobody_is_remembered() -> None:
    room = BodyRoom(1 << 20)

    def work(whose: int, last_bytes: int) -> None:
        with room.held(whose) as held:
            held.grow(100 << 10)
            held.grow(last_bytes)
            raise ZeroDivisionError

    for number in range(100):
        with pytest.raises(ZeroDivisionError):
            work(number, 200 << 10)
        with pytest.raises(RetryLater, match="overloaded"):
            work(number, 600 << 10)
    assert room.taken_bytes == 0
    assert not room._by_owner


def test_a_body_takes_room_as_it_arrives_and_a_small_one_none() -> None:
    room = BodyRoom()
    with room.held("ada") as held:
        held.grow(small_bytes_max)
        assert room.taken_bytes == 0
        held.grow(small_bytes_max + 1)
        assert room.taken_bytes == small_bytes_max + 1
        held.grow(1 << 20)
        assert room.taken_bytes == 1 << 20
