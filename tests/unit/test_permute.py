from __future__ import annotations

import hashlib
import os
import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.permute import Permutation, digits, number_spelled, radix, sizes

material = hashlib.sha256(b"of these tests").digest()
permutations = {size: Permutation(material, size) for size in sizes}
# The full figure takes a quarter of a minute.
many = 10_000_000 if os.environ.get("HYPOTHESIS_PROFILE") == "proof" else 300_000
buckets = 64


@pytest.mark.parametrize("size", [2, 3])
def test_every_key_of_a_small_space_is_made_exactly_once(size: int) -> None:
    small = Permutation(material, size)
    keys = small.keys(0, radix**size)
    assert len(set(keys)) == radix**size
    assert {len(key) for key in keys} == {size}
    for index in random.Random(1).sample(range(radix**size), 2_000):
        assert small.index(keys[index]) == index


@given(data=st.data(), size=st.sampled_from(sizes))
def test_a_key_leads_back_to_its_index(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, radix**size - 1))
    key = permutations[size].key(index)
    assert len(key) == size
    assert permutations[size].index(key) == index


@given(data=st.data(), size=st.sampled_from(sizes))
def test_every_word_of_the_size_is_a_key(data: st.DataObject, size: int) -> None:
    key = data.draw(st.text(digits, min_size=size, max_size=size)).encode()
    assert permutations[size].key(permutations[size].index(key)) == key


@given(data=st.data(), size=st.sampled_from(sizes))
def test_a_batch_is_what_its_indexes_are_one_by_one(data: st.DataObject, size: int) -> None:
    count = data.draw(st.integers(0, 20))
    first = data.draw(st.integers(0, radix**size - count))
    one_by_one = [permutations[size].key(first + number) for number in range(count)]
    assert permutations[size].keys(first, count) == one_by_one


@pytest.mark.parametrize("size", sizes)
def test_the_ends_of_a_space_are_in_it_and_nothing_beyond(size: int) -> None:
    permutation = permutations[size]
    assert permutation.index(permutation.key(0)) == 0
    assert permutation.index(permutation.key(permutation.space - 1)) == permutation.space - 1
    for first, count in ((-1, 1), (permutation.space, 1), (permutation.space - 1, 2), (0, -1)):
        with pytest.raises(ValueError, match="not within"):
            permutation.keys(first, count)


def test_consecutive_counters_never_become_one_key() -> None:
    numbers = [array("Q") for _ in range(buckets)]
    permutation = permutations[7]
    for first in range(0, many, 10_000):
        for key in permutation.keys(first, 10_000):
            number = number_spelled(key)
            numbers[number % buckets].append(number)
    assert sum(map(len, numbers)) == many
    assert sum(len(set(bucket)) for bucket in numbers) == many


@pytest.mark.parametrize("size", [6, 7, 8, 16])
@pytest.mark.parametrize("start", [0, 10**9])
def test_neighbours_begin_alike_no_more_often_than_chance(size: int, start: int) -> None:
    keys = permutations[size].keys(start, 200_000)
    for distance in (1, 2, 62, 3_844):
        pairs = zip(keys, keys[distance:], strict=False)
        alike = sum(key[:2] == other[:2] for key, other in pairs)
        # 52 are expected; by chance there are more than 90 once in ten million times.
        assert alike <= 90, distance
        pairs = zip(keys, keys[distance:], strict=False)
        assert sum(key[-2:] == other[-2:] for key, other in pairs) <= 90, distance


@pytest.mark.parametrize("size", [6, 7, 8, 16])
def test_every_digit_stands_everywhere_about_as_often(size: int) -> None:
    keys = permutations[size].keys(0, 62_000)
    for place in range(size):
        seen = [0] * 128
        for key in keys:
            seen[key[place]] += 1
        counts = [seen[ord(digit)] for digit in digits]
        # Of 62 digits with 1,000 expected each; chi-squared is beyond 130 once in a million times.
        assert sum((count - 1_000) ** 2 / 1_000 for count in counts) < 130, place


def test_another_material_or_another_size_gives_other_keys() -> None:
    other = Permutation(hashlib.sha256(b"another").digest(), 7)
    ours = permutations[7].keys(0, 1_000)
    assert not set(ours) & set(other.keys(0, 1_000))
    assert [key[:6] for key in ours] != permutations[6].keys(0, 1_000)


def test_keys_are_the_same_ones_for_ever() -> None:
    """A change here makes every key that was given out a key that may come again."""
    known = Permutation(bytes(range(32)), 7)
    assert known.keys(0, 3) == Permutation(bytes(range(32)), 7).keys(0, 3)
    told = hashlib.sha256(b"".join(Permutation(bytes(range(32)), n).key(12_345) for n in sizes))
    assert told.hexdigest()[:16] == "ffacfd954f8c8092"


@pytest.mark.parametrize("key", [b"abc", b"abcdefgh", b"", b"abc-efg", b"abcdef\xff", b"abcdef "])
def test_what_is_no_key_is_told(key: bytes) -> None:
    with pytest.raises(ValueError, match=r"characters|is not one of"):
        permutations[7].index(key)


@pytest.mark.parametrize(("length", "size"), [(31, 7), (33, 7), (32, 1), (32, 17)])
def test_material_and_sizes_are_looked_at(length: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"key material|keys have"):
        Permutation(bytes(length), size)


@given(number=st.integers(0, radix**7 - 1))
def test_a_number_is_spelled_as_people_would(number: int) -> None:
    text = ""
    rest = number
    for _ in range(7):
        rest, digit = divmod(rest, radix)
        text = digits[digit] + text
    assert number_spelled(text.encode()) == number
