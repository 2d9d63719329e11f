"""The messages of collection as bytes: each decoder takes what its encoder makes, however cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import sessions as s
from services.core.errors import PeerError
from services.core.hlc import version_zero
from services.core.messages import items_max, many_bytes_max, page_bytes_max
from services.core.ring import slot_count

one = b"\1" * 12
two = b"\2" * 12
epochs = st.integers(0, (1 << 64) - 1)
slots = st.integers(0, slot_count - 1)
versions = st.binary(min_size=12, max_size=12)
sessions = versions.filter(lambda version: version != version_zero)
keys = st.binary(max_size=60)
cells = st.one_of(
    st.just((s.no_cell, version_zero)), st.tuples(st.sampled_from((s.lives, s.ended)), sessions)
)


@given(epochs, slots, st.integers(0, (1 << 48) - 1), keys)
def test_what_is_asked_by_stale_comes_out_as_it_went_in(
    epoch: int, slot: int, at_ms: int, after: bytes
) -> None:
    body = s.encode_stale(epoch, slot, at_ms, after)
    assert s.decode_stale(body) == (slot, at_ms, after)
    assert body[:8] == epoch.to_bytes(8, "big")


@given(epochs, slots, sessions, keys)
def test_a_session_comes_out_as_it_went_in(
    epoch: int, slot: int, session: bytes, after: bytes
) -> None:
    freeze = s.encode_freeze(epoch, slot, session)
    assert s.decode_freeze(freeze) == (slot, session, b"")
    compare = s.encode_compare(epoch, slot, session, after)
    assert s.decode_compare(compare) == (slot, session, after)
    assert freeze[:8] == compare[:8] == epoch.to_bytes(8, "big")


@given(epochs, slots, sessions, st.lists(st.tuples(keys, st.binary(max_size=60)), max_size=9))
def test_a_repair_comes_out_as_it_went_in(
    epoch: int, slot: int, session: bytes, items: list[tuple[bytes, bytes]]
) -> None:
    body = s.encode_repair(epoch, slot, session, items)
    assert s.decode_repair(body) == (slot, session, items)
    assert body[:8] == epoch.to_bytes(8, "big")
    assert len(body) == s.repair_head_bytes + sum(
        s.repair_item_bytes + len(key) + len(record) for key, record in items
    )


@given(slots, sessions, st.lists(st.tuples(keys, versions), max_size=9))
def test_a_purge_comes_out_as_it_went_in(
    slot: int, session: bytes, purged: list[tuple[bytes, bytes]]
) -> None:
    assert s.decode_purge(s.encode_purge(slot, session, purged)) == (slot, session, purged)


@given(st.lists(keys, unique=True).map(sorted))
def test_a_page_of_keys_comes_out_as_it_went_in(found: list[bytes]) -> None:
    assert s.decode_key_page(s.encode_key_page(found)) == (False, found)


@given(st.dictionaries(keys, st.tuples(cells, versions, versions), max_size=9))
def test_what_is_compared_comes_out_as_it_went_in(
    found: dict[bytes, tuple[tuple[int, bytes], bytes, bytes]],
) -> None:
    entries = [
        s.Compared(key, *cell, promised, ballot)
        for key, (cell, promised, ballot) in sorted(found.items())
    ]
    assert s.decode_compared(s.encode_compared(entries)) == (False, entries)


@given(st.lists(st.text(max_size=60), max_size=9))
def test_replicators_come_out_as_they_went_in(ids: list[str]) -> None:
    assert s.decode_replicators(s.encode_replicators(ids)) == ids


def test_a_page_ends_at_its_number_of_keys_and_says_that_there_are_more() -> None:
    found = [b"%05d" % number for number in range(s.stale_max + 1)]
    assert s.decode_key_page(s.encode_key_page(found)) == (True, found[:-1])
    assert s.decode_key_page(s.encode_key_page(found[:-1])) == (False, found[:-1])
    entries = [s.Compared(key, s.lives, one, one, one) for key in found[: s.compared_max + 1]]
    assert s.decode_compared(s.encode_compared(entries)) == (True, entries[:-1])
    assert s.decode_compared(s.encode_compared(entries[:-1])) == (False, entries[:-1])


def test_pages_of_long_keys_are_bounded_in_bytes_and_lead_to_the_end() -> None:
    left = [b"%04d" % number + bytes(1_285) for number in range(1_000)]
    shown: list[bytes] = []
    more = True
    while more:
        body = s.encode_key_page(left)
        assert len(body) < page_bytes_max + 5_000
        more, page = s.decode_key_page(body)
        shown += page
        compared = s.encode_compared([s.Compared(key, s.ended, one, one, one) for key in left])
        assert len(compared) < page_bytes_max + 15_000
        assert [entry.key for entry in s.decode_compared(compared).entries] == page
        left = left[len(page) :]
    assert (len(shown), left) == (1_000, [])


whole: list[tuple[Callable[[bytes], object], bytes]] = [
    (s.decode_stale, s.encode_stale(1, 2, 3, b"after")),
    (s.decode_freeze, s.encode_freeze(1, 2, one)),
    (s.decode_compare, s.encode_compare(1, 2, one, b"after")),
    (s.decode_repair, s.encode_repair(1, 2, one, [(b"key", b"record"), (b"other", b"")])),
    (s.decode_purge, s.encode_purge(2, one, [(b"key", two), (b"other", version_zero)])),
    (s.decode_key_page, s.encode_key_page([b"key", b"other"])),
    (
        s.decode_compared,
        s.encode_compared(
            [s.Compared(b"a", s.ended, one, two, two), s.Compared(b"b", s.lives, two, one, one)]
        ),
    ),
    (s.decode_replicators, s.encode_replicators(["one", "two"])),
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


@pytest.mark.parametrize(
    ("decode", "body"), [(d, b) for d, b in whole if d not in (s.decode_stale, s.decode_compare)]
)
def test_a_message_of_fixed_form_is_refused_with_a_byte_too_many(
    decode: Callable[[bytes], object], body: bytes
) -> None:
    with pytest.raises(PeerError):
        decode(body + b"\0")


@pytest.mark.parametrize("decode", [decode for decode, _ in whole])
@given(data=st.binary(max_size=120))
def test_garbage_is_refused_or_understood_and_nothing_else(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    try:
        decode(data)
    except PeerError:
        return


refused: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "a slot that there is not": (s.decode_freeze, s.encode_freeze(1, slot_count, one)),
    "a session of zero": (s.decode_freeze, s.encode_freeze(1, 2, version_zero)),
    "a purge of zero": (s.decode_purge, s.encode_purge(2, version_zero, [])),
    "too many keys": (s.decode_purge, s.encode_purge(2, one, [(b"k", one)] * (items_max + 1))),
    "too many records": (
        s.decode_repair,
        s.encode_repair(1, 2, one, [(b"k", b"r")] * (items_max + 1)),
    ),
    "too many bytes": (
        s.decode_repair,
        s.encode_repair(1, 2, one, [(b"k", bytes(many_bytes_max))]),
    ),
    "a page without an end": (s.decode_key_page, b"\1"),
    "a page that is neither": (s.decode_key_page, b"\2\0\1k"),
    "keys in disorder": (s.decode_key_page, s.encode_key_page([b"b", b"a"])),
    "a key twice": (s.decode_key_page, s.encode_key_page([b"a", b"a"])),
    "a page that is too long": (
        s.decode_key_page,
        b"\0" + b"".join(b"\0\2" + n.to_bytes(2, "big") for n in range(s.stale_max + 1)),
    ),
    "an unknown cell": (s.decode_compared, s.encode_compared([s.Compared(b"a", 3, one, one, one)])),
    "a cell without a version": (
        s.decode_compared,
        s.encode_compared([s.Compared(b"a", s.lives, version_zero, one, one)]),
    ),
    "a version without a cell": (
        s.decode_compared,
        s.encode_compared([s.Compared(b"a", s.no_cell, one, one, one)]),
    ),
    "an id that is no text": (s.decode_replicators, b"\0\1\1\xff"),
}


@pytest.mark.parametrize(("decode", "body"), refused.values(), ids=refused.keys())
def test_what_no_peer_of_ours_would_send_is_refused(
    decode: Callable[[bytes], object], body: bytes
) -> None:
    with pytest.raises(PeerError):
        decode(body)
