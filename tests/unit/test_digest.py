from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.digest import (
    Digests,
    differing,
    digest_key,
    encode_leaves,
    leaves_bytes,
    summary_of,
)
from services.core.errors import PeerError
from services.core.ring import leaf_bits, leaf_count, place_of, slot_count, slot_of

secret = digest_key("what the tests know")
nothing = bytes(leaves_bytes)

storage_keys = st.binary(min_size=1, max_size=40)
versions = st.binary(min_size=12, max_size=12)
changes = st.lists(st.tuples(storage_keys, versions), max_size=30)


def plain_leaves(slot: int, held: dict[bytes, bytes]) -> list[int]:
    leaves = [0] * leaf_count
    for key, version in held.items():
        if slot_of(key) == slot:
            digest = blake2b(
                key + version, digest_size=8, salt=secret[:16], person=secret[16:]
            ).digest()
            leaves[place_of(key) & leaf_count - 1] ^= int.from_bytes(digest, "big")
    return leaves


@given(storage_keys)
def test_a_place_is_a_slot_and_a_leaf_of_it(key: bytes) -> None:
    place = place_of(key)
    assert 0 <= place < slot_count * leaf_count
    assert place >> leaf_bits == slot_of(key)


def test_keys_of_one_slot_spread_over_its_leaves() -> None:
    places = {place_of(b"%d" % number) for number in range(200_000)}
    # As many as a fair throw of that many into 2**20 places hits, to within a percent.
    assert 181_000 < len(places) < 184_000


def test_the_key_of_digests_is_not_the_secret_of_the_cluster() -> None:
    assert digest_key("one") != digest_key("two")
    assert len(digest_key("")) == 32
    with pytest.raises(ValueError, match="32 bytes"):
        Digests(b"what an operator typed")


@given(changes)
def test_leaves_that_follow_each_change_are_those_of_what_is_held(
    changed: list[tuple[bytes, bytes]],
) -> None:
    digests = Digests(secret)
    held: dict[bytes, bytes] = {}
    for number, (key, version) in enumerate(changed):
        old = held.get(key)
        if old is None:
            digests.toggle(place_of(key), key, version)
        elif number % 3:
            digests.replace(place_of(key), key, old, version)
        else:
            digests.toggle(place_of(key), key, old)
            digests.toggle(place_of(key), key, version)
        held[key] = version
    for slot in {slot_of(key) for key, _ in changed} | {0}:
        assert digests.leaves(slot) == encode_leaves(plain_leaves(slot, held))
    for key, version in held.items():
        digests.toggle(place_of(key), key, version)
    assert all(digests.leaves(slot_of(key)) == nothing for key in held)


@pytest.mark.parametrize("slot", [0, 1, 8_191, slot_count - 1])
def test_a_slot_does_not_reach_into_its_neighbours(slot: int) -> None:
    digests = Digests(secret)
    for leaf in range(leaf_count):
        digests.toggle(slot << leaf_bits | leaf, b"%d" % leaf, bytes(12))
    filled = [number for number in range(slot_count) if digests.leaves(number) != nothing]
    assert filled == [slot]
    assert differing(digests.leaves(slot), nothing) == list(range(leaf_count))
    digests.clear(slot)
    assert digests.leaves(slot) == nothing


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=leaf_count, max_size=leaf_count))
def test_leaves_travel_as_big_endian_numbers(leaves: list[int]) -> None:
    travelled = encode_leaves(leaves)
    assert travelled == b"".join(leaf.to_bytes(8, "big") for leaf in leaves)
    digests = Digests(secret)
    digests.load(5, travelled)
    assert digests.leaves(5) == travelled
    assert digests.summary(5) == summary_of(travelled)


@given(st.sets(st.integers(0, leaf_count - 1)), st.integers(0, 63))
def test_exactly_the_differing_leaves_are_named(which: set[int], bit: int) -> None:
    ours = [number * 0x9E3779B97F4A7C15 % (1 << 64) for number in range(leaf_count)]
    theirs = [leaf ^ (1 << bit if number in which else 0) for number, leaf in enumerate(ours)]
    one, other = encode_leaves(ours), encode_leaves(theirs)
    assert differing(one, other) == differing(other, one) == sorted(which)
    assert (summary_of(one) == summary_of(other)) == (not which)


@pytest.mark.parametrize("size", [0, 1, leaves_bytes - 1, leaves_bytes + 1, 2 * leaves_bytes])
def test_leaves_of_any_other_length_are_the_peers_fault(size: int) -> None:
    digests = Digests(secret)
    with pytest.raises(PeerError):
        digests.load(0, bytes(size))
    with pytest.raises(PeerError):
        differing(bytes(size), b"x" * leaves_bytes)
    assert digests.leaves(0) == nothing


def test_a_version_does_not_run_into_its_key() -> None:
    digests = Digests(secret)
    assert digests.hash_of(b"ab", b"c" * 12) != digests.hash_of(b"abc", b"c" * 12)
    assert digests.hash_of(b"ab", b"c" * 12) != Digests(digest_key("")).hash_of(b"ab", b"c" * 12)
