"""Large bodies have so much room together, and nobody has all of it."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from services.core.errors import RetryLater
from services.runtime.body_room import BodyRoom, room_bytes_default, share_bytes_default


def test_what_finds_no_room_is_refused_until_there_is_some() -> None:
    room = BodyRoom(100, 60)
    with room.of("ada", 60):
        with room.of("bob", 40), pytest.raises(RetryLater, match="overloaded"), room.of("eve", 1):
            raise AssertionError("there is no room")
        with room.of("eve", 40):
            assert room.taken_bytes == 100
    assert (room.taken_bytes, room.refused) == (0, 1)


def test_one_alone_cannot_have_all_of_it() -> None:
    room = BodyRoom(100, 60)
    with room.of("ada", 50), pytest.raises(RetryLater), room.of("ada", 11):
        raise AssertionError("it is more than a share")
    with room.of("ada", 60):
        pass


def test_room_is_given_back_whatever_happens_and_nobody_is_remembered() -> None:
    room = BodyRoom(100, 60)
    for number in range(100):
        with pytest.raises(ZeroDivisionError), room.of(number, 10):
            raise ZeroDivisionError
        with pytest.raises(RetryLater), room.of(number, 61):
            raise AssertionError("it is more than a share")
    assert room.taken_bytes == 0
    assert not room._by_owner


def test_a_few_of_the_largest_bodies_fit_for_one_and_more_for_all() -> None:
    room = BodyRoom()
    largest = 16 << 20
    with ExitStack() as held:
        for number in range(room_bytes_default // largest):
            held.enter_context(room.of(number * largest // share_bytes_default, largest))
        with pytest.raises(RetryLater):
            held.enter_context(room.of("another", largest))
