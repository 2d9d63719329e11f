"""What replicas are compared by, as bytes: each decoder takes what its encoder makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import comparison as c
from services.core.errors import PeerError
from services.core.messages import page_bytes_max
from services.core.ring import leaf_count, slot_count

one = b"\1" * 12
keys = st.binary(max_size=60)


@given(st.lists(st.tuples(st.binary(min_size=8, max_size=8), st.integers(0, (1 << 32) - 1))))
def test_digests_come_out_as_they_went_in(digests: list[tuple[bytes, int]]) -> None:
    made = [c.SlotDigest(*digest) for digest in digests]
    assert c.decode_digests(c.encode_digests(made)) == made


@given(st.integers(0, slot_count - 1), st.integers(1, c.digests_max))
def test_slots_that_are_asked_for_come_out_or_are_past_the_end(first: int, count: int) -> None:
    body = c.encode_digests_asked(first, count)
    if first + count > slot_count:
        with pytest.raises(PeerError):
            c.decode_digests_asked(body)
    else:
        assert c.decode_digests_asked(body) == range(first, first + count)


@given(st.integers(0, slot_count - 1), st.sets(st.integers(0, leaf_count - 1)), keys)
def test_leaves_that_are_asked_for_come_out_as_they_went_in(
    slot: int, leaves: set[int], after: bytes
) -> None:
    body = c.encode_versions_asked(slot, leaves, after)
    assert c.decode_versions_asked(body) == (slot, sorted(leaves), after)
    assert c.decode_leaves_asked(c.encode_leaves_asked(slot)) == slot


@given(st.dictionaries(keys, st.binary(min_size=12, max_size=12)))
def test_versions_come_out_as_they_went_in(found: dict[bytes, bytes]) -> None:
    items = sorted(found.items())
    assert c.decode_versions(c.encode_versions(items)) == (False, items)


def test_a_page_of_versions_ends_and_says_that_there_are_more() -> None:
    found = [(b"%05d" % number, one) for number in range(c.versions_max + 1)]
    assert c.decode_versions(c.encode_versions(found)) == (True, found[:-1])
    assert c.decode_versions(c.encode_versions(found[:-1])) == (False, found[:-1])


def test_a_page_of_long_keys_is_bounded_in_bytes() -> None:
    found = [(b"%04d" % number + bytes(1_285), one) for number in range(1_000)]
    body = c.encode_versions(found)
    more, shown = c.decode_versions(body)
    assert more
    assert shown == found[: len(shown)]
    assert page_bytes_max < len(body) < page_bytes_max + 10_000


whole: list[tuple[Callable[[bytes], object], bytes]] = [
    (c.decode_digests_asked, c.encode_digests_asked(1, 2)),
    (c.decode_leaves_asked, c.encode_leaves_asked(1)),
    (c.decode_versions_asked, c.encode_versions_asked(1, [0, 63], b"after")),
    (c.decode_digests, c.encode_digests([c.SlotDigest(bytes(8), 7), c.SlotDigest(bytes(8), 8)])),
    (c.decode_versions, c.encode_versions([(b"a", one), (b"b", one)])),
]


@pytest.mark.parametrize(("decode", "body"), whole)
def test_a_message_that_is_cut_is_refused_or_another_one(
    decode: Callable[[bytes], object], body: bytes
) -> None:
    meant = decode(body)
    for end in range(len(body)):
        try:
            assert decode(body[:end]) != meant
        except PeerError:
            continue


@pytest.mark.parametrize("decode", [decode for decode, _ in whole])
@given(data=st.binary(max_size=60))
def test_garbage_is_refused_or_understood_and_nothing_else(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    try:
        decode(data)
    except PeerError:
        return


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (c.decode_digests_asked, c.encode_digests_asked(0, 0)),
        (c.decode_digests_asked, c.encode_digests_asked(0, c.digests_max + 1)),
        (c.decode_leaves_asked, c.encode_leaves_asked(slot_count)),
        (c.decode_versions_asked, c.encode_versions_asked(slot_count, [0], b"")),
        (c.decode_versions, c.encode_versions([(b"b", one), (b"a", one)])),
        (c.decode_versions, b"\1"),
    ],
)
def test_what_no_peer_of_ours_would_send_is_refused(
    decode: Callable[[bytes], object], body: bytes
) -> None:
    with pytest.raises(PeerError):
        decode(body)
