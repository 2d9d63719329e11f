"""What nodes are asked survives the wire, and no bytes make a decoder raise anything odd."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.cluster import Member
from services.core.errors import PeerError
from services.core.key import namespace_bytes_max, namespace_prefix, tenant_max
from services.core.messages import (
    AHEAD,
    NEWER,
    ListPage,
    ListQuery,
    Reader,
    check_namespace_prefix,
    decode_body,
    decode_get_many,
    decode_list_query,
    decode_member,
    decode_records,
    decode_registered,
    decode_state,
    decode_statuses,
    decode_write_many,
    encode_body,
    encode_get_many,
    encode_records,
    encode_registered,
    encode_state,
    encode_statuses,
    encode_write_many,
    epoch_of,
    items_max,
    many_bytes_max,
    slot_bitmap_bytes,
)
from services.core.namespaces import (
    Cache,
    CacheList,
    Edition,
    NamespacesPage,
    NamespacesQuery,
    caches_max,
    decode_caches,
    decode_edition,
    decode_namespaces_query,
    encode_caches,
    encode_edition,
    max_items_max,
    no_edition,
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
    decode_list_query,
    decode_namespaces_query,
    lambda body: decode_body(body, NamespacesPage),
    decode_caches,
    lambda body: decode_body(body, ListPage),
    decode_member,
    decode_registered,
    decode_state,
]


@given(st.integers(0, 256), st.binary(max_size=50), st.booleans())
def test_what_nodes_say_of_themselves_and_hear_survives(
    missing: int, data: bytes, catching_up: bool
) -> None:
    assert decode_registered(encode_registered(missing, data)) == (missing, data)
    assert decode_state(encode_state(catching_up=catching_up)) is catching_up
    member = Member("node-1", "0" * 32, "127.0.0.1", 8082, 9082, "rack-1")
    assert decode_member(encode_body(member)) == member


def test_a_member_whose_name_is_not_text_is_refused() -> None:
    body = encode_body(Member("node-1", "0" * 32, "127.0.0.1", 8082, 9082))
    with pytest.raises(PeerError, match="not a message of the form that is due"):
        decode_member(body.replace(b"node-1", b"\xff" * 6))


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


def test_a_list_query_is_held_to_its_bounds() -> None:
    query = ListQuery(namespace, b"user:", b"user:5", 10, b":", bytes(slot_bitmap_bytes))
    assert decode_list_query(encode_body(query)) == query
    for change, complaint in (
        ({"limit": 0}, "1 to 1000"),
        ({"limit": 1001}, "1 to 1000"),
        ({"slots": b"short"}, "a bitmap of slots has 2048 bytes, not 5"),
        ({"namespace": b"short"}, "not the prefix of a namespace"),
        ({"namespace": namespace + b"x"}, "not the prefix of a namespace"),
    ):
        with pytest.raises(PeerError, match=complaint):
            decode_list_query(encode_body(msgspec.structs.replace(query, **change)))


def test_a_query_for_namespaces_is_held_to_its_bounds() -> None:
    query = NamespacesQuery(tenant_max, b"s" * namespace_bytes_max, 1)
    assert decode_namespaces_query(encode_body(query)) == query
    for change, complaint in (
        ({"tenant": -1}, "a tenant is 0 to"),
        ({"start": b"s" * (namespace_bytes_max + 1)}, "a name of 256 bytes"),
        ({"limit": 0}, "1 to 1000"),
        ({"limit": 1001}, "1 to 1000"),
    ):
        with pytest.raises(PeerError, match=complaint):
            decode_namespaces_query(encode_body(msgspec.structs.replace(query, **change)))


editions = st.builds(Edition, st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))


@given(editions, st.lists(st.integers(1, max_items_max), max_size=5))
def test_a_list_of_caches_survives(edition: Edition, items: list[int]) -> None:
    caches = [Cache(namespace_prefix(7, b"%d" % number), max_) for number, max_ in enumerate(items)]
    assert decode_caches(encode_caches(edition, caches)) == CacheList(edition, caches)
    assert decode_edition(encode_edition(edition)) == edition


@pytest.mark.parametrize("items", [0, -1, max_items_max + 1])
def test_a_cache_of_nothing_or_of_too_much_is_refused(items: int) -> None:
    with pytest.raises(PeerError):
        decode_caches(encode_caches(no_edition, [Cache(namespace, items)]))


def test_a_list_of_caches_has_names_and_an_end() -> None:
    whole = [Cache(namespace, 1)] * caches_max
    assert len(decode_caches(encode_caches(no_edition, whole)).caches) == caches_max
    for wrong in ([*whole, Cache(namespace, 1)], [Cache(namespace + b"k", 1)]):
        with pytest.raises(PeerError):
            decode_caches(encode_caches(no_edition, wrong))


def test_the_longest_list_of_caches_fits_one_message_to_a_node() -> None:
    longest = namespace_prefix(7, b"n" * namespace_bytes_max)
    whole = encode_caches(no_edition, [Cache(longest, max_items_max)] * caches_max)
    assert len(whole) <= many_bytes_max


def test_only_whole_prefixes_of_namespaces_pass() -> None:
    assert check_namespace_prefix(namespace) == namespace
    for wrong in (b"", bytes(9), namespace[:-1], namespace + b"k"):
        with pytest.raises(PeerError):
            check_namespace_prefix(wrong)


def test_a_reader_stops_at_the_end() -> None:
    reader = Reader(b"\x40\x00ab")
    with pytest.raises(PeerError, match="slot 16384; there are 16384"):
        reader.slot()
    assert reader.take(1) == b"a"
    with pytest.raises(PeerError, match="ends inside of a field"):
        reader.u16()
    assert reader.rest() == b"b"
    reader.end()
