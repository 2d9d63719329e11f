"""What msgpack packs survives the wire and is held to its bounds; no bytes make a decoder crash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.cluster import Member
from services.core.declarations import (
    Declaration,
    DeclaredAnswer,
    NamespacesTold,
    NamespaceTold,
    decode_declaration,
)
from services.core.deletions import (
    NamespaceDeletion,
    PrefixDeleted,
    PrefixDeletion,
    decode_namespace_deletion,
    decode_prefix_deletion,
    prefix_keys_max,
)
from services.core.errors import PeerError
from services.core.key import namespace_bytes_max, namespace_prefix, tenant_max
from services.core.listings import (
    ListEntry,
    ListPage,
    ListQuery,
    ScanPage,
    decode_list_query,
    slot_bitmap_bytes,
)
from services.core.messages import many_bytes_max
from services.core.namespaces import (
    Cache,
    CacheList,
    Count,
    Edition,
    NamespaceCount,
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
from services.core.packed_bodies import decode_body, encode_body

namespace = namespace_prefix(7, b"default")

packed: list[msgspec.Struct] = [
    ListQuery(namespace, b"user:", b"user:5", 10, b":", bytes(slot_bitmap_bytes)),
    ListPage([ListEntry(b"key", 5, bytes(12), 0, 1_000)], [b"user:"], b"user;"),
    ScanPage([(b"key", bytes(12))], None),
    NamespacesQuery(7, b"default", 10),
    NamespacesPage([NamespaceCount(b"default", 1, 100)], b"e"),
    Count(1, 100, 2),
    PrefixDeletion(namespace, b"a", b"b", 10, dry_run=True),
    PrefixDeleted(5, 4, b"c"),
    NamespaceDeletion(namespace, b"b", 10),
    Declaration(namespace, 1_000, 3),
    DeclaredAnswer(changed=True, untold=["node-1"]),
    NamespacesTold([NamespaceTold(b"default", 1, 100, None)], None),
    Member("node-1", "0" * 32, "127.0.0.1", 8082, 9082, "rack-1"),
]

decoders: list[Callable[[bytes], object]] = [
    *(partial(decode_body, of=type(each)) for each in packed),
    decode_list_query,
    decode_namespaces_query,
    decode_caches,
    decode_prefix_deletion,
    decode_namespace_deletion,
    decode_declaration,
]


@pytest.mark.parametrize("body", packed, ids=lambda body: type(body).__name__)
def test_a_body_comes_out_as_it_went_in(body: msgspec.Struct) -> None:
    assert decode_body(encode_body(body), type(body)) == body


@pytest.mark.parametrize("body", packed, ids=lambda body: type(body).__name__)
def test_a_body_that_is_cut_or_has_more_behind_is_refused(body: msgspec.Struct) -> None:
    whole = encode_body(body)
    for wrong in (*(whole[:end] for end in range(len(whole))), whole + b"x"):
        with pytest.raises(PeerError, match="not a message of the form that is due"):
            decode_body(wrong, type(body))


@given(st.binary(max_size=200) | st.sampled_from(packed).map(encode_body))
def test_no_bytes_make_a_decoder_crash(body: bytes) -> None:
    for decode in decoders:
        with contextlib.suppress(PeerError):
            decode(body)


def test_a_member_whose_name_is_not_text_is_refused() -> None:
    body = encode_body(Member("node-1", "0" * 32, "127.0.0.1", 8082, 9082))
    with pytest.raises(PeerError, match="not a message of the form that is due"):
        decode_body(body.replace(b"node-1", b"\xff" * 6), Member)


def test_a_deletion_by_prefix_needs_a_prefix_or_means_the_whole_and_stays_within_a_page() -> None:
    good = PrefixDeletion(namespace, b"a", b"b", 10, dry_run=True)
    whole = PrefixDeletion(namespace, b"", whole=True)
    for sound in (good, whole):
        assert decode_prefix_deletion(encode_body(sound)) == sound
    for bad in (
        PrefixDeletion(namespace, b""),
        PrefixDeletion(namespace, b"a", whole=True),
        PrefixDeletion(namespace + b"x", b"a"),
        PrefixDeletion(b"", b"a"),
        PrefixDeletion(namespace, b"a", limit=0),
        PrefixDeletion(namespace, b"a", limit=prefix_keys_max + 1),
    ):
        with pytest.raises(PeerError):
            decode_prefix_deletion(encode_body(bad))


@pytest.mark.parametrize(
    "bad",
    [
        NamespaceDeletion(namespace[:-1]),
        NamespaceDeletion(namespace, limit=0),
        NamespaceDeletion(namespace, limit=prefix_keys_max + 1),
    ],
)
def test_a_deletion_of_a_namespace_names_it_and_stays_within_a_page(bad: NamespaceDeletion) -> None:
    with pytest.raises(PeerError):
        decode_namespace_deletion(encode_body(bad))


@pytest.mark.parametrize("bad", [Declaration(namespace + b"k", 5), Declaration(namespace, 5, -1)])
def test_a_declaration_names_a_namespace_and_no_fewer_than_no_caches(bad: Declaration) -> None:
    with pytest.raises(PeerError):
        decode_declaration(encode_body(bad))


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
