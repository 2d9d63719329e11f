"""API keys: their form, and what they are looked up by."""

from __future__ import annotations

import hashlib
import hmac
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.api_key import (
    displayed,
    key_chars,
    lookup_hash,
    lookup_subkey,
    new_key,
    well_formed,
)
from services.runtime.telemetry import redact

digits = string.digits + string.ascii_uppercase + string.ascii_lowercase
keys = st.integers(0, 62**43 - 1).map(lambda number: new_key(lambda _: number))
# The first, the last and one in between, worked out apart from the code under test.
vectors = [
    (0, "ydht_" + "0" * 43 + "3ugJRp"),
    (62**43 - 1, "ydht_" + "z" * 43 + "3LWaKW"),
    (12345678901234567890, "ydht_" + "0" * 32 + "EhzL6HwZ5ow" + "36x84v"),
]


@given(keys)
def test_a_new_key_is_well_formed_and_of_one_length(key: str) -> None:
    assert well_formed(key)
    assert len(key) == key_chars == 54
    assert key.startswith("ydht_")
    assert set(key[5:]) <= set(digits)


@pytest.mark.parametrize(("number", "key"), vectors)
def test_the_form_of_keys_never_changes(number: int, key: str) -> None:
    assert new_key(lambda _: number) == key
    assert well_formed(key)


@given(st.lists(st.integers(0, 62**43 - 1), min_size=2, max_size=2, unique=True))
def test_two_numbers_never_make_one_key(numbers: list[int]) -> None:
    assert new_key(lambda _: numbers[0]) != new_key(lambda _: numbers[1])


def test_a_key_is_drawn_once_from_all_there_are() -> None:
    asked: list[int] = []
    new_key(lambda below: asked.append(below) or 7)  # type: ignore[func-returns-value]
    assert asked == [62**43]
    assert 62**43 > 2**256


@given(keys, st.data())
def test_one_wrong_character_is_noticed_wherever_it_is(key: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, key_chars - 1))
    wrong = data.draw(st.characters().filter(lambda one: one != key[position]))
    assert not well_formed(key[:position] + wrong + key[position + 1 :])


@given(keys, st.integers(5, key_chars - 2))
def test_two_swapped_neighbours_are_noticed(key: str, at: int) -> None:
    swapped = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    assert well_formed(swapped) == (swapped == key)


@given(keys, st.integers(0, key_chars - 1))
def test_a_key_that_was_cut_or_has_grown_is_none(key: str, length: int) -> None:
    assert not well_formed(key[:length])
    assert not well_formed(key + "0")
    assert not well_formed(key + "\n")
    assert not well_formed(" " + key)


@given(st.text(max_size=80))
def test_any_text_can_be_asked_about(text: str) -> None:
    assert not well_formed(text)
    assert not well_formed("ydht_" + text)
    assert len(lookup_hash(b"k" * 32, text)) == 32


@pytest.mark.parametrize("digit", ["٣", "\uff10", "ß", "\uff21"])
def test_digits_of_other_scripts_are_no_digits(digit: str) -> None:
    assert not well_formed("ydht_" + digit * 49)


def test_hashes_never_change_because_keys_are_found_by_them() -> None:
    key = vectors[0][1]
    pepper = lookup_subkey("a pepper that is made up for this test")
    by_hand = hmac.new(
        b"a pepper that is made up for this test", b"ydht api key", hashlib.sha256
    ).digest()
    assert pepper == by_hand
    expected = hmac.new(by_hand, key.encode(), hashlib.sha256).hexdigest()
    assert lookup_hash(pepper, key).hex() == expected
    assert expected == "a4692d6e11a64f62d45f3e56725d568c0084637081f988e0839ea5d610625ec2"


@given(keys, keys)
def test_hashes_differ_as_keys_and_peppers_do(one: str, other: str) -> None:
    pepper, pepper_too = lookup_subkey("one pepper"), lookup_subkey("another pepper")
    assert (lookup_hash(pepper, one) == lookup_hash(pepper, other)) == (one == other)
    assert lookup_hash(pepper, one) != lookup_hash(pepper_too, one)


@given(keys)
def test_what_is_displayed_tells_three_digits_and_is_no_key(key: str) -> None:
    assert displayed(key) == key[:8]
    assert len(displayed(key)) == 8
    assert not well_formed(displayed(key))


@given(keys)
def test_logs_know_a_key_when_they_see_one(key: str) -> None:
    assert key not in redact(f"what is {key}?")
    assert key[8:] not in redact(f'{{"key":"{key}","name":"robot"}}')


def test_digits_are_drawn_evenly() -> None:
    rng = random.Random(5)
    drawn = "".join(new_key(rng.randrange)[5:48] for _ in range(2_000))
    counts = [drawn.count(digit) for digit in digits]
    expected = len(drawn) / 62
    chi_squared = sum((count - expected) ** 2 / expected for count in counts)
    # 61 degrees of freedom: a fair draw is above this once in a million, and the seed is fixed.
    assert chi_squared < 130
